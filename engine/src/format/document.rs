//! Whether `FORMAT.md` says what the code does: its tables are read, and values with known fields are encoded and looked at where the
//! tables say that the fields lie. A change of either side alone fails here.

use super::{
    block::BlockHead,
    crc::{CHUNK_BYTES, ChunkCrcs, CrcMask, Crcs},
    image::{BUCKET_BYTES, BUCKETS_PER_UNIT, BlockRow, BlockTable, SLOTS_PER_BUCKET, UNIT_BYTES, seal_unit},
    layout::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Layout},
    log::{self, Entry, Location, PageHead},
    record::{Manifest, PACKED_BYTES_MAX, RecordHead, RecordKey, RecordKind},
    superblock::{FEATURE_ENCODED, FORMAT_VERSION, ImageInForce, Superblock},
    types::{Epoch, KeyHash, LengthClass, Lsn, Place, RECORD_ALIGN_BYTES, SizeCheck, SlotKind, Vbn},
};
use crate::{
    device::PAGE_BYTES,
    key::{Key, KeySpace},
    map::{hasher::KeyHasher, slot::Slot},
    value::Codec,
};
use std::ops::Range;

const DOCUMENT: &str = include_str!("../../FORMAT.md");
const UUID: [u8; 16] = [7; 16];
const VBN: u32 = 0x0102_0304;

fn mask() -> CrcMask {
    CrcMask::new(&UUID)
}

/// The rows of the table below the n-th line that starts with `heading`'s columns, in the section `## section`.
fn table(section: &str, columns: &str, nth: usize) -> Vec<Vec<String>> {
    let start = DOCUMENT.find(&format!("\n## {section}")).unwrap_or_else(|| panic!("a section {section}"));
    let text = &DOCUMENT[start + 1..];
    let text = &text[..text[3..].find("\n## ").map_or(text.len(), |end| end + 3)];
    let mut found = text.lines().skip_while(|line| !line.starts_with(columns));
    for _ in 0..nth {
        found.next();
        while found.clone().next().is_some_and(|line| !line.starts_with(columns)) {
            found.next();
        }
    }
    let rows = found.skip(2).take_while(|line| line.starts_with('|'));
    // An escaped bar is no border.
    let cells = |line: &str| {
        let line = line.replace("\\|", "\u{1}");
        line.trim_matches('|').split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
    };
    let rows: Vec<Vec<String>> = rows.map(cells).collect();
    assert!(!rows.is_empty(), "{section}: no table {columns} number {nth}");
    rows
}

/// The first number in a cell; `0x` is hexadecimal, a comma between digits is left out.
fn number(cell: &str) -> Option<u64> {
    let cell = cell.trim_start_matches(|c: char| !c.is_ascii_digit()).replace(',', "");
    if let Some(hex) = cell.strip_prefix("0x") {
        return u64::from_str_radix(&hex.chars().take_while(char::is_ascii_hexdigit).collect::<String>(), 16).ok();
    }
    cell.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// A field that a table names: where it lies, and what the table says of it.
struct Field {
    bytes: Range<usize>,
    says: String,
}

/// The fields of a table of offsets, which follow each other without a gap. An offset that is left out is where the field before ends; a
/// size that says more than a number is that of one of many.
fn fields(section: &str, nth: usize) -> Vec<Field> {
    let mut next = 0;
    let rows = table(section, "| offset | size |", nth);
    rows.into_iter()
        .map(|row| {
            let [offset, size, says] = row.as_slice() else { panic!("three columns: {row:?}") };
            let at = number(offset).map_or(next, |n| n as usize);
            assert_eq!(at, next, "{section}: {says} does not follow the field before it");
            next = at + number(size).unwrap_or_else(|| panic!("a size: {row:?}")) as usize;
            Field { bytes: at..next, says: says.clone() }
        })
        .collect()
}

/// Each field of the table, which the words that it starts with name, has these bytes; each of them is in the table. Gives its length.
fn assert_fields(section: &str, nth: usize, encoded: &[u8], expected: &[(&str, &[u8])]) -> usize {
    let fields = fields(section, nth);
    assert_eq!(fields.len(), expected.len(), "{section}: as many fields as were expected");
    for (field, (says, bytes)) in fields.iter().zip(expected) {
        assert!(field.says.starts_with(says), "{section}: {:?} is not {says:?}", field.says);
        assert_eq!(&encoded[field.bytes.clone()], *bytes, "{section}: {says} at {:?}", field.bytes);
    }
    fields.last().map_or(0, |field| field.bytes.end)
}

/// The checksum that `FORMAT.md` gives a domain's number and operands: made here once more, from its words alone.
fn masked(domain: u8, a: u64, b: u64, covered: &[u8]) -> [u8; 4] {
    let mask = [&UUID[..], &[domain], &a.to_le_bytes(), &b.to_le_bytes()].concat();
    (crc32fast::hash(covered) ^ crc32fast::hash(&mask)).to_le_bytes()
}

/// The number of the domain that covers what these words say, with its operands' meaning.
fn domain(covers: &str, a: &str, b: &str) -> u8 {
    let rows = table("Checksums", "| domain |", 0);
    let row = rows.iter().find(|row| row[1] == covers).unwrap_or_else(|| panic!("a domain that covers {covers}"));
    assert_eq!([&row[2], &row[3]], [a, b], "{covers}");
    number(&row[0]).expect("a number") as u8
}

/// The range that "CRC of bytes a..b" in a table covers.
fn covered(section: &str, nth: usize) -> Range<usize> {
    let says = &fields(section, nth)[0].says;
    let (from, to) = says.split_once("..").unwrap_or_else(|| panic!("a range in {says:?}"));
    number(from).expect("a start") as usize..number(to).expect("an end") as usize
}

#[test]
fn the_superblocks_fields_lie_where_the_document_says() {
    let superblock = Superblock {
        incompatible: FEATURE_ENCODED,
        uuid: [1; 16],
        device_index: 2,
        device_count: 3,
        epoch: Epoch(4),
        sequence: 5,
        device_bytes: 6,
        sector_bytes: 7,
        block_bytes: 9,
        block_count: 8,
        vbn_stride: 10,
        hash_seed: [12; 16],
        log_offset: 13,
        log_bytes: 14,
        image_offsets: [15, 16],
        table_units: 11,
        blocks_offset: 17,
        image: ImageInForce { slot: 1, number: 18, replay_after: Lsn(19), replay_page: 20 },
        previous_image: ImageInForce { slot: 0, number: 22, replay_after: Lsn(23), replay_page: 24 },
        mark: Lsn(21),
        clean: true,
    };
    let mut page = vec![1; PAGE_BYTES];
    superblock.encode(&mut page);
    let word = |n: u64| n.to_le_bytes();
    let crc = crc32fast::hash(&page[covered("Superblock", 0)]).to_le_bytes();
    let end = assert_fields(
        "Superblock",
        0,
        &page,
        &[
            ("CRC", &crc),
            (&format!("format version: {FORMAT_VERSION}"), &FORMAT_VERSION.to_le_bytes()),
            ("`BLKSTORE`", b"BLKSTORE"),
            ("compatible feature bits: 0", &word(0)),
            ("incompatible feature bits: 1 is set once records may have a codec", &word(FEATURE_ENCODED)),
            ("set uuid", &[1; 16]),
            ("device index", &2u16.to_le_bytes()),
            ("devices in the set", &3u16.to_le_bytes()),
            ("epoch", &4u32.to_le_bytes()),
            ("sequence", &word(5)),
            ("bytes of the device", &word(6)),
            ("logical sector size", &7u32.to_le_bytes()),
            ("number of blocks", &8u32.to_le_bytes()),
            ("bytes of a block: a power of two from 1 MiB to 1 GiB", &word(9)),
            ("vbn stride", &10u32.to_le_bytes()),
            ("units of the table", &11u32.to_le_bytes()),
            ("seed of the keyed hash", &[12; 16]),
            ("log offset", &word(13)),
            ("log bytes", &word(14)),
            ("image A offset", &word(15)),
            ("image B offset", &word(16)),
            ("blocks offset", &word(17)),
            ("image in force: number", &word(18)),
            ("replay begins behind this LSN", &word(19)),
            ("number of the log page", &word(20)),
            ("mark", &word(21)),
            ("the image before: number", &word(22)),
            ("its replay LSN", &word(23)),
            ("its replay page", &word(24)),
            ("slot of the image in force: 0 is A, 1 is B", &[1]),
            ("slot of the image before", &[0]),
            ("clean: 1", &[1]),
            ("padding", &[0; 5]),
        ],
    );
    assert!(page[end..].iter().all(|byte| *byte == 0), "nothing lies behind the last field");
    assert_eq!((BLOCK_BYTES_MIN, BLOCK_BYTES_MAX), (1 << 20, 1 << 30));
    let copies = Layout::superblock_offsets(1 << 30);
    assert_eq!(copies, [0, 4096, (1 << 30) - 8192, (1 << 30) - 4096], "first two pages, last two pages");
}

#[test]
fn the_logs_fields_lie_where_the_document_says() {
    let head = PageHead { epoch: Epoch(1), first: Lsn(2), page: 3, units_before: 4 };
    let mut page = vec![1; PAGE_BYTES];
    head.encode(&mask(), &mut page);
    let crc = masked(domain("head of a log page", "page number", "0"), 3, 0, &page[covered("KLM log", 0)]);
    let end = assert_fields(
        "KLM log",
        0,
        &page,
        &[
            ("CRC", &crc),
            ("epoch", &1u32.to_le_bytes()),
            ("LSN of the page's first unit", &2u64.to_le_bytes()),
            ("page number", &3u64.to_le_bytes()),
            ("units used in the page before", &4u16.to_le_bytes()),
            ("padding", &[0; 6]),
        ],
    );
    assert_eq!(end, log::UNIT_BYTES);
    assert!(DOCUMENT.contains(&format!("\n{} units of {} bytes follow.", log::UNITS_PER_PAGE, log::UNIT_BYTES)));

    let place = Place::new(Vbn(VBN), 80);
    let location = Location { hash: KeyHash([5; 12]), kind: SlotKind::Manifest, check: SizeCheck(6), place, extent_bytes: 9 };
    let mut unit = [0; 2 * log::UNIT_BYTES];
    Entry::Put(location).encode(&mask(), Epoch(10), Lsn(11), &mut unit);
    let crc = masked(domain("unit of the log", "epoch", "LSN"), 10, 11, &unit[covered("KLM log", 1)]);
    let end = assert_fields(
        "KLM log",
        1,
        &unit,
        &[
            ("CRC", &crc),
            ("tag", &[1]),
            ("slot kind: 0 content, 1 named, 2 part, 3 manifest", &[3]),
            ("size check: logical size mod 65,521", &6u16.to_le_bytes()),
            ("key hash", &[5; 12]),
            ("vbn", &VBN.to_le_bytes()),
            ("offset in the block / 8", &10u32.to_le_bytes()),
            ("the record's whole length", &9u32.to_le_bytes()),
        ],
    );
    assert_eq!(end, log::UNIT_BYTES);
    assert_eq!([SlotKind::Content, SlotKind::Named, SlotKind::Part, SlotKind::Manifest].map(|kind| kind as u8), [0, 1, 2, 3]);
    assert_eq!((SizeCheck::of(65_520).0, SizeCheck::of(65_521).0), (65_520, 0));
    assert_eq!(RECORD_ALIGN_BYTES, 8);
}

#[test]
fn the_logs_entries_have_the_tags_and_fields_of_the_document() {
    let (vbn, from) = (Vbn(VBN), Place::new(Vbn(77), 160));
    let location =
        Location { hash: KeyHash([5; 12]), kind: SlotKind::Part, check: SizeCheck(6), place: Place::new(vbn, 80), extent_bytes: 9 };
    let unit = |entry: Entry| {
        let mut out = [0; 2 * log::UNIT_BYTES];
        entry.encode(&mask(), Epoch(1), Lsn(1), &mut out);
        assert_eq!(entry.units(), 1 + usize::from(out[log::UNIT_BYTES..] != [0; log::UNIT_BYTES]));
        out
    };
    let moved = unit(Entry::Move { to: location, from, carries: Some((Epoch(3), Lsn(1 << 60))) });
    let second = [&moved[log::UNIT_BYTES..], &[0; log::UNIT_BYTES]].concat();
    let lsns = |first: u64, last: u64| [&[0; 3][..], &first.to_le_bytes(), &last.to_le_bytes(), &[0; 8]].concat();
    let body = |kind: u8, check: u16, hash: u8, place: [u32; 2], length: u32| {
        let places = place.map(u32::to_le_bytes).concat();
        [&[kind][..], &check.to_le_bytes(), &[hash; 12], &places, &length.to_le_bytes()].concat()
    };
    let places = [77u32, 20].map(u32::to_le_bytes).concat();
    let carried = [&[0; 3][..], &(1u64 << 60).to_le_bytes(), &3u32.to_le_bytes(), &places, &[0; 4]].concat();
    let delete = Entry::Delete { hash: KeyHash([5; 12]), kind: SlotKind::Named, from };
    let expected: [(&str, Vec<u8>, Vec<u8>); 9] = [
        ("Put", unit(Entry::Put(location)).to_vec(), body(2, 6, 5, [VBN, 10], 9)),
        ("Move, first unit", moved.to_vec(), body(2, 6, 5, [VBN, 10], 9)),
        ("Move, second unit", second, carried),
        ("Delete", unit(delete).to_vec(), body(1, 0, 5, [77, 20], 0)),
        ("BlockOpen", unit(Entry::BlockOpen { vbn }).to_vec(), body(0, 0, 0, [VBN, 0], 0)),
        ("BlockSeal", unit(Entry::BlockSeal { vbn, fill_bytes: 3 }).to_vec(), body(0, 0, 0, [VBN, 0], 3)),
        ("BlockRetire", unit(Entry::BlockRetire { vbn }).to_vec(), body(0, 0, 0, [VBN, 0], 0)),
        ("Void", unit(Entry::Void { first: Lsn(8), last: Lsn(1 << 60) }).to_vec(), lsns(8, 1 << 60)),
        ("Durable", unit(Entry::Durable { lsn: Lsn(1 << 60) }).to_vec(), lsns(1 << 60, 1 << 60)),
    ];
    let uses = [
        "all fields",
        "all fields: the new place",
        "vbn, offset: the old place; LSN (u64 at 8) and epoch (u32 at 16) in the record's head, or zeros",
        "kind, key hash, vbn, offset: the place that the slot must still have",
        "vbn",
        "vbn; length: bytes filled",
        "vbn",
        "first LSN (u64 at 8), last LSN (u64 at 16)",
        "LSN (u64 at 8, and again at 16)",
    ];
    let rows = table("KLM log", "| tag |", 0);
    assert_eq!(rows.len(), expected.len());
    for ((row, (name, unit, body)), uses) in rows.iter().zip(&expected).zip(uses) {
        assert_eq!([&row[1], &row[2]], [name, uses]);
        assert_eq!(Some(u64::from(unit[4])), number(&row[0]), "tag of {name}");
        assert_eq!(unit[5..log::UNIT_BYTES], *body, "{name}");
    }
}

#[test]
fn the_images_fields_lie_where_the_document_says() {
    let row = BlockRow { vbn: Vbn(VBN), live: true, sealed: true, fill_bytes: 9 };
    let mut copy = vec![1; BlockTable::copy_bytes(2) as usize];
    BlockTable { lsn: Lsn(4), tick: 5, rows: vec![row, row] }.encode(&mask(), 6, &mut copy);
    let crc = masked(domain("block table of an image", "image number", "0"), 6, 0, &copy[4..]);
    let cells = [&VBN.to_le_bytes()[..], &9u32.to_le_bytes(), &[1, 1], &[0; 6]].concat();
    let end = assert_fields(
        "Image",
        0,
        &copy,
        &[
            ("CRC of the rest of the copy, masked", &crc),
            ("rows", &2u32.to_le_bytes()),
            ("image number", &6u64.to_le_bytes()),
            ("every block entry up to this LSN", &4u64.to_le_bytes()),
            ("tick of the age clock", &5u64.to_le_bytes()),
            ("row: vbn (4), bytes filled (4), live (1), sealed (1), padding (6)", &cells),
        ],
    );
    assert_eq!(copy[end..end + cells.len()], cells, "the next row follows");
    assert_eq!(copy.len() % PAGE_BYTES, 0);

    let mut unit = vec![3; UNIT_BYTES];
    seal_unit(&mask(), 4, 5, Lsn(6), &mut unit);
    let rows = table("Image", "| offset | size | field of a unit's head", 0);
    let says = &rows[0][2];
    assert_eq!(says, &format!("CRC of bytes 4..{UNIT_BYTES}, masked"));
    let crc = masked(domain("unit of an image", "image number", "index of the unit"), 4, 5, &unit[4..]);
    let end = assert_fields(
        "Image",
        1,
        &unit,
        &[
            ("CRC", &crc),
            ("index of the unit", &5u32.to_le_bytes()),
            ("image number", &4u64.to_le_bytes()),
            ("highest LSN published in the unit", &6u64.to_le_bytes()),
            ("padding", &[0; 40]),
        ],
    );
    assert_eq!((end, unit[end]), (BUCKET_BYTES, 3));
    assert_eq!((UNIT_BYTES, SLOTS_PER_BUCKET, BUCKETS_PER_UNIT), (64 << 10, 4, 1023));
    assert!(DOCUMENT.contains("A unit is 64 KiB: a head of 64 bytes, then 1,023 buckets of four slots."));

    let slot = Slot::new(Place::new(Vbn(VBN), 8 * 0x0765_4321), 5, SlotKind::Part, 0x98_7654_3210, SizeCheck(0xabcd), LengthClass(0x55));
    assert!(DOCUMENT.contains("Word 0: vbn (bits 63–32), offset / 8 (31–5), stamp (4–2), kind (1–0); 0 is an empty slot."));
    assert_eq!(slot.word0, u64::from(VBN) << 32 | 0x0765_4321 << 5 | 5 << 2 | 2);
    assert!(DOCUMENT.contains("Word 1:\nfingerprint (63–24), size check (23–8), length class (7–1), 0."));
    assert_eq!(slot.word1, 0x98_7654_3210 << 24 | 0xabcd << 8 | 0x55 << 1);
}

#[test]
fn hashes_and_classes_are_made_as_the_document_says() {
    use siphasher::sip128::{Hasher128, SipHasher13};
    use std::hash::Hasher;
    assert!(DOCUMENT.contains("SipHash-1-3-128, keyed with the seed, over `space (1) ‖ function (1) ‖ hash (32)`"));
    let part = [&[3; 16][..], &9u64.to_le_bytes(), &[0; 8]].concat();
    let object = Key { space: KeySpace::Named, function: 4, hash: [5; 32] };
    for (key, hashed) in [
        (RecordKey::Object(Key { space: KeySpace::Content, ..object }), [&[0, 4][..], &[5; 32]].concat()),
        (RecordKey::Object(object), [&[1, 4][..], &[5; 32]].concat()),
        (RecordKey::Part { upload_id: [3; 16], index: 9, object }, [&[2, 0][..], &part].concat()),
    ] {
        let mut hasher = SipHasher13::new_with_key(&[6; 16]);
        hasher.write(&hashed);
        let wide = hasher.finish128().as_bytes();
        let hash = KeyHasher::new(&[6; 16]).hash(&key);
        assert_eq!(hash.0, wide[..12]);
        let low = u64::from_le_bytes(hash.0[..8].try_into().expect("eight bytes"));
        assert!(DOCUMENT.contains("the unit is the high half\nof `(low >> 32) × units`"));
        assert_eq!(u64::from(hash.unit(1000)), ((low >> 32) * 1000) >> 32);
        assert!(DOCUMENT.contains("the first bucket is `(low mod 2^24) × 1023 >> 24`"));
        assert_eq!(u64::from(hash.bucket(BUCKETS_PER_UNIT)), (low % (1 << 24) * 1023) >> 24);
        assert!(DOCUMENT.contains("the fingerprint is byte 3, then bytes 8..12 as the higher bits"));
        let [a, b, c, d] = [8, 9, 10, 11].map(|at| hash.0[at]);
        assert_eq!(hash.fingerprint(), u64::from_le_bytes([hash.0[3], a, b, c, d, 0, 0, 0]));
    }
    assert!(DOCUMENT.contains("with `g` = length in units of 64, rounded up: `g − 1` up to 8"));
    assert_eq!([1, 64, 65, 512].map(|bytes| LengthClass::of(bytes).0), [0, 0, 1, 7]);
}

#[test]
fn the_blocks_fields_lie_where_the_document_says() {
    let mut page = vec![1; PAGE_BYTES];
    BlockHead { vbn: Vbn(VBN), physical: 6, lsn: Lsn(9) }.encode(&mask(), &UUID, &mut page);
    let crc = masked(domain("head of a block", "vbn", "0"), u64::from(VBN), 0, &page[covered("Block", 0)]);
    let says = &fields("Block", 0)[1].says;
    let magic = u32::try_from(number(says).expect("a number")).expect("four bytes");
    let end = assert_fields(
        "Block",
        0,
        &page,
        &[
            ("CRC", &crc),
            ("`0x", &magic.to_le_bytes()),
            ("set uuid", &UUID),
            ("vbn = generation × stride + physical index; generations start at 1", &VBN.to_le_bytes()),
            ("physical index", &6u32.to_le_bytes()),
            ("last LSN published", &9u64.to_le_bytes()),
        ],
    );
    assert!(page[end..].iter().all(|byte| *byte == 0));
}

#[test]
fn the_records_fields_lie_where_the_document_says() {
    let place = Place::new(Vbn(VBN), 8192);
    let object = Key { space: KeySpace::Content, function: 4, hash: [5; 32] };
    let payload = vec![8; CHUNK_BYTES + 1];
    let part = RecordHead {
        kind: RecordKind::Part,
        key: RecordKey::Part { upload_id: [3; 16], index: 9, object },
        codec: Codec::Zstd,
        logical_bytes: 10,
        stored_bytes: payload.len() as u32,
        epoch: Epoch(12),
        lsn: Lsn(13),
        crcs: ChunkCrcs::of(&payload),
    };
    let mut head = vec![0; part.shape().head_bytes];
    part.encode(&mask(), place, &mut head);
    let crc = masked(domain("head of a record", "vbn", "offset in the block"), u64::from(VBN), 8192, &head[4..]);
    let covers = domain("chunk of a record's payload", "vbn << 32 | offset / 8", "index of the chunk");
    let chunk = |index: u64, bytes: &[u8]| masked(covers, u64::from(VBN) << 32 | 1024, index, bytes);
    let (first, rest) = payload.split_at(CHUNK_BYTES);
    let end = assert_fields(
        "Record",
        0,
        &head,
        &[
            ("CRC of the head from byte 4 to the end of the CRC table, masked", &crc),
            ("kind: 1 content, 2 named, 3 part, 4 manifest, 5 tombstone", &[3]),
            ("function of the key", &[0]),
            ("codec: 0 the payload is the bytes, 1 it is a zstd frame that stands for them", &[1]),
            ("flags: 0", &[0]),
            ("logical size", &10u64.to_le_bytes()),
            ("payload bytes", &(payload.len() as u32).to_le_bytes()),
            ("epoch", &12u32.to_le_bytes()),
            ("its LSN", &13u64.to_le_bytes()),
            ("hash of the key; for a part: upload id (16), index (8), 8 zeros", &[&[3; 16][..], &9u64.to_le_bytes(), &[0; 8]].concat()),
            ("only in parts: hash (32) and function (1) of the object's key, padding (7)", &[&[5; 32][..], &[4], &[0; 7]].concat()),
            ("CRC of each 64 KiB of payload, masked", &chunk(0, first)),
        ],
    );
    assert_eq!(head[end..], chunk(1, rest), "the next chunk's follows, and is the last");
    assert_eq!((CHUNK_BYTES, PACKED_BYTES_MAX), (64 << 10, 64 << 10));
    let kinds = [RecordKind::Content, RecordKind::Named, RecordKind::Part, RecordKind::Manifest, RecordKind::Tombstone];
    assert_eq!(kinds.map(|kind| kind as u8), [1, 2, 3, 4, 5]);
    // An object's own key is where a part has its upload's.
    let whole = RecordHead { kind: RecordKind::Content, key: RecordKey::Object(object), stored_bytes: 0, crcs: Crcs::new(), ..part };
    let mut head = vec![0; whole.shape().head_bytes];
    whole.encode(&mask(), place, &mut head);
    assert_eq!((head.len(), head[5], &head[32..64]), (fields("Record", 0)[10].bytes.start, 4, &[5; 32][..]));
}

#[test]
fn records_and_manifests_have_the_shape_that_the_document_says() {
    assert!(
        DOCUMENT
            .contains("A payload of up to 64 KiB follows at the next multiple of 8, and the next record at the multiple of 8 behind it")
    );
    let shape = |bytes| super::record::RecordShape::of(RecordKind::Content, bytes);
    let packed = shape(64 << 10);
    assert_eq!((packed.head_bytes, packed.payload_offset, packed.extent_bytes, packed.paged), (68, 72, 72 + (64 << 10), false));
    let paged = shape((64 << 10) + 1);
    assert_eq!((paged.head_bytes, paged.payload_offset, paged.extent_bytes, paged.paged), (72, 4096, 4096 + (68 << 10), true));
    assert!(DOCUMENT.contains(
        "upload id (16), logical bytes of every part but the last (u64), number of parts (u32), codec (1), padding (3), then the\n\
         stored bytes of each part (u32 each)"
    ));
    let manifest = Manifest { upload_id: [3; 16], part_bytes: 5, stored_bytes: vec![6, 7], codec: Codec::Zstd }.encode();
    let expected =
        [&[3; 16][..], &5u64.to_le_bytes(), &2u32.to_le_bytes(), &[1, 0, 0, 0], &6u32.to_le_bytes(), &7u32.to_le_bytes()].concat();
    assert_eq!(manifest, expected);
    assert!(DOCUMENT.starts_with(&format!("# The format, byte by byte\n\nVersion {FORMAT_VERSION}. ")));
    assert!(DOCUMENT.contains("the unit of I/O is a page of 4,096\nbytes") && PAGE_BYTES == 4096);
}
