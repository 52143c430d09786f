//! The layer stack: structure, widths, limits.

use indexmap::IndexMap;
use moec_syntax::{self as ast, Code, Diagnostic, Span, Statement, did_you_mean};

use super::arguments::Owner;
use super::overrides::in_file;
use super::{Checker, ModelState, Scope, duplicate, listed};
use crate::argument::{Arguments, Interval, ParameterSpec, ParameterType};
use crate::layers::LAYERS;
use crate::model::{
    Activation, Attention, Causality, Layer, LayerKind, MixtureOfDepths, Mlp, Model, MultiHash, Number, Positions,
    Vocab,
};

/// Most repetitions of one `repeat`.
const MAX_REPEAT: i64 = 10_000;
/// Most statements reached in a model, counting repetitions.
const MAX_STATEMENTS: usize = 20_000;
/// Deepest nesting of layers, counting blocks where they are used.
const MAX_DEPTH: usize = 96;
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
pub(super) enum Flow {
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
    fn width(self) -> Option<usize> {
        match self {
            Flow::Width(width) => Some(width),
            Flow::Tokens | Flow::Unknown | Flow::Logits => None,
        }
    }
}

impl<'a> Checker<'a> {
    /// Checks a model; `None` if it has faults.
    pub(super) fn model(&mut self, model: &'a ast::Model, chosen: bool) -> Option<Model> {
        let errors = self.error_count();
        self.model = ModelState { chosen, ..ModelState::default() };
        let mut layers = Vec::new();
        let mut flow = Flow::Tokens;
        let place = Place { own: true, top: true, trunk: true, expert: false };
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
            width: self.model.width,
            layers,
            bindings,
            causality: self.model.causality,
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
                    if name == "context" {
                        let owner = Owner { name: "model", kind: "model", span: node.name.span };
                        context = self.value(owner, &CONTEXT, value, scope).and_then(size);
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
        self.model.context = context;
        self.model.vocab = match vocab {
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
        let owner = Owner { name: "model", kind: "model", span };
        self.value(owner, &VOCAB, value, scope).and_then(size).map(Vocab::Size)
    }

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
            self.model.reached += 1;
            if self.model.reached > MAX_STATEMENTS {
                self.stop(
                    Diagnostic::new(Code::RepeatTooLarge, format!("the model has more than {MAX_STATEMENTS} layers"))
                        .primary(statement.span(), "the limit is reached here")
                        .note("repetitions are counted, and so are blocks where they are used"),
                );
            }
            if self.model.stopped {
                break;
            }
            let defined = match statement {
                Statement::Let(node) => Some(("binding", &node.name)),
                Statement::Block(node) => Some(("block", &node.name)),
                _ => None,
            };
            if let Some((what, name)) = defined {
                if let Some(&first) = names.get(name.name.as_str()) {
                    self.report(duplicate(what, name, first));
                    continue;
                }
                names.insert(&name.name, name.span);
            }
            match statement {
                Statement::Let(node) => scope = self.let_statement(node, scope, place.own),
                Statement::Block(block) => {
                    let at = self.blocks.len();
                    let inside = Scope { block: Some(at), ..scope };
                    self.blocks.push(super::BlockDefinition { block, scope: inside, parent: scope.block });
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

    /// Reports that a limit is exceeded, once, and ends the expansion.
    fn stop(&mut self, diagnostic: Diagnostic) {
        if !self.model.stopped {
            self.report(diagnostic);
        }
        self.model.stopped = true;
    }

    fn let_statement(&mut self, node: &'a ast::Let, scope: Scope, own: bool) -> Scope {
        let mut value = self.number(&node.value, scope);
        if own
            && self.model.chosen
            && let Some(given) = self.take_override(&node.name.name)
        {
            let number = self.number(&given, Scope::default());
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
        let place = Place { own: false, top: false, trunk: false, ..place };
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
        let inside = Place { own: false, top: false, trunk: false, ..place };
        let errors = self.error_count();
        for i in 0..count {
            // Empty bodies cost time too.
            self.model.reached += 1;
            let scope = match &node.index {
                Some(index) => self.bind(scope, &index.name, Some(Number::Int(i)), index.span),
                None => scope,
            };
            let mut own = Vec::new();
            let input = flow.width().unwrap_or(0);
            self.body(&node.body, scope, inside, flow, &mut own);
            if i == 0 && own.is_empty() && self.error_count() == errors && node.body.statements.is_empty() {
                return self.empty_repeat(node, "its body is empty");
            }
            if place.trunk {
                let index = self.model.iterations;
                self.model.iterations += 1;
                let output = flow.width().unwrap_or(0);
                layers.push(Layer { kind: LayerKind::Block { index, layers: own }, span: node.span, input, output });
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
        let mut taken = false;
        for branch in &node.branches {
            if taken {
                self.mark_read(&branch.condition, scope);
                self.mark_body_read(&branch.then, scope);
                continue;
            }
            match self.condition(&branch.condition, scope) {
                Some(true) => {
                    taken = true;
                    self.body(&branch.then, scope, place, flow, layers);
                }
                Some(false) => self.mark_body_read(&branch.then, scope),
                None => {
                    // Which branch holds is unknown, and with it the width.
                    *flow = Flow::Unknown;
                    self.mark_body_read(&branch.then, scope);
                    taken = true;
                }
            }
        }
        if let Some(body) = &node.otherwise {
            if taken {
                self.mark_body_read(body, scope);
            } else {
                self.body(body, scope, place, flow, layers);
            }
        }
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
            return self.expand(at, call, place, flow, layers);
        }
        let Some(spec) = LAYERS.iter().find(|spec| spec.name == name) else {
            self.unknown_layer(call, scope);
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
        self.body_of(call);
        self.model.unembed |= name == "unembed";
        let owner = Owner { name, kind: "layer", span: call.name.span };
        let resolved = self.arguments(owner, spec.parameters, call.arguments, scope);
        let input = flow.width();
        let kind = match name {
            "embed" => self.embed(call, &resolved.arguments, place, flow),
            "unembed" => self.unembed(call, &resolved.arguments, place, flow),
            "residual" => self.residual(call, scope, place, flow),
            "attention" => self.attention(call, &resolved.arguments, place, input),
            "moe" => self.moe(call, &resolved, scope, place, input),
            "mixture_of_depths" => self.mixture_of_depths(call, &resolved.arguments, scope, place, flow),
            "multi_hash" => self.multi_hash(call, &resolved.arguments, place, input),
            "linear" => {
                let width = resolved.arguments.size("width");
                if let Some(input) = input {
                    self.count(&[input, width], call.name.span);
                }
                *flow = if width > 0 { Flow::Width(width) } else { Flow::Unknown };
                Some(LayerKind::Linear { bias: resolved.arguments.bool("bias") })
            }
            "mlp" => {
                let mlp = mlp(&resolved.arguments);
                if let (Some(input), false) = (input, resolved.failed) {
                    self.count(&[input, mlp.hidden], call.name.span);
                    self.count(&[input, mlp.hidden], call.name.span);
                }
                Some(LayerKind::Mlp(mlp))
            }
            "layer_norm" => Some(LayerKind::LayerNorm { epsilon: resolved.arguments.float("epsilon") }),
            "rms_norm" => Some(LayerKind::RmsNorm { epsilon: resolved.arguments.float("epsilon") }),
            "dropout" => Some(LayerKind::Dropout { rate: resolved.arguments.float("rate") }),
            "relu" => Some(LayerKind::Activation(Activation::Relu)),
            "gelu" => Some(LayerKind::Activation(Activation::Gelu)),
            "silu" => Some(LayerKind::Activation(Activation::Silu)),
            _ => None,
        };
        let Some(kind) = kind.filter(|_| !resolved.failed) else { return };
        let input = input.unwrap_or(0);
        layers.push(Layer { kind, span: call.span, input, output: flow.width().unwrap_or(0) });
    }

    /// `residual` and `mixture_of_depths` have layers of their own, other layers do not.
    fn body_of(&mut self, call: Written<'_, 'a>) {
        let name = call.name;
        match (call.body, matches!(name.name.as_str(), "residual" | "mixture_of_depths")) {
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
        let mut d = Diagnostic::new(Code::UnknownLayer, message).primary(name.span, "unknown layer");
        let blocks: Vec<&str> = self.visible_blocks(scope).map(|(_, block)| block.name.name.as_str()).collect();
        let candidates = LAYERS.iter().map(|spec| spec.name).chain(blocks.iter().copied());
        d = match did_you_mean(&name.name, candidates) {
            _ if name.name == "swiglu" => {
                d.help("`swiglu` has weights of its own: write `mlp(activation: swiglu, ..)`")
            }
            Some(near) => d.help(format!("did you mean `{near}`?")).patch(name.span, near, "use the name that it has"),
            None => d.note(format!("the layers are {}", listed(LAYERS.iter().map(|spec| spec.name)))),
        };
        if !blocks.is_empty() {
            d = d.note(format!("blocks defined here: {}", listed(blocks.into_iter().take(12))));
        }
        self.report(d);
    }

    /// The layers of a block, where it is used.
    fn expand(&mut self, at: usize, call: Written<'_, 'a>, place: Place, flow: &mut Flow, layers: &mut Vec<Layer>) {
        let (block, scope) = (self.blocks[at].block, self.blocks[at].scope);
        if let Some(first) = call.arguments.first() {
            let d = Diagnostic::new(Code::UnknownArgument, format!("block `{}` takes no arguments", call.name))
                .primary(first.span, "unexpected argument");
            self.report(d);
        }
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
        let place = Place { own: false, ..place };
        self.body(&block.body, scope, place, flow, layers);
        self.model.expanding.pop();
    }

    fn embed(
        &mut self,
        call: Written<'_, 'a>,
        arguments: &Arguments,
        place: Place,
        flow: &mut Flow,
    ) -> Option<LayerKind> {
        let width = arguments.size("width");
        let wrong = match *flow {
            Flow::Tokens if place.top => None,
            // Whatever stands before it has been reported.
            Flow::Unknown if place.top && std::mem::take(&mut self.model.late_embed) => None,
            Flow::Tokens => Some("`embed` must stand directly in the body of the model"),
            _ => Some("`embed` must be the first layer, and only there"),
        };
        *flow = if width > 0 { Flow::Width(width) } else { Flow::Unknown };
        if let Some(message) = wrong {
            let d = Diagnostic::new(Code::EmbedPlacement, message).primary(call.name.span, "misplaced");
            self.report(d);
            return None;
        }
        let positions = match arguments.word("positions") {
            "rotary" => Positions::Rotary,
            "none" => Positions::None,
            _ => Positions::Learned,
        };
        self.model.positions = positions;
        self.model.width = width;
        if let (Positions::Learned, Some(context)) = (positions, self.model.context) {
            self.count(&[context, width], call.name.span);
        }
        if let Some(vocab) = self.model.vocab {
            self.count(&[vocab, width], call.name.span);
        }
        Some(LayerKind::Embed { positions })
    }

    fn unembed(
        &mut self,
        call: Written<'_, 'a>,
        arguments: &Arguments,
        place: Place,
        flow: &mut Flow,
    ) -> Option<LayerKind> {
        let tied = arguments.bool("tied");
        let input = flow.width();
        if !place.top {
            let d = Diagnostic::new(Code::UnembedPlacement, "`unembed` must stand directly in the body of the model")
                .primary(call.name.span, "misplaced");
            self.report(d);
            return None;
        }
        *flow = Flow::Logits;
        if let (true, Some(input)) = (tied, input)
            && input != self.model.width
        {
            let message = format!("a tied `unembed` needs the width of `embed`, {}, not {input}", self.model.width);
            self.report(
                Diagnostic::new(Code::WidthMismatch, message)
                    .primary(call.name.span, format!("this is given vectors of width {input}"))
                    .help("remove `tied: true`, or add a `linear` in front"),
            );
            return None;
        }
        if let (false, Some(input), Some(vocab)) = (tied, input, self.model.vocab) {
            self.count(&[vocab, input], call.name.span);
        }
        Some(LayerKind::Unembed { tied, bias: arguments.bool("bias") })
    }

    fn residual(&mut self, call: Written<'_, 'a>, scope: Scope, place: Place, flow: &mut Flow) -> Option<LayerKind> {
        Some(LayerKind::Residual(self.wrapped(call, scope, place, flow)))
    }

    fn mixture_of_depths(
        &mut self,
        call: Written<'_, 'a>,
        arguments: &Arguments,
        scope: Scope,
        place: Place,
        flow: &mut Flow,
    ) -> Option<LayerKind> {
        if place.expert {
            let d = Diagnostic::new(Code::ExpertNotTokenwise, "an expert cannot contain `mixture_of_depths`")
                .primary(call.name.span, "this layer compares the tokens of a sequence")
                .note("an expert is given the tokens routed to it, in no sequence")
                .help("put it around the `moe`");
            self.report(d);
            return None;
        }
        self.model.causality = self.model.causality.max(Causality::SamplesDifferently);
        let layers = self.wrapped(call, scope, place, flow);
        let (capacity, weight) = (arguments.float("capacity"), arguments.float("predictor"));
        Some(LayerKind::MixtureOfDepths(Box::new(MixtureOfDepths { capacity, weight, layers })))
    }

    /// The layers of one that adds what they compute to what they are given, so that they must keep the width.
    fn wrapped(&mut self, call: Written<'_, 'a>, scope: Scope, place: Place, flow: &mut Flow) -> Vec<Layer> {
        let before = *flow;
        let mut layers = Vec::new();
        let place = Place { own: false, top: false, trunk: false, ..place };
        if let Some(body) = call.body {
            self.body(body, scope, place, flow, &mut layers);
        }
        if let (Some(input), Some(output)) = (before.width(), flow.width())
            && input != output
        {
            let message = format!("the layers of this `{}` turn width {input} into {output}", call.name);
            let d = Diagnostic::new(Code::WidthMismatch, message)
                .primary(call.name.span, format!("what is added must have width {input}"));
            let d = with_culprit(d, &layers).help(format!("end with `linear(width: {input})`"));
            self.report(d);
        }
        *flow = before;
        layers
    }

    fn multi_hash(
        &mut self,
        call: Written<'_, 'a>,
        arguments: &Arguments,
        place: Place,
        input: Option<usize>,
    ) -> Option<LayerKind> {
        if place.expert {
            let d = Diagnostic::new(Code::ExpertNotTokenwise, "an expert cannot contain `multi_hash`")
                .primary(call.name.span, "this layer chooses its weights by token, as a router does")
                .help("use it in place of the `moe`");
            self.report(d);
            return None;
        }
        let hash = MultiHash {
            hidden: arguments.size("hidden"),
            buckets: arguments.size("buckets"),
            hashes: arguments.size("hashes"),
            activation: activation(arguments),
            dropout: arguments.float("dropout"),
            seed: arguments.size("seed"),
        };
        let input = input?;
        for (what, width) in [("width of the model", input), ("hidden width", hash.hidden)] {
            if hash.hashes == 0 || !width.is_multiple_of(hash.hashes) {
                let message = format!("{} hashes do not divide the {what}, {width}", hash.hashes);
                let d = Diagnostic::new(Code::WidthMismatch, message)
                    .primary(
                        arguments.span("hashes").unwrap_or(call.name.span),
                        format!("expected a divisor of {width}"),
                    )
                    .note("each hash chooses the weights of an equal block of channels");
                self.report(d);
                return None;
            }
        }
        self.count(&[hash.buckets, input, hash.hidden], call.name.span);
        self.count(&[hash.buckets, input, hash.hidden], call.name.span);
        Some(LayerKind::MultiHash(hash))
    }

    fn attention(
        &mut self,
        call: Written<'_, 'a>,
        arguments: &Arguments,
        place: Place,
        input: Option<usize>,
    ) -> Option<LayerKind> {
        if place.expert {
            let d = Diagnostic::new(Code::ExpertNotTokenwise, "an expert cannot contain `attention`")
                .primary(call.name.span, "this layer looks at several tokens")
                .note("an expert is given the tokens routed to it, in no sequence")
                .help("put `attention` in front of the `moe`");
            self.report(d);
            return None;
        }
        let (heads, input) = (arguments.size("heads"), input?);
        if heads == 0 {
            return None;
        }
        let at = arguments.span("heads").unwrap_or(call.name.span);
        if !input.is_multiple_of(heads) {
            let near: Vec<String> = divisors_near(input, heads).into_iter().map(|n| format!("`heads: {n}`")).collect();
            let d = Diagnostic::new(Code::HeadsDoNotDivideWidth, format!("{heads} heads do not divide width {input}"))
                .primary(at, format!("expected a divisor of {input}"))
                .help(format!("the nearest are {}", near.join(" and ")));
            self.report(d);
            return None;
        }
        let head_width = input / heads;
        let rotary = self.model.positions == Positions::Rotary;
        if rotary && !head_width.is_multiple_of(2) {
            let message = format!("rotary positions need heads of even width, and these have width {head_width}");
            let d = Diagnostic::new(Code::RotaryHeadWidth, message)
                .primary(at, format!("{input} / {heads} = {head_width}"))
                .help("change the number of heads or the width, or use `positions: learned`");
            self.report(d);
            return None;
        }
        self.count(&[3, input, input], call.name.span);
        self.count(&[input, input], call.name.span);
        let scaled_by = if arguments.word("scale") == "width" { input } else { head_width };
        Some(LayerKind::Attention(Attention {
            heads,
            scale: (scaled_by as f64).sqrt().recip(),
            dropout: arguments.float("dropout"),
            bias: arguments.bool("bias"),
            rotary,
        }))
    }

    /// Counts the elements of a trained tensor, and reports one that is too large to be indexed.
    pub(super) fn count(&mut self, shape: &[usize], span: Span) {
        let elements =
            shape.iter().try_fold(self.model.copies as u128, |n, &d| n.checked_mul(d as u128)).unwrap_or(u128::MAX / 2);
        if elements > MAX_ELEMENTS {
            let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
            let copies =
                if self.model.copies > 1 { format!("{} copies of ", self.model.copies) } else { String::new() };
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

/// Points at the last layer that changed the width.
pub(super) fn with_culprit(d: Diagnostic, layers: &[Layer]) -> Diagnostic {
    match layers.iter().rev().find(|layer| layer.input != layer.output) {
        Some(layer) => d.secondary(layer.span, format!("this returns width {}", layer.output)),
        None => d,
    }
}

fn mlp(arguments: &Arguments) -> Mlp {
    let (dropout, bias) = (arguments.float("dropout"), arguments.bool("bias"));
    Mlp { hidden: arguments.size("hidden"), activation: activation(arguments), dropout, bias }
}

fn activation(arguments: &Arguments) -> Activation {
    match arguments.word("activation") {
        "gelu" => Activation::Gelu,
        "silu" => Activation::Silu,
        "swiglu" => Activation::Swiglu,
        _ => Activation::Relu,
    }
}

/// The nearest divisors of `n` below and above `near`.
fn divisors_near(n: usize, near: usize) -> Vec<usize> {
    let below = (1..near.min(n + 1)).rev().find(|&d| n.is_multiple_of(d));
    let above = (near.saturating_add(1)..=n).find(|&d| n.is_multiple_of(d));
    below.into_iter().chain(above).collect()
}

fn size(value: crate::argument::ArgumentValue) -> Option<usize> {
    match value {
        crate::argument::ArgumentValue::Int(n) => usize::try_from(n).ok(),
        _ => None,
    }
}
