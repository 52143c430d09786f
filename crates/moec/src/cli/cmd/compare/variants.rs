//! Which models are compared: files, models of a file, a file with other values, and the points of a grid.

use crate::cli::args::CompareArgs;
use crate::cli::configuration::Values;
use crate::cli::console::Console;
use crate::cli::exit::{Exit, Failure};
use crate::cli::shell;
use crate::cli::sweep::{self, Sweep};
use crate::{Error, Spec, read_source};
use moec_model::Registry;
use moec_runtime::sha256_hex;
use moec_syntax::{SourceFile, did_you_mean};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Variants of a comparison, at most.
const MOST: usize = 500;

/// Characters of a folder's name, at most.
const LONGEST: usize = 100;

/// One of the models that are compared.
pub(in crate::cli::cmd) struct Variant {
    /// What it is called: its file, and what it has of its own, `noisy_top2 k=2`.
    pub(in crate::cli::cmd) label: String,
    /// The name of the folder that its runs are in.
    pub(in crate::cli::cmd) folder: String,
    /// The file as given.
    pub(in crate::cli::cmd) path: PathBuf,
    pub(in crate::cli::cmd) spec: Spec,
    /// What it is given beside its file, but for steps and seed.
    pub(in crate::cli::cmd) set: Vec<String>,
    /// What of that it has of its own.
    pub(in crate::cli::cmd) own: Vec<String>,
    /// Whether it is the point of a grid, which may be impossible.
    pub(in crate::cli::cmd) is_point: bool,
}

/// A point of a grid that is no model.
#[derive(Clone, Debug, Serialize)]
pub(in crate::cli::cmd) struct Infeasible {
    label: String,
    spec: String,
    set: Vec<String>,
    /// Code of the message, if it is one of the checker.
    code: Option<String>,
    message: String,
}

impl Infeasible {
    pub(in crate::cli::cmd) fn new(variant: &Named, error: &Error) -> Self {
        let (code, message) = reason(error);
        Self {
            label: variant.label.clone(),
            spec: variant.path.display().to_string(),
            set: variant.own.clone(),
            code,
            message,
        }
    }

    /// `small k=9 is no model: `k` is 9, but there are 4 experts (E0501)`.
    pub(in crate::cli::cmd) fn sentence(&self) -> String {
        let code = self.code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default();
        format!("{} cannot be trained: {}{code}", self.label, self.message)
    }
}

/// Why a variant is no model: the first message with its code, if it is one of the checker.
pub(in crate::cli::cmd) fn reason(error: &Error) -> (Option<String>, String) {
    let first = match error {
        Error::Spec(messages) | Error::Build(messages) | Error::TooLarge(messages) => {
            messages.diagnostics.iter().find(|d| d.is_error())
        }
        _ => None,
    };
    (first.map(|d| d.code.to_string()), first.map_or_else(|| error.to_string(), |d| d.message.clone()))
}

/// What is compared.
pub(in crate::cli::cmd) struct Plan {
    pub(in crate::cli::cmd) variants: Vec<Variant>,
    pub(in crate::cli::cmd) infeasible: Vec<Infeasible>,
}

/// A variant before it is checked.
#[derive(Clone, Debug)]
pub(in crate::cli::cmd) struct Named {
    pub(in crate::cli::cmd) label: String,
    path: PathBuf,
    model: Option<String>,
    own: Vec<String>,
}

impl Plan {
    /// Reads and checks every variant, so that a fault in the last one is known before the first is trained. `steps` is the
    /// number of steps, if that is known.
    ///
    /// # Errors
    /// When a spec is wrong, two variants are the same, or all points of a file's grid are impossible.
    pub(in crate::cli::cmd) fn read(
        args: &CompareArgs,
        steps: Option<u64>,
        registry: &Registry,
        console: &Console,
    ) -> Result<Self, Failure> {
        let named = named(&args.specs, &args.sweep)?;
        let values = Values::read(args.config.as_deref(), &args.set)?;
        let (mut plan, mut warned) = (Plan { variants: Vec::new(), infeasible: Vec::new() }, Vec::new());
        let mut sources: Vec<(PathBuf, Option<String>, SourceFile)> = Vec::new();
        // The first refusal of each file, of which no point may be a model.
        let mut refused: Vec<(PathBuf, Error)> = Vec::new();
        for variant in named {
            let known = sources.iter().find(|(path, model, _)| (path, model) == (&variant.path, &variant.model));
            let source = match known {
                Some((.., source)) => source.clone(),
                None => {
                    let source = read_source(&variant.path)?;
                    values.check(&source, registry, variant.model.as_deref())?;
                    sources.push((variant.path.clone(), variant.model.clone(), source.clone()));
                    source
                }
            };
            let mut set = values.overrides();
            set.extend(variant.own.iter().cloned());
            let mut with_steps = set.clone();
            with_steps.extend(steps.map(|n| format!("train.steps={n}")));
            let spec = match Spec::check(source, registry, variant.model.as_deref(), &with_steps) {
                Ok(spec) => spec,
                Err(error @ Error::Spec(_)) if !args.sweep.is_empty() => {
                    plan.infeasible.push(Infeasible::new(&variant, &error));
                    if !refused.iter().any(|(path, _)| *path == variant.path) {
                        refused.push((variant.path.clone(), error));
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            // Points of a grid have their warnings in common.
            let warnings: Vec<_> = spec.checked.warnings.iter().filter(|w| !warned.contains(*w)).cloned().collect();
            console.diagnostics(&spec.source, &warnings, args.message_format);
            warned.extend(warnings);
            let folder = folder(&variant.label);
            let Named { label, path, own, .. } = variant;
            plan.variants.push(Variant { label, folder, path, spec, set, own, is_point: !args.sweep.is_empty() });
        }
        // A path that a file does not have is a slip, and no corner of a grid.
        for (path, error) in refused {
            if !plan.variants.iter().any(|variant| variant.path == path) {
                return Err(error.into());
            }
        }
        plan.infeasible.iter().for_each(|point| console.warn(format!("left out: {}", point.sentence())));
        Ok(plan)
    }

    /// Leaves out a variant of which it has turned out that it is no model here, if it is the point of a grid.
    ///
    /// # Errors
    /// With the reason, if it was asked for by name.
    pub(in crate::cli::cmd) fn leave_out(
        &mut self,
        variant: Variant,
        error: Error,
        console: &Console,
    ) -> Result<(), Failure> {
        if !variant.is_point {
            return Err(error.into());
        }
        let Variant { label, path, own, .. } = variant;
        let point = Infeasible::new(&Named { label, path, model: None, own }, &error);
        console.warn(format!("left out: {}", point.sentence()));
        self.infeasible.push(point);
        Ok(())
    }
}

/// The number of the variant of this name, or of the folder of its runs.
///
/// # Errors
/// When there is none.
pub(in crate::cli::cmd) fn baseline(name: Option<&str>, labels: &[&str]) -> Result<usize, Failure> {
    let Some(name) = name else { return Ok(0) };
    let found = labels.iter().position(|label| *label == name || folder(label) == name);
    found.ok_or_else(|| {
        let failure = Failure::new(Exit::Usage, format!("--baseline {name}: there is no such variant"));
        match did_you_mean(name, labels.iter().copied()) {
            Some(near) => failure.help(format!("did you mean {}?", shell::word(near))),
            None => failure.help(format!("the variants are {}", labels.join(", "))),
        }
    })
}

/// Every variant with its name: the specs in their order, and of each the grid, whose last sweep varies fastest.
fn named(specs: &[PathBuf], sweeps: &[Sweep]) -> Result<Vec<Named>, Failure> {
    let mut points: Vec<Vec<(String, String)>> = vec![Vec::new()];
    for sweep in sweeps {
        let values =
            sweep.values().map_err(|reason| Failure::new(Exit::Usage, format!("-S {}: {reason}", sweep.path)))?;
        if sweeps.iter().filter(|other| other.path == sweep.path).count() > 1 {
            return Err(Failure::new(Exit::Usage, format!("-S {} is given twice", sweep.path))
                .help("one -S lists all values of a path: -S PATH=A,B,C"));
        }
        let with = |point: &Vec<(String, String)>, value: &String| {
            let mut point = point.clone();
            point.push((sweep.path.clone(), value.clone()));
            point
        };
        points =
            points.iter().flat_map(|point| values.iter().map(|value| with(point, value)).collect::<Vec<_>>()).collect();
        if points.len() > MOST {
            return Err(Failure::new(Exit::Usage, format!("a grid of more than {MOST} points"))
                .help("fewer values, or `moec search`, which trains only promising points"));
        }
    }
    let given: Vec<Given> = specs.iter().map(|spec| Given::parse(spec)).collect::<Result<_, Failure>>()?;
    let paths =
        || given.iter().flat_map(|given| &given.own).chain(points.iter().flatten()).map(|(path, _)| path.as_str());
    let mut all: Vec<Named> = Vec::new();
    for spec in &given {
        let is_unique = given.iter().all(|other| other.short() != spec.short() || other.is_same_model(spec));
        let base = if is_unique { spec.short() } else { long_label(&spec.path, spec.model.as_deref()) };
        for point in &points {
            let own: Vec<&(String, String)> = spec.own.iter().chain(point).collect();
            let parts = own.iter().map(|(path, value)| format!(" {}={value}", short(path, paths())));
            let label = base.clone() + &parts.collect::<String>();
            if all.iter().any(|other| other.label == label) {
                let message = format!("{label} is given twice");
                return Err(Failure::new(Exit::Usage, message).help("--seeds K trains every spec several times").help(
                    "the same file with other values is another variant: FILE@PATH=VALUE, or a grid with -S PATH=A,B",
                ));
            }
            let own = own.iter().map(|(path, value)| format!("{path}={value}")).collect();
            all.push(Named { label, path: spec.path.clone(), model: spec.model.clone(), own });
        }
    }
    if all.len() > MOST {
        return Err(Failure::new(Exit::Usage, format!("{} variants are more than {MOST}", all.len())));
    }
    Ok(all)
}

/// A spec of the command line: `FILE#MODEL@PATH=VALUE,PATH=VALUE`.
#[derive(Clone, Debug, PartialEq)]
struct Given {
    path: PathBuf,
    model: Option<String>,
    own: Vec<(String, String)>,
}

impl Given {
    fn parse(given: &Path) -> Result<Self, Failure> {
        let plain = |path: &Path| Self { path: path.to_path_buf(), model: None, own: Vec::new() };
        let Some(text) = given.to_str().filter(|_| !given.exists()) else { return Ok(plain(given)) };
        // Behind the first `@` that a path of an override follows.
        let is_path = |text: &str| {
            let is_kept = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
            text.split_once('=').is_some_and(|(path, _)| !path.is_empty() && path.chars().all(is_kept))
        };
        let at = text.match_indices('@').find(|(at, _)| is_path(&text[at + 1..]));
        let (file, own) = at.map_or((text, ""), |(at, _)| (&text[..at], &text[at + 1..]));
        let mut values = Vec::new();
        for value in sweep::split(own).into_iter().filter(|_| !own.is_empty()) {
            let Some((path, value)) = value.split_once('=') else {
                return Err(Failure::new(Exit::Usage, format!("{text}: `{value}` is no override"))
                    .help("a spec with values of its own is written FILE@PATH=VALUE,PATH=VALUE"));
            };
            let path = path.trim();
            if path == "train.steps" || path == "train.seed" {
                return Err(Failure::new(Exit::Usage, format!("{text}: {path} is the same for all"))
                    .help("--steps N says how long all are trained, --seeds K how often"));
            }
            values.push((path.to_string(), value.trim().to_string()));
        }
        let (path, model) = file_and_model(Path::new(file));
        Ok(Self { path, model, own: values })
    }

    /// The name of its file, with that of its model if it is given.
    fn short(&self) -> String {
        let stem = self.path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        stem + &self.model.as_ref().map(|m| format!("-{m}")).unwrap_or_default()
    }

    fn is_same_model(&self, other: &Self) -> bool {
        (&self.path, &self.model) == (&other.path, &other.model)
    }
}

/// `FILE#MODEL`, unless a file has that very name.
pub(in crate::cli::cmd) fn file_and_model(given: &Path) -> (PathBuf, Option<String>) {
    match given.to_str().and_then(|text| text.rsplit_once('#')) {
        Some((file, model)) if !given.exists() => (PathBuf::from(file), Some(model.to_string())),
        _ => (given.to_path_buf(), None),
    }
}

/// A label of the whole path, for specs whose files have the same name.
pub(in crate::cli::cmd) fn long_label(path: &Path, model: Option<&str>) -> String {
    let plain = |c: char| if c.is_alphanumeric() || c == '_' { c } else { '-' };
    let text = path.with_extension("").display().to_string();
    let label: String = text.trim_start_matches(['.', '/']).chars().map(plain).collect();
    model.map_or(label.clone(), |m| format!("{label}-{m}"))
}

/// The last word of a path, `lr` of `train.optimizer.lr`, unless another path ends with it.
pub(in crate::cli::cmd) fn short<'a>(path: &'a str, mut all: impl Iterator<Item = &'a str>) -> &'a str {
    let word = |path: &'a str| path.rsplit_once('.').map_or(path, |(_, word)| word);
    if all.any(|other| other != path && word(other) == word(path)) { path } else { word(path) }
}

/// A name that every shell and file system takes: `noisy_top2-k=2`.
pub(in crate::cli::cmd) fn folder(label: &str) -> String {
    let is_kept = |c: char| c.is_alphanumeric() || "_-+=.".contains(c);
    let plain: String = label.split(|c| !is_kept(c)).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    if plain.chars().count() <= LONGEST && !plain.starts_with('.') {
        return plain;
    }
    let begin: String = plain.trim_start_matches('.').chars().take(LONGEST - 9).collect();
    format!("{begin}-{}", &sha256_hex(label.as_bytes())[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(specs: &[&str], sweeps: &[&str]) -> Vec<String> {
        let specs: Vec<PathBuf> = specs.iter().map(PathBuf::from).collect();
        let sweeps: Vec<Sweep> = sweeps.iter().map(|text| sweep::given(text).unwrap()).collect();
        named(&specs, &sweeps).unwrap().into_iter().map(|named| named.label).collect()
    }

    fn refusal(specs: &[&str], sweeps: &[&str]) -> String {
        let specs: Vec<PathBuf> = specs.iter().map(PathBuf::from).collect();
        let sweeps: Vec<Sweep> = sweeps.iter().map(|text| sweep::given(text).unwrap()).collect();
        named(&specs, &sweeps).unwrap_err().to_string()
    }

    #[test]
    fn models_are_named_behind_their_file() {
        assert_eq!(file_and_model(Path::new("a.moe")), ("a.moe".into(), None));
        assert_eq!(file_and_model(Path::new("a.moe#b")), ("a.moe".into(), Some("b".into())));
        assert_eq!(long_label(Path::new("../x/top2.moe"), None), "x-top2");
        assert_eq!(long_label(Path::new("x y/t.moe"), Some("m")), "x-y-t-m");
    }

    #[test]
    fn variants_are_called_by_what_they_differ_in() {
        assert_eq!(labels(&["a.moe", "b.moe#m"], &[]), ["a", "b-m"]);
        assert_eq!(labels(&["x/a.moe", "y/a.moe"], &[]), ["x-a", "y-a"]);
        assert_eq!(labels(&["a.moe", "a.moe@train.optimizer.lr=1e-3,width=64"], &[]), ["a", "a lr=1e-3 width=64"]);
        assert_eq!(labels(&["a.moe"], &["k=1,2", "e=4..5"]), ["a k=1 e=4", "a k=1 e=5", "a k=2 e=4", "a k=2 e=5"]);
        // Two paths that end alike are written out.
        assert_eq!(labels(&["a.moe@x.k=1"], &["y.k=2"]), ["a x.k=1 y.k=2"]);
        assert_eq!(
            labels(&["me@home/a.moe@train.optimizer=adamw(lr: 1e-3, beta1: 0.9)"], &[]),
            ["a optimizer=adamw(lr: 1e-3, beta1: 0.9)"]
        );
    }

    #[test]
    fn what_cannot_be_named_is_refused() {
        assert!(refusal(&["a.moe", "a.moe"], &[]).contains("a is given twice"));
        assert!(refusal(&["a.moe@k=1", "a.moe@k=1"], &[]).contains("a k=1 is given twice"));
        assert!(refusal(&["a.moe@k=1,2"], &[]).contains("`2` is no override"));
        assert!(refusal(&["a.moe@train.steps=5"], &[]).contains("the same for all"));
        assert!(refusal(&["a.moe"], &["k=1", "k=2"]).contains("-S k is given twice"));
        assert!(refusal(&["a.moe"], &["lr=1e-4..1e-2@log"]).contains("@log:5"));
        assert!(refusal(&["a.moe"], &["a=1..30", "b=1..30"]).contains("more than 500"));
    }

    #[test]
    fn folders_have_plain_names() {
        assert_eq!(folder("noisy_top2 k=2 lr=1e-3"), "noisy_top2-k=2-lr=1e-3");
        assert_eq!(folder("a optimizer=adamw(lr: 1e-3)"), "a-optimizer=adamw-lr-1e-3");
        let long = folder(&format!("a {}", "b".repeat(300)));
        assert!(long.chars().count() <= LONGEST && long != folder(&format!("a {}", "b".repeat(301))), "{long}");
    }
}
