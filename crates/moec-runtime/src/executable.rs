//! A program together with the session that holds its tensors: the only door from the runtime to a device.

use crate::batches::Windows;
use moec_ir::{Data, Function, Input, Output, Tensor, random};
use moec_plan::{BackendError, Plan, Program, Session};
use std::collections::BTreeMap;

/// Why a program could not be run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutableError {
    /// The program lacks a function.
    #[error("the program has no function `{0}`")]
    MissingFunction(Function),
    /// A function takes an input that the runtime does not know.
    #[error("`{function}` takes an input `{input}` that the runtime does not provide")]
    UnknownInput {
        /// The function.
        function: String,
        /// The input.
        input: String,
    },
    /// The number of tokens that a function takes does not fit the context.
    #[error("`{function}` takes {tokens} tokens, which is not a multiple of the context {context}")]
    Tokens {
        /// The function.
        function: String,
        /// Tokens that it takes.
        tokens: usize,
        /// Context of the model, T.
        context: usize,
    },
    /// An output has another shape than its name stands for.
    #[error("output `{output}` of `{function}` has an unexpected shape")]
    Output {
        /// The function.
        function: Function,
        /// The output.
        output: Output,
    },
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// A program, the session that runs it, and the context T of its model.
pub struct Executable<'a> {
    program: &'a Program,
    session: &'a mut dyn Session,
    context: usize,
}

/// The newest token of a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newest {
    pub(crate) token: i32,
    /// The token before it; -1 for none.
    pub(crate) previous: i32,
    /// Its position, counted from the first token that was given.
    pub(crate) position: i32,
}

/// What a run is given besides its windows; a function takes what it declares.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// State of the graph's random generator.
    pub(crate) rng: [i32; 4],
    /// What the optimiser is told: see [`moec_plan::Optimizer::hyper`].
    pub(crate) hyper: Vec<f32>,
}

impl<'a> Executable<'a> {
    /// Joins a program with the session that was prepared from it.
    ///
    /// # Errors
    /// When a function of the program takes an input that the runtime does not provide, or a number of tokens that is
    /// not a multiple of the context.
    pub fn new(program: &'a Program, session: &'a mut dyn Session, context: usize) -> Result<Self, ExecutableError> {
        for plan in &program.plans {
            let function = plan.name.clone();
            if let Some(input) = plan.inputs.iter().find(|i| !is_provided(&i.name)) {
                return Err(ExecutableError::UnknownInput { function, input: input.name.clone() });
            }
            let tokens = tokens_of(plan);
            let length = if Function::of_name(&plan.name) == Some(Function::Decode) { 1 } else { context };
            if context == 0 || tokens == 0 || !tokens.is_multiple_of(length) {
                return Err(ExecutableError::Tokens { function, tokens, context });
            }
        }
        Ok(Self { program, session, context })
    }

    /// Length of a window, T.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The program.
    pub fn program(&self) -> &'a Program {
        self.program
    }

    /// Windows or sequences that a function takes, B.
    ///
    /// # Errors
    /// When the program has no such function.
    pub fn rows(&self, function: Function) -> Result<usize, ExecutableError> {
        Ok(tokens_of(self.plan(function)?) / if function == Function::Decode { 1 } else { self.context })
    }

    /// Reads a persistent tensor.
    ///
    /// # Errors
    /// When there is none of that name or the device fails.
    pub fn read_state(&mut self, name: &str) -> Result<Tensor, ExecutableError> {
        Ok(self.session.read_state(name)?)
    }

    /// Writes persistent tensors; those that the program does not declare are left out, because a function may need only
    /// some of a model's tensors. Parameters that it wants in another order or format are written so.
    ///
    /// # Errors
    /// When a type differs or the device fails.
    pub fn write_states(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<(), ExecutableError> {
        for state in &self.program.states {
            let Some(tensor) = tensors.get(state.held()) else { continue };
            let differs = || format!("`{}` is {}, which `{}` cannot hold", state.held(), tensor.ty(), state.name);
            let stored = state.stored(tensor).ok_or_else(|| BackendError::Interface(differs()))?;
            self.session.write_state(&state.name, &stored)?;
        }
        Ok(())
    }

    fn plan(&self, function: Function) -> Result<&'a Plan, ExecutableError> {
        self.program.plan(function.name()).ok_or(ExecutableError::MissingFunction(function))
    }

    /// The outputs of a function that the runtime knows.
    pub(crate) fn outputs(&self, function: Function) -> Result<Vec<Output>, ExecutableError> {
        Ok(self.plan(function)?.outputs.iter().filter_map(|port| Output::of_name(&port.name)).collect())
    }

    /// Runs a function; it may return before the device is done.
    pub(crate) fn run(
        &mut self,
        function: Function,
        windows: &Windows,
        settings: Settings,
    ) -> Result<(), ExecutableError> {
        let tokens = Tensor::ints(windows.tokens.as_slice());
        let targets = Tensor::ints(windows.targets.as_slice());
        let rng = Tensor::ints(settings.rng);
        let hyper = Tensor::floats(settings.hyper);
        let given = [(Input::Tokens, tokens), (Input::Targets, targets), (Input::Rng, rng), (Input::Hyper, hyper)];
        self.run_with(function, &given)
    }

    /// Runs a function with those of the given inputs that it takes.
    fn run_with(&mut self, function: Function, given: &[(Input, Tensor)]) -> Result<(), ExecutableError> {
        let plan = self.plan(function)?;
        let mut inputs = Vec::with_capacity(plan.inputs.len());
        for port in &plan.inputs {
            let wanted = Input::of_name(&port.name);
            let tensor = given.iter().find(|(input, _)| Some(input) == wanted.as_ref()).map(|(_, tensor)| tensor);
            let unknown = || ExecutableError::UnknownInput { function: function.to_string(), input: port.name.clone() };
            inputs.push((port.name.as_str(), tensor.ok_or_else(unknown)?));
        }
        Ok(self.session.run(function.name(), &inputs)?)
    }

    /// The logits `[B, V]` after the last token of each of B windows of at most T tokens.
    pub(crate) fn next(&mut self, windows: &[&[i32]], rng: [i32; 4]) -> Result<Vec<f64>, ExecutableError> {
        let (mut tokens, mut rows) = (Vec::with_capacity(windows.len() * self.context), Vec::new());
        for (i, window) in windows.iter().enumerate() {
            tokens.extend_from_slice(window);
            rows.push((i * self.context + window.len().max(1) - 1) as i32);
            // What is behind the window is invisible to it where the model is causal; any other sees this padding.
            tokens.resize((i + 1) * self.context, 0);
        }
        let given =
            [(Input::Tokens, Tensor::ints(tokens)), (Input::Rows, Tensor::ints(rows)), (Input::Rng, Tensor::ints(rng))];
        self.run_with(Function::Next, &given)?;
        self.output(Function::Next, &Output::Logits)
    }

    /// The logits `[B, V]` after the newest token of each of B sequences. The tokens before it have been given in order,
    /// from position 0 on; the one before is -1 at position 0.
    pub(crate) fn decode(&mut self, newest: &[Newest]) -> Result<Vec<f64>, ExecutableError> {
        let column = |part: fn(&Newest) -> i32| Tensor::ints(newest.iter().map(part).collect::<Vec<_>>());
        let given = [
            (Input::Tokens, column(|n| n.token)),
            (Input::Positions, column(|n| n.position)),
            (Input::Previous, column(|n| n.previous)),
        ];
        self.run_with(Function::Decode, &given)?;
        self.output(Function::Decode, &Output::Logits)
    }

    /// An output of the last run.
    pub(crate) fn output(&mut self, function: Function, output: &Output) -> Result<Vec<f64>, ExecutableError> {
        Ok(self.session.output(function.name(), &output.to_string())?.to_f64())
    }

    /// A scalar output of the last run.
    pub(crate) fn scalar(&mut self, function: Function, output: &Output) -> Result<f64, ExecutableError> {
        let tensor = self.session.output(function.name(), &output.to_string())?;
        tensor.item().ok_or_else(|| ExecutableError::Output { function, output: output.clone() })
    }

    /// Logits `[T, V]` of one window, row after row, with the size of a row.
    pub(crate) fn logits(&mut self, tokens: &[i32], rng: [i32; 4]) -> Result<(Vec<f64>, usize), ExecutableError> {
        let mut window = tokens.to_vec();
        // Causality makes the padding invisible to the rows before it.
        window.resize(self.context, 0);
        let windows = Windows { targets: vec![0; window.len()], tokens: window };
        self.run(Function::Logits, &windows, Settings { rng, ..Settings::default() })?;
        let logits = self.output(Function::Logits, &Output::Logits)?;
        let vocab = logits.len() / self.context;
        if vocab == 0 || !logits.len().is_multiple_of(self.context) {
            return Err(ExecutableError::Output { function: Function::Logits, output: Output::Logits });
        }
        Ok((logits, vocab))
    }
}

/// The generator state of a run: see [`random::state`].
pub(crate) fn generator(seed: u64, step: u64) -> [i32; 4] {
    random::state(seed, step)
}

/// Whether the runtime gives an input of that name.
fn is_provided(name: &str) -> bool {
    match Input::of_name(name) {
        Some(
            Input::Tokens
            | Input::Targets
            | Input::Rng
            | Input::Hyper
            | Input::Rows
            | Input::Positions
            | Input::Previous,
        ) => true,
        Some(Input::Noise { .. } | Input::Uniform { .. } | Input::Route(_)) | None => false,
    }
}

fn tokens_of(plan: &Plan) -> usize {
    let is_tokens = |name: &str| Input::of_name(name) == Some(Input::Tokens);
    plan.inputs.iter().find(|p| is_tokens(&p.name)).map_or(0, |p| plan.buffer(p.buffer).ty.elements())
}

/// Whether every element of a tensor is a finite number.
pub(crate) fn is_finite(tensor: &Tensor) -> bool {
    match tensor.data() {
        Data::F32(v) => v.iter().all(|x| x.is_finite()),
        Data::F64(v) => v.iter().all(|x| x.is_finite()),
        Data::I32(_) => true,
    }
}
