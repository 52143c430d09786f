//! The grammar of the language, as pest makes a parser of it, and how its pairs are taken apart.

use std::iter::Peekable;

use pest::iterators::Pairs;

/// pest derives a public type with public rules; the module keeps both inside the crate.
mod derived {
    /// The parser that pest derives from the grammar.
    #[derive(pest_derive::Parser)]
    #[grammar = "moec.pest"]
    pub(crate) struct Grammar;
}
pub(crate) use derived::{Grammar, Rule};

/// What a rule of the grammar took.
pub(crate) type Pair<'t> = pest::iterators::Pair<'t, Rule>;

/// Where a pair ends: with its last token. pest lets a rule that may end in something optional take the blanks and
/// comments before that along.
pub(crate) fn end_of(pair: &Pair<'_>) -> usize {
    let mut last = pair.clone();
    while let Some(inner) = last.clone().into_inner().next_back() {
        last = inner;
    }
    last.as_span().end()
}

/// The parts of a pair, read off in the order of the grammar.
pub(crate) struct Parts<'t>(Peekable<Pairs<'t, Rule>>);

impl<'t> Parts<'t> {
    pub(crate) fn of(pair: Pair<'t>) -> Self {
        Parts(pair.into_inner().peekable())
    }

    /// The next part, if it is of `rule`.
    pub(crate) fn maybe(&mut self, rule: Rule) -> Option<Pair<'t>> {
        self.0.next_if(|part| part.as_rule() == rule)
    }

    /// The next part, which is of `rule` by the grammar.
    pub(crate) fn take(&mut self, rule: Rule) -> Pair<'t> {
        match self.maybe(rule) {
            Some(part) => part,
            None => disagree(&format!("expected {rule:?}, found {:?}", self.0.peek().map(Pair::as_rule))),
        }
    }

    /// The parts that are of `rule`; the others are marks between them.
    pub(crate) fn all(self, rule: Rule) -> impl Iterator<Item = Pair<'t>> {
        self.0.filter(move |part| part.as_rule() == rule)
    }
}

/// Ends the program: the grammar took something that the code behind it does not know. No input can do that unless the
/// two disagree, which is a fault of this crate.
#[cold]
#[track_caller]
#[allow(clippy::panic, reason = "the one place where a fault of this crate ends the program")]
pub(crate) fn disagree(how: &str) -> ! {
    panic!("the grammar and the syntax tree disagree: {how}")
}
