//! Which program a client is, as the request metadata of the Remote Execution API say, and what some of them expect.
//!
//! Always true here: what a client says of itself changes only the form of an answer, never what is stored or permitted.

use blockstore_proto::reapi;
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;
use tonic::metadata::MetadataMap;

/// The header with an encoded `RequestMetadata`.
pub const METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";

/// Which clients expect other answers to compressed uploads than the rest. A rule is a tool's name, or `name/` and the beginning
/// of its version, such as `bazel/5.0.`; in names, case, `-` and `_` mean nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolRules {
    /// At the end these expect the size of the blob as `committed_size`; the others the bytes that they sent.
    pub committed_is_blob_size: Vec<String>,
    /// These do not take an answer before they have sent everything, also where the blob is there already.
    pub drained: Vec<String>,
}

impl ToolRules {
    /// Tools that want the size of the blob: Siso checks for it, and so do newer paths of reclient.
    pub const COMMITTED_IS_BLOB_SIZE: [&str; 2] = ["siso", "reclient"];
    /// Bazel 5.0 fails an upload whose `committed_size` is -1.
    pub const DRAINED: [&str; 1] = ["bazel/5.0."];
}

impl Default for ToolRules {
    fn default() -> Self {
        Self { committed_is_blob_size: Self::COMMITTED_IS_BLOB_SIZE.map(Into::into).into(), drained: Self::DRAINED.map(Into::into).into() }
    }
}

/// What that header says; `None` if it is malformed.
pub fn request_metadata(header: &HeaderValue) -> Option<reapi::RequestMetadata> {
    let map = MetadataMap::from_headers(HeaderMap::from_iter([(HeaderName::from_static(METADATA), header.clone())]));
    let encoded = map.get_bin(METADATA)?.to_bytes().ok()?;
    reapi::RequestMetadata::decode(encoded).ok()
}

/// A client's program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tool {
    name: String,
    version: String,
}

impl Tool {
    /// The tool that the headers of a call name; one without a name if there is none, or if it cannot be read.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        // Most calls of a build have the header; only uploads of compressed blobs look at it.
        let metadata = headers.get(METADATA).and_then(request_metadata);
        let details = metadata.and_then(|metadata| metadata.tool_details).unwrap_or_default();
        Self { name: plain(&details.tool_name), version: details.tool_version }
    }

    /// Whether one of the rules means this tool.
    pub(super) fn is_one_of(&self, rules: &[String]) -> bool {
        rules.iter().any(|rule| {
            let (name, version) = rule.split_once('/').unwrap_or((rule, ""));
            !self.name.is_empty() && plain(name) == self.name && self.version.starts_with(version)
        })
    }
}

/// A name as it is compared.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_')).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::metadata::MetadataValue;

    fn tool(name: &str, version: &str) -> Tool {
        let details = reapi::ToolDetails { tool_name: name.into(), tool_version: version.into() };
        let encoded = reapi::RequestMetadata { tool_details: Some(details), ..Default::default() }.encode_to_vec();
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(METADATA, MetadataValue::from_bytes(&encoded));
        Tool::of(&metadata.into_headers())
    }

    #[test]
    fn tools_are_known_by_name_and_by_the_beginning_of_their_version() {
        let rules = ToolRules::default();
        for (name, version, blob_size, drained) in [
            ("bazel", "5.0.0", false, true),
            ("bazel", "5.0.1", false, true),
            ("bazel", "5.1.0", false, false),
            ("bazel", "15.0.0", false, false),
            ("bazel", "", false, false),
            ("siso", "1.2", true, false),
            ("Siso", "", true, false),
            ("re-client", "0.1", true, false),
            ("reclient", "0.1", true, false),
            ("sisophos", "1", false, false),
            ("", "", false, false),
        ] {
            let tool = tool(name, version);
            assert_eq!(tool.is_one_of(&rules.committed_is_blob_size), blob_size, "{name} {version}");
            assert_eq!(tool.is_one_of(&rules.drained), drained, "{name} {version}");
        }
        assert!(!tool("", "").is_one_of(&[String::new()]));
    }

    #[test]
    fn metadata_that_cannot_be_read_name_no_tool() {
        assert_eq!(Tool::of(&HeaderMap::new()), Tool::default());
        for value in ["!", "////", "CgAKAAo"] {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(METADATA), value.parse().unwrap())]);
            assert_eq!(Tool::of(&headers), Tool::default(), "{value}");
        }
    }
}
