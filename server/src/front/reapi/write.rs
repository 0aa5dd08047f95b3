//! `ByteStream.Write` and `QueryWriteStatus`.
//!
//! Always true here: a blob that is there, even midway, is answered at once; a stream that ends without `finish_write`, however
//! it ends, leaves its upload with the suspended ones; an upload that was refused is dropped.
//!
//! Of a compressed upload, the offset of a stream's first message and what `QueryWriteStatus` tells count uncompressed bytes;
//! within a stream, offsets grow by the bytes that were sent. So a stream that goes on with an upload begins a new frame.

use std::sync::Arc;

use blockstore_proto::bytestream;
use bytes::{Buf, Bytes};
use tonic::Status;

use super::{
    Shared,
    grpc::{Answer, Call, Messages, Outgoing, Received, decode},
    pieces::{Pieces, WriteRequest},
    resource::{self, Compression, UploadName},
    status::{bad_field, decompress_status, store_status},
    tool::Tool,
};
use crate::{
    front::uploads::Turn,
    log::access::Resource,
    store::{BeginWrite, BlobUpload, StoreError, compression::ZstdUpload},
};

/// After so many bytes of an upload it is asked again whether somebody else has stored the blob meanwhile.
const PRESENCE_CHECK_BYTES: u64 = 8 << 20;

/// `committed_size` of a compressed upload whose blob is there already (Remote Execution API).
const COMMITTED_ALREADY: i64 = -1;

pub(super) async fn call(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let mut received = next(&mut call.messages).await?.ok_or_else(|| Status::invalid_argument("stream has no first message"))?;
    let full_name = std::mem::take(&mut received.message.resource_name);
    let name = upload_name(&shared, &full_name)?;
    call.about(Resource::Digest(name.blob.digest));
    let stream = Stream {
        position: offset(received.message.write_offset)?,
        shared: &shared,
        name: &name,
        full_name,
        tool: match name.blob.compression {
            Compression::Identity => Tool::default(),
            Compression::Zstd => Tool::of(&call.headers),
        },
        messages: &mut call.messages,
    };
    let committed_size = stream.take(received).await?;
    Ok(Answer::one(Outgoing::message(&bytestream::WriteResponse { committed_size })))
}

pub(super) async fn query(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let request: bytestream::QueryWriteStatusRequest = decode(received.message)?;
    let name = upload_name(&shared, &request.resource_name)?;
    call.about(Resource::Digest(name.blob.digest));
    let (committed, complete) = match is_present(&shared, &name).await? {
        true => (name.blob.digest.size_bytes, true),
        // An unknown upload has nothing: the Remote Execution API's clients expect no NOT_FOUND here.
        false => (shared.suspended.written_bytes(&name).unwrap_or(0), false),
    };
    let response = bytestream::QueryWriteStatusResponse { committed_size: signed(committed), complete };
    Ok(Answer::one(Outgoing::message(&response)))
}

fn upload_name(shared: &Shared, name: &str) -> Result<UploadName, Status> {
    resource::parse_write(name, |instance| shared.functions(instance)).map_err(|error| bad_field("resource_name", error.to_string()))
}

async fn is_present(shared: &Shared, name: &UploadName) -> Result<bool, Status> {
    let missing = shared.store.find_missing(&name.blob.instance, &[name.blob.digest]).await;
    Ok(missing.map_err(|error| store_status(&error))?.first() == Some(&false))
}

/// An upload in the form in which its bytes come.
enum Upload {
    Identity(Box<dyn BlobUpload>),
    Zstd(Box<ZstdUpload>),
}

impl Upload {
    fn new(name: &UploadName, upload: Box<dyn BlobUpload>) -> Result<Self, Status> {
        Ok(match name.blob.compression {
            Compression::Identity => Self::Identity(upload),
            Compression::Zstd => {
                let upload = ZstdUpload::new(upload, name.blob.digest.size_bytes);
                Self::Zstd(Box::new(upload.map_err(|error| store_status(&error))?))
            }
        })
    }

    /// Bytes of the blob that the store has.
    fn written_bytes(&self) -> u64 {
        match self {
            Self::Identity(upload) => upload.written_bytes(),
            Self::Zstd(upload) => upload.written_bytes(),
        }
    }

    async fn write(&mut self, data: Vec<Bytes>) -> Result<(), Status> {
        match self {
            Self::Identity(upload) => upload.write_pieces(data).await.map_err(|error| store_status(&error)),
            Self::Zstd(upload) => {
                for piece in &data {
                    upload.write(piece).await.map_err(|error| decompress_status(&error))?;
                }
                Ok(())
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Status> {
        match self {
            Self::Identity(_) => Ok(()),
            Self::Zstd(upload) => upload.flush().await.map_err(|error| store_status(&error)),
        }
    }

    async fn finish(self) -> Result<(), Status> {
        match self {
            Self::Identity(upload) => upload.finish().await.map(drop).map_err(|error| store_status(&error)),
            Self::Zstd(upload) => upload.finish().await.map(drop).map_err(|error| decompress_status(&error)),
        }
    }

    fn into_inner(self) -> Box<dyn BlobUpload> {
        match self {
            Self::Identity(upload) => upload,
            Self::Zstd(upload) => upload.into_inner(),
        }
    }
}

/// An upload that a stream is busy with; goes to the suspended ones unless it is taken out.
struct Running<'a> {
    shared: &'a Shared,
    name: &'a UploadName,
    upload: Option<Upload>,
    /// It counts as long as its stream lasts.
    turn: Option<Turn>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            self.shared.suspended.keep(self.name, upload.into_inner());
        }
    }
}

impl Running<'_> {
    fn written_bytes(&self) -> u64 {
        self.upload.as_ref().map_or(0, Upload::written_bytes)
    }

    fn upload(&mut self) -> Result<&mut Upload, Status> {
        self.upload.as_mut().ok_or_else(|| Status::internal("upload goes on after its end"))
    }

    /// Writes; an upload that failed is dropped.
    async fn write(&mut self, data: Pieces) -> Result<(), Status> {
        let result = self.upload()?.write(data.into()).await;
        if result.is_err() {
            self.upload = None;
        }
        result
    }

    /// Leaves what came to the next stream; how much that is.
    async fn suspend(mut self) -> Result<u64, Status> {
        let result = self.upload()?.flush().await;
        if result.is_err() {
            self.upload = None;
        }
        result.map(|()| self.written_bytes())
    }
}

/// A stream of messages for one upload.
struct Stream<'a> {
    shared: &'a Shared,
    name: &'a UploadName,
    /// The name as it was sent.
    full_name: String,
    tool: Tool,
    messages: &'a mut Messages,
    /// Where the next message has to begin.
    position: u64,
}

impl Stream<'_> {
    /// Takes the whole stream; the size that is committed at its end.
    async fn take(mut self, mut received: Received<WriteRequest>) -> Result<i64, Status> {
        let Some(mut running) = begin(self.shared, self.name, self.position).await? else {
            let finished = received.message.finish_write;
            self.position = self.position.saturating_add(received.message.data.remaining() as u64);
            // Its share must be free before the next message is waited for.
            drop(received);
            return self.already_there(finished).await;
        };
        let mut checked_bytes = running.written_bytes();
        loop {
            let message = received.message;
            if !message.resource_name.is_empty() && message.resource_name != self.full_name {
                return Err(bad_field("resource_name", "differs from that of the first message".into()));
            }
            if offset(message.write_offset)? != self.position {
                let why = format!("is {}, but the next byte is {}", message.write_offset, self.position);
                return Err(bad_field("write_offset", why));
            }
            let data_bytes = message.data.remaining() as u64;
            running.write(message.data).await?;
            self.position = self.position.saturating_add(data_bytes);
            drop(received.permit);
            if message.finish_write {
                break;
            }
            if running.written_bytes() - checked_bytes >= PRESENCE_CHECK_BYTES {
                checked_bytes = running.written_bytes();
                if is_present(self.shared, self.name).await? {
                    running.upload = None;
                    return self.already_there(false).await;
                }
            }
            received = match next(self.messages).await? {
                Some(received) => received,
                // The client closed its side: what it sent stays for the next stream.
                None => return running.suspend().await.map(signed),
            };
        }
        if let Some(upload) = running.upload.take() {
            upload.finish().await?;
        }
        let rules = &self.shared.options.tools;
        Ok(match self.name.blob.compression {
            Compression::Zstd if !self.tool.is_one_of(&rules.committed_is_blob_size) => signed(self.position),
            _ => signed(self.name.blob.digest.size_bytes),
        })
    }

    /// The answer for a blob that is there already. Nobody looks at the rest of what is sent, except for clients that have to send
    /// it all; they learn how much that was.
    async fn already_there(mut self, mut finished: bool) -> Result<i64, Status> {
        let size_bytes = self.name.blob.digest.size_bytes;
        if self.name.blob.compression == Compression::Identity {
            return Ok(signed(size_bytes));
        }
        if !self.tool.is_one_of(&self.shared.options.tools.drained) {
            return Ok(COMMITTED_ALREADY);
        }
        // No compressor makes so much more of a blob.
        let position_max = size_bytes.saturating_mul(2).saturating_add(PRESENCE_CHECK_BYTES);
        while !finished {
            let Some(received) = next(self.messages).await? else {
                break;
            };
            finished = received.message.finish_write;
            self.position = self.position.saturating_add(received.message.data.remaining() as u64);
            if self.position > position_max {
                return Err(Status::invalid_argument(format!("a blob of {size_bytes} bytes was sent as {} bytes", self.position)));
            }
        }
        Ok(signed(self.position))
    }
}

/// Begins an upload, or goes on with a suspended one; `None` if the blob is there.
async fn begin<'a>(shared: &'a Shared, name: &'a UploadName, offset: u64) -> Result<Option<Running<'a>>, Status> {
    let Some(turn) = shared.options.uploads.begin() else {
        if is_present(shared, name).await? {
            return Ok(None);
        }
        let why = format!("{} uploads run, as many as may at the same time", shared.options.uploads.max());
        return Err(store_status(&StoreError::NoRoom(why)));
    };
    let mut turn = Some(turn);
    if let Some(upload) = shared.suspended.take(name) {
        let mut running = Running { shared, name, upload: Some(Upload::Identity(upload)), turn: turn.take() };
        let committed = running.written_bytes();
        if is_present(shared, name).await? {
            running.upload = None;
            return Ok(None);
        }
        if offset == committed {
            let upload = running.upload.take().map(Upload::into_inner);
            running.upload = upload.map(|upload| Upload::new(name, upload)).transpose()?;
            return Ok(Some(running));
        }
        if offset > 0 {
            return Err(bad_field("write_offset", format!("is {offset}, but {committed} bytes are committed")));
        }
        // The client starts anew; so does the upload.
        running.upload = None;
        turn = running.turn.take();
    }
    shared.suspended.forget(&name.blob.digest);
    let begun = shared.store.write(&name.blob.instance, &name.blob.digest).await;
    match begun.map_err(|error| store_status(&error))? {
        BeginWrite::AlreadyPresent => Ok(None),
        BeginWrite::Upload(_) if offset > 0 => Err(bad_field("write_offset", format!("is {offset}, but nothing is committed"))),
        BeginWrite::Upload(upload) => Ok(Some(Running { shared, name, upload: Some(Upload::new(name, upload)?), turn })),
    }
}

async fn next(messages: &mut Messages) -> Result<Option<Received<WriteRequest>>, Status> {
    let Some(received) = messages.next_in_pieces().await? else {
        return Ok(None);
    };
    Ok(Some(Received { message: WriteRequest::decode(received.message)?, permit: received.permit }))
}

fn offset(offset: i64) -> Result<u64, Status> {
    u64::try_from(offset).map_err(|_| bad_field("write_offset", format!("{offset} is negative")))
}

/// A number of bytes as messages carry it.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
