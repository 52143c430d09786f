//! `moec import --from hf`: a run from a folder of Hugging Face's `transformers`.

use crate::Spec;
use crate::cli::args::{ImportArgs, MessageFormat};
use crate::cli::console::Console;
use crate::cli::downloads;
use crate::cli::exit::{Exit, Failure};
use crate::cli::units::bytes;
use crate::interchange::hugging_face::{ConfigError, Network, is_constant, of_config};
use crate::interchange::vocabulary;
use moec_ir::{Data, Invariant, Tensor};
use moec_model::Registry;
use moec_runtime::{Corpus, Vocab};
use moec_syntax::SourceFile;
use std::collections::BTreeMap;
use std::path::Path;

/// Larger files are refused: a vocabulary of every character of Unicode fits.
const MAX_JSON: u64 = 16 << 20;

/// Makes the run.
///
/// # Errors
/// When the folder or the data is wrong, or the language cannot express the model.
pub(super) fn run(args: &ImportArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    if args.spec.is_some() || args.model.is_some() || args.trust_spec {
        let message = "config.json says what the model is";
        return Err(Failure::new(Exit::Usage, message).help("leave --spec, --model and --trust-spec out"));
    }
    let folder = &args.file;
    let network = of_config(&read_json(&folder.join("config.json"))?).map_err(refused)?;
    let corpus = downloads::corpus(&args.data, registry, console)?;
    let vocab = characters(folder, &corpus, &network, console)?;
    let spec = spec(&network, registry, &args.set)?;
    console.diagnostics(&spec.source, &spec.checked.warnings, MessageFormat::Full);
    let context = spec.checked.model.context;
    if context > network.context {
        let message = format!("the model sees {} tokens, and `context` is {context}", network.context);
        return Err(
            Failure::new(Exit::Usage, message).help("-s context=N makes a shorter window of it, not a longer one")
        );
    }
    let mut theirs = network.named_as_now(tensors(folder)?);
    shorten_positions(&mut theirs, context);
    let made = super::Imported { spec: &spec, corpus: &corpus, vocab };
    made.save(args, console, theirs.len(), |program| {
        moec_runtime::import_tensors(&theirs, &program.states, &|name, shape| network.pieces(name, shape), &|name| {
            is_constant(name)
        })
    })
}

/// The vectors of the positions that a shorter window has.
fn shorten_positions(tensors: &mut BTreeMap<String, Tensor>, context: usize) {
    for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.ends_with("wpe.weight")) {
        let &[positions, width] = tensor.shape() else { continue };
        if positions > context {
            let values = tensor.to_f32()[..context * width].to_vec();
            let shorter = Tensor::new([context, width], Data::F32(values));
            *tensor = shorter.invariant(&format!("{name} has a row for each position"));
        }
    }
}

/// The spec of the model, laid out as `moec fmt` does.
fn spec(network: &Network, registry: &Registry, set: &[String]) -> Result<Spec, Failure> {
    let name = format!("{}.moe", network.architecture.model_type());
    let source = SourceFile::new(name.clone(), network.spec());
    let failed = |diagnostics| Failure::source(source.clone(), diagnostics, Exit::Usage);
    let text = moec_syntax::format(&source).map_err(failed)?;
    Ok(Spec::check(SourceFile::new(name, text), registry, None, set)?)
}

/// Which character each token is: what the folder says, or the characters of the text in code-point order.
fn characters(folder: &Path, corpus: &Corpus, network: &Network, console: &Console) -> Result<Vocab, Failure> {
    let path = folder.join("vocabulary.json");
    let (vocab, whose) = if path.is_file() {
        let vocab = vocabulary::read(&read_json(&path)?).ok_or_else(|| {
            let message = format!("{} is no list of distinct characters in code-point order", path.display());
            Failure::new(Exit::Data, message).help("`moec export --to hf` writes one")
        })?;
        (vocab, path.display().to_string())
    } else {
        (corpus.vocab()?, corpus.name().to_string())
    };
    if vocab.len() != network.vocab {
        let message = format!("the model has {} tokens, and {whose} has {} characters", network.vocab, vocab.len());
        return Err(Failure::new(Exit::Data, message).help(
            "a token is a character here: --data names the text whose characters, in code-point order, are its tokens",
        ));
    }
    if !path.is_file() {
        let tokens = vocab.len();
        console.note_fitted(format!(
            "took the {tokens} characters of {whose}, in code-point order, for the model's tokens"
        ));
    }
    Ok(vocab)
}

/// The tensors of the folder.
fn tensors(folder: &Path) -> Result<BTreeMap<String, Tensor>, Failure> {
    let file = folder.join("model.safetensors");
    if !file.is_file() {
        let in_parts = folder.join("model.safetensors.index.json").is_file();
        let help = if in_parts {
            "the weights are in several files: save_pretrained(.., max_shard_size=\"100GB\") writes one"
        } else {
            "save_pretrained(..) of transformers writes it"
        };
        return Err(Failure::new(Exit::Data, format!("there is no {}", file.display())).help(help));
    }
    Ok(moec_runtime::read_tensors(&file)?)
}

fn read_json(path: &Path) -> Result<serde_json::Value, Failure> {
    let failed = |e: std::io::Error| Failure::file("read", path, &e);
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_file() || about.len() > MAX_JSON {
        let message = format!("{} is no ordinary file of at most {}", path.display(), bytes(MAX_JSON));
        return Err(Failure::new(Exit::Data, message));
    }
    let text = std::fs::read(path).map_err(failed)?;
    let refused = |e| Failure::new(Exit::Data, format!("{} is no JSON: {e}", path.display()));
    serde_json::from_slice(&text).map_err(refused)
}

/// What is said of a configuration that the language has no words for.
fn refused(error: ConfigError) -> Failure {
    let failure = Failure::new(Exit::Data, error.to_string());
    match error {
        ConfigError::NoObject => failure,
        ConfigError::Architecture { why, .. } => why.into_iter().fold(failure, Failure::help).help(
            "the types that have one are gpt2, llama, mistral, qwen2, qwen3, mixtral, olmoe, qwen2_moe and qwen3_moe",
        ),
        ConfigError::Faults(faults) => faults.iter().map(ToString::to_string).fold(failure, Failure::help),
    }
}
