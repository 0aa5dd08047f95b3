//! Parts that many requests have: the instance name and digests.
//!
//! Always true here: all digests of a request use one function, the one it names or the one that the first digest's length
//! tells (Remote Execution API).

use blockstore_proto::reapi;
use tonic::Status;

use super::{
    resource::by_length,
    status::{bad_digest, bad_field},
};
use crate::store::{Digest, DigestFunction, Instance};

/// The instance of a request.
pub(super) fn instance(name: &str) -> Result<Instance, Status> {
    if name.len() > Instance::BYTES_MAX {
        let why = format!("longer than {} bytes", Instance::BYTES_MAX);
        return Err(bad_field("instance_name", why));
    }
    Ok(Instance::new(name))
}

/// The digest function of a request. `first_hash_digits` is the length of its first hash, if it has any digest.
pub(super) fn digest_function(number: i32, first_hash_digits: Option<usize>, offered: &[DigestFunction]) -> Result<DigestFunction, Status> {
    let function = match (number, first_hash_digits) {
        (0, Some(digits)) => by_length(digits, offered)
            .ok_or_else(|| bad_field("digest_function", format!("unset, and no function has {digits} hex digits")))?,
        (0, None) => offered.first().copied().unwrap_or(DigestFunction::Sha256),
        (number, _) => DigestFunction::from_number(number)
            .filter(|function| offered.contains(function))
            .ok_or_else(|| bad_field("digest_function", format!("{number} is not offered")))?,
    };
    Ok(function)
}

/// A digest that has to be there.
pub(super) fn digest(field: &str, digest: Option<&reapi::Digest>, function: DigestFunction) -> Result<Digest, Status> {
    let digest = digest.ok_or_else(|| bad_field(field, "is required".into()))?;
    Digest::parse(function, digest.hash.as_bytes(), digest.size_bytes).map_err(|error| bad_digest(field, error))
}

/// The only digest of a request.
pub(super) fn sole_digest(field: &str, sole: Option<&reapi::Digest>, number: i32, offered: &[DigestFunction]) -> Result<Digest, Status> {
    let function = digest_function(number, sole.map(|d| d.hash.len()), offered)?;
    digest(field, sole, function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unset_function_is_told_by_the_length() {
        let of = |number, digits| digest_function(number, digits, &DigestFunction::ALL);
        assert_eq!(of(0, Some(40)).unwrap(), DigestFunction::Sha1);
        assert_eq!(of(0, Some(64)).unwrap(), DigestFunction::Sha256);
        assert_eq!(of(8, Some(64)).unwrap(), DigestFunction::Sha256Tree);
        assert_eq!(of(9, Some(64)).unwrap(), DigestFunction::Blake3);
        assert_eq!(of(10, Some(40)).unwrap(), DigestFunction::GitSha1);
        assert_eq!(of(0, None).unwrap(), DigestFunction::Sha256);
        for (number, digits) in [(0, Some(0)), (0, Some(63)), (4, Some(64)), (7, Some(64)), (-1, None)] {
            assert_eq!(of(number, digits).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
        let offered = [DigestFunction::Blake3];
        assert_eq!(digest_function(0, Some(64), &offered).unwrap(), DigestFunction::Blake3);
        assert!(digest_function(1, Some(64), &offered).is_err());
    }

    #[test]
    fn an_absent_digest_is_an_error_of_the_client() {
        let status = digest("action_digest", None, DigestFunction::Sha256).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains("action_digest"));
    }
}
