//! A small model from text to trained to sampled, on the float64 interpreter.

use moec::Registry;
use moec::pipeline::{self, CompileOptions};
use moec_plan::{Backend, Interpreter};
use moec_runtime::{
    Corpus, Dataset, Executable, Kept, RunFolder, RunTexts, SampleConfig, Schedule, Silent, TrainConfig,
};
use moec_syntax::SourceFile;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

const SPEC: &str = "
model hello {
  context 8
  vocab   characters
  embed(width: 16, positions: learned)
  residual { layer_norm  attention(heads: 2) }
  residual { layer_norm  moe(experts: 4 * mlp(hidden: 32), route: softmax_top_k(k: 2)) }
  layer_norm
  unembed
}
train { batch 4 }
";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("{}", train_and_sample()?);
    Ok(())
}

pub(crate) fn train_and_sample() -> Result<String, Box<dyn std::error::Error>> {
    let source = SourceFile::new("hello.moe", SPEC);
    let checked = pipeline::check(&source, &Registry::with_builtins(), None, &[])
        .map_err(|found| found.iter().map(|d| d.render(&source, false)).collect::<String>())?;

    let corpus = Corpus::from_bytes("rhyme", b"one two three four five, once I caught a fish alive. ".repeat(20))?;
    let data = Dataset::new(&corpus, corpus.vocab()?, 0.9)?;
    let compiled = pipeline::compile(&checked.model, &checked.recipe, data.vocab().len(), &CompileOptions::default())?;

    let mut session = Interpreter.prepare(&compiled.program)?;
    let mut model = Executable::new(&compiled.program, &mut *session, checked.model.context)?;
    let states = moec::initial_states(&compiled.lowered.states, &data)?;
    moec_runtime::initialise(&mut model, 1, &compiled.lowered.parameters, &states)?;

    let folder = tempfile::tempdir()?;
    let texts = RunTexts { spec: SPEC, resolved: "", plan: "" };
    let run = RunFolder::create(&folder.path().join("hello"), &texts)?;
    let config = TrainConfig {
        steps: 150,
        seed: 1,
        schedule: Schedule::constant(1e-2),
        beta1: checked.recipe.optimizer.beta1,
        beta2: checked.recipe.optimizer.beta2,
        log_every: 50,
        evaluate_every: 0,
        evaluate_batches: 0,
        checkpoint_every: 0,
        keep: None,
    };
    moec_runtime::train(&mut model, &data, &run, &config, 0, &AtomicBool::new(false), &mut Silent)?;

    let config = SampleConfig { length: 60, temperature: 0.5, ..SampleConfig::default() };
    let mut each = |_: u64, _: &str| ControlFlow::Continue(());
    // Learned positions: keys and values are kept until the context is full.
    let texts = moec_runtime::sample(&mut model, data.vocab(), "one", 0..1, Kept::FirstWindow, &config, &mut each)?;
    Ok(format!("one{}", texts.concat()))
}
