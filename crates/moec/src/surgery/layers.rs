//! The layers of a model that can be experts, or that have them.

use super::{MeaningDifference, Subject, SurgeryError, wrong};
use crate::error::Error;
use moec_model::{ResolvedLayer, ResolvedValue};
use moec_syntax::Span;
use std::collections::BTreeMap;

/// The name of a dense feed-forward layer in the language.
pub(crate) const MLP: &str = "mlp";
/// The name of a mixture in the language.
pub(crate) const MOE: &str = "moe";

/// An `mlp` or a `moe` that stands in a model, not in an expert of another one.
#[derive(Clone, Debug)]
pub(crate) struct FeedForward {
    /// Its path, with which the names of its tensors begin: `blocks.0.mlp`.
    pub(crate) path: String,
    /// [`MLP`] or [`MOE`].
    pub(crate) kind: &'static str,
    /// Where it was written.
    pub(crate) span: Span,
    /// Its arguments.
    pub(crate) arguments: BTreeMap<String, ResolvedValue>,
}

impl FeedForward {
    /// The name of one of its tensors without its path; `None` for a tensor of another layer.
    pub(crate) fn inner<'a>(&self, tensor: &'a str) -> Option<&'a str> {
        tensor.strip_prefix(self.path.as_str())?.strip_prefix('.')
    }

    /// One of its experts (`expert`), or the one that every token goes to (`shared_expert`), as a layer; `None` where it is none
    /// or several layers.
    pub(crate) fn expert(&self, which: &str) -> Option<Self> {
        let Some(ResolvedValue::Layers(layers)) = self.arguments.get(which) else { return None };
        let [only] = layers.as_slice() else { return None };
        let kind = [MLP, MOE].into_iter().find(|kind| *kind == only.layer)?;
        let path = format!("{} of {}", which.replace('_', " "), self.path);
        Some(Self { path, kind, span: self.span, arguments: only.arguments.clone() })
    }

    /// An `mlp` with a part of the hidden units.
    pub(crate) fn sliced(mut self, slices: usize) -> Self {
        if let Some(ResolvedValue::Int(hidden)) = self.arguments.get_mut("hidden") {
            *hidden /= slices as i64;
        }
        self
    }

    /// How many experts it has; `None` of an `mlp`.
    pub(crate) fn experts(&self) -> Option<usize> {
        match self.arguments.get("experts") {
            Some(ResolvedValue::Int(experts)) => usize::try_from(*experts).ok(),
            _ => None,
        }
    }
}

/// The feed-forward layers of a model, in order.
pub(crate) fn feed_forward(subject: &Subject) -> Vec<FeedForward> {
    let mut arguments = Vec::new();
    collect(&subject.resolved().layers, &mut arguments);
    let built = subject.lowered.layers.iter().filter(|layer| matches!(layer.kind, MLP | MOE));
    let layer = |(layer, arguments): (&moec_model::LayerInfo, BTreeMap<String, ResolvedValue>)| FeedForward {
        path: layer.path.clone(),
        kind: layer.kind,
        span: layer.span,
        arguments,
    };
    built.zip(arguments).map(layer).collect()
}

/// The arguments of the feed-forward layers, in the order in which they are built.
fn collect(layers: &[ResolvedLayer], into: &mut Vec<BTreeMap<String, ResolvedValue>>) {
    for layer in layers {
        match (layer.layer.as_str(), layer.arguments.get("layers")) {
            (MLP | MOE, _) => into.push(layer.arguments.clone()),
            // Only some tokens go through these, and they are no layers of the trunk.
            ("mixture_of_depths", _) | (_, None) => {}
            (_, Some(ResolvedValue::Layers(inner))) => collect(inner, into),
            (_, Some(_)) => {}
        }
    }
}

/// That all experts of these layers of a model compute: of the others there is no tensor that could be taken or made.
pub(crate) fn all_compute(name: &str, layers: &[FeedForward]) -> Result<(), Error> {
    match layers.iter().find(|layer| layer.arguments.contains_key("zero_computation")) {
        None => Ok(()),
        Some(layer) => Err(wrong(format!(
            "`{}` of {name} has experts that compute nothing (`zero`, `copy` or `constant`), which can be neither taken out \
             nor put in",
            layer.path
        ))),
    }
}

/// That the experts of these layers of a model work on its width, so that an expert can be a layer of its own.
pub(crate) fn full_width(name: &str, layers: &[FeedForward]) -> Result<(), Error> {
    match layers.iter().find(|layer| layer.arguments.contains_key("latent")) {
        None => Ok(()),
        Some(layer) => Err(wrong(format!(
            "the experts of `{}` of {name} work on fewer channels (`latent`), and are no layers of the model's width",
            layer.path
        ))),
    }
}

/// That two feed-forward layers compute the same of the same numbers. What only training does, dropout, may differ.
pub(crate) fn same_meaning(
    (a, run): (&FeedForward, &str),
    (b, other): (&FeedForward, &str),
) -> Result<(), SurgeryError> {
    let differs = |argument: &str, found: String, expected: String| {
        SurgeryError::Meaning(Box::new(MeaningDifference {
            layer: a.path.clone(),
            argument: argument.to_string(),
            run: run.to_string(),
            found,
            other: other.to_string(),
            expected,
        }))
    };
    if a.kind != b.kind {
        return Err(differs("the kind", format!("`{}`", a.kind), format!("`{}`", b.kind)));
    }
    let (a, b) = (plain(&a.arguments), plain(&b.arguments));
    for (name, value) in &a {
        let other = b.get(name);
        if other != Some(value) {
            return Err(differs(&format!("`{name}`"), text(Some(value)), text(other)));
        }
    }
    match b.keys().find(|name| !a.contains_key(*name)) {
        Some(name) => Err(differs(&format!("`{name}`"), text(None), text(b.get(name)))),
        None => Ok(()),
    }
}

/// That everything around the feed-forward layers of two models computes the same.
pub(crate) fn same_trunk(a: &Subject, b: &Subject) -> Result<(), SurgeryError> {
    let (ours, theirs) = (a.resolved(), b.resolved());
    let differs = |layer: &str, argument: &str, found: String, expected: String| {
        SurgeryError::Meaning(Box::new(MeaningDifference {
            layer: layer.to_string(),
            argument: argument.to_string(),
            run: b.name.clone(),
            found,
            other: a.name.clone(),
            expected,
        }))
    };
    if ours.context != theirs.context {
        return Err(differs(&ours.name, "`context`", theirs.context.to_string(), ours.context.to_string()));
    }
    let (ours, theirs) = (flat(&ours.layers), flat(&theirs.layers));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        if ours != theirs {
            let (a, b) = (text(Some(&layer_value(ours))), text(Some(&layer_value(theirs))));
            return Err(differs(&ours.layer, "the layer", b, a));
        }
    }
    if ours.len() != theirs.len() {
        return Err(differs(
            &a.resolved().name,
            "the number of layers",
            theirs.len().to_string(),
            ours.len().to_string(),
        ));
    }
    Ok(())
}

/// The layers one after the other without dropout, feed-forward ones by kind alone.
fn flat(layers: &[ResolvedLayer]) -> Vec<ResolvedLayer> {
    let mut all = Vec::new();
    for layer in layers {
        let mut arguments = plain(&layer.arguments);
        let inner = arguments.remove("layers");
        let mut layer = layer.layer.clone();
        if matches!(layer.as_str(), MLP | MOE) {
            arguments.clear();
            layer = "feed-forward".to_string();
        }
        all.push(ResolvedLayer { layer, arguments });
        if let Some(ResolvedValue::Layers(inner)) = inner {
            all.extend(flat(&inner));
        }
    }
    all
}

fn layer_value(layer: &ResolvedLayer) -> ResolvedValue {
    let mut values = layer.arguments.clone();
    values.insert("layer".to_string(), ResolvedValue::Text(layer.layer.clone()));
    ResolvedValue::Map(values)
}

/// Arguments without what only training does.
fn plain(arguments: &BTreeMap<String, ResolvedValue>) -> BTreeMap<String, ResolvedValue> {
    let kept = arguments.iter().filter(|(name, _)| !matches!(name.as_str(), "dropout" | "balance"));
    kept.map(|(name, value)| (name.clone(), without_training(value))).collect()
}

fn without_training(value: &ResolvedValue) -> ResolvedValue {
    match value {
        ResolvedValue::Layers(layers) => ResolvedValue::Layers(
            layers.iter().map(|l| ResolvedLayer { layer: l.layer.clone(), arguments: plain(&l.arguments) }).collect(),
        ),
        other => other.clone(),
    }
}

fn text(value: Option<&ResolvedValue>) -> String {
    match value {
        None => "not there".to_string(),
        Some(ResolvedValue::Text(text)) => format!("`{text}`"),
        Some(value) => serde_yaml::to_string(value).unwrap_or_default().trim().replace('\n', ", "),
    }
}
