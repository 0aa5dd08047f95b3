//! Settings from the command line and the file, and what is said of those that make no sense.

use super::*;
use crate::auth::Rights;

fn parse(line: &str) -> Result<Settings, Refusal> {
    Settings::parse(line.split_whitespace().map(OsString::from))
}

fn mistake(line: &str) -> String {
    match parse(line) {
        Err(Refusal::Mistake(text)) => {
            assert_eq!(text.lines().count(), 1, "{text:?} is one line");
            text
        }
        other => panic!("{line}: expected a mistake, got {other:?}"),
    }
}

#[test]
fn two_settings_are_enough() {
    let s = parse("blockstored --dir d --size 10GiB").unwrap();
    assert_eq!(s.place, Place::File { dir: "d".into(), size_bytes: Some(10 << 30) });
    assert_eq!(s.grpc, "127.0.0.1:9092".parse().unwrap());
    assert_eq!(s.http, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(s.http_options, http::Options::default());
    assert_eq!(s.http_limits, http::Limits::default());
    assert_eq!(s.auth, None);
    assert_eq!((s.sharing, s.completeness_check), (Sharing::default(), true));
    assert_eq!((s.io, s.direct), (Io::Auto, Direct::Auto));
    assert_eq!((s.durability, s.flush_ms_max), (Durability::Interval, 1000));
    assert_eq!((s.cache_bytes, s.block_bytes, s.objects), (None, None, None));
    assert_eq!(s.tools, ToolRules::default());
    assert_eq!(s.latency_seconds, LATENCY_SECONDS_DEFAULT);
    assert_eq!((s.log, s.slow_after), (log::Options::default(), Some(Duration::from_secs(1))));
}

#[test]
fn logs_have_a_form_a_place_and_a_level() {
    let line = "blockstored --dir d --log-format json --log-file l --log-level warn --slow-request-ms 0";
    let s = parse(line).unwrap();
    let expected = log::Options { format: log::Format::Json, file: Some("l".into()), level: LevelFilter::WARN, access: log::Access::Off };
    assert_eq!((s.log, s.slow_after), (expected, None));
    assert_eq!(parse("blockstored --dir d --access-log").unwrap().log.access, log::Access::WithLog);
    for line in ["--access-log-file a", "--access-log --access-log-file a"] {
        let s = parse(&format!("blockstored --dir d {line}")).unwrap();
        assert_eq!(s.log.access, log::Access::File("a".into()), "{line}");
    }
}

#[test]
fn classes_of_latency_ascend() {
    let s = parse("blockstored --dir d --metrics-latency-buckets 0.0001,0.01,1").unwrap();
    assert_eq!(s.latency_seconds, [0.0001, 0.01, 1.0]);
    for wrong in ["0,1", "-1,1", "1,1", "2,1", "NaN", "inf", "x", &vec!["1"; 65].join(",")] {
        let text = mistake(&format!("blockstored --dir d --metrics-latency-buckets {wrong}"));
        assert!(text.contains("--metrics-latency-buckets"), "{wrong}: {text}");
    }
}

#[test]
fn blobs_are_compressed_where_that_is_wanted() {
    let frames = |line: &str| parse(&format!("blockstored --dir d {line}")).unwrap().storage_frames;
    assert_eq!((frames(""), frames("--storage-compression-level 5")), (None, None));
    assert_eq!(frames("--storage-compression zstd"), Some(Frames::new(1)));
    assert_eq!(frames("--storage-compression zstd --storage-compression-level 19"), Some(Frames::new(19)));
}

#[test]
fn rules_by_instance_and_bounds_are_read() {
    let s = parse("blockstored --dir d").unwrap();
    assert_eq!((s.instances, s.actions_must_exist), (Arc::default(), false));
    let defaults = Limits {
        message_bytes_max: 64 << 20,
        request_bytes_max: 256 << 20,
        decompressed_bytes_max: 64 << 20,
        streams_max: 1024,
        uploads_max: 4096,
        trees: completeness::Limits::default(),
    };
    assert_eq!(s.limits, defaults);
    let s = parse(
        "blockstored --dir d --ac-updates off --ac-updates ci=on --ac-strict-actions --default-digest-function buck=blake3 \
         --default-digest-function gitsha1 --grpc-message-bytes-max 5MiB --grpc-request-bytes-max 6MiB \
         --grpc-decompressed-bytes-max 7MiB --grpc-streams-max 8 --uploads-max 9 --tree-bytes-max 100KiB --directory-depth-max 11",
    )
    .unwrap();
    let at = |name| crate::store::Instance::new(name);
    assert_eq!((*s.instances.updates.get(&at("ci/x")), *s.instances.updates.get(&at("y"))), (true, false));
    assert_eq!(s.instances.default_function(&at("buck"), 64), Some(DigestFunction::Blake3));
    assert_eq!(s.instances.default_function(&at("y"), 40), Some(DigestFunction::GitSha1));
    assert!(s.actions_must_exist);
    let limits = Limits {
        message_bytes_max: 5 << 20,
        request_bytes_max: 6 << 20,
        decompressed_bytes_max: 7 << 20,
        streams_max: 8,
        uploads_max: 9,
        trees: completeness::Limits { tree_bytes_max: 100 << 10, depth_max: 11 },
    };
    assert_eq!(s.limits, limits);
}

/// A file with that text, and what the command line with it comes to.
fn with_file(text: &str, line: &str) -> (tempfile::TempDir, Result<Settings, Refusal>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.toml");
    std::fs::write(&path, text).unwrap();
    let parsed = parse(&format!("blockstored --config {} {line}", path.display()));
    (dir, parsed)
}

#[test]
fn there_may_be_no_cache_but_no_store_of_no_bytes() {
    assert_eq!(parse("blockstored --dir d --cache-size 0").unwrap().cache_bytes, Some(0));
    for flag in ["--size", "--block-size"] {
        let error = mistake(&format!("blockstored --dir d {flag} 0"));
        assert!(error.contains(flag) && error.contains("must be more than 0"), "{error}");
    }
}

#[test]
fn a_file_has_the_flags_as_keys() {
    let text = r#"
        dir = "d"
        size = "10GiB"
        flush_ms_max = 1_00
        ac_updates = ["off", "ci=on"]
        grpc = "127.0.0.1:1"
        [http]
        address = "127.0.0.1:2"
        ac_validation = "lenient"
        [ac]
        strict_actions = true
        [zstd]
        drain_for = []
        answer_blob_size_to = ["goma", "siso/1."]
    "#;
    let flags = "blockstored --dir d --size 10GiB --flush-ms-max 100 --ac-updates off --ac-updates ci=on --grpc 127.0.0.1:1 \
                 --http 127.0.0.1:2 --ac-strict-actions --zstd-answer-blob-size-to goma,siso/1.";
    let mut expected = parse(flags).unwrap();
    expected.tools.drained.clear();
    assert_eq!(with_file(text, "").1.unwrap(), expected);
    // Every key of a table may stand in front of it just as well.
    let flat = "dir = 'd'\nsize='10GiB'\nhttp-ac-validation = 'off'";
    assert_eq!(with_file(flat, "").1.unwrap().http_options.result_rule, ResultRule::Opaque);
}

#[test]
fn the_command_line_counts_before_the_file_and_replaces_lists() {
    let text = "dir = 'd'\nflush_ms_max = 5\nac_updates = ['off', 'ci=on']\n[zstd]\ndrain_for = ['a', 'b']\n[ac]\nstrict_actions = false";
    let (_dir, settings) = with_file(text, "--flush-ms-max 7 --ac-updates x=off --zstd-drain-for c --ac-strict-actions");
    let settings = settings.unwrap();
    assert_eq!((settings.flush_ms_max, settings.actions_must_exist), (7, true));
    assert_eq!(settings.tools.drained, ["c"]);
    let at = |name| *settings.instances.updates.get(&crate::store::Instance::new(name));
    assert_eq!((at("ci"), at("y"), at("x")), (true, true, false));
}

#[test]
fn a_mistake_in_the_file_is_named_with_its_line_and_what_would_be_right() {
    for (text, line, named) in [
        ("dir = 'd'\ncolour = 'blue'", 2, "`colour`: is no setting"),
        ("[http]\nac_validatoin = 'off'", 2, "a similar one is `http_ac_validation`"),
        ("[http]\n\nac_validation = 'maybe'", 3, "`http.ac_validation`: invalid value 'maybe'"),
        ("[http]\nac_validation = 'maybe'", 2, "[possible values: lenient, strict, off]"),
        ("size = 'much'", 1, "give bytes"),
        ("flush_ms_max = 1.5", 1, "is a number with a point, and should be a string or a whole number"),
        ("flush_ms_max = 0", 1, "1..=60000"),
        ("flush_ms_max = [1]", 1, "is a list"),
        ("dir = true", 1, "is true or false"),
        ("ac_strict_actions = 'yes'", 1, "should be true or false"),
        ("ac_updates = [true]", 1, "should be a list of strings"),
        ("ac_updates = ['maybe']", 1, "INSTANCE=on"),
        ("\nformat = true", 2, "at every start"),
        ("config = 'other'", 1, "command line only"),
        ("http_ac_validation = 'off'\n[http]\nac_validation = 'off'", 3, "was set in line 1 already"),
        ("dir = 'd'\ndir = 'e'", 2, "duplicate"),
        ("dir = ", 1, ""),
        ("dir.x = 1", 1, "`dir.x`"),
    ] {
        let (dir, parsed) = with_file(text, "");
        let Err(Refusal::Mistake(said)) = parsed else { panic!("{text}: {parsed:?}") };
        let place = format!("{}:{line}: ", dir.path().join("b.toml").display());
        assert!(said.starts_with(&place) && said.contains(named) && said.lines().count() == 1, "{text}: {said}");
    }
    let said = mistake("blockstored --config /nowhere/b.toml");
    assert!(said.contains("--config /nowhere/b.toml"), "{said}");
    let (_dir, large) = with_file(&"#".repeat((1 << 20) + 1), "");
    assert!(matches!(large, Err(Refusal::Mistake(said)) if said.contains("1 MiB")));
}

#[test]
fn users_are_in_a_file_and_others_may_do_what_was_configured() {
    let auth = |line: &str| parse(&format!("blockstored --dir d --htpasswd-file f {line}")).unwrap().auth.unwrap();
    let with = |anonymous| crate::auth::Options { htpasswd_file: "f".into(), anonymous };
    assert_eq!(auth(""), with(Rights::NONE));
    assert_eq!(auth("--anonymous none"), with(Rights::NONE));
    assert_eq!(auth("--anonymous read"), with(Rights::READ));
    assert_eq!(with_file("dir = 'd'\nhtpasswd_file = 'f'\nanonymous = 'read'", "").1.unwrap().auth, Some(with(Rights::READ)));
    // Whoever looks at settings before they count wants to know of the file, too.
    let line = mistake("blockstored --dir d --htpasswd-file /nowhere/users --check-config");
    assert!(line.contains("--htpasswd-file /nowhere/users"), "{line}");
}

#[test]
fn settings_can_be_checked_only() {
    assert_eq!(with_file("dir = 'd'", "--check-config").1, Err(Refusal::Answer(String::new())));
    assert!(matches!(with_file("dri = 'd'", "--check-config").1, Err(Refusal::Mistake(_))));
    assert!(mistake("blockstored --check-config").contains("--dir"));
}

#[test]
fn a_second_device_is_refused() {
    let text = mistake("blockstored --device /dev/a --device /dev/b");
    assert!(text.contains("--device /dev/b: one device is supported now"), "{text}");
}

#[test]
fn settings_that_do_not_go_together_are_refused() {
    for (line, named) in [
        ("blockstored", "--dir"),
        ("blockstored --dir d --device /dev/a", "--device"),
        ("blockstored --dir d --size 1GiB --format", "--format"),
        ("blockstored --dir d --size 1GiB --force", "--force"),
        ("blockstored --device /dev/a --force", "--force"),
        ("blockstored --device /dev/a --size 1GiB", "--size"),
        ("blockstored --dir d --grpc 127.0.0.1:1 --http 127.0.0.1:1", "--grpc"),
        ("blockstored --dir d --grpc localhost", "--grpc"),
        ("blockstored --dir d --size much", "--size"),
        ("blockstored --dir d --io fast", "--io"),
        ("blockstored --dir d --http-ac-validation maybe", "--http-ac-validation"),
        ("blockstored --dir d --http-ac-digest-function md5", "--http-ac-digest-function"),
        ("blockstored --dir d --http-connections-max 0", "--http-connections-max"),
        ("blockstored --dir d --http-head-ms-max 0", "--http-head-ms-max"),
        ("blockstored --dir d --http-head-bytes-max 1KiB", "--http-head-bytes-max"),
        ("blockstored --dir d --http-head-bytes-max 2MiB", "--http-head-bytes-max"),
        ("blockstored --dir d --http-idle-ms-max never", "--http-idle-ms-max"),
        ("blockstored --dir d --http-stall-ms-max 0", "--http-stall-ms-max"),
        ("blockstored --dir d --anonymous read", "--anonymous goes with --htpasswd-file"),
        ("blockstored --dir d --anonymous none", "--anonymous goes with --htpasswd-file"),
        ("blockstored --dir d --htpasswd-file f --anonymous write", "--anonymous"),
        ("blockstored --dir d --cas-instances some", "--cas-instances"),
        ("blockstored --dir d --ac-instances off", "--ac-instances"),
        ("blockstored --dir d --ac-completeness-check yes", "--ac-completeness-check"),
        ("blockstored --dir d --storage-compression gzip", "--storage-compression"),
        ("blockstored --dir d --storage-compression-level 20", "--storage-compression-level"),
        ("blockstored --dir d --ac-updates maybe", "--ac-updates"),
        ("blockstored --dir d --default-digest-function x=murmur3", "--default-digest-function"),
        ("blockstored --dir d --grpc-message-bytes-max 1MiB", "--grpc-message-bytes-max"),
        ("blockstored --dir d --grpc-message-bytes-max 512MiB", "--grpc-request-bytes-max"),
        ("blockstored --dir d --grpc-decompressed-bytes-max 2GiB", "--grpc-decompressed-bytes-max"),
        ("blockstored --dir d --grpc-streams-max 7", "--grpc-streams-max"),
        ("blockstored --dir d --uploads-max 0", "--uploads-max"),
        ("blockstored --dir d --tree-bytes-max 1KiB", "--tree-bytes-max"),
        ("blockstored --dir d --directory-depth-max 0", "--directory-depth-max"),
        ("blockstored --dir d --flush-ms-max 0", "--flush-ms-max"),
        ("blockstored --dir d --objects 0", "--objects"),
        ("blockstored --dir d --log-format xml", "--log-format"),
        ("blockstored --dir d --log-level loud", "--log-level"),
        ("blockstored --dir d --log-file l --access-log-file l", "--access-log-file"),
        ("blockstored --dir d --slow-request-ms soon", "--slow-request-ms"),
        ("blockstored --dir d --colour blue", "--colour"),
    ] {
        let text = mistake(line);
        assert!(text.contains(named), "{line}: {text}");
    }
}

#[test]
fn devices_are_formatted_only_when_told_so() {
    for (line, format) in [
        ("blockstored --device /dev/a", Format::No),
        ("blockstored --device /dev/a --format", Format::Blank),
        ("blockstored --device /dev/a --format --force", Format::Force),
    ] {
        let Place::Device { format: got, .. } = parse(line).unwrap().place else {
            panic!("{line}: not a device");
        };
        assert_eq!(got, format, "{line}");
    }
}

#[test]
fn tools_are_listed_with_commas() {
    let s = parse("blockstored --dir d --zstd-answer-blob-size-to goma,siso/1. --zstd-drain-for bazel/5").unwrap();
    assert_eq!(s.tools.committed_is_blob_size, ["goma", "siso/1."]);
    assert_eq!(s.tools.drained, ["bazel/5"]);
}

#[test]
fn connections_have_bounds_of_their_own() {
    let line = "blockstored --dir d --http-connections-max 7 --http-head-ms-max 8 --http-head-bytes-max 64KiB --http-idle-ms-max 9 \
                --http-stall-ms-max 10";
    let limits = http::Limits { connections_max: 7, head_ms_max: 8, head_bytes_max: 64 << 10, idle_ms_max: 9, stall_ms_max: 10 };
    assert_eq!(parse(line).unwrap().http_limits, limits);
}

#[test]
fn instances_share_what_was_configured() {
    let s = parse("blockstored --dir d --cas-instances separate --ac-instances shared --ac-completeness-check off").unwrap();
    assert_eq!((s.sharing, s.completeness_check), (Sharing { blobs: false, action_results: true }, false));
    let s = parse("blockstored --dir d --cas-instances shared --ac-instances separate --ac-completeness-check on").unwrap();
    assert_eq!((s.sharing, s.completeness_check), (Sharing::default(), true));
}

#[test]
fn help_and_version_are_answers() {
    for line in ["blockstored --help", "blockstored --version"] {
        assert!(matches!(parse(line), Err(Refusal::Answer(_))), "{line}");
    }
}
