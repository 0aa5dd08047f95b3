//! Reading the fields of an encoded message in place, and writing some.
//!
//! Always true here: nothing is copied from what is read, and malformed input ends the reading with an error.

use bytes::{BufMut, BytesMut};
use prost::{
    encoding::{WireType, encode_key, encode_varint},
    length_delimiter_len,
};
use tonic::Status;

/// The bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A number.
    Varint(u64),
    /// A string, bytes or a message.
    Len(&'a [u8]),
    /// A number of fixed width, which no message of ours has.
    Fixed,
}

/// Iterates over the fields of a message: their numbers and values, in the order they are in.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The numbers of a packed field.
    pub(super) fn numbers(packed: &'a [u8]) -> impl Iterator<Item = Result<u64, Malformed>> {
        let mut fields = Self::new(packed);
        std::iter::from_fn(move || (!fields.rest.is_empty()).then(|| fields.varint().inspect_err(|_| fields.rest = &[])))
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        // Nearly every number here has one byte.
        let (&first, rest) = self.rest.split_first().ok_or(Malformed)?;
        if first < 0x80 {
            self.rest = rest;
            return Ok(u64::from(first));
        }
        let mut value = 0;
        for (index, byte) in (0u32..10).zip(self.rest) {
            // Bits above the 64th are dropped, as Protocol Buffers do.
            value |= u64::from(byte & 0x7f).checked_shl(7 * index).unwrap_or(0);
            if byte & 0x80 == 0 {
                self.skip(index as usize + 1)?;
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn skip(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let (skipped, rest) = self.rest.split_at_checked(bytes).ok_or(Malformed)?;
        self.rest = rest;
        Ok(skipped)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), Malformed> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.skip(8).map(|_| Value::Fixed)?,
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                Value::Len(self.skip(len)?)
            }
            5 => self.skip(4).map(|_| Value::Fixed)?,
            _ => return Err(Malformed),
        };
        match key >> 3 {
            0 => Err(Malformed),
            number => Ok((number, value)),
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Hash and size of an encoded `Digest`.
pub(super) fn digest_fields(digest: &[u8]) -> Result<(&[u8], i64), Malformed> {
    let (mut hash, mut size_bytes): (&[u8], _) = (b"", 0);
    for item in Fields::new(digest) {
        match item? {
            (1, Value::Len(value)) => hash = value,
            (2, Value::Varint(value)) => size_bytes = value.cast_signed(),
            _ => {}
        }
    }
    Ok((hash, size_bytes))
}

pub(super) fn malformed(_: Malformed) -> Status {
    Status::invalid_argument("malformed message")
}

/// Length of a field of that many bytes, whose number is below 16.
pub(super) fn bytes_field_len(len: usize) -> usize {
    1 + length_delimiter_len(len) + len
}

/// Writes a field of bytes, a string or a message.
pub(super) fn put_bytes_field(out: &mut BytesMut, number: u32, value: &[u8]) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.put_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_in_order() {
        let message = [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 1, 2, 3, 4, 0x20, 0];
        let fields: Result<Vec<_>, _> = Fields::new(&message).collect();
        let expected = vec![(1, Value::Varint(150)), (2, Value::Len(b"hi")), (3, Value::Fixed), (4, Value::Varint(0))];
        assert_eq!(fields, Ok(expected));
    }

    #[test]
    fn malformed_input_is_an_error() {
        let bad: [&[u8]; 6] = [&[0x12, 5, 0], &[0xff; 11], &[0x08], &[0x0b, 0], &[0x00, 0], &[0x19, 0, 0]];
        for message in bad {
            assert!(Fields::new(message).any(|field| field.is_err()), "{message:?}");
        }
        let minus_one = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(Fields::new(&minus_one).next(), Some(Ok((1, Value::Varint(u64::MAX)))));
    }
}
