//! How a command ends and what it prints.
//!
//! Always true here: the exit status says what the documents say it says; a reader that goes away (`| head`) ends a command without a
//! word.

use blockstore_engine::{OpenError, PutError, device::DeviceError, offline::Defect};
use bytesize::ByteSize;
use serde::Serialize;
use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

/// Exit status for a store that another process has.
const HELD: u8 = 4;

/// What a command found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Sound,
    Damaged,
}

impl Verdict {
    pub(crate) fn of(is_damaged: bool) -> Self {
        if is_damaged { Self::Damaged } else { Self::Sound }
    }
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Damaged => "damaged",
        }
    }
}

/// Why a command could not do its work: the exit status, and a line.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    line: String,
}

impl Failure {
    pub(crate) fn damage(line: impl fmt::Display) -> Self {
        Self { status: 1, line: line.to_string() }
    }
    pub(crate) fn usage(line: impl fmt::Display) -> Self {
        Self { status: 2, line: line.to_string() }
    }
    pub(crate) fn cannot_open(line: impl fmt::Display) -> Self {
        Self { status: 3, line: line.to_string() }
    }
    pub(crate) fn held(line: impl fmt::Display) -> Self {
        Self { status: HELD, line: line.to_string() }
    }
    /// Whether another process has the store.
    pub(crate) fn is_held(&self) -> bool {
        self.status == HELD
    }
    /// The same, with more to say.
    pub(crate) fn but(&self, more: impl fmt::Display) -> Self {
        Self { status: self.status, line: format!("{}; {more}", self.line) }
    }
    /// Prints the line.
    pub(crate) fn told(self) -> ExitCode {
        if !self.line.is_empty() {
            eprintln!("blockstore-tool: {}", self.line);
        }
        ExitCode::from(self.status)
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::Held { .. } => Self::held(format!("{error}: stop the server that has it first")),
            DeviceError::InUse { .. } => Self::held(error),
            _ => Self::cannot_open(error),
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::cannot_open(error)
    }
}

impl From<PutError> for Failure {
    fn from(error: PutError) -> Self {
        Self::cannot_open(error)
    }
}

/// Of stdout and of files that a command writes.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self { status: 0, line: String::new() },
            _ => Self::cannot_open(format!("cannot write: {error}")),
        }
    }
}

/// One JSON document, indented, with a line end.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

/// One JSON document on one line.
pub(crate) fn json_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value).map_err(io::Error::from)?;
    writeln!(out)
}

/// Lines of a name and a value.
pub(crate) struct Lines(io::StdoutLock<'static>);

impl Lines {
    pub(crate) fn new() -> Self {
        Self(io::stdout().lock())
    }
    pub(crate) fn line(&mut self, name: &str, value: impl fmt::Display) -> io::Result<()> {
        writeln!(self.0, "{name:<18}{value}")
    }
    pub(crate) fn plain(&mut self, text: impl fmt::Display) -> io::Result<()> {
        writeln!(self.0, "{text}")
    }
}

/// Bytes for people, and exactly.
pub(crate) fn bytes(bytes: u64) -> String {
    format!("{} ({bytes} B)", ByteSize(bytes))
}

/// What is wrong with a record, for people.
pub(crate) fn defect(defect: Defect) -> &'static str {
    match defect {
        Defect::Unreadable => "cannot be read",
        Defect::Head => "has a damaged header",
        Defect::OtherKey => "belongs to another key",
        Defect::Payload => "has damaged bytes",
        Defect::MissingParts => "lacks parts of its object",
        Defect::Content => "does not have the bytes that its key says",
        _ => "is damaged",
    }
}

/// The same as a stable word.
pub(crate) fn defect_word(defect: Defect) -> &'static str {
    match defect {
        Defect::Unreadable => "unreadable",
        Defect::Head => "head",
        Defect::OtherKey => "other_key",
        Defect::Payload => "payload",
        Defect::MissingParts => "missing_parts",
        Defect::Content => "content",
        _ => "other",
    }
}
