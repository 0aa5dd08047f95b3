//! What a request needs to be allowed to, for every call and every path.
//!
//! Always true here: a call or handler that is added does not build before it is said here what it needs; whatever is none of them needs
//! the right to write, so that nobody learns without credentials what there is.

use crate::{
    auth::Right,
    metrics::labels::{Handler, Method, Verb},
};

/// What a call needs; `None` if it is open to everybody, whatever credentials they have: probes have none, or old ones.
pub(super) fn of_call(method: Method) -> Option<Right> {
    match method {
        Method::HealthCheck | Method::HealthWatch => None,
        Method::GetCapabilities
        | Method::GetActionResult
        | Method::FindMissingBlobs
        | Method::BatchReadBlobs
        | Method::GetTree
        | Method::SplitBlob
        | Method::GetChunkMapping
        | Method::Read
        | Method::QueryWriteStatus
        | Method::Reflection
        | Method::ReflectionAlpha => Some(Right::Read),
        Method::UpdateActionResult
        | Method::BatchUpdateBlobs
        | Method::SpliceBlob
        | Method::RegisterChunkMapping
        | Method::Write
        | Method::Other => Some(Right::Write),
    }
}

/// The same for a request over HTTP.
pub(super) fn of_request(verb: Verb, handler: Handler) -> Option<Right> {
    match (handler, verb) {
        (Handler::Healthz | Handler::Readyz, _) => None,
        (
            Handler::Cas | Handler::Ac | Handler::Kv | Handler::Status | Handler::Metrics | Handler::Other,
            Verb::Get | Verb::Head | Verb::Propfind,
        ) => Some(Right::Read),
        (_, Verb::Put | Verb::Delete | Verb::Mkcol | Verb::Other) => Some(Right::Write),
    }
}
