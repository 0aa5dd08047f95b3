//! `GetTree`: every directory below a root, in pages.
//!
//! Always true here: a directory comes once, as it was stored, in breadth-first order; a missing one is skipped, unless it is
//! the root. A page token names how many directories came before it. While its walk is still kept, going on costs nothing;
//! otherwise the walk is repeated up to there, with the same order.

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
        Digest, Instance,
        directories::{DirectoryWalk, WalkError},
    },
};

/// Directories in a page when the client names no number.
const PAGE_DIRECTORIES_DEFAULT: usize = 1000;
/// Walks that are kept for the client's next page.
const WALKS_MAX: usize = 64;
/// Directories that the kept walks may have seen together: each costs about a hundred bytes.
const WALKS_DIRECTORIES_MAX: usize = 1 << 20;
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

/// Which walk: of whom, from which root, and how many directories were given out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    instance: Instance,
    root: Digest,
    sent: u64,
}

/// A walk that waits for the next page.
#[derive(Debug)]
struct Kept {
    place: Place,
    since: Instant,
    walk: DirectoryWalk,
    /// Read, but not given out.
    held: Option<Bytes>,
}

/// Walks that wait for the next page.
#[derive(Debug, Default)]
pub(super) struct Walks {
    /// The oldest first.
    kept: Mutex<VecDeque<Kept>>,
}

impl Walks {
    fn keep(&self, place: Place, walk: DirectoryWalk, held: Option<Bytes>) {
        let since = Instant::now();
        let mut kept = self.kept.lock();
        kept.retain(|kept| kept.since.elapsed() < WALK_IDLE_MAX);
        kept.push_back(Kept { place, since, walk, held });
        let mut seen: usize = kept.iter().map(|kept| kept.walk.seen()).sum();
        while kept.len() > WALKS_MAX || seen > WALKS_DIRECTORIES_MAX {
            let Some(oldest) = kept.pop_front() else {
                break;
            };
            seen = seen.saturating_sub(oldest.walk.seen());
        }
    }

    fn take(&self, place: &Place) -> Option<(DirectoryWalk, Option<Bytes>)> {
        let mut kept = self.kept.lock();
        let at = kept.iter().position(|kept| kept.place == *place)?;
        kept.remove(at).map(|kept| (kept.walk, kept.held))
    }
}

/// A walk on its way; kept for the next page when its stream is dropped early.
struct Pages {
    shared: Arc<Shared>,
    place: Place,
    walk: Option<DirectoryWalk>,
    /// Read, but did not fit into the page before.
    held: Option<Bytes>,
    directories_max: usize,
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Some(walk) = self.walk.take()
            && self.place.sent > 0
            && !(walk.is_done() && self.held.is_none())
        {
            self.shared.walks.keep(self.place.clone(), walk, self.held.take());
        }
    }
}

impl Pages {
    /// The next directory that is there.
    async fn directory(&mut self) -> Result<Option<Bytes>, Status> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let Some(walk) = &mut self.walk else {
            return Ok(None);
        };
        loop {
            match walk.next().await {
                Ok(Some(visit)) => match visit.directory {
                    Some(directory) => return Ok(Some(directory.bytes)),
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
                self.held = Some(directory);
                break;
            }
            page_bytes += bytes;
            self.place.sent += 1;
            page.directories.push(directory);
        }
        if page.directories.is_empty() {
            return Ok(None);
        }
        let done = self.walk.as_ref().is_none_or(DirectoryWalk::is_done) && self.held.is_none();
        if !done {
            page.next_page_token = self.place.sent.to_string();
        }
        Ok(Some(page))
    }
}

pub(super) async fn get(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let request: reapi::GetTreeRequest = decode(received.message)?;
    let instance = request::instance(&request.instance_name)?;
    let offered = &shared.store.capabilities().digest_functions;
    let digest = request.root_digest.as_ref();
    let root = request::sole_digest("root_digest", digest, request.digest_function, offered)?;
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
        Some((walk, held)) => Pages { shared, place, walk: Some(walk), held, directories_max },
        None => {
            let walk = DirectoryWalk::new(shared.store.clone(), instance, root);
            let place = Place { sent: 0, ..place };
            let mut pages = Pages { shared, place, walk: Some(walk), held: None, directories_max };
            while pages.place.sent < sent && pages.directory().await?.is_some() {
                pages.place.sent += 1;
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

fn root_missing(root: &Digest) -> Status {
    Status::not_found(format!("directory {root} is not in the store"))
}

fn walk_status(error: WalkError) -> Status {
    match error {
        WalkError::Store(error) => store_status(&error),
        WalkError::Malformed(digest) => Status::invalid_argument(format!("blob {digest} is not a directory")),
        WalkError::TooLarge => Status::resource_exhausted("tree has more directories than a walk may visit"),
    }
}
