//! Connections, frame by frame: what the server announces, and what it bears.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::server::Server;

/// So long a frame may take that depends on nobody.
const STUCK: Duration = Duration::from_secs(60);

const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;

/// A frame of HTTP/2 (RFC 9113).
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn new(kind: u8, flags: u8, payload: &[u8]) -> Self {
        Self { kind, flags, stream: 0, payload: payload.to_vec() }
    }

    fn bytes(&self) -> Vec<u8> {
        let len = u32::try_from(self.payload.len()).unwrap().to_be_bytes();
        [&len[1..], &[self.kind, self.flags], &self.stream.to_be_bytes(), &self.payload].concat()
    }
}

/// A client that knows frames and nothing else.
struct Raw(TcpStream);

impl Raw {
    async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut client = Self(stream);
        client.send(&[Frame::new(SETTINGS, 0, &[])]).await;
        client
    }

    async fn send(&mut self, frames: &[Frame]) {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
        self.0.write_all(&bytes).await.unwrap();
    }

    async fn next(&mut self) -> Frame {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Frame { kind: head[3], flags: head[4], stream, payload }
    }
}

#[tokio::test]
async fn the_windows_are_wide_from_the_first_frame_on() {
    let server = Server::start().await;
    let mut client = Raw::connect(server.address).await;
    let (mut settings, mut window_bytes) = (None, 65_535);
    // Before anything was asked for; a server that never says so keeps this waiting.
    while settings.is_none() || window_bytes < 64 << 20 {
        let frame = tokio::time::timeout(STUCK, client.next()).await.expect("settings and window");
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => {
                let pairs = frame.payload.as_chunks::<6>().0.iter();
                let pairs = pairs.map(|p| (u16::from_be_bytes([p[0], p[1]]), u32::from_be_bytes([p[2], p[3], p[4], p[5]])));
                settings = Some(pairs.collect::<Vec<_>>());
            }
            WINDOW_UPDATE if frame.stream == 0 => window_bytes += u32::from_be_bytes(frame.payload.try_into().unwrap()),
            _ => {}
        }
    }
    let settings = settings.expect("the server's settings");
    // 3: calls at the same time; 4: window of a stream; 5: size of a frame.
    for (id, value) in [(3, 1024), (4, 8 << 20), (5, 1 << 20)] {
        assert!(settings.contains(&(id, value)), "setting {id} is {value}: {settings:?}");
    }
    assert_eq!(window_bytes, 64 << 20);
}

/// A client that pings every ten seconds sends a few thousand of them in a day, mostly while nothing runs.
#[tokio::test]
async fn pings_on_an_idle_connection_are_answered_and_never_end_it() {
    let server = Server::start().await;
    let mut client = Raw::connect(server.address).await;
    for round in 0..100u64 {
        let pings: Vec<_> = (0..100).map(|n| Frame::new(PING, 0, &(round * 100 + n).to_be_bytes())).collect();
        client.send(&pings).await;
        for ping in pings {
            let answer = loop {
                let frame = client.next().await;
                assert_ne!(frame.kind, GOAWAY, "{frame:?}");
                if frame.kind == PING {
                    break frame;
                }
            };
            assert_eq!((answer.flags, answer.payload), (ACK, ping.payload));
        }
    }
}
