//! `blockstore-tool cat-action`: an action result, and the messages that actions are made of, for people and as JSON.
//!
//! Always true here: field names are those of the Remote Execution API, in snake case; what is no such message is said to be none.

use crate::{
    name,
    output::{self, Failure, Verdict, defect},
    store::{self, Target},
};
use blockstore_engine::{Key, offline::OfflineObject, offline::OfflineStore, offline::Trust};
use blockstore_names::{ActionKey, Instance, keys, value};
use blockstore_proto::FILE_DESCRIPTOR_SET;
use bytes::{Bytes, BytesMut};
use clap::ValueEnum;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;
use std::{
    io::{self, Write},
    sync::Arc,
};

/// Largest message that is read.
const MESSAGE_BYTES_MAX: u64 = 256 << 20;
const PACKAGE: &str = "build.bazel.remote.execution.v2";

/// Print an action result, or an Action, Command, Directory or Tree, as text or JSON
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Digest of the action (for its result) or of the message: [FUNCTION/]HASH[/SIZE]; or, of a result, its key as `ls` prints it
    digest: String,
    /// What it is
    #[arg(long = "as", value_enum, default_value_t = Message::Result)]
    message: Message,
    /// Instance of the action result
    #[arg(long, default_value = "")]
    instance: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Message {
    Result,
    Action,
    Command,
    Directory,
    Tree,
}

impl Message {
    fn name(self) -> &'static str {
        match self {
            Self::Result => "ActionResult",
            Self::Action => "Action",
            Self::Command => "Command",
            Self::Directory => "Directory",
            Self::Tree => "Tree",
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<Verdict, Failure> {
    let (key, size_bytes) = key(&arguments)?;
    let store = store::read(&arguments.target.path(), false, Trust::One).await?;
    let stored = read(&store, &key, size_bytes, &arguments.digest).await?;
    let encoded = match arguments.message {
        Message::Result => result(stored, &arguments.digest)?,
        _ => stored,
    };
    let json = to_json(&encoded, arguments.message)
        .map_err(|error| Failure::usage(format!("{} is no {}: {error}", arguments.digest, arguments.message.name())))?;
    if arguments.target.json {
        output::json(&json)?;
    } else {
        let mut text = String::new();
        outline(&json, 0, &mut text);
        io::stdout().lock().write_all(text.as_bytes())?;
    }
    Ok(Verdict::Sound)
}

fn key(arguments: &Arguments) -> Result<(Key, Option<u64>), Failure> {
    if arguments.message != Message::Result || arguments.digest.contains(':') {
        return name::parse(&arguments.digest);
    }
    let (digest, _) = name::parse_digest(&arguments.digest)?;
    Ok((keys::action_key(&Instance::new(&arguments.instance), &ActionKey { digest, size_known: false }), None))
}

async fn read(store: &Arc<OfflineStore>, key: &Key, size_bytes: Option<u64>, told_name: &str) -> Result<Bytes, Failure> {
    let told = |what| Failure::damage(format!("{told_name} {}", defect(what)));
    let Some(mut object): Option<OfflineObject> = store.find(key, size_bytes).await.map_err(told)? else {
        return Err(Failure::usage(format!("{told_name} is not in the store")));
    };
    if object.record.size_bytes > MESSAGE_BYTES_MAX {
        return Err(Failure::usage(format!("{told_name} has {} bytes: no message is so large", object.record.size_bytes)));
    }
    let mut all = BytesMut::new();
    while let Some(piece) = crate::decode::next(&mut object).await {
        all.extend_from_slice(&piece.map_err(told)?);
    }
    Ok(all.freeze())
}

/// The result in a stored value.
fn result(mut stored: Bytes, told_name: &str) -> Result<Bytes, Failure> {
    match value::action_bytes(&stored) {
        Some(_) => Ok(stored.split_off(value::ACTION_PREFIX_BYTES)),
        None => Err(Failure::usage(format!("{told_name}: the value has a form that this program does not know"))),
    }
}

fn to_json(encoded: &[u8], message: Message) -> Result<Value, String> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).map_err(|error| error.to_string())?;
    let name = format!("{PACKAGE}.{}", message.name());
    let descriptor = pool.get_message_by_name(&name).ok_or_else(|| format!("{name} is not described"))?;
    let decoded = DynamicMessage::decode(descriptor, encoded).map_err(|error| error.to_string())?;
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
    decoded.serialize_with_options(serde_json::value::Serializer, &options).map_err(|error| error.to_string())
}

/// A digest on one line, everything else a field a line, deeper ones further in.
fn outline(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    let scalar = |value: &Value| match value {
        Value::String(string) => string.clone(),
        other => other.to_string(),
    };
    let Value::Object(fields) = value else {
        text.push_str(&format!("{indent}{}\n", scalar(value)));
        return;
    };
    for (name, value) in fields {
        match value {
            Value::Object(_) if digest(value).is_some() => {
                text.push_str(&format!("{indent}{name}: {}\n", digest(value).unwrap_or_default()));
            }
            Value::Object(_) => {
                text.push_str(&format!("{indent}{name}:\n"));
                outline(value, depth + 1, text);
            }
            Value::Array(values) => {
                text.push_str(&format!("{indent}{name}:\n"));
                for value in values {
                    match value {
                        Value::Object(_) => {
                            let mut inner = String::new();
                            outline(value, depth + 2, &mut inner);
                            // The first field stands behind the dash.
                            text.push_str(&format!("{indent}  - {}", inner.trim_start()));
                        }
                        scalar_value => text.push_str(&format!("{indent}  - {}\n", scalar(scalar_value))),
                    }
                }
            }
            value => text.push_str(&format!("{indent}{name}: {}\n", scalar(value))),
        }
    }
}

fn digest(value: &Value) -> Option<String> {
    let fields = value.as_object().filter(|fields| fields.len() <= 2)?;
    let hash = fields.get("hash")?.as_str()?;
    let size_bytes = fields.get("size_bytes").map_or(Some(0), Value::as_u64)?;
    Some(format!("{hash}/{size_bytes}"))
}
