//! The life of the server: bind, open, serve, drain, close.
//!
//! Always true here: both addresses are bound before the store is touched, so that a port in use changes nothing on disk; requests
//! are served only while the store is open; whatever ends the server, the user sees one line on stderr, and the exit status
//! is zero only after a clean close.

use crate::{
    addresses::Addresses,
    auth::Guard,
    config::{Durability, Place, Refusal, Settings},
    front::{
        gate::Gate,
        http::{self, Front},
        observe::Observer,
        reapi::{self, Services, SuspendedLimits, http2},
        uploads::Uploads,
    },
    log::Logs,
    metrics::Metrics,
    open_files,
    operator::Operator,
    phase::Phase,
    storage,
    store::{BlobStore, DigestFunction, chunked::ChunkedBlobs, completeness::CompleteActionResults, local::LocalStore},
};
use blockstore_engine::{Engine, OpenOptions, OpenReport};
use std::{
    ffi::OsString,
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    net::TcpListener,
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, timeout},
};
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tracing::{error, info, warn};

/// How long connections get to end after the last request has.
const GOODBYE: Duration = Duration::from_secs(1);
/// How often to look whether the store still accepts writes.
const POISON_CHECK: Duration = Duration::from_secs(1);
/// Uploads whose stream was cut may hold this part of the capacity: half of what the engine lets all uploads hold, so that those
/// which run never wait for those which may not come back.
const SUSPENDED_SHARE: u64 = 4;

/// Runs the server until it is told to stop. The exit status is 2 for a mistake on the command line, 1 for any other failure.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let started = Instant::now();
    let settings = match Settings::parse(arguments) {
        Ok(settings) => settings,
        Err(Refusal::Answer(text)) => {
            // A reader that went away (`| head`) is no failure.
            let _ = io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(Refusal::Mistake(line)) => {
            say(&format!("blockstored: {line}"));
            return ExitCode::from(2);
        }
    };
    let logs = match Logs::start(&settings.log) {
        Ok(logs) => logs,
        Err(line) => {
            say(&format!("blockstored: {line}"));
            return ExitCode::from(2);
        }
    };
    let code = serve(settings, &logs, started);
    logs.flush();
    code
}

/// Serves until the end, and says why it came if that was none that was asked for.
fn serve(settings: Settings, logs: &Logs, started: Instant) -> ExitCode {
    let runtime = match runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            logs.say(&format!("blockstored: cannot start threads: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let end = runtime.block_on(live(settings, logs.clone(), started));
    // Threads may be stuck in the kernel on a device that went away.
    runtime.shutdown_background();
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            logs.say(&format!("blockstored: {line}"));
            ExitCode::FAILURE
        }
    }
}

/// A line on stderr while there is no log; that nobody reads it is no failure.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

async fn live(settings: Settings, logs: Logs, started: Instant) -> Result<(), String> {
    let mut signals = Signals::new()?;
    let metrics = Arc::new(Metrics::new(&settings.latency_seconds));
    let guard = guard(&settings, &metrics)?;
    if logs.has_files() || guard.is_some() {
        read_again_on_hangup(logs.clone(), guard.clone())?;
    }
    let (grpc, grpc_addr) = bind("--grpc", settings.grpc).await?;
    let (http, http_addr) = bind("--http", settings.http).await?;

    let (phase, phase_seen) = watch::channel(Phase::Opening);
    if let Some(guard) = &guard {
        tell_of_users(guard, &[grpc_addr, http_addr]);
    }
    let gate = Gate::new(phase_seen.clone()).guarded(guard);
    let observer = Observer::new(metrics.clone(), logs.access(), settings.slow_after);
    let operator = Arc::new(Operator::new(metrics.clone(), phase_seen.clone(), gate.clone(), started));
    operator.watch_logs(logs.clone());
    let front = Arc::new(Front::new(phase_seen, gate.clone(), http_limits(&settings)).with_operator(observer.clone(), operator.clone()));
    let (http_goodbye, http_goodbye_said) = watch::channel(false);
    let mut http_server = tokio::spawn(http::serve(http, front.clone(), http_goodbye_said));

    let (engine, report) = tokio::select! {
        opened = open(&settings) => opened?,
        signal = signals.next() => return Err(format!("stopped by {} before the store was open", signal.name)),
    };
    // While the store is held, and not before: what is there of another server is that one's.
    let told = match &settings.place {
        Place::File { dir, .. } => Addresses { grpc: grpc_addr, http: http_addr, pid: std::process::id() }.tell(dir),
        Place::Device { .. } => None,
    };
    let stats = engine.stats();
    info!(
        clean = report.clean,
        objects = report.objects,
        read_bytes = report.read_bytes,
        voided_entries = report.voided_entries,
        damaged_entries = report.damaged_entries,
        capacity_bytes = stats.capacity_bytes,
        table_slots = stats.table_slots,
        table_bytes = stats.table_bytes,
        elapsed_ms = report.elapsed.as_secs_f64() * 1e3,
        "store is open"
    );

    let mut local = LocalStore::new(engine.clone(), DigestFunction::ALL.to_vec()).with_sharing(settings.sharing);
    if let Some(frames) = settings.storage_frames {
        local = local.compressing(frames);
    }
    let local = Arc::new(local);
    let limits = settings.limits;
    let complete = CompleteActionResults::with(Arc::new(ChunkedBlobs::new(local.clone())), limits.trees);
    let results = Arc::new(complete.with_checks(settings.completeness_check));
    operator.opened(engine.clone(), results.clone());
    let store: Arc<dyn BlobStore> = results;
    let uploads = Uploads::new(limits.uploads_max);
    front.open(store.clone(), settings.http_options.clone(), uploads.clone());
    let options = reapi::Options {
        instances: settings.instances.clone(),
        actions_must_exist: settings.actions_must_exist,
        message_bytes_max: limits.message_bytes_max,
        request_bytes_max: limits.request_bytes_max,
        decompressed_bytes_max: limits.decompressed_bytes_max,
        directory_depth_max: limits.trees.depth_max,
        uploads,
        suspended: SuspendedLimits { bytes_max: stats.capacity_bytes / SUSPENDED_SHARE, ..SuspendedLimits::default() },
        tools: settings.tools.clone(),
        metrics,
    };
    let services = Services::new(store, options).await;
    operator.watch_suspended(services.suspended_reader());
    let (goodbye, goodbye_said) = watch::channel(false);
    let mut grpc_server = tokio::spawn(
        http2::configure(Server::builder(), limits.streams_max)
            // Around the gate, so that what is turned away counts.
            .layer(observer)
            .layer(gate.clone())
            .add_routes(Routes::from(services.router()))
            .serve_with_incoming_shutdown(TcpIncoming::from(grpc).with_nodelay(Some(true)), said(goodbye_said)),
    );
    phase.send_replace(Phase::Serving);
    logs.say(&format!("grpc listening on {grpc_addr}"));
    logs.say(&format!("http listening on {http_addr}"));
    logs.say(&format!("ready in {:.1} ms", started.elapsed().as_secs_f64() * 1e3));

    let poison_watch = tokio::spawn(report_poison(engine.clone(), settings.place.clone()));
    let (why, failure) = tokio::select! {
        signal = signals.next() => (signal.name, None),
        ended = &mut grpc_server => ("failure", Some(format!("gRPC listener {grpc_addr} failed: {ended:?}"))),
    };
    phase.send_replace(Phase::Draining);
    services.set_serving(false).await;
    info!(why, running = gate.running(), "draining");
    tokio::spawn(async move {
        let signal = signals.next().await;
        logs.say(&format!("blockstored: stopped at once by a second signal ({})", signal.name));
        logs.flush();
        std::process::exit(128 + signal.number);
    });
    let drain = Duration::from_millis(settings.drain_ms_max);
    if timeout(drain, gate.drained()).await.is_err() {
        warn!(running = gate.running(), drain_ms_max = settings.drain_ms_max, "requests still run at the end of the drain and are cut");
    }
    goodbye.send_replace(true);
    if failure.is_none() && timeout(GOODBYE, &mut grpc_server).await.is_err() {
        grpc_server.abort();
    }
    poison_watch.abort();
    if settings.storage_frames.is_some() {
        let counters = local.at_rest_counters();
        info!(
            compressed = counters.compressed.load(Ordering::Relaxed),
            compressed_blob_bytes = counters.compressed_blob_bytes.load(Ordering::Relaxed),
            compressed_stored_bytes = counters.compressed_stored_bytes.load(Ordering::Relaxed),
            plain = counters.plain.load(Ordering::Relaxed),
            "blobs that were stored"
        );
    }
    // Before the store is let go of: from then on another server may say where it answers.
    drop(told);
    let closed = engine.close().await;
    // Last, so that probes are answered until then.
    http_goodbye.send_replace(true);
    if timeout(GOODBYE, &mut http_server).await.is_err() {
        http_server.abort();
    }
    if let Err(error) = closed {
        return Err(format!("store was not closed cleanly: {error}"));
    }
    info!("store is closed");
    failure.map_or(Ok(()), Err)
}

/// The bounds of HTTP connections, of which there cannot be more than files.
fn http_limits(settings: &Settings) -> http::Limits {
    let mut limits = settings.http_limits;
    let connections_max = usize::try_from(open_files::raise_limit() / 4 * 3).unwrap_or(usize::MAX);
    if limits.connections_max > connections_max {
        warn!(
            "--http-connections-max {}: the limit on open files allows {connections_max}, which is taken; raise the limit (ulimit -n)",
            limits.connections_max
        );
        limits.connections_max = connections_max;
    }
    limits
}

/// Listens on an address that a setting named; the address that comes back has the port that was taken.
async fn bind(setting: &str, addr: SocketAddr) -> Result<(TcpListener, SocketAddr), String> {
    let listening = async {
        let listener = TcpListener::bind(addr).await?;
        let actual = listener.local_addr()?;
        Ok::<_, io::Error>((listener, actual))
    };
    listening.await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{setting} {addr}: port is in use; stop the process that listens there, or give {setting} another port")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{setting} {addr}: not an address of this machine; give {setting} one that is")
        }
        _ => format!("{setting} {addr}: cannot listen: {error}"),
    })
}

async fn open(settings: &Settings) -> Result<(Engine, OpenReport), String> {
    let place = storage::open(settings).await?;
    let options = OpenOptions {
        durability: match settings.durability {
            Durability::Interval => blockstore_engine::Durability::Interval,
            Durability::Group => blockstore_engine::Durability::Group,
        },
        flush_ms_max: settings.flush_ms_max,
        cache_bytes: place.cache_bytes,
        encode: settings.storage_frames.is_some(),
    };
    Engine::open(place.device, options).await.map_err(|error| storage::cannot_open(&settings.place, &error))
}

async fn said(mut goodbye: watch::Receiver<bool>) {
    // A sender that is gone says so as well.
    let _ = goodbye.wait_for(|said| *said).await;
}

/// Logs once when the store stops accepting writes.
async fn report_poison(engine: Engine, place: Place) {
    let mut tick = interval(POISON_CHECK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Some(reason) = engine.poisoned() {
            error!(
                store = %storage::name(&place),
                "store accepts no more writes: {reason}; reads go on; restart blockstored once the device is back"
            );
            return;
        }
    }
}

/// Who looks at credentials, if anybody is to.
fn guard(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Option<Guard>, String> {
    let Some(options) = &settings.auth else { return Ok(None) };
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| format!("cannot get random bytes: {error}"))?;
    Guard::new(options, key, metrics.clone()).map(Some)
}

/// Says that credentials are asked for, and warns where others on the way would see them.
fn tell_of_users(guard: &Guard, addresses: &[SocketAddr]) {
    info!(users = guard.users(), "credentials are asked for");
    for address in addresses.iter().filter(|address| others_can_listen(address)) {
        warn!(
            %address,
            "names and passwords arrive there as they are, and whoever is on the way can read them: \
             have a proxy in front that speaks TLS, or listen on 127.0.0.1"
        );
    }
}

/// Whether what arrives at an address may have been on a network.
fn others_can_listen(address: &SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

/// Has log files opened and users read again at each SIGHUP, from now on. Without either that signal ends the process, as it does by
/// default.
fn read_again_on_hangup(logs: Logs, guard: Option<Guard>) -> Result<(), String> {
    let mut hangup = signal(SignalKind::hangup()).map_err(|error| format!("cannot listen for signals: {error}"))?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            if logs.has_files() {
                logs.reopen();
                info!("log files were opened again");
            }
            let Some(guard) = guard.clone() else { continue };
            let read = spawn_blocking(move || guard.reload()).await;
            match read.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(users) => info!(users, "users were read again"),
                Err(line) => error!("{line}; the users from before stay"),
            }
        }
    });
    Ok(())
}

/// The signals that end the server.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

struct Received {
    name: &'static str,
    number: i32,
}

impl Signals {
    fn new() -> Result<Self, String> {
        let listen = |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> Received {
        let (name, kind) = tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", SignalKind::terminate()),
            _ = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
        };
        Received { name, number: kind.as_raw_value() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_listens_on_the_way_to_this_machine_itself() {
        for (address, others) in [
            ("127.0.0.1:1", false),
            ("127.1.2.3:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("0.0.0.0:1", true),
            ("[::]:1", true),
            ("10.0.0.1:1", true),
            ("[::ffff:10.0.0.1]:1", true),
        ] {
            assert_eq!(others_can_listen(&address.parse().unwrap()), others, "{address}");
        }
    }
}
