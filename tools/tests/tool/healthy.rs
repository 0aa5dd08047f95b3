//! Every reading command on stores that are whole: closed, and as a killed process leaves them.

use crate::store::*;
use blockstore_names::{DigestFunction, keys};
use serde_json::json;
use std::fs;

#[test]
fn inspect_says_what_a_store_is_and_changes_nothing() {
    for close in [true, false] {
        let made = make(close);
        let before = made.bytes();
        // A directory stands for the store in it.
        let output = tool(&["inspect", "--json"], made.dir.path());
        assert_eq!(status(&output), 0, "{}", stderr(&output));
        let report = json(&output);
        assert_eq!(report["verdict"], "sound");
        assert_eq!(report["clean"], close);
        assert_eq!(report["superblocks_agree"], true);
        assert_eq!(report["superblocks"].as_array().unwrap().iter().filter(|copy| copy["state"] == "whole").count(), 4);
        assert_eq!((number(&report, "/store_bytes"), number(&report, "/epoch")), (STORE_BYTES, 1));
        let map = report["block_map"].as_array().unwrap();
        let sums = ["free", "open", "sealed"].map(|state| number(&report, &format!("/blocks/{state}")));
        assert_eq!((map.len() as u64, sums.iter().sum::<u64>()), (number(&report, "/block_count"), number(&report, "/block_count")));
        // Blobs of one record, one of parts, and three names: one was deleted.
        let objects = ["contents", "large_objects", "named", "total"].map(|kind| number(&report, &format!("/objects/{kind}")));
        assert_eq!(objects, [35, 1, 3, 39], "{report:#}");
        assert_eq!(objects[3], made.contents.len() as u64);
        assert_eq!(number(&report, "/live_slots"), 39 + number(&report, "/objects/parts"));
        assert_eq!(number(&report, "/image/number"), if close { 2 } else { 1 });
        // Behind the image of a store that was closed there are marks at most.
        assert!((number(&report, "/recovery/log_entries") > 6) != close, "{report:#}");
        assert!(number(&report, "/log/durable_lsn") <= number(&report, "/log/last_lsn"));
        let sizes: u64 = report["sizes"].as_array().unwrap().iter().map(|row| number(row, "/slots")).sum();
        let ages: u64 = report["ages"].as_array().unwrap().iter().map(|row| number(row, "/slots")).sum();
        assert_eq!((sizes, ages), (number(&report, "/live_slots"), number(&report, "/live_slots")));
        assert!(number(&report, "/retention/capacity_bytes") > number(&report, "/retention/window_bytes"));

        let text = stdout(&tool(&["inspect"], &made.path));
        for part in ["whole, sequence", "closed in order", "block map", "record sizes", "last wanted", "none in superblocks, log"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains('\u{1b}'), "no colours where no terminal is");
        assert!(made.bytes() == before, "inspect changed the store");
    }
}

#[test]
fn verify_finds_nothing_and_hashes_what_it_can() {
    for close in [true, false] {
        let made = make(close);
        let before = made.bytes();
        let output = tool(&["verify", "--json", "--content"], &made.path);
        let report = json(&output);
        assert_eq!((status(&output), report["verdict"].as_str()), (0, Some("sound")), "{report:#}");
        let slots = number(&made.inspect(), "/live_slots");
        assert_eq!((number(&report, "/good_records"), number(&report, "/bad_records")), (slots, 0));
        // All blobs but the one of a function that nobody knows.
        assert_eq!((number(&report, "/hashed_records"), number(&report, "/unknown_function_records")), (35, 1));
        let structures = &report["structures"];
        let damaged: u64 =
            structures.as_object().unwrap().iter().filter(|(name, _)| name.ends_with("damaged")).map(|(_, n)| n.as_u64().unwrap()).sum();
        assert_eq!(damaged, 0);
        assert!(
            number(structures, "/image_units") > 0 && number(structures, "/block_heads") > 0 && number(structures, "/block_tables") == 2
        );
        let blocks = report["blocks"].as_array().unwrap();
        assert_eq!(blocks.len() as u64, number(&made.inspect(), "/block_count"));
        assert_eq!(blocks.iter().map(|block| number(block, "/good_records")).sum::<u64>(), slots);

        let text = stdout(&tool(&["verify", "--blocks"], &made.path));
        assert!(text.contains("0 are damaged") && text.lines().any(|line| line.starts_with("block 0: ")), "{text}");
        assert!(made.bytes() == before, "verify changed the store");
    }
}

#[test]
fn verify_goes_on_where_it_was_ended() {
    let made = make(true);
    let all = json(&tool(&["verify", "--json"], &made.path));
    let block_count = number(&made.inspect(), "/block_count");
    // Every block is in the first part or in the second.
    let first_block = all["blocks"].as_array().unwrap().iter().find(|block| number(block, "/good_records") > 0).unwrap();
    let from = number(first_block, "/block") + 1;
    let rest = json(&tool(&["verify", "--json", "--from-block", &from.to_string()], &made.path));
    assert_eq!(number(&rest, "/good_records") + number(first_block, "/good_records"), number(&all, "/good_records"));
    assert_eq!(rest["blocks"].as_array().unwrap().len() as u64, block_count - from);

    let state = made.dir.path().join("state");
    let noted = json!({
        "uuid": all["uuid"], "content": false, "next_block": from, "good_records": 1000, "bad_records": 0, "payload_bytes": 0,
        "hashed_records": 0, "unknown_function_records": 0, "blocks": [], "bad": [],
    });
    fs::write(&state, noted.to_string()).unwrap();
    let state_name = state.to_str().unwrap();
    let resumed = json(&tool(&["verify", "--json", "--state", state_name], &made.path));
    assert_eq!(number(&resumed, "/good_records"), 1000 + number(&rest, "/good_records"));
    assert!(!state.exists(), "a run that ended needs no state");

    fs::write(&state, noted.to_string().replace(all["uuid"].as_str().unwrap(), "other")).unwrap();
    let refused = tool(&["verify", "--state", state_name], &made.path);
    assert_eq!(status(&refused), 2);
    assert!(stderr(&refused).contains("another store"), "{}", stderr(&refused));
    assert!(state.exists());
}

#[test]
fn ls_lists_every_key_with_what_it_is() {
    let made = make(false);
    let listed = lines(&tool(&["ls", "--json"], &made.path));
    assert_eq!(listed.len(), made.contents.len());
    let count = |kind: &str| listed.iter().filter(|line| line["kind"] == kind).count();
    assert_eq!((count("blob"), count("large_blob"), count("action_result"), count("entry")), (34, 1, 1, 1));
    assert_eq!((count("unknown kind 77"), count("unknown kind 200")), (1, 1));
    for (key, value) in &made.contents {
        let line = listed.iter().find(|line| line["key"] == hex::encode(key.2) && line["function_number"] == key.1).expect("a line");
        assert_eq!(number(line, "/size_bytes"), value.len() as u64);
    }
    let digest = blob(DigestFunction::Sha256, &data(3, 503)).0;
    let line = listed.iter().find(|line| line["hash"] == digest.hash_hex()).expect("a line");
    assert_eq!(line["name"], format!("sha256/{}/503", digest.hash_hex()));
    assert_eq!(line["function"], "sha256");

    let sizes = |arguments: &[&str]| -> Vec<u64> {
        lines(&tool(&[&["ls", "--json"], arguments].concat(), &made.path)).iter().map(|line| number(line, "/size_bytes")).collect()
    };
    let by_size = sizes(&["--by", "size"]);
    assert!(by_size.len() == listed.len() && by_size.is_sorted_by(|a, b| a >= b), "{by_size:?}");
    assert_eq!(sizes(&["--by", "size", "--limit", "2"]), [LARGE_BYTES as u64, 200_000]);
    assert_eq!(sizes(&["--by", "age", "--limit", "3"]).len(), 3);
    assert_eq!(sizes(&["--limit", "4"]).len(), 4);
    assert_eq!(sizes(&["--kind", "large_blob"]), [LARGE_BYTES as u64]);
    assert_eq!(sizes(&["--kind", "unknown kind 77"]), [99]);
    assert_eq!(sizes(&["--function", "md5"]), [3000]);
    assert_eq!(sizes(&["--size-min", "100KiB", "--by", "size"]), [LARGE_BYTES as u64, 200_000]);
    assert_eq!(sizes(&["--size-max", "99", "--by", "size"]), [99, 94, 88]);
    let ages = |age: u64| listed.iter().filter(|line| number(line, "/age_ticks") == age).count();
    assert!(ages(0) > 0 && ages(1) > 0, "the large blob took a tick");
    assert_eq!((sizes(&["--age-max", "0"]).len(), sizes(&["--age-min", "1", "--age-max", "1"]).len()), (ages(0), ages(1)));
    assert_eq!(sizes(&["--prefix", &digest.hash_hex()[..20]]), [503]);
    assert_eq!(sizes(&["--kind", "part"]).iter().sum::<u64>(), LARGE_BYTES as u64);

    let text = stdout(&tool(&["ls", "--kind", "entry"], &made.path));
    assert!(text.starts_with("entry ") && text.contains("named:2:") && text.lines().count() == 1, "{text}");
    assert_eq!(status(&tool(&["ls", "--by", "age", "--limit", "1000001"], &made.path)), 2);
}

#[test]
fn get_gives_every_value_by_the_name_that_ls_prints() {
    for close in [true, false] {
        let made = make(close);
        for line in lines(&tool(&["ls", "--json"], &made.path)) {
            let output = tool(&["get", line["name"].as_str().unwrap()], &made.path);
            assert_eq!(status(&output), 0, "{line}");
            let expected = made.contents.iter().find(|(key, _)| line["key"] == hex::encode(key.2) && line["function_number"] == key.1);
            assert!(output.stdout == *expected.unwrap().1, "{line}");
        }
        let digest = blob(DigestFunction::Sha256, &data(3, 503)).0.hash_hex();
        assert!(tool(&["get", &digest], &made.path).stdout == data(3, 503), "the length of a hash tells its function");
        let to = made.dir.path().join("got");
        let output = tool(&["get", &digest, "--json", "-o", to.to_str().unwrap()], &made.path);
        assert_eq!((json(&output)["kind"].as_str(), fs::read(&to).unwrap().len()), (Some("blob"), 503));
        for (name, told) in [(format!("{digest}/504"), "is not in the store"), ("xyz".into(), "is no digest")] {
            let output = tool(&["get", &name], &made.path);
            assert_eq!((status(&output), output.stdout.len()), (2, 0));
            assert!(stderr(&output).contains(told), "{}", stderr(&output));
        }
    }
}

#[test]
fn cat_action_prints_the_result_that_won() {
    let made = make(false);
    let action = action(1);
    let output = tool(&["cat-action", &action.hash_hex(), "--instance", "main", "--json"], &made.path);
    let result = json(&output);
    assert_eq!((status(&output), number(&result, "/exit_code")), (0, 7));
    let expected = blob(DigestFunction::Sha256, b"the last value").0;
    assert_eq!(result.pointer("/output_files/0/digest/hash").unwrap(), &json!(expected.hash_hex()));
    assert_eq!(number(&result, "/output_files/0/digest/size_bytes"), 14);
    let text = stdout(&tool(&["cat-action", &action.hash_hex(), "--instance", "main"], &made.path));
    assert!(
        text.contains("path: out/a.o") && text.contains(&format!("digest: {}/14", expected.hash_hex())) && text.contains("exit_code: 7"),
        "{text}"
    );

    // By its key, as `ls` prints it.
    let key = format!("named:{}:{}", keys::NAMED_ACTION_RESULT, hex::encode(action_key(1, "main").hash));
    assert_eq!(json(&tool(&["cat-action", &key, "--json"], &made.path)), result);
    for arguments in [vec!["cat-action", &action.hash_hex()], vec!["cat-action", &crate::store::action(2).hash_hex()]] {
        let output = tool(&arguments, &made.path);
        assert_eq!(status(&output), 2, "another instance, and a deleted one");
        assert!(stderr(&output).contains("is not in the store"), "{}", stderr(&output));
    }
    // 200,000 random bytes are no Command.
    let foreign = blob(DigestFunction::Blake3, &data(30, 200_000)).0;
    let output = tool(&["cat-action", "--as", "command", &format!("blake3/{}", foreign.hash_hex())], &made.path);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("is no Command"), "{}", stderr(&output));
}

#[test]
fn cat_action_prints_what_actions_are_made_of() {
    use blockstore_proto::reapi;
    use prost::Message;
    let made = make(true);
    let digest = |data: &[u8]| Some(reapi::Digest { hash: blob(DigestFunction::Sha256, data).0.hash_hex(), size_bytes: data.len() as i64 });
    let command = reapi::Command { arguments: vec!["cc".into(), "-c".into()], output_paths: vec!["a.o".into()], ..Default::default() };
    let file = reapi::FileNode { name: "a.c".into(), digest: digest(b"source"), is_executable: false, node_properties: None };
    let directory = reapi::Directory { files: vec![file], ..Default::default() };
    let tree = reapi::Tree { root: Some(directory.clone()), children: vec![directory.clone()] };
    let action = reapi::Action { command_digest: digest(&command.encode_to_vec()), do_not_cache: true, ..Default::default() };
    let messages = [
        ("command", command.encode_to_vec(), "/arguments/1", json!("-c")),
        ("directory", directory.encode_to_vec(), "/files/0/name", json!("a.c")),
        ("tree", tree.encode_to_vec(), "/children/0/files/0/digest/size_bytes", json!(6)),
        ("action", action.encode_to_vec(), "/do_not_cache", json!(true)),
    ];
    run(async {
        use blockstore_engine::{Engine, OpenOptions, device::open_file};
        let (engine, _) = Engine::open(open_file(&made.path, Default::default()).unwrap(), OpenOptions::default()).await.unwrap();
        for (_, encoded, ..) in &messages {
            engine.put(blob(DigestFunction::Sha256, encoded).1, encoded.clone().into()).await.unwrap();
        }
        engine.close().await.unwrap();
    });
    for (kind, encoded, pointer, expected) in messages {
        let name = format!("{}/{}", blob(DigestFunction::Sha256, &encoded).0.hash_hex(), encoded.len());
        let output = tool(&["cat-action", "--json", "--as", kind, &name], &made.path);
        assert_eq!((status(&output), json(&output).pointer(pointer)), (0, Some(&expected)), "{kind}: {}", stderr(&output));
    }
}

#[test]
fn a_new_store_is_formatted_and_empty() {
    let dir = tempfile::TempDir::new().unwrap();
    let output = tool(&["format", "--size", "40MiB", "--json"], dir.path());
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    assert_eq!(number(&json(&output), "/store_bytes"), 40 << 20);
    let report = json(&tool(&["inspect", "--json"], dir.path()));
    assert_eq!((report["verdict"].as_str(), number(&report, "/live_slots"), report["image"].is_null()), (Some("sound"), 0, true));
    assert_eq!(status(&tool(&["verify"], dir.path())), 0);
    // What holds something is not overwritten without a word.
    for (arguments, told) in [(vec!["format"], "is not blank"), (vec!["format", "--size", "50MiB"], "leave --size out")] {
        let refused = tool(&arguments, dir.path());
        assert_eq!(status(&refused), 2);
        assert!(stderr(&refused).contains(told), "{}", stderr(&refused));
    }
    let uuid = report["uuid"].clone();
    assert_eq!(status(&tool(&["format", "--force", "--block-size", "1MiB", "--objects", "1000"], dir.path())), 0);
    assert_ne!(json(&tool(&["inspect", "--json"], dir.path()))["uuid"], uuid);
    let small = tool(&["format", "--size", "4MiB"], &dir.path().join("small"));
    assert_eq!(status(&small), 2);
    assert!(!dir.path().join("small").exists(), "a store that cannot be is not left behind");
}

#[test]
fn manual_pages_and_completions_know_every_command() {
    let dir = tempfile::TempDir::new().unwrap();
    assert_eq!(status(&tool(&["man"], dir.path())), 0);
    for command in
        ["inspect", "verify", "ls", "get", "cat-action", "rebuild", "repair", "format", "grow", "shrink", "export", "import", "bench"]
    {
        let page =
            fs::read_to_string(dir.path().join(format!("blockstore-tool-{command}.1"))).unwrap_or_else(|_| panic!("a page for {command}"));
        assert!(page.contains("STORE") || page.contains("store"), "{command}");
        for shell in ["bash", "zsh", "fish"] {
            assert!(stdout(&tool(&["completions"], std::path::Path::new(shell))).contains(command), "{shell}: {command}");
        }
    }
}
