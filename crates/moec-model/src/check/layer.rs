//! A layer as it is checked: what is written, where it stands, what flows into it, and what it may ask.

use moec_syntax::{self as ast, Diagnostic, Span};

use super::arguments::{Owner, Resolved};
use super::checker::{Checker, ModelFacts, Scope};
use crate::argument::{ArgumentValue, ParameterSpec};
use crate::arithmetic::Number;
use crate::layer::Layer;
use crate::model::Causality;
use crate::registry::Registry;

/// Where in a model a statement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// In the model's own body, where settings stand and bindings can be overridden.
    pub(super) own: bool,
    /// Outside every `repeat` and `residual`, where `embed` and `unembed` stand.
    pub(super) top: bool,
    /// Where a `repeat` opens a scope of names per iteration.
    pub(super) trunk: bool,
    /// In an expert.
    pub(super) expert: bool,
    /// How many copies there are of what stands here, one in each expert.
    pub(super) copies: usize,
}

impl Place {
    /// Among the layers of a layer or an expert that stands here.
    pub(super) fn within(self) -> Self {
        Place { own: false, top: false, trunk: false, ..self }
    }
}

/// A layer as written: a call, or a bare name used as an expert.
#[derive(Clone, Copy)]
pub(super) struct Written<'c, 'a> {
    pub(super) name: &'c ast::Ident,
    pub(super) arguments: &'a [ast::Argument],
    pub(super) body: Option<&'a ast::Body>,
    pub(super) span: Span,
}

impl<'a> Written<'a, 'a> {
    pub(super) fn call(call: &'a ast::Call) -> Self {
        Written { name: &call.name, arguments: call.arguments(), body: call.body.as_ref(), span: call.span }
    }
}

/// What has flowed through the stack so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Token numbers: `embed` is due.
    Tokens,
    /// Vectors of a width.
    Width(usize),
    /// Vectors of a width that is unknown after a fault.
    Unknown,
    /// Scores of the vocabulary: nothing may follow.
    Logits,
}

impl Flow {
    /// The width of vectors, if it is known.
    pub(crate) fn width(self) -> Option<usize> {
        match self {
            Flow::Width(width) => Some(width),
            Flow::Tokens | Flow::Unknown | Flow::Logits => None,
        }
    }

    /// Vectors of a width, which is unknown after a fault.
    pub(crate) fn vectors(width: Option<usize>) -> Self {
        width.map_or(Flow::Unknown, Flow::Width)
    }
}

/// A layer that is being checked. Its arguments have been: what has a fault has been reported and has no value.
pub(crate) struct LayerCheck<'c, 'a> {
    pub(super) checker: &'c mut Checker<'a>,
    pub(super) call: Written<'c, 'a>,
    pub(super) scope: Scope,
    pub(super) place: Place,
    pub(super) resolved: Resolved<'a>,
    /// What it is given, and in the end what it returns; a layer that keeps the width leaves it alone.
    pub(crate) flow: Flow,
}

impl<'c, 'a> LayerCheck<'c, 'a> {
    /// The name under which it was written.
    pub(crate) fn name(&self) -> &'c str {
        &self.call.name.name
    }

    /// Where its name was written.
    pub(crate) fn name_span(&self) -> Span {
        self.call.name.span
    }

    /// Where all of it was written.
    pub(crate) fn span(&self) -> Span {
        self.call.span
    }

    /// Whether it stands in an expert, which is given single tokens in no sequence.
    pub(crate) fn in_expert(&self) -> bool {
        self.place.expert
    }

    /// Whether it stands directly in the body of the model.
    pub(crate) fn at_top(&self) -> bool {
        self.place.top
    }

    /// Width of what it is given; `None` after a fault, and for the first layer.
    pub(crate) fn input(&self) -> Option<usize> {
        self.flow.width()
    }

    fn value(&self, name: &str) -> Option<&ArgumentValue> {
        self.resolved.arguments.get(name)
    }

    /// A whole number that counts something.
    pub(crate) fn size(&self, name: &str) -> Option<usize> {
        self.value(name).map(|_| self.resolved.arguments.size(name))
    }

    /// A number.
    pub(crate) fn float(&self, name: &str) -> Option<f64> {
        self.value(name).map(|_| self.resolved.arguments.float(name))
    }

    /// `true` or `false`.
    pub(crate) fn bool(&self, name: &str) -> Option<bool> {
        self.value(name).map(|_| self.resolved.arguments.bool(name))
    }

    /// One of the words of a choice.
    pub(crate) fn word(&self, name: &str) -> Option<&'static str> {
        self.value(name).map(|_| self.resolved.arguments.word(name))
    }

    /// An argument that the layer itself reads, if it was given.
    pub(crate) fn form(&self, name: &str) -> Option<&'a ast::Expr> {
        self.resolved.forms.get(name).copied()
    }

    /// Whether an argument was written, be it with a fault.
    pub(crate) fn is_given(&self, name: &str) -> bool {
        self.call.arguments.iter().any(|argument| argument.name.as_ref().is_some_and(|given| given.name == name))
    }

    /// Where the value of an argument was written, or the name of the layer for a default.
    pub(crate) fn argument_span(&self, name: &str) -> Span {
        self.resolved.arguments.span(name).unwrap_or(self.name_span())
    }

    /// Reports a fault.
    pub(crate) fn report(&mut self, diagnostic: Diagnostic) {
        self.checker.report(diagnostic);
    }

    /// Number of faults so far, here and elsewhere.
    pub(crate) fn errors(&self) -> usize {
        self.checker.error_count()
    }

    /// What the layers so far have said about the model.
    pub(crate) fn model(&mut self) -> &mut ModelFacts {
        &mut self.checker.model.facts
    }

    /// Says what later tokens can do to earlier ones in this layer.
    pub(crate) fn causality(&mut self, causality: Causality) {
        let model = self.model();
        model.causality = model.causality.max(causality);
    }

    /// Counts the elements of a trained tensor of the layer, and reports one that is too large to be indexed. After a
    /// fault in the arguments nothing is counted.
    pub(crate) fn count(&mut self, shape: &[usize]) {
        if !self.resolved.failed {
            self.checker.count(shape, self.place.copies, self.call.name.span);
        }
    }

    /// Whether a block of that name is known here.
    pub(crate) fn names_block(&self, name: &str) -> bool {
        self.checker.visible_blocks(self.scope).any(|(_, block)| block.name.name == name)
    }

    /// What names can mean in the file.
    pub(crate) fn registry(&self) -> &'a Registry {
        self.checker.registry
    }

    /// Whether the file defines a router of that name with faults, which have been reported.
    pub(crate) fn is_faulty_router(&self, name: &str) -> bool {
        self.checker.faulty_routers.iter().any(|faulty| faulty == name)
    }

    /// The text of a place of the file.
    pub(crate) fn text(&self, span: Span) -> &'a str {
        self.checker.source.slice(span)
    }

    /// Checks a list of arguments within an argument.
    pub(crate) fn arguments(
        &mut self,
        owner: Owner<'_>,
        specs: &[ParameterSpec],
        list: &'a [ast::Argument],
    ) -> Resolved<'a> {
        self.checker.arguments(owner, specs, list, self.scope)
    }

    /// The value of an expression; `None` after a fault.
    pub(crate) fn number(&mut self, expr: &ast::Expr) -> Option<Number> {
        self.checker.number(expr, self.scope)
    }

    /// Checks what an `if` comes down to, or the expression itself if it is none; `None` after a fault in a condition. The
    /// other branches are walked aside.
    pub(crate) fn choose<T>(
        &mut self,
        expr: &'a ast::Expr,
        check: &dyn Fn(&mut LayerCheck<'_, 'a>, &'a ast::Expr) -> Option<T>,
    ) -> Option<T> {
        let ast::ExprKind::If { branches, otherwise } = &expr.kind else { return check(self, expr) };
        let (taken, others) = self.checker.branch(branches, otherwise, self.scope);
        let result = taken.and_then(|taken| self.choose(taken, check));
        for other in others {
            let (call, scope, place, flow) = (self.call, self.scope, self.place, self.flow);
            let resolved = self.resolved.clone();
            self.checker.aside(other.span, |checker| {
                LayerCheck { checker, call, scope, place, resolved, flow }.choose(other, check);
            });
        }
        result
    }

    /// Number of layers so far that were left out because of faults in them.
    pub(crate) fn left_out(&self) -> usize {
        self.checker.model.left_out
    }

    /// Counts the names in arguments that are not evaluated as read.
    pub(crate) fn mark_read(&mut self, list: &[ast::Argument]) {
        list.iter().for_each(|argument| self.checker.mark_read(&argument.value, self.scope));
    }
}

/// Points at the last layer that changed the width.
pub(crate) fn with_culprit(d: Diagnostic, layers: &[Layer]) -> Diagnostic {
    match layers.iter().rev().find(|layer| layer.input != layer.output) {
        Some(Layer { span, output: Some(output), .. }) => d.secondary(*span, format!("this returns width {output}")),
        Some(_) | None => d,
    }
}
