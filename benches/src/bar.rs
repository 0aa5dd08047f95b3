//! What a terminal shows meanwhile.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

/// A bar that counts steps; invisible where stderr is no terminal.
pub(crate) fn steps(count: u64) -> ProgressBar {
    styled(count, "{msg:24} {wide_bar} {pos}/{len} {elapsed}")
}

/// A bar that counts seconds.
pub(crate) fn seconds(count: u64) -> ProgressBar {
    styled(count, "{msg} {wide_bar} {pos}/{len} s")
}

fn styled(count: u64, template: &str) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(count), ProgressDrawTarget::hidden());
    }
    let bar = ProgressBar::with_draw_target(Some(count), ProgressDrawTarget::stderr());
    // The templates are constants; a terminal would show if one were wrong.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
