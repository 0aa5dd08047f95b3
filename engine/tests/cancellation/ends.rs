//! Opening and closing, dropped at every await.

use crate::{Drop, POLLS_MAX, alone, common::*, polled, promptly, store::*};
use blockstore_engine::{
    Engine, PutError,
    device::{AlignedBuf, Device, DeviceCounters, Geometry, IoFuture, SimDevice, buffer_pool_stats},
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// A store in which a power cut left something to void, and what an opening finds in it.
async fn cut() -> (SimDevice, Contents) {
    let store = Store::new(&options(), 5).await;
    store.engine.flush().await.expect("flush");
    for id in 200..260 {
        store.engine.put(content(id * 3), object(id * 3)).await.expect("put");
    }
    for seed in 0..100 {
        let device = store.device.crash(seed);
        let (engine, report) = open(&device.snapshot_completed(0), options()).await;
        if report.voided_entries > 0 {
            let found = Store { engine, device: device.clone() };
            let names: Vec<Name> = held().into_keys().chain((200..260).map(|id| (false, id * 3))).collect();
            return (device, found.contents(&names).await);
        }
    }
    panic!("no power cut leaves anything to void");
}

#[test]
fn a_dropped_opening_leaves_a_store_that_opens_again() {
    alone(async {
        let (device, contents) = cut().await;
        assert!(held().iter().all(|(name, data)| contents[name] == *data), "what was flushed is there");
        for when in [Drop::AtOnce, Drop::Woken] {
            let mut completed = false;
            for polls in 0..POLLS_MAX {
                let what = format!("open, dropped after {polls} polls, {when:?}");
                let device = device.snapshot_completed(polls as u64);
                let engine = promptly(&what, polled(Engine::open(Arc::new(device.clone()), options()), polls, when)).await;
                completed = engine.is_some();
                drop(engine);
                // Again at once, on the same device, while a write of the opening that was given up may be under way.
                let (engine, _) = promptly(&what, Engine::open(Arc::new(device.clone()), options())).await.expect("open");
                let store = Store { engine, device };
                store.rest(&what).await;
                store.assert_holds(&what, &contents).await;
                let mut contents = contents.clone();
                store.goes_on(&what, &mut contents).await;
                store.killed(&what, &options(), &contents).await;
                if completed {
                    break;
                }
            }
            assert!(completed, "it completes within {POLLS_MAX} polls");
        }
    });
}

#[test]
fn a_dropped_close_goes_on_to_its_end() {
    alone(async {
        for when in [Drop::AtOnce, Drop::Woken] {
            let mut completed = false;
            for polls in 0..POLLS_MAX {
                let what = format!("close, dropped after {polls} polls, {when:?}");
                let Store { engine, device } = Store::new(&options(), polls as u64).await;
                completed = promptly(&what, polled(engine.close(), polls, when)).await.is_some_and(|closed| closed.is_ok());
                let mut contents = held();
                if polls > 0 {
                    promptly(&what, async {
                        while engine.poisoned().is_none() || device.counters().in_flight > 0 {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    })
                    .await;
                    let refused = promptly(&what, engine.put(content(3), object(3))).await;
                    assert!(matches!(refused, Err(PutError::Unavailable(_))), "{what}: {refused:?}");
                    let store = Store { engine: engine.clone(), device: device.clone() };
                    store.assert_holds(&what, &contents).await;
                } else {
                    engine.put(content(3), object(3)).await.expect("it was never begun");
                    contents.insert((false, 3), Some(object(3)));
                }
                promptly(&what, engine.close()).await.expect("closed, or closed again");
                drop(engine);
                assert_eq!(buffer_pool_stats().lent_bytes, 0, "{what}");
                let (engine, report) = open(&device, options()).await;
                assert!(report.clean, "{what}");
                let store = Store { engine, device };
                store.assert_holds(&what, &contents).await;
                store.goes_on(&what, &mut contents).await;
                store.killed(&what, &options(), &contents).await;
                if completed {
                    break;
                }
            }
            assert!(completed, "it completes within {POLLS_MAX} polls");
        }
    });
}

/// A device that takes 20 ms for a write, and on which one that nobody waits for any more lands after half a second.
#[derive(Clone, Debug)]
struct Late {
    device: SimDevice,
    left: Arc<AtomicU64>,
}

/// A write that has been issued.
struct Issued {
    device: SimDevice,
    left: Arc<AtomicU64>,
    offset_bytes: u64,
    bytes: Option<Vec<u8>>,
}

impl std::ops::Drop for Issued {
    fn drop(&mut self) {
        let Some(bytes) = self.bytes.take() else { return };
        let (device, left, offset_bytes) = (self.device.clone(), self.left.clone(), self.offset_bytes);
        left.fetch_add(1, Relaxed);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            device.handle().poke(offset_bytes, &bytes);
            left.fetch_sub(1, Relaxed);
        });
    }
}

impl Device for Late {
    fn geometry(&self) -> &Geometry {
        self.device.geometry()
    }
    fn read(&self, offset_bytes: u64, buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)> {
        self.device.read(offset_bytes, buf)
    }
    fn write(&self, offset_bytes: u64, buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)> {
        let mut issued = Issued { device: self.device.clone(), left: self.left.clone(), offset_bytes, bytes: Some(buf.to_vec()) };
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let written = issued.device.write(offset_bytes, buf).await;
            drop(issued.bytes.take());
            written
        })
    }
    fn flush(&self) -> IoFuture<io::Result<()>> {
        self.device.flush()
    }
    fn counters(&self) -> DeviceCounters {
        let counters = self.device.counters();
        DeviceCounters { in_flight: counters.in_flight + self.left.load(Relaxed), ..counters }
    }
}

/// A store is dropped in the middle of a put and opened again on the same device. What it had under way must not land over what the next
/// opening wrote: a page of the log that came late took an acknowledged put with it.
#[test]
fn what_a_dropped_store_had_under_way_lands_before_the_next_opening_writes() {
    alone(async {
        for ms in 0..30 {
            let what = format!("store dropped {ms} ms after a put began");
            let device = sim(40, ms);
            format(&device, None).await;
            let late = Arc::new(Late { device: device.clone(), left: Arc::default() });
            let (engine, _) = Engine::open(late.clone(), options()).await.expect("open");
            // The first put waits for a block to be opened.
            engine.put(named(0), bytes(0, 10)).await.expect("put");
            assert!(polled(engine.put(content(0), object(0)), 1, Drop::AtOnce).await.is_none());
            tokio::time::sleep(Duration::from_millis(ms)).await;
            drop(engine);
            let (engine, _) = promptly(&what, Engine::open(late.clone(), options())).await.expect("open");
            let store = Store { engine, device: device.clone() };
            let mut contents = Contents::new();
            for id in 3..6 {
                store.puts(&what, (false, id), object(id), &mut contents).await;
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
            store.killed(&what, &options(), &contents).await;
        }
    });
}
