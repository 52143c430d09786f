//! What a run's checkpoints show of its routers that its metrics do not: whether noise still changes a choice, and whether
//! the weights still move.

use crate::cli::devices::Devices;
use crate::cli::exit::Failure;
use crate::cli::routing::forward;
use crate::cli::routing::record::{Record, Route};
use crate::diagnosis::Turn;
use crate::{Device, Run};
use moec_model::{Mode, MoeLayerInfo, Randomness};
use moec_plan::{StateDecl, StateKind};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Characters that are sent through a model once more, with noise.
const CHARACTERS: usize = 512;

/// The largest file of parameters that is read for this, in bytes.
const LARGEST: u64 = 1 << 29;

/// Whether the noise of a layer is there to try other experts, so that it is of no use once it changes no choice. That of
/// `gshard` leaves out its second expert instead.
pub(crate) fn is_noisy(layer: &MoeLayerInfo) -> bool {
    layer.traits.random == Randomness::Training && layer.strategy != "gshard"
}

/// By layers with noise in training, the share of characters that it sends to other experts than `record` says.
///
/// # Errors
/// When the device fails.
pub(crate) fn noise(
    run: &Run,
    record: &Record,
    device: Device,
    devices: Devices,
) -> Result<BTreeMap<String, f64>, Failure> {
    let layers = run.compiled.lowered.moe_layers.iter().filter(|layer| is_noisy(layer));
    let layers: BTreeSet<&str> = layers.map(|layer| layer.path.as_str()).collect();
    if layers.is_empty() {
        return Ok(BTreeMap::new());
    }
    // Whole windows, so that all that a character sees is the same.
    let context = record.header.context.max(1);
    let characters = (CHARACTERS / context).max(1) * context;
    let text: String = record.header.text.chars().take(characters).collect();
    // Another seed than that of the record, which may have noise of its own.
    let noisy = forward::recorded(run, &text, record.header.seed + 1, Mode::Train, device, devices)?;
    Ok(differences(record, &noisy, &layers))
}

/// The shares of characters with other experts, for these layers.
fn differences(record: &Record, noisy: &Record, layers: &BTreeSet<&str>) -> BTreeMap<String, f64> {
    let key = |r: &Route| (r.layer.clone(), r.position);
    let experts = |r: &Route| {
        let mut experts = r.experts.clone();
        experts.sort_unstable();
        experts
    };
    let before: BTreeMap<(String, usize), Vec<usize>> = record.routes.iter().map(|r| (key(r), experts(r))).collect();
    let share = |path: &str| {
        let routes: Vec<&Route> = noisy.routes.iter().filter(|r| r.layer == path).collect();
        let other = routes.iter().filter(|r| before.get(&key(r)).is_some_and(|b| *b != experts(r))).count();
        (!routes.is_empty()).then(|| other as f64 / routes.len() as f64)
    };
    layers.iter().filter_map(|path| Some((path.to_string(), share(path)?))).collect()
}

/// How far the routers of these layers moved between the two newest checkpoints; nothing where there are no two.
pub(crate) fn turns(root: &Path, states: &[StateDecl], layers: &[MoeLayerInfo]) -> BTreeMap<String, Turn> {
    let checkpoints = moec_runtime::checkpoints(root).unwrap_or_default();
    let [.., (from, before), (to, after)] = &checkpoints[..] else { return BTreeMap::new() };
    let read = |folder: &Path| {
        let file = folder.join("model.safetensors");
        let length = std::fs::metadata(&file).ok()?.len();
        if length <= LARGEST { moec_runtime::read_tensors(&file).ok() } else { None }
    };
    let (Some(before), Some(after)) = (read(before), read(after)) else { return BTreeMap::new() };
    let weights: Vec<&str> =
        states.iter().filter(|s| s.kind == StateKind::Parameter).map(|s| s.name.as_str()).collect();
    let angle = |is_meant: &dyn Fn(&str) -> bool| {
        let all = |tensors: &BTreeMap<String, moec_ir::Tensor>| -> Vec<f32> {
            let names = weights.iter().filter(|name| is_meant(name));
            names.filter_map(|name| tensors.get(*name)).flat_map(moec_ir::Tensor::to_f32).collect()
        };
        angle(&all(&before), &all(&after))
    };
    let turn = |layer: &MoeLayerInfo| {
        let is_router = |name: &str| is_of_router(name, &layer.path);
        let router = angle(&is_router)?;
        let others = angle(&|name| !is_router(name))?;
        Some((layer.path.clone(), Turn { steps: (*from, *to), router, others }))
    };
    layers.iter().filter_map(turn).collect()
}

/// Whether a tensor belongs to a layer and not to its experts.
fn is_of_router(name: &str, path: &str) -> bool {
    let rest = name.strip_prefix(path).and_then(|rest| rest.strip_prefix('.'));
    rest.is_some_and(|rest| !rest.starts_with("experts.") && !rest.starts_with("shared."))
}

/// The angle between two vectors in degrees; none where one is zero.
fn angle(a: &[f32], b: &[f32]) -> Option<f64> {
    let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let (long_a, long_b) = (norm(a), norm(b));
    if a.len() != b.len() || long_a == 0.0 || long_b == 0.0 {
        return None;
    }
    // Of the unit vectors' difference and sum, which is exact where the angle is small.
    let pairs = || a.iter().zip(b).map(|(a, b)| (f64::from(*a) / long_a, f64::from(*b) / long_b));
    let difference = pairs().map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let sum = pairs().map(|(a, b)| (a + b).powi(2)).sum::<f64>().sqrt();
    Some(2.0 * difference.atan2(sum).to_degrees())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::routing::record::{Header, Layer, SCHEMA};

    #[test]
    fn angles_do_not_see_lengths() {
        assert!(angle(&[1.0, 0.0], &[0.5, 0.0]).unwrap() < 1e-9);
        assert!((angle(&[1.0, 0.0], &[0.0, 3.0]).unwrap() - 90.0).abs() < 1e-9);
        assert_eq!((angle(&[0.0], &[1.0]), angle(&[1.0], &[1.0, 1.0])), (None, None));
        let small = angle(&[1.0, 0.0], &[1.0, 1e-4]).unwrap();
        assert!((small - 1e-4f64.to_degrees()).abs() < 1e-8, "{small}");
    }

    #[test]
    fn tensors_of_experts_are_not_of_the_router() {
        let of = |name| is_of_router(name, "blocks.0.moe");
        assert!(of("blocks.0.moe.router.weight") && of("blocks.0.moe.noise.bias"));
        assert!(!of("blocks.0.moe.experts.mlp.up.weight") && !of("blocks.0.moe.shared.mlp.up.weight"));
        assert!(!of("blocks.0.moe_2.router.weight") && !of("blocks.0.attention.qkv.weight"));
    }

    #[test]
    fn characters_with_other_experts_are_counted() {
        let record = |routes: &[&[usize]]| {
            let route = |(position, experts): (usize, &&[usize])| Route {
                layer: "moe".into(),
                position,
                character: 'a',
                experts: experts.to_vec(),
                weights: vec![0.5; experts.len()],
                dropped: vec![false; experts.len()],
            };
            let header = Header {
                schema: SCHEMA.into(),
                run: String::new(),
                checkpoint: 1,
                model_sha256: String::new(),
                model: String::new(),
                device: String::new(),
                seed: 0,
                context: 2,
                text: String::new(),
                layers: vec![Layer { path: "moe".into(), strategy: "noisy_top_k".into(), experts: 4 }],
            };
            Record { header, windows: Vec::new(), routes: routes.iter().enumerate().map(route).collect() }
        };
        let quiet = record(&[&[0, 1], &[2, 3], &[1, 2], &[0, 3], &[0, 2]]);
        // The same in another order is the same; the last one is not asked again.
        let noisy = record(&[&[1, 0], &[2, 3], &[1, 3], &[0, 3]]);
        let layers = BTreeSet::from(["moe"]);
        assert_eq!(differences(&quiet, &noisy, &layers), BTreeMap::from([("moe".to_string(), 0.25)]));
        assert!(differences(&quiet, &noisy, &BTreeSet::from(["other"])).is_empty());
    }
}
