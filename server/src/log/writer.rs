//! A log's way out: a thread that writes lines to stderr or to a file.
//!
//! Always true here: who logs never waits for a disk or a terminal; lines that find no room are counted and gone; lines are whole and in
//! the order in which they were taken. A file is opened for appending, and again when that is asked for, so that it may be renamed.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait to be written.
const LINES_MAX: usize = 8192;
/// Bytes of lines that wait to be written.
const BYTES_MAX: usize = 8 << 20;
/// How long the end of the program waits for what is not yet written.
const FLUSH_MAX: Duration = Duration::from_secs(2);
/// Between two looks whether there is room, for those who may wait.
const PAUSE: Duration = Duration::from_millis(1);

/// Takes lines. Clones share the way out.
#[derive(Clone, Debug)]
pub struct LineWriter {
    lines: SyncSender<Message>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    queued_bytes: AtomicUsize,
    reopen: AtomicBool,
}

enum Message {
    Line(Vec<u8>),
    /// Look what was asked for besides.
    Wake,
    /// Answered once everything before it is written.
    Flush(SyncSender<()>),
}

enum Target {
    Stderr,
    File { path: PathBuf, file: File },
}

impl LineWriter {
    /// Writes to stderr.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn stderr() -> io::Result<Self> {
        Self::start(Target::Stderr)
    }

    /// Writes to the end of a file, which is made if it is not there.
    ///
    /// # Errors
    /// What keeps the file from being opened, or no thread can be had.
    pub fn file(path: &Path) -> io::Result<Self> {
        Self::start(Target::File { path: path.to_owned(), file: open(path)? })
    }

    fn start(target: Target) -> io::Result<Self> {
        let (lines, receiver) = sync_channel(LINES_MAX);
        let shared = Arc::new(Shared::default());
        let writer = Self { lines, shared: shared.clone() };
        thread::Builder::new().name("log".into()).spawn(move || write_all(&receiver, target, &shared))?;
        Ok(writer)
    }

    /// Takes a line with its end, or counts it as dropped.
    pub fn line(&self, line: Vec<u8>) {
        if let Err(line) = self.offer(line) {
            drop(line);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The same for what must not be lost while anybody reads: waits for room, though not for ever.
    pub fn line_waiting(&self, mut line: Vec<u8>) {
        let until = Instant::now() + FLUSH_MAX;
        while let Err(back) = self.offer(line) {
            if Instant::now() >= until {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            line = back;
            thread::sleep(PAUSE);
        }
    }

    fn offer(&self, line: Vec<u8>) -> Result<(), Vec<u8>> {
        let bytes = line.len();
        let queued_bytes = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let refused = match queued_bytes + bytes > BYTES_MAX && queued_bytes > 0 {
            true => line,
            false => match self.lines.try_send(Message::Line(line)) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => match message {
                    Message::Line(line) => line,
                    Message::Wake | Message::Flush(_) => Vec::new(),
                },
            },
        };
        self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Err(refused)
    }

    /// Has a file opened again under its name.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        // Where there is no room, it is busy and will look.
        let _ = self.lines.try_send(Message::Wake);
    }

    /// Waits until everything taken so far is written, though not for ever.
    pub fn flush(&self) {
        let until = Instant::now() + FLUSH_MAX;
        let (done, written) = sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(back)) = self.lines.try_send(message) {
            if Instant::now() >= until {
                return;
            }
            message = back;
            thread::sleep(PAUSE);
        }
        let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
    }

    /// Lines that were not written.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn write_all(messages: &Receiver<Message>, mut target: Target, shared: &Shared) {
    while let Ok(message) = messages.recv() {
        if shared.reopen.swap(false, Ordering::AcqRel) {
            target.reopen();
        }
        match message {
            Message::Line(line) => {
                if target.write(&line).is_err() {
                    shared.dropped.fetch_add(1, Ordering::Relaxed);
                }
                shared.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            }
            Message::Wake => {}
            Message::Flush(done) => drop(done.try_send(())),
        }
    }
}

impl Target {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr => io::stderr().write_all(line),
            Self::File { file, .. } => file.write_all(line),
        }
    }

    /// The old file goes on where the new one cannot be opened.
    fn reopen(&mut self) {
        if let Self::File { path, file } = self {
            match open(path) {
                Ok(new) => *file = new,
                Err(error) => {
                    let _ = writeln!(io::stderr(), "blockstored: cannot open {} again: {error}", path.display());
                }
            }
        }
    }
}

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LineWriter {
    type Writer = Self;
    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn line(text: &str) -> Vec<u8> {
        format!("{text}\n").into_bytes()
    }

    #[test]
    fn a_renamed_file_is_left_and_a_new_one_made() {
        let dir = tempfile::tempdir().unwrap();
        let (path, renamed) = (dir.path().join("log"), dir.path().join("log.1"));
        fs::write(&path, "before\n").unwrap();
        let writer = LineWriter::file(&path).unwrap();
        writer.line(line("one"));
        writer.flush();
        fs::rename(&path, &renamed).unwrap();
        writer.line(line("two"));
        writer.flush();
        writer.reopen();
        writer.line(line("three"));
        writer.flush();
        assert_eq!(fs::read_to_string(&renamed).unwrap(), "before\none\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        assert_eq!(writer.dropped(), 0);
    }

    #[test]
    fn what_cannot_be_opened_again_goes_on_in_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        let writer = LineWriter::file(&folder.join("log")).unwrap();
        let moved = dir.path().join("moved");
        fs::rename(&folder, &moved).unwrap();
        writer.reopen();
        writer.line(line("on"));
        writer.flush();
        assert_eq!(fs::read_to_string(moved.join("log")).unwrap(), "on\n");
    }

    /// A file that takes nothing until somebody reads.
    #[test]
    fn who_logs_does_not_wait_and_what_finds_no_room_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, 0)
            .unwrap();
        // Both ends, so that opening waits for nobody.
        let reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let writer = LineWriter::file(&path).unwrap();
        let n = LINES_MAX as u64 + 5000;
        for _ in 0..n {
            writer.line(vec![b'x'; 100]);
        }
        let dropped = writer.dropped();
        // A pipe has room for 64 KiB.
        assert!((4000..=5000).contains(&dropped), "{dropped}");
        // By bytes as well.
        let large = LineWriter::file(&path).unwrap();
        for _ in 0..10 {
            large.line(vec![b'y'; 1 << 20]);
        }
        assert!((1..=3).contains(&large.dropped()), "{}", large.dropped());
        drop(reader);
    }
}
