//! `GetTree`: every directory below a root, in pages.
//!
//! Always true here: a directory comes once, as it was stored, in breadth-first order; a missing one is skipped, unless it is
//! the root. A page token names how many directories came before it. While its walk is still kept, going on from anywhere before it
//! reads what is given out and nothing else; otherwise the walk is repeated up to there, with the same order.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use blockstore_proto::reapi;
use bytes::Bytes;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use prost::Message;
use tonic::Status;

use super::{
    ANSWER_BYTES_MAX, Shared,
    grpc::{Answer, Call, Outgoing, decode},
    request,
    status::{bad_field, store_status},
};
use crate::{
    log::access::Resource,
    store::{
        Digest, Instance, StoreError,
        directories::{DirectoryWalk, WalkError},
    },
};

/// Directories in a page when the client names no number.
const PAGE_DIRECTORIES_DEFAULT: usize = 1000;
/// Walks that are kept for the client's next page.
const WALKS_MAX: usize = 64;
/// Directories that the kept walks may have seen and found together: each costs about a hundred bytes.
const WALKS_DIRECTORIES_MAX: usize = 1 << 20;
/// Directories that are read together of those that a walk found before.
const READ_AGAIN_DIRECTORIES_MAX: usize = 64;
/// Their size together, in bytes, unless a single one is larger.
const READ_AGAIN_BYTES_MAX: u64 = 2 << 20;
/// How long a walk is kept.
const WALK_IDLE_MAX: Duration = Duration::from_secs(60);

/// `GetTreeResponse` with its directories left encoded.
#[derive(Clone, PartialEq, Message)]
struct Page {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    directories: Vec<Bytes>,
    #[prost(string, tag = "2")]
    next_page_token: String,
}

/// Which walk, and how many directories it has behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    instance: Instance,
    root: Digest,
    sent: u64,
}

/// A walk that waits for the next page.
#[derive(Debug)]
struct Kept {
    instance: Instance,
    root: Digest,
    since: Instant,
    walk: DirectoryWalk,
    /// The directories that it found, in their order.
    order: Vec<Digest>,
}

impl Kept {
    /// What it costs to keep, in directories.
    fn cost(&self) -> usize {
        self.walk.seen() + self.order.len()
    }
}

/// Walks that wait for the next page.
#[derive(Debug, Default)]
pub(super) struct Walks {
    /// The oldest first.
    kept: Mutex<VecDeque<Kept>>,
}

impl Walks {
    fn keep(&self, walk: Kept) {
        let mut kept = self.kept.lock();
        kept.retain(|kept| kept.since.elapsed() < WALK_IDLE_MAX);
        kept.push_back(walk);
        let mut cost: usize = kept.iter().map(Kept::cost).sum();
        while kept.len() > WALKS_MAX || cost > WALKS_DIRECTORIES_MAX {
            let Some(oldest) = kept.pop_front() else {
                break;
            };
            cost = cost.saturating_sub(oldest.cost());
        }
    }

    /// A walk that came at least as far.
    fn take(&self, place: &Place) -> Option<(DirectoryWalk, Vec<Digest>)> {
        let mut kept = self.kept.lock();
        let fits = |kept: &Kept| kept.root == place.root && kept.instance == place.instance && kept.order.len() as u64 >= place.sent;
        let at = kept.iter().position(fits)?;
        kept.remove(at).map(|kept| (kept.walk, kept.order))
    }
}

/// A walk on its way; kept for the next page when its stream ends. How much of what was made arrived nobody knows, so that a client may
/// go on anywhere before the walk.
struct Pages {
    shared: Arc<Shared>,
    place: Place,
    walk: Option<DirectoryWalk>,
    /// The directories that were found, in their order: as many as `place` says, and those that are still to be given out.
    order: Vec<Digest>,
    /// The next of them, as far as they were read.
    read: VecDeque<Option<Bytes>>,
    directories_max: usize,
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Some(walk) = self.walk.take()
            && self.order.len() > self.directories_max
        {
            let order = std::mem::take(&mut self.order);
            let (instance, root) = (self.place.instance.clone(), self.place.root);
            self.shared.walks.keep(Kept { instance, root, since: Instant::now(), walk, order });
        }
    }
}

impl Pages {
    /// The next directory that is there. It is given out once `place` counts it.
    async fn directory(&mut self) -> Result<Option<Bytes>, Status> {
        while let Some(rest) = usize::try_from(self.place.sent).ok().and_then(|sent| self.order.get(sent..)).filter(|rest| !rest.is_empty())
        {
            if self.read.is_empty() {
                let group = read_together(rest);
                for found in self.shared.store.read_batch(&self.place.instance, group).await {
                    self.read.push_back(match found {
                        Ok(found) => found,
                        Err(StoreError::Lost { .. }) => None,
                        Err(error) => return Err(store_status(&error)),
                    });
                }
            }
            if let Some(Some(directory)) = self.read.front() {
                return Ok(Some(directory.clone()));
            }
            // Gone since it was found.
            self.gave_one();
        }
        let Some(walk) = &mut self.walk else {
            return Ok(None);
        };
        loop {
            match walk.next().await {
                Ok(Some(visit)) => match visit.directory {
                    Some(directory) => {
                        self.order.push(visit.digest);
                        self.read.push_back(Some(directory.bytes.clone()));
                        return Ok(Some(directory.bytes));
                    }
                    None if visit.digest == self.place.root => {
                        return Err(root_missing(&self.place.root));
                    }
                    None => {}
                },
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.walk = None;
                    return Err(walk_status(error));
                }
            }
        }
    }

    /// Counts the directory that came last.
    fn gave_one(&mut self) {
        self.read.pop_front();
        self.place.sent += 1;
    }

    fn is_done(&self) -> bool {
        self.walk.as_ref().is_none_or(DirectoryWalk::is_done) && self.order.len() as u64 <= self.place.sent
    }

    /// The next page; `None` at the end.
    async fn next(&mut self) -> Result<Option<Page>, Status> {
        let mut page = Page::default();
        let mut page_bytes = 0;
        while page.directories.len() < self.directories_max {
            let Some(directory) = self.directory().await? else {
                break;
            };
            let bytes = directory.len() as u64 + 8;
            if bytes > ANSWER_BYTES_MAX {
                return Err(Status::resource_exhausted("a directory is too large for a message"));
            }
            if page_bytes + bytes > ANSWER_BYTES_MAX {
                break;
            }
            page_bytes += bytes;
            self.gave_one();
            page.directories.push(directory);
        }
        if page.directories.is_empty() {
            return Ok(None);
        }
        if !self.is_done() {
            page.next_page_token = self.place.sent.to_string();
        }
        Ok(Some(page))
    }
}

pub(super) async fn get(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let request: reapi::GetTreeRequest = decode(received.message)?;
    let instance = request::instance(&request.instance_name)?;
    let offered = shared.functions(&instance);
    let digest = request.root_digest.as_ref();
    let root = request::sole_digest("root_digest", digest, request.digest_function, &offered)?;
    call.about(Resource::Digest(root));
    let directories_max = match usize::try_from(request.page_size) {
        Ok(0) => PAGE_DIRECTORIES_DEFAULT,
        Ok(size) => size.min(PAGE_DIRECTORIES_DEFAULT),
        Err(_) => return Err(bad_field("page_size", "is negative".into())),
    };
    let sent = match request.page_token.as_str() {
        "" => 0,
        token => token.parse().map_err(|_| bad_field("page_token", "is not ours".into()))?,
    };

    let place = Place { instance: instance.clone(), root, sent };
    let kept = (sent > 0).then(|| shared.walks.take(&place)).flatten();
    let mut pages = match kept {
        Some((walk, order)) => Pages { shared, place, walk: Some(walk), order, read: VecDeque::new(), directories_max },
        None => {
            let walk = DirectoryWalk::new(shared.store.clone(), instance, root, shared.options.directory_depth_max);
            let place = Place { sent: 0, ..place };
            let mut pages = Pages { shared, place, walk: Some(walk), order: Vec::new(), read: VecDeque::new(), directories_max };
            while pages.place.sent < sent && pages.directory().await?.is_some() {
                pages.gave_one();
            }
            pages
        }
    };
    // The first page decides between an error of the call and an answer.
    let Some(first) = pages.next().await? else {
        return Ok(Answer::one(Outgoing::message(&Page::default())));
    };
    let rest = stream::unfold(Some(pages), |pages| async {
        let mut pages = pages?;
        match pages.next().await.transpose()? {
            Ok(page) => Some((Ok(Outgoing::message(&page)), Some(pages))),
            Err(status) => Some((Err(status), None)),
        }
    });
    let first = stream::iter([Ok(Outgoing::message(&first))]);
    Ok(Answer::stream(first.chain(rest).boxed()))
}

/// How many of the next directories are read together.
fn read_together(next: &[Digest]) -> &[Digest] {
    let mut bytes = 0;
    let fits = |digest: &&Digest| {
        bytes += digest.size_bytes;
        bytes <= READ_AGAIN_BYTES_MAX
    };
    let count = next.iter().take(READ_AGAIN_DIRECTORIES_MAX).take_while(fits).count();
    next.get(..count.max(1)).unwrap_or_default()
}

fn root_missing(root: &Digest) -> Status {
    Status::not_found(format!("directory {root} is not in the store"))
}

fn walk_status(error: WalkError) -> Status {
    match error {
        WalkError::Store(error) => store_status(&error),
        WalkError::Malformed(digest) => Status::invalid_argument(format!("blob {digest} is not a directory")),
        WalkError::TooLarge => Status::resource_exhausted("tree has more directories than a walk may visit"),
        WalkError::TooDeep(levels) => Status::resource_exhausted(format!("tree has more than {levels} levels below its root")),
    }
}
