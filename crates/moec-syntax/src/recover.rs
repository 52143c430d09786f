//! What is wrong with a text that the grammar does not take: several faults in one run.
//!
//! The text is read in steps (see the grammar): one statement at a time, going into the bodies of those that have one.
//! Where a step fails, the fault is reported in our own words, and reading goes on at the next statement, which begins on
//! a line of its own between the same braces. A fault whose remedy fits in its place is put right first, so that the rest
//! of its statement is judged too. So every byte is read once, and a statement once more for each remedy in it.

use pest::Parser;
use pest::error::{ErrorVariant, InputLocation};

use crate::diag::Diagnostic;
use crate::expect::{Stop, describe};
use crate::grammar::{Grammar, Rule, end_of};
use crate::source::SourceFile;
use crate::tree::{Builder, logical_word};
use crate::words::{MAX_FAULTS, TokenKind, Words, repair};

/// Finds the faults of a text, with those of its words, in any order.
pub(crate) fn recover(source: &SourceFile, from: usize, rule: Rule, mut words: Words) -> Vec<Diagnostic> {
    let faults = std::mem::take(&mut words.faults);
    if !words.balanced {
        return faults;
    }
    let mut recovery = Recovery { source, words, faults, given_up: Vec::new() };
    match rule {
        Rule::lone_value => recovery.value(from),
        _ => recovery.file(),
    }
    recovery.faults
}

/// The text of a file whose brackets match with what could be put right, and with blanks for the statements that were
/// given up. What is beyond the most faults that are reported is as it was.
pub(crate) fn without_faults(source: &SourceFile, words: Words) -> String {
    let mut recovery = Recovery { source, words, faults: Vec::new(), given_up: Vec::new() };
    recovery.file();
    let mut text = recovery.words.masked;
    recovery.given_up.into_iter().for_each(|range| blank(&mut text, range));
    text
}

/// Puts blanks in the place of some bytes, which begin and end between characters; lines stay.
pub(crate) fn blank(text: &mut String, range: std::ops::Range<usize>) {
    let blanks: String = text[range.clone()].bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect();
    text.replace_range(range, &blanks);
}

/// Statements between braces, or the items of the file.
#[derive(Clone, Copy)]
struct Frame {
    /// The rule of its steps.
    rule: Rule,
    /// The brace that opens it, and the token that ends it: its partner, or one past the last token.
    brace: Option<usize>,
    end: usize,
    follows: Follows,
}

/// What may follow behind the braces of a frame.
#[derive(Clone, Copy, PartialEq)]
enum Follows {
    /// The next statement.
    Statement,
    /// `else`, or the next statement.
    Else,
    /// The rest of a statement that was given up.
    Rest,
}

struct Recovery<'a> {
    source: &'a SourceFile,
    words: Words,
    faults: Vec<Diagnostic>,
    /// The statements of which no more was read.
    given_up: Vec<std::ops::Range<usize>>,
}

/// How a step went.
enum Step {
    /// It was taken, up to the token before this one.
    Taken(usize),
    /// It was taken, up to the brace of this frame.
    Opened(Frame),
    /// A fault in it was put right: it is worth another try.
    Repaired,
    /// It was given up; the fault is that of this token's statement.
    Failed(usize),
}

impl Recovery<'_> {
    fn value(&mut self, from: usize) {
        while self.faults.len() < MAX_FAULTS && matches!(self.step(Rule::lone_value, 0, from), Step::Repaired) {}
    }

    fn file(&mut self) {
        let end = self.words.tokens.len();
        let mut frames = vec![Frame { rule: Rule::item_step, brace: None, end, follows: Follows::Statement }];
        let mut next = 0;
        let mut behind = Follows::Statement;
        while self.faults.len() < MAX_FAULTS
            && let Some(&frame) = frames.last()
        {
            while next < frame.end && !self.alive(next) {
                next += 1;
            }
            if next >= frame.end {
                frames.pop();
                behind = frame.follows;
                next = frame.end + 1;
                if let (Follows::Rest, Some(outer)) = (behind, frames.last()) {
                    next = self.boundary(outer, frame.end);
                }
                continue;
            }
            let is_else = behind == Follows::Else && self.text(next) == "else";
            let rule = if is_else { Rule::else_step } else { frame.rule };
            match self.step(rule, next, self.words.tokens[next].span.start()) {
                Step::Taken(behind) => next = behind,
                Step::Opened(inner) => {
                    next = inner.brace.map_or(next, |brace| brace + 1);
                    frames.push(inner);
                }
                Step::Repaired => continue,
                Step::Failed(token) => {
                    let end = self.boundary(&frame, token).max(next + 1);
                    let tokens = &self.words.tokens;
                    self.given_up.push(tokens[next].span.start()..tokens[end - 1].span.end());
                    let inner = self.sequence_around(token, &frame, next);
                    frames.extend(inner);
                    next = self.boundary(&inner.unwrap_or(frame), token);
                }
            }
            behind = Follows::Statement;
        }
    }

    /// Reads one step at byte `start`, of which `first` is the first token.
    fn step(&mut self, rule: Rule, first: usize, start: usize) -> Step {
        match Grammar::parse(rule, &self.words.masked[start..]) {
            Ok(pairs) => {
                let parts: Vec<_> = pairs.collect();
                let mut builder = Builder::new(self.source.id(), start);
                if let ([only], Rule::statement_step) = (&parts[..], rule)
                    && only.as_rule() == Rule::name
                {
                    builder.faults.extend(logical_word(only.as_str(), self.words.tokens[first].span));
                }
                parts.iter().for_each(|part| builder.step(part.clone()));
                self.faults.append(&mut builder.faults);
                let end = start + parts.last().map_or(0, end_of);
                let behind = self.words.tokens.partition_point(|token| token.span.end() <= end);
                let has = |rule: Rule| parts.iter().any(|part| part.as_rule() == rule);
                if parts.last().is_none_or(|last| last.as_rule() != Rule::open_brace) {
                    return Step::Taken(behind);
                }
                let in_router = matches!(rule, Rule::router_step | Rule::loop_step);
                let (rule, follows) = if in_router {
                    (Rule::loop_step, Follows::Statement)
                } else if has(Rule::kw_train) {
                    (Rule::train_step, Follows::Statement)
                } else if has(Rule::kw_router) {
                    (Rule::router_step, Follows::Statement)
                } else {
                    (Rule::statement_step, if has(Rule::kw_if) { Follows::Else } else { Follows::Statement })
                };
                Step::Opened(self.frame(rule, behind - 1, follows))
            }
            Err(error) => {
                let (InputLocation::Pos(at) | InputLocation::Span((at, _))) = error.location;
                let rules = match &error.variant {
                    ErrorVariant::ParsingError { positives, .. } => &positives[..],
                    // pest's own limits; nesting is bounded before, so this needs no words of its own.
                    ErrorVariant::CustomError { .. } => &[],
                };
                self.stopped(rule, first, start, start + at, rules)
            }
        }
    }

    /// Reports the fault at byte `at`, where one of `rules` would have gone on, unless it only follows from what was
    /// painted over.
    fn stopped(&mut self, rule: Rule, first: usize, start: usize, at: usize, rules: &[Rule]) -> Step {
        let tokens = &self.words.tokens;
        let split = tokens.partition_point(|token| token.span.end() <= at);
        let found = (split..tokens.len()).find(|&i| self.alive(i));
        let before = (0..split).rev().find(|&i| self.alive(i));
        let stop = Stop { source: self.source, tokens, step: rule, first, before, found, rules };
        let painted = |range: std::ops::Range<usize>| {
            self.words.painted.iter().any(|span| span.start() < range.end && range.start < span.end())
        };
        let around = before.map_or(0, |i| tokens[i].span.start())
            ..found.map_or(self.source.text().len(), |i| tokens[i].span.end());
        // What begins a line is judged for itself.
        let own = found.is_some_and(|i| tokens[i].first_on_line && !painted(tokens[i].span.range()));
        let follows = painted(around) && !(stop.begins() && own);
        // An unfinished statement is the fault of what came before, anything else of what was found.
        let unfinished = found.is_none_or(|i| tokens[i].first_on_line || matches!(self.text(i), "}" | ")" | "]"));
        let culprit = if unfinished && !stop.begins() { before.or(found) } else { found.or(before) };
        if !follows {
            let fault = describe(&stop);
            let repaired = fault.patches.first().is_some_and(|patch| {
                // What was read before this step is not read again.
                patch.span.start() >= start && repair(&mut self.words.masked, patch)
            });
            self.faults.push(fault);
            if repaired {
                return Step::Repaired;
            }
        }
        Step::Failed(culprit.unwrap_or(first).max(first))
    }

    fn text(&self, token: usize) -> &str {
        self.source.slice(self.words.tokens[token].span)
    }

    /// Whether a token has not been painted over.
    fn alive(&self, token: usize) -> bool {
        !self.words.masked[self.words.tokens[token].span.start()..].starts_with(' ')
    }

    fn frame(&self, rule: Rule, brace: usize, follows: Follows) -> Frame {
        let end = self.words.tokens[brace].partner.unwrap_or(self.words.tokens.len());
        Frame { rule, brace: Some(brace), end, follows }
    }

    /// The next statement of a frame behind `token`, or the end of the frame.
    fn boundary(&self, frame: &Frame, token: usize) -> usize {
        let starts = |&i: &usize| {
            let token = &self.words.tokens[i];
            token.parent == frame.brace
                && token.first_on_line
                && !matches!(self.text(i), "}" | ")" | "]" | "{" | "else")
        };
        (token + 1..frame.end).find(starts).unwrap_or(frame.end)
    }

    /// The layer sequence around a token, inside the values of the statement that begins with `first`.
    fn sequence_around(&self, token: usize, frame: &Frame, first: usize) -> Option<Frame> {
        let mut around = self.words.tokens[token].parent;
        while around != frame.brace
            && let Some(open) = around.filter(|&open| open > first)
        {
            // Behind a value or a name, a brace opens a branch or the body of a layer.
            let is_value = self.words.tokens[open - 1].kind == TokenKind::Symbol
                && !matches!(self.text(open - 1), ")" | "]" | "}");
            if self.text(open) == "{" && is_value {
                return Some(self.frame(Rule::statement_step, open, Follows::Rest));
            }
            around = self.words.tokens[open].parent;
        }
        None
    }
}
