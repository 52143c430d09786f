//! The stack of layers: statements in order, repetitions, choices, blocks where they are used, and the widths between
//! layers.

use std::sync::Arc;

use indexmap::IndexMap;
use moec_syntax::{self as ast, Code, Diagnostic, ExprKind, Meant, Span, Statement, did_you_mean, meant};

use super::NamedValue;
use super::arguments::Owner;
use super::checker::{BlockDefinition, Checker, Scope};
use super::duplicate;
use super::layer::{Flow, LayerCheck, Place, Written, with_culprit};
use crate::argument::Arguments;
use crate::arithmetic::Number;
use crate::layer::Layer;
use crate::layers::{Block, LAYERS, LayerSpec};
use crate::words::listed;

/// Most repetitions of one `repeat`.
const MAX_REPEAT: i64 = 10_000;
/// Most statements reached in a model, counting repetitions.
const MAX_STATEMENTS: usize = 20_000;
/// Deepest nesting of layers, counting blocks where they are used.
const MAX_DEPTH: usize = 96;

impl<'a> Checker<'a> {
    /// Walks the statements of a body; returns what is visible at its end.
    pub(super) fn body(
        &mut self,
        body: &'a ast::Body,
        mut scope: Scope,
        place: Place,
        flow: &mut Flow,
        layers: &mut Vec<Layer>,
    ) -> Scope {
        self.model.depth += 1;
        if self.model.depth > MAX_DEPTH {
            self.stop(
                Diagnostic::new(Code::TooDeep, format!("layers are nested more than {MAX_DEPTH} deep"))
                    .primary(body.span, "this body is too deep"),
            );
        }
        let mut names: IndexMap<&str, Span> = IndexMap::new();
        for statement in &body.statements {
            if !self.within_limit(statement) {
                break;
            }
            if self.is_duplicate(statement, &mut names) {
                continue;
            }
            match statement {
                Statement::Let(node) => scope = self.let_statement(node, scope, place.own),
                Statement::Block(block) => {
                    let parameters = self.parameters(block, scope);
                    let at = self.blocks.len();
                    let inside = Scope { block: Some(at), ..scope };
                    self.blocks.push(BlockDefinition { block, scope: inside, parent: scope.block, parameters });
                    scope = inside;
                }
                Statement::Setting(node) => {
                    if !place.own {
                        let name = &node.name;
                        let d = Diagnostic::new(Code::MisplacedSetting, format!("`{name}` has no effect here"))
                            .primary(node.span, "expected directly in the body of the model")
                            .help(format!("move `{name}` to the body of the model"));
                        self.report(d);
                    }
                }
                Statement::Layer(call) => self.layer(Written::call(call), scope, place, flow, layers),
                Statement::Repeat(node) => self.repeat(node, scope, place, flow, layers),
                Statement::If(node) => self.if_statement(node, scope, place, flow, layers),
            }
        }
        self.model.depth -= 1;
        scope
    }

    /// Counts a statement; `false` if nothing more is expanded.
    fn within_limit(&mut self, statement: &Statement) -> bool {
        self.model.reached += 1;
        if self.model.reached > MAX_STATEMENTS {
            self.stop(
                Diagnostic::new(Code::RepeatTooLarge, format!("the model has more than {MAX_STATEMENTS} layers"))
                    .primary(statement.span(), "the limit is reached here")
                    .note("repetitions are counted, and so are blocks where they are used"),
            );
        }
        !self.model.stopped
    }

    /// Reports a binding or block whose name is among those of its body so far, and adds it to them otherwise.
    fn is_duplicate(&mut self, statement: &'a Statement, names: &mut IndexMap<&'a str, Span>) -> bool {
        let (what, name) = match statement {
            Statement::Let(node) => ("binding", &node.name),
            Statement::Block(node) => ("block", &node.name),
            Statement::Setting(_) | Statement::Layer(_) | Statement::Repeat(_) | Statement::If(_) => return false,
        };
        let first = names.get(name.name.as_str()).copied();
        match first {
            Some(first) => self.report(duplicate(what, name, first)),
            None => {
                names.insert(&name.name, name.span);
            }
        }
        first.is_some()
    }

    /// Reports that a limit is exceeded, once, and ends the expansion.
    fn stop(&mut self, diagnostic: Diagnostic) {
        if !self.model.stopped {
            self.report(diagnostic);
        }
        self.model.stopped = true;
    }

    pub(super) fn let_statement(&mut self, node: &'a ast::Let, scope: Scope, own: bool) -> Scope {
        let mut value = self.number(&node.value, scope);
        let mut origin = node.value.span;
        if own
            && self.model.chosen
            && let Some(given) = self.take_override(&node.name.name)
        {
            let number = self.number(&given, Scope::default());
            origin = given.span;
            value = match (value, number) {
                (Some(Number::Float(_)), Some(Number::Int(n))) => Some(Number::Float(n as f64)),
                (Some(old), Some(new)) if std::mem::discriminant(&old) != std::mem::discriminant(&new) => {
                    let message = format!("`{}` is {}, not {}", node.name, old.kind(), new.kind());
                    self.report(
                        Diagnostic::new(Code::OverrideType, message)
                            .primary(given.span, "")
                            .secondary(node.value.span, format!("`{}` is bound to {} here", node.name, old.kind())),
                    );
                    None
                }
                (_, new) => new,
            };
        }
        let span = node.name.span;
        // The walk over the body comes by once more.
        let is_new = self.named.iter().all(|named| named.name != node.name.name);
        if let Some(number) = value.filter(|_| own && self.model.chosen && is_new) {
            self.named.push(NamedValue { name: node.name.name.clone(), value: number.to_string(), span: origin });
        }
        self.lets.entry(span).or_insert((&node.name.name, false));
        self.bind(scope, &node.name.name, value, span)
    }

    fn repeat(&mut self, node: &'a ast::Repeat, scope: Scope, place: Place, flow: &mut Flow, layers: &mut Vec<Layer>) {
        let wrong = match self.number(&node.count, scope) {
            Some(Number::Int(0)) => {
                self.mark_body_read(&node.body, scope);
                self.empty_repeat(node, "its count is 0");
                return;
            }
            Some(Number::Int(_)) if self.is_aside() => {
                self.walk_once(node, scope, place, flow);
                return;
            }
            Some(Number::Int(count)) if (1..=MAX_REPEAT).contains(&count) => {
                return self.iterations(node, count, scope, place, flow, layers);
            }
            Some(Number::Int(count)) if count < 0 => {
                Diagnostic::new(Code::OutOfRange, format!("a body cannot be repeated {count} times"))
                    .primary(node.count.span, "expected 0 or more")
            }
            Some(Number::Int(count)) => {
                Diagnostic::new(Code::RepeatTooLarge, format!("{count} repetitions are too many"))
                    .primary(node.count.span, format!("expected at most {MAX_REPEAT}"))
            }
            Some(number) => Diagnostic::new(Code::WrongType, "the count of a `repeat` must be an integer")
                .primary(node.count.span, format!("this is {} ({number})", number.kind())),
            None => {
                self.walk_once(node, scope, place, flow);
                return;
            }
        };
        self.report(wrong);
        self.walk_once(node, scope, place, flow);
    }

    /// Looks for faults in the body of a `repeat` whose count is unknown.
    fn walk_once(&mut self, node: &'a ast::Repeat, scope: Scope, place: Place, flow: &mut Flow) {
        let scope = match &node.index {
            Some(index) => self.bind(scope, &index.name, Some(Number::Int(0)), index.span),
            None => scope,
        };
        let place = place.within();
        self.body(&node.body, scope, place, flow, &mut Vec::new());
    }

    fn empty_repeat(&mut self, node: &ast::Repeat, why: &str) {
        let d = Diagnostic::new(Code::EmptyRepeat, format!("this `repeat` adds no layer: {why}"))
            .primary(node.count.span, "")
            .help("remove it, or correct its count");
        self.report(d);
    }

    fn iterations(
        &mut self,
        node: &'a ast::Repeat,
        count: i64,
        scope: Scope,
        place: Place,
        flow: &mut Flow,
        layers: &mut Vec<Layer>,
    ) {
        let inside = place.within();
        let errors = self.error_count();
        for i in 0..count {
            // Empty bodies cost time too.
            self.model.reached += 1;
            let scope = match &node.index {
                Some(index) => self.bind(scope, &index.name, Some(Number::Int(i)), index.span),
                None => scope,
            };
            let mut own = Vec::new();
            let input = flow.width();
            self.body(&node.body, scope, inside, flow, &mut own);
            if i == 0 && own.is_empty() && self.error_count() == errors && node.body.statements.is_empty() {
                return self.empty_repeat(node, "its body is empty");
            }
            if place.trunk {
                let index = self.model.iterations;
                self.model.iterations += 1;
                let kind = Arc::new(Block { index, layers: own });
                let arguments = Arguments::defaults("repeat", &[]);
                layers.push(Layer { kind, span: node.span, input, output: flow.width(), arguments });
            } else {
                layers.append(&mut own);
            }
            // The other iterations would say the same.
            if self.error_count() > errors || self.model.stopped {
                return;
            }
        }
    }

    fn if_statement(
        &mut self,
        node: &'a ast::If,
        scope: Scope,
        place: Place,
        flow: &mut Flow,
        layers: &mut Vec<Layer>,
    ) {
        let place = Place { own: false, ..place };
        let before = *flow;
        let mut taken = false;
        for branch in &node.branches {
            if taken {
                self.mark_read(&branch.condition, scope);
                self.not_taken(&branch.then, scope, place, before);
                continue;
            }
            match self.condition(&branch.condition, scope) {
                Some(true) => {
                    taken = true;
                    self.body(&branch.then, scope, place, flow, layers);
                }
                Some(false) => self.not_taken(&branch.then, scope, place, before),
                None => {
                    // Which branch holds is unknown, and with it the width.
                    *flow = Flow::Unknown;
                    self.not_taken(&branch.then, scope, place, before);
                    taken = true;
                }
            }
        }
        if let Some(body) = &node.otherwise {
            if taken {
                self.not_taken(body, scope, place, before);
            } else {
                self.body(body, scope, place, flow, layers);
            }
        }
    }

    /// A branch that is not taken: its names count as read, and its faults are found all the same.
    fn not_taken(&mut self, body: &'a ast::Body, scope: Scope, place: Place, mut flow: Flow) {
        self.mark_body_read(body, scope);
        self.aside(body.span, |checker| {
            checker.body(body, scope, place, &mut flow, &mut Vec::new());
        });
    }

    /// Checks one layer, and appends it unless it is faulty.
    pub(super) fn layer(
        &mut self,
        call: Written<'_, 'a>,
        scope: Scope,
        place: Place,
        flow: &mut Flow,
        layers: &mut Vec<Layer>,
    ) {
        let name = call.name.name.as_str();
        let block = self.visible_blocks(scope).find(|(_, block)| block.name.name == name).map(|(at, _)| at);
        if let Some(at) = block {
            return self.expand(at, call, scope, place, flow, layers);
        }
        let Some(spec) = LAYERS.iter().find(|spec| spec.name == name) else {
            self.unknown_layer(call, scope);
            self.model.left_out += 1;
            *flow = Flow::Unknown;
            return;
        };
        if *flow == Flow::Tokens && name != "embed" {
            let d = Diagnostic::new(Code::EmbedPlacement, format!("`{name}` stands before `embed`"))
                .primary(call.name.span, "expected `embed(width: ..)` as the first layer");
            self.report(d);
            *flow = Flow::Unknown;
            self.model.late_embed = true;
        } else if *flow == Flow::Logits {
            let d = Diagnostic::new(Code::UnembedPlacement, format!("`{name}` stands after `unembed`"))
                .primary(call.name.span, "`unembed` must be the last layer");
            self.report(d);
            *flow = Flow::Unknown;
        }
        self.model.unembed |= name == "unembed";
        self.body_of(call, spec);
        let owner = Owner { name, kind: "layer", span: call.name.span };
        let resolved = self.arguments(owner, spec.parameters, call.arguments, scope);
        let (input, failed) = (flow.width(), resolved.failed);
        let mut check = LayerCheck { checker: self, call, scope, place, resolved, flow: *flow };
        let kind = (spec.check)(&mut check);
        *flow = check.flow;
        let arguments = check.resolved.arguments;
        match kind.filter(|_| !failed) {
            Some(kind) => layers.push(Layer { kind, span: call.span, input, output: flow.width(), arguments }),
            None => self.model.left_out += 1,
        }
    }

    /// Some layers have layers of their own, the others do not.
    fn body_of(&mut self, call: Written<'_, 'a>, spec: &LayerSpec) {
        let name = call.name;
        match (call.body, spec.has_layers) {
            (None, true) => {
                let d = Diagnostic::new(Code::MissingBody, format!("`{name}` has no layers")).primary(
                    name.span,
                    format!("expected layers in braces: `{name} {{ layer_norm  mlp(hidden: 512) }}`"),
                );
                self.report(d);
            }
            (Some(body), false) => {
                let d = Diagnostic::new(Code::UnexpectedBody, format!("`{name}` takes no layers of its own"))
                    .primary(body.span, "unexpected layers")
                    .help("write the layers one after the other, or wrap them in `residual { .. }`");
                self.report(d);
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    fn unknown_layer(&mut self, call: Written<'_, 'a>, scope: Scope) {
        let name = call.name;
        let message = format!("there is no layer or block named `{name}`");
        let d = Diagnostic::new(Code::UnknownLayer, message).primary(name.span, "unknown layer");
        let blocks: Vec<&str> = self.visible_blocks(scope).map(|(_, block)| block.name.name.as_str()).collect();
        let candidates = LAYERS.iter().map(|spec| spec.name).chain(blocks.iter().copied());
        // `vocab characters` looks like two layers where it is misspelt.
        let setting = || did_you_mean(&name.name, ["context", "vocab"]).map(Meant::Word);
        let likely = meant(&name.name, candidates).or_else(setting);
        // That the last layer is missing would only follow from this.
        self.model.unembed |= likely == Some(Meant::Word("unembed"));
        let mut d = match likely {
            Some(likely) => d.suggest(name.span, Some(likely)),
            None => d.note(format!("the layers are {}", listed(LAYERS.iter().map(|spec| spec.name)))),
        };
        if self.visible(scope).any(|binding| binding.name == name.name) {
            d = d.help(format!("`{name}` is bound to a number; layers get a name with `block {name} {{ .. }}`"));
        }
        if !blocks.is_empty() {
            d = d.note(format!("blocks defined here: {}", listed(blocks.into_iter().take(12))));
        }
        self.report(d);
    }

    /// The layers of a block, where it is used.
    fn expand(
        &mut self,
        at: usize,
        call: Written<'_, 'a>,
        scope: Scope,
        place: Place,
        flow: &mut Flow,
        layers: &mut Vec<Layer>,
    ) {
        let block = self.blocks[at].block;
        let faultless = self.error_count();
        let scope = match (block.parameters(), call.arguments.first()) {
            ([], Some(first)) => {
                let d = Diagnostic::new(Code::UnknownArgument, format!("block `{}` takes no arguments", call.name))
                    .primary(first.span, "unexpected argument")
                    .help(format!("for some, define it as `block {}(hidden: int) {{ .. }}`", call.name));
                self.report(d);
                self.blocks[at].scope
            }
            ([], None) => self.blocks[at].scope,
            _ => self.given(at, call, scope),
        };
        if let Some(body) = call.body {
            let d = Diagnostic::new(Code::UnexpectedBody, format!("`{}` takes no layers of its own", call.name))
                .primary(body.span, "unexpected layers");
            self.report(d);
        }
        if self.model.expanding.contains(&at) {
            let path = self.model.expanding.iter().chain([&at]).map(|&b| self.blocks[b].block.name.name.as_str());
            let path = path.collect::<Vec<_>>().join(" -> ");
            let d = Diagnostic::new(Code::BlockRecursion, format!("block `{}` contains itself", call.name))
                .primary(call.name.span, "used here")
                .secondary(block.name.span, "defined here")
                .note(format!("the blocks are nested as {path}"))
                .help("a block is copied where it is used; for several copies use `repeat`");
            self.report(d);
            *flow = Flow::Unknown;
            return;
        }
        self.model.expanding.push(at);
        let is_given = !call.arguments.is_empty() && self.error_count() == faultless;
        if is_given {
            self.model.given.push(call.span);
        }
        let place = Place { own: false, ..place };
        self.body(&block.body, scope, place, flow, layers);
        if is_given {
            self.model.given.pop();
        }
        self.model.expanding.pop();
    }
}

impl<'a> LayerCheck<'_, 'a> {
    /// The layers in the braces of one that adds what they compute to what it is given, so that they must keep the width.
    pub(crate) fn layers(&mut self) -> Vec<Layer> {
        let (before, mut layers) = (self.flow, Vec::new());
        let mut after = before;
        if let Some(body) = self.call.body {
            self.checker.body(body, self.scope, self.place.within(), &mut after, &mut layers);
        }
        if let (Some(input), Some(output)) = (before.width(), after.width())
            && input != output
        {
            let message = format!("the layers of this `{}` turn width {input} into {output}", self.name());
            let d = Diagnostic::new(Code::WidthMismatch, message)
                .primary(self.name_span(), format!("what is added must have width {input}"));
            let d = with_culprit(d, &layers).help(format!("end with `linear(width: {input})`"));
            self.report(d);
        }
        layers
    }

    /// The layers that an expression stands for, of which there are `copies`, one in each expert, and what they return
    /// where they are given vectors of that width, if it is known: a layer, a block, or layers in braces. `None` for any
    /// other expression.
    pub(crate) fn expert(
        &mut self,
        expr: &'a ast::Expr,
        copies: usize,
        width: Option<usize>,
    ) -> Option<(Vec<Layer>, Flow)> {
        let place = Place { expert: true, copies, ..self.place.within() };
        let (mut flow, mut layers) = (Flow::vectors(width), Vec::new());
        match &expr.kind {
            ExprKind::Call(call) => {
                self.checker.layer(Written::call(call), self.scope, place, &mut flow, &mut layers);
            }
            ExprKind::Sequence(body) => {
                self.checker.body(body, self.scope, place, &mut flow, &mut layers);
            }
            // A name alone: a block, or a layer that needs no arguments.
            ExprKind::Name(name) => {
                let name = ast::Ident { name: name.clone(), span: expr.span };
                let written = Written { name: &name, arguments: &[], body: None, span: expr.span };
                self.checker.layer(written, self.scope, place, &mut flow, &mut layers);
            }
            _ => return None,
        }
        Some((layers, flow))
    }

    /// Whether `embed` may stand here.
    ///
    /// # Errors
    /// What is wrong, unless it has been reported.
    pub(crate) fn begins_model(&mut self) -> Result<(), &'static str> {
        match self.flow {
            Flow::Tokens if self.place.top => Ok(()),
            // Whatever stands before it has been reported.
            Flow::Unknown if self.place.top && std::mem::take(&mut self.checker.model.late_embed) => Ok(()),
            Flow::Tokens => Err("`embed` must stand directly in the body of the model"),
            Flow::Width(_) | Flow::Unknown | Flow::Logits => Err("`embed` must be the first layer, and only there"),
        }
    }
}
