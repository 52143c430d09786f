//! Where a name is defined and used, in a text, in what it imports, and in the open texts that import it.

use std::collections::BTreeMap;

use gen_lsp_types::{Location, Range, TextEdit, WorkspaceEdit};
use moec_syntax::{FileId, SourceFile, Span, parse_leniently};

use crate::analysis::Analysis;
use crate::diagnostics::changes;
use crate::documents::Documents;
use crate::names::Kind;

/// Where what is named at a byte is defined; the beginning of a file for the path of an import.
pub(crate) fn definition(known: &Analysis, offset: usize, documents: &Documents) -> Option<Location> {
    if let Some(file) = known.imported_at(offset) {
        return Some(Location::new(documents.uri(file.name()), Range::default()));
    }
    let (_, definition) = known.names.at(at(offset))?;
    Some(known.location(known.names.definitions.get(definition)?.span, documents))
}

/// The word at a byte that names something, with the name.
pub(crate) fn named(known: &Analysis, offset: usize) -> Option<(Range, String)> {
    let (span, definition) = known.names.at(at(offset))?;
    Some((known.text.lines(span.range()), known.names.definitions.get(definition)?.name.clone()))
}

/// Every place where what is named at a byte is written, in order.
pub(crate) fn places(
    known: &Analysis,
    offset: usize,
    all: &[std::rc::Rc<Analysis>],
    documents: &Documents,
) -> Vec<Location> {
    let Some((_, definition)) = known.names.at(at(offset)) else { return Vec::new() };
    let Some(defined) = known.names.definitions.get(definition).map(|d| known.location(d.span, documents)) else {
        return Vec::new();
    };
    let mut places: BTreeMap<(String, Range), Location> = BTreeMap::new();
    for analysis in all {
        // The same definition, as this text sees it.
        let same = |definition: &usize| {
            let span = analysis.names.definitions[*definition].span;
            analysis.location(span, documents) == defined
        };
        let Some(found) = (0..analysis.names.definitions.len()).find(same) else { continue };
        for span in analysis.names.places(found) {
            let place = analysis.location(span, documents);
            places.insert((place.uri.0.clone(), place.range), place);
        }
    }
    places.into_values().collect()
}

/// Gives what is named at a byte another name.
///
/// # Errors
/// Why that cannot be: there is no name, the new one is none or is taken.
pub(crate) fn rename(
    known: &Analysis,
    offset: usize,
    new: &str,
    all: &[std::rc::Rc<Analysis>],
    documents: &Documents,
) -> Result<WorkspaceEdit, String> {
    let nothing = || "only names that a file defines can be changed: models, blocks, routers, bindings".to_owned();
    let (_, definition) = known.names.at(at(offset)).ok_or_else(nothing)?;
    let defined = known.names.definitions.get(definition).ok_or_else(nothing)?;
    if !is_name(new) {
        return Err(format!("`{new}` is no name: names are made of ASCII letters, digits and `_`, and are no keyword"));
    }
    // Each place would then have to mean the same as before: what is visible there under the new name is in the way.
    let is_global = matches!(defined.kind, Kind::Model | Kind::Block | Kind::Router);
    for analysis in all.iter().filter(|other| is_global || other.uri == known.uri) {
        let same = |d: &crate::names::Definition| {
            analysis.location(d.span, documents) == known.location(defined.span, documents)
        };
        let Some(found) = analysis.names.definitions.iter().position(same) else { continue };
        let of_kind = |kind: Kind| kind == defined.kind || kind.is_value() && defined.kind.is_value();
        for place in analysis.names.places(found) {
            let taken = analysis.names.visible(place).into_iter().find(|d| d.name == new && of_kind(d.kind));
            if let Some(taken) = taken.filter(|taken| taken.span != defined.span) {
                let line = analysis.location(taken.span, documents).range.start.line + 1;
                return Err(format!("`{new}` is defined already, on line {line}"));
            }
        }
    }
    let mut edits: BTreeMap<String, Vec<TextEdit>> = BTreeMap::new();
    for place in places(known, offset, all, documents) {
        edits.entry(place.uri.0).or_default().push(TextEdit::new(place.range, new.to_owned()));
    }
    Ok(changes(edits.into_iter().map(|(uri, edits)| (uri.into(), edits))))
}

fn at(offset: usize) -> Span {
    Span::new(FileId::MAIN, offset..offset)
}

/// Whether a text is a name of the language: asked of its grammar.
fn is_name(text: &str) -> bool {
    let file = parse_leniently(&SourceFile::new("", format!("block {text} {{}}")));
    matches!(&file.items[..], [moec_syntax::Item::Block(block)] if block.name.name == text)
}
