//! Connections: how many there are, which of them go when there are too many, and how long each may do nothing.
//!
//! Always true here: a new client gets a place as long as some connection is idle or has not said what it wants; a connection on which a
//! request runs, or whose answer is still being taken, is ended by nothing but its client, a stall, or the end of the server.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::Request;
use http_body::{Frame, SizeHint};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::TaskTracker;

use super::Front;
use crate::front::reapi::http2;

mod watched;

use watched::Watched;

/// Pause after a connection could not be accepted, which is when there are too many.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a new connection waits for the place of one that was told to end.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(1);
/// When there are too many connections, this part of them is ended together: looking for them costs a look at all.
const ENDED_SHARE: usize = 64;
/// How long a connection of HTTP/2 gets to end after its client was told.
const GOODBYE: Duration = Duration::from_secs(1);
/// What hyper reads at a time, of a body too, unless heads may be larger: a connection that has been busy keeps as much while it is idle.
const BUFFER_BYTES: usize = 16 << 10;
/// The same of the first connections: large bodies come in fewer and larger pieces where there are not thousands of clients.
const WIDE_BUFFER_BYTES: usize = 128 << 10;
const WIDE_CONNECTIONS_MAX: usize = 256;
/// Flow-control window of an HTTP/2 connection, and of each of its streams, in bytes: what a client may send that nobody reads. Large
/// uploads come over HTTP/1.1.
const WINDOW_BYTES: u32 = 1 << 20;
/// Requests on one HTTP/2 connection at the same time.
const STREAMS_MAX: u32 = 128;
/// What is said to a client for whom there is no place.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-length: 21\r\nconnection: close\r\n\r\n\
    too many connections\n";

/// What a connection does, as far as others have to know.
#[derive(Debug)]
struct Activity {
    /// Requests that run, their answers included.
    running: AtomicUsize,
    /// Requests that ever began.
    begun: AtomicU64,
    /// Whether the head of a request has begun to arrive.
    heading: AtomicBool,
    /// Whether bytes of an answer wait for the client.
    writing: AtomicBool,
    epoch: Instant,
    /// Microseconds from `epoch` to the end of the last answer, or to the beginning.
    idle_since_us: AtomicU64,
    /// Whether it speaks HTTP/2.
    http2: AtomicBool,
    /// Its place is needed.
    end: Notify,
}

impl Activity {
    fn new(epoch: Instant) -> Self {
        Self {
            running: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            heading: AtomicBool::new(false),
            writing: AtomicBool::new(false),
            epoch,
            idle_since_us: AtomicU64::new(elapsed_us(epoch)),
            http2: AtomicBool::new(false),
            end: Notify::new(),
        }
    }

    fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire) > 0
    }

    /// Whether nothing is lost but a place if it ends.
    fn is_idle(&self) -> bool {
        !self.is_running() && !self.writing.load(Ordering::Acquire)
    }

    fn is_idle_from_now_on(&self) {
        self.idle_since_us.store(elapsed_us(self.epoch), Ordering::Relaxed);
    }

    fn idle_since(&self) -> Instant {
        self.epoch + Duration::from_micros(self.idle_since_us.load(Ordering::Relaxed))
    }

    /// Waits until nothing has been asked for `idle_max`.
    async fn idle_for(&self, idle_max: Duration) {
        loop {
            let now = Instant::now();
            let over = self.idle_since() + idle_max;
            // A head that arrives has its own time.
            let waits = self.is_idle() && (!self.heading.load(Ordering::Acquire) || self.is_http2());
            if waits && over <= now {
                return;
            }
            // Whatever began meanwhile, the time only moves on.
            sleep_until(if over > now { over } else { now + idle_max }).await;
        }
    }

    fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Relaxed)
    }

    fn begin(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::AcqRel);
        self.heading.store(false, Ordering::Release);
        self.begun.fetch_add(1, Ordering::AcqRel);
        Running(self.clone())
    }
}

/// A request that runs, until its answer was handed on.
struct Running(Arc<Activity>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.is_idle_from_now_on();
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

fn elapsed_us(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// The places for connections.
#[derive(Debug)]
struct Places {
    max: usize,
    free: Arc<Semaphore>,
    wide: Arc<Semaphore>,
    epoch: Instant,
    next: AtomicU64,
    taken: Mutex<HashMap<u64, Arc<Activity>>>,
}

/// A place of one connection.
struct Place {
    places: Arc<Places>,
    number: u64,
    activity: Arc<Activity>,
    /// What it is read by at a time.
    buffer_bytes: usize,
    _permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.lock().remove(&self.number);
    }
}

impl Places {
    fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        let [free, wide] = [max, WIDE_CONNECTIONS_MAX].map(|places| Arc::new(Semaphore::new(places)));
        Self { max, free, wide, epoch: Instant::now(), next: AtomicU64::new(0), taken: Mutex::default() }
    }

    /// A place, of somebody who does not need it if there is no other.
    async fn take(self: &Arc<Self>) -> Option<Place> {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) if !self.end_idle() => return None,
            Err(_) => timeout(PLACE_WAIT_MAX, self.free.clone().acquire_owned()).await.ok()?.ok()?,
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let activity = Arc::new(Activity::new(self.epoch));
        self.taken.lock().insert(number, activity.clone());
        let wide = self.wide.clone().try_acquire_owned().ok();
        let buffer_bytes = if wide.is_some() { WIDE_BUFFER_BYTES } else { BUFFER_BYTES };
        Some(Place { places: self.clone(), number, activity, buffer_bytes, _permits: (permit, wide) })
    }

    /// Tells those to end that have been idle for the longest; false if nobody is.
    fn end_idle(&self) -> bool {
        let mut idle: Vec<_> = {
            let taken = self.taken.lock();
            let idle = taken.values().filter(|activity| activity.is_idle());
            idle.map(|activity| (activity.idle_since_us.load(Ordering::Relaxed), activity.clone())).collect()
        };
        if idle.is_empty() {
            return false;
        }
        let ended = (self.max / ENDED_SHARE).clamp(1, idle.len());
        idle.select_nth_unstable_by_key(ended - 1, |(since_us, _)| *since_us);
        tracing::debug!(ended, connections = self.max, "too many HTTP connections: the longest idle are ended");
        for (_, activity) in idle.into_iter().take(ended) {
            activity.end.notify_one();
        }
        true
    }
}

/// Serves connections, HTTP/1.1 or HTTP/2 as each of them begins, until `goodbye`; then waits until they have sent what they have to.
pub async fn serve(listener: TcpListener, front: Arc<Front>, goodbye: watch::Receiver<bool>) {
    let connections = TaskTracker::new();
    let places = Arc::new(Places::new(front.limits.connections_max));
    let mut end = pin!(said(goodbye.clone()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut end => break,
        };
        match accepted {
            Ok((stream, peer)) => match places.take().await {
                Some(place) => {
                    connections.spawn(connection(stream, peer, place, front.clone(), said(goodbye.clone())));
                }
                None => {
                    tracing::debug!(connections = places.max, "HTTP connection refused: a request runs on every other");
                    // Who does not read it sees that the connection is closed.
                    let _ = stream.try_write(FULL);
                }
            },
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn said(mut goodbye: watch::Receiver<bool>) {
    // A sender that is gone says so as well.
    let _ = goodbye.wait_for(|said| *said).await;
}

async fn connection(stream: TcpStream, peer: SocketAddr, place: Place, front: Arc<Front>, goodbye: impl Future<Output = ()>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let activity = &place.activity;
    let limits = front.limits;
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let running = activity.begin();
        let front = front.clone();
        // On the heap, since a connection keeps room for the future of a request however long it has none.
        let answer: BoxFuture<'static, _> = Box::pin(async move {
            let answer = front.observed(request, Some(peer)).await;
            Ok::<_, Infallible>(answer.map(|body| Kept { body, _running: running }))
        });
        answer
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // The time for a head is kept by `Watched`, apart from the time between two requests.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(place.buffer_bytes.max(limits.head_bytes_max));
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(http2::RESET_STREAMS_MAX)
        .keep_alive_interval(http2::KEEPALIVE_INTERVAL)
        .keep_alive_timeout(http2::KEEPALIVE_TIMEOUT);
    let io = TokioIo::new(Watched::new(stream, activity.clone(), limits));
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut goodbye = pin!(goodbye);
    let mut idle = pin!(activity.idle_for(limits.idle_max()));
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break Some(ended),
            () = goodbye.as_mut() => {
                // hyper waits for the first request of a connection, even then.
                if activity.begun.load(Ordering::Acquire) == 0 && !activity.is_http2() {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                break Some(connection.as_mut().await);
            }
            () = idle.as_mut() => break None,
            // A request may have come before the word did.
            () = activity.end.notified() => if activity.is_idle() { break None },
        }
    };
    let ended = match ended {
        Some(ended) => ended,
        // Nothing runs on it. Only HTTP/2 has a word for that.
        None if !activity.is_http2() => return,
        None => {
            connection.as_mut().graceful_shutdown();
            match timeout(GOODBYE, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "HTTP connection ended");
    }
}

pin_project! {
    /// The body of an answer: its request runs as long as it lives.
    struct Kept<B> {
        #[pin]
        body: B,
        _running: Running,
    }
}

impl<B: http_body::Body<Data = Bytes>> http_body::Body for Kept<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_make_room_and_who_has_a_request_does_not() {
        let places = Arc::new(Places::new(3));
        let first = places.take().await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let second = places.take().await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let third = places.take().await.unwrap();
        // The first has waited for longer than the others, but not since its last request.
        tokio::time::sleep(Duration::from_millis(5)).await;
        drop(first.activity.begin());
        let ended = async {
            second.activity.end.notified().await;
            drop(second);
        };
        let (fourth, ()) = tokio::join!(places.take(), ended);
        let fourth = fourth.unwrap();
        let running = [&first, &third, &fourth].map(|place| place.activity.begin());
        assert!(places.take().await.is_none(), "nobody can make room");
        drop(running);
        drop((first, third, fourth));
        assert!(places.taken.lock().is_empty());
        assert_eq!(places.free.available_permits(), 3);
    }
}
