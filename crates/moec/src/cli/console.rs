//! Where output goes: results to standard output, everything else to standard error.

use crate::Run;
use crate::cli::args::{Color, MessageFormat};
use crate::cli::exit::{Exit, Failure};
use crate::cli::live::screen;
use crate::cli::wrapping::wrapped;
use moec_runtime::PassedOver;
use moec_syntax::{Diagnostic, SourceFile};
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;

/// Standard output and standard error, with the choice of colours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    /// On standard error.
    colour: bool,
    /// On standard output.
    colour_of_results: bool,
    /// Whether they were asked for.
    must_colour: bool,
    /// Whether remarks are left out.
    quiet: bool,
}

/// Columns of tables where there is no terminal, in files for example; as the help has them.
pub(crate) const COLUMNS: usize = 100;

impl Console {
    /// Decides about colours.
    pub(crate) fn new(color: Color) -> Self {
        let is_coloured = |is_terminal: bool| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                is_terminal
                    && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
                    && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            }
        };
        let colour = is_coloured(std::io::stderr().is_terminal());
        let must_colour = color == Color::Always;
        let colour_of_results = is_coloured(std::io::stdout().is_terminal());
        Self { colour, colour_of_results, must_colour, quiet: false }
    }

    /// The same, without remarks if it is so: warnings and errors are all that it writes to standard error.
    #[must_use]
    pub(crate) fn quiet(self, quiet: bool) -> Self {
        Self { quiet, ..self }
    }

    /// Whether remarks may have colours.
    pub(crate) fn colours_remarks(&self) -> bool {
        self.colour
    }

    /// Whether results may have colours.
    pub(crate) fn colours_results(&self) -> bool {
        self.colour_of_results
    }

    /// Whether colours were asked for, wherever results go.
    pub(crate) fn must_colour(&self) -> bool {
        self.must_colour
    }

    /// Whether results are read on a terminal.
    pub(crate) fn shows_results(&self) -> bool {
        std::io::stdout().is_terminal()
    }

    /// Columns of the terminal that results are read on; where it is none those that `COLUMNS` says, or 100.
    pub(crate) fn columns(&self) -> usize {
        columns(terminal_size::terminal_size_of(std::io::stdout())).unwrap_or(COLUMNS)
    }

    /// Columns of the terminal that remarks are read on, in the same way.
    pub(crate) fn columns_of_remarks(&self) -> usize {
        columns(terminal_size::terminal_size_of(std::io::stderr())).unwrap_or(COLUMNS)
    }

    /// Whether progress can be redrawn in place.
    pub(crate) fn is_interactive(&self) -> bool {
        std::io::stderr().is_terminal()
    }

    /// A line of result.
    ///
    /// # Errors
    /// When standard output cannot be written; a closed pipe ends the program quietly.
    pub(crate) fn out(&self, line: impl AsRef<str>) -> Result<(), Failure> {
        self.write(&format!("{}\n", line.as_ref()))
    }

    /// Text of result as it is, flushed.
    ///
    /// # Errors
    /// When standard output cannot be written; a closed pipe ends the program quietly.
    pub(crate) fn write(&self, text: &str) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            // The reader has seen enough (`| head`): not a failure.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {
                Err(Failure::Message { message: String::new(), help: Vec::new(), exit: Exit::Success })
            }
            Err(e) => Err(Failure::new(Exit::Failure, format!("cannot write standard output: {e}"))),
        }
    }

    /// Text of result for people, in lines that fit the terminal; as it is where there is none.
    ///
    /// # Errors
    /// As [`Console::out`].
    pub(crate) fn prose(&self, text: &str) -> Result<(), Failure> {
        match columns(terminal_size::terminal_size_of(std::io::stdout())) {
            Some(columns) => self.write(&wrapped(text, columns)),
            None => self.write(text),
        }
    }

    /// Hands `work` a sink whose texts are results as they come; it is told to stop once standard output fails.
    ///
    /// # Errors
    /// What `work` fails with, or as [`Console::out`].
    pub(crate) fn stream<T>(
        &self,
        work: impl FnOnce(&mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut broken = None;
        let result = work(&mut |text| match self.write(text) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                broken = Some(e);
                ControlFlow::Break(())
            }
        })?;
        broken.map_or(Ok(result), Err)
    }

    /// A JSON value as result, indented.
    ///
    /// # Errors
    /// As [`Console::out`].
    pub(crate) fn json(&self, value: &serde_json::Value) -> Result<(), Failure> {
        self.out(format!("{value:#}"))
    }

    /// A remark on what goes on.
    pub(crate) fn note(&self, line: impl AsRef<str>) {
        if !self.quiet {
            self.warn(line);
        }
    }

    /// A remark of sentences, in lines that fit the terminal; as it is where there is none. (What is to be copied into a
    /// shell must not be broken.)
    pub(crate) fn note_fitted(&self, text: impl AsRef<str>) {
        match columns(terminal_size::terminal_size_of(std::io::stderr())) {
            Some(columns) => self.note(wrapped(text.as_ref(), columns)),
            None => self.note(text),
        }
    }

    /// What must be known even by those who want no remarks.
    pub(crate) fn warn(&self, line: impl AsRef<str>) {
        // A live view keeps it until the terminal is free again.
        if !screen::keep(line.as_ref()) {
            // There is nowhere left to complain to if standard error is gone.
            let _ = writeln!(std::io::stderr().lock(), "{}", line.as_ref());
        }
    }

    /// Checkpoints that are damaged, and the step of the one before them that is taken.
    pub(crate) fn passed_over(&self, damaged: &[PassedOver], step: u64) {
        for PassedOver { error, .. } in damaged {
            self.warn(format!("{error}\n  the checkpoint of step {step} is taken, the newest before it that is whole"));
        }
    }

    /// What is to be known of the tensors of a run that was opened.
    pub(crate) fn opened(&self, run: &Run) {
        self.passed_over(&run.passed_over, run.checkpoint.manifest.step);
        if let Some(decay) = run.spec.checked.recipe.average {
            self.note(format!("its parameters are their moving averages, of decay {decay}"));
        }
    }

    /// A message with its sentences broken to the terminal that it is read on; what it shows of a file stays as it is.
    fn for_terminal(&self, diagnostic: &Diagnostic, source: &SourceFile) -> String {
        let message = diagnostic.render(source, self.colour);
        let Some(width) = columns(terminal_size::terminal_size_of(std::io::stderr())) else { return message };
        let plain = diagnostic.render(source, false);
        let line = |(line, plain): (&str, &str)| {
            if is_excerpt(plain) { line.to_string() } else { wrapped(line, width) }
        };
        message.lines().zip(plain.lines()).map(line).collect::<Vec<_>>().join("\n")
    }

    /// Messages about a source.
    pub(crate) fn diagnostics(&self, source: &SourceFile, diagnostics: &[Diagnostic], format: MessageFormat) {
        for diagnostic in diagnostics {
            match format {
                MessageFormat::Full => self.warn(format!("{}\n", self.for_terminal(diagnostic, source))),
                MessageFormat::Short => self.warn(diagnostic.render_short(source)),
                MessageFormat::Json => {
                    let rendered = diagnostic.to_rendered(source);
                    self.warn(serde_json::to_string(&rendered).unwrap_or_else(|e| e.to_string()));
                }
            }
        }
    }

    /// The last words of a command that failed.
    pub(crate) fn failure(&self, failure: &Failure, format: MessageFormat) {
        match failure {
            Failure::Source { source, diagnostics, .. } => self.diagnostics(source, diagnostics, format),
            Failure::Message { message, .. } if message.is_empty() => {}
            Failure::Message { message, help, exit } => {
                let (bold, red, plain) = if self.colour { ("\x1b[1m", "\x1b[31m", "\x1b[0m") } else { ("", "", "") };
                let word = if matches!(exit, Exit::HungUp | Exit::Interrupted | Exit::Terminated) {
                    "interrupted"
                } else {
                    "error"
                };
                self.warn(format!("{bold}{red}{word}{plain}{bold}: {message}{plain}"));
                for line in help {
                    self.warn(format!("  help: {line}"));
                }
            }
        }
    }
}

/// Columns of a terminal, or those that `COLUMNS` says.
fn columns(size: Option<(terminal_size::Width, terminal_size::Height)>) -> Option<usize> {
    let said = || std::env::var("COLUMNS").ok()?.trim().parse().ok().filter(|&columns: &usize| columns > 0);
    // A terminal that says 0 does not know.
    let measured = size.map(|(width, _)| usize::from(width.0)).filter(|&columns| columns > 0);
    measured.or_else(said)
}

/// Whether a line of a message shows a line of a file, or points at one.
fn is_excerpt(line: &str) -> bool {
    let rest = line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit());
    ["|", "-->", ":::", "...", "+", "-", "~"].iter().any(|mark| rest.starts_with(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_file_is_told_from_sentences() {
        for line in ["  --> a.moe:1:2", "10 |   moe(", "   |   ^^^ here", "8 + moe(", "..."] {
            assert!(is_excerpt(line), "{line}");
        }
        for line in ["error[E0205]: 8 heads", "   = note: `mlp` takes", "help: name it"] {
            assert!(!is_excerpt(line), "{line}");
        }
    }
}
