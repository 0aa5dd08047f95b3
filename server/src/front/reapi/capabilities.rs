//! What is announced: only what is implemented.

use std::sync::Arc;

use blockstore_proto::{
    reapi::{self, compressor::Value as Compressor},
    semver::SemVer,
};
use tonic::Status;

use super::{
    Shared,
    grpc::{Answer, Call, Outgoing, decode},
    request,
};
use crate::{
    auth::{Right, Rights},
    store::{
        Instance,
        chunking::{FAST_CDC_AVERAGE_BYTES, FAST_CDC_SEED, REP_MAX_CDC_HORIZON_BYTES, REP_MAX_CDC_MIN_BYTES},
    },
};

/// Oldest and newest version of the Remote Execution API that is spoken. It has to start at 2.0: clients that know nothing
/// newer give up otherwise.
const API_VERSIONS: (SemVer, SemVer) = (version(2, 0), version(2, 13));

const fn version(major: i32, minor: i32) -> SemVer {
    SemVer { major, minor, patch: 0, prerelease: String::new() }
}

pub(super) async fn get(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let message = call.messages.only().await?.message;
    let message: reapi::GetCapabilitiesRequest = decode(message)?;
    let instance = request::instance(&message.instance_name)?;
    Ok(Answer::one(Outgoing::message(&server_capabilities(&shared, &instance, call.rights()))))
}

fn server_capabilities(shared: &Shared, instance: &Instance, rights: Rights) -> reapi::ServerCapabilities {
    let store = shared.store.capabilities();
    let update_enabled = *shared.options.instances.updates.get(instance) && rights.allow(Right::Write);
    let cache = reapi::CacheCapabilities {
        digest_functions: store.digest_functions.iter().map(|f| i32::from(f.number())).collect(),
        action_cache_update_capabilities: Some(reapi::ActionCacheUpdateCapabilities { update_enabled }),
        cache_priority_capabilities: None,
        max_batch_total_size_bytes: super::BATCH_ANNOUNCED_BYTES_MAX,
        symlink_absolute_path_strategy: reapi::symlink_absolute_path_strategy::Value::Allowed.into(),
        supported_compressors: vec![Compressor::Zstd.into()],
        supported_batch_update_compressors: vec![Compressor::Zstd.into()],
        max_cas_blob_size_bytes: i64::try_from(store.blob_bytes_max).unwrap_or(i64::MAX),
        split_blob_support: store.chunked_blobs,
        splice_blob_support: store.chunked_blobs,
        fast_cdc_2020_params: store
            .chunked_blobs
            .then_some(reapi::FastCdc2020Params { avg_chunk_size_bytes: FAST_CDC_AVERAGE_BYTES as u64, seed: FAST_CDC_SEED }),
        rep_max_cdc_params: store.chunked_blobs.then_some(reapi::RepMaxCdcParams {
            min_chunk_size_bytes: REP_MAX_CDC_MIN_BYTES as u64,
            horizon_size_bytes: REP_MAX_CDC_HORIZON_BYTES as u64,
        }),
    };
    let (low, high) = API_VERSIONS;
    reapi::ServerCapabilities {
        cache_capabilities: Some(cache),
        // Unset: this server runs nothing.
        execution_capabilities: None,
        deprecated_api_version: None,
        low_api_version: Some(low),
        high_api_version: Some(high),
    }
}
