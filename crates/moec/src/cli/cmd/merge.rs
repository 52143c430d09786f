//! `moec merge`: a mixture whose experts come from trained runs.

use crate::cli::args::MergeArgs;
use crate::cli::assembly::{self, Assembled};
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::exit::{Exit, Failure};
use crate::cli::run_name;
use crate::cli::units::grouped;
use crate::surgery::{self, MergeRecipe, Sources, Subject};
use crate::{Spec, read_source};
use moec_model::Registry;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

/// Larger recipes are refused: prompts are short.
const MAX_RECIPE: u64 = 1 << 20;

/// Runs the command.
///
/// # Errors
/// When the recipe, a run or the text is wrong, the runs do not agree, or the mixture is not what it must be.
pub(crate) fn run(args: &MergeArgs, registry: &Registry, devices: Devices, console: &Console) -> Result<Exit, Failure> {
    assembly::require_free(args.check.out.as_deref())?;
    let (recipe, written) = read(&args.recipe)?;
    let folder = args.recipe.parent().unwrap_or(Path::new(""));
    let mut opened: BTreeMap<PathBuf, Subject> = BTreeMap::new();
    let named = recipe.base.iter().chain(recipe.experts.iter().map(surgery::ExpertSource::run)).chain(&recipe.shared);
    for path in named.map(|path| from(folder, path)) {
        if let Entry::Vacant(place) = opened.entry(path) {
            let run = assembly::open(place.key(), registry, console)?;
            // A checkpoint that is named is another model than the newest.
            let name = place.key().display().to_string();
            place.insert(Subject { name, ..run.into() });
        }
    }
    let of = |path: &PathBuf| {
        let found = opened.get(&from(folder, path));
        found.ok_or_else(|| Failure::new(Exit::Usage, "`experts` names no run"))
    };
    let first = recipe.base.as_ref().or(recipe.experts.first().map(surgery::ExpertSource::run));
    let first = first.ok_or_else(|| Failure::new(Exit::Usage, "`experts` names no run"))?;
    let base_run = from(folder, first);
    let (corpus, text) = assembly::texts(args.check.data.as_deref(), &base_run, registry, console)?;
    let spec = match &recipe.spec {
        Some(path) => {
            let source = read_source(&from(folder, path))?;
            Some(Spec::check(source, registry, recipe.model.as_deref(), &[])?)
        }
        None => None,
    };
    let sources = Sources {
        base: of(first)?,
        donors: recipe.experts.iter().map(|source| of(source.run())).collect::<Result<_, _>>()?,
        shared: recipe.shared.as_ref().map(of).transpose()?,
        spec,
    };
    let base = sources.base;
    let dataset = assembly::dataset(base, &corpus)?;
    let open = assembly::devices(args.check.device, devices)?;
    let witnesses = assembly::witnesses(base, &text, &open)?;
    let first = |subject: &Subject| {
        let states = crate::initial_states(&subject.lowered.states, &dataset, subject.spec.folder())?;
        let (seed, declared) = (recipe.seed, subject.model_states());
        Ok(moec_runtime::initial_tensors(seed, &declared, &subject.lowered.parameters, &states))
    };
    let merged = surgery::merge(&recipe, sources, registry, first, &witnesses)?;
    for warning in &merged.warnings {
        console.warn(format!("warning: {warning}"));
    }
    let stem = args.recipe.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    // Not every name of a file is one of a run: `latest` is that of a link.
    let name = if run_name::given(&stem).is_ok() { stem } else { "merged".to_string() };
    let what = format!(
        "{} experts in {}: {} parameters",
        recipe.experts(),
        layers(&merged.layers),
        grouped(merged.subject.lowered.parameter_count() as u64)
    );
    let assembled =
        Assembled { subject: &merged.subject, certificate: &merged.certificate, what, name, recipe: Some(&written) };
    assembled.write(args.check.out.as_deref(), &dataset, args.check.json, console)?;
    Ok(Exit::Success)
}

/// `blocks.0.moe and 7 more`
fn layers(paths: &[String]) -> String {
    match paths {
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
        [] => "no layer".to_string(),
    }
}

/// A path of a recipe: from its folder if there is something, or else from here.
fn from(folder: &Path, path: &Path) -> PathBuf {
    let beside = folder.join(path);
    if beside.exists() { beside } else { path.to_path_buf() }
}

/// A recipe, and as it was written.
fn read(path: &Path) -> Result<(MergeRecipe, String), Failure> {
    let help = "a recipe is YAML: `base: runs/a`, and `experts:` with a list of runs; docs/merging.md has examples";
    let about =
        std::fs::metadata(path).map_err(|e| Failure::new(Exit::Usage, Failure::file("read", path, &e).to_string()))?;
    if !about.is_file() || about.len() > MAX_RECIPE {
        let message = format!("{} is no recipe: it is a folder, or larger than a mebibyte", path.display());
        return Err(Failure::new(Exit::Usage, message).help(help));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::new(Exit::Usage, Failure::file("read", path, &e).to_string()))?;
    let read = serde_yaml::from_str(&text).map_err(|e| {
        let place = e.location().map(|at| format!(":{}:{}", at.line(), at.column())).unwrap_or_default();
        let message = e.to_string();
        let message = in_our_words(message.split(" at line ").next().unwrap_or_default());
        let failure = Failure::new(Exit::Usage, format!("{}{place}: {message}", path.display()));
        let line = e.location().and_then(|at| text.lines().nth(at.line().saturating_sub(1))).unwrap_or_default();
        let failure = match line.trim_start().strip_prefix("route:").map(str::trim) {
            Some(route) if !route.starts_with(['"', '\'']) => {
                failure.help(format!("a router stands in quotes: `route: \"{route}\"`"))
            }
            _ => failure,
        };
        let failure = match MERGEKIT.iter().find(|(theirs, _)| message.contains(&format!("`{theirs}`, expected"))) {
            Some((theirs, ours)) => failure.help(format!("mergekit's `{theirs}` is {ours} here")),
            None => failure,
        };
        failure.help(help)
    });
    Ok((read?, text))
}

/// What mergekit calls otherwise.
const MERGEKIT: &[(&str, &str)] = &[
    ("base_model", "`base`"),
    ("gate_mode", "`gates`"),
    ("source_model", "`run`"),
    ("hidden", "`last`"),
    ("hidden_avg", "`average`"),
    ("cheap_embed", "`embedding`"),
    ("uniform_random", "`uniform`"),
    ("noise_scale", "`noise`"),
    ("shared_experts", "`shared`, a run"),
    ("experts_per_token", "the `k` of `route`"),
    ("num_experts_per_tok", "the `k` of `route`"),
];

/// A message of the reader of YAML without names of our types.
fn in_our_words(message: &str) -> String {
    let words = [
        ("struct MergeRecipe", "keys and values"),
        ("struct Prompted", "keys and values"),
        ("f64", "a number"),
        ("usize", "a whole number that is not negative"),
        ("u64", "a whole number that is not negative"),
        ("a sequence", "a list, such as `[a, b]`"),
    ];
    words.iter().fold(message.to_string(), |message, (theirs, ours)| {
        message.replace(&format!("expected {theirs}"), &format!("expected {ours}"))
    })
}
