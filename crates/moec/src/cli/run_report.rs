//! What a run's folder holds, collected for a report.

use crate::cli::cmd::compare;
use crate::cli::cmd::compile::numbered;
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::exit::Failure;
use crate::cli::routing::record::Record;
use crate::cli::routing::{evidence, forward};
use crate::cli::units::{bytes, grouped, milliseconds};
use crate::cli::{downloads, run_text, shell};
use crate::diagnosis::{Diagnosis, Evidence, diagnose, looked_for, what_is_missing};
use crate::locate::Located;
use crate::pipeline::{self, CompileOptions, Compiled};
use crate::report::{
    Choice, CommandText, Finding, KernelTime, RoutedLayer, RoutedText, Routes, RunReport, WarningText,
};
use crate::run::kept_source;
use crate::{Device, Error, Function, Request, Run, Spec};
use moec_model::{Mode, Registry};
use moec_runtime::{Corpus, Dataset, Metric, Split, Vocab};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Characters of a sample that are shown, at most.
const SAMPLE: usize = 3000;

/// A vocabulary to compile for where that of the run is not known yet.
const SOME_VOCABULARY: usize = 65;

/// What is wrong with a run.
pub(crate) struct Findings {
    /// The faults, the worst first.
    pub(crate) found: Vec<Finding>,
    /// What keeps them from being all, if anything does.
    pub(crate) missing: Option<String>,
    /// The faults that were looked for, in the words of who has none of them.
    pub(crate) looked_for: Vec<&'static str>,
}

/// A run that can be reported about.
pub(crate) struct Subject {
    /// As it was named.
    path: PathBuf,
    pub(crate) root: PathBuf,
    request: Request,
    spec: Spec,
    compiled: Compiled,
    metrics: Vec<Metric>,
    /// The characters that it was trained on, if it has saved anything or its text is at hand.
    vocab: Option<Vocab>,
    /// Step of the checkpoint, if it has saved anything.
    step: Option<u64>,
    corpus: Option<Corpus>,
}

/// A text that is sent through models.
pub(crate) struct Text {
    text: String,
    /// What text it is.
    source: String,
}

impl Subject {
    /// Reads a run.
    ///
    /// # Errors
    /// When there is none, it is damaged, or its model cannot be compiled.
    pub(crate) fn read(path: &Path, registry: &Registry, console: &Console) -> Result<Self, Failure> {
        let located = Located::at(path)?;
        let root = located.root.clone();
        let request = Request::read(&root)?;
        let spec = Spec::check(kept_source(&root, &request)?, registry, request.model.as_deref(), &request.set)?;
        let mut metrics = moec_runtime::read_metrics(&root)?;
        if !metrics.iter().any(|m| matches!(m, Metric::Evaluation(_))) {
            metrics.extend(compare::evaluation(&root).map(Metric::Evaluation));
        }
        let manifest = match located.read(moec_runtime::read_manifest) {
            Ok((manifest, _)) => Some(manifest),
            Err(Error::NoCheckpoint(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let step = manifest.as_ref().map(|m| m.step);
        let corpus = corpus(&request, &root, registry, console);
        let vocab = manifest.and_then(|m| m.vocab()).or_else(|| corpus.as_ref()?.vocab().ok());
        let size = vocab.as_ref().map_or(SOME_VOCABULARY, Vocab::len);
        let options = CompileOptions::only([Function::TrainStep, Function::Evaluate]);
        let compiled = pipeline::compile(&spec.checked.model, &spec.checked.recipe, size, &options);
        let compiled = compiled.map_err(|e| e.at(&spec.source))?;
        // A link to the newest run will lead elsewhere tomorrow.
        let path = if path.starts_with(&root) { path.to_path_buf() } else { root.clone() };
        Ok(Self { path, root, request, spec, compiled, metrics, vocab, step, corpus })
    }

    /// The beginning of the held-out text, or of the training text where nothing is held out, or else of the last sample.
    pub(crate) fn text(&self, characters: usize) -> Option<Text> {
        let begin = |text: &str| text.chars().take(characters).collect::<String>();
        let recipe = &self.spec.checked.recipe;
        let dataset = |corpus: &Corpus| Dataset::new(corpus, self.vocab.clone()?, recipe.split).ok();
        let text = match self.corpus.as_ref().and_then(dataset) {
            Some(dataset) => {
                let (split, name) = match dataset.is_held_out() {
                    true => (Split::Validation, "held-out part"),
                    false => (Split::Train, "text that was trained on,"),
                };
                let tokens = dataset.tokens(split);
                let text = dataset.vocab().decode(&tokens.range(0..tokens.len().min(characters)).to_vec());
                Text { text, source: format!("the beginning of the {name} of {}", dataset.name()) }
            }
            None => {
                let (name, text) = sample(&self.root)?;
                Text { text: begin(&text), source: format!("the sample {name}: the training text is not at hand") }
            }
        };
        (!text.text.is_empty()).then_some(text)
    }

    /// Everything but the routes and the diagnoses, which may need them.
    pub(crate) fn report(&self) -> RunReport {
        let checked = &self.spec.checked;
        let (model, recipe, source) = (&checked.model, &checked.recipe, &self.spec.source);
        let warning = |warning: &moec_syntax::Diagnostic| WarningText {
            rendered: warning.render(source, false),
            explanation: warning.code.explain(),
        };
        RunReport {
            path: self.path.display().to_string(),
            model: model.name.clone(),
            seed: recipe.seed,
            identity: self.identity(),
            summary: self.summary(),
            spec: source.text().to_string(),
            imports: source.imported().map(|(path, file)| (path.to_string(), file.text().to_string())).collect(),
            set: self.request.set.clone(),
            warnings: checked.warnings.iter().map(warning).collect(),
            metrics: self.metrics.clone(),
            facts: self.facts(),
            kernels: kernels(&self.root),
            sample: sample(&self.root),
            commands: self.commands(),
            diagnoses: Vec::new(),
            missing: None,
            looked_for: Vec::new(),
            routes: Routes::default(),
        }
    }

    /// What is wrong with the run. `noise` is what was found out beside its routes.
    pub(crate) fn findings(&self, noise: BTreeMap<String, f64>) -> Findings {
        let layers = &self.compiled.lowered.moe_layers;
        let turns = evidence::turns(&self.root, &self.compiled.states, layers);
        let (vocab, recipe) = (self.vocab.as_ref().map(Vocab::len), Some(&self.spec.checked.recipe));
        let evidence = Evidence { layers, metrics: &self.metrics, vocab, recipe, noise, turns };
        let source = &self.spec.source;
        let finding = |diagnosis: Diagnosis| Finding { line: diagnosis.line(source), diagnosis };
        Findings {
            found: diagnose(&evidence).into_iter().map(finding).collect(),
            missing: what_is_missing(&evidence),
            looked_for: looked_for(&evidence),
        }
    }

    /// Whether there is a router with noise whose effect can be measured.
    pub(crate) fn is_noisy(&self) -> bool {
        self.step.is_some() && self.compiled.lowered.moe_layers.iter().any(evidence::is_noisy)
    }

    /// What the run reported.
    pub(crate) fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// What it was asked for.
    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Where the characters of a text go, and by layers with noise in training which share of them it sends elsewhere.
    ///
    /// # Errors
    /// When the run's checkpoint or the device fails.
    pub(crate) fn routes(
        &self,
        text: &Text,
        registry: &Registry,
        device: Device,
        devices: Devices,
        console: &Console,
    ) -> Result<(Routes, BTreeMap<String, f64>), Failure> {
        let unknown = |why: &str| Ok((Routes::Unknown(why.to_string()), BTreeMap::new()));
        let Some(vocab) = self.vocab.as_ref().filter(|_| self.step.is_some()) else {
            return unknown("there is no checkpoint yet, so there is no router to ask");
        };
        if let Err(error) = vocab.encode(&text.text) {
            return unknown(&format!("the text cannot be read by this model: {error}"));
        }
        let none = |_: &_, _: &_| -> Result<_, Failure> { Ok(CompileOptions::only([])) };
        let run = Run::open(&self.path, registry, device, none)?;
        console.opened(&run);
        let record = forward::recorded(&run, &text.text, 0, Mode::Evaluate, device, devices)?;
        if record.header.layers.is_empty() {
            return unknown("the model has no router");
        }
        let noise = evidence::noise(&run, &record, device, devices)?;
        Ok((Routes::Of(routed_text(&record, text)), noise))
    }

    /// All that a run is asked for but its seed.
    fn identity(&self) -> String {
        let checked = &self.spec.checked;
        let mut recipe = checked.recipe.to_resolved();
        recipe.remove("seed");
        let data = self.request.data_sha256.as_ref().unwrap_or(&self.request.data);
        format!("{:?} {recipe:?} {data}", checked.model.to_resolved())
    }

    fn summary(&self) -> String {
        let lowered = &self.compiled.lowered;
        let mut parts = Vec::new();
        if self.vocab.is_some() {
            let measured = self.metrics.iter().rev().find_map(|metric| match metric {
                Metric::Evaluation(evaluation) => evaluation.active_parameters,
                _ => None,
            });
            let measured = measured.map(|n| format!(" ({} as measured)", grouped(n.round() as u64)));
            parts.push(format!(
                "{} parameters, {} active per token{}",
                grouped(lowered.parameter_count() as u64),
                grouped(lowered.active_parameter_count() as u64),
                measured.unwrap_or_default()
            ));
        }
        let mut kinds: Vec<(String, usize)> = Vec::new();
        for moe in &lowered.moe_layers {
            let shared = if moe.shared > 0 { format!(" and {} shared", moe.shared) } else { String::new() };
            let of = (moe.experts_per_token * 100.0).round() / 100.0;
            let kind = format!("{of} of {}{shared} by {}", numbered(moe), moe.strategy);
            match kinds.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, count)) => *count += 1,
                None => kinds.push((kind, 1)),
            }
        }
        let layers = |n: usize| if n == 1 { "1 mixture layer".to_string() } else { format!("{n} mixture layers") };
        parts.extend(kinds.into_iter().map(|(kind, count)| format!("{} of {kind}", layers(count))));
        if lowered.moe_layers.is_empty() {
            parts.push("no mixture layer".to_string());
        }
        let model = &self.spec.checked.model;
        format!("{}: {}; width {}, context {}.", model.name, parts.join("; "), model.width, model.context)
    }

    fn facts(&self) -> Vec<(String, String)> {
        let (model, recipe) = (&self.spec.checked.model, &self.spec.checked.recipe);
        let mut facts = vec![("data".to_string(), self.request.data.clone())];
        let mut fact = |name: &str, value: String| facts.push((name.to_string(), value));
        if let Some(sha256) = &self.request.data_sha256 {
            fact("its SHA-256", sha256.clone());
        }
        if let Some(vocab) = &self.vocab {
            fact("vocabulary", format!("{} characters", vocab.len()));
        }
        fact("steps", format!("{} of {} x {} tokens", grouped(recipe.steps), recipe.sequences_text(), model.context));
        fact("optimizer", format!("{}, learning rate {}", recipe.optimizer.spec.name, recipe.optimizer.lr()));
        fact("precision", recipe.precision.name().to_string());
        if let Some(step) = self.step {
            fact("checkpoint", format!("step {}", grouped(step)));
        }
        let times: Vec<f64> = self.metrics.iter().filter_map(step_ms).collect();
        // The first report has the compilation of kernels in it.
        if let [_, times @ ..] = &times[..]
            && !times.is_empty()
        {
            let mean = times.iter().sum::<f64>() / times.len() as f64;
            let tokens = recipe.sequences() as f64 * model.context as f64 * 1e3 / mean;
            fact("time of a step", format!("{} ms, {} tokens/s", milliseconds(mean, 0), grouped(tokens as u64)));
        }
        if self.vocab.is_some() {
            let memory = &self.compiled.memory;
            let arenas = memory.functions.iter().map(|f| f.arena_bytes).max().unwrap_or(0);
            let routers = match memory.router_bytes {
                0 => String::new(),
                n => format!(", routers {}", bytes(n)),
            };
            fact(
                "memory planned",
                format!(
                    "{}: parameters {}, optimizer {}{routers}, largest arena {}",
                    bytes(memory.total_bytes()),
                    bytes(memory.parameter_bytes),
                    bytes(memory.optimizer_bytes),
                    bytes(arenas)
                ),
            );
            for f in &memory.functions {
                fact(
                    &format!("peak of {}", f.name),
                    format!(
                        "{}: activations {}, gradients {}, temporaries {}",
                        bytes(f.peak_bytes),
                        bytes(f.activation_bytes),
                        bytes(f.gradient_bytes),
                        bytes(f.temporary_bytes)
                    ),
                );
            }
        }
        facts
    }

    fn commands(&self) -> Vec<CommandText> {
        let (root, spec) = (shell::path(&self.root), shell::path(&self.root.join("spec.moe")));
        let model = self.request.model.as_ref().map(|m| format!(" --model {}", shell::word(m))).unwrap_or_default();
        let set: String = self.request.set.iter().map(|s| format!(" -s {}", shell::word(s))).collect();
        let data = shell::path(Path::new(&self.request.data));
        let again = match self.request.imports.is_empty() {
            true => "train it again, to the same bytes",
            false => "train it again, to the same bytes; the imported files must lie beside the spec",
        };
        // Where patience has come to an end, more steps alone would change nothing.
        let patience = self.spec.checked.recipe.evaluate.patience.map_or("", |_| " -s train.evaluate.patience=none");
        let command = |what: &str, line: String| CommandText { what: what.to_string(), line };
        vec![
            command(again, format!("moec train {spec}{model} --data {data}{set} --out NEW")),
            command(
                "train it further",
                format!("moec train --resume {root} --steps {}{patience}", self.spec.checked.recipe.steps * 2),
            ),
            command("write text with it", format!("moec sample {root}")),
            command("measure its loss on all held-out text", format!("moec eval {root}")),
            command("record where a text goes", format!("moec route {root} --text 'To be'")),
        ]
    }
}

impl Text {
    /// One that was given.
    pub(crate) fn given(text: &str) -> Self {
        Self { text: text.to_string(), source: "that of --text".to_string() }
    }

    /// Its length.
    pub(crate) fn characters(&self) -> usize {
        self.text.chars().count()
    }
}

fn step_ms(metric: &Metric) -> Option<f64> {
    if let Metric::Train(step) = metric { Some(step.step_ms) } else { None }
}

/// The text of a run, if it can be had without a network.
fn corpus(request: &Request, root: &Path, registry: &Registry, console: &Console) -> Option<Corpus> {
    if !downloads::is_here(&request.data, registry) {
        return None;
    }
    let sha256 = run_text::sha256(request, root);
    run_text::find(request, sha256.as_deref(), &[root], registry, console).ok()
}

/// Name and text of the newest sample.
fn sample(root: &Path) -> Option<(String, String)> {
    let folder = std::fs::read_dir(root.join("samples")).ok()?;
    let mut names: Vec<String> =
        folder.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|n| n.ends_with(".txt")).collect();
    names.sort();
    let name = names.pop()?;
    let read = std::fs::read(root.join("samples").join(&name)).ok()?;
    Some((name, String::from_utf8_lossy(&read).chars().take(SAMPLE).collect()))
}

fn routed_text(record: &Record, text: &Text) -> RoutedText {
    let layers = record.header.layers.iter().map(|layer| {
        let choices = record.routes.iter().filter(|r| r.layer == layer.path).map(|route| {
            let parts = route.experts.iter().zip(&route.weights).zip(&route.dropped);
            let mut choices: Vec<Choice> =
                parts.map(|((&expert, &weight), &dropped)| Choice { expert, weight, dropped }).collect();
            // The first of equals stays the first.
            choices.sort_by(|a, b| b.weight.total_cmp(&a.weight));
            choices
        });
        RoutedLayer {
            path: layer.path.clone(),
            strategy: layer.strategy.clone(),
            experts: layer.experts,
            choices: choices.collect(),
        }
    });
    RoutedText {
        source: text.source.clone(),
        step: record.header.checkpoint,
        characters: record.header.text.chars().collect(),
        layers: layers.collect(),
    }
}

/// The trace that `moec train --profile` writes.
#[derive(Deserialize)]
struct Trace {
    #[serde(rename = "traceEvents")]
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    name: String,
    cat: String,
    tid: String,
    dur: f64,
}

/// Where the time of a step went, if that was measured; the longest first.
fn kernels(root: &Path) -> Vec<KernelTime> {
    let Ok(text) = std::fs::read_to_string(root.join("profile.json")) else { return Vec::new() };
    let Ok(trace) = serde_json::from_str::<Trace>(&text) else { return Vec::new() };
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut kinds: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for event in &trace.events {
        times.entry(&event.name).or_default().push(event.dur);
        kinds.insert(&event.name, (&event.tid, &event.cat));
    }
    let mut table: BTreeMap<(&str, &str), (usize, f64)> = BTreeMap::new();
    for (name, mut times) in times {
        // The first step has the compilation of its kernels in it: the middle does not see it.
        times.sort_by(f64::total_cmp);
        let row = table.entry(kinds[name]).or_default();
        *row = (row.0 + 1, row.1 + times[times.len() / 2] / 1e3);
    }
    let row = |((phase, kernel), (launches, ms)): ((&str, &str), (usize, f64))| KernelTime {
        phase: phase.to_string(),
        kernel: kernel.to_string(),
        launches,
        ms,
    };
    let mut rows: Vec<KernelTime> = table.into_iter().map(row).collect();
    rows.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    rows
}
