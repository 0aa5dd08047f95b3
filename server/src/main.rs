//! `blockstored`: see [`blockstore_server::daemon`].

use std::process::ExitCode;

/// A server's memory comes and goes in buffers of up to a MiB, on every thread. The C library's allocator gives them back to the kernel
/// and takes them again, all pages to be cleared; this one keeps them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    blockstore_server::daemon::run(std::env::args_os())
}
