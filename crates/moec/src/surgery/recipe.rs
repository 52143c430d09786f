//! What a merge is asked for.

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::path::PathBuf;

/// How runs are put together to a mixture. The keys are those of a YAML file; unknown ones are refused.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MergeRecipe {
    /// The run that gives everything but the experts, and the text of the model. The first expert's run if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// Where the experts come from, in order.
    pub experts: Vec<ExpertSource>,
    /// Experts that are made of each source.
    #[serde(default = "one")]
    pub copies: usize,
    /// Parts that each copy is cut into along its hidden units, an expert each.
    #[serde(default = "one")]
    pub slices: usize,
    /// How slices make up for being weighted.
    #[serde(default)]
    pub slice_scale: SliceScale,
    /// What a slice makes up for, where it is not what follows from the router: the reciprocal of the weight that it has
    /// for a token, s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice_factor: Option<f64>,
    /// Where everything but the experts comes from.
    #[serde(default)]
    pub trunk: Trunk,
    /// Weights of the experts' runs in the average that is the trunk; equal ones if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Vec<f64>>,
    /// The router, in the words of the language, where `spec` does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Balance losses of the mixtures, in the words of the language, where `spec` does not say them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<String>,
    /// A `.moe` file with the mixture, where it is not the base with each `mlp` replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<PathBuf>,
    /// Which model of that file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How the router's rows begin.
    #[serde(default)]
    pub gates: Gates,
    /// The run of the expert that every token goes to, if the model has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<PathBuf>,
    /// What the last map of every expert is multiplied with.
    #[serde(default = "unit", rename = "residual_scale")]
    pub residual_scale: f64,
    /// Standard deviation of what is added to every number of the experts.
    #[serde(default)]
    pub noise: f64,
    /// Seed of everything random.
    #[serde(default = "seed")]
    pub seed: u64,
}

fn one() -> usize {
    1
}

fn unit() -> f64 {
    1.0
}

fn seed() -> u64 {
    1337
}

/// A run that an expert comes from: its path, or that with prompts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ExpertSource {
    /// The run alone.
    Run(PathBuf),
    /// The run with texts that say what the expert is for.
    Prompted(Prompted),
}

/// A run with texts that say what the expert is for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Prompted {
    /// The run.
    pub run: PathBuf,
    /// Texts that should go to the expert.
    #[serde(default)]
    pub positive_prompts: Vec<String>,
    /// Texts that should not.
    #[serde(default)]
    pub negative_prompts: Vec<String>,
}

/// Not as serde derives it for either form: that would not say which key is unknown.
impl<'de> Deserialize<'de> for ExpertSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = ExpertSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the path of a run, or `run:` with `positive_prompts:`")
            }

            fn visit_str<E: serde::de::Error>(self, run: &str) -> Result<ExpertSource, E> {
                Ok(ExpertSource::Run(run.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ExpertSource, A::Error> {
                Prompted::deserialize(MapAccessDeserializer::new(map)).map(ExpertSource::Prompted)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl ExpertSource {
    /// The run.
    pub fn run(&self) -> &PathBuf {
        match self {
            ExpertSource::Run(run) => run,
            ExpertSource::Prompted(prompted) => &prompted.run,
        }
    }

    /// Texts that should go to the expert, and those that should not.
    pub fn prompts(&self) -> (&[String], &[String]) {
        match self {
            ExpertSource::Run(_) => (&[], &[]),
            ExpertSource::Prompted(prompted) => (&prompted.positive_prompts, &prompted.negative_prompts),
        }
    }
}

/// Where everything but the experts comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trunk {
    /// The base run.
    #[default]
    Base,
    /// The weighted mean of the experts' runs.
    Average,
    /// Their mean along the sphere: each is turned towards the next (Shoemake 1985, "Animating rotation with quaternion
    /// curves", section 3.3), in the order of the experts.
    Spherical,
}

/// How slices make up for being weighted: together they must compute what the whole did, s times each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SliceScale {
    /// The last map is multiplied with s: exact whatever the activation is.
    #[default]
    Down,
    /// Every map is multiplied with the same root of s, as in Megatron-Core: exact for `relu`.
    Spread,
}

/// How the rows of routers begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gates {
    /// As the recipe of the model starts them.
    #[default]
    Fresh,
    /// What the layer is given after the last character of each prompt in the base run, averaged over prompts.
    Last,
    /// The same, averaged over the characters of each prompt.
    Average,
    /// The mean token vector of the prompts, the same in all layers.
    Embedding,
    /// Standard normal.
    Random,
    /// Uniform within the reciprocal of the root of the width.
    Uniform,
    /// Zero: every expert has the same weight.
    Zero,
    /// Those of the base run, which is a mixture itself.
    Copied,
}

impl Gates {
    /// Whether rows are made of prompts.
    pub fn prompted(self) -> bool {
        matches!(self, Gates::Last | Gates::Average | Gates::Embedding)
    }
}

impl MergeRecipe {
    /// Experts of each mixture.
    pub fn experts(&self) -> usize {
        self.experts.len().saturating_mul(self.copies).saturating_mul(self.slices)
    }
}
