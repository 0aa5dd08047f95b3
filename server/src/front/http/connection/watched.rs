//! The socket of a connection, with an eye on the time.
//!
//! Always true here: once the head of a request has begun to arrive, a read waits no longer than a head may take, and no more of it is
//! read than a head may have, and what one read brings. A write waits no longer than a stall may take. HTTP/2 has heads of its own, which
//! its implementation bounds; only that a connection is idle counts there.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use super::Activity;
use crate::front::http::limits::Limits;

/// How a connection of HTTP/2 begins, as far as no method does.
const HTTP2: &[u8; 3] = b"PRI";

const TOO_LARGE: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

pub(super) struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
    limits: Limits,
    /// How many bytes of [`HTTP2`] have come; `None` once it is decided.
    opening: Option<usize>,
    head: Head,
    reading: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
}

/// What has come of the next head.
struct Head {
    /// Requests that had begun before it.
    behind: u64,
    /// When its first byte came.
    since: Option<Instant>,
    bytes: usize,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>, limits: Limits) -> Self {
        let head = Head { behind: 0, since: None, bytes: 0 };
        Self { stream, activity, limits, opening: Some(0), head, reading: None, writing: None }
    }

    /// Looks at the first bytes.
    fn look(&mut self, mut data: &[u8]) {
        while let (Some(seen), Some((byte, rest))) = (self.opening, data.split_first()) {
            data = rest;
            self.opening = match HTTP2.get(seen) {
                Some(expected) if expected == byte && seen + 1 < HTTP2.len() => Some(seen + 1),
                Some(expected) if expected == byte => {
                    self.activity.http2.store(true, Ordering::Relaxed);
                    None
                }
                _ => None,
            };
        }
    }

    /// Ends the connection with a word to its client, who may not listen.
    fn refuse(&self, word: &[u8], kind: io::ErrorKind, why: &str) -> io::Error {
        if self.activity.is_idle() {
            let _ = self.stream.try_write(word);
        }
        io::Error::new(kind, why)
    }

    /// What becomes of a read that waits.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(since) = self.head.since.filter(|_| !self.activity.is_http2()) else {
            return Poll::Pending;
        };
        match timer(&mut self.reading, since + self.limits.head_max(), cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(self.refuse(TOO_SLOW, io::ErrorKind::TimedOut, "head of a request took too long"))),
        }
    }
}

/// Whether the time has come; who asks is woken then.
fn timer(slot: &mut Option<Pin<Box<Sleep>>>, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
    let timer = slot.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
    if timer.deadline() != deadline {
        timer.as_mut().reset(deadline);
    }
    timer.as_mut().poll(cx)
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.activity.is_running() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let begun = this.activity.begun.load(Ordering::Acquire);
        if this.head.behind != begun {
            this.head = Head { behind: begun, since: None, bytes: 0 };
        }
        if this.head.bytes >= this.limits.head_bytes_max && !this.activity.is_http2() {
            return Poll::Ready(Err(this.refuse(TOO_LARGE, io::ErrorKind::InvalidData, "head of a request is too large")));
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                let data = buf.filled().get(before..).unwrap_or_default();
                if !data.is_empty() {
                    this.look(data);
                    this.head.since.get_or_insert_with(Instant::now);
                    this.activity.heading.store(true, Ordering::Release);
                    this.head.bytes += data.len();
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => this.wait(cx),
        }
    }
}

impl Watched {
    /// What becomes of a write: one that waits does so for a bounded time.
    fn wrote<T>(&mut self, wrote: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            if self.activity.writing.swap(false, Ordering::AcqRel) {
                self.activity.is_idle_from_now_on();
            }
            return wrote;
        }
        let waits = self.activity.writing.swap(true, Ordering::AcqRel);
        let deadline = match &self.writing {
            Some(timer) if waits => timer.deadline(),
            _ => Instant::now() + self.limits.stall_max(),
        };
        match timer(&mut self.writing, deadline, cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "client does not take its answer"))),
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, data);
        self.wrote(wrote, cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.wrote(wrote, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
