//! The public interfaces that blockstore speaks, as messages, clients and server traits.
//!
//! The `.proto` files beside this crate declare the public packages under their own names, with the same field numbers, so
//! that any client of these interfaces understands us. Every `bytes` field is a [`bytes::Bytes`].

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)] // generated
mod packages {
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

pub use packages::{build, google, grpc};

/// Remote Execution API v2 (`build.bazel.remote.execution.v2`), at version 2.13.
pub use packages::build::bazel::remote::execution::v2 as reapi;

/// Remote Asset API v1 (`build.bazel.remote.asset.v1`).
pub use packages::build::bazel::remote::asset::v1 as asset;

/// Version numbers as the capabilities carry them (`build.bazel.semver`).
pub use packages::build::bazel::semver;

/// Byte streams by resource name (`google.bytestream`).
pub use packages::google::bytestream;

/// gRPC's error model as messages (`google.rpc`).
pub use packages::google::rpc;

/// An encoded `google.protobuf.FileDescriptorSet` of every file, with the well-known types they use, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
