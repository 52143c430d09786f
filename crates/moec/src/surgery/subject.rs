//! A model with its numbers, wherever they come from.

use crate::device::Device;
use crate::error::Error;
use crate::pipeline::{CompileOptions, Compiled, Function};
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
    /// What tells it from others, however it is called: the hash of its numbers on the disk.
    pub(crate) identity: String,
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
        // As training sees it: its checkpoint has the moments of the optimiser, and what it freezes must be there.
        let compiled = spec.compile(&vocab, Device::Cpu, &CompileOptions::only([Function::TrainStep]))?;
        let Compiled { lowered, states, .. } = compiled;
        let identity = name.clone();
        Ok(Self { name, spec, vocab, lowered, states, tensors, identity })
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
        let name = root.display().to_string();
        let files = checkpoint.manifest.files.iter().map(|file| file.sha256.as_str());
        let identity = files.chain([checkpoint.manifest.model_sha256.as_str()]).collect();
        Self { name, spec, vocab, lowered, states, tensors: checkpoint.tensors, identity }
    }
}
