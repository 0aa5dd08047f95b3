//! `ActionCache`: results come back byte for byte as they were stored, unless something is put inline.
//!
//! Always true here: a result is stored only if it is well-formed; one that is answered fits into a message that every client
//! can decode.

use std::{collections::HashSet, sync::Arc};

use blockstore_proto::reapi;
use bytes::Bytes;
use prost::Message;
use tonic::Status;

use super::{
    ANSWER_BYTES_MAX, Shared,
    grpc::{Answer, Call, Outgoing, decode},
    request,
    status::{bad_field, precondition_missing, store_status},
};
use crate::{
    log::access::Resource,
    store::{ActionKey, Digest, DigestFunction, Instance, ResultRule, StoreError, action_result},
};

/// What a field that is put inline costs beside its bytes.
const INLINE_FIELD_BYTES: u64 = 16;

/// `UpdateActionResultRequest` with the result left encoded, so that it can be stored as it came.
#[derive(Clone, PartialEq, Message)]
struct UpdateRequest {
    #[prost(string, tag = "1")]
    instance_name: String,
    #[prost(message, optional, tag = "2")]
    action_digest: Option<reapi::Digest>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    action_result: Option<Bytes>,
    #[prost(int32, tag = "5")]
    digest_function: i32,
}

pub(super) async fn get(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let request: reapi::GetActionResultRequest = decode(received.message)?;
    let instance = request::instance(&request.instance_name)?;
    let digest = action_digest(&shared, &instance, request.action_digest.as_ref(), request.digest_function)?;
    call.about(Resource::Digest(digest));
    let result = shared
        .store
        .get_action_result(&instance, &ActionKey { digest, size_known: true }, ResultRule::Strict)
        .await
        .map_err(|error| store_status(&error))?
        // One that came over HTTP may be larger.
        .filter(|result| result.len() as u64 <= ANSWER_BYTES_MAX)
        .ok_or_else(|| Status::not_found(format!("no result of action {digest}")))?;
    let inline = request.inline_stdout || request.inline_stderr || !request.inline_output_files.is_empty();
    let result = match inline {
        true => put_inline(&shared, &instance, digest.function, &request, result).await?,
        false => result,
    };
    Ok(Answer::one(Outgoing::encoded(result)))
}

pub(super) async fn update(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let request: UpdateRequest = decode(received.message)?;
    let instance = request::instance(&request.instance_name)?;
    if !shared.options.instances.updates.get(&instance) {
        return Err(Status::permission_denied("this instance does not accept action results"));
    }
    let digest = action_digest(&shared, &instance, request.action_digest.as_ref(), request.digest_function)?;
    call.about(Resource::Digest(digest));
    let encoded = request.action_result.ok_or_else(|| bad_field("action_result", "is required".into()))?;
    let size_bytes = encoded.len() as u64;
    if size_bytes > ANSWER_BYTES_MAX {
        let error = StoreError::TooLarge { size_bytes, limit_bytes: ANSWER_BYTES_MAX };
        return Err(store_status(&error));
    }
    action_result::parse(encoded.clone(), digest.function).map_err(|error| bad_field(error.field, error.why))?;
    if shared.options.actions_must_exist {
        let missing = shared.store.find_missing(&instance, &[digest]).await;
        if missing.map_err(|error| store_status(&error))?.contains(&true) {
            return Err(precondition_missing(&digest));
        }
    }
    shared
        .store
        .put_action_result(&instance, &ActionKey { digest, size_known: true }, encoded.clone())
        .await
        .map_err(|error| store_status(&error))?;
    Ok(Answer::one(Outgoing::encoded(encoded)))
}

fn action_digest(shared: &Shared, instance: &Instance, digest: Option<&reapi::Digest>, number: i32) -> Result<Digest, Status> {
    request::sole_digest("action_digest", digest, number, &shared.functions(instance))
}

/// Something that can be put inline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Stdout,
    Stderr,
    /// The output file of that index.
    File(usize),
}

/// Puts inline what the client asked for, as far as it fits into the answer and is there.
async fn put_inline(
    shared: &Shared,
    instance: &Instance,
    function: DigestFunction,
    request: &reapi::GetActionResultRequest,
    encoded: Bytes,
) -> Result<Bytes, Status> {
    let mut result: reapi::ActionResult = decode(encoded.clone())?;
    let room_bytes = ANSWER_BYTES_MAX.saturating_sub(encoded.len() as u64);
    let wanted = wanted(&result, function, request, room_bytes);
    if wanted.is_empty() {
        return Ok(encoded);
    }
    let digests: Vec<_> = wanted.iter().map(|(_, digest)| *digest).collect();
    let found = shared.store.read_batch(instance, &digests).await;
    for ((place, _), data) in wanted.into_iter().zip(found) {
        // What cannot be read is left to the client: the digest is still there.
        let Ok(Some(data)) = data else { continue };
        match place {
            Place::Stdout => result.stdout_raw = data,
            Place::Stderr => result.stderr_raw = data,
            Place::File(index) => {
                if let Some(file) = result.output_files.get_mut(index) {
                    file.contents = data;
                }
            }
        }
    }
    Ok(result.encode_to_vec().into())
}

/// What is to be put inline, in the order of the request's fields, until the room is used up.
fn wanted(
    result: &reapi::ActionResult,
    function: DigestFunction,
    request: &reapi::GetActionResultRequest,
    mut room_bytes: u64,
) -> Vec<(Place, Digest)> {
    let stdout = (request.inline_stdout && result.stdout_raw.is_empty()).then_some((Place::Stdout, result.stdout_digest.as_ref()));
    let stderr = (request.inline_stderr && result.stderr_raw.is_empty()).then_some((Place::Stderr, result.stderr_digest.as_ref()));
    let paths: HashSet<_> = request.inline_output_files.iter().map(String::as_str).collect();
    let files = result
        .output_files
        .iter()
        .enumerate()
        .filter(|(_, file)| paths.contains(file.path.as_str()) && file.contents.is_empty())
        .map(|(index, file)| (Place::File(index), file.digest.as_ref()));
    stdout
        .into_iter()
        .chain(stderr)
        .chain(files)
        .filter_map(|(place, digest)| {
            let digest = request::digest("digest", digest, function).ok()?;
            let cost_bytes = digest.size_bytes.checked_add(INLINE_FIELD_BYTES)?;
            room_bytes = room_bytes.checked_sub(cost_bytes)?;
            Some((place, digest))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::action_result::fixtures::{FUNCTION, digest, result};

    #[test]
    fn only_what_fits_is_put_inline() {
        let request = reapi::GetActionResultRequest {
            inline_stdout: true,
            inline_stderr: true,
            inline_output_files: vec!["c".into(), "a/b".into(), "unknown".into()],
            ..Default::default()
        };
        let places = |room_bytes| -> Vec<_> { wanted(&result(), FUNCTION, &request, room_bytes).into_iter().map(|(p, _)| p).collect() };
        assert_eq!(places(1000), [Place::Stdout, Place::File(0), Place::File(1)]);
        assert_eq!(places(2 * (INLINE_FIELD_BYTES + 3)), [Place::Stdout, Place::File(0)]);
        assert_eq!(places(0), []);
    }

    #[test]
    fn a_result_is_cut_out_of_its_request_as_it_came() {
        let mut encoded = result().encode_to_vec();
        // A field that this program does not know.
        encoded.extend([0xf8, 0x07, 1]);
        let request = UpdateRequest {
            instance_name: "main".into(),
            action_digest: digest(b"action"),
            action_result: Some(encoded.clone().into()),
            digest_function: 1,
        };
        let wire = Bytes::from(request.encode_to_vec());
        let public = reapi::UpdateActionResultRequest::decode(wire.clone()).unwrap();
        assert_eq!(public.action_result, Some(result()));
        assert_eq!(UpdateRequest::decode(wire).unwrap().action_result.unwrap(), encoded);
    }
}
