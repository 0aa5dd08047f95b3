//! What the fuzz targets share.

use blockstore_engine::fuzzing::TARGETS;

/// Gives the bytes to the target of this name.
///
/// # Panics
/// If the decoder breaks its word, or there is no such target.
pub fn check(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    (target.check)(data);
}
