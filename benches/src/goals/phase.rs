//! The phases: their names, what they are told in, and what the goals are.

use clap::ValueEnum;

const MIB: usize = 1 << 20;
/// Size of the largest blobs in bytes.
pub(crate) const BIG_BYTES: usize = 256 * MIB;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Phase {
    BatchPut,
    FindHit,
    FindMiss,
    BatchGet,
    AcPut,
    AcGet,
    #[value(name = "bs-put-64k")]
    BsPut64k,
    #[value(name = "bs-get-64k")]
    BsGet64k,
    #[value(name = "bs-put-1m")]
    BsPut1m,
    #[value(name = "bs-get-1m")]
    BsGet1m,
    BsPutBig,
    BsGetBig,
    #[value(name = "http-put-64k")]
    HttpPut64k,
    #[value(name = "http-get-64k")]
    HttpGet64k,
    #[value(name = "http-put-1m")]
    HttpPut1m,
    #[value(name = "http-get-1m")]
    HttpGet1m,
}

/// What the cost of a phase is told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Blob,
    Digest,
    Call,
    Gigabyte,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Blob => "µs/blob",
            Self::Digest => "µs/digest",
            Self::Call => "µs/call",
            Self::Gigabyte => "CPU-s/GB",
        }
    }

    /// How much work so many units and bytes are, in what `name` divides by.
    pub(crate) fn work(self, units: u64, bytes: u64) -> f64 {
        match self {
            Self::Gigabyte => bytes as f64 / 1e9,
            Self::Blob | Self::Digest | Self::Call => units as f64 / 1e6,
        }
    }
}

impl Phase {
    /// As on the command line and in results.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::BatchPut | Self::BatchGet => Unit::Blob,
            Self::FindHit | Self::FindMiss => Unit::Digest,
            Self::AcPut | Self::AcGet => Unit::Call,
            _ => Unit::Gigabyte,
        }
    }

    /// What one unit of it may cost the server, in CPU time on a quiet machine.
    pub(crate) fn goal(self) -> f64 {
        match self {
            Self::BatchPut => 10.0,
            Self::FindHit | Self::FindMiss => 0.3,
            Self::BatchGet => 3.5,
            Self::AcPut => 35.0,
            Self::AcGet => 28.0,
            Self::BsPut64k => 2.0,
            Self::BsGet64k => 1.0,
            Self::BsPut1m => 1.5,
            Self::BsGet1m => 0.55,
            Self::BsPutBig => 1.4,
            Self::BsGetBig => 0.5,
            Self::HttpPut64k => 1.8,
            Self::HttpGet64k => 0.5,
            Self::HttpPut1m => 1.4,
            Self::HttpGet1m => 0.25,
        }
    }

    /// Whether it goes over HTTP/1.1, and not over gRPC.
    pub(crate) fn is_http(self) -> bool {
        matches!(self, Self::HttpPut64k | Self::HttpGet64k | Self::HttpPut1m | Self::HttpGet1m)
    }

    /// Size of its blobs in bytes, where they all have one.
    pub(crate) fn blob_bytes(self) -> Option<usize> {
        match self {
            Self::BatchPut | Self::FindHit | Self::FindMiss | Self::BatchGet | Self::AcPut | Self::AcGet => None,
            Self::BsPut64k | Self::BsGet64k | Self::HttpPut64k | Self::HttpGet64k => Some(64 << 10),
            Self::BsPut1m | Self::BsGet1m | Self::HttpPut1m | Self::HttpGet1m => Some(MIB),
            Self::BsPutBig | Self::BsGetBig => Some(BIG_BYTES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_have_the_names_that_documents_use() {
        let names: Vec<_> = Phase::value_variants().iter().map(|phase| phase.name()).collect();
        let expected = "batch-put find-hit find-miss batch-get ac-put ac-get bs-put-64k bs-get-64k bs-put-1m bs-get-1m bs-put-big bs-get-big \
                        http-put-64k http-get-64k http-put-1m http-get-1m";
        assert_eq!(names.join(" "), expected);
        for phase in Phase::value_variants() {
            assert_eq!(phase.is_http(), phase.name().starts_with("http-"));
            assert_eq!(phase.blob_bytes().is_some(), phase.unit() == Unit::Gigabyte);
            assert_eq!(phase.blob_bytes() == Some(BIG_BYTES), phase.name().ends_with("-big"));
        }
    }
}
