//! What the fuzz targets share.

use blockstore_engine::fuzzing::TARGETS as DECODERS;
use blockstore_server::fuzzing::TARGETS as FRONT_ENDS;

/// Gives the bytes to the target of this name.
///
/// # Panics
/// If what it tries breaks its word, or there is no such target.
pub fn check(name: &str, data: &[u8]) {
    let decoders = DECODERS.iter().map(|target| (target.name, target.check));
    let mut targets = decoders.chain(FRONT_ENDS.iter().map(|target| (target.name, target.check)));
    let (_, check) = targets.find(|(target, _)| *target == name).expect("a target of this name");
    check(data);
}
