//! The command line and the configuration file: what can be set, what it defaults to, and which settings go together.
//!
//! Always true here: a [`Settings`] names exactly one place for the store, and every setting that the place cannot honour was
//! refused with one line that names it. What the command line says counts, whatever the file says. Nothing here touches a disk or a
//! socket, but for reading that file, and the users' where settings are only checked.

use crate::{
    front::http,
    instances::InstanceRules,
    log,
    metrics::LATENCY_SECONDS_DEFAULT,
    store::{DigestFunction, ResultRule, completeness, compression::Frames, directories, local::Sharing},
};
use bytesize::ByteSize;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, ValueEnum, error::ErrorKind, parser::ValueSource};
use std::{ffi::OsString, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tracing::level_filters::LevelFilter;

mod auth;
mod file;
mod http_limits;
mod sharing;
mod values;

use auth::AuthArguments;
use http_limits::HttpArguments;
use sharing::InstanceArguments;
use values::{PerInstanceFunction, PerInstanceSwitch, parse_bytes};

use crate::front::reapi::ToolRules;

/// Serves a build cache (Remote Execution API v2) from a store in a file or on a block device.
#[derive(Debug, Parser)]
#[command(name = "blockstored", version)]
struct Arguments {
    /// Read settings from this TOML file, whose keys are these flags; what is given here counts before what is in the file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Only look whether the settings make sense, and say what does not
    #[arg(long)]
    check_config: bool,

    /// Keep the store in a file in this directory; directory and file are created at the first start
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Size of the store under --dir when it is created, e.g. 10GiB (2^30) or 10GB (10^9)
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    size: Option<u64>,

    /// Keep the store on this block device, instead of --dir
    #[arg(long, value_name = "PATH")]
    device: Vec<PathBuf>,

    /// Write a new, empty store to --device, if its first and last MiB are zero
    #[arg(long)]
    format: bool,

    /// With --format: whatever the device holds
    #[arg(long)]
    force: bool,

    /// Address for gRPC; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9092")]
    grpc: SocketAddr,

    /// Address for the HTTP cache protocol (/cas, /ac, /kv), /metrics, /status, /healthz and /readyz; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    http: SocketAddr,

    /// What HTTP clients may keep under /ac; lenient: action results, checked, and bytes of any other kind; strict: action results
    /// only; off: everything is bytes
    #[arg(long, value_enum, default_value_t = AcValidation::Lenient)]
    http_ac_validation: AcValidation,

    /// Function of the actions under /ac whose hash has 64 digits; default the one of --default-digest-function, else the one in which what
    /// a result names is there
    #[arg(long, value_enum)]
    http_ac_digest_function: Option<AcFunction>,

    /// Whether clients may store action results (and what is under /kv of HTTP); for all instances, or for one and those below it;
    /// may be repeated, the most specific one counts; default on
    #[arg(long, value_name = "[INSTANCE=]on|off")]
    ac_updates: Vec<PerInstanceSwitch>,

    /// Refuse an action result whose action is not in the store; some clients never upload it
    #[arg(long)]
    ac_strict_actions: bool,

    /// Function of hashes whose length leaves that open (40 and 64 digits), where the client names none; for all instances, or for one
    /// and those below it; may be repeated; default sha1 and sha256
    #[arg(long, value_name = "[INSTANCE=]FUNCTION")]
    default_digest_function: Vec<PerInstanceFunction>,

    #[command(flatten)]
    auth: AuthArguments,

    #[command(flatten)]
    http_limits: HttpArguments,

    #[command(flatten)]
    instances: InstanceArguments,

    /// How the kernel is asked for I/O; auto: io-uring where it is allowed
    #[arg(long, value_enum, default_value_t = Io::Auto)]
    io: Io,

    /// Whether to bypass the page cache; auto: on for --device, off for --dir
    #[arg(long, value_enum, default_value_t = Direct::Auto)]
    direct: Direct,

    /// When an upload is acknowledged; interval: once the kernel has it, and it is flushed within --flush-ms-max; group: once a
    /// shared flush covers it
    #[arg(long, value_enum, default_value_t = Durability::Interval)]
    durability: Durability,

    /// Most milliseconds between an acknowledgement and the start of the flush that covers it
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    flush_ms_max: u64,

    /// Memory for records that were read and verified; default 256MiB under --dir, on --device half of what is left of the
    /// memory limit after the index and 256MiB, and at least 256MiB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    cache_size: Option<u64>,

    /// Size of the blocks that rotate, fixed when the store is created; default capacity/128, a power of two from 1MiB to 1GiB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    block_size: Option<u64>,

    /// How many objects the index has room for, fixed when the store is created; default one for each 8KiB of the store
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    objects: Option<u64>,

    /// Most milliseconds that running requests get to end after SIGTERM or SIGINT
    #[arg(long, value_name = "MS", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(0..=3_600_000))]
    drain_ms_max: u64,

    /// How blobs are stored; zstd: as frames where that saves a tenth or more. What is stored already is read whatever it is; a store that
    /// was ever opened with zstd is not opened by programs that know nothing of it
    #[arg(long, value_enum, default_value_t = StorageCompression::Off)]
    storage_compression: StorageCompression,

    /// Level of the frames that are stored: 1 is the fastest, 19 the smallest
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=19))]
    storage_compression_level: i32,

    /// Clients that expect the size of the blob as the answer to a compressed upload, and not the bytes that they sent: names as
    /// they give them in the request metadata, or NAME/VERSION with the beginning of a version
    #[arg(long, value_name = "TOOLS", value_delimiter = ',', default_values = ToolRules::COMMITTED_IS_BLOB_SIZE)]
    zstd_answer_blob_size_to: Vec<String>,

    /// Clients that cannot be answered before they sent all of a compressed upload
    #[arg(long, value_name = "TOOLS", value_delimiter = ',', default_values = ToolRules::DRAINED)]
    zstd_drain_for: Vec<String>,

    /// Largest message of a client over gRPC, from 4MiB to 1GiB
    #[arg(long, value_name = "BYTES", value_parser = values::bytes_in(4 << 20, 1 << 30), default_value = "64MiB")]
    grpc_message_bytes_max: u64,

    /// Bytes of large gRPC messages that are in memory at the same time, from 4MiB to 3GiB; a client waits for its turn
    #[arg(long, value_name = "BYTES", value_parser = values::bytes_in(4 << 20, 3 << 30), default_value = "256MiB")]
    grpc_request_bytes_max: u64,

    /// Bytes that the compressed blobs of one batch may decompress to, from 4MiB to 1GiB
    #[arg(long, value_name = "BYTES", value_parser = values::bytes_in(4 << 20, 1 << 30), default_value = "64MiB")]
    grpc_decompressed_bytes_max: u64,

    /// Calls on one gRPC connection at the same time; a client queues what is above it
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(8..=65_536))]
    grpc_streams_max: u32,

    /// Uploads of blobs that run at the same time, over gRPC streams and HTTP; what is above it is refused for now
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    uploads_max: u32,

    /// Bytes of the trees that one action result may name, from 64KiB to 1TiB; one that names more is never a hit
    #[arg(long, value_name = "BYTES", value_parser = values::bytes_in(64 << 10, 1 << 40), default_value = "256MiB")]
    tree_bytes_max: u64,

    /// Levels of directories below a root, for trees and for action results that name a root
    #[arg(long, value_name = "N", default_value_t = directories::DEPTH_MAX, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    directory_depth_max: u32,
    /// Upper bounds of the classes in which /metrics counts how long requests take, in seconds, from the smallest on; default 21 of
    /// them from 0.00005 to 60
    #[arg(long, value_name = "SECONDS", value_delimiter = ',', allow_hyphen_values = true)]
    metrics_latency_buckets: Vec<f64>,

    /// The form of logs; json: an object a line
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// Log to the end of this file instead of to stderr; SIGHUP opens it again
    #[arg(long, value_name = "PATH")]
    log_file: Option<PathBuf>,

    /// What is less important is not logged; RUST_LOG in the environment wins
    #[arg(long, value_enum, default_value_t = LogLevel::Info)]
    log_level: LogLevel,

    /// Log every request, where the log is
    #[arg(long)]
    access_log: bool,

    /// Log every request, to the end of this file; SIGHUP opens it again
    #[arg(long, value_name = "PATH")]
    access_log_file: Option<PathBuf>,

    /// Warn of requests that take longer, and for each MiB that they move as long again; 0: never
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(0..=3_600_000))]
    slow_request_ms: u64,
}

/// The form of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// How important a line has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How the kernel is asked for I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Io {
    /// `io_uring` where the kernel allows it, else threads.
    Auto,
    /// `io_uring`, or an error.
    IoUring,
    /// `pread` and `pwrite` on threads.
    Sync,
}

/// Whether I/O bypasses the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direct {
    /// On for devices, off for files.
    Auto,
    /// Always, or an error.
    On,
    /// Never.
    Off,
}

/// When an upload is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// Once the kernel has it; a flush follows within the interval.
    Interval,
    /// Once a shared flush covers it.
    Group,
}

/// How blobs are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StorageCompression {
    Off,
    Zstd,
}

/// What HTTP clients may keep under `/ac`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AcValidation {
    Lenient,
    Strict,
    Off,
}

/// Functions that a hash of 64 digits may be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AcFunction {
    Sha256,
    Blake3,
}

/// Where the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file in a directory.
    File {
        /// The directory.
        dir: PathBuf,
        /// `--size` in bytes; needed only while there is no store.
        size_bytes: Option<u64>,
    },
    /// A whole block device.
    Device {
        /// The device node.
        path: PathBuf,
        /// Whether to write a new store to it, and over what.
        format: Format,
    },
}

/// Whether a device is formatted at this start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// No: it must hold a store.
    No,
    /// Yes, if its first and last MiB are zero.
    Blank,
    /// Yes, whatever it holds.
    Force,
}

/// A command line that makes sense.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the store is.
    pub place: Place,
    /// `--grpc`.
    pub grpc: SocketAddr,
    /// `--http`.
    pub http: SocketAddr,
    /// `--http-ac-validation` and `--http-ac-digest-function`.
    pub http_options: http::Options,
    /// `--http-connections-max` and the other bounds of HTTP connections.
    pub http_limits: http::Limits,
    /// `--htpasswd-file` and `--anonymous`.
    pub auth: Option<crate::auth::Options>,
    /// `--cas-instances` and `--ac-instances`.
    pub sharing: Sharing,
    /// `--ac-completeness-check`.
    pub completeness_check: bool,
    /// `--io`.
    pub io: Io,
    /// `--direct`.
    pub direct: Direct,
    /// `--durability`.
    pub durability: Durability,
    /// `--flush-ms-max`.
    pub flush_ms_max: u64,
    /// `--cache-size` in bytes.
    pub cache_bytes: Option<u64>,
    /// `--block-size` in bytes.
    pub block_bytes: Option<u64>,
    /// `--objects`.
    pub objects: Option<u64>,
    /// `--drain-ms-max`.
    pub drain_ms_max: u64,
    /// `--storage-compression` and its level.
    pub storage_frames: Option<Frames>,
    /// `--zstd-answer-blob-size-to` and `--zstd-drain-for`.
    pub tools: ToolRules,
    /// `--metrics-latency-buckets`: positive, finite and ascending.
    pub latency_seconds: Vec<f64>,
    /// `--log-format`, `--log-file`, `--log-level`, `--access-log` and `--access-log-file`.
    pub log: log::Options,
    /// `--slow-request-ms`.
    pub slow_after: Option<Duration>,
    /// `--ac-updates` and `--default-digest-function`.
    pub instances: Arc<InstanceRules>,
    /// `--ac-strict-actions`.
    pub actions_must_exist: bool,
    /// `--grpc-…-max` and other bounds.
    pub limits: Limits,
}

/// Bounds on what clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `--grpc-message-bytes-max`.
    pub message_bytes_max: usize,
    /// `--grpc-request-bytes-max`.
    pub request_bytes_max: u32,
    /// `--grpc-decompressed-bytes-max`.
    pub decompressed_bytes_max: usize,
    /// `--grpc-streams-max`, for each connection.
    pub streams_max: u32,
    /// `--uploads-max`.
    pub uploads_max: usize,
    /// `--tree-bytes-max` and `--directory-depth-max`, for action results.
    pub trees: completeness::Limits,
}

/// Why there are no settings.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Help or the version was asked for: the text for stdout.
    Answer(String),
    /// A mistake: one line for stderr.
    Mistake(String),
}

impl Settings {
    /// Reads a command line, the program's name first, and the file that it names.
    ///
    /// # Errors
    /// Also where only that was wanted, and nothing is wrong: an empty answer.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Refusal> {
        let given: Vec<_> = arguments.into_iter().collect();
        let (mut arguments, matches) = read(&given)?;
        if let Some(path) = &arguments.config {
            let from_file = file::read(path, &Arguments::command()).map_err(Refusal::Mistake)?;
            // A flag that is given replaces what the file says, also where it could be repeated.
            let replaced = |id: &clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
            let in_front = from_file.into_iter().filter(|setting| !replaced(&setting.id)).flat_map(|setting| setting.arguments);
            let program = given.first().cloned();
            let line: Vec<_> = program.into_iter().chain(in_front).chain(given.into_iter().skip(1)).collect();
            (arguments, _) = read(&line)?;
        }
        let only_checked = arguments.check_config;
        let settings = Self::check(arguments).map_err(Refusal::Mistake)?;
        if only_checked {
            settings.auth.as_ref().map_or(Ok(()), crate::auth::Options::check).map_err(Refusal::Mistake)?;
            return Err(Refusal::Answer(String::new()));
        }
        Ok(settings)
    }

    fn check(a: Arguments) -> Result<Self, String> {
        let mut devices = a.device.into_iter();
        let place = match (a.dir, devices.next(), devices.next()) {
            (_, Some(_), Some(second)) => {
                return Err(format!("--device {}: one device is supported now, give --device once", second.display()));
            }
            (Some(_), Some(_), None) => {
                return Err("--dir and --device exclude each other: the store is in a file or on a device".into());
            }
            (None, None, _) => {
                return Err("nowhere to keep the store: give --dir DIR --size 10GiB, or --device PATH".into());
            }
            (Some(dir), None, _) => {
                if a.format {
                    return Err("--format goes with --device: under --dir the store is created at the first start".into());
                }
                Place::File { dir, size_bytes: a.size }
            }
            (None, Some(path), None) => {
                if a.size.is_some() {
                    return Err("--size goes with --dir: a store on --device takes the whole device".into());
                }
                Place::Device {
                    path,
                    format: match (a.format, a.force) {
                        (false, _) => Format::No,
                        (true, false) => Format::Blank,
                        (true, true) => Format::Force,
                    },
                }
            }
        };
        if a.force && !a.format {
            return Err("--force goes with --device PATH --format".into());
        }
        if a.grpc == a.http && a.grpc.port() != 0 {
            return Err(format!("--grpc and --http are both {}: give them different ports", a.grpc));
        }
        if a.grpc_request_bytes_max < a.grpc_message_bytes_max {
            return Err(format!(
                "--grpc-request-bytes-max {} is less than --grpc-message-bytes-max {}: a message has to fit",
                ByteSize(a.grpc_request_bytes_max),
                ByteSize(a.grpc_message_bytes_max)
            ));
        }
        let mut instances = InstanceRules::default();
        for updates in a.ac_updates {
            instances.updates.set(updates.instance.as_deref(), updates.on);
        }
        for default in a.default_digest_function {
            instances.default_functions.add(default.instance.as_deref(), default.function);
        }
        let instances = Arc::new(instances);
        let named = |tools: Vec<String>| tools.into_iter().filter(|tool| !tool.is_empty()).collect();
        Ok(Self {
            place,
            grpc: a.grpc,
            http: a.http,
            http_options: http::Options {
                result_rule: match a.http_ac_validation {
                    AcValidation::Lenient => ResultRule::Lenient,
                    AcValidation::Strict => ResultRule::Strict,
                    AcValidation::Off => ResultRule::Opaque,
                },
                action_function: a.http_ac_digest_function.map(|function| match function {
                    AcFunction::Sha256 => DigestFunction::Sha256,
                    AcFunction::Blake3 => DigestFunction::Blake3,
                }),
                instances: instances.clone(),
            },
            http_limits: a.http_limits.limits(),
            auth: a.auth.options()?,
            sharing: a.instances.sharing(),
            completeness_check: a.instances.completeness_check(),
            io: a.io,
            direct: a.direct,
            durability: a.durability,
            flush_ms_max: a.flush_ms_max,
            cache_bytes: a.cache_size,
            block_bytes: a.block_size,
            objects: a.objects,
            drain_ms_max: a.drain_ms_max,
            storage_frames: match a.storage_compression {
                StorageCompression::Off => None,
                StorageCompression::Zstd => Some(Frames::new(a.storage_compression_level)),
            },
            tools: ToolRules { committed_is_blob_size: named(a.zstd_answer_blob_size_to), drained: named(a.zstd_drain_for) },
            instances,
            actions_must_exist: a.ac_strict_actions,
            limits: Limits {
                message_bytes_max: values::saturated(a.grpc_message_bytes_max),
                request_bytes_max: u32::try_from(a.grpc_request_bytes_max).unwrap_or(u32::MAX),
                decompressed_bytes_max: values::saturated(a.grpc_decompressed_bytes_max),
                streams_max: a.grpc_streams_max,
                uploads_max: values::saturated(a.uploads_max.into()),
                trees: completeness::Limits { tree_bytes_max: a.tree_bytes_max, depth_max: a.directory_depth_max },
            },
            latency_seconds: latency_seconds(a.metrics_latency_buckets)?,
            log: log::Options {
                format: match a.log_format {
                    LogFormat::Text => log::Format::Text,
                    LogFormat::Json => log::Format::Json,
                },
                level: match a.log_level {
                    LogLevel::Error => LevelFilter::ERROR,
                    LogLevel::Warn => LevelFilter::WARN,
                    LogLevel::Info => LevelFilter::INFO,
                    LogLevel::Debug => LevelFilter::DEBUG,
                    LogLevel::Trace => LevelFilter::TRACE,
                },
                access: match (a.access_log, a.access_log_file) {
                    (_, Some(path)) if Some(&path) == a.log_file.as_ref() => {
                        let path = path.display();
                        return Err(format!("--log-file and --access-log-file are both {path}: give --access-log instead"));
                    }
                    (_, Some(path)) => log::Access::File(path),
                    (true, None) => log::Access::WithLog,
                    (false, None) => log::Access::Off,
                },
                file: a.log_file,
            },
            slow_after: (a.slow_request_ms > 0).then(|| Duration::from_millis(a.slow_request_ms)),
        })
    }
}

/// Most classes of latency: each is a series for every method.
const LATENCY_BUCKETS_MAX: usize = 64;

/// Bounds of classes as they are used, or the defaults.
fn latency_seconds(given: Vec<f64>) -> Result<Vec<f64>, String> {
    if given.is_empty() {
        return Ok(LATENCY_SECONDS_DEFAULT.to_vec());
    }
    let positive = given.iter().all(|bound| bound.is_finite() && *bound > 0.0);
    let ascending = given.iter().zip(given.iter().skip(1)).all(|(a, b)| a < b);
    if !positive || !ascending || given.len() > LATENCY_BUCKETS_MAX {
        return Err(format!(
            "--metrics-latency-buckets: must be up to {LATENCY_BUCKETS_MAX} numbers of seconds above 0, each larger than the one before it"
        ));
    }
    Ok(given)
}

/// What a command line says, and what of it was given there.
fn read(line: &[OsString]) -> Result<(Arguments, ArgMatches), Refusal> {
    let refusal = |error: clap::Error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Refusal::Answer(error.to_string()),
        _ => Refusal::Mistake(one_line(&error.to_string())),
    };
    let matches = Arguments::command().try_get_matches_from(line).map_err(refusal)?;
    let arguments = Arguments::from_arg_matches(&matches).map_err(refusal)?;
    Ok((arguments, matches))
}

/// The message of a command-line error without its paragraphs of advice: what was wrong, and clap's tip where it has one.
fn one_line(message: &str) -> String {
    let mut paragraphs = message.trim_start_matches("error: ").split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
    let mut line = paragraphs.next().unwrap_or_default();
    if let Some(tip) = paragraphs.find(|p| p.starts_with("tip: ")) {
        line.push_str("; ");
        line.push_str(tip.trim_start_matches("tip: "));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Rights;

    fn parse(line: &str) -> Result<Settings, Refusal> {
        Settings::parse(line.split_whitespace().map(OsString::from))
    }

    fn mistake(line: &str) -> String {
        match parse(line) {
            Err(Refusal::Mistake(text)) => {
                assert_eq!(text.lines().count(), 1, "{text:?} is one line");
                text
            }
            other => panic!("{line}: expected a mistake, got {other:?}"),
        }
    }

    #[test]
    fn two_settings_are_enough() {
        let s = parse("blockstored --dir d --size 10GiB").unwrap();
        assert_eq!(s.place, Place::File { dir: "d".into(), size_bytes: Some(10 << 30) });
        assert_eq!(s.grpc, "127.0.0.1:9092".parse().unwrap());
        assert_eq!(s.http, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(s.http_options, http::Options::default());
        assert_eq!(s.http_limits, http::Limits::default());
        assert_eq!(s.auth, None);
        assert_eq!((s.sharing, s.completeness_check), (Sharing::default(), true));
        assert_eq!((s.io, s.direct), (Io::Auto, Direct::Auto));
        assert_eq!((s.durability, s.flush_ms_max), (Durability::Interval, 1000));
        assert_eq!((s.cache_bytes, s.block_bytes, s.objects), (None, None, None));
        assert_eq!(s.tools, ToolRules::default());
        assert_eq!(s.latency_seconds, LATENCY_SECONDS_DEFAULT);
        assert_eq!((s.log, s.slow_after), (log::Options::default(), Some(Duration::from_secs(1))));
    }

    #[test]
    fn logs_have_a_form_a_place_and_a_level() {
        let line = "blockstored --dir d --log-format json --log-file l --log-level warn --slow-request-ms 0";
        let s = parse(line).unwrap();
        let expected =
            log::Options { format: log::Format::Json, file: Some("l".into()), level: LevelFilter::WARN, access: log::Access::Off };
        assert_eq!((s.log, s.slow_after), (expected, None));
        assert_eq!(parse("blockstored --dir d --access-log").unwrap().log.access, log::Access::WithLog);
        for line in ["--access-log-file a", "--access-log --access-log-file a"] {
            let s = parse(&format!("blockstored --dir d {line}")).unwrap();
            assert_eq!(s.log.access, log::Access::File("a".into()), "{line}");
        }
    }

    #[test]
    fn classes_of_latency_ascend() {
        let s = parse("blockstored --dir d --metrics-latency-buckets 0.0001,0.01,1").unwrap();
        assert_eq!(s.latency_seconds, [0.0001, 0.01, 1.0]);
        for wrong in ["0,1", "-1,1", "1,1", "2,1", "NaN", "inf", "x", &vec!["1"; 65].join(",")] {
            let text = mistake(&format!("blockstored --dir d --metrics-latency-buckets {wrong}"));
            assert!(text.contains("--metrics-latency-buckets"), "{wrong}: {text}");
        }
    }

    #[test]
    fn blobs_are_compressed_where_that_is_wanted() {
        let frames = |line: &str| parse(&format!("blockstored --dir d {line}")).unwrap().storage_frames;
        assert_eq!((frames(""), frames("--storage-compression-level 5")), (None, None));
        assert_eq!(frames("--storage-compression zstd"), Some(Frames::new(1)));
        assert_eq!(frames("--storage-compression zstd --storage-compression-level 19"), Some(Frames::new(19)));
    }

    #[test]
    fn rules_by_instance_and_bounds_are_read() {
        let s = parse("blockstored --dir d").unwrap();
        assert_eq!((s.instances, s.actions_must_exist), (Arc::default(), false));
        let defaults = Limits {
            message_bytes_max: 64 << 20,
            request_bytes_max: 256 << 20,
            decompressed_bytes_max: 64 << 20,
            streams_max: 1024,
            uploads_max: 4096,
            trees: completeness::Limits::default(),
        };
        assert_eq!(s.limits, defaults);
        let s = parse(
            "blockstored --dir d --ac-updates off --ac-updates ci=on --ac-strict-actions --default-digest-function buck=blake3 \
             --default-digest-function gitsha1 --grpc-message-bytes-max 5MiB --grpc-request-bytes-max 6MiB \
             --grpc-decompressed-bytes-max 7MiB --grpc-streams-max 8 --uploads-max 9 --tree-bytes-max 100KiB --directory-depth-max 11",
        )
        .unwrap();
        let at = |name| crate::store::Instance::new(name);
        assert_eq!((*s.instances.updates.get(&at("ci/x")), *s.instances.updates.get(&at("y"))), (true, false));
        assert_eq!(s.instances.default_function(&at("buck"), 64), Some(DigestFunction::Blake3));
        assert_eq!(s.instances.default_function(&at("y"), 40), Some(DigestFunction::GitSha1));
        assert!(s.actions_must_exist);
        let limits = Limits {
            message_bytes_max: 5 << 20,
            request_bytes_max: 6 << 20,
            decompressed_bytes_max: 7 << 20,
            streams_max: 8,
            uploads_max: 9,
            trees: completeness::Limits { tree_bytes_max: 100 << 10, depth_max: 11 },
        };
        assert_eq!(s.limits, limits);
    }

    /// A file with that text, and what the command line with it comes to.
    fn with_file(text: &str, line: &str) -> (tempfile::TempDir, Result<Settings, Refusal>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.toml");
        std::fs::write(&path, text).unwrap();
        let parsed = parse(&format!("blockstored --config {} {line}", path.display()));
        (dir, parsed)
    }

    #[test]
    fn a_file_has_the_flags_as_keys() {
        let text = r#"
            dir = "d"
            size = "10GiB"
            flush_ms_max = 1_00
            ac_updates = ["off", "ci=on"]
            grpc = "127.0.0.1:1"
            [http]
            address = "127.0.0.1:2"
            ac_validation = "lenient"
            [ac]
            strict_actions = true
            [zstd]
            drain_for = []
            answer_blob_size_to = ["goma", "siso/1."]
        "#;
        let flags = "blockstored --dir d --size 10GiB --flush-ms-max 100 --ac-updates off --ac-updates ci=on --grpc 127.0.0.1:1 \
                     --http 127.0.0.1:2 --ac-strict-actions --zstd-answer-blob-size-to goma,siso/1.";
        let mut expected = parse(flags).unwrap();
        expected.tools.drained.clear();
        assert_eq!(with_file(text, "").1.unwrap(), expected);
        // Every key of a table may stand in front of it just as well.
        let flat = "dir = 'd'\nsize='10GiB'\nhttp-ac-validation = 'off'";
        assert_eq!(with_file(flat, "").1.unwrap().http_options.result_rule, ResultRule::Opaque);
    }

    #[test]
    fn the_command_line_counts_before_the_file_and_replaces_lists() {
        let text =
            "dir = 'd'\nflush_ms_max = 5\nac_updates = ['off', 'ci=on']\n[zstd]\ndrain_for = ['a', 'b']\n[ac]\nstrict_actions = false";
        let (_dir, settings) = with_file(text, "--flush-ms-max 7 --ac-updates x=off --zstd-drain-for c --ac-strict-actions");
        let settings = settings.unwrap();
        assert_eq!((settings.flush_ms_max, settings.actions_must_exist), (7, true));
        assert_eq!(settings.tools.drained, ["c"]);
        let at = |name| *settings.instances.updates.get(&crate::store::Instance::new(name));
        assert_eq!((at("ci"), at("y"), at("x")), (true, true, false));
    }

    #[test]
    fn a_mistake_in_the_file_is_named_with_its_line_and_what_would_be_right() {
        for (text, line, named) in [
            ("dir = 'd'\ncolour = 'blue'", 2, "`colour`: is no setting"),
            ("[http]\nac_validatoin = 'off'", 2, "a similar one is `http_ac_validation`"),
            ("[http]\n\nac_validation = 'maybe'", 3, "`http.ac_validation`: invalid value 'maybe'"),
            ("[http]\nac_validation = 'maybe'", 2, "[possible values: lenient, strict, off]"),
            ("size = 'much'", 1, "give bytes"),
            ("flush_ms_max = 1.5", 1, "is a number with a point, and should be a string or a whole number"),
            ("flush_ms_max = 0", 1, "1..=60000"),
            ("flush_ms_max = [1]", 1, "is a list"),
            ("dir = true", 1, "is true or false"),
            ("ac_strict_actions = 'yes'", 1, "should be true or false"),
            ("ac_updates = [true]", 1, "should be a list of strings"),
            ("ac_updates = ['maybe']", 1, "INSTANCE=on"),
            ("\nformat = true", 2, "at every start"),
            ("config = 'other'", 1, "command line only"),
            ("http_ac_validation = 'off'\n[http]\nac_validation = 'off'", 3, "was set in line 1 already"),
            ("dir = 'd'\ndir = 'e'", 2, "duplicate"),
            ("dir = ", 1, ""),
            ("dir.x = 1", 1, "`dir.x`"),
        ] {
            let (dir, parsed) = with_file(text, "");
            let Err(Refusal::Mistake(said)) = parsed else { panic!("{text}: {parsed:?}") };
            let place = format!("{}:{line}: ", dir.path().join("b.toml").display());
            assert!(said.starts_with(&place) && said.contains(named) && said.lines().count() == 1, "{text}: {said}");
        }
        let said = mistake("blockstored --config /nowhere/b.toml");
        assert!(said.contains("--config /nowhere/b.toml"), "{said}");
        let (_dir, large) = with_file(&"#".repeat((1 << 20) + 1), "");
        assert!(matches!(large, Err(Refusal::Mistake(said)) if said.contains("1 MiB")));
    }

    #[test]
    fn users_are_in_a_file_and_others_may_do_what_was_configured() {
        let auth = |line: &str| parse(&format!("blockstored --dir d --htpasswd-file f {line}")).unwrap().auth.unwrap();
        let with = |anonymous| crate::auth::Options { htpasswd_file: "f".into(), anonymous };
        assert_eq!(auth(""), with(Rights::NONE));
        assert_eq!(auth("--anonymous none"), with(Rights::NONE));
        assert_eq!(auth("--anonymous read"), with(Rights::READ));
        assert_eq!(with_file("dir = 'd'\nhtpasswd_file = 'f'\nanonymous = 'read'", "").1.unwrap().auth, Some(with(Rights::READ)));
        // Whoever looks at settings before they count wants to know of the file, too.
        let line = mistake("blockstored --dir d --htpasswd-file /nowhere/users --check-config");
        assert!(line.contains("--htpasswd-file /nowhere/users"), "{line}");
    }

    #[test]
    fn settings_can_be_checked_only() {
        assert_eq!(with_file("dir = 'd'", "--check-config").1, Err(Refusal::Answer(String::new())));
        assert!(matches!(with_file("dri = 'd'", "--check-config").1, Err(Refusal::Mistake(_))));
        assert!(mistake("blockstored --check-config").contains("--dir"));
    }

    #[test]
    fn a_second_device_is_refused() {
        let text = mistake("blockstored --device /dev/a --device /dev/b");
        assert!(text.contains("--device /dev/b: one device is supported now"), "{text}");
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused() {
        for (line, named) in [
            ("blockstored", "--dir"),
            ("blockstored --dir d --device /dev/a", "--device"),
            ("blockstored --dir d --size 1GiB --format", "--format"),
            ("blockstored --dir d --size 1GiB --force", "--force"),
            ("blockstored --device /dev/a --force", "--force"),
            ("blockstored --device /dev/a --size 1GiB", "--size"),
            ("blockstored --dir d --grpc 127.0.0.1:1 --http 127.0.0.1:1", "--grpc"),
            ("blockstored --dir d --grpc localhost", "--grpc"),
            ("blockstored --dir d --size much", "--size"),
            ("blockstored --dir d --io fast", "--io"),
            ("blockstored --dir d --http-ac-validation maybe", "--http-ac-validation"),
            ("blockstored --dir d --http-ac-digest-function md5", "--http-ac-digest-function"),
            ("blockstored --dir d --http-connections-max 0", "--http-connections-max"),
            ("blockstored --dir d --http-head-ms-max 0", "--http-head-ms-max"),
            ("blockstored --dir d --http-head-bytes-max 1KiB", "--http-head-bytes-max"),
            ("blockstored --dir d --http-head-bytes-max 2MiB", "--http-head-bytes-max"),
            ("blockstored --dir d --http-idle-ms-max never", "--http-idle-ms-max"),
            ("blockstored --dir d --http-stall-ms-max 0", "--http-stall-ms-max"),
            ("blockstored --dir d --anonymous read", "--anonymous goes with --htpasswd-file"),
            ("blockstored --dir d --anonymous none", "--anonymous goes with --htpasswd-file"),
            ("blockstored --dir d --htpasswd-file f --anonymous write", "--anonymous"),
            ("blockstored --dir d --cas-instances some", "--cas-instances"),
            ("blockstored --dir d --ac-instances off", "--ac-instances"),
            ("blockstored --dir d --ac-completeness-check yes", "--ac-completeness-check"),
            ("blockstored --dir d --storage-compression gzip", "--storage-compression"),
            ("blockstored --dir d --storage-compression-level 20", "--storage-compression-level"),
            ("blockstored --dir d --ac-updates maybe", "--ac-updates"),
            ("blockstored --dir d --default-digest-function x=murmur3", "--default-digest-function"),
            ("blockstored --dir d --grpc-message-bytes-max 1MiB", "--grpc-message-bytes-max"),
            ("blockstored --dir d --grpc-message-bytes-max 512MiB", "--grpc-request-bytes-max"),
            ("blockstored --dir d --grpc-decompressed-bytes-max 2GiB", "--grpc-decompressed-bytes-max"),
            ("blockstored --dir d --grpc-streams-max 7", "--grpc-streams-max"),
            ("blockstored --dir d --uploads-max 0", "--uploads-max"),
            ("blockstored --dir d --tree-bytes-max 1KiB", "--tree-bytes-max"),
            ("blockstored --dir d --directory-depth-max 0", "--directory-depth-max"),
            ("blockstored --dir d --flush-ms-max 0", "--flush-ms-max"),
            ("blockstored --dir d --objects 0", "--objects"),
            ("blockstored --dir d --log-format xml", "--log-format"),
            ("blockstored --dir d --log-level loud", "--log-level"),
            ("blockstored --dir d --log-file l --access-log-file l", "--access-log-file"),
            ("blockstored --dir d --slow-request-ms soon", "--slow-request-ms"),
            ("blockstored --dir d --colour blue", "--colour"),
        ] {
            let text = mistake(line);
            assert!(text.contains(named), "{line}: {text}");
        }
    }

    #[test]
    fn devices_are_formatted_only_when_told_so() {
        for (line, format) in [
            ("blockstored --device /dev/a", Format::No),
            ("blockstored --device /dev/a --format", Format::Blank),
            ("blockstored --device /dev/a --format --force", Format::Force),
        ] {
            let Place::Device { format: got, .. } = parse(line).unwrap().place else {
                panic!("{line}: not a device");
            };
            assert_eq!(got, format, "{line}");
        }
    }

    #[test]
    fn tools_are_listed_with_commas() {
        let s = parse("blockstored --dir d --zstd-answer-blob-size-to goma,siso/1. --zstd-drain-for bazel/5").unwrap();
        assert_eq!(s.tools.committed_is_blob_size, ["goma", "siso/1."]);
        assert_eq!(s.tools.drained, ["bazel/5"]);
    }

    #[test]
    fn connections_have_bounds_of_their_own() {
        let line = "blockstored --dir d --http-connections-max 7 --http-head-ms-max 8 --http-head-bytes-max 64KiB --http-idle-ms-max 9 \
                    --http-stall-ms-max 10";
        let limits = http::Limits { connections_max: 7, head_ms_max: 8, head_bytes_max: 64 << 10, idle_ms_max: 9, stall_ms_max: 10 };
        assert_eq!(parse(line).unwrap().http_limits, limits);
    }

    #[test]
    fn instances_share_what_was_configured() {
        let s = parse("blockstored --dir d --cas-instances separate --ac-instances shared --ac-completeness-check off").unwrap();
        assert_eq!((s.sharing, s.completeness_check), (Sharing { blobs: false, action_results: true }, false));
        let s = parse("blockstored --dir d --cas-instances shared --ac-instances separate --ac-completeness-check on").unwrap();
        assert_eq!((s.sharing, s.completeness_check), (Sharing::default(), true));
    }

    #[test]
    fn help_and_version_are_answers() {
        for line in ["blockstored --help", "blockstored --version"] {
            assert!(matches!(parse(line), Err(Refusal::Answer(_))), "{line}");
        }
    }
}
