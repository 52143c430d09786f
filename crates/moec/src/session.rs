//! A compiled model on a device: its tensors, and what can be done with them.

use crate::device::Device;
use crate::error::Error;
use crate::pipeline::{Compiled, Function};
use crate::sampling::{Decode, Sampling};
use crate::spec::Spec;
use crate::training::{initial_states, train_config};
use moec_plan::Backend;
use moec_runtime::{
    Dataset, Executable, Profiled, Reporter, Resumption, RunFolder, SampleConfig, Silent, Split, SplitLoss, Summary,
    Timings, TrainConfig, Vocab,
};
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

/// A compiled model on a device: its tensors, and what can be done with them.
pub struct Session<'a> {
    spec: &'a Spec,
    compiled: &'a Compiled,
    session: Profiled,
}

impl<'a> Session<'a> {
    /// Opens a device and allocates everything that the program needs there. All tensors are zero until
    /// [`Session::begin`] or [`Session::train`] fills them.
    ///
    /// # Errors
    /// When there is no such device, or it cannot hold or run the program.
    pub fn open(spec: &'a Spec, compiled: &'a Compiled, device: Device) -> Result<Self, Error> {
        Self::on(&*device.open()?, spec, compiled)
    }

    /// As [`Session::open`], on a device that is open.
    ///
    /// # Errors
    /// When the device cannot hold or run the program.
    pub fn on(backend: &dyn Backend, spec: &'a Spec, compiled: &'a Compiled) -> Result<Self, Error> {
        let mut session = Profiled::new(backend.prepare(&compiled.program)?, Function::TrainStep);
        session.pause();
        Ok(Self { spec, compiled, session })
    }

    /// Trains to the last step of the recipe, from the newest checkpoint of the run or from the beginning, and saves.
    ///
    /// # Errors
    /// When all checkpoints are damaged, one is of something else, training diverges, or the device or the folder fails.
    pub fn train(&mut self, data: &Dataset, folder: &RunFolder) -> Result<Summary, Error> {
        let config = train_config(&self.spec.checked.recipe);
        let start = self.begin(data, folder, &config)?.step;
        self.continue_from(start, data, folder, &config, &AtomicBool::new(false), &mut Silent)
    }

    /// Puts the tensors that a run goes on with on the device, those of its newest checkpoint that is whole or the first
    /// ones, and returns their step.
    ///
    /// # Errors
    /// When all checkpoints are damaged, one is of another model, spec, text or seed, or the device fails.
    pub fn begin(&mut self, data: &Dataset, folder: &RunFolder, config: &TrainConfig) -> Result<Resumption, Error> {
        match moec_runtime::resume(&mut self.executable()?, data, folder, config)? {
            Some(resumption) => Ok(resumption),
            None => self.initialise(data, config.seed).map(|()| Resumption::default()),
        }
    }

    /// Puts the first tensors on the device.
    ///
    /// # Errors
    /// When a router's table cannot be computed from this text, or the device fails.
    pub fn initialise(&mut self, data: &Dataset, seed: u64) -> Result<(), Error> {
        let lowered = &self.compiled.lowered;
        let states = initial_states(&lowered.states, data, self.spec.folder())?;
        Ok(moec_runtime::initialise(&mut self.executable()?, seed, &lowered.parameters, &states)?)
    }

    /// Trains from a step that [`Session::begin`] returned until the last one, or until `stop` is set, and saves. The
    /// reporter is told what happens.
    ///
    /// # Errors
    /// As [`Session::train`].
    pub fn continue_from(
        &mut self,
        start: u64,
        data: &Dataset,
        folder: &RunFolder,
        config: &TrainConfig,
        stop: &AtomicBool,
        reporter: &mut dyn Reporter,
    ) -> Result<Summary, Error> {
        Ok(moec_runtime::train(&mut self.executable()?, data, folder, config, start, stop, reporter)?)
    }

    /// The loss over a part of a text, each character once.
    ///
    /// # Errors
    /// When the part is too short, the program has no function for it, or the device fails.
    pub fn evaluate(&mut self, data: &Dataset, split: Split) -> Result<SplitLoss, Error> {
        let seed = self.spec.checked.recipe.seed;
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let loss = moec_runtime::evaluate_split(&mut self.executable()?, data, split, seed, None, go_on)?;
        Ok(moec_ir::Invariant::invariant(loss, "an evaluation that nobody stops has a loss"))
    }

    /// A text that goes on after the prompt, which is not part of it.
    ///
    /// # Errors
    /// When a setting or the prompt is wrong, the model has diverged, the program has no function for it, or the device
    /// fails.
    pub fn sample(&mut self, vocab: &Vocab, prompt: &str, config: &SampleConfig) -> Result<String, Error> {
        let model = &self.spec.checked.model;
        let sampling = Sampling::new(model, Decode::Auto, 1, prompt.chars().count(), config.length)?;
        let go_on = &mut |_: u64, _: &str| ControlFlow::Continue(());
        let texts = moec_runtime::sample(&mut self.executable()?, vocab, prompt, 0..1, sampling.kept, config, go_on)?;
        Ok(texts.concat())
    }

    /// From here on every kernel of a function is waited for and timed: the same bits, but slower.
    pub fn time_kernels(&mut self, function: Function) {
        self.session.time_runs_of(function);
    }

    /// What was timed.
    pub fn timings(&self) -> &Timings {
        self.session.timings()
    }

    /// The program with its tensors, as `moec_runtime` takes it.
    ///
    /// # Errors
    /// When the program has a function that no command of moec would run.
    pub fn executable(&mut self) -> Result<Executable<'_>, Error> {
        Ok(Executable::new(&self.compiled.program, &mut self.session, self.spec.checked.model.context)?)
    }
}
