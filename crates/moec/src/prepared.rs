//! From files to something that runs: what training, sampling, evaluation, import and export have in common.

use crate::cli::args::DeviceName;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::{cmd, downloads};
use crate::pipeline::{self, Checked, CompileOptions, Compiled};
use crate::{devices, resolved, sources};
use moec_ir::{Data, Tensor};
use moec_model::{DataSource, Model, Registry, StateInit, TrainingText, Vocab as ModelVocab};
use moec_plan::Session;
use moec_runtime::{
    Checkpoint, CheckpointError, Corpus, DataError, Dataset, EvaluateError, Executable, ExecutableError, MakeMoeError,
    Manifest, Parts, RunError, SampleError, Split, TensorFileError, TrainError, Vocab,
};
use moec_syntax::SourceFile;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Seed of the embedded corpus: the same text whatever the seed of a run.
const CORPUS_SEED: u64 = 0;

/// What a run was asked for beyond its spec; kept in `resolved.yaml`, so that a run needs no options to be continued,
/// sampled or evaluated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    /// Which model of the file.
    pub(crate) model: Option<String>,
    /// Overrides `path=value`.
    pub(crate) set: Vec<String>,
    /// `synthetic` or the path of a text.
    pub(crate) data: String,
    /// The texts that the spec imports, directly or not, by their paths from its folder: with them the run can be
    /// loaded when the files are gone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) imports: BTreeMap<String, String>,
}

/// The request with the resolved model and recipe below it, as a run keeps them.
pub(crate) fn resolved_text(request: &Request, checked: &Checked) -> Result<String, Failure> {
    let failed = |e: serde_yaml::Error| Failure::new(Exit::Failure, format!("cannot write the request: {e}"));
    let mut head = serde_yaml::Mapping::new();
    head.insert("request".into(), serde_yaml::to_value(request).map_err(failed)?);
    let head = serde_yaml::to_string(&head).map_err(failed)?;
    Ok(head + &resolved::yaml(&checked.model, &checked.recipe))
}

/// The request of a run.
pub(crate) fn read_request(root: &Path) -> Result<Request, Failure> {
    #[derive(Deserialize)]
    struct Head {
        request: Request,
    }
    let text = moec_runtime::read_resolved(root)?;
    let head: Head = serde_yaml::from_str(&text).map_err(|e| {
        Failure::new(Exit::Data, format!("{} cannot be read: {e}", root.join("resolved.yaml").display()))
    })?;
    Ok(head.request)
}

/// The spec that a run keeps, with what it imports.
pub(crate) fn kept_source(root: &Path, request: &Request) -> Result<SourceFile, Failure> {
    let (name, text) = (root.join("spec.moe").display().to_string(), moec_runtime::read_spec(root)?);
    Ok(SourceFile::new(name, text).with_kept_imports(&request.imports))
}

/// A checked spec with its source.
pub(crate) struct Spec {
    pub(crate) source: SourceFile,
    pub(crate) checked: Checked,
}

impl Spec {
    /// Reads and checks a file.
    pub(crate) fn read(path: &Path, registry: &Registry, model: Option<&str>, set: &[String]) -> Result<Self, Failure> {
        Self::check(sources::read(path)?, registry, model, set)
    }

    /// Checks a source.
    pub(crate) fn check(
        source: SourceFile,
        registry: &Registry,
        model: Option<&str>,
        set: &[String],
    ) -> Result<Self, Failure> {
        match pipeline::check(&source, registry, model, set) {
            Ok(checked) => Ok(Self { source, checked }),
            Err(diagnostics) => Err(Failure::source(source, diagnostics, Exit::Usage)),
        }
    }

    /// Compiles for a vocabulary and makes sure that the device can hold it.
    pub(crate) fn compile(
        &self,
        vocab: &Vocab,
        device: DeviceName,
        options: &CompileOptions,
    ) -> Result<Compiled, Failure> {
        if let ModelVocab::Size(size) = self.checked.model.vocab
            && size != vocab.len()
        {
            let message = format!("the model has a vocabulary of {size}, the text has {} characters", vocab.len());
            return Err(Failure::new(Exit::Data, message).help("write `vocab characters` to take it from the text"));
        }
        let (model, recipe) = (&self.checked.model, &self.checked.recipe);
        let compiled =
            pipeline::compile(model, recipe, vocab.len(), options).map_err(|e| e.into_failure(&self.source))?;
        cmd::compile::require_memory(&compiled.memory, device, &self.source)?;
        Ok(compiled)
    }

    /// What the recipe trains on: `synthetic`, a path, which is relative to the spec's folder, or a known name, if there
    /// is no such file.
    pub(crate) fn data(&self, spec: &Path, registry: &Registry) -> String {
        match &self.checked.recipe.data {
            DataSource::Synthetic => "synthetic".to_string(),
            DataSource::Named(name) => {
                let path = spec.parent().unwrap_or(Path::new("")).join(name);
                let is_known = registry.find_data_set(name).is_some() && !path.exists();
                if is_known { name.clone() } else { path.display().to_string() }
            }
        }
    }
}

/// Reads a text, downloads a known one if there is no such file, or generates the embedded one.
pub(crate) fn corpus(data: &str, registry: &Registry, console: &Console) -> Result<Corpus, Failure> {
    let path = Path::new(data);
    match registry.find_data_set(data) {
        _ if data == "synthetic" => Ok(Corpus::synthetic(CORPUS_SEED)),
        Some(data_set) if !path.exists() => {
            let path = downloads::fetch(data_set, console)?;
            let content = std::fs::read(&path).map_err(|e| Failure::file("read", &path, &e))?;
            Ok(Corpus::from_bytes(data, content)?)
        }
        _ => Ok(Corpus::from_path(path)?),
    }
}

/// The first values of routers' states; tables are computed from the part of the text that is trained on.
///
/// # Errors
/// When a table cannot be computed from this text.
pub fn initial_states(states: &[(String, StateInit)], dataset: &Dataset) -> Result<Vec<(String, Tensor)>, Failure> {
    let embeddings = |run: &str| token_vectors(Path::new(run), dataset.vocab());
    let vocab = dataset.vocab().len();
    let text = TrainingText { tokens: dataset.tokens(Split::Train), vocab, embeddings: &embeddings };
    let resolve = |(name, init): &(String, StateInit)| match init.resolve(&text) {
        Ok(tensor) => Ok((name.clone(), tensor)),
        Err(message) => Err(Failure::new(Exit::Data, format!("`{name}` cannot be made: {message}"))),
    };
    states.iter().map(resolve).collect()
}

/// The token vectors of a trained run, `[V, C]` in the order of `vocab`.
fn token_vectors(run: &Path, vocab: &Vocab) -> Result<Tensor, String> {
    const TABLE: &str = "embed.token.weight";
    let (_, folder) = locate(run).map_err(|e| e.to_string())?;
    let manifest = moec_runtime::read_manifest(&folder).map_err(|e| e.to_string())?;
    let trained = manifest.vocab().ok_or_else(|| format!("{}: the vocabulary is damaged", folder.display()))?;
    let tensors = moec_runtime::read_tensors(&folder.join("model.safetensors")).map_err(|e| e.to_string())?;
    let table = tensors.get(TABLE).ok_or_else(|| format!("{} has no token vectors", folder.display()))?;
    let width = table.shape().last().copied().unwrap_or(1);
    let values = table.to_f32();
    let rows = (0..vocab.len() as i32).map(|token| {
        let character = vocab.character(token).unwrap_or_default();
        let row = trained.id(character).and_then(|id| usize::try_from(id).ok());
        row.and_then(|row| values.chunks(width).nth(row))
            .ok_or_else(|| format!("{} was trained on a text without {character:?}", folder.display()))
    });
    let rows = rows.collect::<Result<Vec<_>, String>>()?.concat();
    Tensor::new(vec![vocab.len(), width], Data::F32(rows)).ok_or_else(|| "the token vectors are damaged".to_string())
}

/// A run on disk with its checkpoint, compiled again.
pub(crate) struct Run {
    pub(crate) root: PathBuf,
    pub(crate) request: Request,
    pub(crate) spec: Spec,
    pub(crate) vocab: Vocab,
    pub(crate) compiled: Compiled,
    pub(crate) checkpoint: Checkpoint,
}

impl Run {
    /// Opens a run folder at its newest checkpoint, or one of its checkpoints. `options` says what is compiled.
    pub(crate) fn open(
        path: &Path,
        registry: &Registry,
        device: DeviceName,
        options: impl FnOnce(&Model, &Vocab) -> Result<CompileOptions, Failure>,
    ) -> Result<Self, Failure> {
        let (root, folder) = locate(path)?;
        let request = read_request(&root)?;
        let spec = Spec::check(kept_source(&root, &request)?, registry, request.model.as_deref(), &request.set)?;
        let manifest = moec_runtime::read_manifest(&folder)?;
        let vocab = vocabulary(&manifest, &folder)?;
        let options = CompileOptions { fixed: true, ..options(&spec.checked.model, &vocab)? };
        let compiled = spec.compile(&vocab, device, &options)?;
        let checkpoint = moec_runtime::load_checkpoint(&folder, &compiled.states, Parts::Model)?;
        Ok(Self { root, request, spec, vocab, compiled, checkpoint })
    }

    /// Puts the model on a device and hands it to `work`.
    pub(crate) fn on_device<T>(
        &self,
        device: DeviceName,
        work: impl FnOnce(&mut Executable<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let backend = devices::open(device)?;
        let mut session: Box<dyn Session> = backend.prepare(&self.compiled.program)?;
        let context = self.spec.checked.model.context;
        let mut executable = Executable::new(&self.compiled.program, &mut *session, context)?;
        executable.write_states(&self.checkpoint.tensors)?;
        work(&mut executable)
    }
}

/// The root of a run and the checkpoint that is meant.
fn locate(path: &Path) -> Result<(PathBuf, PathBuf), Failure> {
    if path.join("manifest.json").is_file() {
        let absolute = path.canonicalize().map_err(|e| Failure::file("read", path, &e))?;
        if let Some(root) = absolute.parent().and_then(Path::parent) {
            return Ok((root.to_path_buf(), absolute));
        }
    }
    // Says that there is no run before it says that there is no checkpoint.
    moec_runtime::read_spec(path)?;
    match moec_runtime::latest_checkpoint(path)? {
        Some((_, folder)) => Ok((path.to_path_buf(), folder)),
        None => Err(Failure::new(Exit::Data, format!("{} holds no checkpoint yet", path.display()))
            .help("let the training reach its first checkpoint; Ctrl-C saves one")),
    }
}

fn vocabulary(manifest: &Manifest, folder: &Path) -> Result<Vocab, Failure> {
    manifest.vocab().ok_or_else(|| Failure::new(Exit::Data, format!("{}: the vocabulary is damaged", folder.display())))
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        let failure = Failure::new(Exit::Data, error.to_string());
        match error {
            DataError::NotFound { .. } => {
                failure.help("give a UTF-8 text file, `tinyshakespeare`, or `synthetic` for the generated corpus")
            }
            DataError::TooShort { .. } => failure.help("give a longer text, or make `context` smaller (-s context=N)"),
            DataError::NotText { .. } => failure.help("convert the file to UTF-8, with `iconv` for example"),
            _ => failure,
        }
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        let exit = match error {
            CheckpointError::Write { .. } => Exit::Failure,
            _ => Exit::Data,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let exit = match error {
            RunError::NoRun { .. } => Exit::Data,
            _ => Exit::Failure,
        };
        let failure = Failure::new(exit, error.to_string());
        match error {
            RunError::NoRun { .. } => failure.help("give the folder that `moec train` wrote, runs/NAME for example"),
            RunError::Exists { .. } => failure.help("--resume continues it; --out FOLDER starts another"),
            _ => failure,
        }
    }
}

impl From<ExecutableError> for Failure {
    fn from(error: ExecutableError) -> Self {
        match error {
            ExecutableError::Backend(error) => error.into(),
            other => Failure::new(Exit::Failure, other.to_string()),
        }
    }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Data(e) => e.into(),
            TrainError::Executable(e) => e.into(),
            TrainError::Checkpoint(e) => e.into(),
            TrainError::Run(e) => e.into(),
            TrainError::Diverged { .. } => Failure::new(Exit::Diverged, error.to_string())
                .help("lower the learning rate (-s train.optimizer.lr=3e-4) or clip the gradient (-s train.clip=1.0)")
                .help("the checkpoints written before are intact"),
        }
    }
}

impl From<EvaluateError> for Failure {
    fn from(error: EvaluateError) -> Self {
        match error {
            EvaluateError::Data(e) => e.into(),
            EvaluateError::Executable(e) => e.into(),
        }
    }
}

impl From<SampleError> for Failure {
    fn from(error: SampleError) -> Self {
        match error {
            SampleError::Executable(e) => e.into(),
            SampleError::Setting { .. } | SampleError::Prompt(_) => Failure::new(Exit::Usage, error.to_string()),
            SampleError::Vocabulary { .. } | SampleError::NotFinite => Failure::new(Exit::Data, error.to_string()),
        }
    }
}

impl From<TensorFileError> for Failure {
    fn from(error: TensorFileError) -> Self {
        Failure::new(Exit::Data, error.to_string())
    }
}

impl From<MakeMoeError> for Failure {
    fn from(error: MakeMoeError) -> Self {
        Failure::new(Exit::Data, error.to_string())
            .help("makeMoE's model has learned positions, layer norms, attention and mixtures of relu experts")
    }
}
