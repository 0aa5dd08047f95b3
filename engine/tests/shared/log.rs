//! What is written again, and what is not.
#![allow(dead_code, unreachable_pub, missing_docs)] // the canaries use a part of it

use crate::{common::*, disk::*, ledger::Ledger, shared::stores::small_store};
use blockstore_engine::{Engine, OpenOptions, device::SimDevice};
use std::{collections::HashMap, sync::Arc};

pub async fn gated(device: &SimDevice, options: OpenOptions) -> (Gate, Engine) {
    let gate = Gate::new(device);
    let (engine, _) = Engine::open(Arc::new(gate.clone()), options).await.expect("open");
    (gate, engine)
}

/// Puts of every kind beside flushes: no page of log or records that was written before a flush was issued is written behind it.
pub fn pages_are_closed_by_a_flush(group_mode: bool) {
    let device = small_store(1);
    run(async {
        let (gate, engine) = gated(&device, if group_mode { group() } else { options() }).await;
        let ledger = Ledger::default();
        for round in 0..40u64 {
            let flush = async { if round % 4 == 0 { ledger.flush(&engine).await } else { Ok(()) } };
            let put = ledger.put_many(&engine, round * 10..round * 10 + 5, 300);
            let (a, b, c) = tokio::join!(put, flush, ledger.put_named(&engine, round % 5, 90));
            a.and(b).and(c).expect("put");
            ledger.put(&engine, 1000 + round, 70_000 + round as usize).await.expect("put");
        }
        let layout = superblock(&device, 0);
        let mut flushes = 0u64;
        let mut written: HashMap<u64, u64> = HashMap::new();
        for (event, _) in gate.events() {
            match event {
                Event::Flush => flushes += 1,
                Event::Write(range) => {
                    let ours = layout.log().contains(&range.start) || range.start >= layout.blocks_offset;
                    for page in (range.start / PAGE..range.end / PAGE).filter(|_| ours && range.end < superblock_offsets(&device)[2]) {
                        let before = *written.entry(page).or_insert(flushes);
                        assert_eq!(before, flushes, "page {page} was written again behind a flush, group mode: {group_mode}");
                    }
                }
            }
        }
        assert!(flushes > 10);
    });
}
