//! Entry points for fuzzing the front-ends: not a part of the library's interface.
//!
//! Each function takes any bytes as a list of choices: which calls a client makes, with which messages, in which pieces, broken off or
//! not. It panics where a front-end breaks its word: every call ends, with a status that is the client's to understand (never UNKNOWN,
//! INTERNAL or 500); no answer is larger than a client takes; what was stored before is there afterwards, byte for byte; and whatever
//! is there under a digest has it.

mod calls;
mod known;
mod message;
mod requests;
mod source;
mod world;

/// Something that bytes from the network reach.
pub struct Target {
    /// Name of the target and of its corpus.
    pub name: &'static str,
    /// Panics if the front-end breaks its word.
    pub check: fn(&[u8]),
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many inputs the short form tries, besides those it is given: as many as take a few seconds.
    pub tries: u64,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "grpc_calls", check: calls::check, seeds: calls::seeds, tries: 1000 },
    Target { name: "http_requests", check: requests::check, seeds: requests::seeds, tries: 1000 },
];

/// One gRPC call, the path and the body of it, that is right, nearly right or neither, as the input chooses.
pub fn call(input: &[u8]) -> (String, bytes::Bytes) {
    calls::make(input)
}
