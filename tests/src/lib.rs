//! What the tests of the real process share. The tests themselves are in `server/tests`, where cargo tells them which binary
//! to run; the scripts that drive real build tools are in `tests/e2e`.
//!
//! Always true here: whatever a test starts or makes (a process, a loop device, a directory) ends with the value that stands
//! for it, also when the test fails.

pub mod blob;
pub mod client;
pub mod daemon;
pub mod disk;
pub mod limits;
