//! How far a long verb is: a bar on a terminal, nothing anywhere else.

use std::io::{self, IsTerminal as _};
use std::ops::ControlFlow;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What the library's callbacks move.
pub struct Bar(ProgressBar);

impl Bar {
    /// A bar on standard error, if that is a terminal and the user has not asked for quiet.
    pub fn new(quiet: bool, what: &'static str) -> Self {
        let target = if quiet || !io::stderr().is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = ProgressStyle::with_template(
            "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        );
        // The template is a constant; were it wrong, the default bar would do.
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self(bar)
    }

    /// Moves it.
    pub fn show(&self, done: u64, total: u64) -> ControlFlow<()> {
        self.0.set_length(total);
        self.0.set_position(done);
        ControlFlow::Continue(())
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
