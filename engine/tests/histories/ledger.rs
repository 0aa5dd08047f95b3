//! Who was told what: the record that a store is held to after a crash.

use crate::common::{bytes, content, get, named};
use blockstore_engine::{Engine, PutError};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};

/// How much a client knows of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It was sent.
    Tried,
    /// It was acknowledged.
    Acknowledged,
    /// A flush that began after the acknowledgement was acknowledged, too.
    Durable,
}

#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Content by id: its size and fate.
    pub content: BTreeMap<u64, (usize, Fate)>,
    /// Named keys by id: every version in its order, `None` for a deletion.
    pub named: BTreeMap<u64, Vec<(Option<usize>, Fate)>>,
}

/// What all clients of one store know.
#[derive(Clone, Debug, Default)]
pub struct Ledger(pub Arc<Mutex<Known>>);

pub fn version_bytes(id: u64, version: usize, size: usize) -> Bytes {
    bytes(id * 1_000_003 + version as u64 + (1 << 40), size)
}

impl Ledger {
    /// A ledger of its own, which knows the same.
    pub fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().clone())))
    }

    pub fn tried(&self, id: u64, size: usize) {
        self.0.lock().content.entry(id).or_insert((size, Fate::Tried));
    }

    pub fn acknowledged(&self, id: u64) {
        let mut known = self.0.lock();
        let entry = known.content.get_mut(&id).expect("it was tried");
        entry.1 = entry.1.max(Fate::Acknowledged);
    }

    pub async fn put(&self, engine: &Engine, id: u64, size: usize) -> Result<(), PutError> {
        self.tried(id, size);
        engine.put(content(id), bytes(id, size)).await?;
        self.acknowledged(id);
        Ok(())
    }

    pub async fn put_many(&self, engine: &Engine, ids: std::ops::Range<u64>, size: usize) -> Result<(), PutError> {
        ids.clone().for_each(|id| self.tried(id, size));
        for result in engine.put_batch(ids.clone().map(|id| (content(id), bytes(id, size))).collect()).await {
            result?;
        }
        ids.for_each(|id| self.acknowledged(id));
        Ok(())
    }

    /// Puts the next version of a named key. One client a key.
    pub async fn put_named(&self, engine: &Engine, id: u64, size: usize) -> Result<(), PutError> {
        let version = self.start_version(id, Some(size));
        engine.put(named(id), version_bytes(id, version, size)).await?;
        self.end_version(id, version);
        Ok(())
    }

    pub async fn delete(&self, engine: &Engine, id: u64) -> Result<(), PutError> {
        let version = self.start_version(id, None);
        engine.delete(&named(id)).await?;
        self.end_version(id, version);
        Ok(())
    }

    fn start_version(&self, id: u64, size: Option<usize>) -> usize {
        let mut known = self.0.lock();
        let versions = known.named.entry(id).or_default();
        versions.push((size, Fate::Tried));
        versions.len() - 1
    }

    fn end_version(&self, id: u64, version: usize) {
        self.0.lock().named.get_mut(&id).expect("it was started")[version].1 = Fate::Acknowledged;
    }

    /// Flushes, and knows then that what was acknowledged before is durable.
    pub async fn flush(&self, engine: &Engine) -> Result<(), PutError> {
        let before = self.0.lock().clone();
        engine.flush().await?;
        self.promote(&before);
        Ok(())
    }

    /// All that is acknowledged is durable.
    pub fn all_durable(&self) {
        let before = self.0.lock().clone();
        self.promote(&before);
    }

    fn promote(&self, before: &Known) {
        let mut known = self.0.lock();
        for (id, (_, fate)) in &before.content {
            if *fate == Fate::Acknowledged {
                known.content.get_mut(id).expect("kept").1 = Fate::Durable;
            }
        }
        for (id, versions) in &before.named {
            for (version, (_, fate)) in versions.iter().enumerate() {
                if *fate == Fate::Acknowledged {
                    known.named.get_mut(id).expect("kept")[version].1 = Fate::Durable;
                }
            }
        }
    }

    /// What is wrong with the store: a put of at least this fate that is gone, bytes that nobody put, an older version of a named
    /// key, a lookup and a read that disagree.
    pub async fn faults(&self, engine: &Engine, at_least: Fate) -> Vec<String> {
        let known = self.0.lock().clone();
        let mut faults = Vec::new();
        for (id, (size, fate)) in &known.content {
            let key = content(*id);
            let present = engine.lookup(&[(key, Some(*size as u64))]).await[0];
            let got = get(engine, &key, Some(*size as u64)).await;
            if present != got.is_some() {
                faults.push(format!("content {id}: lookup says {present}, a read {}", got.is_some()));
            }
            match got {
                Some(got) if got != bytes(*id, *size) => faults.push(format!("content {id}: wrong bytes")),
                None if *fate >= at_least => faults.push(format!("content {id} of {size} bytes, {fate:?}: lost")),
                _ => {}
            }
        }
        for (id, versions) in &known.named {
            let got = get(engine, &named(*id), None).await;
            let least = versions.iter().rposition(|(_, fate)| *fate >= at_least);
            let same = |(at, (size, _)): (usize, &(Option<usize>, Fate))| size.map(|s| version_bytes(*id, at, s)) == got;
            let allowed = versions.iter().enumerate().skip(least.unwrap_or(0)).any(same) || (least.is_none() && got.is_none());
            if !allowed {
                let is = versions.iter().enumerate().position(same);
                faults.push(format!("named {id}: version {is:?} ({} bytes) of {versions:?}", got.map_or(0, |g| g.len())));
            }
        }
        faults
    }

    pub async fn assert_kept(&self, engine: &Engine, at_least: Fate, story: &str) {
        let faults = self.faults(engine, at_least).await;
        assert!(faults.is_empty(), "{story}: {} faults, first {:?}", faults.len(), &faults[..faults.len().min(5)]);
    }

    /// What a client can see of the store.
    pub async fn view(&self, engine: &Engine) -> BTreeMap<(u8, u64), Option<Bytes>> {
        let known = self.0.lock().clone();
        let mut view = BTreeMap::new();
        for (id, (size, _)) in &known.content {
            view.insert((0, *id), get(engine, &content(*id), Some(*size as u64)).await);
        }
        for id in known.named.keys() {
            view.insert((1, *id), get(engine, &named(*id), None).await);
        }
        view
    }
}
