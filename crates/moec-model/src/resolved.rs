//! The checked model and recipe as plain data to be written, for `resolved.yaml` in a run folder and for `--json`.
//!
//! The types that the compiler works with are not serialised, so that they can change without changing the format.

use std::collections::BTreeMap;

use moec_plan::{SettingValue, Settings};
use serde::Serialize;

use crate::argument::ArgumentValue;
use crate::model::{Causality, Layer, LayerKind, Model, Moe, Number, Positions, Vocab};
use crate::recipe::{DataSource, InitScheme, Recipe};

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
        ResolvedValue::Int(i64::try_from(n).unwrap_or(i64::MAX))
    }
}

impl From<u64> for ResolvedValue {
    fn from(n: u64) -> Self {
        ResolvedValue::Int(i64::try_from(n).unwrap_or(i64::MAX))
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

fn map<const N: usize>(entries: [(&str, ResolvedValue); N]) -> BTreeMap<String, ResolvedValue> {
    entries.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

impl Model {
    /// The model as plain data.
    pub fn to_resolved(&self) -> ResolvedModel {
        ResolvedModel {
            name: self.name.clone(),
            context: self.context,
            vocab: match self.vocab {
                Vocab::Characters => "characters".into(),
                Vocab::Size(size) => size.into(),
            },
            width: self.width,
            causality: match self.causality {
                Causality::Causal => "causal",
                Causality::BatchDependent => "batch_dependent",
                Causality::SamplesDifferently => "samples_differently",
                Causality::LooksAhead => "looks_ahead",
            },
            bindings: self.bindings.iter().map(|(name, value)| (name.clone(), (*value).into())).collect(),
            layers: layers(&self.layers),
        }
    }
}

fn layers(list: &[Layer]) -> Vec<ResolvedLayer> {
    list.iter().map(layer).collect()
}

fn layer(layer: &Layer) -> ResolvedLayer {
    let mut name = layer.kind.name().to_string();
    let arguments = match &layer.kind {
        LayerKind::Embed { positions } => {
            let positions = match positions {
                Positions::Learned => "learned",
                Positions::Rotary => "rotary",
                Positions::None => "none",
            };
            map([("width", layer.output.into()), ("positions", positions.into())])
        }
        LayerKind::Attention(a) => map([
            ("heads", a.heads.into()),
            ("scale", a.scale.into()),
            ("dropout", a.dropout.into()),
            ("bias", a.bias.into()),
            ("rotary", a.rotary.into()),
        ]),
        LayerKind::Mlp(m) => map([
            ("hidden", m.hidden.into()),
            ("activation", m.activation.name().into()),
            ("dropout", m.dropout.into()),
            ("bias", m.bias.into()),
        ]),
        LayerKind::Moe(m) => moe(m),
        LayerKind::LayerNorm { epsilon } | LayerKind::RmsNorm { epsilon } => map([("epsilon", (*epsilon).into())]),
        LayerKind::Dropout { rate } => map([("rate", (*rate).into())]),
        LayerKind::Linear { bias } => map([("width", layer.output.into()), ("bias", (*bias).into())]),
        LayerKind::Activation(_) => BTreeMap::new(),
        LayerKind::Residual(inner) => map([("layers", ResolvedValue::Layers(layers(inner)))]),
        LayerKind::Block { index, layers: inner } => {
            name = format!("blocks.{index}");
            map([("layers", ResolvedValue::Layers(layers(inner)))])
        }
        LayerKind::MixtureOfDepths(m) => map([
            ("capacity", m.capacity.into()),
            ("weight", m.weight.into()),
            ("layers", ResolvedValue::Layers(layers(&m.layers))),
        ]),
        LayerKind::MultiHash(m) => map([
            ("hidden", m.hidden.into()),
            ("buckets", m.buckets.into()),
            ("hashes", m.hashes.into()),
            ("activation", m.activation.name().into()),
            ("dropout", m.dropout.into()),
            ("seed", m.seed.into()),
        ]),
        LayerKind::Unembed { tied, bias } => map([("tied", (*tied).into()), ("bias", (*bias).into())]),
    };
    ResolvedLayer { layer: name, arguments }
}

fn moe(moe: &Moe) -> BTreeMap<String, ResolvedValue> {
    let mut route = map([("router", moe.route.strategy.name().into())]);
    route.extend(moe.route.arguments.iter().map(|(name, value)| (name.to_string(), value.into())));
    let balance = moe.balance.iter().map(|balance| {
        let mut loss = map([("loss", balance.loss.name.into())]);
        loss.extend(balance.arguments.iter().map(|(name, value)| (name.to_string(), value.into())));
        ResolvedValue::Map(loss)
    });
    let mut arguments = map([
        ("experts", moe.experts.into()),
        ("expert", ResolvedValue::Layers(layers(&moe.expert))),
        ("route", ResolvedValue::Map(route)),
        ("balance", ResolvedValue::List(balance.collect())),
    ]);
    if moe.shared > 0 {
        arguments.insert("shared".into(), moe.shared.into());
        arguments.insert("shared_expert".into(), ResolvedValue::Layers(layers(&moe.shared_expert)));
    }
    if let Some(capacity) = moe.capacity {
        let capacity = map([
            ("factor", capacity.factor.into()),
            ("evaluation_factor", capacity.evaluation_factor.into()),
            ("minimum", capacity.minimum.into()),
            ("order", capacity.order.word().into()),
            ("renormalise", if capacity.renormalise { "after" } else { "before" }.into()),
        ]);
        arguments.insert("capacity".into(), ResolvedValue::Map(capacity));
    }
    arguments
}

/// The name and the settings of an optimiser or schedule.
fn declared(name: &str, settings: &Settings) -> BTreeMap<String, ResolvedValue> {
    let mut entries = map([("name", name.into())]);
    entries.extend(settings.iter().map(|(name, value)| {
        let value = match value {
            SettingValue::Number(x) => x.into(),
            SettingValue::Steps(n) => n.into(),
            SettingValue::Flag(b) => b.into(),
        };
        (name.to_string(), value)
    }));
    entries
}

impl Recipe {
    /// The recipe as plain data.
    pub fn to_resolved(&self) -> ResolvedRecipe {
        let optimizer = declared(self.optimizer.spec.name, &self.optimizer.settings);
        let schedule = declared(self.schedule.spec.name, &self.schedule.settings);
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
        let evaluate = map([("every", self.evaluate.every.into()), ("batches", self.evaluate.batches.into())]);
        let mut recipe = map([
            ("data", data),
            ("split", self.split.into()),
            ("batch", self.batch.into()),
            ("steps", self.steps.into()),
            ("seed", self.seed.into()),
            ("optimizer", ResolvedValue::Map(optimizer)),
            ("schedule", ResolvedValue::Map(schedule)),
            ("init", ResolvedValue::Map(init)),
            ("evaluate", ResolvedValue::Map(evaluate)),
            ("checkpoint", ResolvedValue::Map(map([("every", self.checkpoint_every.into())]))),
            ("log", ResolvedValue::Map(map([("every", self.log_every.into())]))),
        ]);
        if let Some(clip) = self.clip {
            recipe.insert("clip".into(), clip.into());
        }
        recipe
    }
}
