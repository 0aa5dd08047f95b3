//! The announced surface: names, numbers and methods as the public interfaces define them.

use std::collections::{BTreeMap, BTreeSet};

use blockstore_proto::{FILE_DESCRIPTOR_SET, bytestream, reapi, rpc};
use bytes::Bytes;
use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

fn files() -> BTreeMap<String, FileDescriptorProto> {
    FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap().file.into_iter().map(|file| (file.name().to_owned(), file)).collect()
}

/// Every `package.Service/Method`, with `>` behind a streamed request and `<` behind a streamed response.
fn methods() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for file in files().values() {
        for service in &file.service {
            for method in &service.method {
                all.insert(format!(
                    "{}.{}/{}{}{}",
                    file.package(),
                    service.name(),
                    method.name(),
                    if method.client_streaming() { ">" } else { "" },
                    if method.server_streaming() { "<" } else { "" },
                ));
            }
        }
    }
    all
}

#[test]
fn methods_are_those_of_the_public_interfaces() {
    let expected = [
        "build.bazel.remote.asset.v1.Fetch/FetchBlob",
        "build.bazel.remote.asset.v1.Fetch/FetchDirectory",
        "build.bazel.remote.asset.v1.Push/PushBlob",
        "build.bazel.remote.asset.v1.Push/PushDirectory",
        "build.bazel.remote.execution.v2.ActionCache/GetActionResult",
        "build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
        "build.bazel.remote.execution.v2.Capabilities/GetCapabilities",
        "build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs",
        "build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs",
        "build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs",
        "build.bazel.remote.execution.v2.ContentAddressableStorage/GetChunkMapping<",
        "build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree<",
        "build.bazel.remote.execution.v2.ContentAddressableStorage/RegisterChunkMapping>",
        "build.bazel.remote.execution.v2.ContentAddressableStorage/SpliceBlob",
        "build.bazel.remote.execution.v2.ContentAddressableStorage/SplitBlob",
        "build.bazel.remote.execution.v2.Execution/Execute<",
        "build.bazel.remote.execution.v2.Execution/WaitExecution<",
        "google.bytestream.ByteStream/QueryWriteStatus",
        "google.bytestream.ByteStream/Read<",
        "google.bytestream.ByteStream/Write>",
        "google.longrunning.Operations/CancelOperation",
        "google.longrunning.Operations/DeleteOperation",
        "google.longrunning.Operations/GetOperation",
        "google.longrunning.Operations/ListOperations",
        "google.longrunning.Operations/WaitOperation",
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch<",
    ];
    assert_eq!(methods(), expected.map(str::to_owned).into());
}

fn enum_values(file: &FileDescriptorProto, message: &str) -> Vec<(String, i32)> {
    file.message_type
        .iter()
        .filter(|m| m.name() == message)
        .flat_map(|m| &m.enum_type)
        .filter(|e| e.name() == "Value")
        .flat_map(|e| &e.value)
        .map(|v| (v.name().to_owned(), v.number()))
        .collect()
}

#[test]
fn enum_numbers() {
    let files = files();
    let file = &files["build/bazel/remote/execution/v2/remote_execution.proto"];
    let expect = |message: &str, values: &[(&str, i32)]| {
        let values: Vec<_> = values.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        assert_eq!(enum_values(file, message), values, "{message}");
    };
    expect(
        "DigestFunction",
        &[
            ("UNKNOWN", 0),
            ("SHA256", 1),
            ("SHA1", 2),
            ("MD5", 3),
            ("VSO", 4),
            ("SHA384", 5),
            ("SHA512", 6),
            ("MURMUR3", 7),
            ("SHA256TREE", 8),
            ("BLAKE3", 9),
            ("GITSHA1", 10),
        ],
    );
    expect("Compressor", &[("IDENTITY", 0), ("ZSTD", 1), ("DEFLATE", 2), ("BROTLI", 3)]);
    expect("ChunkingFunction", &[("UNKNOWN", 0), ("FAST_CDC_2020", 1), ("REP_MAX_CDC", 2)]);
    expect("SymlinkAbsolutePathStrategy", &[("UNKNOWN", 0), ("DISALLOWED", 1), ("ALLOWED", 2)]);
}

/// Field numbers of the messages a cache lives on.
#[test]
fn field_numbers() {
    let files = files();
    let expect = |file: &str, message: &str, fields: &[(&str, i32)]| {
        let message = files[file].message_type.iter().find(|m| m.name() == message).unwrap();
        let found: Vec<_> = message.field.iter().map(|f| (f.name(), f.number())).collect();
        assert_eq!(found, fields, "{}", message.name());
    };
    let reapi = "build/bazel/remote/execution/v2/remote_execution.proto";
    expect(reapi, "Digest", &[("hash", 1), ("size_bytes", 2)]);
    expect(
        reapi,
        "ActionResult",
        &[
            ("output_files", 2),
            ("output_file_symlinks", 10),
            ("output_symlinks", 12),
            ("output_directories", 3),
            ("output_directory_symlinks", 11),
            ("exit_code", 4),
            ("stdout_raw", 5),
            ("stdout_digest", 6),
            ("stderr_raw", 7),
            ("stderr_digest", 8),
            ("execution_metadata", 9),
        ],
    );
    expect(
        reapi,
        "CacheCapabilities",
        &[
            ("digest_functions", 1),
            ("action_cache_update_capabilities", 2),
            ("cache_priority_capabilities", 3),
            ("max_batch_total_size_bytes", 4),
            ("symlink_absolute_path_strategy", 5),
            ("supported_compressors", 6),
            ("supported_batch_update_compressors", 7),
            ("max_cas_blob_size_bytes", 8),
            ("split_blob_support", 9),
            ("splice_blob_support", 10),
            ("fast_cdc_2020_params", 11),
            ("rep_max_cdc_params", 12),
        ],
    );
    expect(
        reapi,
        "RegisterChunkMappingRequest",
        &[("instance_name", 1), ("blob_digest", 2), ("chunk_digests", 3), ("digest_function", 4), ("chunking_function", 5)],
    );
    expect(
        "google/bytestream/bytestream.proto",
        "WriteRequest",
        &[("resource_name", 1), ("write_offset", 2), ("finish_write", 3), ("data", 10)],
    );
    expect("google/rpc/status.proto", "Status", &[("code", 1), ("message", 2), ("details", 3)]);
    assert_eq!(rpc::Code::Unauthenticated as i32, 16);
}

#[test]
fn decoding_shares_memory_with_the_input() {
    let request = reapi::BatchUpdateBlobsRequest {
        instance_name: "main".into(),
        requests: vec![reapi::batch_update_blobs_request::Request { data: vec![7u8; 10_000].into(), ..Default::default() }],
        digest_function: 1,
    };
    let encoded = Bytes::from(request.encode_to_vec());
    let input = encoded.as_ptr_range();
    let decoded = reapi::BatchUpdateBlobsRequest::decode(encoded.clone()).unwrap();
    let data = decoded.requests[0].data.as_ptr_range();
    assert!(input.start <= data.start && data.end <= input.end);

    let write = bytestream::WriteRequest { data: vec![1u8; 100].into(), ..Default::default() };
    let encoded = Bytes::from(write.encode_to_vec());
    let decoded = bytestream::WriteRequest::decode(encoded.clone()).unwrap();
    assert!(encoded.as_ptr_range().contains(&decoded.data.as_ptr()));
}
