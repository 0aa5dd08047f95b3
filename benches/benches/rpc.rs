//! Each RPC without a network: a client's call through the front-end to the store and back, within one thread.
//!
//! What a server spends beside this on a call is the kernel's network path and HTTP/2, which is most of it: about 10 of the 20 µs of a
//! small unary call. The floor of an upload is one pass of SHA-256 and the put; of a batch, that for each blob and the parsing of its
//! message; of FindMissingBlobs 0.11 µs a digest that is there, parsed in place.

mod support;

use blockstore_proto::{
    bytestream::{ReadRequest, WriteRequest, byte_stream_client::ByteStreamClient},
    reapi::{
        ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, Digest, FindMissingBlobsRequest, GetActionResultRequest, OutputFile,
        UpdateActionResultRequest, action_cache_client::ActionCacheClient, batch_update_blobs_request,
        content_addressable_storage_client::ContentAddressableStorageClient,
    },
};
use blockstore_server::{
    front::reapi::{Options, Services},
    store::{DigestFunction, chunked::ChunkedBlobs, completeness::CompleteActionResults, local::LocalStore},
};
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::stream;
use sha2::{Digest as _, Sha256};
use std::{sync::Arc, time::Duration};
use support::{Plan, Store, noise};

const BATCH: usize = 200;
const FIND: usize = 1000;
const SMALL_BYTES: usize = 2300;
const LARGE: [(&str, usize); 2] = [("64 KiB", 64 << 10), ("1 MiB", 1 << 20)];

/// The `n`th blob of that length.
fn blob(n: u64, len: usize) -> (Digest, Bytes) {
    let mut data = noise(len).to_vec();
    data[..8].copy_from_slice(&n.to_le_bytes());
    (Digest { hash: hex::encode(Sha256::digest(&data)), size_bytes: len as i64 }, data.into())
}

fn update(blobs: &[(Digest, Bytes)]) -> BatchUpdateBlobsRequest {
    let requests = blobs.iter().map(|(digest, data)| batch_update_blobs_request::Request {
        digest: Some(digest.clone()),
        data: data.clone(),
        ..Default::default()
    });
    BatchUpdateBlobsRequest { requests: requests.collect(), ..Default::default() }
}

fn rpcs(c: &mut Criterion) {
    let store = Store::new(Plan::of(2 << 30));
    let router = store.runtime.block_on(async {
        let local = Arc::new(LocalStore::new(store.engine.clone(), DigestFunction::ALL.to_vec()));
        let served = Arc::new(CompleteActionResults::new(Arc::new(ChunkedBlobs::new(local))));
        Services::new(served, Options::default()).await.router()
    });
    let cas = ContentAddressableStorageClient::new(router.clone()).max_decoding_message_size(8 << 20);
    let (actions, streams) = (ActionCacheClient::new(router.clone()), ByteStreamClient::new(router));
    let mut next = 0;
    let mut fresh = |count: usize, len: usize| -> Vec<_> {
        next += count as u64;
        (next - count as u64..next).map(|n| blob(n, len)).collect()
    };
    let run = &store.runtime;

    let there = fresh(FIND, SMALL_BYTES);
    for blobs in there.chunks(BATCH) {
        run.block_on(cas.clone().batch_update_blobs(update(blobs))).expect("they are stored");
    }
    let mut group = c.benchmark_group("rpc");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("BatchUpdateBlobs of 200 x 2.3 KB", |b| {
        b.iter_batched(
            || update(&fresh(BATCH, SMALL_BYTES)),
            |request| run.block_on(cas.clone().batch_update_blobs(request)).expect("they are stored"),
            BatchSize::LargeInput,
        );
    });
    let read = BatchReadBlobsRequest { digests: there[..BATCH].iter().map(|(digest, _)| digest.clone()).collect(), ..Default::default() };
    group.bench_function("BatchReadBlobs of 200 x 2.3 KB", |b| {
        b.iter(|| run.block_on(cas.clone().batch_read_blobs(read.clone())).expect("they are there"));
    });
    group.throughput(Throughput::Elements(FIND as u64));
    let absent: Vec<_> = (0..FIND as u64).map(|n| blob(u64::MAX - n, SMALL_BYTES)).collect();
    for (name, blobs) in [("there", &there), ("absent", &absent)] {
        let request =
            FindMissingBlobsRequest { blob_digests: blobs.iter().map(|(digest, _)| digest.clone()).collect(), ..Default::default() };
        let missing = if name == "there" { 0 } else { FIND };
        group.bench_function(format!("FindMissingBlobs of 1,000, {name}"), |b| {
            b.iter(|| {
                let answer = run.block_on(cas.clone().find_missing_blobs(request.clone())).expect("an answer");
                assert_eq!(answer.into_inner().missing_blob_digests.len(), missing);
            });
        });
    }

    group.throughput(Throughput::Elements(1));
    let output = |n: usize| OutputFile { path: format!("out/{n}"), digest: Some(there[n].0.clone()), ..Default::default() };
    let result = ActionResult { output_files: vec![output(0), output(1)], ..Default::default() };
    let mut action = 0;
    group.bench_function("UpdateActionResult", |b| {
        b.iter(|| {
            action += 1;
            let action_digest = Some(Digest { hash: hex::encode(Sha256::digest(u64::to_le_bytes(action))), size_bytes: 140 });
            let request = UpdateActionResultRequest { action_digest, action_result: Some(result.clone()), ..Default::default() };
            run.block_on(actions.clone().update_action_result(request)).expect("it is stored")
        });
    });
    let action_digest = Some(Digest { hash: hex::encode(Sha256::digest(u64::to_le_bytes(1))), size_bytes: 140 });
    let request = GetActionResultRequest { action_digest, ..Default::default() };
    group.bench_function("GetActionResult", |b| {
        b.iter(|| run.block_on(actions.clone().get_action_result(request.clone())).expect("it is there"));
    });

    for (name, len) in LARGE {
        group.throughput(Throughput::Bytes(len as u64));
        let mut upload = 0;
        group.bench_function(format!("ByteStream.Write of {name}"), |b| {
            b.iter_batched(
                || {
                    upload += 1;
                    let (digest, data) = fresh(1, len).remove(0);
                    let resource_name = format!("uploads/00000000-0000-4000-8000-{upload:012}/blobs/{}/{len}", digest.hash);
                    WriteRequest { resource_name, data, finish_write: true, ..Default::default() }
                },
                |request| run.block_on(streams.clone().write(stream::iter([request]))).expect("it is stored"),
                BatchSize::SmallInput,
            );
        });
        let (digest, data) = fresh(1, len).remove(0);
        run.block_on(cas.clone().batch_update_blobs(update(&[(digest.clone(), data)]))).expect("it is stored");
        let request = ReadRequest { resource_name: format!("blobs/{}/{len}", digest.hash), ..Default::default() };
        group.bench_function(format!("ByteStream.Read of {name}"), |b| {
            b.iter(|| {
                run.block_on(async {
                    let mut answers = streams.clone().read(request.clone()).await.expect("it is there").into_inner();
                    let mut read_bytes = 0;
                    while let Some(answer) = answers.message().await.expect("all of it") {
                        read_bytes += answer.data.len();
                    }
                    assert_eq!(read_bytes, len);
                });
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    targets = rpcs
}
criterion_main!(benches);
