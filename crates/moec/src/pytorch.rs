//! A checked model as source code for PyTorch: one readable file with the model as modules, written from the graphs of a
//! training step and of evaluation, so that every layer and every router can be written, whoever made it.
//!
//! A graph has the extents of one batch and no structure but names. What is written is for batches of every size
//! (`sizes.rs`); names that Python has in use are written another way (`names.rs`); scopes of names are classes, and scopes that
//! compute the same are one (`module.rs`); what is used once is part of the expression that uses it (`body.rs`); and each operation
//! is an expression (`operation.rs`), a few of which need a function that is written at the top of the file (`functions.py`).

mod body;
mod expression;
mod module;
mod names;
mod operation;
mod side;
mod sizes;

use module::{Declared, Modules};
use moec_ir::{Graph, Op, Precision, StateRole};
use moec_model::{Form, LowerError, LowerOptions, Lowered, Mode, Model, NoisePolicy, Recipe};
use side::Side;
use sizes::{BATCHES, Sizes};
use std::collections::{BTreeMap, BTreeSet};

/// The functions and classes that a model may use, one after the other.
const HELPERS: &str = include_str!("pytorch/functions.py");
/// Loading, evaluating and writing.
const FOOTER: &str = include_str!("pytorch/footer.py");

/// Why a model cannot be written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unwritable {
    /// The model cannot be lowered.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// A number depends on the batch in a way that no formula is known for.
    #[error("how a size of %{node} depends on the number of tokens is not known")]
    Size {
        /// The node.
        node: String,
    },
    /// A result is used that PyTorch has no counterpart of.
    #[error("result {slot} of %{node} has no counterpart in PyTorch")]
    Result {
        /// The node.
        node: String,
        /// Which of its results.
        slot: usize,
    },
    /// The graph has another structure for every size of the batch.
    #[error("the model computes something else for every size of a batch")]
    Structure,
}

/// The text of `model.py`.
///
/// `vocab` is the size of the vocabulary, `spec` the text of the model, which stands at the top of the file.
///
/// # Errors
/// When a router computes something that cannot be written for batches of every size.
pub fn source(model: &Model, recipe: &Recipe, vocab: usize, spec: &str) -> Result<String, Unwritable> {
    let training = lowered(model, recipe, vocab, Mode::Train)?;
    let evaluation = lowered(model, recipe, vocab, Mode::Evaluate)?;
    let whole = moec_model::lower(model, &options(recipe, vocab, Mode::Train, recipe.batch))?;
    let sides = match (Side::new(&training), Side::new(&evaluation)) {
        (Some(training), Some(mut evaluation)) => {
            evaluation.used_by_losses.clone_from(&training.used_by_losses);
            [training, evaluation]
        }
        _ => moec_ir::internal_error!("a lowered model has no logits"),
    };
    let helpers = Helpers::new();
    let mut taken: BTreeSet<String> = helpers.parts.iter().map(|(name, _)| name.to_string()).collect();
    taken.insert("Model".into());
    let mut modules = Modules::new(sides, declared(&whole), taken);
    modules.write("")?;
    let classes = modules.text();
    let is_rounded = recipe.precision == Precision::Bf16;
    let renamed = modules.renamed();
    let mut text = header(model, recipe, spec, is_rounded, &renamed);
    text += &helpers.used(&modules.helpers);
    text += classes.trim_end();
    text += "\n\n";
    let tensors = match renamed.as_slice() {
        [] => "tensors",
        _ => "{RENAMED.get(name, name): tensor for name, tensor in tensors.items()}",
    };
    text += &LOAD.replace("{tensors}", tensors);
    text += "\n\n";
    let (alone, next) = match is_rounded {
        true => ("unrounded(model, x[w, None], y[w, None])[1]", "unrounded(model, padded)"),
        false => ("model(x[w, None], y[w, None])[1]", "model(padded)"),
    };
    text += &FOOTER.replace("{alone}", alone).replace("{next}", next);
    Ok(text)
}

/// Methods of the model that are the same for every model.
const LOAD: &str = r#"    @classmethod
    def load(cls, folder):
        """The trained model of a folder, in evaluation mode; `.train()` before training it."""
        model = cls()
        tensors = load_file(pathlib.Path(folder) / "model.safetensors")
        model.load_state_dict({tensors})
        return model.eval()
"#;

fn options(recipe: &Recipe, vocab: usize, mode: Mode, batch: usize) -> LowerOptions {
    LowerOptions {
        mode,
        batch,
        vocab,
        // What is observed in evaluation is no part of the model.
        loss: mode == Mode::Train,
        noise: NoisePolicy::Generated,
        init: recipe.init,
        precision: recipe.precision,
        routes: false,
        form: Form::Sequences,
    }
}

/// The graphs of a model for several sizes of the batch.
fn lowered(model: &Model, recipe: &Recipe, vocab: usize, mode: Mode) -> Result<Sizes, Unwritable> {
    let mut graphs: Vec<((usize, usize), Graph)> = Vec::new();
    let mut failed = None;
    let real = [(recipe.batch, model.context), (1, model.context)];
    for (batch, time) in BATCHES.into_iter().chain(real) {
        let model = Model { context: time, ..model.clone() };
        match moec_model::lower(&model, &options(recipe, vocab, mode, batch)) {
            Ok(lowered) => graphs.push(((batch, time), lowered.graph)),
            // Some sizes are too small for a router, such as fewer tokens than an expert takes.
            Err(error) => failed = Some(error),
        }
    }
    match (Sizes::new(graphs), failed) {
        (Some(sizes), _) => Ok(sizes),
        (None, Some(error)) => Err(error.into()),
        (None, None) => Err(Unwritable::Structure),
    }
}

/// The tensors that a model keeps.
fn declared(lowered: &Lowered) -> BTreeMap<String, Declared> {
    let inits: BTreeMap<&str, _> = lowered.parameters.iter().map(|(name, init)| (name.as_str(), *init)).collect();
    let mut declared = BTreeMap::new();
    for id in lowered.graph.ids() {
        if matches!(lowered.graph.node(id).op, Op::State { role: StateRole::Sum, .. }) {
            continue;
        }
        if let Op::Parameter { name, ty } | Op::State { name, ty, .. } = &lowered.graph.node(id).op {
            let init = inits.get(name.as_str()).copied();
            declared.insert(name.clone(), Declared { ty: ty.clone(), init });
        }
    }
    declared
}

/// What stands above the classes.
fn header(model: &Model, recipe: &Recipe, spec: &str, is_rounded: bool, renamed: &[(&str, String)]) -> String {
    let version = env!("CARGO_PKG_VERSION");
    // Both stand in a string of Python.
    let name = names::in_a_docstring(&model.name);
    let spec: String = spec
        .trim_end()
        .lines()
        .map(|line| if line.is_empty() { "\n".to_string() } else { format!("    {}\n", names::in_a_docstring(line)) })
        .collect();
    let mut text = format!(
        r#""""{name}, a mixture-of-experts language model that moec {version} wrote for PyTorch.

    python model.py --data FILE                  the mean cross-entropy of a text, as `moec eval RUN --split all`
    python model.py --prompt TEXT --length 200   what follows a text, as `moec sample RUN --temperature 0`

    from model import Model
    model = Model.load("folder of this file")    # parameters and buffers have the names of moec's checkpoints{but}
    scores, loss = model(tokens, targets)        # tokens and targets [B, T], T at most {context}

In training mode the loss has the balance losses in it, and there are dropout, noise and capacities as in a training step of
moec, with random numbers of PyTorch. What moec changes between steps without a gradient, such as the biases of
loss-free balancing, stays as it is here. Tensors that the recipe freezes are trained here too, unless `requires_grad_(False)`
is called on them. `Model()` alone has not the initial values of the spec everywhere.

Letters: B sequences, T tokens in each, N = B * T, C channels, E experts, K experts of a token. Rows of matrices are tokens.

The spec:

{spec}"""

import argparse
import json
import math
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

# Tokens of a window, and windows of a batch in training and evaluation.
CONTEXT = {context}
BATCH = {batch}
"#,
        but = if renamed.is_empty() { "" } else { ", but for RENAMED" },
        context = model.context,
        batch = recipe.batch,
    );
    if is_rounded {
        text += ROUNDED;
    }
    text += &names_of_checkpoints(renamed);
    text += "\n\n";
    text
}

/// What tensors of a checkpoint are called in the file, where it is something else.
fn names_of_checkpoints(renamed: &[(&str, String)]) -> String {
    if renamed.is_empty() {
        return String::new();
    }
    let mut text = "\n# Tensors of a checkpoint that are called something else here, because Python or PyTorch has their names in use.\n".to_string();
    text += "RENAMED = {\n";
    for (name, renamed) in renamed {
        text += &format!("    {}: {},\n", names::quoted(name), names::quoted(renamed));
    }
    text + "}\n"
}

const ROUNDED: &str = r#"# Operands of products, also of those that are gradients, are rounded to bfloat16 in training and in the evaluation of
# batches, not where a text is written.
ROUNDED = True


def unrounded(model, *inputs):
    """What the model computes without rounding."""
    global ROUNDED
    ROUNDED = False
    try:
        return model(*inputs)
    finally:
        ROUNDED = True
"#;

/// The functions and classes that a model may use.
struct Helpers {
    /// Name and text of each.
    parts: Vec<(&'static str, &'static str)>,
}

impl Helpers {
    fn new() -> Self {
        let parts = HELPERS.split("\n\n\n").filter_map(|part| {
            let name = part.trim_start().strip_prefix("def ").or_else(|| part.trim_start().strip_prefix("class "))?;
            Some((&name[..name.find(['(', ':'])?], part.trim()))
        });
        Self { parts: parts.collect() }
    }

    /// The text of those that are used, and of those that they use.
    fn used(&self, names: &BTreeSet<&'static str>) -> String {
        let mut used: BTreeSet<&str> = names.iter().copied().collect();
        loop {
            let texts: Vec<&str> =
                self.parts.iter().filter(|(name, _)| used.contains(name)).map(|(_, text)| *text).collect();
            let more: Vec<&str> = self
                .parts
                .iter()
                .map(|(name, _)| *name)
                .filter(|name| !used.contains(name) && texts.iter().any(|text| is_used(text, name)))
                .collect();
            if more.is_empty() {
                break;
            }
            used.extend(more);
        }
        let mut text = String::new();
        for (_, part) in self.parts.iter().filter(|(name, _)| used.contains(name)) {
            text += part;
            text += "\n\n\n";
        }
        text
    }
}

/// Whether a text calls a function or passes it on, makes a class or derives one from it.
fn is_used(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    text.match_indices(name).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + name.len()..]);
        let is_derived = before.ends_with('(') && after.starts_with("):");
        let is_called = after.starts_with('(') && !before.ends_with("def ") || after.starts_with(".apply(");
        let is_passed = before.ends_with("linear=") && after.starts_with(')');
        !before.ends_with(is_part) && (is_called || is_derived || is_passed)
    })
}

#[cfg(test)]
mod tests;
