//! Text to graph. The only place of this crate that knows pest.

use crate::graph::Graph;
use crate::ids::{NodeId, Origin, Value};
use crate::op::{Access, AdamWAttrs, AttentionAttrs, Binary, CapacityPriority, FusedProgram, Instr, Op, Unary};
use crate::purpose::{Phase, StateRole};
use crate::types::{DType, Real, TensorType};
use pest::Parser;
use pest::error::{ErrorVariant, InputLocation};
use pest::iterators::Pair;
use std::collections::BTreeMap;

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
            _ => {}
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
    let before = text.get(..position).unwrap_or_default();
    let rest = text.get(position..).unwrap_or_default();
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
    let message = match expected.split_last() {
        None => format!("{found} does not belong here"),
        Some((last, [])) => format!("expected {last}, found {found}"),
        Some((last, first)) => format!("expected {} or {last}, found {found}", first.join(", ")),
    };
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    ParseError { line, column, message }
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

fn integer<T: std::str::FromStr>(pair: &Pair<'_, Rule>) -> Result<T, ParseError> {
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
    let mut chars = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default().chars();
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
            None => '\\',
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
        self.graph.set_phase(word(&first(pair, Rule::word)?, &Phase::ALL, Phase::name)?);
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
        let mut attributes = Attributes::read(&pair, &mnemonic)?;
        let op = operation(&mut attributes, &name, &types)?;
        attributes.finish()?;

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
            _ => self.graph.set_update(name, value),
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

/// The attributes of a node that have not been asked for yet, and the names of those that have.
struct Attributes<'i> {
    op: Pair<'i, Rule>,
    given: Vec<Given<'i>>,
    known: Vec<&'static str>,
}

/// An attribute as it is written. A flag has no value.
struct Given<'i> {
    key: Pair<'i, Rule>,
    value: Option<Pair<'i, Rule>>,
}

impl<'i> Attributes<'i> {
    fn read(node: &Pair<'i, Rule>, op: &Pair<'i, Rule>) -> Result<Self, ParseError> {
        let mut given = Vec::new();
        for attribute in all(node, Rule::attributes).flat_map(|list| all(&list, Rule::attribute)) {
            let key = first(&attribute, Rule::word)?;
            let value = attribute.into_inner().find(|p| matches!(p.as_rule(), Rule::list | Rule::term | Rule::string));
            given.push(Given { key, value });
        }
        // Sorted by name: a long list with a repetition is found out in time.
        let mut keys: Vec<&Pair<'i, Rule>> = given.iter().map(|g| &g.key).collect();
        keys.sort_by_key(|key| key.as_str());
        if let Some(twice) = keys.windows(2).find(|w| w[0].as_str() == w[1].as_str()) {
            return Err(at(twice[1], format!("attribute `{}` is given twice", twice[1].as_str())));
        }
        Ok(Self { op: op.clone(), given, known: Vec::new() })
    }

    /// Takes the attribute: the place of its name, and its value unless it is a flag.
    fn take(&mut self, key: &'static str) -> Option<Given<'i>> {
        self.known.push(key);
        let i = self.given.iter().position(|g| g.key.as_str() == key)?;
        Some(self.given.remove(i))
    }

    /// The value of an attribute that may be absent.
    fn optional(&mut self, key: &'static str) -> Result<Option<Pair<'i, Rule>>, ParseError> {
        match self.take(key) {
            None => Ok(None),
            Some(Given { value: Some(value), .. }) => Ok(Some(value)),
            Some(given) => Err(at(&given.key, format!("attribute `{key}` needs a value"))),
        }
    }

    /// The value of an attribute that must be there.
    fn required(&mut self, key: &'static str) -> Result<Pair<'i, Rule>, ParseError> {
        match self.optional(key)? {
            Some(value) => Ok(value),
            None => Err(at(&self.op, format!("`{}` needs the attribute `{key}`", self.op.as_str()))),
        }
    }

    fn flag(&mut self, key: &'static str) -> Result<bool, ParseError> {
        match self.take(key) {
            None => Ok(false),
            Some(Given { value: None, .. }) => Ok(true),
            Some(Given { value: Some(value), .. }) => {
                Err(at(&value, format!("attribute `{key}` is a flag and has no value")))
            }
        }
    }

    fn integer<T: std::str::FromStr>(&mut self, key: &'static str) -> Result<T, ParseError> {
        integer(&self.required(key)?)
    }

    fn real(&mut self, key: &'static str) -> Result<Real, ParseError> {
        real(&self.required(key)?)
    }

    fn list(&mut self, key: &'static str) -> Result<Vec<Pair<'i, Rule>>, ParseError> {
        let value = self.required(key)?;
        if value.as_rule() != Rule::list {
            return Err(at(&value, format!("attribute `{key}` is a list in brackets")));
        }
        Ok(all(&value, Rule::term).collect())
    }

    fn finish(self) -> Result<(), ParseError> {
        let Some(Given { key, .. }) = self.given.first() else { return Ok(()) };
        let has = match self.known.as_slice() {
            [] => "none".to_string(),
            known => known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", "),
        };
        Err(at(key, format!("`{}` has no attribute `{}`; it has {has}", self.op.as_str(), key.as_str())))
    }
}

/// The operation of a node. `types` are the declared types of its results.
fn operation(a: &mut Attributes<'_>, node: &str, types: &[TensorType]) -> Result<Op, ParseError> {
    let ty = types.first().cloned().unwrap_or(TensorType::f32([]));
    let shape = || ty.shape.clone();
    Ok(match a.op.as_str() {
        "input" => Op::Input { name: own_name(a, node)?, ty },
        "parameter" => Op::Parameter { name: own_name(a, node)?, ty },
        "state" => Op::State { name: own_name(a, node)?, role: role(a)?, ty },
        "fill" => Op::Fill { value: a.real("value")?, ty },
        "ramp" => Op::Ramp { length: ty.elements(), step: a.integer("step")? },
        "reshape" => Op::Reshape { shape: shape() },
        "broadcast" => Op::Broadcast { shape: shape() },
        "permute" => Op::Permute { axes: a.list("axes")?.iter().map(integer).collect::<Result<_, _>>()? },
        "stop_gradient" => Op::StopGradient,
        "select" => Op::Select,
        "to_float" => Op::ToFloat,
        "to_index" => Op::ToIndex { size: a.integer("size")? },
        "lookup" => Op::Lookup,
        "previous" => Op::Previous { time: a.integer("time")? },
        "fused" => Op::Fused(fused(a, shape())?),
        "fused_matmul" => after(matmul(a)?, a, shape())?,
        "fused_grouped_matmul" => after(grouped_matmul(a)?, a, shape())?,
        "fused_dispatched_grouped_matmul" => after(Op::DispatchedProduct(Box::new(grouped_matmul(a)?)), a, shape())?,
        "fused_layer_norm_grad" => after(Op::LayerNormGrad, a, shape())?,
        "fused_rms_norm_grad" => after(Op::RmsNormGrad, a, shape())?,
        "fused_embed" => after(Op::Embed, a, shape())?,
        "fused_dispatch" => after(Op::Dispatch { weighted: a.flag("weighted")? }, a, shape())?,
        "fused_combine" => after(Op::Combine { weighted: a.flag("weighted")? }, a, shape())?,
        "matmul_with_sums" => Op::ProductWithSums(Box::new(matmul(a)?)),
        "grouped_matmul_weight_grad_with_sums" => Op::ProductWithSums(Box::new(Op::GroupedMatMulWeightGrad)),
        "dispatched_grouped_matmul" => Op::DispatchedProduct(Box::new(grouped_matmul(a)?)),
        "dispatched_grouped_matmul_weight_grad" => Op::DispatchedProduct(Box::new(Op::GroupedMatMulWeightGrad)),
        "dispatched_grouped_matmul_weight_grad_with_sums" => {
            Op::ProductWithSums(Box::new(Op::DispatchedProduct(Box::new(Op::GroupedMatMulWeightGrad))))
        }
        "sum" => Op::Sum { axes: a.list("axes")?.iter().map(integer).collect::<Result<_, _>>()? },
        "sum_of_squares" => Op::SumOfSquares,
        "matmul" => matmul(a)?,
        "grouped_matmul" => grouped_matmul(a)?,
        "grouped_matmul_weight_grad" => Op::GroupedMatMulWeightGrad,
        "grouped_sum" => Op::GroupedSum,
        "layer_norm" => Op::LayerNorm { epsilon: a.real("epsilon")? },
        "layer_norm_grad" => Op::LayerNormGrad,
        "rms_norm" => Op::RmsNorm { epsilon: a.real("epsilon")? },
        "rms_norm_grad" => Op::RmsNormGrad,
        "softmax" => Op::Softmax,
        "softmax_grad" => Op::SoftmaxGrad,
        "log_sum_exp" => Op::LogSumExp,
        "attention" => Op::Attention(attention(a)?),
        "attention_grad" => Op::AttentionGrad(attention(a)?),
        "cached_attention" => Op::CachedAttention { heads: a.integer("heads")?, scale: a.real("scale")? },
        "rotary" => Op::Rotary {
            heads: a.integer("heads")?,
            time: a.integer("time")?,
            base: a.real("base")?,
            inverse: a.flag("inverse")?,
            positions: a.flag("positions")?,
        },
        "embed" => Op::Embed,
        "embed_grad" => Op::EmbedGrad { rows: a.integer("rows")? },
        "cross_entropy" => Op::CrossEntropy,
        "cross_entropy_grad" => Op::CrossEntropyGrad,
        "fused_cross_entropy" => Op::FusedCrossEntropy { dloss: a.real("dloss")? },
        "random_normal" => Op::RandomNormal { key: a.integer("key")?, shape: shape() },
        "random_uniform" => Op::RandomUniform { key: a.integer("key")?, shape: shape() },
        "dropout" => Op::Dropout { rate: a.real("rate")?, key: a.integer("key")? },
        "top_k" => Op::TopK { k: a.integer("k")? },
        "gather_last" => Op::GatherLast,
        "scatter_last" => Op::ScatterLast { size: a.integer("size")? },
        "count" => Op::Count { size: a.integer("size")? },
        "limit_capacity" => Op::LimitCapacity {
            experts: a.integer("experts")?,
            capacity: a.integer("capacity")?,
            priority: match a.optional("priority")? {
                Some(value) => word(&value, &CapacityPriority::ALL, CapacityPriority::name)?,
                None => CapacityPriority::Token,
            },
        },
        "balanced_assignment" => Op::BalancedAssignment,
        "sort_by_expert" => {
            // The rows are those of `order`, the second result; the operation has three.
            let rows = types.get(1).map_or(0, TensorType::elements);
            Op::SortByExpert { experts: a.integer("experts")?, rows }
        }
        "dispatch" => Op::Dispatch { weighted: a.flag("weighted")? },
        "combine" => Op::Combine { weighted: a.flag("weighted")? },
        "combine_weight_grad" => Op::CombineWeightGrad,
        "adamw" => Op::AdamW(AdamWAttrs {
            beta1: a.real("beta1")?,
            beta2: a.real("beta2")?,
            epsilon: a.real("epsilon")?,
            weight_decay: a.real("weight_decay")?,
        }),
        other => match (unary(other), binary(other)) {
            (Some(f), _) => Op::Unary(f),
            (_, Some(f)) => Op::Binary(f),
            (None, None) => return Err(at(&a.op, format!("unknown operation `{other}`"))),
        },
    })
}

fn unary(name: &str) -> Option<Unary> {
    Unary::ALL.into_iter().find(|f| f.mnemonic() == name)
}

fn binary(name: &str) -> Option<Binary> {
    Binary::ALL.into_iter().find(|f| f.mnemonic() == name)
}

/// The name of an input, parameter or state: that of its node unless it says otherwise.
fn own_name(a: &mut Attributes<'_>, node: &str) -> Result<String, ParseError> {
    match a.optional("name")? {
        Some(value) if value.as_rule() == Rule::string => string(&value),
        Some(value) => Err(at(&value, "a name is a string in quotes")),
        None => Ok(node.to_string()),
    }
}

fn role(a: &mut Attributes<'_>) -> Result<StateRole, ParseError> {
    match a.optional("role")? {
        Some(value) => word(&value, &StateRole::ALL, StateRole::name),
        None => Ok(StateRole::default()),
    }
}

/// The item whose word stands there.
fn word<T: Copy>(pair: &Pair<'_, Rule>, items: &[T], name: impl Fn(T) -> &'static str) -> Result<T, ParseError> {
    items.iter().copied().find(|&item| name(item) == pair.as_str()).ok_or_else(|| {
        let words: Vec<String> = items.iter().map(|&item| format!("`{}`", name(item))).collect();
        let (last, first) =
            words.split_last().map_or((String::new(), String::new()), |(l, f)| (l.clone(), f.join(", ")));
        at(pair, format!("`{}` is not {first} or {last}", pair.as_str()))
    })
}

fn attention(a: &mut Attributes<'_>) -> Result<AttentionAttrs, ParseError> {
    Ok(AttentionAttrs {
        heads: a.integer("heads")?,
        time: a.integer("time")?,
        scale: a.real("scale")?,
        dropout: a.optional("dropout")?.map_or(Ok(Real::new(0.0)), |v| real(&v))?,
        key: a.optional("key")?.map_or(Ok(0), |v| integer(&v))?,
    })
}

fn matmul(a: &mut Attributes<'_>) -> Result<Op, ParseError> {
    Ok(Op::MatMul { transpose_a: a.flag("transpose_a")?, transpose_b: a.flag("transpose_b")?, bias: a.flag("bias")? })
}

fn grouped_matmul(a: &mut Attributes<'_>) -> Result<Op, ParseError> {
    Ok(Op::GroupedMatMul { transpose_b: a.flag("transpose_b")?, bias: a.flag("bias")? })
}

// ---- fused programs ----

/// A program with the operation that it goes on with.
fn after(producer: Op, a: &mut Attributes<'_>, shape: Vec<usize>) -> Result<Op, ParseError> {
    Ok(Op::FusedAfter { producer: Box::new(producer), program: fused(a, shape)? })
}

/// Instruction `j` is the attribute `tj`, in order.
fn fused(a: &mut Attributes<'_>, shape: Vec<usize>) -> Result<FusedProgram, ParseError> {
    let accesses = a.list("access")?.iter().map(access).collect::<Result<_, _>>()?;
    let results = a.list("results")?.iter().map(register).collect::<Result<_, _>>()?;
    let mut instructions = Vec::new();
    for Given { key, value } in std::mem::take(&mut a.given) {
        let (expected, found) = (format!("t{}", instructions.len()), key.as_str());
        if found != expected {
            return Err(at(&key, format!("expected instruction `{expected}`, found `{found}`")));
        }
        let value = value.ok_or_else(|| at(&key, format!("instruction `{expected}` needs a right-hand side")))?;
        instructions.push(instruction(&value)?);
    }
    Ok(FusedProgram { shape, accesses, instructions, results })
}

fn access(pair: &Pair<'_, Rule>) -> Result<Access, ParseError> {
    let call = Call::read(pair)?;
    match (call.name, call.arguments.as_slice()) {
        ("full", []) => Ok(Access::Full),
        ("repeat", []) => Ok(Access::Repeat),
        ("scalar", []) => Ok(Access::Scalar),
        ("stretch", [(None, inner)]) => Ok(Access::Stretch { inner: integer(inner)? }),
        _ => Err(at(pair, "expected `full`, `repeat`, `stretch(inner)` or `scalar`")),
    }
}

fn instruction(pair: &Pair<'_, Rule>) -> Result<Instr, ParseError> {
    let call = Call::read(pair)?;
    Ok(match (call.name, call.arguments.as_slice()) {
        ("load", [(None, i)]) => Instr::Load(integer(i)?),
        ("const", [(None, value)]) => Instr::Const(real(value)?),
        ("select", [(None, condition), (None, a), (None, b)]) => {
            Instr::Select(register(condition)?, register(a)?, register(b)?)
        }
        ("dropout", [(None, value), (Some("rate"), rate), (Some("key"), key)]) => {
            Instr::Dropout { value: register(value)?, rate: real(rate)?, key: integer(key)? }
        }
        (name, arguments) => match (unary(name), binary(name), arguments) {
            (Some(f), _, [(None, x)]) => Instr::Unary(f, register(x)?),
            (_, Some(f), [(None, x), (None, y)]) => Instr::Binary(f, register(x)?, register(y)?),
            _ => return Err(at(pair, "this is not an instruction with its operands, such as `add(t0, t1)`")),
        },
    })
}

/// `t3`
fn register(pair: &Pair<'_, Rule>) -> Result<usize, ParseError> {
    let digits = pair.as_str().strip_prefix('t').filter(|d| d.chars().all(|c| c.is_ascii_digit()));
    digits
        .and_then(|d| d.parse().ok())
        .ok_or_else(|| at(pair, format!("expected a register such as `t0`, found `{}`", pair.as_str())))
}

/// `name` or `name(1, t2, rate = 0.5)`
struct Call<'i> {
    name: &'i str,
    arguments: Vec<(Option<&'i str>, Pair<'i, Rule>)>,
}

impl<'i> Call<'i> {
    fn read(pair: &Pair<'i, Rule>) -> Result<Self, ParseError> {
        let Some(word) = all(pair, Rule::word).next() else {
            return Err(at(pair, "expected a word"));
        };
        let arguments = all(pair, Rule::argument)
            .map(|argument| {
                let key = all(&argument, Rule::word).next().map(|w| w.as_str());
                first(&argument, Rule::atom).map(|atom| (key, atom))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { name: word.as_str(), arguments })
    }
}
