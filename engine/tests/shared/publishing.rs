//! What may be acknowledged when.
#![allow(dead_code, unreachable_pub, missing_docs)] // the canaries use a part of it

use crate::{
    common::*,
    ledger::{Fate, Ledger},
    shared::stores::small_store,
};
use std::time::Duration;

/// Many clients, one of whom only flushes, are killed when the device comes to operation `halt_at`.
pub fn killed_among_many_clients(seed: u64, halt_at: u64) {
    let (device, ledger) = (small_store(seed), Ledger::default());
    run(async {
        let (engine, _) = open(&device, options()).await;
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..8u64 {
            let (engine, ledger) = (engine.clone(), ledger.clone());
            clients.spawn(async move {
                for n in 0..40 {
                    let id = client * 1000 + n;
                    let size = if n % 5 == 0 { 80_000 } else { 10 + n as usize * 90 };
                    if ledger.put(&engine, id, size).await.is_err() || ledger.put_named(&engine, client, 30).await.is_err() {
                        return;
                    }
                }
            });
        }
        clients.spawn(async move {
            while engine.flush().await.is_ok() {
                tokio::task::yield_now().await;
            }
        });
        device.handle().halt_at(halt_at);
        tokio::select! {
            () = device.handle().halted() => {}
            _ = clients.join_all() => {}
        }
    });
    run(async {
        let (engine, _) = open(&device.snapshot_completed(seed), options()).await;
        ledger.assert_kept(&engine, Fate::Acknowledged, &format!("killed at operation {halt_at}")).await;
    });
}

/// The power goes behind the last of many puts; what was acknowledged more than a second ago is there, in group mode all of it.
pub fn cut_off_by_power(seed: u64, grouped: bool) {
    let (device, ledger) = (small_store(seed), Ledger::default());
    let old = run(async {
        let (engine, _) = open(&device, if grouped { group() } else { options() }).await;
        let mut before = Ledger::default();
        for id in 0..60 {
            ledger.put(&engine, id, 1000).await.expect("put");
            ledger.put_named(&engine, id % 4, 80).await.expect("put");
            if id == 40 && !grouped {
                before = ledger.copy();
                // The flush begins within a second; a simulated one takes no time to speak of.
                tokio::time::sleep(Duration::from_millis(1001)).await;
            }
        }
        if grouped { ledger.copy() } else { before }
    });
    run(async {
        let (engine, _) = open(&device.crash(seed), options()).await;
        let mut faults = old.faults(&engine, Fate::Acknowledged).await;
        // What came later may be newer than the older ledger knows.
        faults.retain(|f| grouped || !f.starts_with("named"));
        assert!(faults.is_empty(), "{faults:?}");
    });
}
