//! Text to syntax tree.
//!
//! pest reads a text by the grammar, and stops at the first fault. A text without faults is read once, as a whole; for one
//! that has some, [`recover`](crate::recover) reads it again in steps and says what is wrong with each.

use pest::Parser;

use crate::ast::{Expr, Item};
use crate::diag::Diagnostic;
use crate::grammar::{Grammar, Pair, Parts, Rule, disagree};
use crate::mend::mend;
use crate::recover::recover;
use crate::source::{MAX_SOURCE_BYTES, SourceFile, too_large};
use crate::span::Span;
use crate::tree::Builder;
use crate::words::{self, MAX_FAULTS};

/// Parses a file without what it imports.
pub(crate) fn parse_alone(source: &SourceFile) -> Result<Vec<Item>, Vec<Diagnostic>> {
    parse_rule(source, 0, Rule::file, Builder::file)
}

/// What can be read of a file without what it imports; see [`parse_leniently`](crate::parse_leniently).
pub(crate) fn parse_mended(source: &SourceFile) -> Vec<Item> {
    if source.text().len() > MAX_SOURCE_BYTES {
        return Vec::new();
    }
    let text = mend(source);
    let pair = Grammar::parse(Rule::file, &text).ok().and_then(|mut pairs| pairs.next());
    pair.map_or(Vec::new(), |pair| Builder::new(source.id(), 0).file(pair))
}

/// Parses the one value that a text holds from byte `from` on, as on the right of `-s width=64`.
///
/// # Errors
/// As [`parse`](crate::parse()).
pub fn parse_value(source: &SourceFile, from: usize) -> Result<Expr, Vec<Diagnostic>> {
    parse_rule(source, from, Rule::lone_value, |builder, value| {
        builder.expression(Parts::of(value).take(Rule::expression))
    })
}

fn parse_rule<T>(
    source: &SourceFile,
    from: usize,
    rule: Rule,
    build: impl FnOnce(&mut Builder, Pair<'_>) -> T,
) -> Result<T, Vec<Diagnostic>> {
    let size = source.text().len();
    if size > MAX_SOURCE_BYTES {
        return Err(vec![too_large(source.name(), size)]);
    }
    let words = words::read(source, from);
    let mut faults;
    if words.faults.is_empty()
        && let Ok(mut pairs) = Grammar::parse(rule, &source.text()[from..])
        && let Some(pair) = pairs.next()
    {
        let mut builder = Builder::new(source.id(), from);
        let tree = build(&mut builder, pair);
        if builder.faults.is_empty() {
            return Ok(tree);
        }
        faults = builder.faults;
    } else {
        faults = recover(source, from, rule, words);
        if faults.is_empty() {
            disagree("a text that does not fit as a whole fits in steps");
        }
    }
    faults.sort_by_key(|fault| fault.span().map(Span::before));
    faults.truncate(MAX_FAULTS);
    Err(faults)
}
