//! A text that is being written, made into one that the grammar takes: for an editor, which asks about what is there while
//! half a statement is missing.
//!
//! Offsets stay: what has faults is painted over with blanks, and a closing bracket takes the place of a blank. Only behind
//! the text may there be more of them.

use pest::Parser;

use crate::grammar::{Grammar, Rule};
use crate::recover::{blank, without_faults};
use crate::source::SourceFile;
use crate::words::{self, MAX_FAULTS, Token, TokenKind, Words};

/// How often a text is looked at again. Each time up to [`MAX_FAULTS`] faults are gone.
const MAX_ROUNDS: usize = 16;

/// The text of a source without what has faults; nothing at all where it has too many.
pub(crate) fn mend(source: &SourceFile) -> String {
    let mut text = source.text().to_owned();
    if Grammar::parse(Rule::file, &text).is_ok() {
        return text;
    }
    // They mean nothing, and a bracket can take their place.
    words::comments(source).into_iter().for_each(|comment| blank(&mut text, comment.range()));
    for _ in 0..MAX_ROUNDS {
        let copy = SourceFile::new("", text.clone()).with_id(source.id());
        let words = words::read(&copy, 0);
        text = if words.faults.len() >= MAX_FAULTS {
            words.masked
        } else if !words.balanced {
            balanced(&copy, words)
        } else {
            without_faults(&copy, words)
        };
        if Grammar::parse(Rule::file, &text).is_ok() {
            return text;
        }
    }
    String::new()
}

/// The text with as many closing brackets as opening ones. A call that is left open costs the rest of its line; a body that
/// is left open ends before the next item of the file.
fn balanced(source: &SourceFile, words: Words) -> String {
    let Words { tokens, masked: text, .. } = words;
    let mut balance = Balance { source, tokens, text, open: Vec::new() };
    for token in 0..balance.tokens.len() {
        if balance.begins_item(token) {
            balance.close_down_to(0, token);
        }
        match balance.word(token) {
            "{" | "(" | "[" => balance.open.push(token),
            closer @ ("}" | ")" | "]") => {
                let partner = balance.open.iter().rposition(|&opener| closes(balance.word(opener), closer));
                match partner {
                    Some(at) => {
                        balance.close_down_to(at + 1, token);
                        balance.open.pop();
                    }
                    None => blank(&mut balance.text, balance.tokens[token].span.range()),
                }
            }
            _ => {}
        }
    }
    for opener in std::mem::take(&mut balance.open).into_iter().rev() {
        if balance.word(opener) == "{" {
            balance.text.push_str(" }");
        } else {
            balance.give_up(opener);
        }
    }
    balance.text
}

fn closes(opener: &str, closer: &str) -> bool {
    matches!((opener, closer), ("{", "}") | ("(", ")") | ("[", "]"))
}

struct Balance<'a> {
    source: &'a SourceFile,
    tokens: Vec<Token>,
    text: String,
    /// The brackets that are open.
    open: Vec<usize>,
}

impl<'a> Balance<'a> {
    fn word(&self, token: usize) -> &'a str {
        self.source.slice(self.tokens[token].span)
    }

    /// Whether a token begins an item of the file: by its word and by where it stands.
    fn begins_item(&self, token: usize) -> bool {
        matches!(self.word(token), "model" | "block" | "train" | "router" | "import")
            && self.source.line_column(self.tokens[token].span.start()).column == 1
    }

    /// Closes the brackets that are open, but for the first `kept`, before a token.
    fn close_down_to(&mut self, kept: usize, token: usize) {
        for opener in self.open.split_off(kept).into_iter().rev() {
            let gap = self.tokens[token - 1].span.end()..self.tokens[token].span.start();
            match self.text[gap.clone()].find([' ', '\n', '\r', '\t']) {
                Some(at) if self.word(opener) == "{" => {
                    self.text.replace_range(gap.start + at..gap.start + at + 1, "}");
                }
                _ => self.give_up(opener),
            }
        }
    }

    /// Blanks a bracket with the name before it and what follows on its line.
    fn give_up(&mut self, opener: usize) {
        let named = opener > 0 && self.tokens[opener - 1].kind == TokenKind::Name && !self.tokens[opener].first_on_line;
        let from = self.tokens[opener - usize::from(named)].span.start();
        let line = (opener + 1..self.tokens.len()).take_while(|&token| !self.tokens[token].first_on_line);
        let last = line.take_while(|&token| self.word(token) != "}").last().unwrap_or(opener);
        blank(&mut self.text, from..self.tokens[last].span.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ast::{Item, Statement};
    use crate::import::parse_leniently;

    fn outline(text: &str) -> Vec<String> {
        let file = parse_leniently(&SourceFile::new("a.moe", text));
        let statements = |statements: &[Statement]| {
            let word = |statement: &Statement| match statement {
                Statement::Let(node) => format!("let {}", node.name),
                Statement::Layer(call) => call.name.name.clone(),
                other => format!("{other:?}").split('(').next().unwrap_or_default().to_lowercase(),
            };
            statements.iter().map(word).collect::<Vec<_>>().join(" ")
        };
        let item = |item: &Item| match item {
            Item::Model(model) => format!("model {}: {}", model.name, statements(&model.body.statements)),
            Item::Block(block) => format!("block {}: {}", block.name, statements(&block.body.statements)),
            Item::Train(train) => format!("train of {}", train.settings.len()),
            Item::Router(router) => format!("router {} of {}", router.name, router.statements.len()),
            Item::Import(import) => format!("import {}", import.path),
        };
        file.items.iter().map(item).collect()
    }

    #[test]
    fn what_has_no_faults_stays() {
        let text = "model m {\n  let a = 1\n  embed(width: a)\n}\ntrain { steps 3 }\n";
        assert_eq!(mend(&SourceFile::new("a.moe", text)), text);
    }

    #[test]
    fn half_a_statement_costs_itself() {
        let before = "model m {\n  let a = 1\n  embed(width: a)\n";
        let after = "  layer_norm\n  unembed\n}\n\ntrain { steps 3 }\n";
        let whole = ["model m: let a embed layer_norm unembed", "train of 1"];
        for half in ["attention(", "attention(heads:", "attention(heads: 8", "moe(experts: 8 *", ")"] {
            assert_eq!(outline(&format!("{before}  {half}\n{after}")), whole, "{half}");
        }
        // What begins with `=` goes on with the statement before it.
        let costs_both = ["model m: let a layer_norm unembed", "train of 1"];
        assert_eq!(outline(&format!("{before}  = 3\n{after}")), costs_both);
        // A character that is in no word of the language stands for a layer that there is not.
        let unknown = ["model m: let a embed __ layer_norm unembed", "train of 1"];
        assert_eq!(outline(&format!("{before}  ñ\n{after}")), unknown);
        assert_eq!(outline(&format!("{before}  residual {{ layer_norm  moe(experts: 8 *\n{after}")).len(), 2);
    }

    #[test]
    fn a_body_that_is_left_open_ends_before_the_next_item() {
        let open = "model m {\n  repeat 2 {\n    relu\n\ntrain { steps 3 }\n";
        assert_eq!(outline(open), ["model m: repeat", "train of 1"]);
        assert_eq!(outline("train { steps 3 }\nmodel m {\n  relu // }\n"), ["train of 1", "model m: relu"]);
    }

    #[test]
    fn more_faults_than_are_reported_are_no_obstacle() {
        let faults = "  mlp(hidden 4)\n  let = 2\n".repeat(60);
        let found = outline(&format!("model m {{\n{faults}  relu\n}}\ntrain {{ steps 3 }}\n"));
        assert!(found[0].ends_with("mlp mlp relu") && found[1] == "train of 1", "{found:?}");
    }

    #[test]
    fn any_beginning_of_a_text_can_be_read() {
        let text = "// One.\nmodel one {\n  let w = 8\n  context 4  vocab characters\n  repeat 2 as i {\n    if i > 0 { relu } \
                    else { moe(experts: 2 * { mlp(hidden: [w, 3]) }, route: r(k: 1)) }\n  }\n}\nrouter r(k: int) {\n  \
                    let a, b = top_k(x, k)\n  return token_choice(experts: b)\n}\ntrain { data \"ñ.txt\" }\n";
        for (end, _) in text.char_indices() {
            let file = parse_leniently(&SourceFile::new("a.moe", &text[..end]));
            let items = ["model one {", "router r(k: int) {", "train {"];
            let begun = items.iter().filter(|item| text[..end].contains(*item)).count();
            assert_eq!(begun, file.items.len(), "{:?}", &text[..end]);
        }
    }
}
