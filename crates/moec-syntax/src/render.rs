//! Diagnostics as text: with the source excerpt for people, on one line for editors, as plain data for programs.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Patch as SnippetPatch, Renderer, Snippet};
use serde::Serialize;

use crate::codes::Severity;
use crate::diag::{Diagnostic, Label};
use crate::source::SourceFile;
use crate::span::Span;

/// A diagnostic with its positions worked out, ready to be serialised. Lines and columns count from 1, columns in
/// characters; byte offsets count from the start of the file's text behind a byte order mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RenderedDiagnostic {
    /// The number of the code, such as `E0202`.
    pub code: &'static str,
    /// `error`, `warning` or `note`.
    pub severity: String,
    /// What is wrong, in one sentence.
    pub message: String,
    /// The name of the file that the fault lies in.
    pub file: String,
    /// Where the fault lies; `None` for a fault of the file as a whole.
    pub position: Option<RenderedSpan>,
    /// Every place that the diagnostic is about.
    pub labels: Vec<RenderedLabel>,
    /// Facts that explain it.
    pub notes: Vec<String>,
    /// Advice on what to do.
    pub help: Vec<String>,
    /// Changes, each of which stands for itself.
    pub patches: Vec<RenderedPatch>,
    /// The diagnostic as [`Diagnostic::render`] gives it, without colour.
    pub rendered: String,
}

/// A range of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RenderedSpan {
    /// Offset of the first byte.
    pub byte_start: usize,
    /// Offset one past the last byte.
    pub byte_end: usize,
    /// Line of the start.
    pub line: usize,
    /// Column of the start.
    pub column: usize,
    /// Line of the end.
    pub end_line: usize,
    /// Column just behind the last character.
    pub end_column: usize,
}

/// A label with its position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RenderedLabel {
    /// Where.
    #[serde(flatten)]
    pub position: RenderedSpan,
    /// The name of the file, where it is not that of the diagnostic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// What; may be empty.
    pub text: String,
    /// Whether this is where the fault lies.
    pub primary: bool,
}

/// A change with its position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RenderedPatch {
    /// What is replaced.
    #[serde(flatten)]
    pub position: RenderedSpan,
    /// By what.
    pub replacement: String,
    /// The change in words.
    pub text: String,
}

impl Diagnostic {
    /// The diagnostic with an excerpt of `source`, marks under what it is about, and the proposed changes; with ANSI
    /// colours if `colour`. Ends without a line break.
    pub fn render(&self, source: &SourceFile, colour: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let mut main = Group::with_title(level.primary_title(self.message.as_str()).id(self.code.number()));
        // One excerpt for each file, that of the fault first.
        let mut files: Vec<&SourceFile> = Vec::new();
        for span in self.span().into_iter().chain(self.labels.iter().map(|label| label.span)) {
            let (file, _) = clamped(source, span);
            if !files.iter().any(|known| std::ptr::eq(*known, file)) {
                files.push(file);
            }
        }
        for file in files {
            let here = |label: &&Label| std::ptr::eq(clamped(source, label.span).0, file);
            let labels: Vec<&Label> = self.labels.iter().filter(here).collect();
            let excerpt = Excerpt::around(file, labels.iter().map(|label| clamped(source, label.span).1));
            let annotations = labels.into_iter().map(|label| {
                let kind = if label.primary { AnnotationKind::Primary } else { AnnotationKind::Context };
                let annotation = kind.span(excerpt.within(&clamped(source, label.span).1));
                if label.text.is_empty() { annotation } else { annotation.label(label.text.as_str()) }
            });
            main = main.element(excerpt.snippet().annotations(annotations));
        }
        main = main.elements(self.notes.iter().map(|note| Level::NOTE.message(note.as_str())));
        main = main.elements(self.helps.iter().map(|help| Level::HELP.message(help.as_str())));
        let mut report = vec![main];
        for patch in &self.patches {
            let (file, range) = clamped(source, patch.span);
            let excerpt = Excerpt::around(file, std::iter::once(range.clone()));
            let change = SnippetPatch::new(excerpt.within(&range), patch.replacement.as_str());
            report.push(Level::HELP.secondary_title(patch.text.as_str()).element(excerpt.snippet().patch(change)));
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let rendered = renderer.render(&report);
        // Blanks at line ends would only be noise in logs and snapshots.
        let lines: Vec<&str> = rendered.lines().map(str::trim_end).collect();
        lines.join("\n")
    }

    /// One line, `file:line:column: error[E0101]: message`, as editors read it.
    pub fn render_short(&self, source: &SourceFile) -> String {
        match self.span() {
            Some(span) => {
                let (file, span) = clamped(source, span);
                let position = file.line_column(span.start);
                format!("{}:{}:{}: {self}", file.name(), position.line, position.column)
            }
            None => format!("{}: {self}", source.name()),
        }
    }

    /// The diagnostic with its positions worked out, for JSON.
    pub fn to_rendered(&self, source: &SourceFile) -> RenderedDiagnostic {
        let file = self.span().map_or(source, |span| clamped(source, span).0);
        RenderedDiagnostic {
            code: self.code.number(),
            severity: self.severity.to_string(),
            message: self.message.clone(),
            file: file.name().to_owned(),
            position: self.span().map(|span| position(source, span)),
            labels: (self.labels.iter())
                .map(|label| RenderedLabel {
                    position: position(source, label.span),
                    file: Some(clamped(source, label.span).0)
                        .filter(|within| !std::ptr::eq(*within, file))
                        .map(|within| within.name().to_owned()),
                    text: label.text.clone(),
                    primary: label.primary,
                })
                .collect(),
            notes: self.notes.clone(),
            help: self.helps.clone(),
            patches: (self.patches.iter())
                .map(|patch| RenderedPatch {
                    position: position(source, patch.span),
                    replacement: patch.replacement.clone(),
                    text: patch.text.clone(),
                })
                .collect(),
            rendered: self.render(source, false),
        }
    }
}

fn position(source: &SourceFile, span: Span) -> RenderedSpan {
    let (file, span) = clamped(source, span);
    let (start, end) = (file.line_column(span.start), file.line_column(span.end));
    RenderedSpan {
        byte_start: span.start,
        byte_end: span.end,
        line: start.line,
        column: start.column,
        end_line: end.line,
        end_column: end.column,
    }
}

/// The lines of a file that a message shows. Only they are handed to the renderer, which looks at all that it is given: many
/// messages about a long file would take its length for each.
struct Excerpt<'a> {
    file: &'a SourceFile,
    first_line: usize,
    lines: Range<usize>,
}

impl<'a> Excerpt<'a> {
    /// The lines that some ranges lie in.
    fn around(file: &'a SourceFile, ranges: impl Iterator<Item = Range<usize>>) -> Self {
        let (start, end) =
            ranges.fold((usize::MAX, 0), |(start, end), range| (start.min(range.start), end.max(range.end)));
        let text = file.text();
        // The end of a text lies on its last line, not behind the line break.
        let start = start.min(end).min(text.trim_end_matches(['\r', '\n']).len());
        let start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let end = text[end..].find('\n').map_or(text.len(), |i| end + i + 1);
        Excerpt { file, first_line: file.line_column(start).line, lines: start..end }
    }

    fn within(&self, range: &Range<usize>) -> Range<usize> {
        range.start - self.lines.start..range.end - self.lines.start
    }

    fn snippet<T: Clone>(&self) -> Snippet<'a, T> {
        Snippet::source(&self.file.text()[self.lines.clone()]).line_start(self.first_line).path(self.file.name())
    }
}

/// The file that a span lies in, and the bytes it covers, moved onto character boundaries of the text. A span that came
/// from another text must not cause a panic.
fn clamped(source: &SourceFile, span: Span) -> (&SourceFile, Range<usize>) {
    let file = source.file(span.file());
    (file, file.boundary(span.start())..file.boundary(span.end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::Code;

    #[test]
    fn foreign_spans_do_no_harm() {
        for text in ["", "é", "é\n", "a\r\n"] {
            for start in 0..6 {
                for end in start..6 {
                    let source = SourceFile::new("a.moe", text);
                    let span = source.span(start..end);
                    let diagnostic = Diagnostic::new(Code::UnknownLayer, "x")
                        .primary(span, "y")
                        .secondary(span, "")
                        .patch(span, "é", "z");
                    diagnostic.render(&source, true);
                    diagnostic.render_short(&source);
                    diagnostic.to_rendered(&source);
                }
            }
        }
    }

    #[test]
    fn one_line_form() {
        let source = SourceFile::new("dir/a.moe", "model m {\n  é layr\n}");
        let diagnostic = Diagnostic::new(Code::UnusedLet, "never used").primary(source.span(15..19), "");
        assert_eq!(diagnostic.render_short(&source), "dir/a.moe:2:5: warning[W0201]: never used");
        let diagnostic = Diagnostic::new(Code::NoModel, "no model");
        assert_eq!(diagnostic.render_short(&source), "dir/a.moe: error[E0401]: no model");
        assert_eq!(diagnostic.render(&source, false), "error[E0401]: no model");
    }
}
