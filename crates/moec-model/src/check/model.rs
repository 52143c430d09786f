//! A model as a whole: its settings, its size, and what its layers add up to.

use indexmap::IndexMap;
use moec_ir::{Invariant, internal_error};
use moec_syntax::{self as ast, Code, Diagnostic, Span, Statement, did_you_mean};

use super::NamedValue;
use super::arguments::Owner;
use super::checker::{Checker, ModelState, Scope};
use super::layer::{Flow, Place};
use super::overrides::in_file;
use crate::argument::{ArgumentValue, Interval, ParameterSpec, ParameterType};
use crate::arithmetic::Number;
use crate::model::{Model, Vocab};

/// Most elements of one tensor: an index on a device has 32 bits with a sign.
const MAX_ELEMENTS: u128 = i32::MAX as u128;
/// Most trained numbers of a model: beyond a trillion something is mistyped.
const MAX_PARAMETERS: u128 = 1_000_000_000_000;

const CONTEXT: ParameterSpec = ParameterSpec::required(
    "context",
    ParameterType::Int(Interval::closed(1.0, 1_048_576.0)),
    "tokens that the model sees at once",
);
const VOCAB: ParameterSpec = ParameterSpec::required(
    "vocab",
    ParameterType::Int(Interval::closed(1.0, 16_777_216.0)),
    "number of tokens, or `characters`",
);

impl<'a> Checker<'a> {
    /// Checks a model; `None` if it has faults.
    pub(super) fn model(&mut self, model: &'a ast::Model, chosen: bool) -> Option<Model> {
        let errors = self.error_count();
        self.model = ModelState { chosen, ..ModelState::default() };
        let mut layers = Vec::new();
        let mut flow = Flow::Tokens;
        let place = Place { own: true, top: true, trunk: true, expert: false, copies: 1 };
        let scope = Scope { binding: None, block: self.last_file_block() };
        self.model.lets = model
            .body
            .statements
            .iter()
            .filter_map(|s| if let Statement::Let(l) = s { Some((l.name.name.clone(), l.name.span)) } else { None })
            .collect();
        let settings = self.settings(model);
        let end = self.body(&model.body, scope, place, &mut flow, &mut layers);
        let name = model.name.span;
        if layers.is_empty() && self.error_count() == errors {
            let d = Diagnostic::new(Code::EmbedPlacement, format!("model `{}` has no layers", model.name))
                .primary(name, "expected `embed`, layers, and `unembed` in its body");
            self.report(d);
        } else if !self.model.unembed && flow != Flow::Tokens && !self.model.stopped {
            let d = Diagnostic::new(Code::UnembedPlacement, format!("model `{}` has no `unembed`", model.name))
                .primary(name, "its last layer must be `unembed`")
                .patch(model.body.span.tail(1).before(), "  unembed\n", "add the last layer");
            self.report(d);
        }
        self.too_large();
        self.unused_lets(self.error_count() == errors);
        let (context, context_span, vocab) = settings;
        if self.error_count() > errors {
            return None;
        }
        let bindings = self.top_bindings(end);
        Some(Model {
            name: model.name.name.clone(),
            span: model.span,
            context: context?,
            context_span,
            vocab: vocab?,
            width: self.model.facts.width?,
            layers,
            bindings,
            causality: self.model.facts.causality,
        })
    }

    fn last_file_block(&self) -> Option<usize> {
        self.blocks.first().and_then(|first| first.scope.block)
    }

    /// The bindings of the model's own body with their values.
    fn top_bindings(&self, scope: Scope) -> Vec<(String, Number)> {
        let lets: Vec<Span> = self.model.lets.iter().map(|&(_, span)| span).collect();
        let mut bindings: Vec<(String, Number)> = self
            .visible(scope)
            .filter(|b| lets.contains(&b.span))
            .filter_map(|b| Some((b.name.to_string(), b.value?)))
            .collect();
        bindings.reverse();
        bindings
    }

    /// `context` and `vocab`, which may use the bindings before them; they are read in [`Self::body`], this looks that
    /// they are there.
    fn settings(&mut self, model: &'a ast::Model) -> (Option<usize>, Option<Span>, Option<Vocab>) {
        let mut seen: IndexMap<&str, Span> = IndexMap::new();
        let mut scope = Scope { binding: None, block: None };
        let (mut context, mut context_span, mut vocab) = (None, None, None);
        for statement in &model.body.statements {
            match statement {
                // Faults come once: the walk over the body does not repeat them.
                Statement::Let(node) => scope = self.let_statement(node, scope, true),
                Statement::Setting(node) => {
                    let name = node.name.name.as_str();
                    if let Some(&first) = seen.get(name) {
                        let d = Diagnostic::new(Code::DuplicateSetting, format!("`{name}` is given twice"))
                            .primary(node.name.span, "given again here")
                            .secondary(first, "first given here");
                        self.report(d);
                        continue;
                    }
                    seen.insert(name, node.name.span);
                    let given = self.take_override(name);
                    let value = given.as_ref().unwrap_or(&node.value);
                    if self.model.chosen {
                        let text = self.source.slice(value.span).to_string();
                        self.named.push(NamedValue { name: name.to_string(), value: text, span: value.span });
                    }
                    if name == "context" {
                        let owner = Owner { name: "model", kind: "model", span: node.name.span };
                        context = self.value(owner, &CONTEXT, value, scope).map(size);
                        context_span = in_file(value.span);
                    } else {
                        vocab = self.vocab(value, node.name.span, scope);
                    }
                }
                Statement::Layer(_) | Statement::Repeat(_) | Statement::If(_) | Statement::Block(_) => {}
            }
        }
        for (name, code, example) in
            [("context", Code::MissingContext, "context 32"), ("vocab", Code::MissingVocab, "vocab characters")]
        {
            if !seen.contains_key(name) {
                let d = Diagnostic::new(code, format!("model `{}` has no `{name}`", model.name))
                    .primary(model.name.span, format!("expected `{example}` in its body"))
                    .patch(model.body.span.head(1).after(), format!("\n  {example}"), "add the setting");
                self.report(d);
            }
        }
        self.model.facts.context = context;
        self.model.facts.vocab = match vocab {
            Some(Vocab::Size(size)) => Some(size),
            _ => None,
        };
        (context, context_span, vocab)
    }

    fn vocab(&mut self, value: &ast::Expr, span: Span, scope: Scope) -> Option<Vocab> {
        if let ast::ExprKind::Name(word) = &value.kind
            && !self.visible(scope).any(|b| b.name == word)
        {
            if word == "characters" {
                return Some(Vocab::Characters);
            }
            let mut d = Diagnostic::new(Code::UnknownValue, format!("`vocab` cannot be `{word}`"))
                .primary(value.span, "expected `characters` or a number of tokens");
            if did_you_mean(word, ["characters"]).is_some() {
                d = d.patch(value.span, "characters", "use a word that it takes");
            }
            self.report(d);
            return None;
        }
        if matches!(&value.kind, ast::ExprKind::String(text) if text == "characters") {
            let d = Diagnostic::new(Code::WrongType, "`vocab` is a word without quotes, or a number of tokens")
                .primary(value.span, "expected `characters`")
                .patch(value.span, "characters", "remove the quotes");
            self.report(d);
            return None;
        }
        let owner = Owner { name: "model", kind: "model", span };
        self.value(owner, &VOCAB, value, scope).map(|value| Vocab::Size(size(value)))
    }

    /// Counts the elements of the copies of a trained tensor, and reports one that is too large to be indexed.
    pub(super) fn count(&mut self, shape: &[usize], copies: usize, span: Span) {
        let elements = shape.iter().fold(copies as u128, |n, &extent| n.saturating_mul(extent as u128));
        if elements > MAX_ELEMENTS {
            let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
            let copies = if copies > 1 { format!("{copies} copies of ") } else { String::new() };
            let message = format!("{copies}a tensor of {} elements cannot be indexed", shape.join(" * "));
            let d = Diagnostic::new(Code::ModelTooLarge, message)
                .primary(span, "declared by this layer")
                .note(format!("a tensor has at most {MAX_ELEMENTS} elements"));
            self.report(d);
        }
        self.model.parameters = self.model.parameters.saturating_add(elements);
        if self.model.largest.is_none_or(|(most, _)| elements > most) {
            self.model.largest = Some((elements, span));
        }
    }

    /// Reports a model with more parameters than any machine holds.
    fn too_large(&mut self) {
        let (count, Some((_, span))) = (self.model.parameters, self.model.largest) else { return };
        let reported = self.diagnostics.iter().any(|d| d.code == Code::ModelTooLarge);
        if count > MAX_PARAMETERS && !reported {
            let d = Diagnostic::new(Code::ModelTooLarge, format!("the model has {count} parameters"))
                .primary(span, "this layer contributes the largest tensor")
                .note(format!("at most {MAX_PARAMETERS} parameters are supported"));
            self.report(d);
        }
    }
}

/// A value of a parameter that counts something.
fn size(value: ArgumentValue) -> usize {
    match value {
        ArgumentValue::Int(n) => usize::try_from(n).invariant("what counts something is declared from 0 or 1 on"),
        other => internal_error!("{other} was checked as a whole number"),
    }
}
