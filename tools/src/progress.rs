//! A bar for long work, on a terminal only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, stderr};

/// A bar that counts bytes up to about `total_bytes`; invisible where stderr is no terminal.
pub(crate) fn bytes(what: &'static str, total_bytes: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(
        Some(total_bytes),
        if stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
    );
    let style = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    // The template is a constant; a test of the tool would show if it were wrong.
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}

/// A bar that counts steps; invisible where stderr is no terminal.
pub(crate) fn steps(what: &'static str, steps: u64) -> ProgressBar {
    let bar = bytes(what, steps);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar
}
