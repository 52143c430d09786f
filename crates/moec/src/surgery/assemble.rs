//! The tensors of a mixture, from those of runs.

use super::layers::{FeedForward, MLP};
use super::{MergeRecipe, ShapeDifference, SliceScale, Subject, SurgeryError, Trunk};
use moec_ir::{DType, Data, Invariant, Tensor, TensorType, random};
use moec_model::ResolvedValue;
use std::collections::BTreeMap;

/// Everything but the experts, under the names of the base.
///
/// # Errors
/// When the runs that are averaged have other tensors than the base.
pub(crate) fn trunk(
    recipe: &MergeRecipe,
    base: &Subject,
    donors: &[&Subject],
) -> Result<BTreeMap<String, Tensor>, SurgeryError> {
    if recipe.trunk == Trunk::Base {
        return Ok(base.tensors.clone());
    }
    let weights = match &recipe.weights {
        Some(weights) => weights.clone(),
        None => vec![1.0; donors.len()],
    };
    let of = |(name, tensor): (&String, &Tensor)| {
        let all = donors.iter().map(|donor| donor.tensor_of(name, name, &tensor.ty(), &base.name));
        let all = all.collect::<Result<Vec<_>, _>>()?;
        let mean = match recipe.trunk {
            _ if tensor.as_i32().is_some() => return Ok((name.clone(), tensor.clone())),
            Trunk::Spherical => spherical(&all, &weights),
            Trunk::Base | Trunk::Average => average(&all, &weights),
        };
        Ok((name.clone(), floats(tensor.shape(), mean)))
    };
    base.tensors.iter().map(of).collect()
}

pub(crate) fn floats(shape: &[usize], values: Vec<f64>) -> Tensor {
    let values = values.into_iter().map(|x| x as f32).collect();
    Tensor::new(shape, Data::F32(values)).invariant("there is a value for each element")
}

/// The weighted mean.
fn average(tensors: &[&Tensor], weights: &[f64]) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    let mut mean = vec![0.0; tensors.first().map_or(0, |t| t.ty().elements())];
    for (tensor, weight) in tensors.iter().zip(weights) {
        mean.iter_mut().zip(tensor.to_f64()).for_each(|(mean, x)| *mean += weight / total * x);
    }
    mean
}

/// The mean along the sphere: the mean of the first i is turned towards the next by that one's share of the weights so
/// far (Shoemake 1985, section 3.3). Of vectors that point the same way, it is the straight one.
fn spherical(tensors: &[&Tensor], weights: &[f64]) -> Vec<f64> {
    let mut pairs = tensors.iter().zip(weights).filter(|(_, weight)| **weight > 0.0);
    let Some((first, &weight)) = pairs.next() else { return Vec::new() };
    let (mut mean, mut total) = (first.to_f64(), weight);
    for (tensor, &weight) in pairs {
        total += weight;
        let t = weight / total;
        let next = tensor.to_f64();
        let (a, b) = (norm(&mean), norm(&next));
        let cosine = mean.iter().zip(&next).map(|(x, y)| x * y).sum::<f64>() / (a * b);
        let angle = cosine.clamp(-1.0, 1.0).acos();
        let (p, q) = match angle.sin() {
            // Straight where there is no arc, or none that is the shortest.
            sine if !sine.is_finite() || sine.abs() < 1e-6 => (1.0 - t, t),
            sine => (((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine),
        };
        mean.iter_mut().zip(next).for_each(|(mean, x)| *mean = p * *mean + q * x);
    }
    mean
}

pub(crate) fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Where the experts of a mixture come from.
pub(crate) struct Experts<'a> {
    /// The run and the layer of each source.
    pub(crate) sources: Vec<(&'a Subject, &'a FeedForward)>,
    pub(crate) recipe: &'a MergeRecipe,
    /// What a slice makes up for, s.
    pub(crate) factor: f64,
    /// Whether noise is added that the recipe asks for.
    pub(crate) noisy: bool,
}

impl Experts<'_> {
    /// The tensor of all experts that is `inner` (`up.weight`) in each source, of the type that the mixture has.
    pub(crate) fn stacked(&self, inner: &str, of: &str, ty: &TensorType) -> Result<Tensor, SurgeryError> {
        let MergeRecipe { copies, slices, residual_scale, noise, .. } = *self.recipe;
        if ty.dtype != DType::F32 {
            return self.table(inner, of, ty);
        }
        let mut all = Vec::with_capacity(ty.elements());
        let mut first: Option<(String, TensorType)> = None;
        for (run, layer) in &self.sources {
            let name = format!("{}.{inner}", layer.path);
            let (other, expected) = match &first {
                Some((other, ty)) => (other.clone(), ty.clone()),
                None => {
                    let found = run.tensors.get(&name).map(Tensor::ty);
                    (run.name.clone(), found.unwrap_or_else(|| TensorType::f32([])))
                }
            };
            let tensor = run.tensor_of(&name, of, &expected, &other)?;
            first.get_or_insert_with(|| (run.name.clone(), tensor.ty()));
            for _ in 0..copies {
                for slice in 0..slices {
                    let mut part = match (layer.kind, slices) {
                        (MLP, 2..) => self.slice(inner, tensor, slice),
                        _ => tensor.to_f64(),
                    };
                    if is_last_map(inner) {
                        part.iter_mut().for_each(|x| *x *= residual_scale);
                    }
                    all.extend(part);
                }
            }
        }
        if self.noisy && noise > 0.0 {
            let keys = random::keys(random::state(self.recipe.seed, 0), name_key(of));
            (0u32..).zip(&mut all).for_each(|(i, x)| *x += noise * random::normal_at(keys, i));
        }
        if all.len() != ty.elements() {
            let run = first.as_ref().map(|(run, _)| run.clone()).unwrap_or_default();
            let found = first.map_or_else(|| TensorType::f32([0]), |(_, ty)| ty);
            let (name, other) = (of.to_string(), "the new model".to_string());
            return Err(SurgeryError::Shape(Box::new(ShapeDifference {
                name,
                run,
                found,
                other,
                expected: ty.clone(),
            })));
        }
        Ok(floats(&ty.shape, all))
    }

    /// A table of whole numbers, which all sources must have in common: experts share it.
    fn table(&self, inner: &str, of: &str, ty: &TensorType) -> Result<Tensor, SurgeryError> {
        let mut found: Option<&Tensor> = None;
        for (run, layer) in &self.sources {
            let name = format!("{}.{inner}", layer.path);
            let tensor = run.tensor_of(&name, of, ty, "the new model")?;
            if found.is_some_and(|found| found != tensor) {
                return Err(SurgeryError::Recipe(format!(
                    "`{name}` of {} is another table than that of {}, and the experts have one in common",
                    run.name, self.sources[0].0.name
                )));
            }
            found = Some(tensor);
        }
        found.cloned().ok_or_else(|| SurgeryError::Recipe("`experts` names no run".to_string()))
    }

    /// A part of the hidden units of an `mlp`: rows of the maps to them, columns of the one from them.
    fn slice(&self, inner: &str, tensor: &Tensor, slice: usize) -> Vec<f64> {
        let slices = self.recipe.slices;
        let values = tensor.to_f64();
        let s = self.factor;
        let maps = if self.sources.first().is_some_and(|(_, layer)| is_gated(layer)) { 3.0 } else { 2.0 };
        let (hidden_by, down_by) = match self.recipe.slice_scale {
            SliceScale::Down => (1.0, s),
            SliceScale::Spread => (f64::powf(s, 1.0 / maps), f64::powf(s, 1.0 / maps)),
        };
        match (inner, tensor.shape()) {
            ("down.weight", &[_, hidden]) => {
                let part = hidden / slices;
                values.chunks(hidden).flat_map(|row| row[slice * part..][..part].iter().map(|x| x * down_by)).collect()
            }
            // Every slice adds its share of the one that the whole adds.
            ("down.bias", _) => values.iter().map(|x| x * s / slices as f64).collect(),
            _ => {
                let part = values.len() / slices;
                values[slice * part..][..part].iter().map(|x| x * hidden_by).collect()
            }
        }
    }
}

fn is_gated(layer: &FeedForward) -> bool {
    layer.arguments.get("activation") == Some(&ResolvedValue::Text("swiglu".to_string()))
}

/// Whether a tensor of an expert belongs to what leads back to the trunk: `down.weight`, `experts.mlp.down.bias`.
pub(crate) fn is_last_map(inner: &str) -> bool {
    inner.rsplit('.').nth(1) == Some("down")
}

/// A stream of random numbers for each tensor.
pub(crate) fn name_key(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| random::mix(hash ^ u32::from(byte)))
}

/// What a slice makes up for where the recipe does not say it, s: the reciprocal of its weight. With weights that add up to
/// 1 over what was chosen, G slices have 1 / G each. With those of a softmax over all E experts, of which k are chosen, a
/// token that likes all equally gives 1 / E to each of the k / G copies of a slice (Megatron-Core's rule for upcycling).
///
/// # Errors
/// When a token chooses a number of experts that is no multiple of the slices, so that it would miss some.
pub(crate) fn slice_factor(recipe: &MergeRecipe, mixture: &FeedForward) -> Result<f64, SurgeryError> {
    let slices = recipe.slices as f64;
    let Some(ResolvedValue::Map(route)) = mixture.arguments.get("route") else { return Ok(slices) };
    if let Some(&ResolvedValue::Int(k)) = route.get("k")
        && k % recipe.slices as i64 != 0
    {
        let (count, path) = (recipe.slices, &mixture.path);
        let message = format!("a token chooses {k} experts in `{path}`, which is no multiple of {count} slices");
        return Err(SurgeryError::Recipe(message));
    }
    Ok(match (recipe.slice_factor, route.get("normalize"), route.get("k")) {
        (Some(factor), _, _) => factor,
        (None, Some(ResolvedValue::Text(word)), Some(&ResolvedValue::Int(k))) if word == "all" => {
            recipe.experts() as f64 * slices / k as f64
        }
        _ => slices,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spherical_mean_keeps_the_length_and_halves_the_angle() {
        let (a, b) = (Tensor::floats([2.0, 0.0]), Tensor::floats([0.0, 2.0]));
        let mean = spherical(&[&a, &b], &[1.0, 1.0]);
        assert!(mean.iter().all(|x| (x - 2f64.sqrt()).abs() < 1e-12), "{mean:?}");
        // A third of the way where the first weighs twice as much.
        let third = spherical(&[&a, &b], &[2.0, 1.0]);
        assert!((third[1].atan2(third[0]).to_degrees() - 30.0).abs() < 1e-9, "{third:?}");
        // The same and the opposite have no arc; neither has zero.
        for other in [Tensor::floats([2.0, 0.0]), Tensor::floats([-2.0, 0.0]), Tensor::floats([0.0, 0.0])] {
            let mean = spherical(&[&a, &other], &[1.0, 1.0]);
            assert_eq!(mean, average(&[&a, &other], &[1.0, 1.0]));
        }
        assert_eq!(average(&[&a, &b], &[3.0, 1.0]), [1.5, 0.5]);
        // What weighs nothing is not there.
        assert_eq!(spherical(&[&a, &b, &b], &[0.0, 0.0, 1.0]), [0.0, 2.0]);
    }
}
