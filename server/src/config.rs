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
use values::{PerInstanceFunction, PerInstanceSwitch, parse_bytes, parse_bytes_or_none};

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

    /// Memory for records that were read and verified, 0 for none; default 256MiB under --dir, on --device half of what is
    /// left of the memory limit after the index and 256MiB, and at least 256MiB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes_or_none)]
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
mod tests;
