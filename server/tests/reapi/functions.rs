//! Digest functions: each of them everywhere, and those with hashes of one length apart.

use blockstore_proto::reapi;
use blockstore_server::{
    front::reapi::Options,
    instances::InstanceRules,
    store::{Digest, DigestFunction, Hasher},
};
use std::sync::Arc;
use tonic::Code;

use crate::{
    byte_stream::{messages, read, status, write},
    server::{Server, data, digest, update, wire},
};

/// `function/hash/size`, without the function where the specification has it left out.
fn segments(digest: &Digest) -> String {
    let function = match digest.function {
        DigestFunction::Sha256Tree => "sha256tree/",
        DigestFunction::Blake3 => "blake3/",
        DigestFunction::GitSha1 => "gitsha1/",
        _ => "",
    };
    format!("{function}{}/{}", digest.hash_hex(), digest.size_bytes)
}

fn number(function: DigestFunction) -> i32 {
    i32::from(function.number())
}

async fn is_missing(server: &Server, digest: &Digest, function: i32) -> bool {
    let request = reapi::FindMissingBlobsRequest { blob_digests: vec![wire(digest)], digest_function: function, ..Default::default() };
    let missing = server.cas().find_missing_blobs(request).await.unwrap().into_inner().missing_blob_digests;
    assert!(missing.is_empty() || missing == [wire(digest)]);
    !missing.is_empty()
}

#[tokio::test]
async fn streams_of_every_function() {
    let server = Server::start().await;
    for function in DigestFunction::ALL {
        // Gathered in memory, and streamed to the disk.
        for len in [3000, 3_000_001] {
            let content = data(u64::from(function.number()), len);
            let digest = Hasher::digest(function, &content);
            let name = format!("uploads/u/blobs/{}", segments(&digest));
            let mut wrong = content.clone();
            wrong[len - 1] ^= 1;
            let refused = write(&server, messages(&name, &wrong, 0, len, 100_000, true)).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{function}");
            assert_eq!(status(&server, &name).await, (0, false), "{function}");
            assert!(is_missing(&server, &digest, number(function)).await, "{function}");
            // In two streams, so that the hash goes on as well.
            write(&server, messages(&name, &content, 0, len / 2, 100_000, false)).await.unwrap();
            let committed = write(&server, messages(&name, &content, len / 2, len, 100_000, true)).await.unwrap();
            assert_eq!(committed, len as i64, "{function}");
            assert!(read(&server, &format!("blobs/{}", segments(&digest)), 0, 0).await.unwrap() == content, "{function}");
            let frame = read(&server, &format!("compressed-blobs/zstd/{}", segments(&digest)), 0, 0).await.unwrap();
            assert!(::zstd::bulk::decompress(&frame, len).unwrap() == content, "{function}");
            assert!(!is_missing(&server, &digest, number(function)).await, "{function}");
        }
    }
}

#[tokio::test]
async fn functions_with_hashes_of_one_length_are_apart() {
    let server = Server::start().await;
    let content = data(1, 2000);
    let groups = [
        vec![DigestFunction::Sha256, DigestFunction::Sha256Tree, DigestFunction::Blake3],
        vec![DigestFunction::Sha1, DigestFunction::GitSha1],
    ];
    for group in groups {
        for function in &group {
            let digest = Hasher::digest(*function, &content);
            let name = format!("uploads/u/blobs/{}", segments(&digest));
            write(&server, messages(&name, &content, 0, 2000, 2000, true)).await.unwrap();
            for other in &group {
                let claimed = Digest::new(*other, digest.hash(), 2000).unwrap();
                assert_eq!(is_missing(&server, &claimed, number(*other)).await, other != function, "{function} as {other}");
            }
            // Unset, a hash is taken for one of the first function of its length.
            assert_eq!(is_missing(&server, &digest, 0).await, *function != group[0], "{function}");
        }
    }
    // Up to 1 KiB a tree's hash is that of plain SHA-256; the blobs are apart all the same.
    let small = data(2, 1000);
    let [plain, tree] = [DigestFunction::Sha256, DigestFunction::Sha256Tree].map(|function| Hasher::digest(function, &small));
    assert_eq!(plain.hash(), tree.hash());
    server.put(&[&small]).await;
    assert!(!is_missing(&server, &plain, 1).await);
    assert!(is_missing(&server, &tree, 8).await);
}

#[tokio::test]
async fn action_results_and_trees_of_every_function() {
    use prost::Message;
    let server = Server::start().await;
    for function in DigestFunction::ALL {
        let put = async |content: &[u8]| {
            let digest = Hasher::digest(function, content);
            let name = format!("uploads/u/blobs/{}", segments(&digest));
            write(&server, messages(&name, content, 0, content.len(), 1 << 20, true)).await.unwrap();
            wire(&digest)
        };
        let absent = wire(&Hasher::digest(function, b"absent"));
        let file = |digest: &reapi::Digest| reapi::FileNode { name: "f".into(), digest: Some(digest.clone()), ..Default::default() };
        let present = put(&data(u64::from(function.number()), 1500)).await;
        for (named, hit) in [(&present, true), (&absent, false)] {
            let below = reapi::Directory { files: vec![file(named)], ..Default::default() };
            let child = put(&below.encode_to_vec()).await;
            let node = reapi::DirectoryNode { name: "d".into(), digest: Some(child) };
            let root = reapi::Directory { directories: vec![node], ..Default::default() };
            let root_digest = put(&root.encode_to_vec()).await;
            let request =
                reapi::GetTreeRequest { root_digest: Some(root_digest.clone()), digest_function: number(function), ..Default::default() };
            let mut pages = server.cas().get_tree(request).await.unwrap().into_inner();
            let page = pages.message().await.unwrap().unwrap();
            assert_eq!(page.directories, [root, below], "{function}");

            let action = wire(&Hasher::digest(function, format!("action {hit}").as_bytes()));
            let directory = reapi::OutputDirectory { path: "d".into(), root_directory_digest: Some(root_digest), ..Default::default() };
            let result = reapi::ActionResult { output_directories: vec![directory], ..Default::default() };
            let update = reapi::UpdateActionResultRequest {
                action_digest: Some(action.clone()),
                action_result: Some(result),
                digest_function: number(function),
                ..Default::default()
            };
            server.actions().update_action_result(update).await.unwrap();
            let get =
                reapi::GetActionResultRequest { action_digest: Some(action), digest_function: number(function), ..Default::default() };
            let code = server.actions().get_action_result(get).await.map(drop).map_err(|status| status.code());
            assert_eq!(code, if hit { Ok(()) } else { Err(Code::NotFound) }, "{function}");
        }
    }
}

/// What `git hash-object` and the API's description say of these bytes.
#[tokio::test]
async fn git_names_its_blobs_by_size_and_content() {
    let server = Server::start().await;
    let name = "uploads/u/blobs/gitsha1/ce013625030ba8dba906f756967f9e9ca394464a/6";
    assert_eq!(write(&server, messages(name, b"hello\n", 0, 6, 3, true)).await.unwrap(), 6);
    assert_eq!(read(&server, "blobs/gitsha1/ce013625030ba8dba906f756967f9e9ca394464a/6", 0, 0).await.unwrap(), b"hello\n");
    let plain = Hasher::digest(DigestFunction::Sha1, b"hello\n");
    assert_eq!(read(&server, &format!("blobs/{}", segments(&plain)), 0, 0).await.unwrap_err().code(), Code::NotFound);
    // The empty blob is there under Git's name for it.
    let empty = Digest::parse(DigestFunction::GitSha1, b"e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", 0).unwrap();
    assert!(!is_missing(&server, &empty, 10).await);
    assert!(is_missing(&server, &Digest::new(DigestFunction::Sha1, empty.hash(), 0).unwrap(), 2).await);
}

#[tokio::test]
async fn find_missing_answers_duplicates_as_often_as_they_were_asked() {
    let server = Server::start().await;
    let stored = server.put(&[b"the one"]).await.remove(0);
    let asked: Vec<_> = (0..30_000u32)
        .map(|n| match n % 3 {
            0 => stored.clone(),
            _ => digest(&(n / 6).to_le_bytes()),
        })
        .collect();
    let request = reapi::FindMissingBlobsRequest { blob_digests: asked.clone(), ..Default::default() };
    let missing = server.cas().find_missing_blobs(request).await.unwrap().into_inner().missing_blob_digests;
    let expected: Vec<_> = asked.into_iter().filter(|digest| *digest != stored).collect();
    assert_eq!(missing.len(), 20_000);
    assert!(missing == expected);
}

/// Buck2 with BLAKE3 may not say so, and speaks to an instance of its own.
#[tokio::test]
async fn an_instance_may_have_a_function_for_hashes_whose_length_leaves_that_open() {
    let mut instances = InstanceRules::default();
    instances.default_functions.add(Some("buck"), DigestFunction::Blake3);
    instances.default_functions.add(Some("buck/old"), DigestFunction::Sha256);
    instances.default_functions.add(None, DigestFunction::GitSha1);
    let server = Server::with(Options { instances: Arc::new(instances), ..Options::default() }).await;
    for (at, (instance, function)) in (0..).zip([
        ("buck", DigestFunction::Blake3),
        ("buck/new", DigestFunction::Blake3),
        ("buck/old", DigestFunction::Sha256),
        ("", DigestFunction::Sha256),
        ("buck", DigestFunction::GitSha1),
        ("x", DigestFunction::GitSha1),
        ("buck", DigestFunction::Sha384),
    ]) {
        let [batched, streamed] = [1, 2].map(|n| data(100 * at + n, 5000));
        let [first, second] = [&batched, &streamed].map(|content| Hasher::digest(function, content));
        let request = reapi::BatchUpdateBlobsRequest {
            instance_name: instance.into(),
            requests: vec![update(wire(&first), &batched)],
            ..Default::default()
        };
        let response = server.cas().batch_update_blobs(request).await.unwrap().into_inner();
        assert_eq!(response.responses[0].status.as_ref().unwrap().code, 0, "{instance} {function}");
        let slash = if instance.is_empty() { "" } else { "/" };
        let blob = format!("blobs/{}/{}", second.hash_hex(), second.size_bytes);
        let name = format!("{instance}{slash}uploads/u/{blob}");
        write(&server, messages(&name, &streamed, 0, 5000, 1000, true)).await.unwrap();
        assert_eq!(status(&server, &name).await, (5000, true));
        assert!(read(&server, &format!("{instance}{slash}{blob}"), 0, 0).await.unwrap() == streamed);
        for digest in [&first, &second] {
            assert!(!is_missing(&server, digest, number(function)).await, "{instance} {function}");
            let request =
                reapi::FindMissingBlobsRequest { instance_name: instance.into(), blob_digests: vec![wire(digest)], digest_function: 0 };
            assert_eq!(server.cas().find_missing_blobs(request).await.unwrap().into_inner().missing_blob_digests, []);
        }
        let request = reapi::BatchReadBlobsRequest { instance_name: instance.into(), digests: vec![wire(&first)], ..Default::default() };
        assert_eq!(server.cas().batch_read_blobs(request).await.unwrap().into_inner().responses[0].data, batched);
        // An action's function is part of its key, and a tree's that of all below it.
        let result = reapi::ActionResult { stdout_digest: Some(wire(&second)), ..Default::default() };
        let request = reapi::UpdateActionResultRequest {
            instance_name: instance.into(),
            action_digest: Some(wire(&first)),
            action_result: Some(result.clone()),
            ..Default::default()
        };
        server.actions().update_action_result(request).await.unwrap();
        for digest_function in [0, number(function)] {
            let request = reapi::GetActionResultRequest {
                instance_name: instance.into(),
                action_digest: Some(wire(&first)),
                digest_function,
                ..Default::default()
            };
            assert_eq!(server.actions().get_action_result(request).await.unwrap().into_inner(), result, "{instance} {function}");
        }
        let root = reapi::Directory { node_properties: None, ..Default::default() };
        let root = wire(&Hasher::digest(function, &prost::Message::encode_to_vec(&root)));
        let request = reapi::GetTreeRequest { instance_name: instance.into(), root_digest: Some(root), ..Default::default() };
        assert!(server.cas().get_tree(request).await.unwrap().into_inner().message().await.unwrap().is_some());
    }
}
