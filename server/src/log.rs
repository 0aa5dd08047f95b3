//! Logs: what the server says of itself, in text or JSON, on stderr or in a file; the access log beside it.
//!
//! Always true here: nobody waits for a log ([`writer`]); on stderr in JSON every line is JSON, also those that say where the server
//! listens and why it ends. Where the log is in a file, these stay on stderr as text, for whoever started the server.

use std::{
    io::{self, IsTerminal, Write},
    panic,
    path::PathBuf,
    sync::Arc,
};

use serde::Serialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt};

pub mod access;
pub mod writer;

use access::{AccessLog, timestamp};
use writer::LineWriter;

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// Which requests are logged, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// None.
    #[default]
    Off,
    /// All, among the other lines.
    WithLog,
    /// All, in this file.
    File(PathBuf),
}

/// What is logged, how and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The form of all lines.
    pub format: Format,
    /// Where they go, instead of to stderr.
    pub file: Option<PathBuf>,
    /// What is less important is left out, unless `RUST_LOG` says otherwise.
    pub level: LevelFilter,
    /// The access log.
    pub access: Access,
}

impl Default for Options {
    fn default() -> Self {
        Self { format: Format::Text, file: None, level: LevelFilter::INFO, access: Access::Off }
    }
}

/// The logs of this process. Clones share them.
#[derive(Clone, Debug)]
pub struct Logs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    format: Format,
    main: LineWriter,
    /// Whether the main one is stderr.
    stderr: bool,
    access: Option<AccessLog>,
    access_file: Option<LineWriter>,
    files: bool,
}

#[derive(Serialize)]
struct Said<'a> {
    timestamp: &'a str,
    level: &'a str,
    message: &'a str,
    target: &'a str,
}

impl Logs {
    /// Opens the logs and takes what the whole process logs from now on; once in a process.
    ///
    /// # Errors
    /// A line that names the setting whose file cannot be opened.
    pub fn start(options: &Options) -> Result<Self, String> {
        let cannot = |setting: &str, path: &PathBuf, error: io::Error| {
            format!("{setting} {}: cannot open: {error}; give {setting} a file that can be written", path.display())
        };
        let main = match &options.file {
            Some(path) => LineWriter::file(path).map_err(|error| cannot("--log-file", path, error))?,
            None => LineWriter::stderr().map_err(|error| format!("cannot start a thread for the log: {error}"))?,
        };
        let access_file = match &options.access {
            Access::File(path) => Some(LineWriter::file(path).map_err(|error| cannot("--access-log-file", path, error))?),
            Access::Off | Access::WithLog => None,
        };
        let access = (options.access != Access::Off).then(|| access_file.clone().unwrap_or_else(|| main.clone()));
        let logs = Self(Arc::new(Shared {
            format: options.format,
            stderr: options.file.is_none(),
            access: access.map(|writer| AccessLog::new(options.format, writer)),
            files: options.file.is_some() || access_file.is_some(),
            access_file,
            main,
        }));
        logs.subscribe(options);
        logs.take_panics();
        Ok(logs)
    }

    fn subscribe(&self, options: &Options) {
        let shared = &self.0;
        let asked = std::env::var("RUST_LOG").unwrap_or_default();
        let asked = (!asked.is_empty()).then(|| EnvFilter::builder().parse(&asked).map_err(|error| (asked, error)));
        let (filter, mistake) = match asked {
            Some(Ok(filter)) => (filter, None),
            Some(Err(mistake)) => (EnvFilter::default().add_directive(options.level.into()), Some(mistake)),
            None => (EnvFilter::default().add_directive(options.level.into()), None),
        };
        let layer = tracing_subscriber::fmt::layer().with_writer(shared.main.clone());
        let layer = match shared.format {
            Format::Json => layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
            Format::Text => layer.with_ansi(shared.stderr && io::stderr().is_terminal()).boxed(),
        };
        let subscriber = tracing_subscriber::registry().with(filter).with(layer);
        if tracing::subscriber::set_global_default(subscriber).is_err() {
            self.say("blockstored: another log was set up before, and is kept");
        }
        if let Some((asked, error)) = mistake {
            tracing::warn!(RUST_LOG = asked, %error, "RUST_LOG is not understood; --log-level holds");
        }
    }

    /// A panic is a line like others. In a log file it is beside what stderr gets.
    fn take_panics(&self) {
        let logs = self.clone();
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            if !logs.0.stderr || logs.0.format == Format::Json {
                logs.0.main.line_waiting(logs.0.line("ERROR", &panicked.to_string()));
            }
            if !logs.0.stderr || logs.0.format == Format::Text {
                default(panicked);
            }
        }));
    }

    /// A line for whoever started the server. It is never filtered.
    pub fn say(&self, line: &str) {
        match (self.0.stderr, self.0.format) {
            (true, Format::Json) => self.0.main.line_waiting(self.0.line("INFO", line)),
            (true, Format::Text) => self.0.main.line_waiting(format!("{line}\n").into_bytes()),
            (false, _) => {
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
    }

    /// The access log, if there is one.
    pub fn access(&self) -> Option<AccessLog> {
        self.0.access.clone()
    }

    /// Whether any of them is in a file.
    pub fn has_files(&self) -> bool {
        self.0.files
    }

    /// Has files opened again, after they were renamed.
    pub fn reopen(&self) {
        self.0.main.reopen();
        self.0.access_file.iter().for_each(LineWriter::reopen);
    }

    /// Waits until what was logged is written.
    pub fn flush(&self) {
        self.0.main.flush();
        self.0.access_file.iter().for_each(LineWriter::flush);
    }

    /// Lines that found no room: of the log, and of the access log where that has a file of its own.
    pub fn dropped(&self) -> [(&'static str, u64); 2] {
        [("log", self.0.main.dropped()), ("access", self.0.access_file.as_ref().map_or(0, LineWriter::dropped))]
    }
}

impl Shared {
    fn line(&self, level: &str, message: &str) -> Vec<u8> {
        let now = timestamp();
        match self.format {
            Format::Json => {
                let said = Said { timestamp: &now, level, message, target: "blockstored" };
                [serde_json::to_vec(&said).unwrap_or_default(), b"\n".into()].concat()
            }
            Format::Text => format!("{now} {level:>5} {}\n", message.replace('\n', "\n  ")).into_bytes(),
        }
    }
}
