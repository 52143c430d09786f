//! Prints the scores of a trained model for the first window of a text, one line of JSON for each character: an array with a
//! score for every character of the vocabulary. Computed in float64.
//!
//! usage: logits RUN TEXT_FILE

use moec::{CompileOptions, Device, Error, Function, Registry, Run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(text), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: logits RUN TEXT_FILE".into());
    };
    let registry = Registry::with_builtins();
    let run = Run::open(folder.as_ref(), &registry, Device::Interpreter, |_, _| -> Result<_, Error> {
        Ok(CompileOptions::only([Function::Logits]))
    })?;
    let context = run.spec.checked.model.context;
    let tokens: Vec<i32> = run.vocab.encode(&std::fs::read_to_string(text)?)?.into_iter().take(context).collect();
    if tokens.len() < context {
        return Err(format!("the text has {} characters, fewer than the {context} of a window", tokens.len()).into());
    }

    let mut session = Device::Interpreter.open()?.prepare(&run.compiled.program)?;
    moec::runtime::Executable::new(&run.compiled.program, &mut *session, context)?
        .write_states(&run.checkpoint.tensors)?;
    // A router that is random in evaluation, too, is given this state of the generator.
    let (tokens, rng) = (moec::ir::Tensor::ints(tokens), moec::ir::Tensor::ints([0; 4]));
    let function = Function::Logits.name();
    let plan = run.compiled.program.plan(function).ok_or("the program has no logits")?;
    let given = plan.inputs.iter().map(|port| (port.name.as_str(), if port.name == "rng" { &rng } else { &tokens }));
    session.run(function, &given.collect::<Vec<_>>())?;
    let logits = session.output(function, "logits")?.to_f64();
    for row in logits.chunks(logits.len() / context) {
        println!("{row:?}");
    }
    Ok(())
}
