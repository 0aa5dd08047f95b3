//! Messages of the public interfaces, made up field by field from their descriptors.
//!
//! Always true here: a message is at most [`DEPTH_MAX`] deep and about [`BYTES_MAX`] long; its fields have the types that they should
//! have, or rarely not.

use std::collections::HashMap;

use blockstore_proto::FILE_DESCRIPTOR_SET;
use bytes::{BufMut, Bytes};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};

use super::{
    known::{Known, wire},
    source::Source,
};

const DEPTH_MAX: usize = 5;
const BYTES_MAX: usize = 4 << 20;
const DIGEST: &str = ".build.bazel.remote.execution.v2.Digest";

/// A method that a client can call.
pub(super) struct Method {
    /// `/package.Service/Method`.
    pub(super) path: String,
    /// Full name of its request.
    pub(super) request: String,
    /// Whether it takes more than one.
    pub(super) many: bool,
}

/// Every message and every method there is.
pub(super) struct Schema {
    messages: HashMap<String, DescriptorProto>,
    pub(super) methods: Vec<Method>,
}

impl Schema {
    pub(super) fn new() -> Self {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("descriptors");
        let mut messages = HashMap::new();
        let mut methods = Vec::new();
        for file in set.file {
            let package = format!(".{}", file.package());
            // Health and reflection are answered by libraries; watching the health has no end.
            let ours = !file.package().starts_with("grpc.");
            for service in file.service.iter().filter(|_| ours) {
                methods.extend(service.method.iter().map(|method| Method {
                    path: format!("/{}.{}/{}", file.package(), service.name(), method.name()),
                    request: method.input_type().to_owned(),
                    many: method.client_streaming(),
                }));
            }
            file.message_type.into_iter().for_each(|message| add(&mut messages, &package, message));
        }
        Self { messages, methods }
    }

    /// A message of this type.
    pub(super) fn build(&self, known: &Known, source: &mut Source<'_>, message: &str) -> Bytes {
        let mut out = Vec::new();
        self.put(known, source, message, 0, &mut out);
        out.into()
    }

    fn put(&self, known: &Known, source: &mut Source<'_>, message: &str, depth: usize, out: &mut Vec<u8>) {
        if message == DIGEST && !source.rarely(4) {
            let mut digest = wire(&known.digest(source));
            if source.rarely(8) {
                digest.size_bytes = source.number() as i64;
            }
            out.put_slice(&digest.encode_to_vec());
            return;
        }
        let Some(descriptor) = self.messages.get(message) else { return };
        for field in &descriptor.field {
            let times = match source.below(8) {
                6 => 0,
                7 => 1 + source.below(4),
                _ => 1,
            };
            for _ in 0..times {
                if out.len() < BYTES_MAX && !source.is_empty() {
                    self.put_field(known, source, field, depth, out);
                }
            }
        }
    }

    fn put_field(&self, known: &Known, source: &mut Source<'_>, field: &FieldDescriptorProto, depth: usize, out: &mut Vec<u8>) {
        let number = u32::try_from(field.number()).unwrap_or(1);
        if source.rarely(64) {
            encode_key(number, WireType::SixtyFourBit, out);
            out.put_u64_le(source.number());
            return;
        }
        let value: Bytes = match field.r#type() {
            Type::String => match field.name() {
                "hash" => known.hash(source),
                "resource_name" => known.resource_name(source),
                "instance_name" => known.instance(source),
                _ => known.word(source),
            }
            .into(),
            Type::Bytes => known.data(source),
            Type::Message | Type::Group if depth == DEPTH_MAX => return,
            Type::Message | Type::Group => {
                let mut inner = Vec::new();
                self.put(known, source, field.type_name(), depth + 1, &mut inner);
                inner.into()
            }
            Type::Fixed64 | Type::Sfixed64 | Type::Double => {
                encode_key(number, WireType::SixtyFourBit, out);
                return out.put_u64_le(source.number());
            }
            Type::Fixed32 | Type::Sfixed32 | Type::Float => {
                encode_key(number, WireType::ThirtyTwoBit, out);
                return out.put_u32_le(source.number() as u32);
            }
            Type::Bool | Type::Enum => {
                encode_key(number, WireType::Varint, out);
                return encode_varint(source.below(12) as u64, out);
            }
            _ => {
                encode_key(number, WireType::Varint, out);
                return encode_varint(source.number(), out);
            }
        };
        encode_key(number, WireType::LengthDelimited, out);
        encode_varint(value.len() as u64, out);
        out.put_slice(&value);
    }
}

fn add(messages: &mut HashMap<String, DescriptorProto>, scope: &str, message: DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    message.nested_type.iter().for_each(|nested| add(messages, &name, nested.clone()));
    messages.insert(name, message);
}
