//! What keys are called on the command line and in what is printed.
//!
//! Always true here: what is printed for a key can be given to `get`, and finds that key; a kind that this program does not know has a
//! number for a name.

use crate::output::Failure;
use blockstore_engine::{Key, KeySpace, offline::Record, offline::RecordKind};
use blockstore_names::{Digest, DigestFunction, keys};

/// What kind of thing a record is.
pub(crate) fn kind(record: &Record) -> String {
    match record.kind {
        RecordKind::Part => "part".into(),
        RecordKind::Content | RecordKind::LargeObject if function(&record.key).is_none() => format!("unknown kind {}", record.key.function),
        RecordKind::LargeObject => "large_blob".into(),
        RecordKind::Content => "blob".into(),
        RecordKind::Named => match record.key.function {
            keys::NAMED_ACTION_RESULT => "action_result".into(),
            keys::NAMED_ENTRY => "entry".into(),
            other => format!("unknown kind {other}"),
        },
    }
}

/// The digest function of a content key, if this program knows it.
pub(crate) fn function(key: &Key) -> Option<DigestFunction> {
    (key.space == KeySpace::Content).then(|| DigestFunction::from_number(i32::from(key.function))).flatten()
}

/// The digest that a content key stands for, where the key still has the hash.
pub(crate) fn digest(key: &Key, size_bytes: u64) -> Option<Digest> {
    let function = function(key)?;
    let digest = Digest::new(function, key.hash.get(..function.hash_bytes())?, size_bytes).ok()?;
    (keys::content_key(&digest) == *key).then_some(digest)
}

/// A name for the key that [`parse`] understands.
pub(crate) fn of(key: &Key, size_bytes: u64) -> String {
    match digest(key, size_bytes) {
        Some(digest) => format!("{}/{}/{size_bytes}", digest.function, digest.hash_hex()),
        None => {
            let space = match key.space {
                KeySpace::Content => "content",
                KeySpace::Named => "named",
            };
            format!("{space}:{}:{}", key.function, hex::encode(key.hash))
        }
    }
}

/// The key, and the size if it is said, that a name stands for: `[FUNCTION/]HASH[/SIZE]`, or `content:N:KEY` or `named:N:KEY`.
pub(crate) fn parse(name: &str) -> Result<(Key, Option<u64>), Failure> {
    if name.contains(':') {
        return Ok((raw_key(name)?, None));
    }
    let (digest, size_bytes) = parse_digest(name)?;
    Ok((keys::content_key(&digest), size_bytes))
}

fn raw_key(name: &str) -> Result<Key, Failure> {
    let wrong = || Failure::usage(format!("{name:?} is no key: content:NUMBER:64-HEX-DIGITS or named:NUMBER:64-HEX-DIGITS would be one"));
    let mut words = name.split(':');
    let space = match words.next() {
        Some("content") => KeySpace::Content,
        Some("named") => KeySpace::Named,
        _ => return Err(wrong()),
    };
    let function = words.next().and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
    let hash = words.next().and_then(|digits| hex::decode(digits).ok()).and_then(|hash| hash.try_into().ok()).ok_or_else(wrong)?;
    match words.next() {
        None => Ok(Key { space, function, hash }),
        Some(_) => Err(wrong()),
    }
}

/// The digest `[FUNCTION/]HASH[/SIZE]`; its size counts only if the second is there. Without a function the length decides: the first one
/// that has it.
pub(crate) fn parse_digest(name: &str) -> Result<(Digest, Option<u64>), Failure> {
    let wrong = |why: &str| Failure::usage(format!("{name:?} is no digest: {why}; [FUNCTION/]HASH[/SIZE] would be one"));
    let mut words: Vec<&str> = name.split('/').collect();
    let named = match words.first().and_then(|first| DigestFunction::from_name(first)) {
        Some(function) => {
            words.remove(0);
            Some(function)
        }
        None => None,
    };
    let (hash, size) = match words.as_slice() {
        [hash] => (*hash, None),
        [hash, size] => (*hash, Some(size.parse::<u64>().map_err(|_| wrong("the size is no number"))?)),
        _ => return Err(wrong("it has too many parts")),
    };
    let function = named
        .or_else(|| DigestFunction::ALL.into_iter().find(|function| function.hex_digits() == hash.len()))
        .ok_or_else(|| wrong("no function has hashes of that length"))?;
    let signed = i64::try_from(size.unwrap_or(0)).map_err(|_| wrong("the size is too large"))?;
    let digest = Digest::parse(function, hash.as_bytes(), signed).map_err(|error| wrong(&error.to_string()))?;
    Ok((digest, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockstore_names::Hasher;

    #[test]
    fn what_is_printed_is_understood() {
        for function in DigestFunction::ALL {
            let digest = Hasher::digest(function, b"some bytes");
            let key = keys::content_key(&digest);
            let name = of(&key, 10);
            let (parsed, size_bytes) = parse(&name).unwrap();
            assert_eq!(parsed, key, "{name}");
            // A key that only has a hash of the hash has no size in its name.
            assert_eq!(size_bytes, (function.hash_bytes() <= 32).then_some(10), "{name}");
            assert_eq!(parse(&format!("{function}/{}/10", digest.hash_hex())).unwrap(), (key, Some(10)));
        }
        let named = Key { space: KeySpace::Named, function: 77, hash: [5; 32] };
        assert_eq!(parse(&of(&named, 3)).unwrap(), (named, None));
        let unknown = Key { space: KeySpace::Content, function: 200, hash: [5; 32] };
        assert_eq!(parse(&of(&unknown, 3)).unwrap(), (unknown, None));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let hash = "a".repeat(64);
        let bad = [
            "",
            "x",
            "sha256/",
            "sha1/aa",
            &hash[1..],
            &format!("{hash}/x"),
            &format!("{hash}/1/2"),
            "named:1:aa",
            "other:1:aa",
            "content:300:aa",
        ];
        for name in bad {
            assert!(parse(name).is_err(), "{name:?}");
        }
        assert!(parse(&hash).is_ok());
    }
}
