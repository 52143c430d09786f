//! A small model from text to trained to sampled, on the float64 interpreter.

use moec::{CompileOptions, Corpus, Device, Error, SampleConfig, Session, Spec};

const MODEL: &str = "
model hello {
  context 8
  vocab   characters
  embed(width: 16, positions: learned)
  residual { layer_norm  attention(heads: 2) }
  residual { layer_norm  moe(experts: 4 * mlp(hidden: 32), route: softmax_top_k(k: 2)) }
  layer_norm
  unembed
}
train { batch 4  steps 150  seed 1  optimizer adamw(lr: 1e-2)  evaluate(every: 150, batches: 1) }
";

fn main() -> Result<(), Error> {
    let folder = std::env::temp_dir().join(format!("moec-hello-{}", std::process::id()));
    println!("one{}", train_and_sample(&folder)?);
    Ok(())
}

pub(crate) fn train_and_sample(folder: &std::path::Path) -> Result<String, Error> {
    let spec = Spec::parse("hello.moe", MODEL)?;
    let rhyme = "one two three four five, once I caught a fish alive. ".repeat(20);
    let data = spec.dataset(&Corpus::from_bytes("rhyme", rhyme.into_bytes())?)?;
    let compiled = spec.compile(data.vocab(), Device::Interpreter, &CompileOptions::default())?;
    let run = spec.create_run(folder, &data, &compiled)?;
    let mut session = Session::open(&spec, &compiled, Device::Interpreter)?;
    let summary = session.train(&data, &run)?;
    eprintln!("{} parameters, saved in {}", compiled.lowered.parameter_count(), summary.checkpoint.display());
    session.sample(data.vocab(), "one", &SampleConfig { length: 60, temperature: 0.5, ..SampleConfig::default() })
}
