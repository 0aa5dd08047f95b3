//! `ByteStream.Write` and `QueryWriteStatus`.
//!
//! Always true here: a blob that is there, even midway, is answered at once with its size; a stream that ends without
//! `finish_write`, however it ends, leaves its upload with the suspended ones; an upload that was refused is dropped.

use std::sync::Arc;

use blockstore_proto::bytestream;
use tonic::Status;

use super::{
    Shared,
    grpc::{Answer, Call, Messages, Outgoing, Received, decode},
    resource::{self, Compression, UploadName},
    status::{bad_field, store_status},
};
use crate::store::{BeginWrite, BlobUpload, StoreError};

/// After so many bytes of an upload it is asked again whether somebody else has stored the blob meanwhile.
const PRESENCE_CHECK_BYTES: u64 = 8 << 20;

pub(super) async fn call(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let committed = write(&shared, &mut call.messages).await?;
    let committed_size = i64::try_from(committed).unwrap_or(i64::MAX);
    Ok(Answer::one(Outgoing::message(&bytestream::WriteResponse { committed_size })))
}

pub(super) async fn query(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let request: bytestream::QueryWriteStatusRequest = decode(received.message)?;
    let name = upload_name(&shared, &request.resource_name)?;
    let (committed, complete) = match is_present(&shared, &name).await? {
        true => (name.blob.digest.size_bytes, true),
        // An unknown upload has nothing: the Remote Execution API's clients expect no NOT_FOUND here.
        false => (shared.suspended.written_bytes(&name).unwrap_or(0), false),
    };
    let committed_size = i64::try_from(committed).unwrap_or(i64::MAX);
    let response = bytestream::QueryWriteStatusResponse { committed_size, complete };
    Ok(Answer::one(Outgoing::message(&response)))
}

fn upload_name(shared: &Shared, name: &str) -> Result<UploadName, Status> {
    let name = resource::parse_write(name, &shared.store.capabilities().digest_functions)
        .map_err(|error| bad_field("resource_name", error.to_string()))?;
    if name.blob.compression != Compression::Identity {
        return Err(bad_field("resource_name", "compressor is not supported".into()));
    }
    Ok(name)
}

async fn is_present(shared: &Shared, name: &UploadName) -> Result<bool, Status> {
    let missing = shared.store.find_missing(&name.blob.instance, &[name.blob.digest]).await;
    Ok(missing.map_err(|error| store_status(&error))?.first() == Some(&false))
}

/// An upload that a stream is busy with; goes to the suspended ones unless it is taken out.
struct Running<'a> {
    shared: &'a Shared,
    name: &'a UploadName,
    upload: Option<Box<dyn BlobUpload>>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            self.shared.suspended.keep(self.name, upload);
        }
    }
}

impl Running<'_> {
    fn written_bytes(&self) -> u64 {
        self.upload.as_ref().map_or(0, |upload| upload.written_bytes())
    }

    /// Writes; an upload that failed is dropped.
    async fn write(&mut self, data: bytes::Bytes) -> Result<(), StoreError> {
        let Some(upload) = &mut self.upload else {
            return Err(StoreError::Internal("upload goes on after its end".into()));
        };
        let result = upload.write(data).await;
        if result.is_err() {
            self.upload = None;
        }
        result
    }
}

/// Takes a whole stream; the size that is committed at its end.
async fn write(shared: &Shared, messages: &mut Messages) -> Result<u64, Status> {
    let mut received = next(messages).await?.ok_or_else(|| Status::invalid_argument("stream has no first message"))?;
    let full_name = std::mem::take(&mut received.message.resource_name);
    let name = upload_name(shared, &full_name)?;
    let size_bytes = name.blob.digest.size_bytes;

    let offset = offset(received.message.write_offset)?;
    let Some(mut running) = begin(shared, &name, offset).await? else {
        return Ok(size_bytes);
    };
    let mut checked_bytes = running.written_bytes();
    loop {
        let message = received.message;
        if !message.resource_name.is_empty() && message.resource_name != full_name {
            return Err(bad_field("resource_name", "differs from that of the first message".into()));
        }
        let expected = running.written_bytes();
        if self::offset(message.write_offset)? != expected {
            let why = format!("is {}, but {expected} bytes were sent", message.write_offset);
            return Err(bad_field("write_offset", why));
        }
        running.write(message.data).await.map_err(|error| store_status(&error))?;
        drop(received.permit);
        if message.finish_write {
            break;
        }
        if running.written_bytes() - checked_bytes >= PRESENCE_CHECK_BYTES {
            checked_bytes = running.written_bytes();
            if is_present(shared, &name).await? {
                running.upload = None;
                return Ok(size_bytes);
            }
        }
        received = match next(messages).await? {
            Some(received) => received,
            // The client closed its side: what it sent stays for the next stream.
            None => return Ok(running.written_bytes()),
        };
    }
    if let Some(upload) = running.upload.take() {
        upload.finish().await.map_err(|error| store_status(&error))?;
    }
    Ok(size_bytes)
}

/// Begins an upload, or goes on with a suspended one; `None` if the blob is there.
async fn begin<'a>(shared: &'a Shared, name: &'a UploadName, offset: u64) -> Result<Option<Running<'a>>, Status> {
    if let Some(upload) = shared.suspended.take(name) {
        let running = Running { shared, name, upload: Some(upload) };
        if offset == running.written_bytes() {
            if is_present(shared, name).await? {
                let mut running = running;
                running.upload = None;
                return Ok(None);
            }
            return Ok(Some(running));
        }
        if offset == 0 {
            // The client starts anew; so does the upload.
            let mut running = running;
            running.upload = None;
        } else {
            if is_present(shared, name).await? {
                return Ok(None);
            }
            let why = format!("is {offset}, but {} bytes are committed", running.written_bytes());
            return Err(bad_field("write_offset", why));
        }
    }
    let begun = shared.store.write(&name.blob.instance, &name.blob.digest).await;
    match begun.map_err(|error| store_status(&error))? {
        BeginWrite::AlreadyPresent => Ok(None),
        BeginWrite::Upload(_) if offset > 0 => Err(bad_field("write_offset", format!("is {offset}, but nothing is committed"))),
        BeginWrite::Upload(upload) => Ok(Some(Running { shared, name, upload: Some(upload) })),
    }
}

async fn next(messages: &mut Messages) -> Result<Option<Received<bytestream::WriteRequest>>, Status> {
    let Some(received) = messages.next().await? else {
        return Ok(None);
    };
    Ok(Some(Received { message: decode(received.message)?, permit: received.permit }))
}

fn offset(offset: i64) -> Result<u64, Status> {
    u64::try_from(offset).map_err(|_| bad_field("write_offset", format!("{offset} is negative")))
}
