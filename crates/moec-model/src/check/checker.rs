//! What is known while a file is checked: names, blocks, overrides, faults, and the model so far.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use moec_syntax::{self as ast, Code, Diagnostic, SourceFile, Span};

use super::NamedValue;
use super::overrides;
use crate::argument::ParameterSpec;
use crate::arithmetic::Number;
use crate::model::{Causality, Positions};
use crate::registry::Registry;

/// Most diagnostics that are shown for one file; only a file that is no model at all has more.
const MAX_DIAGNOSTICS: usize = 500;

/// The names that are visible at some place, as positions in the checker's tables.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scope {
    pub(super) binding: Option<usize>,
    pub(super) block: Option<usize>,
}

/// A `let` or the index of a `repeat`. `parent` is the binding visible before it.
pub(super) struct Binding<'a> {
    pub(super) name: &'a str,
    /// Unknown after a fault, which has been reported.
    pub(super) value: Option<Number>,
    pub(super) span: Span,
    pub(super) parent: Option<usize>,
}

/// A block with the names that its body sees.
pub(super) struct BlockDefinition<'a> {
    pub(super) block: &'a ast::Block,
    pub(super) scope: Scope,
    pub(super) parent: Option<usize>,
    /// What it can be given; `None` after a fault, which has been reported.
    pub(super) parameters: Option<Vec<ParameterSpec>>,
}

/// A value given outside the file.
pub(super) struct Override {
    pub(super) text: String,
    pub(super) path: String,
    /// Where the path is written, in a file of values.
    pub(super) key: Option<Span>,
    pub(super) value: ast::Expr,
    pub(super) used: bool,
}

pub(super) struct Checker<'a> {
    pub(super) source: &'a SourceFile,
    pub(super) registry: &'a Registry,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) errors: usize,
    /// What was reported, to report it once.
    pub(super) reported: BTreeSet<(Code, Option<Span>, String)>,
    pub(super) bindings: Vec<Binding<'a>>,
    /// Values of the chosen model that have a name.
    pub(super) named: Vec<NamedValue>,
    pub(super) blocks: Vec<BlockDefinition<'a>>,
    /// Routers whose definitions have faults.
    pub(super) faulty_routers: Vec<String>,
    pub(super) overrides: Vec<Override>,
    /// Every `let` that was reached, by its span, with its name and whether it was read.
    pub(super) lets: IndexMap<Span, (&'a str, bool)>,
    pub(super) model: ModelState,
    /// What is walked where choices do not lead; see [`Checker::aside`].
    pub(super) aside: Aside,
}

/// Where choices do not lead.
#[derive(Default)]
pub(super) struct Aside {
    /// How many of them the walk is in.
    depth: usize,
    /// What was walked; each is once, whatever the names in it mean at the time.
    walked: BTreeSet<Span>,
    /// Statements reached there, counting repetitions.
    reached: usize,
}

/// What layers tell each other about the model, so far.
#[derive(Clone)]
pub(crate) struct ModelFacts {
    /// How positions enter it.
    pub(crate) positions: Positions,
    /// Width of the token vectors; unknown before `embed`, and after a fault in it.
    pub(crate) width: Option<usize>,
    /// What later tokens can do to earlier ones.
    pub(crate) causality: Causality,
    /// Tokens that it sees at once; unknown after a fault.
    pub(crate) context: Option<usize>,
    /// Size of the vocabulary, if the file says it.
    pub(crate) vocab: Option<usize>,
}

impl Default for ModelFacts {
    fn default() -> Self {
        ModelFacts { positions: Positions::None, width: None, causality: Causality::Causal, context: None, vocab: None }
    }
}

/// What is known about the model that is being checked.
#[derive(Clone, Default)]
pub(super) struct ModelState {
    /// Whether overrides apply to it.
    pub(super) chosen: bool,
    pub(super) facts: ModelFacts,
    /// Blocks that are being expanded, outermost first.
    pub(super) expanding: Vec<usize>,
    /// Where those of them are used that were given something, outermost first.
    pub(super) given: Vec<Span>,
    /// How deep layers are nested.
    pub(super) depth: usize,
    /// Statements reached, counting repetitions.
    pub(super) reached: usize,
    /// A limit was hit and reported; nothing more is expanded.
    pub(super) stopped: bool,
    /// `embed` is late, and that has been reported.
    pub(super) late_embed: bool,
    /// Bindings of the model's own body, to tell a name that is used too early.
    pub(super) lets: Vec<(String, Span)>,
    /// An `unembed` was reached, well-placed or not.
    pub(super) unembed: bool,
    /// Iterations of repeats in the model's body so far.
    pub(super) iterations: usize,

    /// Layers that were left out because of faults in them.
    pub(super) left_out: usize,
    /// Trained numbers so far, and the layer with most of them.
    pub(super) parameters: u128,
    pub(super) largest: Option<(u128, Span)>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(source: &'a SourceFile, registry: &'a Registry) -> Self {
        Checker {
            source,
            registry,
            diagnostics: Vec::new(),
            errors: 0,
            reported: BTreeSet::new(),
            bindings: Vec::new(),
            named: Vec::new(),
            blocks: Vec::new(),
            faulty_routers: Vec::new(),
            overrides: Vec::new(),
            lets: IndexMap::new(),
            model: ModelState::default(),
            aside: Aside::default(),
        }
    }

    /// Walks what a choice does not lead to. It may be impossible there on purpose, such as a division that the condition
    /// guards, so only names, arguments and types are judged, and nothing of it counts for the model.
    pub(super) fn aside(&mut self, at: Span, walk: impl FnOnce(&mut Self)) {
        if !self.aside.walked.insert(at) {
            return;
        }
        let (model, lets) = (self.model.clone(), self.lets.len());
        self.model.reached = self.aside.reached;
        self.aside.depth += 1;
        walk(self);
        self.aside.depth -= 1;
        self.aside.reached = self.model.reached;
        self.model = model;
        self.lets.truncate(lets);
    }

    /// Whether the walk is where no choice leads.
    pub(super) fn is_aside(&self) -> bool {
        self.aside.depth > 0
    }

    /// Keeps a diagnostic, once: the body of a `repeat` and of a block is walked several times.
    pub(super) fn report(&mut self, diagnostic: Diagnostic) {
        if self.is_aside() && !holds_anywhere(diagnostic.code) {
            return;
        }
        let diagnostic = overrides::about(diagnostic);
        // The value at fault may be that of a parameter.
        let diagnostic = match self.model.given.last() {
            Some(&used) => diagnostic.secondary(used, "with what this block is given"),
            None => diagnostic,
        };
        let key = (diagnostic.code, diagnostic.span(), diagnostic.message.clone());
        if self.reported.insert(key) {
            self.errors += usize::from(diagnostic.is_error());
            if self.diagnostics.len() < MAX_DIAGNOSTICS || self.errors == 1 {
                self.diagnostics.push(diagnostic);
            }
        }
    }

    /// Errors so far, with those that are not shown.
    pub(super) fn error_count(&self) -> usize {
        self.errors
    }

    /// Warns about bindings of the model just checked that nothing reads, unless a fault may be the reason.
    pub(super) fn unused_lets(&mut self, faultless: bool) {
        for (span, (name, used)) in std::mem::take(&mut self.lets) {
            if used || !faultless || name.starts_with('_') {
                continue;
            }
            self.report(
                Diagnostic::new(Code::UnusedLet, format!("`{name}` is never used"))
                    .primary(span, "bound here")
                    .help(format!("remove the binding, or name it `_{name}` to keep it")),
            );
        }
    }

    /// Names visible at a place, nearest first.
    pub(super) fn visible(&self, scope: Scope) -> impl Iterator<Item = &Binding<'a>> {
        let mut next = scope.binding;
        std::iter::from_fn(move || {
            let binding = self.bindings.get(next?)?;
            next = binding.parent;
            Some(binding)
        })
    }

    /// Blocks visible at a place with their positions, nearest first.
    pub(super) fn visible_blocks(&self, scope: Scope) -> impl Iterator<Item = (usize, &'a ast::Block)> {
        let mut next = scope.block;
        std::iter::from_fn(move || {
            let at = next?;
            let definition = self.blocks.get(at)?;
            next = definition.parent;
            Some((at, definition.block))
        })
    }

    pub(super) fn bind(&mut self, scope: Scope, name: &'a str, value: Option<Number>, span: Span) -> Scope {
        self.bindings.push(Binding { name, value, span, parent: scope.binding });
        Scope { binding: Some(self.bindings.len() - 1), ..scope }
    }
}

/// Whether a fault of this kind is one whatever sizes are: of names, arguments and types.
fn holds_anywhere(code: Code) -> bool {
    use Code::{
        DuplicateArgument, DuplicateDefinition, MissingArgument, MissingBody, PositionalArgument, UnexpectedBody,
        UnknownArgument, UnknownLayer, UnknownLoss, UnknownName, UnknownRouter, UnknownValue, WrongType,
    };
    matches!(
        code,
        UnknownLayer
            | UnknownArgument
            | MissingArgument
            | DuplicateArgument
            | PositionalArgument
            | UnknownName
            | DuplicateDefinition
            | UnknownRouter
            | UnknownLoss
            | UnknownValue
            | MissingBody
            | UnexpectedBody
            | WrongType
    )
}
