//! What is wrong with a text, as an editor shows it, and the changes that put it right.

use std::collections::HashMap;

use gen_lsp_types::{
    CodeAction, CodeActionKind, Diagnostic as Shown, DiagnosticRelatedInformation, DiagnosticSeverity, Range, TextEdit,
    Uri, WorkspaceEdit,
};
use moec_syntax::{Diagnostic, FileId, Patch, Severity};

use crate::analysis::Analysis;
use crate::documents::Documents;

/// Everything that is wrong with a text, each with its place in it: what lies in an imported file is shown at the import.
pub(crate) fn of(known: &Analysis, documents: &Documents) -> Vec<Shown> {
    known.diagnostics.iter().map(|diagnostic| shown(diagnostic, known, documents)).collect()
}

fn shown(diagnostic: &Diagnostic, known: &Analysis, documents: &Documents) -> Shown {
    let at = diagnostic.span();
    let own = at.filter(|span| span.file() == FileId::MAIN);
    let place = own.or_else(|| known.import_of(at?.file()));
    let range = place.map_or(Range::default(), |span| known.text.lines(span.range()));
    let mut message = diagnostic.message.clone();
    let related = |label: &moec_syntax::Label| {
        let text = if label.text.is_empty() { diagnostic.message.clone() } else { label.text.clone() };
        DiagnosticRelatedInformation::new(known.location(label.span, documents), text)
    };
    // What is said at the place itself goes into the message; the other places are beside it.
    let is_place = |label: &&moec_syntax::Label| own.is_some() && label.primary && Some(label.span) == at;
    let here = diagnostic.labels.iter().filter(is_place).filter(|label| !label.text.is_empty());
    here.for_each(|label| message.push_str(&format!("\n{}", label.text)));
    let elsewhere = diagnostic.labels.iter().filter(|label| !is_place(label)).map(related).collect::<Vec<_>>();
    for note in &diagnostic.notes {
        message.push_str(&format!("\nnote: {note}"));
    }
    for help in &diagnostic.helps {
        message.push_str(&format!("\nhelp: {help}"));
    }
    let severity = match diagnostic.severity {
        Severity::Error => DiagnosticSeverity::Error,
        Severity::Warning => DiagnosticSeverity::Warning,
        Severity::Note => DiagnosticSeverity::Information,
    };
    Shown {
        range,
        severity: Some(severity),
        code: Some(diagnostic.code.number().to_string().into()),
        code_description: None,
        source: Some("moec".to_owned()),
        message: message.into(),
        tags: None,
        related_information: (!elsewhere.is_empty()).then_some(elsewhere),
        data: None,
    }
}

/// The changes that would put right what is wrong in a range.
pub(crate) fn actions(known: &Analysis, range: Range, documents: &Documents) -> Vec<CodeAction> {
    let mut actions = Vec::new();
    for diagnostic in &known.diagnostics {
        let fault = shown(diagnostic, known, documents);
        if fault.range.end < range.start || range.end < fault.range.start {
            continue;
        }
        let patches = || diagnostic.patches.iter().filter(|patch| !patch.span.file().is_override());
        for patch in patches() {
            actions.push(CodeAction {
                title: title(patch, known),
                kind: Some(CodeActionKind::QuickFix),
                diagnostics: Some(vec![fault.clone()]),
                is_preferred: Some(patches().count() == 1),
                edit: Some(edit(patch, known, documents)),
                ..CodeAction::default()
            });
        }
    }
    actions
}

/// ``use the name that it has: `noisy_top_k` ``
fn title(patch: &Patch, known: &Analysis) -> String {
    let new = patch.replacement.trim();
    if new.is_empty() || new.contains('\n') || new.len() > 40 {
        return match known.source.slice(patch.span).trim() {
            old if new.is_empty() && !old.contains('\n') && !old.is_empty() && old.len() <= 40 => {
                format!("{}: `{old}`", patch.text)
            }
            _ => patch.text.clone(),
        };
    }
    format!("{}: `{new}`", patch.text)
}

fn edit(patch: &Patch, known: &Analysis, documents: &Documents) -> WorkspaceEdit {
    let place = known.location(patch.span, documents);
    changes([(place.uri, vec![TextEdit::new(place.range, patch.replacement.clone())])])
}

/// Changes of several files.
pub(crate) fn changes(changes: impl IntoIterator<Item = (Uri, Vec<TextEdit>)>) -> WorkspaceEdit {
    WorkspaceEdit { changes: Some(HashMap::from_iter(changes)), ..WorkspaceEdit::default() }
}
