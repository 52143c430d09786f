//! A model with its numbers, wherever they come from.

use super::{ShapeDifference, SurgeryError};
use crate::device::Device;
use crate::error::Error;
use crate::pipeline::{CompileOptions, Compiled, Function};
use crate::run::Run;
use crate::spec::Spec;
use moec_ir::{Tensor, TensorType};
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

    /// Parameters and states of routers, without the moments of the optimiser.
    pub(crate) fn model_states(&self) -> Vec<StateDecl> {
        self.states.iter().filter(|state| state.kind.of_model()).cloned().collect()
    }

    /// A tensor, from which `of` is to be made.
    ///
    /// # Errors
    /// When it is not there.
    pub(crate) fn tensor(&self, name: &str, of: &str) -> Result<&Tensor, SurgeryError> {
        let missing = || SurgeryError::Missing { run: self.name.clone(), name: name.to_string(), of: of.to_string() };
        self.tensors.get(name).ok_or_else(missing)
    }

    /// As [`Self::tensor`], of the type that it has in another model.
    ///
    /// # Errors
    /// When it is not there, or of another type.
    pub(crate) fn tensor_of(
        &self,
        name: &str,
        of: &str,
        expected: &TensorType,
        other: &str,
    ) -> Result<&Tensor, SurgeryError> {
        let tensor = self.tensor(name, of)?;
        let found = tensor.ty();
        if found == *expected {
            return Ok(tensor);
        }
        let (name, run, other, expected) = (name.to_string(), self.name.clone(), other.to_string(), expected.clone());
        Err(SurgeryError::Shape(Box::new(ShapeDifference { name, run, found, other, expected })))
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
