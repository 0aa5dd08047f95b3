//! What the value under an action result's key is: a format byte, the action's size, and the result as it was put.

use bytes::{BufMut, Bytes, BytesMut};

use crate::ActionKey;

/// What precedes an action result in its value: a format byte, then the action's size in bytes, little-endian
/// ([`SIZE_UNKNOWN`] if nobody said).
pub const ACTION_PREFIX_BYTES: usize = 9;
/// Stands for the size of an action that nobody knew.
pub const SIZE_UNKNOWN: u64 = u64::MAX;
const ACTION_FORMAT: u8 = 1;

/// The value for a result of an action of `action_bytes` bytes ([`SIZE_UNKNOWN`] included).
pub fn action_value(action_bytes: u64, result: &[u8]) -> Bytes {
    let mut value = BytesMut::with_capacity(ACTION_PREFIX_BYTES + result.len());
    value.put_u8(ACTION_FORMAT);
    value.put_u64_le(action_bytes);
    value.put_slice(result);
    value.freeze()
}

/// The size of the action in a value, [`SIZE_UNKNOWN`] included; `None` if the value has another format.
pub fn action_bytes(value: &[u8]) -> Option<u64> {
    let (format, rest) = value.split_first()?;
    (*format == ACTION_FORMAT).then(|| rest.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)))?
}

/// The action result in a value, unless it was stored for an action of another size.
pub fn action_result(action: &ActionKey, mut value: Bytes) -> Option<Bytes> {
    let size_bytes = action_bytes(&value)?;
    let size_fits = !action.size_known || size_bytes == SIZE_UNKNOWN || size_bytes == action.digest.size_bytes;
    size_fits.then(|| value.split_off(ACTION_PREFIX_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, DigestFunction};

    fn action(size_bytes: u64, size_known: bool) -> ActionKey {
        let digest = Digest::new(DigestFunction::Sha256, &[7; 32], size_bytes).unwrap();
        ActionKey { digest, size_known }
    }

    #[test]
    fn an_action_of_another_size_is_a_miss_when_both_sizes_are_known() {
        let stored = |by: ActionKey| action_value(if by.size_known { by.digest.size_bytes } else { SIZE_UNKNOWN }, b"result");
        let found = Some(Bytes::from_static(b"result"));
        assert_eq!(action_result(&action(5, true), stored(action(5, true))), found);
        assert_eq!(action_result(&action(6, true), stored(action(5, true))), None);
        assert_eq!(action_result(&action(0, false), stored(action(5, true))), found);
        assert_eq!(action_result(&action(6, true), stored(action(0, false))), found);
        assert_eq!(action_result(&action(6, true), Bytes::from_static(b"\x01short")), None);
        assert_eq!(action_result(&action(6, true), Bytes::new()), None);
    }
}
