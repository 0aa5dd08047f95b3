//! The ring against a pipe, which gives its bytes when the test wants: an I/O can be held under way at will.

use super::*;
use crate::device::PAGE_BYTES;
use futures::FutureExt;

struct Piped {
    device: UringDevice,
    input: OwnedFd,
}

/// A device that reads from a pipe; `None` where io_uring is refused.
fn piped(slow_after: Duration) -> Option<Piped> {
    let (output, input) = io::pipe().expect("a pipe");
    let input = input.into();
    let backing = Backing::lock(output.into()).expect("a lock").expect("a free lock");
    let geometry = Geometry {
        len_bytes: 1 << 20,
        logical_sector_bytes: 512,
        physical_sector_bytes: 4096,
        direct: false,
        backend: "io-uring",
        block_device: false,
    };
    match UringDevice::start_watched(backing, geometry, slow_after) {
        Ok(device) => Some(Piped { device, input }),
        Err((error, _)) => {
            println!("skipped: io_uring is refused here: {error}");
            None
        }
    }
}

fn send(input: &OwnedFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let sent = rustix::io::write(input, bytes).expect("write to the pipe");
        bytes = &bytes[sent..];
    }
}

#[tokio::test]
async fn a_short_transfer_is_continued_until_the_buffer_is_full() {
    let Some(Piped { device, input }) = piped(SLOW_AFTER) else {
        return;
    };
    let mut read = device.read(0, AlignedBuf::zeroed(2 * PAGE_BYTES));
    for part in [1, 100, 4000, 4091] {
        assert!((&mut read).now_or_never().is_none());
        send(&input, &vec![7; part]);
    }
    let (buf, result) = read.await;
    result.expect("read");
    assert!(buf.iter().all(|byte| *byte == 7));
}

#[tokio::test]
async fn the_end_of_the_file_is_an_error_and_gives_the_buffer_back() {
    let Some(Piped { device, input }) = piped(SLOW_AFTER) else {
        return;
    };
    let read = device.read(0, AlignedBuf::zeroed(PAGE_BYTES));
    send(&input, &[7; 100]);
    drop(input);
    let (buf, result) = read.await;
    assert_eq!(buf.len(), PAGE_BYTES);
    let error = result.expect_err("the pipe has ended");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn the_buffer_of_a_dropped_read_is_not_used_again_before_the_kernel_is_done() {
    const READS: usize = 8;
    let Some(Piped { device, input }) = piped(SLOW_AFTER) else {
        return;
    };
    for _ in 0..READS {
        drop(device.read(0, AlignedBuf::take(PAGE_BYTES)));
    }
    // Whatever the pool gives out now must not be what the kernel is going to write to.
    let mut others: Vec<_> = (0..64).map(|_| AlignedBuf::take(PAGE_BYTES)).collect();
    for other in &mut others {
        other.fill(1);
    }
    send(&input, &vec![9; READS * PAGE_BYTES]);
    while device.counters().in_flight > 0 {
        tokio::task::yield_now().await;
    }
    for other in &others {
        assert!(other.iter().all(|byte| *byte == 1));
    }
    assert_eq!(device.counters().bytes_read, (READS * PAGE_BYTES) as u64);
}

#[tokio::test]
async fn dropping_the_device_waits_for_what_is_under_way() {
    let Some(Piped { device, input }) = piped(SLOW_AFTER) else {
        return;
    };
    let read = device.read(0, AlignedBuf::zeroed(PAGE_BYTES));
    let meter = device.front.meter.clone();
    let dropping = thread::spawn(move || drop(device));
    send(&input, &[3; PAGE_BYTES]);
    dropping.join().expect("the device is dropped");
    assert_eq!(meter.counters().in_flight, 0);
    let (buf, result) = read.await;
    result.expect("read");
    assert!(buf.iter().all(|byte| *byte == 3));
}

#[tokio::test]
async fn a_full_queue_makes_futures_wait_and_then_serves_them_all() {
    use super::super::request::REQUESTS_MAX;
    let Some(Piped { device, input }) = piped(SLOW_AFTER) else {
        return;
    };
    let reads: Vec<_> = (0..REQUESTS_MAX + 100).map(|_| device.read(0, AlignedBuf::take(PAGE_BYTES))).collect();
    assert_eq!(device.counters().in_flight, REQUESTS_MAX as u64);
    let total = reads.len() * PAGE_BYTES;
    let sending = thread::spawn(move || send(&input, &vec![5; total]));
    for (buf, result) in futures::future::join_all(reads).await {
        result.expect("read");
        assert!(buf.iter().all(|byte| *byte == 5));
    }
    sending.join().expect("all is sent");
}

#[tokio::test]
async fn an_operation_that_takes_too_long_is_counted() {
    let Some(Piped { device, input }) = piped(Duration::from_millis(1)) else {
        return;
    };
    let read = device.read(0, AlignedBuf::take(PAGE_BYTES));
    while device.counters().slow == 0 {
        tokio::task::yield_now().await;
    }
    send(&input, &[0; PAGE_BYTES]);
    read.await.1.expect("read");
    assert_eq!(device.counters().slow, 1);
}

#[tokio::test]
async fn the_last_owner_may_be_dropped_by_an_answer() {
    let Some(Piped { device, input }) = piped(SLOW_AFTER) else {
        return;
    };
    let read = device.read(0, AlignedBuf::take(PAGE_BYTES));
    // A waker that owns the device, and is dropped on the ring's thread.
    struct Owner(#[expect(dead_code, reason = "held to be dropped")] UringDevice);
    impl std::task::Wake for Owner {
        fn wake(self: Arc<Self>) {}
    }
    let waker = Arc::new(Owner(device)).into();
    let mut read = read;
    let mut context = std::task::Context::from_waker(&waker);
    assert!(read.poll_unpin(&mut context).is_pending());
    drop(waker);
    send(&input, &[0; PAGE_BYTES]);
    read.await.1.expect("read");
}
