//! The phases whose blobs all have one size: ByteStream over gRPC, and PUT and GET over HTTP/1.1.

use super::{bench::Bench, phase::Phase};
use crate::{
    data::Series,
    grpc::Session,
    http::Pool,
    measure::{Bounds, Done, Outcome, phase},
};
use blockstore_proto::reapi::Digest;
use std::sync::Arc;

/// Stored for a phase that reads, in bytes: one blob at least.
const SET_BYTES: u64 = 64 << 20;
/// Bytes of large blobs that are in flight at the same time, at most, if that allows four.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// How the blobs go.
#[derive(Clone, Debug)]
enum Way {
    Streams(Session),
    Http(Pool),
}

impl Way {
    async fn write(&self, number: u64, series: &Series, blob: u64) -> Result<(), String> {
        match self {
            Self::Streams(session) => session.write(number, series, blob).await,
            Self::Http(pool) => pool.write(series, blob).await,
        }
    }

    async fn read(&self, number: u64, series: &Series, blob: u64, digest: &Digest) -> Result<(), String> {
        let found = match self {
            Self::Streams(session) => session.read(number, series, blob, digest).await,
            Self::Http(pool) => pool.read(series, blob, &digest.hash).await,
        };
        if found? { Ok(()) } else { Err("a blob is missing that was stored".into()) }
    }
}

impl Bench<'_> {
    fn way(&self, phase: Phase) -> Result<Way, String> {
        Ok(if phase.is_http() { Way::Http(self.pool()?) } else { Way::Streams(self.session()?) })
    }

    fn series(&mut self, phase: Phase) -> Result<Series, String> {
        let size_bytes = phase.blob_bytes().ok_or("its blobs have no one size")?;
        Ok(Series::new(self.random.next(), size_bytes, self.options.client.message_bytes()))
    }

    /// Fewer calls in flight where blobs are large.
    fn stream_bounds(&self, size_bytes: usize) -> Bounds {
        let mut bounds = self.bounds((self.options.upload_bytes_max() / size_bytes as u64).max(1));
        bounds.in_flight = bounds.in_flight.min((IN_FLIGHT_BYTES_MAX / size_bytes).max(4));
        bounds
    }

    pub(super) async fn put(&mut self, kind: Phase) -> Result<Outcome, String> {
        let (way, series) = (self.way(kind)?, self.series(kind)?);
        let size_bytes = series.size_bytes();
        phase(self.stream_bounds(size_bytes), self.process, move |number| {
            let (way, series) = (way.clone(), series.clone());
            async move {
                way.write(number, &series, number).await?;
                Ok(Done { units: 1, bytes: size_bytes as u64 })
            }
        })
        .await
    }

    pub(super) async fn get(&mut self, kind: Phase) -> Result<Outcome, String> {
        let (way, series) = (self.way(kind)?, self.series(kind)?);
        let size_bytes = series.size_bytes();
        let stored = (SET_BYTES / size_bytes as u64).max(1);
        for number in 0..stored {
            way.write(number, &series, number).await?;
        }
        let digests: Arc<[Digest]> = (0..stored).map(|number| series.digest(number)).collect();
        let bounds = Bounds { operations_max: u64::MAX, ..self.stream_bounds(size_bytes) };
        phase(bounds, self.process, move |number| {
            let (way, series, digests) = (way.clone(), series.clone(), digests.clone());
            async move {
                let blob = number % digests.len() as u64;
                way.read(number, &series, blob, &digests[blob as usize]).await?;
                Ok(Done { units: 1, bytes: size_bytes as u64 })
            }
        })
        .await
    }
}
