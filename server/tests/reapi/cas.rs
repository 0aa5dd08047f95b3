//! Capabilities, FindMissingBlobs and batches.

use blockstore_proto::reapi;
use blockstore_server::store::{DigestFunction, Hasher};
use tonic::Code;

use crate::server::{Server, data, digest, update, wire};

#[tokio::test]
async fn announces_only_what_it_does() {
    let server = Server::start().await;
    let request = reapi::GetCapabilitiesRequest { instance_name: "any".into() };
    let capabilities = server.capabilities().get_capabilities(request).await.unwrap().into_inner();
    let version = |v: Option<blockstore_proto::semver::SemVer>| v.map(|v| (v.major, v.minor));
    assert_eq!(version(capabilities.low_api_version), Some((2, 0)));
    assert_eq!(version(capabilities.high_api_version), Some((2, 13)));
    assert_eq!(capabilities.execution_capabilities, None);
    let cache = capabilities.cache_capabilities.unwrap();
    assert_eq!(cache.digest_functions, [1, 2, 3, 5, 6, 8, 9, 10]);
    assert!(cache.action_cache_update_capabilities.unwrap().update_enabled);
    assert!(cache.max_batch_total_size_bytes > 3 << 20 && cache.max_batch_total_size_bytes < 4 << 20);
    assert!(cache.max_cas_blob_size_bytes > 0);
    assert_eq!(cache.symlink_absolute_path_strategy, 2);
    assert!(cache.split_blob_support && cache.splice_blob_support);
    // The values that the API recommends.
    assert_eq!(cache.fast_cdc_2020_params, Some(reapi::FastCdc2020Params { avg_chunk_size_bytes: 512 << 10, seed: 0 }));
    assert_eq!(cache.rep_max_cdc_params, Some(reapi::RepMaxCdcParams { min_chunk_size_bytes: 256 << 10, horizon_size_bytes: 2 << 20 }));
    assert_eq!(cache.supported_compressors, [1]);
    assert_eq!(cache.supported_batch_update_compressors, [1]);
}

async fn missing(server: &Server, digests: Vec<reapi::Digest>) -> Vec<reapi::Digest> {
    let request = reapi::FindMissingBlobsRequest { blob_digests: digests, ..Default::default() };
    server.cas().find_missing_blobs(request).await.unwrap().into_inner().missing_blob_digests
}

#[tokio::test]
async fn find_missing_is_right_both_ways() {
    let server = Server::start().await;
    let stored = server.put(&[b"one", b"two"]).await;
    let absent = digest(b"three");
    let wrong_size = reapi::Digest { size_bytes: 4, ..stored[0].clone() };
    let empty = digest(b"");
    let empty_wrong_size = reapi::Digest { size_bytes: 1, ..empty.clone() };
    let zero_size = reapi::Digest { size_bytes: 0, ..stored[0].clone() };
    let asked = vec![
        stored[0].clone(),
        absent.clone(),
        wrong_size.clone(),
        empty,
        empty_wrong_size.clone(),
        zero_size.clone(),
        absent.clone(),
        stored[1].clone(),
    ];
    assert_eq!(missing(&server, asked).await, [absent.clone(), wrong_size, empty_wrong_size, zero_size, absent]);
    assert_eq!(missing(&server, vec![]).await, []);
}

#[tokio::test]
async fn find_missing_takes_tens_of_thousands_in_one_message() {
    let server = Server::start().await;
    let stored = server.put(&[b"the one"]).await;
    let mut asked: Vec<_> = (0..50_000u32).map(|n| digest(&n.to_le_bytes())).collect();
    asked.insert(30_000, stored[0].clone());
    let found = missing(&server, asked.clone()).await;
    asked.remove(30_000);
    assert!(found == asked);
}

#[tokio::test]
async fn every_function_works() {
    let server = Server::start().await;
    for function in DigestFunction::ALL {
        let content = data(u64::from(function.number()), 5000);
        let digest = wire(&Hasher::digest(function, &content));
        let empty = wire(&Hasher::digest(function, b""));
        let number = i32::from(function.number());
        let find =
            reapi::FindMissingBlobsRequest { blob_digests: vec![digest.clone(), empty], digest_function: number, ..Default::default() };
        let response = server.cas().find_missing_blobs(find.clone()).await.unwrap().into_inner();
        assert_eq!(response.missing_blob_digests, std::slice::from_ref(&digest), "{function}");
        let request = reapi::BatchUpdateBlobsRequest {
            requests: vec![update(digest.clone(), &content)],
            digest_function: number,
            ..Default::default()
        };
        let response = server.cas().batch_update_blobs(request).await.unwrap().into_inner();
        assert_eq!(response.responses[0].status.as_ref().unwrap().code, 0, "{function}");
        let response = server.cas().find_missing_blobs(find).await.unwrap().into_inner();
        assert_eq!(response.missing_blob_digests, [], "{function}");
        let request = reapi::BatchReadBlobsRequest { digests: vec![digest], digest_function: number, ..Default::default() };
        let response = server.cas().batch_read_blobs(request).await.unwrap().into_inner();
        assert_eq!(response.responses[0].data, content, "{function}");
    }
}

async fn read(server: &Server, digests: Vec<reapi::Digest>) -> Vec<(i32, Vec<u8>)> {
    let request = reapi::BatchReadBlobsRequest { digests, ..Default::default() };
    let response = server.cas().batch_read_blobs(request).await.unwrap().into_inner();
    response.responses.into_iter().map(|r| (r.status.unwrap().code, r.data.into())).collect()
}

#[tokio::test]
async fn each_blob_of_a_batch_has_its_own_status() {
    let server = Server::start().await;
    let mut compressed = update(digest(b"compressed"), b"compressed");
    compressed.compressor = 1;
    let requests = vec![
        update(digest(b"good"), b"good"),
        update(digest(b"right hash, wrong size"), b"right hash, wrong"),
        update(digest(b"one"), b"two"),
        update(reapi::Digest::default(), b"no digest"),
        compressed,
        update(digest(b""), b""),
        update(digest(b""), b"not empty"),
        update(digest(b"good"), b"good"),
        reapi::batch_update_blobs_request::Request::default(),
    ];
    let request = reapi::BatchUpdateBlobsRequest { requests, digest_function: 1, ..Default::default() };
    let response = server.cas().batch_update_blobs(request).await.unwrap().into_inner();
    let codes: Vec<_> = response.responses.iter().map(|r| r.status.as_ref().unwrap().code).collect();
    assert_eq!(codes, [0, 3, 3, 3, 3, 0, 3, 0, 3]);

    let asked = vec![digest(b"good"), digest(b"one"), digest(b"compressed"), digest(b""), reapi::Digest::default()];
    let found = read(&server, asked).await;
    let expected = [(0, b"good".to_vec()), (5, vec![]), (5, vec![]), (0, vec![]), (3, vec![])];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_batch_may_be_larger_than_announced_but_its_answer_never_is() {
    let server = Server::start().await;
    let blobs: Vec<_> = (0..9).map(|n| data(n, 1 << 20)).collect();
    let digests = server.put(&blobs.iter().map(Vec::as_slice).collect::<Vec<_>>()).await;
    // The client of this test accepts 4 MiB, as most do.
    let found = read(&server, digests).await;
    let codes: Vec<_> = found.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [0, 0, 0, 8, 8, 8, 8, 8, 8]);
    assert!(found.iter().zip(&blobs).take(3).all(|((_, found), blob)| found == blob));
}

#[tokio::test]
async fn functions_do_not_mix_and_must_be_offered() {
    let server = Server::start().await;
    for (digests, number) in [
        (vec![digest(b"a"), wire(&Hasher::digest(DigestFunction::Sha1, b"a"))], 0),
        (vec![digest(b"a")], 4),
        (vec![digest(b"a")], 7),
        (vec![digest(b"a")], 10),
        (vec![reapi::Digest { hash: "zz".into(), size_bytes: 1 }], 0),
    ] {
        let request = reapi::FindMissingBlobsRequest { blob_digests: digests, digest_function: number, ..Default::default() };
        let status = server.cas().find_missing_blobs(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
}
