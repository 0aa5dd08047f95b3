//! The access log: one line for each request, in text or JSON.
//!
//! Always true here: a line is one line, whatever a client sent: text that a client made up is bounded and escaped, and JSON is made
//! by a library. What may be a credential never gets here: a name is that of a user who exists.

use std::{fmt::Write, net::SocketAddr, time::Duration};

use blockstore_proto::reapi;
use serde::Serialize;
use tracing_subscriber::fmt::{
    format::Writer,
    time::{FormatTime, SystemTime},
};

use super::{Format, writer::LineWriter};
use crate::store::Digest;

/// Bytes of a text that a client made up, in a line.
const TEXT_BYTES_MAX: usize = 256;

/// Where the lines go.
#[derive(Clone, Debug)]
pub struct AccessLog {
    format: Format,
    writer: LineWriter,
}

/// What the client said of the action that a request belongs to. Empty where it said nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    tool: String,
    tool_version: String,
    action_id: String,
    tool_invocation_id: String,
    correlated_invocations_id: String,
    target: String,
    mnemonic: String,
    configuration: String,
}

impl From<reapi::RequestMetadata> for Metadata {
    fn from(metadata: reapi::RequestMetadata) -> Self {
        let tool = metadata.tool_details.unwrap_or_default();
        Self {
            tool: bounded(&tool.tool_name),
            tool_version: bounded(&tool.tool_version),
            action_id: bounded(&metadata.action_id),
            tool_invocation_id: bounded(&metadata.tool_invocation_id),
            correlated_invocations_id: bounded(&metadata.correlated_invocations_id),
            target: bounded(&metadata.target_id),
            mnemonic: bounded(&metadata.action_mnemonic),
            configuration: bounded(&metadata.configuration_id),
        }
    }
}

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A blob or an action.
    Digest(Digest),
    /// So many blobs.
    Blobs(usize),
    /// A name, a hash or a path, as the client sent it.
    Name(Box<[u8]>),
}

impl Resource {
    /// A name, or as much of it as a line has room for and a byte more, so that the cut is seen.
    pub fn name(name: &[u8]) -> Self {
        Self::Name(name.get(..=TEXT_BYTES_MAX).unwrap_or(name).into())
    }
}

/// The beginning of a text that is too long, with a mark where it was cut.
fn bounded(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let mut end = TEXT_BYTES_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// A request that ended.
#[derive(Debug)]
pub struct Entry<'a> {
    /// `grpc` or `http`.
    pub protocol: &'static str,
    /// The method of gRPC or HTTP.
    pub method: &'static str,
    /// `cas`, `ac`, `kv` or `other`.
    pub kind: &'static str,
    /// What it was about, if that became known.
    pub resource: Option<&'a Resource>,
    /// The code of gRPC, or the status of HTTP.
    pub status: &'a str,
    /// Bytes of the request's body that arrived.
    pub received_bytes: u64,
    /// Bytes of the answer's body that were handed on.
    pub sent_bytes: u64,
    /// From its arrival to the answer's last byte.
    pub took: Duration,
    /// Who sent it.
    pub peer: Option<SocketAddr>,
    /// As whom, if that was proved.
    pub user: Option<&'a str>,
    /// The user who the client was not, or who may not do this.
    pub refused_user: Option<&'a str>,
    /// What the client said of it.
    pub metadata: Metadata,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    timestamp: &'a str,
    protocol: &'a str,
    method: &'a str,
    kind: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    resource: &'a str,
    status: &'a str,
    received_bytes: u64,
    sent_bytes: u64,
    duration_ms: f64,
    #[serde(skip_serializing_if = "str::is_empty")]
    peer: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    refused_user: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    tool: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    tool_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    action_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    tool_invocation_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    correlated_invocations_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    target: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    mnemonic: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    configuration: &'a str,
}

impl Entry<'_> {
    fn resource(&self) -> String {
        match self.resource {
            None => String::new(),
            Some(Resource::Digest(digest)) => digest.to_string(),
            Some(Resource::Blobs(blobs)) => format!("{blobs} blobs"),
            Some(Resource::Name(name)) => bounded(&String::from_utf8_lossy(name)),
        }
    }

    fn with_line<T>(&self, timestamp: &str, then: impl FnOnce(&Line<'_>) -> T) -> T {
        let (resource, peer) = (self.resource(), self.peer.map(|peer| peer.to_string()).unwrap_or_default());
        let metadata = &self.metadata;
        then(&Line {
            timestamp,
            protocol: self.protocol,
            method: self.method,
            kind: self.kind,
            resource: &resource,
            status: self.status,
            received_bytes: self.received_bytes,
            sent_bytes: self.sent_bytes,
            // Microseconds are enough.
            duration_ms: (self.took.as_secs_f64() * 1e6).round() / 1e3,
            peer: &peer,
            user: self.user.unwrap_or_default(),
            refused_user: self.refused_user.unwrap_or_default(),
            tool: &metadata.tool,
            tool_version: &metadata.tool_version,
            action_id: &metadata.action_id,
            tool_invocation_id: &metadata.tool_invocation_id,
            correlated_invocations_id: &metadata.correlated_invocations_id,
            target: &metadata.target,
            mnemonic: &metadata.mnemonic,
            configuration: &metadata.configuration,
        })
    }

    /// Names and values, apart by blanks, without the time.
    pub fn text(&self) -> String {
        self.with_line("", |line| line.text())
    }
}

impl Line<'_> {
    fn text(&self) -> String {
        let mut text = format!("protocol={} method={} kind={}", self.protocol, self.method, self.kind);
        let mut add = |name: &str, value: &str| {
            if !value.is_empty() {
                // Writing to a string does not fail.
                let _ = match value.bytes().all(is_plain) {
                    true => write!(text, " {name}={value}"),
                    false => write!(text, " {name}={value:?}"),
                };
            }
        };
        add("resource", self.resource);
        add("status", self.status);
        add("received_bytes", &self.received_bytes.to_string());
        add("sent_bytes", &self.sent_bytes.to_string());
        add("duration_ms", &format!("{:.3}", self.duration_ms));
        add("peer", self.peer);
        add("user", self.user);
        add("refused_user", self.refused_user);
        add("tool", self.tool);
        add("tool_version", self.tool_version);
        add("action_id", self.action_id);
        add("tool_invocation_id", self.tool_invocation_id);
        add("correlated_invocations_id", self.correlated_invocations_id);
        add("target", self.target);
        add("mnemonic", self.mnemonic);
        add("configuration", self.configuration);
        text
    }
}

/// Whether a byte needs no quotes.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_./:@+,[]".contains(&byte)
}

/// The time as logs have it.
pub(super) fn timestamp() -> String {
    let mut now = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut now));
    now
}

impl AccessLog {
    /// A log of that format.
    pub fn new(format: Format, writer: LineWriter) -> Self {
        Self { format, writer }
    }

    /// Writes a line.
    pub fn write(&self, entry: &Entry<'_>) {
        let now = timestamp();
        let line = entry.with_line(&now, |line| match self.format {
            Format::Json => serde_json::to_vec(line).unwrap_or_default(),
            Format::Text => format!("{now} access {}", line.text()).into_bytes(),
        });
        self.writer.line([line, b"\n".into()].concat());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DigestFunction, Hasher};

    fn entry(resource: &Resource, metadata: Metadata) -> Entry<'_> {
        Entry {
            protocol: "grpc",
            method: "GetActionResult",
            kind: "ac",
            resource: Some(resource),
            status: "NotFound",
            received_bytes: 5,
            sent_bytes: 0,
            took: Duration::from_micros(1234),
            peer: Some("[::1]:5".parse().unwrap()),
            user: None,
            refused_user: None,
            metadata,
        }
    }

    #[test]
    fn what_a_client_made_up_is_one_line_of_bounded_length() {
        let hostile = "a b=\"c\"\n\r\u{1b}[31m\u{0}\u{2028}é\\".repeat(100);
        let metadata = Metadata {
            tool: bounded(&hostile),
            tool_version: bounded(&hostile),
            action_id: bounded(&hostile),
            tool_invocation_id: bounded(&hostile),
            correlated_invocations_id: bounded(&hostile),
            target: bounded(&hostile),
            mnemonic: bounded(&hostile),
            configuration: bounded(&hostile),
        };
        let resource = Resource::name(&[0xff, b'\n', b'"', 0, 0x80].repeat(1000));
        let entry = entry(&resource, metadata);
        let text = entry.text();
        assert!(text.chars().all(|c| !c.is_control() && c != '\u{2028}'), "{text:?}");
        assert!(text.len() < 12_000, "{}", text.len());
        let json = entry.with_line("now", |line| serde_json::to_string(line).unwrap());
        assert!(!json.contains('\n') && json.len() < 12_000, "{json}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(value["tool"].as_str().unwrap().starts_with("a b=\"c\"\n\r\u{1b}[31m\0\u{2028}é\\"));
        assert_eq!(value["resource"].as_str().unwrap().chars().next(), Some('\u{fffd}'));
    }

    #[test]
    fn lines_as_they_are_documented() {
        let digest = Hasher::digest(DigestFunction::Sha256, b"x");
        let resource = Resource::Digest(digest);
        let metadata = Metadata { tool: "bazel".into(), target: "//a:b c".into(), ..Metadata::default() };
        let entry_of = entry;
        let entry = entry(&resource, metadata);
        assert_eq!(
            entry.text(),
            format!(
                "protocol=grpc method=GetActionResult kind=ac resource={digest} status=NotFound received_bytes=5 sent_bytes=0 \
                 duration_ms=1.234 peer=[::1]:5 tool=bazel target=\"//a:b c\""
            )
        );
        let named = Entry { user: Some("alice b"), refused_user: Some("bob"), ..entry_of(&resource, Metadata::default()) };
        assert!(named.text().ends_with(" peer=[::1]:5 user=\"alice b\" refused_user=bob"), "{}", named.text());
        let named = named.with_line("now", |line| serde_json::to_value(line).unwrap());
        assert_eq!((&named["user"], &named["refused_user"]), (&"alice b".into(), &"bob".into()));
        let json = entry.with_line("now", |line| serde_json::to_value(line).unwrap());
        let expected = serde_json::json!({
            "timestamp": "now", "protocol": "grpc", "method": "GetActionResult", "kind": "ac", "resource": digest.to_string(),
            "status": "NotFound", "received_bytes": 5, "sent_bytes": 0, "duration_ms": 1.234, "peer": "[::1]:5", "tool": "bazel",
            "target": "//a:b c",
        });
        assert_eq!(json, expected);
    }
}
