//! What could be written at a place of a text, judged by the words before it: the text there may be half written, and what
//! follows is not asked.

use moec_syntax::{SourceFile, Token, TokenKind};

/// What something with arguments is, by where its name stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Callee {
    Layer(String),
    Router(String),
    Loss(String),
    /// A form within the arguments of a layer.
    Form(String),
    /// A setting of `train`.
    Setting(String),
    /// One of the names that a setting of `train` can have.
    Choice {
        setting: String,
        name: String,
    },
    /// A function in a router.
    Function(String),
}

/// What belongs at a place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    /// An item of the file.
    Item,
    /// A layer, a `let`, ..; in the body of a model itself also its settings.
    Statement { of_model: bool },
    /// A setting of `train`.
    Setting,
    /// The value of a setting of `train`.
    SettingValue(String),
    /// A statement of a router.
    RouterStatement,
    /// The name of an argument, beside those that are given.
    Argument { callee: Callee, given: Vec<String> },
    /// The value of an argument.
    Value { callee: Callee, argument: String },
    /// A number or a boolean.
    Expression,
    /// The value of `vocab`.
    Vocab,
    /// A value in a router.
    RouterValue,
    /// The type of a parameter.
    Type,
    /// A name that is new, an operator, a text in quotes: nothing that can be known.
    Unknown,
}

/// The place of the word that begins at a byte.
pub(crate) fn place(source: &SourceFile, tokens: &[Token], start: usize) -> Place {
    let before = &tokens[..tokens.partition_point(|token| token.span.end() <= start)];
    // Inside a text in quotes.
    if tokens.get(before.len()).is_some_and(|token| token.span.start() < start) {
        return Place::Unknown;
    }
    let gap = before.last().map_or(0, |token| token.span.end())..start;
    let gap = source.text().get(gap).unwrap_or_default();
    if gap.rsplit('\n').next().is_some_and(|line| line.contains("//")) {
        return Place::Unknown;
    }
    let mut walk = Walk { frames: vec![Frame::new(Kind::File)] };
    for token in before {
        walk.step(token, source.slice(token.span));
    }
    if gap.contains('\n') {
        walk.new_line();
    }
    walk.place()
}

/// What stands between two brackets.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    File,
    Body {
        of_model: bool,
    },
    Train,
    Router,
    /// `(k: int)` behind the name of a block or a router.
    Parameters,
    Arguments(Callee),
    /// `aux NAME( .. )`
    Aux,
}

#[derive(Clone, Debug)]
struct Frame {
    kind: Kind,
    /// Whether brackets only group a value of what is around, as in `(a + b)`, `[a, b]` or `if c { a } else { b }`.
    inner: bool,
    /// The word that began the statement.
    statement: String,
    /// Whether the last word ends a value, so that the next one begins something else.
    complete: bool,
    /// Whether `=` was there in the statement.
    bound: bool,
    /// Whether `if` was there in the value.
    chosen: bool,
    /// The last word.
    last: String,
    argument: Option<String>,
    given: Vec<String>,
}

impl Frame {
    fn new(kind: Kind) -> Self {
        Frame {
            kind,
            inner: false,
            statement: String::new(),
            complete: true,
            bound: false,
            chosen: false,
            last: String::new(),
            argument: None,
            given: Vec::new(),
        }
    }

    /// What only groups: the same again.
    fn grouped(&self) -> Self {
        Frame { inner: true, complete: false, chosen: false, last: String::new(), ..self.clone() }
    }
}

struct Walk {
    frames: Vec<Frame>,
}

impl Walk {
    /// The value of a setting begins on the line of its name: what stands on a new line is something else.
    fn new_line(&mut self) {
        let Some(top) = self.frames.last_mut() else { return };
        let is_setting = match top.kind {
            Kind::Train => true,
            Kind::Body { .. } => matches!(top.statement.as_str(), "context" | "vocab"),
            Kind::File | Kind::Router | Kind::Parameters | Kind::Arguments(_) | Kind::Aux => false,
        };
        top.complete |= is_setting && !top.inner && top.last == top.statement;
    }

    fn step(&mut self, token: &Token, word: &str) {
        if token.first_on_line {
            self.new_line();
        }
        let Some(top) = self.frames.last_mut() else { return };
        match word {
            "(" | "[" | "{" => {
                let inner = opened(top, word);
                self.frames.push(inner);
                return;
            }
            ")" | "]" | "}" => {
                if self.frames.len() > 1 {
                    self.frames.pop();
                }
                if let Some(top) = self.frames.last_mut() {
                    top.complete = true;
                    top.last = word.to_owned();
                }
                return;
            }
            _ => {}
        }
        if token.kind == TokenKind::Name {
            top.name(word);
        } else if token.kind == TokenKind::Symbol {
            top.symbol(word);
        } else {
            top.complete = true;
        }
        top.last = word.to_owned();
    }

    fn place(&self) -> Place {
        let Some(top) = self.frames.last() else { return Place::Unknown };
        if let Kind::Arguments(callee) = &top.kind {
            return match (&top.argument, top.complete && !top.last.is_empty()) {
                (_, true) => Place::Unknown,
                (Some(argument), false) => Place::Value { callee: callee.clone(), argument: argument.clone() },
                (None, false) if top.inner => Place::RouterValue,
                (None, false) => Place::Argument { callee: callee.clone(), given: top.given.clone() },
            };
        }
        match (&top.kind, top.statement.as_str()) {
            (Kind::File, _) => {
                if top.complete {
                    Place::Item
                } else {
                    Place::Unknown
                }
            }
            (Kind::Body { of_model }, _) if top.complete && !top.inner => Place::Statement { of_model: *of_model },
            (Kind::Train, _) if top.complete && !top.inner => Place::Setting,
            (Kind::Router, _) if top.complete && !top.inner => Place::RouterStatement,
            _ if top.complete => Place::Unknown,
            (Kind::Body { .. }, "vocab") => Place::Vocab,
            (Kind::Body { .. }, "let") if !top.bound => Place::Unknown,
            (Kind::Body { .. }, "block") => Place::Unknown,
            (Kind::Body { .. }, _) if top.last == "as" => Place::Unknown,
            (Kind::Body { .. }, _) => Place::Expression,
            (Kind::Train, setting) => Place::SettingValue(setting.to_owned()),
            (Kind::Router, "return" | "repeat") => Place::RouterValue,
            (Kind::Router, _) if top.bound => Place::RouterValue,
            (Kind::Parameters, _) if top.last == ":" => Place::Type,
            (Kind::Router | Kind::Parameters | Kind::Aux | Kind::Arguments(_), _) => Place::Unknown,
        }
    }
}

impl Frame {
    fn begin(&mut self, word: &str) {
        self.statement = word.to_owned();
        self.bound = false;
        self.chosen = false;
    }

    fn name(&mut self, word: &str) {
        match &self.kind {
            Kind::File => {
                if matches!(word, "model" | "block" | "train" | "router" | "import") {
                    self.begin(word);
                    self.complete = false;
                } else {
                    // The name of an item: its brackets follow.
                    self.complete = false;
                }
            }
            Kind::Body { .. } | Kind::Train | Kind::Router if !self.inner => {
                let keyword = match &self.kind {
                    Kind::Router => matches!(word, "let" | "state" | "table" | "repeat" | "update" | "aux" | "return"),
                    Kind::Body { .. } => matches!(word, "let" | "repeat" | "block" | "context" | "vocab"),
                    _ => false,
                };
                match word {
                    "as" | "else" => self.complete = false,
                    "if" => {
                        if self.complete && self.last != "else" {
                            self.begin(word);
                        }
                        self.chosen = true;
                        self.complete = false;
                    }
                    _ if keyword && self.complete => {
                        self.begin(word);
                        self.complete = false;
                    }
                    _ if self.complete => {
                        self.begin(word);
                        // A setting of `train` waits for its value.
                        self.complete = self.kind != Kind::Train;
                    }
                    _ => self.complete = true,
                }
            }
            _ => {
                self.chosen |= word == "if";
                self.complete = !matches!(word, "if" | "else");
            }
        }
    }

    fn symbol(&mut self, word: &str) {
        match word {
            ":" if !self.inner && self.argument.is_none() => {
                self.given.push(self.last.clone());
                self.argument = Some(self.last.clone());
            }
            "," if !self.inner => {
                self.argument = None;
                self.chosen = false;
            }
            "=" => self.bound = true,
            _ => {}
        }
        self.complete = false;
    }
}

/// What an opening bracket leads into.
fn opened(around: &Frame, bracket: &str) -> Frame {
    let name = || around.last.clone();
    let named = around.complete && around.last.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let kind = match (&around.kind, bracket) {
        (_, "[") => return around.grouped(),
        (Kind::File, "{") => match around.statement.as_str() {
            "train" => Kind::Train,
            "router" => Kind::Router,
            word => Kind::Body { of_model: word == "model" },
        },
        (Kind::File, _) => Kind::Parameters,
        (Kind::Body { .. }, "(") if named && around.statement == "block" => Kind::Parameters,
        (Kind::Body { .. }, "(") if named => Kind::Arguments(Callee::Layer(name())),
        (Kind::Body { .. }, "{") => {
            let is_value = matches!(around.statement.as_str(), "let" | "context" | "vocab") && around.chosen;
            if is_value || around.inner {
                return around.grouped();
            }
            Kind::Body { of_model: false }
        }
        (Kind::Train, "(") if around.last == around.statement && !around.complete => {
            Kind::Arguments(Callee::Setting(name()))
        }
        (Kind::Train, "(") if named => {
            Kind::Arguments(Callee::Choice { setting: around.statement.clone(), name: name() })
        }
        (Kind::Router, "{") if around.statement == "repeat" && !around.inner && !around.chosen => Kind::Router,
        (Kind::Router, "(") if named && around.statement == "aux" && !around.bound => Kind::Aux,
        (Kind::Router, "(") if named => Kind::Arguments(Callee::Function(name())),
        (Kind::Arguments(callee), "(") if named => {
            let argument = around.argument.as_deref();
            Kind::Arguments(match (callee, argument) {
                (Callee::Function(_), _) => Callee::Function(name()),
                (_, Some("route")) => Callee::Router(name()),
                (_, Some("balance")) => Callee::Loss(name()),
                (_, Some("experts" | "shared")) => Callee::Layer(name()),
                _ => Callee::Form(name()),
            })
        }
        // Behind an operator or the name of an argument a brace opens a layer sequence, else a branch.
        (Kind::Arguments(Callee::Layer(_)), "{") if !around.complete && around.last != "else" => {
            Kind::Body { of_model: false }
        }
        _ => return around.grouped(),
    };
    let starts_empty = matches!(kind, Kind::Arguments(_) | Kind::Parameters | Kind::Aux);
    Frame { complete: !starts_empty, ..Frame::new(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(marked: &str) -> Place {
        let (before, behind) = marked.split_once('|').unwrap();
        let source = SourceFile::new("a.moe", format!("{before}{behind}"));
        place(&source, &moec_syntax::tokens(&source), before.len())
    }

    #[test]
    fn statements_follow_each_other_without_a_mark() {
        let statement = Place::Statement { of_model: true };
        for text in [
            "|",
            "let a = 1 |",
            "embed(width: 1)  |",
            "residual { relu } |",
            "context 3\n|",
            "let a = if b { 1 } else { 2 } |",
        ] {
            assert_eq!(at(&format!("model m {{ {text}")), statement, "{text}");
        }
        for text in
            ["let a = |", "repeat |", "context 2 * |", "let a = (|", "let a = if b { |", "let a = 1 + |\n unembed"]
        {
            assert_eq!(at(&format!("model m {{ {text}")), Place::Expression, "{text}");
        }
        for text in ["let |", "repeat 2 as |", "block |", "let a // |", "import \"|\""] {
            assert_eq!(at(&format!("model m {{ {text}")), Place::Unknown, "{text}");
        }
        for text in ["residual { |", "if a { |", "repeat 2 as i { |", "moe(experts: 2 * { |", "block b { |"] {
            assert_eq!(at(&format!("model m {{ {text}")), Place::Statement { of_model: false }, "{text}");
        }
        assert_eq!(at("model m { vocab |"), Place::Vocab);
        assert_eq!(at("model m { vocab\n |"), statement);
        assert_eq!([at("|"), at("model m { } |"), at("model |")], [Place::Item, Place::Item, Place::Unknown]);
    }

    #[test]
    fn arguments_know_whose_they_are() {
        let layer = |name: &str| Callee::Layer(name.into());
        let argument =
            |callee, given: &[&str]| Place::Argument { callee, given: given.iter().map(|s| (*s).into()).collect() };
        let value = |callee, argument: &str| Place::Value { callee, argument: argument.into() };
        assert_eq!(at("block b { mlp(|"), argument(layer("mlp"), &[]));
        assert_eq!(at("block b { mlp(hidden: 4 * (1 + 2), |)"), argument(layer("mlp"), &["hidden"]));
        assert_eq!(at("block b { mlp(activation: |)"), value(layer("mlp"), "activation"));
        assert_eq!(at("block b { mlp(activation: relu |)"), Place::Unknown);
        assert_eq!(at("block b { moe(experts: 4 * |"), value(layer("moe"), "experts"));
        assert_eq!(at("block b { moe(experts: 4 * mlp(|"), argument(layer("mlp"), &[]));
        assert_eq!(at("block b { moe(experts: 2 * { relu }, route: |"), value(layer("moe"), "route"));
        assert_eq!(at("block b { moe(route: if 1 < 2 { |"), value(layer("moe"), "route"));
        assert_eq!(
            at("block b { moe(route: switch(jitter: 0.1, |"),
            argument(Callee::Router("switch".into()), &["jitter"])
        );
        assert_eq!(at("block b { moe(balance: [load(weight: 1), |"), value(layer("moe"), "balance"));
        assert_eq!(at("block b { moe(balance: [load(|"), argument(Callee::Loss("load".into()), &[]));
        assert_eq!(at("block b { moe(capacity: capacity(order: |"), value(Callee::Form("capacity".into()), "order"));
    }

    #[test]
    fn recipes_and_routers() {
        assert_eq!([at("train { |"), at("train { steps 3 |")], [Place::Setting, Place::Setting]);
        assert_eq!(at("train { steps 3 optimizer |"), Place::SettingValue("optimizer".into()));
        let adamw = Callee::Choice { setting: "optimizer".into(), name: "adamw".into() };
        assert_eq!(at("train { optimizer adamw(|"), Place::Argument { callee: adamw, given: Vec::new() });
        assert_eq!(at("train { optimizer\n |"), Place::Setting);
        assert_eq!(at("train { optimizer\n precision |"), Place::SettingValue("precision".into()));
        let evaluate = Callee::Setting("evaluate".into());
        assert_eq!(at("train { evaluate(|"), Place::Argument { callee: evaluate, given: Vec::new() });
        assert_eq!(at("train { evaluate(every: 3) |"), Place::Setting);
        assert_eq!(
            [at("router r(k: |"), at("router r(k|"), at("router r(k: int) { |")],
            [Place::Type, Place::Unknown, Place::RouterStatement]
        );
        assert_eq!(
            [at("router r { let a = |"), at("router r { let a, _ = top_k(x, 2) return |")],
            [Place::RouterValue, Place::RouterValue]
        );
        let function = Callee::Function("sum".into());
        assert_eq!(at("router r { let a = sum(|"), Place::Argument { callee: function.clone(), given: Vec::new() });
        assert_eq!(at("router r { let a = sum(b, over: |"), Place::Value { callee: function, argument: "over".into() });
    }
}
