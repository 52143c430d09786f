//! A run on disk: a trained model that can be used again.

use crate::device::Device;
use crate::error::Error;
use crate::locate::Located;
use crate::pipeline::{CompileOptions, Compiled};
use crate::request::Request;
use crate::session::Session;
use crate::spec::Spec;
use moec_model::{Model, Registry};
use moec_plan::Backend;
use moec_runtime::{Checkpoint, Parts, PassedOver, Vocab};
use moec_syntax::SourceFile;
use std::path::{Path, PathBuf};

/// A run on disk with its checkpoint, compiled again.
#[derive(Debug)]
pub struct Run {
    /// Its folder.
    pub root: PathBuf,
    /// What it was asked for.
    pub request: Request,
    /// The spec that it keeps.
    pub spec: Spec,
    /// The characters that it was trained on.
    pub vocab: Vocab,
    /// The functions that were asked for.
    pub compiled: Compiled,
    /// The trained tensors: the moving averages of parameters where the recipe has them.
    pub checkpoint: Checkpoint,
    /// Newer checkpoints that are damaged, the newest first.
    pub passed_over: Vec<PassedOver>,
}

impl Run {
    /// Opens a run folder at its newest checkpoint that is whole, or one of its checkpoints. `options` says what is compiled for the
    /// device, once the model and its characters are known; where its memory is too small for as many texts at once, half as
    /// many are tried, down to one.
    ///
    /// # Errors
    /// When there is no run or no checkpoint, either is damaged, or the device cannot hold the model; or what `options`
    /// fails with.
    pub fn open<E: From<Error>>(
        path: &Path,
        registry: &Registry,
        device: Device,
        options: impl FnOnce(&Model, &Vocab) -> Result<CompileOptions, E>,
    ) -> Result<Self, E> {
        let located = Located::at(path)?;
        let root = located.root.clone();
        let request = Request::read(&root)?;
        let spec = Spec::check(kept_source(&root, &request)?, registry, request.model.as_deref(), &request.set)?;
        // All checkpoints of a run have one vocabulary.
        let (manifest, _) = located.read(moec_runtime::read_manifest)?;
        let vocab = manifest.vocab().ok_or_else(|| Error::DamagedVocabulary(root.clone()))?;
        let options: CompileOptions = options(&spec.checked.model, &vocab)?;
        // Nothing here trains the model.
        let mut options = CompileOptions { weights: Some(options.weights.unwrap_or_default()), ..options };
        let compiled = loop {
            match spec.compile(&vocab, device, &options) {
                Err(Error::TooLarge(_)) if options.samples > 1 => options.samples /= 2,
                compiled => break compiled?,
            }
        };
        let load = |folder: &Path| match spec.checked.recipe.average {
            Some(_) => moec_runtime::load_averages(folder, &compiled.states),
            None => moec_runtime::load_checkpoint(folder, &compiled.states, Parts::Model),
        };
        let (checkpoint, passed_over) = located.read(load)?;
        Ok(Self { root, request, spec, vocab, compiled, checkpoint, passed_over })
    }

    /// Puts the model on a device.
    ///
    /// # Errors
    /// When there is no such device, or it fails.
    pub fn session(&self, device: Device) -> Result<Session<'_>, Error> {
        self.session_on(&*device.open()?)
    }

    /// Puts the model on a device that is open.
    ///
    /// # Errors
    /// When the device fails.
    pub fn session_on(&self, backend: &dyn Backend) -> Result<Session<'_>, Error> {
        let mut session = Session::on(backend, &self.spec, &self.compiled)?;
        session.executable()?.write_states(&self.checkpoint.tensors)?;
        Ok(session)
    }
}

/// The spec that a run keeps, with what it imports.
pub(crate) fn kept_source(root: &Path, request: &Request) -> Result<SourceFile, Error> {
    let (name, text) = (root.join("spec.moe").display().to_string(), moec_runtime::read_spec(root)?);
    Ok(SourceFile::new(name, text).with_kept_imports(&request.imports))
}
