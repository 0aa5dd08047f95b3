//! Blobs that are stored compressed: nobody sees it but in what they take.

use blockstore_engine::{Begin, Codec, Key, KeySpace, Value};
use blockstore_proto::reapi;
use blockstore_server::store::{DigestFunction, Hasher};
use futures::future::join_all;
use tonic::Code;

use crate::{
    byte_stream::{messages, read, read_name, upload, write, write_name},
    server::{Server, data, digest, update, wire},
    zstd::{all, compressed, put, text, unzstd, zstd, zstd_read_name, zstd_write_name},
};

/// Sizes around what is compressed at all, packed, one record, and one part of a store as small as these.
const SIZES: [usize; 16] = [
    1,
    255,
    256,
    257,
    1000,
    16_384,
    65_535,
    65_536,
    65_537,
    200_000,
    (512 << 10) - 1,
    512 << 10,
    (512 << 10) + 1,
    1 << 20,
    (1 << 20) + 1,
    5_000_000,
];

/// Text, which shrinks, bytes that do not, one byte again and again, and such whose second half is of the other kind.
fn contents(seed: u64, len: usize) -> [Vec<u8>; 5] {
    let (shrinks, does_not) = (text(seed, len), data(seed, len));
    let half = len / 2;
    let mixed = [[&shrinks[..half], &does_not[half..]].concat(), [&does_not[..half], &shrinks[half..]].concat()];
    let [one, two] = mixed;
    [shrinks, does_not, vec![seed as u8; len], one, two]
}

fn is_frame(stored: &[u8]) -> bool {
    stored.starts_with(&0xfd2f_b528_u32.to_le_bytes())
}

/// Frames that are stored have a checksum, those made for a reader have none.
fn has_checksum(frame: &[u8]) -> bool {
    assert!(is_frame(frame));
    frame[4] & 4 != 0
}

#[tokio::test]
async fn blobs_of_every_size_are_read_in_both_forms_from_any_byte_on() {
    let server = Server::compressing().await;
    for (seed, len) in (0..).zip(SIZES) {
        for content in contents(seed, len) {
            let digest = digest(&content);
            upload(&server, &content, 100_000).await.unwrap();
            assert!(read(&server, &read_name(&digest), 0, 0).await.unwrap() == content, "{len} bytes");
            for offset in [0, 1, len / 2, (512 << 10) - 1, 512 << 10, 1 << 20, len - 1, len] {
                let Some(rest) = content.get(offset..) else { continue };
                assert!(read(&server, &read_name(&digest), offset as i64, 0).await.unwrap() == rest, "{len} bytes from {offset}");
                let some = read(&server, &read_name(&digest), offset as i64, 600_000).await.unwrap();
                assert!(some == rest[..rest.len().min(600_000)], "{len} bytes from {offset}, some");
                let frames = read(&server, &zstd_read_name(&digest), offset as i64, 0).await.unwrap();
                assert!(unzstd(&frames, len) == rest, "{len} bytes from {offset}, compressed");
            }
            let beyond = len as i64 + 1;
            for name in [read_name(&digest), zstd_read_name(&digest)] {
                assert_eq!(read(&server, &name, beyond, 0).await.unwrap_err().code(), Code::OutOfRange);
            }
        }
    }
    let nothing = read(&server, &zstd_read_name(&digest(b"")), 0, 0).await.unwrap();
    assert!(unzstd(&nothing, 1).is_empty());
}

#[tokio::test]
async fn every_function_and_every_way_in() {
    let server = Server::compressing().await;
    for function in DigestFunction::ALL {
        let number = i32::from(function.number());
        for len in [1000, 100_000, 2_000_000] {
            let content = text(u64::from(function.number()), len);
            let digest = wire(&Hasher::digest(function, &content));
            let named = format!("{}/{}/{}", function.name(), digest.hash, len);
            match len {
                1000 => {
                    let request = reapi::BatchUpdateBlobsRequest {
                        requests: vec![update(digest.clone(), &content)],
                        digest_function: number,
                        ..Default::default()
                    };
                    server.cas().batch_update_blobs(request).await.unwrap();
                }
                100_000 => {
                    let name = format!("uploads/u/compressed-blobs/zstd/{named}");
                    write(&server, all(&name, &zstd(&content), 10_000)).await.unwrap();
                }
                _ => {
                    let name = format!("uploads/u/blobs/{named}");
                    write(&server, messages(&name, &content, 0, len, 100_000, true)).await.unwrap();
                }
            }
            let sizes = [0, 1, -1].map(|more| reapi::Digest { size_bytes: digest.size_bytes + more, ..digest.clone() });
            let request = reapi::FindMissingBlobsRequest { blob_digests: sizes.to_vec(), digest_function: number, ..Default::default() };
            let missing = server.cas().find_missing_blobs(request).await.unwrap().into_inner().missing_blob_digests;
            assert_eq!(missing, sizes[1..], "{function} {len}");
            assert!(read(&server, &format!("blobs/{named}"), 0, 0).await.unwrap() == content, "{function} {len}");
            let frames = read(&server, &format!("compressed-blobs/zstd/{named}"), 0, 0).await.unwrap();
            assert!(has_checksum(&frames) && unzstd(&frames, len) == content, "{function} {len}");
            // Under the size of what is stored there is nothing.
            let stored = reapi::Digest { size_bytes: frames.len() as i64, ..digest };
            let request =
                reapi::FindMissingBlobsRequest { blob_digests: vec![stored.clone()], digest_function: number, ..Default::default() };
            let missing = server.cas().find_missing_blobs(request).await.unwrap().into_inner().missing_blob_digests;
            assert_eq!(missing, [stored], "{function} {len}");
        }
    }
}

#[tokio::test]
async fn a_blob_takes_what_its_frames_take_unless_that_saves_less_than_a_tenth() {
    let server = Server::compressing().await;
    for len in [30_000, 400_000, 5_000_000] {
        for (content, shrinks) in [(text(1, len), true), (data(1, len), false)] {
            let before = server.engine.stats();
            upload(&server, &content, 100_000).await.unwrap();
            let after = server.engine.stats();
            let taken = after.live_bytes - before.live_bytes;
            let expected = if shrinks { len as u64 * 6 / 10 } else { len as u64 * 12 / 10 };
            assert!(taken <= expected && (shrinks || taken >= len as u64), "{taken} bytes for {len}");
            assert!(after.accepted_bytes - before.accepted_bytes <= expected, "{len}");
            // What is stored as frames is what a reader gets.
            let frames = read(&server, &zstd_read_name(&digest(&content)), 0, 0).await.unwrap();
            assert_eq!(has_checksum(&frames), shrinks, "{len}");
        }
    }
}

#[tokio::test]
async fn a_batch_is_answered_with_what_is_stored() {
    let server = Server::compressing().await;
    let blobs = [text(1, 100_000), data(2, 100_000), text(3, 50), vec![], text(4, 1_000_000)];
    let requests = blobs.iter().map(|blob| compressed(blob, zstd(blob), 1)).collect();
    assert_eq!(put(&server, requests).await, [0; 5]);
    let digests: Vec<_> = blobs.iter().map(|blob| digest(blob)).collect();
    for acceptable in [vec![], vec![1]] {
        let request =
            reapi::BatchReadBlobsRequest { digests: digests.clone(), acceptable_compressors: acceptable.clone(), ..Default::default() };
        let responses = server.cas().batch_read_blobs(request).await.unwrap().into_inner().responses;
        for (response, blob) in responses.iter().zip(&blobs) {
            assert_eq!(response.status.as_ref().unwrap().code, 0);
            let content = match response.compressor {
                1 => {
                    assert!(has_checksum(&response.data));
                    unzstd(&response.data, blob.len())
                }
                _ => response.data.to_vec(),
            };
            assert!(content == *blob);
        }
        let compressors: Vec<_> = responses.iter().map(|response| response.compressor).collect();
        assert_eq!(compressors, if acceptable.is_empty() { [0; 5] } else { [1, 0, 0, 0, 1] });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_copy_is_stored_of_what_comes_in_both_forms_at_once() {
    for server in [Server::start().await, Server::compressing().await] {
        for (len, slots) in [(50_000, 1), (500_000, 1), (4_000_000, 9)] {
            let content = text(9, len);
            let frame = zstd(&content);
            let digest = digest(&content);
            let before = server.engine.stats();
            let uploads = (0..8).map(|n| {
                let uuid = n.to_string();
                let messages = match n % 2 {
                    0 => all(&zstd_write_name(&uuid, &digest), &frame, 10_000),
                    _ => messages(&write_name(&uuid, &digest), &content, 0, len, 100_000, true),
                };
                write(&server, messages)
            });
            for committed in join_all(uploads).await {
                committed.unwrap();
            }
            let after = server.engine.stats();
            assert_eq!((after.puts - before.puts, after.live_slots - before.live_slots), (1, slots), "{len} bytes");
            assert!(read(&server, &read_name(&digest), 0, 0).await.unwrap() == content);
        }
    }
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_nothing_is_stored() {
    let server = Server::compressing().await;
    for len in [1000, 400_000, 3_000_000] {
        let content = text(1, len);
        let digest = digest(&content);
        let before = server.engine.stats().puts;
        let mut other = content.clone();
        other[len - 1] ^= 1;
        let name = write_name("u", &digest);
        let refused = write(&server, messages(&name, &other, 0, len, 100_000, true)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let refused = write(&server, messages(&name, &content, 0, len - 1, 100_000, true)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(read(&server, &read_name(&digest), 0, 0).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(server.engine.stats().puts, before);
    }
}

/// A part of them would be bytes of another blob: it is an error, the blob is missing from then on, and can be stored again.
#[tokio::test]
async fn frames_that_make_no_sense_cost_their_blob_and_never_a_wrong_byte() {
    let server = Server::compressing().await;
    let key = |content: &[u8]| {
        let hash = Hasher::digest(DigestFunction::Sha256, content).hash().try_into().unwrap();
        Key { space: KeySpace::Content, function: 1, hash }
    };
    let mut gone = Vec::new();
    for (seed, (what, spoiled)) in (0..).zip([
        ("no frame", data(1, 500)),
        ("another length", zstd(&text(1, 99_999))),
        ("more", zstd(&text(1, 200_000))),
        ("half a frame", zstd(&text(1, 100_000))[..5000].to_vec()),
        ("nothing", vec![0; 1]),
    ]) {
        let content = text(100 + seed, 100_000);
        let value = Value::encoded(Codec::Zstd, spoiled.clone().into(), content.len() as u64);
        server.engine.put_values(vec![(key(&content), value)]).await.remove(0).unwrap();
        assert_eq!(read(&server, &read_name(&digest(&content)), 0, 0).await.unwrap_err().code(), Code::NotFound, "{what}");
        gone.push(content);

        // The second of four parts.
        let content = text(200 + seed, 2_000_000);
        let Ok(Begin::Upload(mut upload)) = server.engine.begin_upload(key(&content), content.len() as u64).await else { panic!() };
        let part_bytes = upload.part_bytes().unwrap() as usize;
        for (index, part) in content.chunks(part_bytes).enumerate() {
            let frame = if index == 1 { spoiled.clone() } else { zstd(part) };
            upload.write_encoded(Codec::Zstd, &frame).await.unwrap();
        }
        upload.finish().await.unwrap();
        let name = read_name(&digest(&content));
        let first = read(&server, &name, 0, part_bytes as i64).await.unwrap();
        assert!(first == content[..part_bytes], "{what}: what lies before is right");
        let status = read(&server, &name, 0, 0).await.unwrap_err();
        assert_eq!(status.code(), Code::DataLoss, "{what}: {status}");
        assert_eq!(read(&server, &name, 0, 0).await.unwrap_err().code(), Code::NotFound, "{what}");
        gone.push(content);
    }
    for content in gone {
        upload(&server, &content, 100_000).await.unwrap();
        assert!(read(&server, &read_name(&digest(&content)), 0, 0).await.unwrap() == content);
    }
}
