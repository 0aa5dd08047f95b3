//! Action results as JSON, in protobuf's canonical mapping (<https://protobuf.dev/programming-guides/json/>).
//!
//! Always true here: what comes in is an `ActionResult` and nothing else, or an error that says where it is not; neither way recurses
//! deeper than [`NESTED_MAX`] messages inside of others that are named by their type, or takes memory out of proportion.

use std::sync::LazyLock;

use blockstore_proto::{FILE_DESCRIPTOR_SET, reapi};
use http::{HeaderMap, header};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage, Value};
use serde::{Serialize, de::DeserializeSeed};
use thiserror::Error;

use super::encoding::weighted;

/// Full name of the message.
const ACTION_RESULT: &str = "build.bazel.remote.execution.v2.ActionResult";
/// Messages of type `Any` inside of others: a result has them in its metadata.
const NESTED_MAX: usize = 4;
/// Fields and elements that JSON may have. In memory each takes a hundred bytes or two, however short it is as text.
const VALUES_MAX: usize = 1 << 18;

/// Without the types there is no JSON, which a test of this file excludes.
static TYPE: LazyLock<Option<MessageDescriptor>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).ok()?;
    pool.get_message_by_name(ACTION_RESULT)
});

/// Why there is no JSON, or none that is an action result.
#[derive(Debug, Error)]
pub(super) enum JsonError {
    #[error("body is no ActionResult in JSON: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("action result has more than {VALUES_MAX} fields and elements, too many for JSON")]
    Large,
    #[error("message cannot be had as JSON: {0}")]
    Unspeakable(String),
}

/// Whether a client wants JSON: it names it, and nothing that it names it likes better.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    wanted(headers).0
}

/// Whether a client that wants JSON takes bytes as well.
pub(super) fn bytes_will_do(headers: &HeaderMap) -> bool {
    wanted(headers).1
}

fn wanted(headers: &HeaderMap) -> (bool, bool) {
    let (mut json, mut bytes, mut any) = (0, None, 0);
    for value in headers.get_all(header::ACCEPT) {
        for item in value.to_str().unwrap_or_default().split(',') {
            let Some((kind, weight)) = weighted(item) else { continue };
            match kind.to_ascii_lowercase().as_str() {
                "application/json" => json = weight,
                "application/octet-stream" => bytes = Some(weight),
                "*/*" | "application/*" => any = weight.max(any),
                _ => {}
            }
        }
    }
    (json > 0 && json >= bytes.unwrap_or(0), bytes.unwrap_or(any) > 0)
}

/// Whether a body is JSON.
pub(super) fn is_sent(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

fn kind() -> Result<MessageDescriptor, JsonError> {
    TYPE.clone().ok_or_else(|| JsonError::Unspeakable("types are not known".into()))
}

/// An action result as JSON.
///
/// `parsed` is what `encoded` holds.
pub(super) fn encode(encoded: &[u8], parsed: &reapi::ActionResult) -> Result<Vec<u8>, JsonError> {
    if elements(parsed) > VALUES_MAX {
        return Err(JsonError::Large);
    }
    let unspeakable = |error: &dyn std::fmt::Display| JsonError::Unspeakable(error.to_string());
    let message = DynamicMessage::decode(kind()?, encoded).map_err(|error| unspeakable(&error))?;
    check_nesting(&message, NESTED_MAX)?;
    let mut json = serde_json::Serializer::new(Vec::with_capacity(encoded.len() * 2));
    message.serialize(&mut json).map_err(|error| unspeakable(&error))?;
    Ok(json.into_inner())
}

/// JSON as an encoded action result.
pub(super) fn decode(json: &[u8]) -> Result<Vec<u8>, JsonError> {
    if values(json) > VALUES_MAX {
        return Err(JsonError::Large);
    }
    // serde_json itself goes 128 levels deep and no further.
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let message = kind()?.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(message.encode_to_vec())
}

/// What a result has that can be there often and take no bytes to speak of.
fn elements(result: &reapi::ActionResult) -> usize {
    let files = result.output_files.iter().map(|file| &file.node_properties);
    let properties = files.chain(result.output_symlinks.iter().map(|link| &link.node_properties));
    let properties = properties.map(|properties| properties.as_ref().map_or(0, |properties| properties.properties.len()));
    let metadata = result.execution_metadata.as_ref().map_or(0, |metadata| metadata.auxiliary_metadata.len());
    properties.sum::<usize>() + metadata
}

/// Fields and elements of JSON, and a few more: what begins with a bracket or stands behind a comma.
fn values(json: &[u8]) -> usize {
    let (mut count, mut inside, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            b'{' | b'[' | b',' if !inside => count += 1,
            _ => {}
        }
    }
    count
}

/// Refuses messages that are named by their type in others that are, too deep.
fn check_nesting(message: &DynamicMessage, left: usize) -> Result<(), JsonError> {
    if message.descriptor().full_name() == "google.protobuf.Any" {
        let Some(left) = left.checked_sub(1) else {
            return Err(JsonError::Unspeakable(format!("more than {NESTED_MAX} messages are inside of each other")));
        };
        let field = |name: &str| message.get_field_by_name(name);
        let (Some(name), Some(value)) = (field("type_url"), field("value")) else { return Ok(()) };
        let name = name.as_str().and_then(|name| name.rsplit('/').next()).unwrap_or_default();
        // One that is not known is refused when it is to be written.
        let Some(inner) = message.descriptor().parent_pool().get_message_by_name(name) else { return Ok(()) };
        let bytes = value.as_bytes().cloned().unwrap_or_default();
        let inner = DynamicMessage::decode(inner, bytes).map_err(|error| JsonError::Unspeakable(error.to_string()))?;
        return check_nesting(&inner, left);
    }
    message.fields().try_for_each(|(_, value)| check_value(value, left))
}

fn check_value(value: &Value, left: usize) -> Result<(), JsonError> {
    match value {
        Value::Message(message) => check_nesting(message, left),
        Value::List(values) => values.iter().try_for_each(|value| check_value(value, left)),
        Value::Map(values) => values.values().try_for_each(|value| check_value(value, left)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use prost_types::Any;

    use super::*;

    fn written(result: &reapi::ActionResult) -> Result<Vec<u8>, JsonError> {
        encode(&result.encode_to_vec(), result)
    }

    fn accepting(value: &str) -> HeaderMap {
        [(header::ACCEPT, HeaderValue::from_str(value).unwrap())].into_iter().collect()
    }

    #[test]
    fn who_names_json_gets_it() {
        for (value, json, bytes) in [
            ("application/json", true, false),
            ("Application/JSON; charset=utf-8", true, false),
            ("application/json, */*;q=0.1", true, true),
            ("application/json;q=0.5, application/octet-stream", false, true),
            ("application/json, application/octet-stream;q=0", true, false),
            ("application/json;q=0", false, false),
            ("*/*", false, true),
            ("text/html", false, false),
            ("", false, false),
        ] {
            assert_eq!((is_wanted(&accepting(value)), bytes_will_do(&accepting(value))), (json, bytes), "{value}");
        }
        assert!(!is_wanted(&HeaderMap::new()));
    }

    fn full() -> reapi::ActionResult {
        let digest = |text: &str| Some(reapi::Digest { hash: text.repeat(64), size_bytes: i64::MAX });
        let time = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        let known = reapi::Digest { hash: "b".into(), size_bytes: 3 };
        let metadata = reapi::ExecutedActionMetadata {
            worker: "w\"\\\u{1F600}".into(),
            queued_timestamp: time(1_700_000_000, 5_000_000),
            virtual_execution_duration: Some(prost_types::Duration { seconds: 3, nanos: 250_000_000 }),
            auxiliary_metadata: vec![Any {
                type_url: "type.googleapis.com/build.bazel.remote.execution.v2.Digest".into(),
                value: known.encode_to_vec(),
            }],
            ..Default::default()
        };
        let properties = reapi::NodeProperties {
            properties: vec![reapi::NodeProperty { name: "n".into(), value: "v".into() }],
            mtime: time(-1, 0),
            unix_mode: Some(0o755),
        };
        reapi::ActionResult {
            output_files: vec![reapi::OutputFile {
                path: "a/ü".into(),
                digest: digest("a"),
                is_executable: true,
                contents: vec![0, 255, 62, 63].into(),
                node_properties: Some(properties),
            }],
            output_directories: vec![reapi::OutputDirectory { path: "d".into(), tree_digest: digest("b"), ..Default::default() }],
            output_symlinks: vec![reapi::OutputSymlink { path: "l".into(), target: "t".into(), ..Default::default() }],
            exit_code: -7,
            stdout_raw: "said".into(),
            stderr_digest: digest("c"),
            execution_metadata: Some(metadata),
            ..Default::default()
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_and_is_protobufs_mapping() {
        for result in [full(), reapi::ActionResult::default()] {
            let json = written(&result).unwrap();
            assert_eq!(reapi::ActionResult::decode(&decode(&json).unwrap()[..]).unwrap(), result);
        }
        let json: serde_json::Value = serde_json::from_slice(&written(&full()).unwrap()).unwrap();
        for (pointer, expected) in [
            ("/exitCode", serde_json::json!(-7)),
            ("/outputFiles/0/isExecutable", true.into()),
            ("/outputFiles/0/digest/sizeBytes", "9223372036854775807".into()),
            ("/outputFiles/0/contents", "AP8+Pw==".into()),
            ("/outputFiles/0/nodeProperties/unixMode", 0o755.into()),
            ("/stdoutRaw", "c2FpZA==".into()),
            ("/executionMetadata/queuedTimestamp", "2023-11-14T22:13:20.005Z".into()),
            ("/executionMetadata/virtualExecutionDuration", "3.250s".into()),
            ("/executionMetadata/auxiliaryMetadata/0/hash", "b".into()),
        ] {
            assert_eq!(json.pointer(pointer), Some(&expected), "{pointer}");
        }
        // Both ways to write names and numbers are right.
        let other =
            br#" {"exit_code": "5", "outputFiles": [{"path": "p", "digest": {"hash": "aa", "size_bytes": 3}}], "stdoutRaw": null} "#;
        let result = reapi::ActionResult::decode(&decode(other).unwrap()[..]).unwrap();
        assert_eq!((result.exit_code, result.output_files[0].digest.as_ref().unwrap().size_bytes), (5, 3));
    }

    #[test]
    fn what_is_no_action_result_is_refused_where_it_is_not() {
        for (json, named) in [
            ("", "line 1 column 0"),
            ("{", "line 1 column 1"),
            ("[]", "line 1 column"),
            ("null", "line 1 column"),
            ("{\n \"exitCode\": 1,\n \"exit\": 2}", "exit"),
            ("{\n \"exitCode\": 1,\n \"exit\": 2}", "line 3 column"),
            (r#"{"exitCode": "many"}"#, "line 1 column"),
            (r#"{"exitCode": 1.5}"#, "line 1 column"),
            (r#"{"exitCode": 99999999999}"#, "line 1 column"),
            (r#"{"stdoutRaw": "?"}"#, "line 1 column"),
            (r#"{"outputFiles": {}}"#, "line 1 column"),
            (r#"{"executionMetadata": {"queuedTimestamp": "yesterday"}}"#, "line 1 column"),
            (r#"{"executionMetadata": {"auxiliaryMetadata": [{"@type": "type.googleapis.com/no.such"}]}}"#, "no.such"),
            ("{} {}", "line 1 column 4"),
        ] {
            let error = decode(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(named), "{json}: {error}");
        }
        let deep = format!("{}{}", r#"{"executionMetadata":"#.repeat(200), "}".repeat(200));
        assert!(decode(deep.as_bytes()).is_err());
        let deep = format!("{{\"executionMetadata\":{{\"auxiliaryMetadata\":[{}{}]}}}}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
        assert!(decode(deep.as_bytes()).is_err());
    }

    #[test]
    fn many_empty_messages_are_refused_before_they_take_memory() {
        let many = |count: usize| format!("{{\"outputFiles\":[{}{{}}]}}", "{},".repeat(count));
        assert!(decode(many(1_000).as_bytes()).is_ok());
        assert!(matches!(decode(many(VALUES_MAX).as_bytes()), Err(JsonError::Large)));
        let properties = vec![reapi::NodeProperty::default(); VALUES_MAX + 1];
        let properties = Some(reapi::NodeProperties { properties, ..Default::default() });
        let file = reapi::OutputFile { node_properties: properties, ..Default::default() };
        let result = reapi::ActionResult { output_files: vec![file], ..Default::default() };
        assert!(matches!(written(&result), Err(JsonError::Large)));
        // Commas and brackets of texts do not count.
        let text = format!("{{\"stdoutRaw\":\"\",\"outputFiles\":[{{\"path\":\"\\\"{}\"}}]}}", ",{[".repeat(VALUES_MAX));
        assert!(decode(text.as_bytes()).is_ok());
    }

    #[test]
    fn messages_inside_of_messages_go_so_deep_and_no_deeper() {
        let nested = |depth: usize| {
            let mut result = reapi::ActionResult::default();
            for _ in 0..depth {
                let inner = Any { type_url: format!("type.googleapis.com/{ACTION_RESULT}"), value: result.encode_to_vec() };
                let metadata = reapi::ExecutedActionMetadata { auxiliary_metadata: vec![inner], ..Default::default() };
                result = reapi::ActionResult { execution_metadata: Some(metadata), ..Default::default() };
            }
            result
        };
        assert!(written(&nested(NESTED_MAX)).is_ok());
        let error = written(&nested(NESTED_MAX + 1)).unwrap_err().to_string();
        assert!(error.contains("inside of each other"), "{error}");
        // Deep enough to take the stack away, if it were followed.
        assert!(written(&nested(2_000)).is_err());
    }

    #[test]
    fn what_json_has_no_word_for_is_an_error() {
        let unknown = Any { type_url: "type.googleapis.com/no.such".into(), value: Default::default() };
        let metadata = reapi::ExecutedActionMetadata { auxiliary_metadata: vec![unknown], ..Default::default() };
        let result = reapi::ActionResult { execution_metadata: Some(metadata), ..Default::default() };
        let error = written(&result).unwrap_err().to_string();
        assert!(error.contains("no.such"), "{error}");
    }
}
