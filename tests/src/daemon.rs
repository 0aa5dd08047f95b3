//! The real `blockstored` as a child process.
//!
//! Always true here: a child that was started has ended when its [`Daemon`] is gone; ports are free ones that the child chose.

use rustix::process::{Pid, kill_process};
use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

pub use rustix::process::Signal;

/// A child that says or does nothing for so long is stuck. No test depends on how fast it is below that.
const STUCK: Duration = Duration::from_secs(180);

const FREE_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// How to start a daemon; can be started again and again.
#[derive(Clone, Debug)]
pub struct Spec {
    program: Vec<OsString>,
    arguments: Vec<OsString>,
    grpc: SocketAddr,
    http: SocketAddr,
}

impl Spec {
    /// The binary that cargo built for the test (`env!("CARGO_BIN_EXE_blockstored")`).
    pub fn new(binary: &str) -> Self {
        Self { program: vec![binary.into()], arguments: Vec::new(), grpc: FREE_PORT, http: FREE_PORT }
    }

    /// Where it shall answer gRPC, instead of on a free port.
    pub fn grpc(mut self, addr: SocketAddr) -> Self {
        self.grpc = addr;
        self
    }

    /// Where it shall answer HTTP, instead of on a free port.
    pub fn http(mut self, addr: SocketAddr) -> Self {
        self.http = addr;
        self
    }

    /// Starts it through a program that runs the rest of its command line, such as `setpriv`.
    pub fn through(mut self, program: &[&str]) -> Self {
        self.program.splice(0..0, program.iter().map(Into::into));
        self
    }

    /// A store in a file.
    pub fn dir(self, dir: &Path, size: &str) -> Self {
        self.arg("--dir").arg(dir).arg("--size").arg(size)
    }

    /// A store on a block device.
    pub fn device(self, device: &Path) -> Self {
        self.arg("--device").arg(device)
    }

    /// One more argument.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// More arguments, apart by blanks.
    pub fn args(self, arguments: &str) -> Self {
        arguments.split_whitespace().fold(self, Self::arg)
    }

    /// Starts it and waits until it serves; if it ends before that, how it did.
    pub fn try_start(&self) -> Result<Daemon, Refused> {
        let mut daemon = self.spawn();
        loop {
            // The status before the log: what ended has said all that it will say.
            let status = daemon.child.try_wait().expect("cannot wait for the child");
            if let Some(status) = status {
                daemon.output.wait_end();
                return Err(Refused { status, log: daemon.log() });
            }
            if daemon.output.wait_line(|line| said(line).starts_with("ready in "), Duration::from_millis(50)) {
                break;
            }
            assert!(daemon.since.elapsed() < STUCK, "not ready: {:#?}", daemon.log());
        }
        daemon.grpc = daemon.address("grpc listening on ");
        daemon.http = daemon.address("http listening on ");
        Ok(daemon)
    }

    /// Starts it and waits until it serves.
    pub fn start(&self) -> Daemon {
        self.try_start().unwrap_or_else(|refused| panic!("not started: {refused:#?}"))
    }

    /// Starts it, expects that it refuses to serve, and gives its last line.
    pub fn refusal(&self) -> String {
        match self.try_start() {
            Ok(daemon) => panic!("served: {:#?}", daemon.log()),
            Err(refused) => {
                assert!(
                    matches!(refused.status.code(), Some(1 | 2)),
                    "ended with {} and not by refusing: {:#?}",
                    refused.status,
                    refused.log
                );
                let mut lines = refused.log.iter().filter(|line| said(line).starts_with("blockstored: "));
                let line = lines.next().unwrap_or_else(|| panic!("said nothing: {:#?}", refused.log));
                assert_eq!(lines.next(), None, "a refusal is one line");
                line.clone()
            }
        }
    }

    /// Starts it and does not wait.
    pub fn spawn(&self) -> Daemon {
        let (program, before) = self.program.split_first().expect("a program");
        let mut child = Command::new(program)
            .args(before)
            .args(["--grpc", &self.grpc.to_string()])
            .args(["--http", &self.http.to_string()])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        let output = Arc::new(Output::default());
        let stderr = child.stderr.take().expect("stderr is piped");
        thread::spawn({
            let output = output.clone();
            move || output.follow(stderr)
        });
        Daemon { child, output, since: Instant::now(), grpc: self.grpc, http: self.http }
    }
}

/// How a daemon ended that never served.
#[derive(Debug)]
pub struct Refused {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to stderr, by line.
    pub log: Vec<String>,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    output: Arc<Output>,
    since: Instant,
    /// Where it answers gRPC.
    pub grpc: SocketAddr,
    /// Where it answers HTTP.
    pub http: SocketAddr,
}

impl Daemon {
    /// What it wrote to stderr so far, by line.
    pub fn log(&self) -> Vec<String> {
        self.output.lines.lock().expect("no panic under the lock").0.clone()
    }

    /// Waits until it wrote a line that contains `text`.
    pub fn wait_for_line(&self, text: &str) {
        assert!(self.output.wait_line(|line| line.contains(text), STUCK), "never said {text:?}: {:#?}", self.log());
    }

    /// The value of `field=` in the line that reports how the store was opened.
    pub fn opened(&self, field: &str) -> String {
        let log = self.log();
        let value = log
            .iter()
            .find(|line| line.contains("store is open "))
            .and_then(|line| line.split_whitespace().find_map(|word| word.strip_prefix(field)?.strip_prefix('=')));
        value.unwrap_or_else(|| panic!("no report of {field}: {log:#?}")).to_owned()
    }

    /// Kills it as the kernel would, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("cannot send a signal to the child");
    }

    /// Asks it to stop and waits until it has; it must say that all went well.
    pub fn stop(self) -> Vec<String> {
        self.signal(Signal::TERM);
        let (status, log) = self.wait();
        assert!(status.success(), "ended with {status}: {log:#?}");
        log
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let until = Instant::now() + STUCK;
        loop {
            if let Some(status) = self.child.try_wait().expect("cannot wait for the child") {
                self.output.wait_end();
                return (status, self.log());
            }
            assert!(Instant::now() < until, "does not end: {:#?}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The most memory that it has had at a time, in bytes.
    pub fn memory_bytes_max(&self) -> u64 {
        let status = PathBuf::from(format!("/proc/{}/status", self.child.id()));
        let status = fs::read_to_string(status).expect("the child runs");
        let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
        kib.expect("a line VmHWM") * 1024
    }

    /// The status of a GET over HTTP, or `None` if nobody answers.
    pub fn http_status(&self, path: &str) -> Option<u16> {
        self.http_answer(path)?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
    }

    /// What a metric is on the page for Prometheus, all of its series together.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.http_answer("/metrics").expect("a page of metrics");
        let is_of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let series: Vec<_> = page.lines().filter(is_of).collect();
        assert!(!series.is_empty(), "no metric {name}");
        series.iter().map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")).sum()
    }

    fn http_answer(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.http).ok()?;
        stream.set_read_timeout(Some(STUCK)).expect("a socket has a timeout");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn address(&self, label: &str) -> SocketAddr {
        let log = self.log();
        let address = log.iter().find_map(|line| said(line).strip_prefix(label)?.parse().ok());
        address.unwrap_or_else(|| panic!("no line {label:?}: {log:#?}"))
    }

    fn end(&mut self) {
        // One that has ended already cannot be killed, and need not be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        if thread::panicking() {
            eprintln!("stderr of the daemon: {:#?}", self.log());
        }
    }
}

/// What a line says, if it is one for whoever started the server: it is plain, or the message of a line in JSON, without escapes.
fn said(line: &str) -> &str {
    let message = line.strip_prefix('{').and_then(|rest| rest.split_once("\"message\":\""));
    message.map_or(line, |(_, message)| message.split('"').next().unwrap_or_default())
}

/// What a child wrote: its lines, and whether that was all.
#[derive(Debug, Default)]
struct Output {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

impl Output {
    fn follow(&self, stderr: impl Read) {
        for line in BufReader::new(stderr).lines() {
            let Ok(line) = line else { break };
            self.lines.lock().expect("no panic under the lock").0.push(line);
            self.more.notify_all();
        }
        self.lines.lock().expect("no panic under the lock").1 = true;
        self.more.notify_all();
    }

    fn wait_line(&self, matches: impl Fn(&str) -> bool, at_most: Duration) -> bool {
        let lines = self.lines.lock().expect("no panic under the lock");
        let waiting = |(lines, ended): &mut (Vec<String>, bool)| !*ended && !lines.iter().any(|line| matches(line));
        let (lines, _) = self.more.wait_timeout_while(lines, at_most, waiting).expect("no panic under the lock");
        lines.0.iter().any(|line| matches(line))
    }

    fn wait_end(&self) {
        let lines = self.lines.lock().expect("no panic under the lock");
        let waited = self.more.wait_timeout_while(lines, STUCK, |(_, ended)| !*ended);
        drop(waited.expect("no panic under the lock"));
    }
}
