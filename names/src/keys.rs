//! What blobs, action results, entries and lists of chunks are called in the engine.
//!
//! Always true here: two things of different kinds, instances or names never have one key, unless SHA-256 has a collision.

use blockstore_engine::{Key, KeySpace};
use sha2::{Digest as _, Sha256};

use crate::{ActionKey, Digest, Instance};

/// `Key::function` of the named keys of action results. A kind whose values get another format gets another number.
pub const NAMED_ACTION_RESULT: u8 = 1;
/// `Key::function` of the named keys of what clients keep under names of their own.
pub const NAMED_ENTRY: u8 = 2;
/// `Key::function` of the named keys of lists of chunks: this and the number of the blob's digest function, which is below 16.
pub const NAMED_CHUNK_LIST: u8 = 16;

/// The key of a blob: the hash itself where it fits, else a hash of it.
pub fn content_key(digest: &Digest) -> Key {
    let mut hash = [0; 32];
    match hash.get_mut(..digest.hash().len()) {
        Some(place) => place.copy_from_slice(digest.hash()),
        None => hash = Sha256::digest(digest.hash()).into(),
    }
    Key { space: KeySpace::Content, function: digest.function.number(), hash }
}

/// The key of an action result.
pub fn action_key(instance: &Instance, action: &ActionKey) -> Key {
    let function = [action.digest.function.number()];
    named(NAMED_ACTION_RESULT, [instance.as_str().as_bytes(), &function, action.digest.hash()])
}

/// The key of what a client keeps under a name of its own.
pub fn entry_key(instance: &Instance, name: &[u8]) -> Key {
    named(NAMED_ENTRY, [instance.as_str().as_bytes(), name])
}

/// The key of a blob's list of chunks. Made of the blob's own key, so that asking for many costs no hashing.
pub fn chunk_list_key(digest: &Digest) -> Key {
    let content = content_key(digest);
    Key { space: KeySpace::Named, function: NAMED_CHUNK_LIST + content.function, hash: content.hash }
}

/// Every part has its length in front, so that no two names run into each other.
fn named<const N: usize>(function: u8, parts: [&[u8]; N]) -> Key {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    Key { space: KeySpace::Named, function, hash: hasher.finalize().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DigestFunction;

    fn action(size_bytes: u64, size_known: bool) -> ActionKey {
        let digest = Digest::new(DigestFunction::Sha256, &[7; 32], size_bytes).unwrap();
        ActionKey { digest, size_known }
    }

    #[test]
    fn content_keys_pad_short_hashes_and_hash_long_ones() {
        let sha1 = Digest::new(DigestFunction::Sha1, &[9; 20], 1).unwrap();
        let key = content_key(&sha1);
        assert_eq!((key.function, key.space), (2, KeySpace::Content));
        assert_eq!(key.hash[..20], [9; 20]);
        assert_eq!(key.hash[20..], [0; 12]);
        let sha512 = Digest::new(DigestFunction::Sha512, &[9; 64], 1).unwrap();
        assert_eq!(content_key(&sha512).hash, <[u8; 32]>::from(Sha256::digest([9; 64])));
    }

    #[test]
    fn action_keys_are_apart_by_instance_and_function_but_not_by_size() {
        let key = |instance: &str, action: &ActionKey| action_key(&Instance::new(instance), action);
        assert_eq!(key("main", &action(1, true)), key("main", &action(2, false)));
        assert_ne!(key("main", &action(1, true)), key("", &action(1, true)));
        let mut blake3 = action(1, true);
        blake3.digest = Digest::new(DigestFunction::Blake3, &[7; 32], 1).unwrap();
        assert_ne!(key("main", &action(1, true)), key("main", &blake3));
    }

    #[test]
    fn entry_keys_are_apart_by_instance_and_name_and_from_action_results() {
        let key = |instance: &str, name: &[u8]| entry_key(&Instance::new(instance), name);
        assert_ne!(key("a", b"bc"), key("ab", b"c"));
        assert_ne!(key("", b"a"), key("", b"b"));
        assert_ne!(key("", b"a").function, action_key(&Instance::new(""), &action(1, true)).function);
    }

    #[test]
    fn lists_of_chunks_are_apart_by_function_and_from_everything_else() {
        let mut kinds = vec![NAMED_ACTION_RESULT, NAMED_ENTRY];
        for function in DigestFunction::ALL {
            let digest = Digest::new(function, &vec![7; function.hash_bytes()], 1).unwrap();
            let key = chunk_list_key(&digest);
            assert_eq!((key.space, key.hash), (KeySpace::Named, content_key(&digest).hash));
            assert!(!kinds.contains(&key.function), "{function}");
            kinds.push(key.function);
            assert_eq!(chunk_list_key(&digest.with_size(2)), key);
        }
    }
}
