//! Blobs in chunks: SplitBlob and SpliceBlob, and their successors GetChunkMapping and RegisterChunkMapping.

use blockstore_proto::reapi;
use blockstore_server::store::{Digest, DigestFunction, Hasher, chunk_list::CHUNKS_MAX};
use futures::StreamExt;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::{
    byte_stream::{messages, read, read_name, upload, write, write_name},
    framing::{frame, post},
    server::{Server, data, digest, update, wire},
};

const SHA256: i32 = 1;
const FAST_CDC: i32 = 1;
const REP_MAX_CDC: i32 = 2;
const REGISTER: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/RegisterChunkMapping";

fn of(function: DigestFunction, content: &[u8]) -> reapi::Digest {
    wire(&Hasher::digest(function, content))
}

async fn missing(server: &Server, function: i32, digests: &[reapi::Digest]) -> Vec<reapi::Digest> {
    let request = reapi::FindMissingBlobsRequest { blob_digests: digests.to_vec(), digest_function: function, ..Default::default() };
    server.cas().find_missing_blobs(request).await.unwrap().into_inner().missing_blob_digests
}

async fn is_there(server: &Server, digest: &reapi::Digest) -> bool {
    missing(server, SHA256, std::slice::from_ref(digest)).await.is_empty()
}

/// Stores blobs under names of this function.
async fn put(server: &Server, function: DigestFunction, blobs: &[&[u8]]) -> Vec<reapi::Digest> {
    let names: Vec<_> = blobs.iter().map(|blob| of(function, blob)).collect();
    let requests = names.iter().zip(blobs).map(|(name, blob)| update(name.clone(), blob)).collect();
    let request = reapi::BatchUpdateBlobsRequest { requests, digest_function: function.number().into(), ..Default::default() };
    let response = server.cas().batch_update_blobs(request).await.unwrap().into_inner();
    assert!(response.responses.iter().all(|r| r.status.as_ref().unwrap().code == 0), "{response:?}");
    names
}

fn splice_request(blob: &reapi::Digest, chunks: &[reapi::Digest]) -> reapi::SpliceBlobRequest {
    reapi::SpliceBlobRequest { blob_digest: Some(blob.clone()), chunk_digests: chunks.to_vec(), ..Default::default() }
}

async fn splice(server: &Server, request: reapi::SpliceBlobRequest) -> Result<reapi::Digest, Status> {
    Ok(server.cas().splice_blob(request).await?.into_inner().blob_digest.unwrap())
}

fn register_request(blob: &reapi::Digest, chunks: &[reapi::Digest]) -> reapi::RegisterChunkMappingRequest {
    let (blob_digest, chunk_digests) = (Some(blob.clone()), chunks.to_vec());
    reapi::RegisterChunkMappingRequest { blob_digest, chunk_digests, digest_function: SHA256, ..Default::default() }
}

async fn register(server: &Server, requests: Vec<reapi::RegisterChunkMappingRequest>) -> Result<reapi::Digest, Status> {
    Ok(server.cas().register_chunk_mapping(tokio_stream::iter(requests)).await?.into_inner().blob_digest.unwrap())
}

fn split_request(blob: &reapi::Digest) -> reapi::SplitBlobRequest {
    reapi::SplitBlobRequest { blob_digest: Some(blob.clone()), ..Default::default() }
}

async fn split(server: &Server, request: reapi::SplitBlobRequest) -> Result<(Vec<reapi::Digest>, i32), Status> {
    let response = server.cas().split_blob(request).await?.into_inner();
    Ok((response.chunk_digests, response.chunking_function))
}

fn mapping_request(blob: &reapi::Digest) -> reapi::GetChunkMappingRequest {
    reapi::GetChunkMappingRequest { blob_digest: Some(blob.clone()), digest_function: SHA256, ..Default::default() }
}

/// Every message of an answer.
async fn mapping_messages(server: &Server, request: reapi::GetChunkMappingRequest) -> Result<Vec<reapi::GetChunkMappingResponse>, Status> {
    let mut stream = server.cas().get_chunk_mapping(request).await?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

async fn mapping(server: &Server, request: reapi::GetChunkMappingRequest) -> Result<(Vec<reapi::Digest>, i32), Status> {
    let messages = mapping_messages(server, request).await?;
    let chunking = messages.first().expect("at least one message").chunking_function;
    Ok((messages.into_iter().flat_map(|message| message.chunk_digests).collect(), chunking))
}

#[tokio::test]
async fn a_spliced_blob_is_a_blob_in_every_function_and_both_generations() {
    let server = Server::start().await;
    for function in DigestFunction::ALL {
        let number = i32::from(function.number());
        for streamed in [false, true] {
            let seed = u64::from(function.number()) * 2 + u64::from(streamed);
            let parts = [data(seed, 3000), data(seed + 100, 70_000), data(seed + 200, 1)];
            let names = put(&server, function, &parts.each_ref().map(Vec::as_slice)).await;
            // One of them twice.
            let (content, chunks) =
                ([&parts[0], &parts[1], &parts[0], &parts[2]].map(Vec::clone).concat(), [0, 1, 0, 2].map(|n| names[n].clone()));
            let blob = of(function, &content);
            assert_eq!(missing(&server, number, std::slice::from_ref(&blob)).await, std::slice::from_ref(&blob), "{function}");
            let spliced = match streamed {
                false => {
                    splice(
                        &server,
                        reapi::SpliceBlobRequest {
                            digest_function: number,
                            chunking_function: REP_MAX_CDC,
                            ..splice_request(&blob, &chunks)
                        },
                    )
                    .await
                }
                true => {
                    let request = register_request(&blob, &chunks);
                    register(
                        &server,
                        vec![reapi::RegisterChunkMappingRequest { digest_function: number, chunking_function: REP_MAX_CDC, ..request }],
                    )
                    .await
                }
            };
            assert_eq!(spliced.unwrap(), blob, "{function}");
            assert_eq!(missing(&server, number, std::slice::from_ref(&blob)).await, [], "{function}");

            // Read as any other: whole, in part, compressed, in a batch.
            let segment = if function.is_named() { format!("{}/", function.name()) } else { String::new() };
            let name = format!("blobs/{segment}{}/{}", blob.hash, blob.size_bytes);
            assert!(read(&server, &name, 0, 0).await.unwrap() == content, "{function}");
            assert!(read(&server, &name, 2999, 2).await.unwrap() == content[2999..3001], "{function}");
            let frame = read(&server, &format!("compressed-{}", name.replace("blobs/", "blobs/zstd/")), 2000, 0).await.unwrap();
            assert!(::zstd::bulk::decompress(&frame, content.len()).unwrap() == content[2000..], "{function}");
            let request = reapi::BatchReadBlobsRequest {
                digests: vec![blob.clone(), names[0].clone()],
                digest_function: number,
                ..Default::default()
            };
            let batch = server.cas().batch_read_blobs(request).await.unwrap().into_inner().responses;
            assert!(batch[0].data == content && batch[1].data == parts[0], "{function}");

            // Its chunks are those that it was made of.
            let request = reapi::GetChunkMappingRequest { digest_function: number, chunking_function: FAST_CDC, ..mapping_request(&blob) };
            assert_eq!(mapping(&server, request).await.unwrap(), (chunks.to_vec(), REP_MAX_CDC), "{function}");
            let request = reapi::SplitBlobRequest { digest_function: number, ..split_request(&blob) };
            assert_eq!(split(&server, request).await.unwrap(), (chunks.to_vec(), REP_MAX_CDC), "{function}");
        }
    }
}

#[tokio::test]
async fn ranges_cross_the_borders_of_chunks() {
    let server = Server::start().await;
    let parts = [data(1, 1000), data(2, 3_000_000), data(3, 1), data(4, 2_000_000)];
    let mut chunks = Vec::new();
    for part in &parts {
        upload(&server, part, 1 << 20).await.unwrap();
        chunks.push(digest(part));
    }
    let content = parts.concat();
    let blob = digest(&content);
    splice(&server, splice_request(&blob, &chunks)).await.unwrap();
    let name = read_name(&blob);
    let end = content.len() as i64;
    for (offset, limit) in
        [(0, 0), (0, 1000), (999, 2), (1000, 3_000_000), (3_000_999, 3), (3_001_000, 1), (5, 3_001_500), (end - 1, 0), (end - 1, 5)]
    {
        let upto = if limit == 0 { end } else { end.min(offset + limit) };
        assert!(read(&server, &name, offset, limit).await.unwrap() == content[offset as usize..upto as usize], "{offset} {limit}");
    }
    assert_eq!(read(&server, &name, end, 0).await.unwrap(), b"");
    assert_eq!(read(&server, &name, end + 1, 0).await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(read(&server, &name, -1, 0).await.unwrap_err().code(), Code::OutOfRange);
    // A right hash with a wrong size is missing.
    let other = reapi::Digest { size_bytes: end + 1, ..blob };
    assert_eq!(read(&server, &read_name(&other), 0, 0).await.unwrap_err().code(), Code::NotFound);
    assert!(!is_there(&server, &other).await);
    assert_eq!(mapping(&server, mapping_request(&other)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn it_need_not_be_uploaded_and_is_found_by_who_names_it() {
    let server = Server::start().await;
    let directory = reapi::Directory {
        files: vec![reapi::FileNode { name: "f".into(), digest: Some(digest(b"")), ..Default::default() }],
        ..Default::default()
    };
    let content = directory.encode_to_vec();
    let (head, tail) = content.split_at(10);
    let chunks = server.put(&[head, tail]).await;
    let blob = digest(&content);
    register(&server, vec![register_request(&blob, &chunks)]).await.unwrap();

    // Answered at once in a stream; in a batch only right bytes are.
    let name = write_name("u", &blob);
    assert_eq!(write(&server, messages(&name, &content, 0, 5, 5, false)).await.unwrap(), content.len() as i64);
    assert_eq!(server.put(&[&content]).await, std::slice::from_ref(&blob));
    let requests = vec![update(blob.clone(), &data(1, content.len())), update(blob.clone(), &content), update(digest(b"new"), b"new")];
    let request = reapi::BatchUpdateBlobsRequest { requests, ..Default::default() };
    let batch = server.cas().batch_update_blobs(request).await.unwrap().into_inner().responses;
    assert_eq!(batch.iter().map(|r| r.status.as_ref().unwrap().code).collect::<Vec<_>>(), [3, 0, 0]);
    assert!(is_there(&server, &digest(b"new")).await);

    let request = reapi::GetTreeRequest { root_digest: Some(blob.clone()), ..Default::default() };
    let mut pages = server.cas().get_tree(request).await.unwrap().into_inner();
    assert_eq!(pages.message().await.unwrap().unwrap().directories, [directory]);

    let output = reapi::OutputFile { path: "f".into(), digest: Some(blob), ..Default::default() };
    let result = reapi::ActionResult { output_files: vec![output], ..Default::default() };
    let action = Some(digest(b"action"));
    let update =
        reapi::UpdateActionResultRequest { action_digest: action.clone(), action_result: Some(result.clone()), ..Default::default() };
    server.actions().update_action_result(update).await.unwrap();
    let get = reapi::GetActionResultRequest { action_digest: action, ..Default::default() };
    assert_eq!(server.actions().get_action_result(get).await.unwrap().into_inner().output_files, result.output_files);
}

/// The code of both generations, which has to be the same, and that nothing came of it.
async fn refused(server: &Server, blob: &reapi::Digest, chunks: &[reapi::Digest]) -> Code {
    let unary = splice(server, splice_request(blob, chunks)).await.unwrap_err();
    let streamed = register(server, vec![register_request(blob, chunks)]).await.unwrap_err();
    assert_eq!(unary.code(), streamed.code(), "{unary} {streamed}");
    assert!(!is_there(server, blob).await);
    assert_eq!(mapping(server, mapping_request(blob)).await.unwrap_err().code(), Code::NotFound);
    unary.code()
}

#[tokio::test]
async fn what_is_not_the_blob_is_refused_and_nothing_comes_of_it() {
    let server = Server::start().await;
    let stored = server.put(&[b"one", b"two"]).await;
    let [one, two] = [stored[0].clone(), stored[1].clone()];
    let absent = digest(b"three");
    let blob = digest(b"onetwo");
    assert_eq!(refused(&server, &blob, &[one.clone(), absent.clone()]).await, Code::NotFound);
    assert_eq!(refused(&server, &digest(b"onethree"), &[one.clone(), absent.clone()]).await, Code::NotFound);
    assert_eq!(refused(&server, &blob, &[two.clone(), one.clone()]).await, Code::InvalidArgument);
    assert_eq!(refused(&server, &blob, std::slice::from_ref(&one)).await, Code::InvalidArgument);
    assert_eq!(refused(&server, &blob, &[]).await, Code::InvalidArgument);
    // Chunks that no blob is as long as, missing or not.
    let endless = reapi::Digest { size_bytes: i64::MAX - 2, ..absent.clone() };
    assert_eq!(refused(&server, &blob, &[endless.clone(), endless]).await, Code::InvalidArgument);
    // A chunk with a wrong size is another blob, which is missing.
    assert_eq!(refused(&server, &blob, &[one.clone(), reapi::Digest { size_bytes: 4, ..two.clone() }]).await, Code::NotFound);
    // Larger than any blob may be.
    let huge = reapi::Digest { size_bytes: 1 << 40, ..blob.clone() };
    assert_eq!(refused(&server, &huge, &[one.clone(), two.clone()]).await, Code::InvalidArgument);
    // The blob as its own chunk is no way to make it.
    assert_eq!(refused(&server, &blob, std::slice::from_ref(&blob)).await, Code::NotFound);

    // What is no digest of the function is an error of the client.
    let sha1 = of(DigestFunction::Sha1, b"one");
    for chunk in [reapi::Digest::default(), sha1.clone(), reapi::Digest { size_bytes: -1, ..one.clone() }] {
        assert_eq!(refused(&server, &blob, &[chunk]).await, Code::InvalidArgument);
    }
    for request in [
        reapi::SpliceBlobRequest { blob_digest: None, ..splice_request(&blob, &[one.clone(), two.clone()]) },
        reapi::SpliceBlobRequest { digest_function: 2, ..splice_request(&blob, &[one.clone(), two.clone()]) },
        reapi::SpliceBlobRequest { digest_function: 7, ..splice_request(&blob, &[one.clone(), two.clone()]) },
        reapi::SpliceBlobRequest { instance_name: "x".repeat(2000), ..splice_request(&blob, &[one.clone(), two.clone()]) },
    ] {
        assert_eq!(splice(&server, request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    // The function that is set counts: the hash of BLAKE3 is another.
    let request = reapi::SpliceBlobRequest { digest_function: 9, ..splice_request(&blob, &[one.clone(), two.clone()]) };
    assert_eq!(splice(&server, request).await.unwrap_err().code(), Code::NotFound);
    assert!(!is_there(&server, &blob).await);
    // And after all that it can still be made, also by an unset function, told by the length.
    assert_eq!(splice(&server, splice_request(&blob, &[one, two])).await.unwrap(), blob);
    assert!(is_there(&server, &blob).await);
}

#[tokio::test]
async fn the_newer_methods_want_a_digest_function() {
    let server = Server::start().await;
    let stored = server.put(&[b"one", b"two"]).await;
    let blob = digest(b"onetwo");
    for function in [0, 4, 7, 99] {
        let request = reapi::RegisterChunkMappingRequest { digest_function: function, ..register_request(&blob, &stored) };
        assert_eq!(register(&server, vec![request]).await.unwrap_err().code(), Code::InvalidArgument, "{function}");
        let request = reapi::GetChunkMappingRequest { digest_function: function, ..mapping_request(&stored[0]) };
        assert_eq!(mapping(&server, request).await.unwrap_err().code(), Code::InvalidArgument, "{function}");
    }
    // The older ones do without.
    assert_eq!(split(&server, split_request(&stored[0])).await.unwrap().0, stored[..1]);
    let request = reapi::SplitBlobRequest { digest_function: 7, ..split_request(&stored[0]) };
    assert_eq!(split(&server, request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_blob_that_is_there_is_ok_for_the_older_and_exists_for_the_newer() {
    let server = Server::start().await;
    let stored = server.put(&[b"one", b"two", b"whole"]).await;
    let spliced = digest(b"onetwo");
    splice(&server, splice_request(&spliced, &stored[..2])).await.unwrap();
    // The empty blob is always there.
    for blob in [&spliced, &stored[2], &digest(b"")] {
        // Whatever it is said to be made of, since nothing is done.
        for chunks in [&stored[..2], &[], &[digest(b"absent")]] {
            assert_eq!(splice(&server, splice_request(blob, chunks)).await.unwrap(), *blob);
            assert_eq!(register(&server, vec![register_request(blob, chunks)]).await.unwrap_err().code(), Code::AlreadyExists);
        }
    }
    assert_eq!(mapping(&server, mapping_request(&spliced)).await.unwrap().0, stored[..2]);
    // It is told at once: nobody need send the rest.
    let (requests, sent) = mpsc::channel(1);
    requests.send(register_request(&spliced, &[])).await.unwrap();
    let status = server.cas().register_chunk_mapping(ReceiverStream::new(sent)).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    drop(requests);
    // No bytes under another hash are no empty blob.
    let wrong = reapi::Digest { size_bytes: 0, ..digest(b"x") };
    assert_eq!(refused(&server, &wrong, &[]).await, Code::InvalidArgument);
    assert_eq!(refused(&server, &wrong, &[digest(b"")]).await, Code::InvalidArgument);
}

#[tokio::test]
async fn the_first_message_counts_for_all_but_the_chunks() {
    let server = Server::start().await;
    let stored = server.put(&[b"one", b"two", b"three"]).await;
    let [one, two, three] = [0, 1, 2].map(|n| stored[n].clone());
    let blob = digest(b"onetwothree");
    let empty = reapi::RegisterChunkMappingRequest::default();
    let requests = vec![
        reapi::RegisterChunkMappingRequest { chunking_function: FAST_CDC, ..register_request(&blob, &[]) },
        reapi::RegisterChunkMappingRequest { chunk_digests: vec![one.clone()], ..empty.clone() },
        empty.clone(),
        // Everything else in here is ignored, whatever it is.
        reapi::RegisterChunkMappingRequest {
            instance_name: "x".repeat(2000),
            blob_digest: Some(reapi::Digest { hash: "no hash".into(), size_bytes: -1 }),
            digest_function: 99,
            chunking_function: REP_MAX_CDC,
            chunk_digests: vec![two.clone(), three.clone()],
        },
        empty.clone(),
    ];
    assert_eq!(register(&server, requests).await.unwrap(), blob);
    assert_eq!(mapping(&server, mapping_request(&blob)).await.unwrap(), (vec![one.clone(), two.clone(), three], FAST_CDC));
    // A stream without a message, and one whose first has no blob.
    assert_eq!(register(&server, vec![]).await.unwrap_err().code(), Code::InvalidArgument);
    let late = vec![
        reapi::RegisterChunkMappingRequest { blob_digest: None, ..register_request(&blob, &[]) },
        register_request(&digest(b"onetwo"), &[one, two]),
    ];
    assert_eq!(register(&server, late).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(!is_there(&server, &digest(b"onetwo")).await);
}

#[tokio::test]
async fn a_stream_that_is_cut_registers_nothing() {
    let server = Server::start().await;
    let stored = server.put(&[b"one", b"two"]).await;
    let blob = digest(b"onetwo");
    let all = register_request(&blob, &stored);
    // Everything was sent, and then half of another message.
    let mut body = frame(&all.encode_to_vec());
    body.extend([0, 0]);
    assert_eq!(post(&server, REGISTER, body).await.0, Code::Cancelled);
    assert!(!is_there(&server, &blob).await);
    // Everything was sent, and then the call was given up.
    for _ in 0..20 {
        let (requests, sent) = mpsc::channel(2);
        requests.send(all.clone()).await.unwrap();
        let mut cas = server.cas();
        let call = tokio::spawn(async move { cas.register_chunk_mapping(ReceiverStream::new(sent)).await });
        requests.reserve_many(2).await.unwrap();
        assert!(!is_there(&server, &blob).await);
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        for _ in 0..20 {
            assert!(!is_there(&server, &blob).await);
        }
    }
    // The close is what commits.
    assert_eq!(register(&server, vec![all]).await.unwrap(), blob);
    assert!(is_there(&server, &blob).await);
}

#[tokio::test]
async fn a_blob_that_is_there_whole_is_cut_and_the_chunks_are_blobs() {
    let server = Server::start().await;
    for (seed, wish, chunking, least, most) in [
        (1, 0, FAST_CDC, 128 << 10, 2 << 20),
        (2, FAST_CDC, FAST_CDC, 128 << 10, 2 << 20),
        (3, REP_MAX_CDC, REP_MAX_CDC, 256 << 10, (512 << 10) - 1),
        // A wish that is not understood is none.
        (4, 77, FAST_CDC, 128 << 10, 2 << 20),
        (5, -1, FAST_CDC, 128 << 10, 2 << 20),
    ] {
        let content = data(seed, 9_000_000);
        upload(&server, &content, 1 << 20).await.unwrap();
        let blob = digest(&content);
        let request = reapi::GetChunkMappingRequest { chunking_function: wish, ..mapping_request(&blob) };
        let (chunks, by) = mapping(&server, request).await.unwrap();
        assert_eq!(by, chunking);
        assert_eq!(missing(&server, SHA256, &chunks).await, []);
        let mut at = 0;
        for (n, chunk) in chunks.iter().enumerate() {
            let len = chunk.size_bytes as usize;
            assert!(len <= most && (len >= least || n == chunks.len() - 1), "{len}");
            let bytes = read(&server, &read_name(chunk), 0, 0).await.unwrap();
            assert!(bytes == content[at..at + len]);
            at += len;
        }
        assert_eq!(at, content.len());
        assert!(chunks.len() > 3);
        // It stays so, whoever asks for what.
        let request = reapi::SplitBlobRequest { chunking_function: 3 - by, ..split_request(&blob) };
        assert_eq!(split(&server, request).await.unwrap(), (chunks, by));
    }
    // What two blobs have in common is in common chunks, wherever it lies.
    let shared = data(6, 9_000_000);
    let other = [data(7, 1_234_567), shared.clone()].concat();
    upload(&server, &shared, 1 << 20).await.unwrap();
    upload(&server, &other, 1 << 20).await.unwrap();
    let (one, _) = mapping(&server, mapping_request(&digest(&shared))).await.unwrap();
    let (two, _) = mapping(&server, mapping_request(&digest(&other))).await.unwrap();
    let common: i64 = two.iter().filter(|chunk| one.contains(chunk)).map(|chunk| chunk.size_bytes).sum();
    assert!(common > 4_000_000, "{common} bytes in common");
}

#[tokio::test]
async fn small_blobs_are_one_chunk_and_missing_ones_none() {
    let server = Server::start().await;
    for (content, wish, count) in [
        (data(1, 1), FAST_CDC, 1),
        (data(2, (2 << 20) - 1), FAST_CDC, 1),
        (data(3, (512 << 10) - 1), REP_MAX_CDC, 1),
        (data(4, 512 << 10), REP_MAX_CDC, 2),
        (vec![], FAST_CDC, 0),
        (vec![], REP_MAX_CDC, 0),
    ] {
        upload(&server, &content, 1 << 20).await.unwrap();
        let blob = digest(&content);
        let request = reapi::GetChunkMappingRequest { chunking_function: wish, ..mapping_request(&blob) };
        let messages = mapping_messages(&server, request).await.unwrap();
        assert_eq!(
            (messages.len(), messages[0].chunk_digests.len(), messages[0].chunking_function),
            (1, count, wish),
            "{} bytes",
            content.len()
        );
        if count == 1 {
            assert_eq!(messages[0].chunk_digests, [blob]);
        }
    }
    let absent = digest(b"absent");
    assert_eq!(split(&server, split_request(&absent)).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(mapping(&server, mapping_request(&absent)).await.unwrap_err().code(), Code::NotFound);
    for blob_digest in [None, Some(reapi::Digest::default())] {
        let request = reapi::SplitBlobRequest { blob_digest: blob_digest.clone(), digest_function: SHA256, ..Default::default() };
        assert_eq!(split(&server, request).await.unwrap_err().code(), Code::InvalidArgument);
        let request = reapi::GetChunkMappingRequest { blob_digest, digest_function: SHA256, ..Default::default() };
        assert_eq!(mapping(&server, request).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_list_beyond_the_message_limit_is_spread_over_messages() {
    let server = Server::start().await;
    let parts = [data(1, 10), data(2, 10)];
    let stored = server.put(&[&parts[0], &parts[1]]).await;
    let order: Vec<usize> = (0..60_000).map(|n: usize| (n * n / 3) % 2).collect();
    let chunks: Vec<_> = order.iter().map(|n| stored[*n].clone()).collect();
    let content: Vec<u8> = order.iter().flat_map(|n| parts[*n].clone()).collect();
    let blob = digest(&content);
    // The client of this test takes messages of up to 4 MiB, as most do.
    let sent: Vec<_> = [register_request(&blob, &[])]
        .into_iter()
        .chain(chunks.chunks(7000).map(|some| reapi::RegisterChunkMappingRequest { chunk_digests: some.to_vec(), ..Default::default() }))
        .collect();
    assert_eq!(register(&server, sent).await.unwrap(), blob);
    assert!(read(&server, &read_name(&blob), 0, 0).await.unwrap() == content);

    let status = split(&server, split_request(&blob)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("GetChunkMapping"), "{status}");
    let request = reapi::GetChunkMappingRequest { chunking_function: FAST_CDC, ..mapping_request(&blob) };
    let messages = mapping_messages(&server, request).await.unwrap();
    assert!(messages.len() > 1);
    assert!(messages.iter().all(|message| message.encoded_len() < 2 << 20 && message.chunking_function == 0));
    assert!(messages.into_iter().flat_map(|message| message.chunk_digests).eq(chunks));
}

#[tokio::test]
async fn a_list_without_end_is_refused() {
    let server = Server::start().await;
    let stored = server.put(&[b"x"]).await.remove(0);
    let blob = Digest::new(DigestFunction::Sha256, &[7; 32], (CHUNKS_MAX + 1) as u64).unwrap();
    let first = register_request(&wire(&blob), &[]);
    let more = reapi::RegisterChunkMappingRequest { chunk_digests: vec![stored; 50_000], ..Default::default() };
    // It never ends, so it is refused before its end.
    let requests = futures::stream::iter([first]).chain(futures::stream::repeat(more));
    let status = server.cas().register_chunk_mapping(requests).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains(&CHUNKS_MAX.to_string()), "{status}");
}

#[tokio::test]
async fn a_spliced_blob_goes_with_its_chunks_and_comes_back_with_them() {
    let server = Server::start().await;
    let parts = [data(1, 100_000), data(2, 200_000)];
    let blob = digest(&parts.concat());
    let chunks = server.put(&[&parts[0], &parts[1]]).await;
    register(&server, vec![register_request(&blob, &chunks)]).await.unwrap();
    // More than the store holds, none of which anybody wants.
    for seed in 0..80 {
        upload(&server, &data(1000 + seed, 4_000_000), 4_000_000).await.unwrap();
    }
    assert!(!is_there(&server, &chunks[0]).await, "the store is not full yet");
    assert!(!is_there(&server, &blob).await);
    assert_eq!(mapping(&server, mapping_request(&blob)).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(read(&server, &read_name(&blob), 0, 0).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(splice(&server, splice_request(&blob, &chunks)).await.unwrap_err().code(), Code::NotFound);
    server.put(&[&parts[0], &parts[1]]).await;
    assert_eq!(splice(&server, splice_request(&blob, &chunks)).await.unwrap(), blob);
    assert!(read(&server, &read_name(&blob), 0, 0).await.unwrap() == parts.concat());
}

#[tokio::test]
async fn asking_for_a_spliced_blob_retains_its_chunks() {
    let server = Server::start().await;
    let parts = [data(1, 100_000), data(2, 200_000)];
    let blob = digest(&parts.concat());
    let chunks = server.put(&[&parts[0], &parts[1]]).await;
    register(&server, vec![register_request(&blob, &chunks)]).await.unwrap();
    // Several times what the store holds; every 24 MB somebody asks, each time in another way.
    for seed in 0..160 {
        upload(&server, &data(1000 + seed, 4_000_000), 4_000_000).await.unwrap();
        match seed % 24 {
            5 => assert!(is_there(&server, &blob).await, "{seed}"),
            11 => assert_eq!(mapping(&server, mapping_request(&blob)).await.unwrap().0, chunks, "{seed}"),
            17 => assert_eq!(splice(&server, splice_request(&blob, &chunks)).await.unwrap(), blob, "{seed}"),
            23 => assert!(!read(&server, &read_name(&blob), 0, 1).await.unwrap().is_empty(), "{seed}"),
            _ => {}
        }
    }
    assert!(!is_there(&server, &digest(&data(1000, 4_000_000))).await, "the store is not full yet");
    assert!(read(&server, &read_name(&blob), 0, 0).await.unwrap() == parts.concat());
}
