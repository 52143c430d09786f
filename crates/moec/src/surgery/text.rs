//! The text of a new model, made from that of a run: what is not replaced stays as the user wrote it.

use super::layers::{FeedForward, MLP};
use super::{Subject, wrong};
use crate::error::{Error, Messages};
use crate::spec::Spec;
use moec_model::Registry;
use moec_syntax::{BinaryOperator, Body, Call, Expr, ExprKind, File, FileId, Item, SourceFile, Span, Statement};
use std::collections::BTreeMap;

/// The spec of a run with the places of some layers replaced, in the layout of `moec fmt`. `replacement` says which place of a
/// layer, and what comes there. Places that a `repeat` or a block has several times are replaced once.
///
/// # Errors
/// What `replacement` fails with, or with everything that is wrong with the new text.
pub(crate) fn rewritten<'a>(
    run: &Subject,
    layers: impl IntoIterator<Item = &'a FeedForward>,
    registry: &Registry,
    replacement: impl Fn(&SourceFile, &File, &FeedForward) -> Result<(Span, String), Error>,
) -> Result<Spec, Error> {
    let source = &run.spec.source;
    let file = moec_syntax::parse(source).map_err(|faults| Error::Spec(Messages::new(source, faults)))?;
    let mut by_file: BTreeMap<FileId, BTreeMap<(usize, usize), String>> = BTreeMap::new();
    for layer in layers {
        let (span, text) = replacement(source, &file, layer)?;
        by_file.entry(span.file()).or_default().insert((span.start(), span.end()), text);
    }
    let edit = |file: &SourceFile| -> Result<String, Error> {
        let Some(places) = by_file.get(&file.id()) else { return Ok(file.text().to_string()) };
        let mut text = file.text().to_string();
        for (&(start, end), new) in places.iter().rev() {
            text.replace_range(start..end, new);
        }
        let edited = SourceFile::new(file.name(), text);
        moec_syntax::format(&edited).map_err(|faults| Error::Spec(Messages::new(&edited, faults)))
    };
    let imports = source.imported().map(|(path, file)| Ok((path.to_string(), edit(file)?)));
    run.spec.rewritten(edit(source)?, imports.collect::<Result<_, Error>>()?, registry)
}

/// A feed-forward layer as a mixture of such layers: `moe(experts: 4 * mlp(hidden: 512), route: softmax_top_k(k: 2))`.
/// Of an `mlp` that is cut into slices, each has its part of the hidden units.
pub(crate) fn as_mixture(
    source: &SourceFile,
    file: &File,
    layer: &FeedForward,
    experts: usize,
    slices: usize,
    (route, balance): (&str, Option<&str>),
) -> Result<String, Error> {
    let call = found(file, layer)?;
    let whole = source.slice(call.span);
    let expert = if layer.kind == MLP && slices > 1 {
        let hidden = argument(call, "hidden").ok_or_else(|| unlike(layer))?;
        let (before, after) = (hidden.span.start() - call.span.start(), hidden.span.end() - call.span.start());
        format!("{}({}) / {slices}{}", &whole[..before], &whole[before..after], &whole[after..])
    } else if call.arguments.is_none() {
        format!("{whole}()")
    } else {
        whole.to_string()
    };
    let balance = balance.map(|losses| format!(", balance: {losses}")).unwrap_or_default();
    Ok(format!("moe(experts: {experts} * {expert}, route: {route}{balance})"))
}

/// That a text from outside is one value of the language, and nothing behind it.
///
/// # Errors
/// With what is wrong with it.
pub(crate) fn require_value(key: &str, text: &str) -> Result<(), Error> {
    let source = SourceFile::new(key, text);
    moec_syntax::parse_value(&source, 0).map(|_| ()).map_err(|faults| Error::Spec(Messages::new(&source, faults)))
}

/// A mixture as one of its experts.
pub(crate) fn as_expert(source: &SourceFile, file: &File, layer: &FeedForward) -> Result<String, Error> {
    let (_, expert) = copies(file, layer)?;
    Ok(match &expert.kind {
        // The layers of a sequence stand for themselves.
        ExprKind::Sequence(body) => {
            let span = body.span;
            let text = source.slice(span);
            text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text).to_string()
        }
        _ => source.slice(expert.span).to_string(),
    })
}

/// Where the number of experts of a mixture is written.
pub(crate) fn count_of(file: &File, layer: &FeedForward) -> Result<Span, Error> {
    Ok(copies(file, layer)?.0.span)
}

/// The number and the expert of `experts: NUMBER * EXPERT`.
fn copies<'a>(file: &'a File, layer: &FeedForward) -> Result<(&'a Expr, &'a Expr), Error> {
    let experts = argument(found(file, layer)?, "experts").ok_or_else(|| unlike(layer))?;
    // A list of more has been refused.
    let experts = match &experts.kind {
        ExprKind::List(entries) => entries.first().ok_or_else(|| unlike(layer))?,
        _ => experts,
    };
    match &experts.kind {
        ExprKind::Binary { operator, left, right } if operator.value == BinaryOperator::Multiply => Ok((left, right)),
        _ => Err(wrong(format!(
            "`{}` chooses its experts with `if`: write the number and the expert of the model that is wanted",
            layer.path
        ))),
    }
}

fn argument<'a>(call: &'a Call, name: &str) -> Option<&'a Expr> {
    call.arguments().iter().find(|a| a.name.as_ref().is_some_and(|n| n.name == name)).map(|a| &a.value)
}

/// The call that a layer was written as.
fn found<'a>(file: &'a File, layer: &FeedForward) -> Result<&'a Call, Error> {
    let bodies = file.all_items().filter_map(|(item, _)| match item {
        Item::Model(model) => Some(&model.body),
        Item::Block(block) => Some(&block.body),
        Item::Train(_) | Item::Router(_) | Item::Import(_) => None,
    });
    bodies.filter_map(|body| in_body(body, layer.span)).next().ok_or_else(|| unlike(layer))
}

fn unlike(layer: &FeedForward) -> Error {
    wrong(format!("`{}` is not written as a layer of the model", layer.path))
}

fn in_body(body: &Body, span: Span) -> Option<&Call> {
    body.statements.iter().find_map(|statement| match statement {
        Statement::Let(_) | Statement::Setting(_) => None,
        Statement::Layer(call) => in_call(call, span),
        Statement::Repeat(repeat) => in_body(&repeat.body, span),
        Statement::If(choice) => {
            let mut bodies = choice.branches.iter().map(|branch| &branch.then).chain(&choice.otherwise);
            bodies.find_map(|body| in_body(body, span))
        }
        Statement::Block(block) => in_body(&block.body, span),
    })
}

fn in_call(call: &Call, span: Span) -> Option<&Call> {
    if call.span == span {
        return Some(call);
    }
    call.body.as_ref().and_then(|body| in_body(body, span))
}
