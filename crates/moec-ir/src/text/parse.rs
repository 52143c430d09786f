//! Text to graph. The only place of this crate that knows pest.

use crate::graph::Graph;
use crate::ids::{NodeId, Origin, Value};
use crate::internal::Invariant;
use crate::internal_error;
use crate::op::{Op, Source};
use crate::purpose::Phase;
use crate::types::{DType, Real, TensorType};
use pest::Parser;
use pest::error::{ErrorVariant, InputLocation};
use pest::iterators::Pair;
use std::collections::BTreeMap;
use std::str::FromStr;

/// pest derives a public type with public rules; the module keeps both inside the crate.
mod grammar {
    /// The parser that pest derives from the grammar.
    #[derive(pest_derive::Parser)]
    #[grammar = "text/ir.pest"]
    pub(crate) struct Grammar;
}
use grammar::{Grammar, Rule};

/// Longer texts are refused.
pub const MAX_TEXT_BYTES: usize = 16 << 20;

/// Types with more axes are refused.
const MAX_RANK: usize = 16;

/// Types whose non-zero extents multiply to more than this are refused, so that no size computed from them overflows.
const MAX_EXTENT: usize = 1 << 48;

/// Where and why a text is not a graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong and what was expected.
    pub message: String,
}

/// Parses the text form of a graph.
///
/// # Errors
/// The first place where the text is not a graph: a syntax error, an unknown operation or attribute, a value used
/// before its definition, operands that do not fit, result types other than the operation gives, or a text of more
/// than [`MAX_TEXT_BYTES`].
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    if text.len() > MAX_TEXT_BYTES {
        let message = format!("the text has {} bytes, more than {MAX_TEXT_BYTES}", text.len());
        return Err(ParseError { line: 1, column: 1, message });
    }
    let file = Grammar::parse(Rule::file, text).map_err(|e| syntax_error(text, e))?;
    let mut reader = Reader::default();
    for statement in file.flat_map(Pair::into_inner).filter(|p| p.as_rule() == Rule::graph).flat_map(Pair::into_inner) {
        match statement.as_rule() {
            Rule::phase => reader.phase(&statement)?,
            Rule::node => reader.node(statement)?,
            Rule::output | Rule::update => reader.declaration(statement)?,
            Rule::kw_graph | Rule::open_brace | Rule::close_brace => {}
            rule => internal_error!("the grammar has {rule:?} in a graph"),
        }
    }
    Ok(reader.graph)
}

// ---- errors ----

fn at(pair: &Pair<'_, Rule>, message: impl Into<String>) -> ParseError {
    let (line, column) = pair.line_col();
    ParseError { line, column, message: message.into() }
}

fn syntax_error(text: &str, error: pest::error::Error<Rule>) -> ParseError {
    let position = match error.location {
        InputLocation::Pos(p) | InputLocation::Span((p, _)) => p,
    };
    let (before, rest) = text.split_at(position);
    let found = match rest.chars().next() {
        None => "the end of the text".to_string(),
        Some(c) if c.is_ascii_alphanumeric() || c == '_' => {
            let word: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').take(40).collect();
            format!("`{word}`")
        }
        Some(c) => format!("`{}`", c.escape_debug()),
    };
    let mut expected: Vec<&str> = match &error.variant {
        ErrorVariant::ParsingError { positives, .. } => positives.iter().map(|&r| in_words(r)).collect(),
        ErrorVariant::CustomError { .. } => Vec::new(),
    };
    expected.sort_unstable();
    expected.dedup();
    let message = match expected.is_empty() {
        true => format!("{found} does not belong here"),
        false => format!("expected {}, found {found}", either(&expected)),
    };
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    ParseError { line, column, message }
}

/// One of these, as it stands in a sentence.
fn either<S: AsRef<str>>(words: &[S]) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => last.to_string(),
        Some((last, first)) => format!("{} or {last}", first.join(", ")),
    }
}

/// What a rule is called in an error message.
fn in_words(rule: Rule) -> &'static str {
    match rule {
        Rule::EOI => "the end of the text",
        Rule::file | Rule::graph | Rule::kw_graph => "`graph`",
        Rule::phase | Rule::kw_phase => "`phase`",
        Rule::node => "a node",
        Rule::output | Rule::kw_output => "`output`",
        Rule::update | Rule::kw_update => "`update`",
        Rule::definition => "a node (`%name = ...`)",
        Rule::value => "a value (`%name`)",
        Rule::operands => "operands in parentheses",
        Rule::types | Rule::r#type => "a type (`f32[2, 3]`)",
        Rule::origin => "an origin (`@12..40`)",
        Rule::attributes => "attributes in braces",
        Rule::attribute => "an attribute",
        Rule::list => "a list",
        Rule::term | Rule::argument | Rule::atom => "a number or a word",
        Rule::name | Rule::bare_name => "a name",
        Rule::string => "a string in quotes",
        Rule::word | Rule::word_char => "a word",
        Rule::integer => "a whole number",
        Rule::number => "a number",
        Rule::percent => "`%`",
        Rule::equals => "`=`",
        Rule::colon => "`:`",
        Rule::comma => "`,`",
        Rule::open_brace => "`{`",
        Rule::close_brace => "`}`",
        Rule::open_paren => "`(`",
        Rule::close_paren => "`)`",
        Rule::open_bracket => "`[`",
        Rule::close_bracket => "`]`",
        Rule::WHITESPACE => "a space",
        Rule::COMMENT => "a comment",
    }
}

// ---- tokens ----

/// The inner pairs of the given rule.
fn all<'i>(pair: &Pair<'i, Rule>, rule: Rule) -> impl Iterator<Item = Pair<'i, Rule>> + use<'i> {
    pair.clone().into_inner().filter(move |p| p.as_rule() == rule)
}

/// The inner pair that the grammar demands.
fn first<'i>(pair: &Pair<'i, Rule>, rule: Rule) -> Result<Pair<'i, Rule>, ParseError> {
    all(pair, rule).next().ok_or_else(|| at(pair, format!("expected {}", in_words(rule))))
}

fn integer<T: FromStr>(pair: &Pair<'_, Rule>) -> Result<T, ParseError> {
    pair.as_str().parse().map_err(|_| at(pair, format!("`{}` is not a whole number in range", pair.as_str())))
}

fn real(pair: &Pair<'_, Rule>) -> Result<Real, ParseError> {
    let value: f64 = pair.as_str().parse().map_err(|_| at(pair, format!("`{}` is not a number", pair.as_str())))?;
    Ok(Real::new(value))
}

fn name(pair: &Pair<'_, Rule>) -> Result<String, ParseError> {
    let name = first(pair, Rule::name)?;
    match all(&name, Rule::string).next() {
        Some(quoted) => string(&quoted),
        None => Ok(name.as_str().to_string()),
    }
}

fn string(pair: &Pair<'_, Rule>) -> Result<String, ParseError> {
    let quoted = pair.as_str();
    let between = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let mut chars = between.invariant("the grammar puts a string between quotes").chars();
    let mut text = String::new();
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        text.push(match chars.next() {
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let hex: String = chars.by_ref().skip(1).take_while(|&c| c != '}').collect();
                let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
                code.ok_or_else(|| at(pair, format!("`\\u{{{hex}}}` is not a character")))?
            }
            Some(other) => other,
            None => internal_error!("the grammar lets no string end in a backslash"),
        });
    }
    Ok(text)
}

fn tensor_type(pair: &Pair<'_, Rule>) -> Result<TensorType, ParseError> {
    let word = first(pair, Rule::word)?;
    let dtype = match word.as_str() {
        "f32" => DType::F32,
        "i32" => DType::I32,
        other => return Err(at(&word, format!("unknown element type `{other}`; it is `f32` or `i32`"))),
    };
    let shape = all(pair, Rule::integer).map(|p| integer(&p)).collect::<Result<Vec<usize>, _>>()?;
    let ty = TensorType { dtype, shape };
    in_bounds(&ty).map_err(|message| at(pair, message))?;
    Ok(ty)
}

fn in_bounds(ty: &TensorType) -> Result<(), String> {
    if ty.rank() > MAX_RANK {
        return Err(format!("a type has at most {MAX_RANK} axes, not {}", ty.rank()));
    }
    if ty.shape.iter().fold(1usize, |n, &d| n.saturating_mul(d.max(1))) > MAX_EXTENT {
        return Err(format!("{ty} is too large"));
    }
    Ok(())
}

// ---- statements ----

#[derive(Default)]
struct Reader {
    graph: Graph,
    nodes: BTreeMap<String, NodeId>,
}

impl Reader {
    fn phase(&mut self, pair: &Pair<'_, Rule>) -> Result<(), ParseError> {
        let phase = which(&first(pair, Rule::word)?, &Phase::ALL.map(Phase::name))?;
        self.graph.set_phase(Phase::ALL[phase]);
        Ok(())
    }

    fn node(&mut self, pair: Pair<'_, Rule>) -> Result<(), ParseError> {
        let definition = first(&pair, Rule::definition)?;
        let name = name(&definition)?;
        if name.is_empty() {
            return Err(at(&definition, "a node needs a name"));
        }
        if self.nodes.contains_key(&name) {
            return Err(at(&definition, format!("%{name} is defined twice")));
        }
        let operands = match all(&pair, Rule::operands).next() {
            Some(list) => all(&list, Rule::value).map(|v| self.value(&v)).collect::<Result<Vec<_>, _>>()?,
            None => Vec::new(),
        };
        let types_pair = first(&pair, Rule::types)?;
        let types = all(&types_pair, Rule::r#type).map(|t| tensor_type(&t)).collect::<Result<Vec<_>, _>>()?;

        let mnemonic = first(&pair, Rule::word)?;
        let mut given = Given::read(&pair, &mnemonic, &name, &types)?;
        let Some(op) = Op::read(&mut given)? else {
            return Err(at(&mnemonic, format!("unknown operation `{}`", mnemonic.as_str())));
        };
        given.finish()?;

        let origin = match all(&pair, Rule::origin).next() {
            Some(origin) => {
                let ends = all(&origin, Rule::integer).map(|p| integer(&p)).collect::<Result<Vec<u32>, _>>()?;
                match *ends {
                    [start, end] if start <= end => Some(Origin { file: 0, start, end }),
                    [file, start, end] if start <= end => Some(Origin { file, start, end }),
                    _ => return Err(at(&origin, "an origin ends before it starts")),
                }
            }
            None => None,
        };

        let id = self.graph.add(op, &operands, &name, origin).map_err(|e| at(&mnemonic, e.error.to_string()))?;
        let inferred = &self.graph.node(id).results;
        if *inferred != types {
            let list = |types: &[TensorType]| types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let message = format!("`{}` gives {}, not {}", mnemonic.as_str(), list(inferred), list(&types));
            return Err(at(&types_pair, message));
        }
        let declared = match all(&definition, Rule::integer).next() {
            Some(count) => integer(&count)?,
            None => 1,
        };
        if declared != types.len() {
            let message = format!("%{name} has {} results: write `:{}` behind its name", types.len(), types.len());
            return Err(at(&definition, message));
        }
        self.nodes.insert(name, id);
        Ok(())
    }

    fn declaration(&mut self, pair: Pair<'_, Rule>) -> Result<(), ParseError> {
        let name = name(&pair)?;
        let value = self.value(&first(&pair, Rule::value)?)?;
        match pair.as_rule() {
            Rule::output => self.graph.set_output(name, value),
            Rule::update => self.graph.set_update(name, value),
            rule => internal_error!("{rule:?} declares nothing"),
        }
        Ok(())
    }

    fn value(&self, pair: &Pair<'_, Rule>) -> Result<Value, ParseError> {
        let name = name(pair)?;
        let Some(&node) = self.nodes.get(&name) else {
            return Err(at(pair, format!("%{name} is not defined above")));
        };
        let slot = match all(pair, Rule::integer).next() {
            Some(slot) => integer(&slot)?,
            None => 0,
        };
        let value = Value { node, slot };
        match self.graph.try_ty(value) {
            Some(_) => Ok(value),
            None => Err(at(pair, format!("%{name} has no result {slot}"))),
        }
    }
}

// ---- attributes ----

/// The line of a node, with the attributes that have not been asked for yet, and the names of those that have.
struct Given<'i, 'a> {
    op: Pair<'i, Rule>,
    node: &'a str,
    types: &'a [TensorType],
    written: Vec<Attribute<'i>>,
    known: Vec<&'static str>,
}

/// An attribute as it is written. A flag has no value.
struct Attribute<'i> {
    key: Pair<'i, Rule>,
    value: Option<Pair<'i, Rule>>,
}

impl<'i, 'a> Given<'i, 'a> {
    fn read(
        line: &Pair<'i, Rule>,
        op: &Pair<'i, Rule>,
        node: &'a str,
        types: &'a [TensorType],
    ) -> Result<Self, ParseError> {
        let mut written = Vec::new();
        for attribute in all(line, Rule::attributes).flat_map(|list| all(&list, Rule::attribute)) {
            let key = first(&attribute, Rule::word)?;
            let value = attribute.into_inner().find(|p| matches!(p.as_rule(), Rule::list | Rule::term | Rule::string));
            written.push(Attribute { key, value });
        }
        // Sorted by name: a long list with a repetition is found out in time.
        let mut keys: Vec<&Pair<'i, Rule>> = written.iter().map(|g| &g.key).collect();
        keys.sort_by_key(|key| key.as_str());
        if let Some(twice) = keys.windows(2).find(|w| w[0].as_str() == w[1].as_str()) {
            return Err(at(twice[1], format!("attribute `{}` is given twice", twice[1].as_str())));
        }
        Ok(Self { op: op.clone(), node, types, written, known: Vec::new() })
    }

    /// Takes the attribute: the place of its name, and its value unless it is a flag.
    fn take(&mut self, key: &'static str) -> Option<Attribute<'i>> {
        self.known.push(key);
        let i = self.written.iter().position(|g| g.key.as_str() == key)?;
        Some(self.written.remove(i))
    }

    /// The value of an attribute that is no flag, if it is there.
    fn value(&mut self, key: &'static str) -> Result<Option<Pair<'i, Rule>>, ParseError> {
        match self.take(key) {
            None => Ok(None),
            Some(Attribute { value: Some(value), .. }) => Ok(Some(value)),
            Some(written) => Err(at(&written.key, format!("attribute `{key}` needs a value"))),
        }
    }

    fn finish(self) -> Result<(), ParseError> {
        let Some(Attribute { key, .. }) = self.written.first() else { return Ok(()) };
        let has = match self.known.as_slice() {
            [] => "none".to_string(),
            known => known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", "),
        };
        Err(at(key, format!("`{}` has no attribute `{}`; it has {has}", self.op.as_str(), key.as_str())))
    }
}

impl Source for Given<'_, '_> {
    type Error = ParseError;

    fn mnemonic(&self) -> &str {
        self.op.as_str()
    }

    fn node(&self) -> &str {
        self.node
    }

    fn result(&self, slot: usize) -> Result<&TensorType, ParseError> {
        let missing = || at(&self.op, format!("`{}` gives more than {slot} results", self.op.as_str()));
        self.types.get(slot).ok_or_else(missing)
    }

    fn flag(&mut self, key: &'static str) -> Result<bool, ParseError> {
        match self.take(key) {
            None => Ok(false),
            Some(Attribute { value: None, .. }) => Ok(true),
            Some(Attribute { value: Some(value), .. }) => {
                Err(at(&value, format!("attribute `{key}` is a flag and has no value")))
            }
        }
    }

    fn whole<T: FromStr>(&mut self, key: &'static str) -> Result<Option<T>, ParseError> {
        self.value(key)?.map(|value| integer(&value)).transpose()
    }

    fn real(&mut self, key: &'static str) -> Result<Option<Real>, ParseError> {
        self.value(key)?.map(|value| real(&value)).transpose()
    }

    fn wholes(&mut self, key: &'static str) -> Result<Option<Vec<usize>>, ParseError> {
        self.value(key)?.map(|value| list(key, &value)?.iter().map(integer).collect()).transpose()
    }

    fn word(&mut self, key: &'static str, known: &[&str]) -> Result<Option<usize>, ParseError> {
        self.value(key)?.map(|value| which(&value, known)).transpose()
    }

    fn text(&mut self, key: &'static str) -> Result<Option<String>, ParseError> {
        match self.value(key)? {
            None => Ok(None),
            Some(value) if value.as_rule() == Rule::string => string(&value).map(Some),
            Some(value) => Err(at(&value, "a name is a string in quotes")),
        }
    }

    fn missing(&self, key: &'static str) -> ParseError {
        at(&self.op, format!("`{}` needs the attribute `{key}`", self.op.as_str()))
    }
}

/// Which of the words stands there.
fn which(pair: &Pair<'_, Rule>, words: &[&str]) -> Result<usize, ParseError> {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    let is_not = || at(pair, format!("`{}` is not {}", pair.as_str(), either(&quoted)));
    words.iter().position(|word| *word == pair.as_str()).ok_or_else(is_not)
}

/// The elements of a list in brackets.
fn list<'i>(key: &str, value: &Pair<'i, Rule>) -> Result<Vec<Pair<'i, Rule>>, ParseError> {
    if value.as_rule() != Rule::list {
        return Err(at(value, format!("attribute `{key}` is a list in brackets")));
    }
    Ok(all(value, Rule::term).collect())
}
