//! A `.moe` text that was checked: where everything begins.

use crate::device::Device;
use crate::error::{self, Error, Messages};
use crate::pipeline::{self, Checked, CompileOptions, Compiled};
use crate::request::{self, Request, yaml};
use crate::units::bytes;
use moec_model::{DataSource, Recipe, Registry, Vocab as ModelVocab};
use moec_plan::MemoryReport;
use moec_runtime::{Corpus, Dataset, RunFolder, RunTexts, Vocab};
use moec_syntax::{Code, Diagnostic, MAX_SOURCE_BYTES, SourceFile};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// A `.moe` text whose model and recipe passed every check.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The text, with those that it imports.
    pub source: SourceFile,
    /// The model and the recipe.
    pub checked: Checked,
    /// Which model of the text was asked for.
    model: Option<String>,
    /// Overrides `path=value`.
    set: Vec<String>,
}

impl Spec {
    /// Checks a text that imports nothing and uses the built-in routers. The name stands in messages.
    ///
    /// # Errors
    /// [`Error::Spec`] with everything that is wrong with the text.
    pub fn parse(name: &str, text: &str) -> Result<Self, Error> {
        Self::check(SourceFile::new(name, text), &Registry::with_builtins(), None, &[])
    }

    /// Reads and checks a file with what it imports. `model` says which of several models is meant; `set` overrides
    /// values: `width=64`, `train.steps=200`.
    ///
    /// # Errors
    /// When the file cannot be read, or [`Error::Spec`] with everything that is wrong with it.
    pub fn read(path: &Path, registry: &Registry, model: Option<&str>, set: &[String]) -> Result<Self, Error> {
        Self::check(read_source(path)?, registry, model, set)
    }

    /// Checks a source as [`Spec::read`] does.
    ///
    /// # Errors
    /// [`Error::Spec`] with everything that is wrong with it.
    pub fn check(source: SourceFile, registry: &Registry, model: Option<&str>, set: &[String]) -> Result<Self, Error> {
        let source = source.with_overrides(set);
        match pipeline::check(&source, registry, model) {
            Ok(checked) => Ok(Self { source, checked, model: model.map(str::to_string), set: set.to_vec() }),
            Err(diagnostics) => Err(Error::Spec(Messages::new(&source, diagnostics))),
        }
    }

    /// A text with its vocabulary, divided as the recipe says.
    ///
    /// # Errors
    /// When the text has too many distinct characters, or is too short to be divided.
    pub fn dataset(&self, corpus: &Corpus) -> Result<Dataset, Error> {
        Ok(Dataset::new(corpus, corpus.vocab()?, self.checked.recipe.split)?)
    }

    /// Compiles for a vocabulary and makes sure that the device can hold it.
    ///
    /// # Errors
    /// [`Error::Vocabulary`] when the file names another number of characters, [`Error::Build`] when the graph does not
    /// fit together, [`Error::TooLarge`] when the device has not enough memory.
    pub fn compile(&self, vocab: &Vocab, device: Device, options: &CompileOptions) -> Result<Compiled, Error> {
        let (model, recipe) = (&self.checked.model, &self.checked.recipe);
        if let ModelVocab::Size(size) = model.vocab
            && size != vocab.len()
        {
            return Err(Error::Vocabulary { model: size, text: vocab.len() });
        }
        let options = CompileOptions { limits: device.launch_limits(), ..options.clone() };
        let compiled = pipeline::compile(model, recipe, vocab.len(), &options).map_err(|e| e.at(&self.source))?;
        require_memory(&compiled.memory, device, &self.source)?;
        Ok(compiled)
    }

    /// The same model and overrides with another text, and other texts that it imports. What a run was
    /// told to freeze is not what a new one is.
    ///
    /// # Errors
    /// [`Error::Spec`] with everything that is wrong with it.
    pub(crate) fn rewritten(
        &self,
        text: String,
        imports: BTreeMap<String, String>,
        registry: &Registry,
    ) -> Result<Self, Error> {
        // The file of the old text does not have these lines.
        let name = self.folder().join("new-model.moe").display().to_string();
        let source = SourceFile::new(name, text).with_kept_imports(&imports);
        let set: Vec<String> = self.set.iter().filter(|given| !request::freezes(given)).cloned().collect();
        Self::check(source, registry, self.model.as_deref(), &set)
    }

    /// What the recipe trains on: `synthetic`, a path, which is relative to the spec's folder, or a known name, if there
    /// is no such file.
    pub fn data(&self, spec: &Path, registry: &Registry) -> String {
        data_from(&self.checked.recipe, spec, registry)
    }

    /// The folder of the file, from which it names other files.
    pub fn folder(&self) -> &Path {
        Path::new(self.source.name()).parent().unwrap_or(Path::new(""))
    }

    /// What a run of this spec on some data is asked for.
    pub fn request(&self, data: &Dataset) -> Request {
        Request {
            model: self.model.clone(),
            set: self.set.clone(),
            data: data.name().to_string(),
            data_sha256: Some(data.sha256().to_string()),
            device: None,
            imports: imported(&self.source),
        }
    }

    /// Makes the folder of a run on some data, which keeps the spec, the request and the plan.
    ///
    /// # Errors
    /// When the folder holds anything, or cannot be written.
    pub fn create_run(&self, root: &Path, data: &Dataset, compiled: &Compiled) -> Result<RunFolder, Error> {
        self.create_run_with_plan(root, data, &yaml(&moec_plan::listing(&compiled.program)))
    }

    pub(crate) fn create_run_with_plan(&self, root: &Path, data: &Dataset, plan: &str) -> Result<RunFolder, Error> {
        let resolved = self.request(data).with_resolved(&self.checked.model, &self.checked.recipe);
        Ok(RunFolder::create(root, &RunTexts { spec: self.source.text(), resolved: &resolved, plan })?)
    }
}

/// What a recipe trains on; see [`Spec::data`].
pub(crate) fn data_from(recipe: &Recipe, spec: &Path, registry: &Registry) -> String {
    match &recipe.data {
        DataSource::Synthetic => "synthetic".to_string(),
        DataSource::Named(name) => {
            let path = spec.parent().unwrap_or(Path::new("")).join(name);
            let is_known = registry.find_data_set(name).is_some() && !path.exists();
            if is_known { name.clone() } else { path.display().to_string() }
        }
    }
}

/// Reads a `.moe` file and what it imports, no file further than the largest size that is accepted. An import that
/// cannot be read is reported by whoever parses the source.
///
/// # Errors
/// When the file cannot be read, is too large, or is not UTF-8.
pub fn read_source(path: &Path) -> Result<SourceFile, Error> {
    let read = read_bytes(path).map_err(|source| Error::File { path: path.to_path_buf(), source })?;
    source_in(path.parent().unwrap_or(Path::new("")), &path.display().to_string(), &read)
}

/// A source from bytes, with what it imports from a folder.
///
/// # Errors
/// When they are too many or not UTF-8.
pub(crate) fn source_in(folder: &Path, name: &str, bytes: &[u8]) -> Result<SourceFile, Error> {
    let source = source_from_bytes(name, bytes)?;
    Ok(source.with_imports(|import| {
        let from_disk = || read_bytes(&folder.join(import)).map_err(|e| error::reason(&e));
        moec_model::library::read(import).unwrap_or_else(from_disk)
    }))
}

fn read_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_SOURCE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A source from bytes.
///
/// # Errors
/// When they are too many or not UTF-8.
pub(crate) fn source_from_bytes(name: &str, bytes: &[u8]) -> Result<SourceFile, Error> {
    SourceFile::from_bytes(name, bytes)
        .map_err(|diagnostic| Error::Spec(Messages::new(&SourceFile::new(name, ""), vec![diagnostic])))
}

/// The texts that a source imports, by their paths.
fn imported(source: &SourceFile) -> BTreeMap<String, String> {
    source.imported().map(|(path, file)| (path.to_string(), file.text().to_string())).collect()
}

/// Refuses a model that the device cannot hold, naming the largest tensors where they come from.
///
/// # Errors
/// [`Error::TooLarge`] when the program needs more than the device has.
pub fn require_memory(memory: &MemoryReport, device: Device, source: &SourceFile) -> Result<(), Error> {
    let needed = memory.total_bytes();
    match device.available_memory() {
        Some(available) if needed > available => {
            Err(Error::TooLarge(Messages::new(source, vec![too_large(memory, needed, available, device)])))
        }
        _ => Ok(()),
    }
}

fn too_large(memory: &MemoryReport, needed: u64, available: u64, device: Device) -> Diagnostic {
    let message = format!(
        "the model needs {} of memory, but {} has {} available",
        bytes(needed),
        device.name(),
        bytes(available)
    );
    let mut diagnostic = Diagnostic::new(Code::ModelTooLarge, message);
    for (i, tensor) in memory.largest.iter().take(5).enumerate() {
        diagnostic = diagnostic.note(format!("{} {} takes {}", tensor.name, tensor.ty, bytes(tensor.bytes)));
        if i == 0
            && let Some(origin) = tensor.origin
        {
            diagnostic = diagnostic.primary(moec_model::span_of(origin), "the largest tensor belongs to this");
        }
    }
    diagnostic.help("reduce the width, the number of experts or layers, or the batch")
}
