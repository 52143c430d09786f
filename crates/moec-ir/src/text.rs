//! The text form of a graph: one line per node, and a parser that reads it back.
//!
//! ```text
//! graph {
//!   %x = input : f32[16, 8]
//!   %router.weight = parameter : f32[4, 8]
//!   %logits = matmul(%x, %router.weight) {transpose_b} : f32[16, 4]
//!   %top:2 = top_k(%logits) {k = 2} : f32[16, 2], i32[16, 2]
//!   output weights = %top
//!   output experts = %top#1
//! }
//! ```
//!
//! Nodes stand in topological order. `%top` is the first result of a node and `%top#1` its second. Attributes that
//! repeat what is on the line already are left out: the name of an input, parameter or state that is called like its
//! node, the role of a state that a router keeps, and the shape of a reshape, broadcast, fill, ramp, or random node and the rows of a sort, which are those
//! of its results. A name with
//! other characters than letters, digits, `_` and `.` stands in quotes. Origins (`@12..40`, bytes of the `.moe` file; `@1:12..40`, of the first text that belongs to it)
//! are printed only by [`print_with_origins`], so that a listing does not move with the text it came from. `//` starts
//! a comment. Nodes belong to the forward pass unless a line `phase backward` or `phase optimizer` stands before them.
//! The grammar is `text/ir.pest`.
//!
//! For every graph `g`, `parse(&print_with_origins(&g)) == Ok(g)`; for every text `s` that [`print()`] made,
//! `print(&parse(s)?) == s`.

mod parse;

pub use parse::{MAX_TEXT_BYTES, ParseError, parse};

use crate::graph::Graph;
use crate::ids::{NodeId, Value};
use crate::op::{Op, Written};
use crate::purpose::Phase;
use std::fmt::Display;

/// Prints a graph without origins.
pub fn print(graph: &Graph) -> String {
    listing(graph, false, |_| Vec::new())
}

/// Prints a graph, each node with the bytes of the `.moe` file that it came from.
pub fn print_with_origins(graph: &Graph) -> String {
    listing(graph, true, |_| Vec::new())
}

/// A line of the listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Line {
    /// A node.
    Node(NodeId),
    /// Position in [`Graph::outputs`].
    Output(usize),
    /// Position in [`Graph::updates`].
    Update(usize),
}

/// Prints a graph with remarks below the lines they are about.
pub(crate) fn listing(graph: &Graph, origins: bool, remarks: impl Fn(Line) -> Vec<String>) -> String {
    let mut text = String::from("graph {\n");
    let push = |text: &mut String, at: Line, line: String| {
        text.push_str(&format!("  {line}\n"));
        for remark in remarks(at) {
            text.push_str(&format!("  ^ {remark}\n"));
        }
    };
    let mut phase = Phase::default();
    for id in graph.ids() {
        let of_node = graph.node(id).phase;
        if std::mem::replace(&mut phase, of_node) != of_node {
            text.push_str(&format!("  phase {of_node}\n"));
        }
        push(&mut text, Line::Node(id), node(graph, id, origins));
    }
    for (i, (name, v)) in graph.outputs().iter().enumerate() {
        push(&mut text, Line::Output(i), format!("output {} = {}", quote_name(name), value(graph, *v)));
    }
    for (i, (name, v)) in graph.updates().iter().enumerate() {
        push(&mut text, Line::Update(i), format!("update {} = {}", quote_name(name), value(graph, *v)));
    }
    text.push_str("}\n");
    text
}

/// `%name:2 = mnemonic(%a, %b#1) {attribute = 1} : f32[2], i32[2] @3..9`
fn node(graph: &Graph, id: NodeId, origins: bool) -> String {
    let node = graph.node(id);
    let mut line = format!("%{}", quote_name(&node.name));
    if node.results.len() > 1 {
        line.push_str(&format!(":{}", node.results.len()));
    }
    line.push_str(&format!(" = {}", node.op.mnemonic()));
    let operands: Vec<String> = node.operands.iter().map(|&v| value(graph, v)).collect();
    if !operands.is_empty() {
        line.push_str(&format!("({})", operands.join(", ")));
    }
    let attributes = attributes(&node.op, &node.name);
    if !attributes.is_empty() {
        line.push_str(&format!(" {{{}}}", attributes.join(", ")));
    }
    line.push_str(&format!(" : {}", join(&node.results)));
    if let (true, Some(origin)) = (origins, node.origin) {
        line.push_str(&format!(" @{origin}"));
    }
    line
}

/// `%name` or `%name#1`. A value that the graph does not have (the verifier reports it) is `%?node#slot`.
fn value(graph: &Graph, value: Value) -> String {
    if graph.try_ty(value).is_none() {
        return format!("%?{}#{}", value.node.index(), value.slot);
    }
    let name = quote_name(&graph.node(value.node).name);
    if value.slot == 0 { format!("%{name}") } else { format!("%{name}#{}", value.slot) }
}

fn join(items: &[impl Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The name as it is if it is plain, else in quotes.
fn quote_name(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if !name.is_empty() && name.chars().all(plain) { name.to_string() } else { quote(name) }
}

fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Attributes of an operation as they stand in braces, in their canonical order. Flags that are not set are left out, as
/// is a name that is that of the node.
pub fn attributes(op: &Op, node: &str) -> Vec<String> {
    let braces = |(key, written): (&str, Written)| match written {
        Written::Flag => key.to_string(),
        Written::Plain(value) => format!("{key} = {value}"),
        Written::Quoted(text) => format!("{key} = {}", quote(&text)),
    };
    op.written(node).into_iter().map(braces).collect()
}

#[cfg(test)]
mod tests;
