//! Makes the grammar for tree-sitter from `moec.pest`, and holds it against every `.moe` file of the repository.
//!
//! `UPDATE_TREE_SITTER=1 cargo test` writes `src/grammar.json` anew, of which the build script makes the parser; the one that
//! it tries is the one that was there before, so that it is run again without.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pest_meta::ast::{Expr, Rule, RuleType};
use serde_json::{Map, Value, json};

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The rules of `moec.pest` as those of tree-sitter.
struct Grammar {
    rules: BTreeMap<String, Rule>,
    /// Rules of the result, in the order in which they are reached.
    made: Map<String, Value>,
}

impl Grammar {
    fn read() -> Self {
        let path = here().join("../../crates/moec-syntax/src/moec.pest");
        let text = std::fs::read_to_string(path).unwrap();
        let pairs = pest_meta::parser::parse(pest_meta::parser::Rule::grammar_rules, &text).unwrap();
        let rules = pest_meta::parser::consume_rules(pairs).unwrap();
        Grammar { rules: rules.into_iter().map(|rule| (rule.name.clone(), rule)).collect(), made: Map::new() }
    }

    fn make(mut self) -> Value {
        // The first rule is that of a whole text.
        self.reach("file");
        let comment = json!({ "type": "TOKEN", "content": { "type": "PATTERN", "value": "//[^\\n]*" } });
        self.made.insert("comment".into(), comment);
        json!({
            "name": "moe",
            "word": "name",
            "rules": self.made,
            "extras": [{ "type": "PATTERN", "value": "\\s" }, { "type": "SYMBOL", "name": "comment" }],
            // `steps (2 + 3) * 100` against `evaluate(every: 3)`: what stands behind the parentheses decides.
            "conflicts": [["argument", "group"]],
            "precedences": [],
            "externals": [],
            "inline": [],
            "supertypes": [],
            "reserved": {},
        })
    }

    /// What stands for a rule where it is used: its words, if it is no more than words.
    fn used(&mut self, name: &str) -> Value {
        match name {
            "SOI" | "EOI" | "blank" | "WHITESPACE" | "COMMENT" => return json!({ "type": "BLANK" }),
            _ => {}
        }
        let rule = self.rules[name].clone();
        if let Some(word) = lone_word(&rule.expr) {
            return json!({ "type": "STRING", "value": word });
        }
        let hidden = if rule.ty == RuleType::Silent { format!("_{name}") } else { name.to_string() };
        self.reach(name);
        json!({ "type": "SYMBOL", "name": hidden })
    }

    fn reach(&mut self, name: &str) {
        let rule = self.rules[name].clone();
        let hidden = if rule.ty == RuleType::Silent { format!("_{name}") } else { name.to_string() };
        if self.made.contains_key(&hidden) {
            return;
        }
        // Held, so that a rule may use itself.
        self.made.insert(hidden.clone(), Value::Null);
        let is_words = words(&rule.expr).is_some();
        let made = if rule.ty == RuleType::Atomic && !is_words {
            let pattern = self.pattern(&rule.expr);
            json!({ "type": "TOKEN", "content": { "type": "PATTERN", "value": pattern } })
        } else {
            self.rule(&rule.expr)
        };
        self.made.insert(hidden, made);
    }

    fn rule(&mut self, expr: &Expr) -> Value {
        let blank = || json!({ "type": "BLANK" });
        match expr {
            Expr::Str(word) => json!({ "type": "STRING", "value": word }),
            Expr::Ident(name) => self.used(name),
            Expr::Seq(..) => {
                let members: Vec<Value> = sequence(expr).into_iter().map(|part| self.rule(part)).collect();
                let mut members: Vec<Value> = members.into_iter().filter(|part| *part != blank()).collect();
                match members.len() {
                    0 => blank(),
                    1 => members.remove(0),
                    _ => json!({ "type": "SEQ", "members": members }),
                }
            }
            Expr::Choice(..) => {
                let members: Vec<Value> = choices(expr).into_iter().map(|part| self.rule(part)).collect();
                json!({ "type": "CHOICE", "members": members })
            }
            Expr::Opt(inner) => json!({ "type": "CHOICE", "members": [self.rule(inner), blank()] }),
            Expr::Rep(inner) => match self.rule(inner) {
                inner if inner == blank() => inner,
                inner => json!({ "type": "REPEAT", "content": inner }),
            },
            Expr::RepOnce(inner) => json!({ "type": "REPEAT1", "content": self.rule(inner) }),
            // What must not follow, and what only has to: the states of the parser know it, or it does not matter here.
            Expr::NegPred(_) | Expr::PosPred(_) => blank(),
            other => panic!("{other:?} has no rule of tree-sitter yet"),
        }
    }

    /// A token as a regular expression.
    fn pattern(&self, expr: &Expr) -> String {
        match expr {
            Expr::Str(text) => text.chars().map(escaped).collect(),
            Expr::Insens(text) => {
                text.chars().map(|c| format!("[{}{}]", c.to_ascii_lowercase(), c.to_ascii_uppercase())).collect()
            }
            Expr::Ident(name) => match name.as_str() {
                "ASCII_DIGIT" => "[0-9]".into(),
                "ASCII_HEX_DIGIT" => "[0-9a-fA-F]".into(),
                "ASCII_ALPHA" => "[a-zA-Z]".into(),
                "ASCII_ALPHANUMERIC" => "[0-9a-zA-Z]".into(),
                "ANY" => ".".into(),
                name => format!("({})", self.pattern(&self.rules[name].expr)),
            },
            Expr::Seq(..) => {
                let parts = sequence(expr);
                let mut text = String::new();
                for (i, part) in parts.iter().enumerate() {
                    match (part, i.checked_sub(1).map(|before| parts[before])) {
                        // `!("a" | "b") ~ ANY`
                        (Expr::Ident(any), Some(Expr::NegPred(not))) if any == "ANY" => {
                            let not: String = words(not).unwrap().iter().map(|word| escaped(one(word))).collect();
                            text.push_str(&format!("[^{not}]"));
                        }
                        (Expr::NegPred(_) | Expr::PosPred(_), _) => {}
                        (part, _) => text.push_str(&self.pattern(part)),
                    }
                }
                text
            }
            Expr::Choice(..) => {
                format!("({})", choices(expr).into_iter().map(|part| self.pattern(part)).collect::<Vec<_>>().join("|"))
            }
            Expr::Opt(inner) => format!("({})?", self.pattern(inner)),
            Expr::Rep(inner) => format!("({})*", self.pattern(inner)),
            Expr::RepOnce(inner) => format!("({})+", self.pattern(inner)),
            Expr::RepMinMax(inner, least, most) => format!("({}){{{least},{most}}}", self.pattern(inner)),
            other => panic!("{other:?} has no pattern yet"),
        }
    }
}

fn one(word: &str) -> char {
    let mut chars = word.chars();
    let (Some(c), None) = (chars.next(), chars.next()) else { panic!("{word:?} is not one character") };
    c
}

fn escaped(c: char) -> String {
    match c {
        '\n' => "\\n".into(),
        c if c.is_ascii_punctuation() => format!("\\{c}"),
        c => c.to_string(),
    }
}

fn sequence(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::Seq(a, b) => [sequence(a), sequence(b)].concat(),
        other => vec![other],
    }
}

fn choices(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::Choice(a, b) => [choices(a), choices(b)].concat(),
        other => vec![other],
    }
}

/// The words that a rule chooses from, if it does no more than that.
fn words(expr: &Expr) -> Option<Vec<String>> {
    match expr {
        Expr::Str(word) => Some(vec![word.clone()]),
        Expr::Choice(a, b) => Some([words(a)?, words(b)?].concat()),
        Expr::Seq(a, b) => match b.as_ref() {
            Expr::NegPred(_) => words(a),
            _ => None,
        },
        _ => None,
    }
}

/// The word of a rule that is no more than one.
fn lone_word(expr: &Expr) -> Option<String> {
    words(expr).filter(|words| words.len() == 1).map(|mut words| words.remove(0))
}

/// Fails, or writes anew, a file that is not what it should be.
fn hold(path: &Path, text: &str) {
    if std::env::var_os("UPDATE_TREE_SITTER").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == text, "{} is stale: UPDATE_TREE_SITTER=1 cargo test writes it anew", path.display());
}

#[test]
fn the_grammar_is_that_of_the_language() {
    let grammar = serde_json::to_string_pretty(&Grammar::read().make()).unwrap() + "\n";
    hold(&here().join("src/grammar.json"), &grammar);
}

fn moe_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            moe_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "moe") {
            found.push(path);
        }
    }
}

fn parse(text: &str) -> tree_sitter::Tree {
    let mut parser = tree_sitter::Parser::new();
    parser.set_language(&tree_sitter_moe::LANGUAGE.into()).unwrap();
    parser.parse(text, None).unwrap()
}

#[test]
fn whatever_the_language_takes_is_taken() {
    let mut files = Vec::new();
    for folder in ["specs", "examples", "tests", "crates", "benchmarks"] {
        moe_files(&here().join("../..").join(folder), &mut files);
    }
    // Those that the parser of the language refuses are named so, and one that such a file imports.
    let is_sound = |path: &&PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        !path.to_string_lossy().contains("tests/syntax/") || !(name.starts_with("err_") || name == "broken.moe")
    };
    let sound: Vec<&PathBuf> = files.iter().filter(is_sound).collect();
    assert!(sound.len() > 100, "only {} files were found", sound.len());
    let mut refused = Vec::new();
    for path in sound {
        let tree = parse(&std::fs::read_to_string(path).unwrap());
        if tree.root_node().has_error() {
            refused.push(format!("{}: {}", path.display(), first_error(tree.root_node())));
        }
    }
    assert!(refused.is_empty(), "{} files are refused:\n{}", refused.len(), refused.join("\n"));
}

fn first_error(node: tree_sitter::Node) -> String {
    if node.is_error() || node.is_missing() {
        let at = node.start_position();
        return format!("{}:{}: {}", at.row + 1, at.column + 1, node.to_sexp());
    }
    let mut cursor = node.walk();
    let inner: Vec<_> = node.children(&mut cursor).filter(|child| child.has_error()).collect();
    inner.into_iter().map(first_error).next().unwrap_or_default()
}

#[test]
fn what_is_wrong_is_an_error() {
    for text in ["model {", "model m { let = 2 }", "train { steps }", "router r { x = 1 }"] {
        assert!(parse(text).root_node().has_error(), "{text}");
    }
}

#[test]
fn colours_name_nodes_that_there_are() {
    let query = tree_sitter::Query::new(&tree_sitter_moe::LANGUAGE.into(), tree_sitter_moe::HIGHLIGHTS).unwrap();
    let names: BTreeSet<&str> = query.capture_names().iter().copied().collect();
    for name in ["keyword", "comment", "string", "number", "operator", "type", "function", "variable.parameter"] {
        assert!(names.contains(name), "nothing is coloured as {name}");
    }
}
