//! GetTree: each directory once, in pages that can be taken up again.

use blockstore_proto::reapi;
use prost::Message;
use tonic::{Code, Status};

use crate::server::{Server, digest};

pub(crate) fn directory(seed: u32, below: &[&reapi::Digest]) -> Vec<u8> {
    let node = |(n, digest): (usize, &&reapi::Digest)| reapi::DirectoryNode { name: n.to_string(), digest: Some((*digest).clone()) };
    let files = vec![reapi::FileNode { name: format!("f{seed}"), digest: Some(digest(b"file")), ..Default::default() }];
    let directories = below.iter().enumerate().map(node).collect();
    reapi::Directory { files, directories, ..Default::default() }.encode_to_vec()
}

/// A root over `width` directories, of which each is over the same leaf and over a missing one.
pub(crate) async fn hierarchy(server: &Server, width: u32) -> (reapi::Digest, usize) {
    let leaf = directory(0, &[]);
    let missing = digest(b"missing directory");
    let middle: Vec<_> = (1..=width).map(|n| directory(n, &[&digest(&leaf), &missing])).collect();
    let digests: Vec<_> = middle.iter().map(|d| digest(d)).collect();
    let root = directory(u32::MAX, &digests.iter().collect::<Vec<_>>());
    let blobs: Vec<&[u8]> = middle.iter().map(Vec::as_slice).chain([leaf.as_slice(), root.as_slice()]).collect();
    server.put(&blobs).await;
    (digest(&root), width as usize + 2)
}

/// The pages of a call: their directories, encoded, and their tokens.
async fn pages(server: &Server, root: &reapi::Digest, size: i32, token: &str) -> Result<Vec<(Vec<Vec<u8>>, String)>, Status> {
    let request =
        reapi::GetTreeRequest { root_digest: Some(root.clone()), page_size: size, page_token: token.into(), ..Default::default() };
    let mut stream = server.cas().get_tree(request).await?.into_inner();
    let mut pages = Vec::new();
    while let Some(page) = stream.message().await? {
        let directories = page.directories.iter().map(Message::encode_to_vec).collect();
        pages.push((directories, page.next_page_token));
    }
    Ok(pages)
}

#[tokio::test]
async fn each_directory_once_and_missing_ones_skipped() {
    let server = Server::start().await;
    let (root, count) = hierarchy(&server, 300).await;
    let pages = pages(&server, &root, 0, "").await.unwrap();
    assert_eq!(pages.last().unwrap().1, "");
    let mut all: Vec<_> = pages.into_iter().flat_map(|(directories, _)| directories).collect();
    assert_eq!(digest(&all[0]), root);
    assert_eq!(all.len(), count);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count);
}

#[tokio::test]
async fn pages_can_be_taken_up_again() {
    let server = Server::start().await;
    let (root, count) = hierarchy(&server, 50).await;
    let all = pages(&server, &root, 7, "").await.unwrap();
    assert_eq!(all.len(), count.div_ceil(7));
    assert!(all.iter().all(|(directories, _)| directories.len() <= 7));
    for (number, (_, token)) in all.iter().enumerate().take(all.len() - 1) {
        let rest = pages(&server, &root, 7, token).await.unwrap();
        assert_eq!(rest, all[number + 1..]);
    }
    // A stream that is dropped after its first page, and taken up.
    let request = reapi::GetTreeRequest { root_digest: Some(root.clone()), page_size: 7, ..Default::default() };
    let mut stream = server.cas().get_tree(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    drop(stream);
    assert_eq!(pages(&server, &root, 7, &first.next_page_token).await.unwrap(), all[1..]);
}

/// A message of somebody else's making: it costs the call, and nothing else.
#[tokio::test]
async fn a_child_without_a_digest_is_an_error_of_its_own() {
    let server = Server::start().await;
    let none = reapi::DirectoryNode { name: "d".into(), digest: None };
    let root = reapi::Directory { directories: vec![none], ..Default::default() }.encode_to_vec();
    server.put(&[&root]).await;
    assert_eq!(pages(&server, &digest(&root), 0, "").await.unwrap_err().code(), Code::InvalidArgument);
    let (good, count) = hierarchy(&server, 3).await;
    assert_eq!(pages(&server, &good, 0, "").await.unwrap()[0].0.len(), count);
}

#[tokio::test]
async fn errors() {
    let server = Server::start().await;
    assert_eq!(pages(&server, &digest(b"absent"), 0, "").await.unwrap_err().code(), Code::NotFound);
    let junk = server.put(&[b"\xff\xff"]).await.remove(0);
    assert_eq!(pages(&server, &junk, 0, "").await.unwrap_err().code(), Code::InvalidArgument);
    let (root, _) = hierarchy(&server, 1).await;
    assert_eq!(pages(&server, &root, -1, "").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(pages(&server, &root, 0, "x").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(server.cas().get_tree(reapi::GetTreeRequest::default()).await.unwrap_err().code(), Code::InvalidArgument);
    // The empty blob is a directory without entries.
    let empty = pages(&server, &digest(b""), 0, "").await.unwrap();
    assert_eq!(empty, [(vec![vec![]], String::new())]);
}
