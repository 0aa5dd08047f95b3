//! The users as they are now, and who of them was right or wrong before.
//!
//! Always true here: credentials that were once right or wrong are looked up, by a keyed hash of all that was sent; others are compared with
//! the hash of the user's password once, however many requests bring them at the same time. An unknown name takes as long as a known one: it
//! is compared with the hash of a user whom the name stands for. Of what a reload changed, nothing is remembered: a user who is gone or has
//! another hash is refused at once, also where a comparison was under way.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::available_parallelism,
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt, Shared};
use parking_lot::{Mutex, RwLock};
use quick_cache::sync::Cache;
use tokio::{
    sync::{Semaphore, oneshot},
    task::spawn_blocking,
    time::timeout,
};

use super::{
    Rights,
    basic::Credentials,
    htpasswd::{self, Lines},
    password::Hash,
};
use crate::metrics::Metrics;

/// Credentials that are remembered as right. One of them is about a hundred bytes.
const RIGHT_MAX: usize = 4096;
/// Credentials that are remembered as wrong: clients with an old password ask for a whole build. Guesses push each other out.
const WRONG_MAX: usize = 1024;
/// How often credentials are compared again because the file was read again meanwhile.
const ROUNDS_MAX: usize = 4;

/// Bounds of what takes long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Comparisons at the same time, each of which takes a core.
    pub(super) comparing_max: usize,
    /// Credentials that are compared or wait for it.
    pub(super) waiting_max: usize,
    /// How long they wait.
    pub(super) wait_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self { comparing_max: (cores / 2).max(1), waiting_max: 1024, wait_max: Duration::from_secs(10) }
    }
}

/// What credentials came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right {
        user: Arc<str>,
        rights: Rights,
    },
    /// With the user's name, if there is such a user.
    Wrong(Option<Arc<str>>),
    /// They were not looked at.
    Busy,
}

/// What is known of credentials.
pub(super) enum Looked {
    Now(Verdict),
    Later(Shared<BoxFuture<'static, Verdict>>),
}

/// What was sent, as it is remembered.
type Key = [u8; 32];

/// A line of the file.
struct User {
    name: Arc<str>,
    hash: Hash,
    rights: Rights,
    /// The line is no longer there as it was.
    gone: AtomicBool,
}

impl User {
    fn right(&self) -> Verdict {
        Verdict::Right { user: self.name.clone(), rights: self.rights }
    }
}

/// The file as it was read.
struct Table {
    /// Counts from the first.
    generation: u64,
    by_name: HashMap<Arc<str>, Arc<User>>,
    in_order: Vec<Arc<User>>,
}

impl Table {
    /// Users whose lines did not change stay who they are.
    fn new(lines: Lines, before: Option<&Self>) -> Self {
        let users = lines.into_iter().map(|(name, hash)| {
            let same = before.and_then(|before| before.by_name.get(&*name)).filter(|user| user.hash == hash);
            same.cloned().unwrap_or_else(|| Arc::new(User { name: name.into(), hash, rights: Rights::ALL, gone: AtomicBool::new(false) }))
        });
        let in_order: Vec<_> = users.collect();
        let by_name = in_order.iter().map(|user| (user.name.clone(), user.clone())).collect();
        Self { generation: before.map_or(0, |before| before.generation + 1), by_name, in_order }
    }
}

#[derive(Clone)]
struct Refused {
    generation: u64,
    user: Option<Arc<str>>,
}

pub(super) struct Users {
    path: PathBuf,
    key: Key,
    limits: Limits,
    metrics: Arc<Metrics>,
    table: RwLock<Arc<Table>>,
    right: Cache<Key, Arc<User>>,
    wrong: Cache<Key, Refused>,
    /// Comparisons that run or wait, by what was sent.
    running: Mutex<HashMap<Key, Shared<BoxFuture<'static, Verdict>>>>,
    turns: Arc<Semaphore>,
}

impl Users {
    /// Reads the file. The key is that of the hashes under which credentials are remembered.
    pub(super) fn read(path: &Path, key: Key, limits: Limits, metrics: Arc<Metrics>) -> Result<Self, String> {
        let table = Table::new(htpasswd::read(path)?, None);
        Ok(Self {
            path: path.to_owned(),
            key,
            limits,
            metrics,
            table: RwLock::new(Arc::new(table)),
            right: Cache::new(RIGHT_MAX),
            wrong: Cache::new(WRONG_MAX),
            running: Mutex::default(),
            turns: Arc::new(Semaphore::new(limits.comparing_max)),
        })
    }

    pub(super) fn count(&self) -> usize {
        self.table.read().in_order.len()
    }

    /// Reads the file again; how many users there are.
    pub(super) fn reload(&self) -> Result<usize, String> {
        let lines = htpasswd::read(&self.path)?;
        let mut table = self.table.write();
        let next = Table::new(lines, Some(&table));
        for user in &table.in_order {
            if !next.by_name.get(&user.name).is_some_and(|now| Arc::ptr_eq(now, user)) {
                user.gone.store(true, Ordering::Release);
            }
        }
        *table = Arc::new(next);
        Ok(table.in_order.len())
    }

    /// What the value of a header `Authorization` comes to.
    pub(super) fn look(self: &Arc<Self>, value: &[u8]) -> Looked {
        let key = *blake3::keyed_hash(&self.key, value).as_bytes();
        if let Some(verdict) = self.remembered(&key) {
            return Looked::Now(verdict);
        }
        let Some(credentials) = Credentials::parse(value) else { return Looked::Now(Verdict::Wrong(None)) };
        let mut running = self.running.lock();
        if let Some(verdict) = running.get(&key) {
            return Looked::Later(verdict.clone());
        }
        // What ran a moment ago is remembered before it is no longer running.
        if let Some(verdict) = self.remembered(&key) {
            return Looked::Now(verdict);
        }
        if running.len() >= self.limits.waiting_max {
            return Looked::Now(Verdict::Busy);
        }
        let (said, verdict) = oneshot::channel();
        let verdict = async move { verdict.await.unwrap_or(Verdict::Busy) }.boxed().shared();
        running.insert(key, verdict.clone());
        drop(running);
        let turn = Turn { users: self.clone(), key };
        // A task of its own: whoever asked may go away, and others wait for the same.
        tokio::spawn(async move {
            // That nobody waits any more is no failure.
            let _ = said.send(turn.compare(credentials).await);
        });
        Looked::Later(verdict)
    }

    fn remembered(&self, key: &Key) -> Option<Verdict> {
        if let Some(user) = self.right.get(key)
            && !user.gone.load(Ordering::Acquire)
        {
            return Some(user.right());
        }
        let refused = self.wrong.get(key)?;
        (refused.generation == self.table.read().generation).then_some(Verdict::Wrong(refused.user))
    }

    /// What a comparison came to that began in that generation, and remembers it; `None` if a reload made it worthless.
    fn conclude(&self, key: &Key, generation: u64, user: &Arc<User>, known: bool, same: bool) -> Option<Verdict> {
        if same && known {
            if user.gone.load(Ordering::Acquire) {
                return None;
            }
            self.right.insert(*key, user.clone());
            return Some(user.right());
        }
        if self.table.read().generation != generation {
            return None;
        }
        let user = known.then(|| user.name.clone());
        self.wrong.insert(*key, Refused { generation, user: user.clone() });
        Some(Verdict::Wrong(user))
    }

    /// The user of that name, or one who stands for it, the same one every time; and whether it is the former.
    fn user(&self, table: &Table, name: &str) -> Option<(Arc<User>, bool)> {
        let hash = blake3::keyed_hash(&self.key, name.as_bytes());
        let place = hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)) % (table.in_order.len() as u64).max(1);
        let stand_in = usize::try_from(place).ok().and_then(|place| table.in_order.get(place));
        let known = table.by_name.get(name);
        Some((known.or(stand_in)?.clone(), known.is_some()))
    }
}

#[cfg(test)]
impl Users {
    /// Takes all turns, as comparisons would that do not end.
    pub(super) fn take_turns(&self) -> tokio::sync::OwnedSemaphorePermit {
        let all = u32::try_from(self.limits.comparing_max).unwrap();
        self.turns.clone().try_acquire_many_owned(all).unwrap()
    }

    pub(super) fn waiting(&self) -> usize {
        self.running.lock().len()
    }
}

/// Credentials that are compared or wait for it, until this is dropped.
struct Turn {
    users: Arc<Users>,
    key: Key,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.users.running.lock().remove(&self.key);
    }
}

impl Turn {
    async fn compare(self, credentials: Credentials) -> Verdict {
        let users = &self.users;
        let Ok(Ok(_turn)) = timeout(users.limits.wait_max, users.turns.clone().acquire_owned()).await else {
            return Verdict::Busy;
        };
        let credentials = Arc::new(credentials);
        for _ in 0..ROUNDS_MAX {
            let table = users.table.read().clone();
            let Some((user, known)) = users.user(&table, &credentials.name) else { return Verdict::Wrong(None) };
            users.metrics.auth_compared();
            let compared = {
                let (user, credentials) = (user.clone(), credentials.clone());
                spawn_blocking(move || user.hash.is_of(&credentials.password)).await
            };
            let Ok(same) = compared else { return Verdict::Busy };
            if let Some(verdict) = users.conclude(&self.key, table.generation, &user, known, same) {
                return verdict;
            }
        }
        Verdict::Busy
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::Written, *};

    #[test]
    fn what_a_reload_overtook_is_worth_nothing() {
        let written = Written::new(&["alice", "bob"]);
        let users = Users::read(&written.path, [0; 32], Limits::default(), Arc::default()).unwrap();
        let before = users.table.read().clone();
        let [alice, bob] = ["alice", "bob"].map(|name| users.user(&before, name).unwrap().0);
        written.write(&["bob", "carol"]);
        assert_eq!(users.reload(), Ok(2));
        let now = users.table.read().generation;
        assert_eq!(users.conclude(&[1; 32], before.generation, &alice, true, true), None);
        assert_eq!(users.conclude(&[2; 32], before.generation, &alice, true, false), None);
        assert_eq!(users.conclude(&[3; 32], before.generation, &bob, false, false), None);
        assert!((1..4).all(|n| users.remembered(&[n; 32]).is_none()));
        // Whose line is as it was is who it was.
        assert_eq!(users.conclude(&[4; 32], before.generation, &bob, true, true), Some(bob.right()));
        assert_eq!(users.conclude(&[5; 32], now, &bob, true, false), Some(Verdict::Wrong(Some("bob".into()))));
        assert_eq!([4, 5].map(|n| users.remembered(&[n; 32])), [Some(bob.right()), Some(Verdict::Wrong(Some("bob".into())))]);
        // What was right before the line changed is not remembered either, even if it came last.
        users.right.insert([6; 32], alice);
        assert_eq!(users.remembered(&[6; 32]), None);
    }

    #[test]
    fn a_name_that_nobody_has_stands_for_a_user_and_always_for_the_same() {
        let names: Vec<_> = (0..20).map(|n| format!("user{n}")).collect();
        let written = Written::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let users = Users::read(&written.path, [7; 32], Limits::default(), Arc::default()).unwrap();
        let table = users.table.read().clone();
        let stands_for = |name: &str| {
            let (user, known) = users.user(&table, name).unwrap();
            assert!(!known, "{name}");
            user.name.clone()
        };
        let all: std::collections::HashSet<_> = (0..1000).map(|n| stands_for(&format!("nobody{n}"))).collect();
        assert_eq!(all.len(), names.len());
        assert!((0..50).all(|n| stands_for(&format!("nobody{n}")) == stands_for(&format!("nobody{n}"))));
    }
}
