//! Errors as gRPC statuses: the one place where a store's error gets its code.
//!
//! Always true here: nothing becomes UNKNOWN (clients retry that for ever), and a message quotes nothing of unbounded length that the
//! client sent, since it travels in a header.

use blockstore_proto::rpc;
use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

use crate::store::{Digest, DigestError, StoreError, compression::DecompressError};

/// After how many seconds a client may try again when there was no room, or the store was unavailable.
const RETRY_SECONDS: i64 = 5;

/// The status of a store's error, with details of `google.rpc` where a client can use them.
pub fn store_status(error: &StoreError) -> Status {
    let message = error.to_string();
    match error {
        StoreError::Lost { .. } => Status::data_loss(message),
        StoreError::OutOfRange { .. } => Status::out_of_range(message),
        StoreError::Unavailable(_) => retry_later(Code::Unavailable, message),
        StoreError::NoRoom(_) => retry_later(Code::ResourceExhausted, message),
        StoreError::TooLarge { .. }
        | StoreError::SizeMismatch { .. }
        | StoreError::HashMismatch { .. }
        | StoreError::TooManyChunks { .. }
        | StoreError::UnsupportedFunction(_) => Status::invalid_argument(message),
        StoreError::ChunkMissing { .. } => Status::not_found(message),
        StoreError::Internal(_) => Status::internal(message),
    }
}

/// The status of a blob that was sent compressed.
pub(super) fn decompress_status(error: &DecompressError) -> Status {
    match error {
        DecompressError::Store(error) => store_status(error),
        DecompressError::Malformed(_) | DecompressError::Cut => Status::invalid_argument(error.to_string()),
    }
}

/// The same as the message that batch responses carry for each blob.
pub(super) fn rpc_status(status: &Status) -> rpc::Status {
    let code = i32::from(status.code());
    let details = rpc::Status::decode(status.details()).map(|s| s.details).unwrap_or_default();
    rpc::Status { code, message: status.message().to_owned(), details }
}

/// A blob that was asked for and is not there.
pub(super) fn blob_missing(digest: &Digest) -> Status {
    Status::not_found(format!("blob {digest} is not in the store"))
}

/// A digest in this field of the request is none.
pub(super) fn bad_digest(field: &str, error: DigestError) -> Status {
    bad_field(field, error.to_string())
}

/// A field of the request is wrong.
pub(super) fn bad_field(field: &str, description: String) -> Status {
    let message = format!("{field}: {description}");
    let violation = rpc::bad_request::FieldViolation { field: field.to_owned(), description, ..Default::default() };
    let detail = rpc::BadRequest { field_violations: vec![violation] };
    with_detail(Code::InvalidArgument, message, "BadRequest", &detail)
}

/// Something has to be uploaded first. The details name it the way that `Execute` of the Remote Execution API does.
pub(super) fn precondition_missing(digest: &Digest) -> Status {
    let violation =
        rpc::precondition_failure::Violation { r#type: "MISSING".into(), subject: format!("blobs/{digest}"), description: String::new() };
    let detail = rpc::PreconditionFailure { violations: vec![violation] };
    let message = format!("blob {digest} has to be uploaded first");
    with_detail(Code::FailedPrecondition, message, "PreconditionFailure", &detail)
}

/// A status of what may work later, with details that say when to try again.
pub fn retry_later(code: Code, message: String) -> Status {
    let retry_delay = Some(prost_types::Duration { seconds: RETRY_SECONDS, nanos: 0 });
    with_detail(code, message, "RetryInfo", &rpc::RetryInfo { retry_delay })
}

fn with_detail(code: Code, message: String, name: &str, detail: &impl Message) -> Status {
    let type_url = format!("type.googleapis.com/google.rpc.{name}");
    let detail = prost_types::Any { type_url, value: detail.encode_to_vec() };
    let status = rpc::Status { code: i32::from(code), message: message.clone(), details: vec![detail] };
    Status::with_details(code, message, Bytes::from(status.encode_to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DigestFunction, Hasher};

    #[test]
    fn every_store_error_has_its_code() {
        let digest = Hasher::digest(DigestFunction::Sha256, b"x");
        let expected = [
            (StoreError::Lost { offset_bytes: 1 }, Code::DataLoss),
            (StoreError::OutOfRange { offset_bytes: 2, size_bytes: 1 }, Code::OutOfRange),
            (StoreError::Unavailable("closing".into()), Code::Unavailable),
            (StoreError::TooLarge { size_bytes: 2, limit_bytes: 1 }, Code::InvalidArgument),
            (StoreError::NoRoom("uploads".into()), Code::ResourceExhausted),
            (StoreError::SizeMismatch { declared_bytes: 1, sent_bytes: 2 }, Code::InvalidArgument),
            (StoreError::HashMismatch { declared: Box::new(digest), computed: Box::new(digest) }, Code::InvalidArgument),
            (StoreError::ChunkMissing { chunk: Box::new(digest) }, Code::NotFound),
            (StoreError::TooManyChunks { limit: 1 }, Code::InvalidArgument),
            (StoreError::UnsupportedFunction(DigestFunction::Md5), Code::InvalidArgument),
            (StoreError::Internal("task".into()), Code::Internal),
        ];
        for (error, code) in expected {
            assert_eq!(store_status(&error).code(), code, "{error}");
        }
    }

    #[test]
    fn details_are_a_google_rpc_status() {
        let status = store_status(&StoreError::NoRoom("uploads".into()));
        let detail = rpc::Status::decode(status.details()).unwrap();
        assert_eq!((detail.code, detail.message.as_str()), (8, status.message()));
        assert!(detail.details[0].type_url.ends_with("/google.rpc.RetryInfo"));
        assert_eq!(rpc_status(&status), detail);
        assert_eq!(rpc_status(&Status::not_found("x")).details, vec![]);
    }
}
