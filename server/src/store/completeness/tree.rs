//! Reading the digests out of a `Tree` message as its bytes arrive.
//!
//! Always true here: memory does not depend on the message, only one digest is held; a message that ends inside a field, or
//! whose fields reach beyond the message they are in, is malformed. Wire format: that of Protocol Buffers; fields: message
//! `Tree` of the Remote Execution API.

use crate::store::{Digest, DigestFunction, HASH_BYTES_MAX};

/// The bytes are no `Tree` whose nodes have digests of this function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LEN: u64 = 2;
const FIXED32: u64 = 5;

/// Which message the scanner is in. `Tree` holds `Directory`s, which hold nodes, which hold a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Tree,
    Directory,
    Node,
    Digest,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// At or inside the key of a field.
    Key,
    /// Inside the length of a field of this number.
    Len(u64),
    /// Inside a number, which counts if it is a digest's size.
    Number { is_size: bool },
    /// Inside bytes that do not matter.
    Skip { rest: u64 },
    /// Inside the hex of a hash.
    Hash { rest: u64 },
}

/// A parser that is fed a `Tree` in pieces.
pub(super) struct TreeScanner {
    function: DigestFunction,
    /// Whether the digests of child directories count, too.
    directories: bool,
    level: Level,
    /// Where the open messages end, counted from the start: of a directory, a node, a digest.
    ends: [u64; 3],
    /// Whether the open node is a directory.
    node_is_directory: bool,
    position: u64,
    state: State,
    varint: u64,
    varint_bits: u32,
    hash: [u8; HASH_BYTES_MAX * 2],
    hash_digits: usize,
    size_bytes: i64,
}

impl TreeScanner {
    pub(super) fn new(function: DigestFunction, directories: bool) -> Self {
        Self {
            function,
            directories,
            level: Level::Tree,
            ends: [0; 3],
            node_is_directory: false,
            position: 0,
            state: State::Key,
            varint: 0,
            varint_bits: 0,
            hash: [0; HASH_BYTES_MAX * 2],
            hash_digits: 0,
            size_bytes: 0,
        }
    }

    /// Takes the next bytes and adds the digests they complete to `found`.
    pub(super) fn feed(&mut self, mut data: &[u8], found: &mut Vec<Digest>) -> Result<(), Malformed> {
        while let Some((&byte, rest)) = data.split_first() {
            match self.state {
                State::Skip { rest } => {
                    let taken = rest.min(data.len() as u64);
                    data = self.advance(data, taken)?;
                    self.state = match rest - taken {
                        0 => State::Key,
                        rest => State::Skip { rest },
                    };
                }
                State::Hash { rest } => {
                    let taken = rest.min(data.len() as u64);
                    for digit in data.iter().take(usize::try_from(taken).map_err(|_| Malformed)?) {
                        *self.hash.get_mut(self.hash_digits).ok_or(Malformed)? = *digit;
                        self.hash_digits += 1;
                    }
                    data = self.advance(data, taken)?;
                    self.state = match rest - taken {
                        0 => State::Key,
                        rest => State::Hash { rest },
                    };
                }
                State::Key | State::Len(_) | State::Number { .. } => {
                    data = rest;
                    self.position += 1;
                    if let Some(value) = self.varint(byte)? {
                        self.value(value)?;
                    }
                }
            }
            if matches!(self.state, State::Key) && self.varint_bits == 0 {
                self.close(found)?;
            }
        }
        Ok(())
    }

    /// The message ends here.
    pub(super) fn finish(self) -> Result<(), Malformed> {
        let between_fields = matches!(self.state, State::Key) && self.varint_bits == 0;
        (between_fields && self.level == Level::Tree).then_some(()).ok_or(Malformed)
    }

    fn advance<'a>(&mut self, data: &'a [u8], taken: u64) -> Result<&'a [u8], Malformed> {
        self.position += taken;
        data.get(usize::try_from(taken).map_err(|_| Malformed)?..).ok_or(Malformed)
    }

    /// Adds a byte to the number that is being read; the number if it is complete.
    fn varint(&mut self, byte: u8) -> Result<Option<u64>, Malformed> {
        if self.varint_bits >= 70 {
            return Err(Malformed);
        }
        // The tenth byte has room for one bit; Protocol Buffers drop what is above it.
        self.varint |= u64::from(byte & 0x7f).checked_shl(self.varint_bits).unwrap_or(0);
        if byte & 0x80 != 0 {
            self.varint_bits += 7;
            return Ok(None);
        }
        self.varint_bits = 0;
        Ok(Some(std::mem::take(&mut self.varint)))
    }

    /// A number is complete: what it means depends on where it stood.
    fn value(&mut self, value: u64) -> Result<(), Malformed> {
        self.state = match self.state {
            State::Key => {
                let field = value >> 3;
                if field == 0 {
                    return Err(Malformed);
                }
                match value & 7 {
                    VARINT => State::Number { is_size: self.level == Level::Digest && field == 2 },
                    LEN => State::Len(field),
                    FIXED64 => self.skip(8)?,
                    FIXED32 => self.skip(4)?,
                    _ => return Err(Malformed),
                }
            }
            State::Number { is_size } => {
                if is_size {
                    self.size_bytes = value.cast_signed();
                }
                State::Key
            }
            State::Len(field) => self.enter(field, value)?,
            State::Skip { .. } | State::Hash { .. } => return Err(Malformed),
        };
        Ok(())
    }

    /// Where the innermost open message ends.
    fn end(&self) -> u64 {
        match self.level {
            Level::Tree => u64::MAX,
            Level::Directory => self.ends[0],
            Level::Node => self.ends[1],
            Level::Digest => self.ends[2],
        }
    }

    /// Where a field of this length would end; it must not reach out of its message.
    fn field_end(&self, len: u64) -> Result<u64, Malformed> {
        self.position.checked_add(len).filter(|end| *end <= self.end()).ok_or(Malformed)
    }

    fn skip(&self, len: u64) -> Result<State, Malformed> {
        self.field_end(len)?;
        Ok(if len == 0 { State::Key } else { State::Skip { rest: len } })
    }

    /// A field with a length begins.
    fn enter(&mut self, field: u64, len: u64) -> Result<State, Malformed> {
        let end = self.field_end(len)?;
        match (self.level, field) {
            (Level::Tree, 1 | 2) => {
                self.level = Level::Directory;
                self.ends[0] = end;
            }
            (Level::Directory, 1 | 2) => {
                self.level = Level::Node;
                self.ends[1] = end;
                self.node_is_directory = field == 2;
            }
            (Level::Node, 2) => {
                self.level = Level::Digest;
                self.ends[2] = end;
                self.hash_digits = 0;
                self.size_bytes = 0;
            }
            (Level::Digest, 1) => {
                self.hash_digits = 0;
                return Ok(if len == 0 { State::Key } else { State::Hash { rest: len } });
            }
            _ => return self.skip(len),
        }
        Ok(State::Key)
    }

    /// Between fields: leaves the messages that end here.
    fn close(&mut self, found: &mut Vec<Digest>) -> Result<(), Malformed> {
        while self.level != Level::Tree && self.position >= self.end() {
            if self.position > self.end() {
                return Err(Malformed);
            }
            self.level = match self.level {
                Level::Digest => {
                    let hash = self.hash.get(..self.hash_digits).ok_or(Malformed)?;
                    let digest = Digest::parse(self.function, hash, self.size_bytes).map_err(|_| Malformed)?;
                    if !self.node_is_directory || self.directories {
                        found.push(digest);
                    }
                    Level::Node
                }
                Level::Node => Level::Directory,
                Level::Directory | Level::Tree => Level::Tree,
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use blockstore_proto::reapi;
    use prost::Message;

    use super::*;
    use crate::store::Hasher;

    const FUNCTION: DigestFunction = DigestFunction::Sha256;

    fn digest(seed: u8) -> Digest {
        Hasher::digest(FUNCTION, &vec![seed; usize::from(seed)])
    }

    fn wire(digest: Digest) -> Option<reapi::Digest> {
        Some(reapi::Digest { hash: digest.hash_hex(), size_bytes: i64::try_from(digest.size_bytes).unwrap() })
    }

    fn tree() -> Vec<u8> {
        let file = |seed| reapi::FileNode {
            name: "n".repeat(usize::from(seed) + 1),
            digest: wire(digest(seed)),
            is_executable: seed % 2 == 0,
            node_properties: Some(reapi::NodeProperties { unix_mode: Some(0o644), ..Default::default() }),
        };
        let root = reapi::Directory {
            files: vec![file(1), file(200)],
            directories: vec![reapi::DirectoryNode { name: "d".into(), digest: wire(digest(9)) }],
            symlinks: vec![reapi::SymlinkNode { name: "l".into(), target: "t".into(), ..Default::default() }],
            node_properties: None,
        };
        let child = reapi::Directory { files: vec![file(0), file(3)], ..Default::default() };
        let children = vec![child, reapi::Directory::default()];
        reapi::Tree { root: Some(root), children }.encode_to_vec()
    }

    fn scan(data: &[u8], piece_bytes: usize, directories: bool) -> Result<Vec<Digest>, Malformed> {
        let mut scanner = TreeScanner::new(FUNCTION, directories);
        let mut found = Vec::new();
        for piece in data.chunks(piece_bytes) {
            scanner.feed(piece, &mut found)?;
        }
        scanner.finish()?;
        Ok(found)
    }

    #[test]
    fn finds_every_digest_however_the_message_is_cut() {
        let files = vec![digest(1), digest(200), digest(0), digest(3)];
        let all = vec![digest(1), digest(200), digest(9), digest(0), digest(3)];
        for piece_bytes in [1, 2, 3, 7, 64, 10_000] {
            assert_eq!(scan(&tree(), piece_bytes, false), Ok(files.clone()));
            assert_eq!(scan(&tree(), piece_bytes, true), Ok(all.clone()));
        }
        assert_eq!(scan(&[], 1, false), Ok(vec![]));
    }

    #[test]
    fn a_cut_or_flipped_message_never_panics_and_never_grows() {
        let tree = tree();
        for len in 0..tree.len() {
            let cut = scan(&tree[..len], 5, true);
            assert_eq!(cut.is_ok(), reapi::Tree::decode(&tree[..len]).is_ok(), "cut at {len}");
        }
        for at in 0..tree.len() {
            for bit in 0..8 {
                let mut flipped = tree.clone();
                flipped[at] ^= 1 << bit;
                let _ = scan(&flipped, 11, true);
            }
        }
    }

    #[test]
    fn a_field_that_reaches_out_of_its_message_is_malformed() {
        // A directory of 2 bytes whose only field claims 5.
        assert_eq!(scan(&[0x0a, 2, 0x0a, 5, 0, 0, 0, 0, 0], 3, false), Err(Malformed));
        // A number that never ends, a group, field number 0.
        assert_eq!(scan(&[0xff; 20], 20, false), Err(Malformed));
        assert_eq!(scan(&[0x0b], 1, false), Err(Malformed));
        assert_eq!(scan(&[0x02, 0], 1, false), Err(Malformed));
        // A hash longer than any function makes.
        let mut long = vec![0x0a, 0x8b, 2, 0x0a, 0x88, 2, 0x12, 0x85, 2, 0x0a, 0x82, 2];
        long.resize(long.len() + 258, b'a');
        assert_eq!(scan(&long, 7, false), Err(Malformed));
    }
}
