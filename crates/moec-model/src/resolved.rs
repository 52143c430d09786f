//! The checked model and recipe as plain data to be written, for `resolved.yaml` in a run folder and for `--json`.
//!
//! The types that the compiler works with are not serialised, so that they can change without changing the format.

use std::collections::BTreeMap;

use moec_ir::Invariant;
use moec_plan::Settings;
use serde::Serialize;

use crate::argument::{ArgumentValue, Arguments, ParameterSpec};
use crate::arithmetic::Number;
use crate::recipe::{DataSource, InitScheme, Recipe};
use crate::tensors::{Freeze, InitScale};

/// A model with every default filled in and every `repeat` unrolled.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ResolvedModel {
    /// Its name.
    pub name: String,
    /// Tokens that it sees at once.
    pub context: usize,
    /// `characters` or the number of tokens.
    pub vocab: ResolvedValue,
    /// Width of the embedding.
    pub width: usize,
    /// `causal`, `batch_dependent` or `looks_ahead`.
    pub causality: &'static str,
    /// The bindings of the model's body, after overrides.
    pub bindings: BTreeMap<String, ResolvedValue>,
    /// The layers in order.
    pub layers: Vec<ResolvedLayer>,
}

/// A layer with its arguments.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ResolvedLayer {
    /// Its name; `blocks.I` for the iteration of a `repeat`.
    pub layer: String,
    /// Its arguments by name, and `layers` for the ones that have layers of their own.
    #[serde(flatten)]
    pub arguments: BTreeMap<String, ResolvedValue>,
}

/// A value in a resolved model or recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ResolvedValue {
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// A word or text.
    Text(String),
    /// Layers, of an expert for example.
    Layers(Vec<ResolvedLayer>),
    /// Named values, the arguments of a router for example.
    Map(BTreeMap<String, ResolvedValue>),
    /// Several values.
    List(Vec<ResolvedValue>),
}

/// A recipe with every default filled in: setting names and values as in the `train` block.
pub type ResolvedRecipe = BTreeMap<String, ResolvedValue>;

impl From<usize> for ResolvedValue {
    fn from(n: usize) -> Self {
        ResolvedValue::Int(i64::try_from(n).invariant("numbers of a file have 64 bits with a sign"))
    }
}

impl From<u64> for ResolvedValue {
    fn from(n: u64) -> Self {
        ResolvedValue::Int(i64::try_from(n).invariant("numbers of a file have 64 bits with a sign"))
    }
}

impl From<f64> for ResolvedValue {
    fn from(x: f64) -> Self {
        ResolvedValue::Float(x)
    }
}

impl From<bool> for ResolvedValue {
    fn from(b: bool) -> Self {
        ResolvedValue::Bool(b)
    }
}

impl From<&str> for ResolvedValue {
    fn from(text: &str) -> Self {
        ResolvedValue::Text(text.to_string())
    }
}

impl From<&ArgumentValue> for ResolvedValue {
    fn from(value: &ArgumentValue) -> Self {
        match value {
            ArgumentValue::Int(n) => ResolvedValue::Int(*n),
            ArgumentValue::Float(x) => ResolvedValue::Float(*x),
            ArgumentValue::Bool(b) => ResolvedValue::Bool(*b),
            ArgumentValue::Word(word) => (*word).into(),
            ArgumentValue::Text(text) => text.as_str().into(),
        }
    }
}

impl From<Number> for ResolvedValue {
    fn from(value: Number) -> Self {
        match value {
            Number::Int(n) => ResolvedValue::Int(n),
            Number::Float(x) => ResolvedValue::Float(x),
            Number::Bool(b) => ResolvedValue::Bool(b),
        }
    }
}

/// Named values.
pub(crate) fn map<const N: usize>(entries: [(&str, ResolvedValue); N]) -> BTreeMap<String, ResolvedValue> {
    entries.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

impl Arguments {
    /// The arguments as plain data, with an entry for whose they are.
    pub(crate) fn resolved(&self, owner: [(&str, ResolvedValue); 1]) -> ResolvedValue {
        let mut values = map(owner);
        values.extend(self.iter().map(|(name, value)| (name.to_string(), value.into())));
        ResolvedValue::Map(values)
    }
}

/// The name and the settings of an optimiser or schedule. A word is left out where it is the default: words came later than the
/// recipes of earlier runs.
fn declared(name: &str, settings: &Settings, specs: &[ParameterSpec]) -> BTreeMap<String, ResolvedValue> {
    let mut entries = map([("name", name.into())]);
    let is_usual = |value: &ArgumentValue, spec: &ParameterSpec| {
        matches!(value, ArgumentValue::Word(_)) && spec.default.value().as_ref() == Some(value)
    };
    let said = settings.iter().zip(specs).filter(|((_, value), spec)| !is_usual(value, spec));
    entries.extend(said.map(|((name, value), _)| (name.to_string(), value.into())));
    entries
}

impl Recipe {
    /// The recipe as plain data.
    pub fn to_resolved(&self) -> ResolvedRecipe {
        let optimizer = declared(self.optimizer.spec.name, &self.optimizer.settings, self.optimizer.spec.settings);
        let schedule = declared(self.schedule.spec.name, &self.schedule.settings, self.schedule.spec.settings);
        let init = match self.init {
            InitScheme::KaimingNormal => map([("name", "kaiming_normal".into())]),
            InitScheme::Xavier => map([("name", "xavier".into())]),
            InitScheme::Normal { std } => map([("name", "normal".into()), ("std", std.into())]),
            InitScheme::Zeros => map([("name", "zeros".into())]),
        };
        let data = match &self.data {
            DataSource::Synthetic => "synthetic".into(),
            DataSource::Named(name) => ResolvedValue::Map(map([("name", name.as_str().into())])),
        };
        let mut evaluate = map([("every", self.evaluate.every.into()), ("batches", self.evaluate.batches.into())]);
        evaluate.extend(self.evaluate.patience.map(|patience| ("patience".to_string(), patience.into())));
        let mut checkpoint = map([("every", self.checkpoint_every.into())]);
        checkpoint.extend(self.checkpoints_kept.map(|keep| ("keep".to_string(), keep.into())));
        checkpoint.extend(self.best_kept.then(|| ("best".to_string(), true.into())));
        let mut recipe = map([
            ("data", data),
            ("split", self.split.into()),
            ("batch", self.batch.into()),
            ("steps", self.steps.into()),
            ("seed", self.seed.into()),
            ("optimizer", ResolvedValue::Map(optimizer)),
            ("schedule", ResolvedValue::Map(schedule)),
            ("init", ResolvedValue::Map(init)),
            ("precision", self.precision.name().into()),
            ("evaluate", ResolvedValue::Map(evaluate)),
            ("checkpoint", ResolvedValue::Map(checkpoint)),
            ("log", ResolvedValue::Map(map([("every", self.log_every.into())]))),
        ]);
        if let Some(decay) = self.average {
            recipe.insert("average".into(), ResolvedValue::Map(map([("decay", decay.into())])));
        }
        if self.accumulate > 1 {
            recipe.insert("accumulate".into(), self.accumulate.into());
        }
        if let Some(clip) = self.clip {
            recipe.insert("clip".into(), clip.into());
        }
        if let Some(InitScale { tensors, factor }) = &self.init_scale {
            let scale = map([("tensors", tensors.as_str().into()), ("factor", (*factor).into())]);
            recipe.insert("init_scale".into(), ResolvedValue::Map(scale));
        }
        if self.freeze != Freeze::default() {
            let Freeze { experts, router, trunk, tensors } = &self.freeze;
            let parts = [("experts", *experts), ("router", *router), ("trunk", *trunk)];
            let mut freeze: BTreeMap<_, _> = parts.map(|(part, frozen)| (part.to_string(), frozen.into())).into();
            freeze.extend(tensors.as_deref().map(|names| ("tensors".to_string(), names.into())));
            recipe.insert("freeze".into(), ResolvedValue::Map(freeze));
        }
        recipe
    }
}
