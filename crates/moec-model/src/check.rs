//! From syntax tree to checked model and recipe, with every fault of the file reported in one run.
//!
//! The walk goes on after a fault: what cannot be known (a width after a broken `linear`) is unknown from there on, and
//! what depends on it is not reported again.

pub(crate) mod arguments;
mod checker;
pub(crate) mod layer;
mod model;
mod overrides;
mod parameters;
mod stack;
mod train;
pub(crate) mod values;

use std::collections::BTreeSet;

use indexmap::IndexMap;
use moec_syntax::{self as ast, Code, Diagnostic, SourceFile, Span, did_you_mean};

use crate::model::Model;
use crate::recipe::Recipe;
use crate::registry::Registry;
use crate::router_language;
use crate::words::listed;
use checker::{BlockDefinition, Checker, ModelState, Override, Scope};

/// What to check for.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// The model that is meant, where a file holds several.
    pub model: Option<String>,
}

/// What checking found.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The chosen model; `None` if there is an error anywhere.
    pub model: Option<Model>,
    /// The values of the chosen model that have a name, in the order of the file: its `let`s, `context` and `vocab`.
    pub named: Vec<NamedValue>,
    /// The recipe: that of the `train` block, with defaults for what it leaves out. All defaults if it has errors.
    pub recipe: Recipe,
    /// What the file can name: the strategies and losses that were passed in, and the routers that the file and its
    /// imports define.
    pub registry: Registry,
    /// Errors and warnings in the order of the source, those in imported files and in overrides at the end.
    pub diagnostics: Vec<Diagnostic>,
}

/// A value with a name, which an override can replace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedValue {
    /// Its name.
    pub name: String,
    /// What it is, as a file would say it.
    pub value: String,
    /// Where it was given.
    pub span: Span,
}

impl Checked {
    /// Whether there is an error among the diagnostics.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// Checks a parsed file with what it imports. Every model and router in it is checked, and the recipe; the overrides of
/// the source ([`SourceFile::with_overrides`]) apply to the chosen model: `width=64` to a `let` of it (or its `context` or
/// `vocab`), `train.steps=200` and `train.optimizer.lr=3e-4` to the recipe. A model of the file itself goes before those
/// that it imports.
pub fn check(source: &SourceFile, file: &ast::File, registry: &Registry, options: &CheckOptions) -> Checked {
    let defined = router_language::define(source, file, registry);
    let known = defined.routers.into_iter().fold(registry.clone(), Registry::strategy);
    let mut checker = Checker::new(source, &known);
    checker.faulty_routers = defined.faulty;
    defined.diagnostics.into_iter().for_each(|d| checker.report(d));
    checker.read_overrides();
    checker.define_blocks(file);

    let found = file.all_items().filter_map(|(item, import)| match item {
        ast::Item::Model(model) => Some((model, import)),
        _ => None,
    });
    let (models, imports): (Vec<&ast::Model>, Vec<Option<Span>>) = found.unzip();
    let chosen = checker.choose(&models, &imports, options.model.as_deref());
    let mut result = None;
    for (i, model) in models.iter().enumerate() {
        let checked = checker.model(model, chosen == Some(i));
        if chosen == Some(i) {
            result = checked;
        }
    }
    checker.model = ModelState::default();
    let recipe = checker.recipe(file);
    checker.unused_overrides(chosen.map(|i| models[i]));
    let failed = checker.errors > 0;
    let named = std::mem::take(&mut checker.named);
    let mut diagnostics = checker.diagnostics;
    diagnostics.sort_by_key(|d| (d.span().is_none(), d.span().map(Span::before)));
    let (model, recipe) = (result.filter(|_| !failed), recipe.filter(|_| !failed).unwrap_or_default());
    Checked { model, named, recipe, registry: known, diagnostics }
}

impl<'a> Checker<'a> {
    /// Blocks of the file see each other, whatever their order.
    fn define_blocks(&mut self, file: &'a ast::File) {
        let mut names: IndexMap<&str, Span> = IndexMap::new();
        for (item, import) in file.all_items() {
            let ast::Item::Block(block) = item else { continue };
            if let Some(&first) = names.get(block.name.name.as_str()) {
                self.report(router_language::through(duplicate("block", &block.name, first), import));
                continue;
            }
            names.insert(&block.name.name, block.name.span);
            let parent = self.blocks.len().checked_sub(1);
            let parameters = self.parameters(block, Scope::default());
            self.blocks.push(BlockDefinition { block, scope: Scope::default(), parent, parameters });
        }
        let last = self.blocks.len().checked_sub(1);
        for definition in &mut self.blocks {
            definition.scope.block = last;
        }
    }

    /// Which of the models is meant: one that is not imported if there are such, unless another is `wanted` by its name.
    fn choose(&mut self, models: &[&'a ast::Model], imports: &[Option<Span>], wanted: Option<&str>) -> Option<usize> {
        let own = imports.iter().filter(|import| import.is_none()).count();
        let candidates = if own > 0 { own } else { models.len() };
        let mut names: IndexMap<&str, Span> = IndexMap::new();
        for (model, &import) in models.iter().zip(imports) {
            if let Some(&first) = names.get(model.name.name.as_str()) {
                self.report(router_language::through(duplicate("model", &model.name, first), import));
            } else {
                names.insert(&model.name.name, model.name.span);
            }
        }
        let list = |count| models.iter().take(count).map(|m| format!("`{}`", m.name)).collect::<Vec<_>>().join(", ");
        match (models, wanted) {
            ([], _) => {
                let message = format!("`{}` defines no model", self.source.name());
                self.report(Diagnostic::new(Code::NoModel, message).help(
                    "a model is written `model NAME { context 32  vocab characters  embed(width: 64) .. unembed }`",
                ));
                None
            }
            (_, Some(wanted)) => {
                let found = models.iter().position(|m| m.name.name == wanted);
                if found.is_none() {
                    let mut d = Diagnostic::new(Code::NoModel, format!("there is no model named `{wanted}`"))
                        .note(format!("the file defines {}", list(models.len())));
                    if let Some(near) = did_you_mean(wanted, models.iter().map(|m| m.name.name.as_str())) {
                        d = d.help(format!("did you mean `{near}`?"));
                    }
                    self.report(d);
                }
                found
            }
            (_, None) if candidates == 1 => Some(0),
            // Two of one name cannot be chosen between.
            (_, None) if names.len() < models.len() => None,
            (_, None) => {
                let mut d = Diagnostic::new(
                    Code::SeveralModels,
                    format!("the file defines several models: {}", list(candidates)),
                );
                for model in models.iter().take(candidates) {
                    d = d.secondary(model.name.span, "");
                }
                self.report(d.help(format!("choose one with `--model {}`", models[0].name)));
                None
            }
        }
    }
}

/// The report of a name that was taken.
fn duplicate(what: &str, name: &ast::Ident, first: Span) -> Diagnostic {
    Diagnostic::new(Code::DuplicateDefinition, format!("{what} `{name}` is defined twice"))
        .primary(name.span, "defined again here")
        .secondary(first, "first defined here")
        .help("give one of them another name")
}

/// Names that occur in an expression that is not evaluated still count as read.
fn names_in<'e>(expr: &'e ast::Expr, found: &mut BTreeSet<&'e str>) {
    use ast::ExprKind as E;
    match &expr.kind {
        E::Name(name) => {
            found.insert(name);
        }
        E::Int(_) | E::Float(_) | E::Bool(_) | E::String(_) => {}
        E::List(list) => list.iter().for_each(|e| names_in(e, found)),
        E::Call(call) => names_in_call(call, found),
        E::Unary { operand, .. } => names_in(operand, found),
        E::Binary { left, right, .. } => {
            names_in(left, found);
            names_in(right, found);
        }
        E::If { branches, otherwise } => {
            for branch in branches {
                names_in(&branch.condition, found);
                names_in(&branch.then, found);
            }
            names_in(otherwise, found);
        }
        E::Sequence(body) => names_in_body(body, found),
    }
}

fn names_in_call<'e>(call: &'e ast::Call, found: &mut BTreeSet<&'e str>) {
    call.arguments().iter().for_each(|argument| names_in(&argument.value, found));
    if let Some(body) = &call.body {
        names_in_body(body, found);
    }
}

fn names_in_body<'e>(body: &'e ast::Body, found: &mut BTreeSet<&'e str>) {
    for statement in &body.statements {
        match statement {
            ast::Statement::Let(node) => names_in(&node.value, found),
            ast::Statement::Setting(node) => names_in(&node.value, found),
            ast::Statement::Layer(call) => names_in_call(call, found),
            ast::Statement::Repeat(node) => {
                names_in(&node.count, found);
                names_in_body(&node.body, found);
            }
            ast::Statement::If(node) => {
                for branch in &node.branches {
                    names_in(&branch.condition, found);
                    names_in_body(&branch.then, found);
                }
                if let Some(body) = &node.otherwise {
                    names_in_body(body, found);
                }
            }
            ast::Statement::Block(block) => {
                block.parameters().iter().filter_map(|p| p.default.as_ref()).for_each(|value| names_in(value, found));
                names_in_body(&block.body, found);
            }
        }
    }
}
