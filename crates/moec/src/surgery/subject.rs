//! A model with its numbers, wherever they come from.

use crate::device::Device;
use crate::error::Error;
use crate::pipeline::{CompileOptions, Compiled};
use crate::run::Run;
use crate::spec::Spec;
use moec_ir::Tensor;
use moec_model::{Lowered, ResolvedModel};
use moec_plan::StateDecl;
use moec_runtime::Vocab;
use std::collections::BTreeMap;

/// A model with its numbers: a run, or what was made of some.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What it is called in messages.
    pub name: String,
    /// Its text, checked.
    pub spec: Spec,
    /// Its characters.
    pub vocab: Vocab,
    /// Its training step as it was lowered: parameters, states, layers.
    pub lowered: Lowered,
    /// Its persistent tensors, as a checkpoint holds them.
    pub states: Vec<StateDecl>,
    /// Parameters and states of routers, by name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Subject {
    /// A model with these numbers.
    ///
    /// # Errors
    /// When it does not compile.
    pub(crate) fn new(
        name: String,
        spec: Spec,
        vocab: Vocab,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self, Error> {
        let compiled = spec.compile(&vocab, Device::Cpu, &CompileOptions::only([]))?;
        let Compiled { lowered, states, .. } = compiled;
        Ok(Self { name, spec, vocab, lowered, states, tensors })
    }

    /// The model as plain data.
    pub(crate) fn resolved(&self) -> ResolvedModel {
        self.spec.checked.model.to_resolved()
    }
}

impl From<Run> for Subject {
    fn from(run: Run) -> Self {
        let Run { root, spec, vocab, compiled, checkpoint, .. } = run;
        let Compiled { lowered, states, .. } = compiled;
        Self { name: root.display().to_string(), spec, vocab, lowered, states, tensors: checkpoint.tensors }
    }
}
