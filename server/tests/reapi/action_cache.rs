//! Action results: as they came, complete or missing.

use blockstore_proto::reapi;
use blockstore_server::{front::reapi::Options, instances::InstanceRules};
use prost::Message;
use std::sync::Arc;
use tonic::{Code, Status};

use crate::server::{Server, data, digest};

fn file(path: &str, digest: &reapi::Digest) -> reapi::OutputFile {
    reapi::OutputFile { path: path.into(), digest: Some(digest.clone()), ..Default::default() }
}

async fn update(server: &Server, action: &reapi::Digest, result: reapi::ActionResult) -> Result<reapi::ActionResult, Status> {
    let request =
        reapi::UpdateActionResultRequest { action_digest: Some(action.clone()), action_result: Some(result), ..Default::default() };
    Ok(server.actions().update_action_result(request).await?.into_inner())
}

async fn get(server: &Server, action: &reapi::Digest) -> Result<reapi::ActionResult, Status> {
    let request = reapi::GetActionResultRequest { action_digest: Some(action.clone()), ..Default::default() };
    Ok(server.actions().get_action_result(request).await?.into_inner())
}

async fn is_miss(server: &Server, action: &reapi::Digest) -> bool {
    match get(server, action).await {
        Ok(_) => false,
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound);
            true
        }
    }
}

#[tokio::test]
async fn a_result_comes_back_and_the_last_one_wins() {
    let server = Server::start().await;
    let action = digest(b"action");
    assert!(is_miss(&server, &action).await);
    let outputs = server.put(&[b"one", b"two"]).await;
    for output in &outputs {
        let result = reapi::ActionResult { output_files: vec![file("out", output)], exit_code: 3, ..Default::default() };
        assert_eq!(update(&server, &action, result.clone()).await.unwrap(), result);
        assert_eq!(get(&server, &action).await.unwrap(), result);
    }
    let empty = reapi::ActionResult::default();
    update(&server, &action, empty.clone()).await.unwrap();
    assert_eq!(get(&server, &action).await.unwrap(), empty);
}

#[tokio::test]
async fn instances_functions_and_sizes_are_apart() {
    let server = Server::start().await;
    let action = digest(b"action");
    let request = |instance: &str, digest: &reapi::Digest, function| reapi::GetActionResultRequest {
        instance_name: instance.into(),
        action_digest: Some(digest.clone()),
        digest_function: function,
        ..Default::default()
    };
    let put = reapi::UpdateActionResultRequest {
        instance_name: "main".into(),
        action_digest: Some(action.clone()),
        action_result: Some(reapi::ActionResult::default()),
        ..Default::default()
    };
    server.actions().update_action_result(put).await.unwrap();
    let other_size = reapi::Digest { size_bytes: 7, ..action.clone() };
    let zero_size = reapi::Digest { size_bytes: 0, ..action.clone() };
    for (request, hit) in [
        (request("main", &action, 0), true),
        (request("main", &action, 1), true),
        (request("", &action, 0), false),
        (request("main", &action, 9), false),
        (request("main", &other_size, 0), false),
        (request("main", &zero_size, 0), false),
    ] {
        let result = server.actions().get_action_result(request.clone()).await;
        assert_eq!(result.is_ok(), hit, "{request:?}");
    }
}

#[tokio::test]
async fn a_hit_is_complete() {
    let server = Server::start().await;
    let present = server.put(&[b"present"]).await.remove(0);
    let absent = digest(b"absent");
    let tree = |children: Vec<reapi::Directory>, root: &reapi::Digest| {
        let files = vec![reapi::FileNode { name: "f".into(), digest: Some(root.clone()), ..Default::default() }];
        reapi::Tree { root: Some(reapi::Directory { files, ..Default::default() }), children }.encode_to_vec()
    };
    let child = |digest: &reapi::Digest| reapi::Directory {
        files: vec![reapi::FileNode { name: "c".into(), digest: Some(digest.clone()), ..Default::default() }],
        ..Default::default()
    };
    let good_tree = tree(vec![child(&present), child(&digest(b""))], &present);
    let bad_root = tree(vec![], &absent);
    let bad_child = tree(vec![child(&present), child(&absent)], &present);
    let trees = server.put(&[&good_tree, &bad_root, &bad_child, b"\xffno tree"]).await;
    let directory = |tree: Option<&reapi::Digest>, root: Option<&reapi::Digest>| reapi::ActionResult {
        output_directories: vec![reapi::OutputDirectory {
            path: "d".into(),
            tree_digest: tree.cloned(),
            root_directory_digest: root.cloned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let bad_directory = child(&absent).encode_to_vec();
    let below = server.put(&[&child(&present).encode_to_vec(), &bad_directory]).await;
    let parent = |below: &reapi::Digest| {
        let directories = vec![reapi::DirectoryNode { name: "d".into(), digest: Some(below.clone()) }];
        reapi::Directory { directories, ..Default::default() }.encode_to_vec()
    };
    let parents = server.put(&[&parent(&below[0]), &parent(&below[1]), &parent(&digest(b"no directory"))]).await;

    let cases = [
        ("file", reapi::ActionResult { output_files: vec![file("a", &present)], ..Default::default() }, true),
        ("absent file", reapi::ActionResult { output_files: vec![file("a", &present), file("b", &absent)], ..Default::default() }, false),
        ("empty file", reapi::ActionResult { output_files: vec![file("a", &digest(b""))], ..Default::default() }, true),
        ("stdout", reapi::ActionResult { stdout_digest: Some(absent.clone()), ..Default::default() }, false),
        ("stderr", reapi::ActionResult { stderr_digest: Some(absent.clone()), ..Default::default() }, false),
        ("tree", directory(Some(&trees[0]), None), true),
        ("absent tree", directory(Some(&absent), None), false),
        ("file in the root of a tree", directory(Some(&trees[1]), None), false),
        ("file in a child of a tree", directory(Some(&trees[2]), None), false),
        ("malformed tree", directory(Some(&trees[3]), None), false),
        ("tree with an absent root", directory(Some(&trees[0]), Some(&absent)), false),
        ("tree with a root", directory(Some(&trees[0]), Some(&below[0])), true),
        ("root directory", directory(None, Some(&parents[0])), true),
        ("file below a root directory", directory(None, Some(&parents[1])), false),
        ("directory below a root directory", directory(None, Some(&parents[2])), false),
        ("absent root directory", directory(None, Some(&absent)), false),
    ];
    for (number, (what, result, hit)) in cases.into_iter().enumerate() {
        let action = digest(&number.to_le_bytes());
        update(&server, &action, result).await.unwrap();
        assert_eq!(is_miss(&server, &action).await, !hit, "{what}");
    }
}

#[tokio::test]
async fn what_was_missing_makes_a_hit_once_it_is_there() {
    let server = Server::start().await;
    let action = digest(b"action");
    let large = data(1, 3_000_000);
    let result = reapi::ActionResult { output_files: vec![file("a", &digest(b"late"))], ..Default::default() };
    update(&server, &action, result).await.unwrap();
    assert!(is_miss(&server, &action).await);
    server.put(&[b"late", &large]).await;
    assert!(!is_miss(&server, &action).await);
}

#[tokio::test]
async fn inline_what_fits() {
    let server = Server::start().await;
    let large = data(2, 3 << 20);
    let stored = server.put(&[b"stdout", b"stderr", b"small", &large]).await;
    let result = reapi::ActionResult {
        output_files: vec![file("small", &stored[2]), file("large", &stored[3]), file("larger", &stored[3])],
        stdout_digest: Some(stored[0].clone()),
        stderr_digest: Some(stored[1].clone()),
        ..Default::default()
    };
    let action = digest(b"action");
    update(&server, &action, result.clone()).await.unwrap();
    let request = reapi::GetActionResultRequest {
        action_digest: Some(action),
        inline_stdout: true,
        inline_output_files: vec!["small".into(), "large".into(), "larger".into()],
        ..Default::default()
    };
    let got = server.actions().get_action_result(request).await.unwrap().into_inner();
    assert_eq!((&got.stdout_raw[..], &got.stderr_raw[..]), (&b"stdout"[..], &b""[..]));
    assert_eq!(got.output_files[0].contents, b"small".as_slice());
    assert!(got.output_files[1].contents == large);
    assert!(got.output_files[2].contents.is_empty());
}

#[tokio::test]
async fn inline_is_what_was_asked_for_and_is_there() {
    let server = Server::start().await;
    let stored = server.put(&[b"stdout", b"stderr", b"one", b"two"]).await;
    let result = reapi::ActionResult {
        output_files: vec![file("a/one", &stored[2]), file("two", &stored[3]), file("empty", &digest(b""))],
        stdout_digest: Some(stored[0].clone()),
        stderr_digest: Some(stored[1].clone()),
        ..Default::default()
    };
    let action = digest(b"action");
    update(&server, &action, result.clone()).await.unwrap();
    let get = async |inline_stdout, inline_stderr, files: &[&str]| {
        let request = reapi::GetActionResultRequest {
            action_digest: Some(action.clone()),
            inline_stdout,
            inline_stderr,
            inline_output_files: files.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        server.actions().get_action_result(request).await.unwrap().into_inner()
    };
    assert_eq!(get(false, false, &["none", "one", "a/", ""]).await, result);
    let got = get(false, true, &["two", "empty"]).await;
    assert_eq!((&got.stdout_raw[..], &got.stderr_raw[..]), (&b""[..], &b"stderr"[..]));
    let contents: Vec<_> = got.output_files.iter().map(|file| &file.contents[..]).collect();
    assert_eq!(contents, [&b""[..], b"two", b""]);
    // The digests stay: a client may compare them.
    assert_eq!(got.stderr_digest, result.stderr_digest);
    let got = get(true, false, &["a/one"]).await;
    assert_eq!((&got.stdout_raw[..], &got.output_files[0].contents[..]), (&b"stdout"[..], &b"one"[..]));
}

#[tokio::test]
async fn bad_updates_are_refused() {
    let server = Server::start().await;
    let action = digest(b"action");
    let absolute = reapi::ActionResult { output_files: vec![file("/abs", &digest(b"x"))], ..Default::default() };
    let status = update(&server, &action, absolute).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(!status.details().is_empty());
    let none = reapi::UpdateActionResultRequest { action_digest: Some(action.clone()), ..Default::default() };
    assert_eq!(server.actions().update_action_result(none).await.unwrap_err().code(), Code::InvalidArgument);
    let none = reapi::UpdateActionResultRequest { action_result: Some(Default::default()), ..Default::default() };
    assert_eq!(server.actions().update_action_result(none).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(is_miss(&server, &action).await);
}

#[tokio::test]
async fn updates_may_be_off_or_need_their_action() {
    let mut instances = InstanceRules::default();
    instances.updates.set(None, false);
    instances.updates.set(Some("ci"), true);
    instances.updates.set(Some("ci/guests"), false);
    let server = Server::with(Options { instances: Arc::new(instances), ..Options::default() }).await;
    for (instance, permitted) in
        [("", false), ("other", false), ("ci", true), ("ci/linux", true), ("ci/guests", false), ("ci/guests/x", false)]
    {
        let request = reapi::UpdateActionResultRequest {
            instance_name: instance.into(),
            action_digest: Some(digest(b"a")),
            action_result: Some(reapi::ActionResult::default()),
            ..Default::default()
        };
        let code = server.actions().update_action_result(request).await.err().map(|status| status.code());
        assert_eq!(code, (!permitted).then_some(Code::PermissionDenied), "{instance}");
        let request = reapi::GetCapabilitiesRequest { instance_name: instance.into() };
        let cache = server.capabilities().get_capabilities(request).await.unwrap().into_inner().cache_capabilities.unwrap();
        assert_eq!(cache.action_cache_update_capabilities.unwrap().update_enabled, permitted, "{instance}");
    }

    let server = Server::with(Options { actions_must_exist: true, ..Options::default() }).await;
    let action = digest(b"an action");
    let status = update(&server, &action, reapi::ActionResult::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    server.put(&[b"an action"]).await;
    update(&server, &action, reapi::ActionResult::default()).await.unwrap();
}
