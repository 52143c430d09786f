//! A layer of a checked model: what each kind of layer can do, whatever it is.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use moec_ir::Value;
use moec_syntax::Span;

use crate::argument::Arguments;
use crate::cost::Flops;
use crate::lower::lowering::{LowerError, Lowering, Site};
use crate::needs::Needs;
use crate::resolved::{ResolvedLayer, ResolvedValue};

/// A layer with the widths it takes and gives.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What it is.
    pub(crate) kind: Arc<dyn LayerKind>,
    /// Where it was written.
    pub span: Span,
    /// Width of what it is given; `None` for `embed`, which is given tokens.
    pub input: Option<usize>,
    /// Width of what it returns; `None` for `unembed`, whose width is the vocabulary's.
    pub output: Option<usize>,
    /// Its arguments as they were checked. Those that are more than a value, such as the experts of a `moe`, have a place
    /// only.
    pub arguments: Arguments,
}

impl Layer {
    /// Its name in the file; empty for the iteration of a `repeat`.
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// The layer as one of that kind, such as [`Moe`](crate::Moe), if it is.
    pub fn of<K: 'static>(&self) -> Option<&K> {
        let kind: &dyn Any = self.kind.as_ref();
        kind.downcast_ref()
    }

    /// Whether the result for a token follows from its activations alone.
    pub(crate) fn is_tokenwise(&self) -> bool {
        self.kind.needs() == Needs::default()
    }

    /// The layers that stand directly in it: those of a `residual`, a `mixture_of_depths`, or the iteration of a `repeat`.
    pub fn layers(&self) -> &[Layer] {
        self.kind.layers()
    }

    /// Which iteration of a `repeat` of the model's body it is, counted over all of them, if it is one.
    pub fn iteration(&self) -> Option<usize> {
        match self.kind.naming() {
            Naming::Block(index) => Some(index),
            Naming::Own | Naming::None => None,
        }
    }

    /// Where the value of an argument was written, or all of the layer for a default.
    pub fn argument_span(&self, name: &str) -> Span {
        self.arguments.span(name).unwrap_or(self.span)
    }

    fn resolved(&self) -> ResolvedLayer {
        let layer = match self.kind.naming() {
            Naming::Own | Naming::None => self.name().to_string(),
            Naming::Block(index) => format!("blocks.{index}"),
        };
        ResolvedLayer { layer, arguments: self.kind.resolved() }
    }
}

/// How the tensors of a layer are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// By the layer's name, within the names around it; the layer has a row in the table of layers.
    Own,
    /// Its layers are named as if they stood around it.
    None,
    /// By this number: an iteration of a `repeat` of the model's body.
    Block(usize),
}

/// A kind of layer with its arguments: what is built of it, and what follows from that.
pub(crate) trait LayerKind: Any + fmt::Debug + Send + Sync {
    /// Its name in the file.
    fn name(&self) -> &'static str;

    /// The layers that stand directly in it. (Experts are no layers of a `moe` in this sense: a token meets few of them.)
    fn layers(&self) -> &[Layer] {
        &[]
    }

    /// How its tensors are named.
    fn naming(&self) -> Naming {
        Naming::Own
    }

    /// Builds it on `x`, the rows of the site.
    ///
    /// # Errors
    /// Where a routing strategy or a loss of another crate misbehaves, or sizes cannot be.
    fn lower(&self, l: &mut Lowering, site: Site<'_>, x: Value) -> Result<Value, LowerError>;

    /// Operations of the forward pass per token, with sequences of `time` tokens and a vocabulary of `vocab`. Those of
    /// routers are counted by their parameters ([`Lowering::routing`]).
    fn flops(&self, time: usize, vocab: usize) -> Flops;

    /// What the result for a token depends on besides its activations, from which follows what decoding can keep.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Its arguments by name, and `layers` for one that has layers of its own.
    fn resolved(&self) -> BTreeMap<String, ResolvedValue>;
}

/// What a checking function returns for a layer without faults.
pub(crate) fn checked(kind: impl LayerKind) -> Option<Arc<dyn LayerKind>> {
    Some(Arc::new(kind))
}

/// Operations of several layers, as [`LayerKind::flops`].
pub(crate) fn flops(layers: &[Layer], time: usize, vocab: usize) -> Flops {
    layers.iter().fold(Flops::default(), |sum, layer| sum + layer.kind.flops(time, vocab))
}

/// What several layers need together.
pub(crate) fn needs(layers: &[Layer]) -> Needs {
    layers.iter().map(|layer| layer.kind.needs()).fold(Needs::default(), Needs::and)
}

/// Layers as plain data.
pub(crate) fn resolved(layers: &[Layer]) -> Vec<ResolvedLayer> {
    layers.iter().map(Layer::resolved).collect()
}
