//! Bytes in the pieces in which they arrived, and `WriteRequest` read from them: what is uploaded is not copied together before the
//! store copies it into its own buffers.
//!
//! Always true here: no piece is empty, and the length is that of all pieces together.

use std::{collections::VecDeque, fmt::Display};

use bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, bool, decode_key, decode_varint, int64, skip_field, string};
use tonic::Status;

/// Bytes, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Pieces {
    /// How many pieces they are in.
    pub(super) fn count(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Length of the first piece; 0 if there is none.
    pub(super) fn first_bytes(&self) -> usize {
        self.pieces.front().map_or(0, Bytes::len)
    }

    /// The next bytes, at most that many, of the first piece; empty if there is none.
    pub(super) fn take_piece(&mut self, bytes_max: usize) -> Bytes {
        let Some(first) = self.pieces.front_mut() else {
            return Bytes::new();
        };
        let piece = if first.len() <= bytes_max { self.pieces.pop_front().unwrap_or_default() } else { first.split_to(bytes_max) };
        self.bytes -= piece.len();
        piece
    }

    /// The next bytes, or all if there are fewer, as they are.
    fn split_to(&mut self, bytes: usize) -> Self {
        let mut front = Self::default();
        while front.bytes < bytes && self.bytes > 0 {
            front.push(self.take_piece(bytes - front.bytes));
        }
        front
    }
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        let mut pieces = Self::default();
        pieces.push(bytes);
        pieces
    }
}

impl From<Pieces> for Vec<Bytes> {
    fn from(pieces: Pieces) -> Self {
        pieces.pieces.into()
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn advance(&mut self, mut bytes: usize) {
        assert!(bytes <= self.bytes, "advanced behind the end");
        self.bytes -= bytes;
        while let Some(first) = self.pieces.front_mut() {
            if bytes < first.len() {
                return first.advance(bytes);
            }
            bytes -= first.len();
            self.pieces.pop_front();
        }
    }
}

/// `google.bytestream.WriteRequest`.
#[derive(Clone, Debug, Default)]
pub(super) struct WriteRequest {
    pub(super) resource_name: String,
    pub(super) write_offset: i64,
    pub(super) finish_write: bool,
    pub(super) data: Pieces,
}

impl WriteRequest {
    /// Reads an encoded message.
    pub(super) fn decode(mut message: Pieces) -> Result<Self, Status> {
        let mut request = Self::default();
        while message.has_remaining() {
            let (number, wire_type) = decode_key(&mut message).map_err(malformed)?;
            let context = DecodeContext::default();
            match number {
                1 => string::merge(wire_type, &mut request.resource_name, &mut message, context),
                2 => int64::merge(wire_type, &mut request.write_offset, &mut message, context),
                3 => bool::merge(wire_type, &mut request.finish_write, &mut message, context),
                10 if wire_type == WireType::LengthDelimited => {
                    let bytes = decode_varint(&mut message).map_err(malformed)?;
                    let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= message.remaining());
                    request.data = message.split_to(bytes.ok_or_else(|| malformed("data are cut off"))?);
                    Ok(())
                }
                10 => return Err(malformed("data are no bytes")),
                _ => skip_field(wire_type, number, &mut message, context),
            }
            .map_err(malformed)?;
        }
        Ok(request)
    }
}

fn malformed(error: impl Display) -> Status {
    Status::invalid_argument(format!("malformed message: {error}"))
}

#[cfg(test)]
mod tests {
    use blockstore_proto::bytestream;
    use prost::Message;

    use super::*;

    fn cut(bytes: &Bytes, piece_bytes: usize) -> Pieces {
        let mut pieces = Pieces::default();
        (0..bytes.len()).step_by(piece_bytes).for_each(|at| pieces.push(bytes.slice(at..bytes.len().min(at + piece_bytes))));
        pieces
    }

    fn joined(pieces: Pieces) -> Vec<u8> {
        Vec::<Bytes>::from(pieces).concat()
    }

    #[test]
    fn reads_what_prost_encodes_however_it_is_cut() {
        let sent = bytestream::WriteRequest {
            resource_name: "a/uploads/1/blobs/2/3".into(),
            write_offset: 70_000,
            finish_write: true,
            data: (0..1000u32).map(|n| n as u8).collect(),
        };
        // A field that nobody knows lies between.
        let encoded: Bytes = [&[0x7a, 3, 1, 2, 3][..], &sent.encode_to_vec()].concat().into();
        for piece_bytes in [1, 2, 3, 7, 100, 1000, 10_000] {
            let request = WriteRequest::decode(cut(&encoded, piece_bytes)).unwrap();
            let offset_and_end = (request.write_offset, request.finish_write);
            assert_eq!((request.resource_name.as_str(), offset_and_end), ("a/uploads/1/blobs/2/3", (70_000, true)));
            assert_eq!(joined(request.data), sent.data, "in pieces of {piece_bytes}");
        }
        let empty = WriteRequest::decode(Pieces::default()).unwrap();
        assert_eq!((empty.resource_name.as_str(), empty.write_offset, empty.data.count()), ("", 0, 0));
    }

    #[test]
    fn whatever_is_cut_off_or_spoiled_is_refused_as_prost_refuses_it() {
        let sent = bytestream::WriteRequest { resource_name: "n".into(), write_offset: 300, finish_write: true, data: vec![7; 20].into() };
        let encoded = sent.encode_to_vec();
        let mut refused = 0;
        for len in 0..encoded.len() {
            for spoil in [0, 1, 0x80, 0xff] {
                let mut message = encoded[..=len].to_vec();
                message[len] ^= spoil;
                let expected = bytestream::WriteRequest::decode(&message[..]);
                let read = WriteRequest::decode(cut(&message.into(), 3));
                assert_eq!(read.is_ok(), expected.is_ok(), "{len} {spoil}");
                match (read, expected) {
                    (Ok(read), Ok(expected)) => assert_eq!(joined(read.data), expected.data),
                    (Err(status), _) => {
                        assert_eq!(status.code(), tonic::Code::InvalidArgument);
                        refused += 1;
                    }
                    _ => {}
                }
            }
        }
        assert!(refused > 50, "{refused}");
    }

    #[test]
    fn bytes_are_taken_across_pieces() {
        let bytes: Bytes = (0..100u8).collect();
        let mut pieces = cut(&bytes, 30);
        assert_eq!((pieces.count(), pieces.first_bytes(), pieces.remaining()), (4, 30, 100));
        assert_eq!(pieces.take_piece(10), bytes[..10]);
        assert_eq!(pieces.take_piece(50), bytes[10..30]);
        assert_eq!(joined(pieces.split_to(50)), bytes[30..80]);
        pieces.advance(15);
        assert_eq!((pieces.count(), pieces.get_u8(), pieces.remaining()), (1, 95, 4));
        assert_eq!(joined(pieces.split_to(10)), bytes[96..]);
        assert_eq!((pieces.count(), pieces.remaining()), (0, 0));
    }
}
