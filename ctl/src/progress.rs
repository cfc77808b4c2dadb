//! Shows how far a wait is: a line that moves on a terminal, one line per change elsewhere, nothing for programs.
//! It writes to standard error only.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::{cli::Output, output::remark, terminal::visible};

/// Somebody who is told how far it is.
pub(crate) trait Progress {
    /// The present state.
    fn show(&mut self, text: &str);
    /// Something out of the ordinary, to be kept on the screen.
    fn note(&mut self, text: &str);
}

/// The right kind of progress for this run.
pub(crate) fn for_output(output: Output) -> Box<dyn Progress> {
    match output {
        Output::Json => Box::new(Silent),
        Output::Table if std::io::stderr().is_terminal() => Box::new(Spinner::new()),
        Output::Table => Box::new(Lines::new(remark)),
    }
}

/// Programs read standard error for one JSON error.
struct Silent;

impl Progress for Silent {
    fn show(&mut self, _: &str) {}
    fn note(&mut self, _: &str) {}
}

/// One line that moves; it disappears at the end.
struct Spinner {
    bar: ProgressBar,
}

impl Spinner {
    /// How often the line moves.
    const TICK: Duration = Duration::from_millis(120);

    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        // The template is a constant; should it ever be wrong, the default one does.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed:>5}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Self::TICK);
        Self { bar }
    }
}

impl Progress for Spinner {
    fn show(&mut self, text: &str) {
        self.bar.set_message(visible(text));
    }

    fn note(&mut self, text: &str) {
        self.bar.println(visible(text));
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// One plain line for each change, with the seconds since the start.
struct Lines<W> {
    write: W,
    since: Instant,
    last: String,
}

impl<W: FnMut(&str)> Lines<W> {
    fn new(write: W) -> Self {
        Self {
            write,
            since: Instant::now(),
            last: String::new(),
        }
    }
}

impl<W: FnMut(&str)> Progress for Lines<W> {
    fn show(&mut self, text: &str) {
        if text != self.last {
            self.note(text);
            text.clone_into(&mut self.last);
        }
    }

    fn note(&mut self, text: &str) {
        let seconds = self.since.elapsed().as_secs();
        (self.write)(&format!("[{seconds:>3} s] {}\n", visible(text)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_for_each_change_only() {
        let mut written = Vec::new();
        let mut lines = Lines::new(|text: &str| written.push(text.to_owned()));
        for text in ["a", "a", "b\x1b[2J", "b\x1b[2J", "a"] {
            lines.show(text);
        }
        drop(lines);
        assert_eq!(written, ["[  0 s] a\n", "[  0 s] b^[[2J\n", "[  0 s] a\n"]);
    }
}
