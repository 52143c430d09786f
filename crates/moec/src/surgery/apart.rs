//! A mixture taken apart: one expert as a dense model, or fewer experts.

use super::assemble::floats;
use super::certificate::{self, Alone};
use super::layers::{FeedForward, MOE, all_compute, feed_forward, full_width};
use super::{Certificate, Subject, Witnesses, text, wrong};
use crate::error::Error;
use moec_ir::{Data, Invariant, Output, Tensor};
use moec_model::{Registry, ResolvedValue};
use moec_plan::StateKind;
use std::collections::BTreeMap;

/// A model that was taken out of another one, and what was kept.
#[derive(Debug)]
pub struct Taken {
    /// The model.
    pub subject: Subject,
    /// What was kept.
    pub certificate: Certificate,
}

/// Which experts of every mixture are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// These.
    These(Vec<usize>),
    /// As many as that, those that are used most.
    Most(usize),
    /// Those that are used at all.
    Used,
}

/// The mixtures of a model that are not inside an expert, of which there must be one.
fn mixtures(run: &Subject) -> Result<Vec<FeedForward>, Error> {
    let layers: Vec<FeedForward> = feed_forward(run).into_iter().filter(|layer| layer.kind == MOE).collect();
    all_compute(&run.name, &layers)?;
    if layers.is_empty() { Err(wrong(format!("{} has no `moe`", run.name))) } else { Ok(layers) }
}

/// The refusal of an expert that there is not.
fn no_expert(layer: &FeedForward, expert: usize, experts: usize) -> Error {
    wrong(format!("`{}` has no expert {expert}: they are 0 to {}", layer.path, experts - 1))
}

/// The dense model of one expert: every mixture is replaced by that expert of it.
///
/// # Errors
/// When there is no such expert, or the mixture does more than its experts.
pub fn extract(run: &Subject, expert: usize, registry: &Registry, witnesses: &Witnesses<'_>) -> Result<Taken, Error> {
    let layers = mixtures(run)?;
    full_width(&run.name, &layers)?;
    for layer in &layers {
        let experts = layer.experts().invariant("a `moe` has a number of experts");
        if expert >= experts {
            return Err(no_expert(layer, expert, experts));
        }
        if layer.arguments.contains_key("shared") {
            return Err(wrong(format!(
                "`{}` has shared experts, which every token goes to as well: one expert alone is not what it computes",
                layer.path
            )));
        }
        if !matches!(layer.arguments.get("expert"), Some(ResolvedValue::Layers(layers)) if layers.len() == 1) {
            let path = &layer.path;
            return Err(wrong(format!(
                "the experts of `{path}` are several layers each, which have other names alone"
            )));
        }
    }
    let spec = text::rewritten(run, &layers, registry, |source, file, layer| {
        Ok((layer.span, text::as_expert(source, file, layer)?))
    })?;
    let name = format!("expert {expert} of {}", run.name);
    let mut subject = Subject::new(name, spec, run.vocab.clone(), BTreeMap::new())?;
    let dense = feed_forward(&subject);
    let before = feed_forward(run);
    if dense.len() != before.len() {
        let message = "the experts are neither `mlp` nor `moe`: what they are called alone is not known";
        return Err(wrong(message.to_string()));
    }
    for state in subject.states.iter().filter(|state| state.kind.of_model()) {
        let layer = dense.iter().zip(&before).find_map(|(new, old)| Some((new.inner(&state.name)?, new, old)));
        let (name, part) = match layer {
            Some((inner, new, old)) if old.kind == MOE => {
                let experts = old.experts().invariant("a `moe` has a number of experts");
                (format!("{}.experts.{}.{inner}", old.path, new.kind), Some(experts))
            }
            Some((inner, _, old)) => (format!("{}.{inner}", old.path), None),
            None => (state.name.clone(), None),
        };
        let tensor = run.tensor(&name, &state.name)?;
        let tensor = match part {
            None => tensor.clone(),
            Some(experts) => {
                let values = tensor.to_f64();
                let size = values.len() / experts;
                floats(&state.ty.shape, values[expert * size..][..size].to_vec())
            }
        };
        subject.tensors.insert(state.name.clone(), tensor);
    }
    let mut certificate = Certificate::new("extract", witnesses);
    let paths: Vec<String> = layers.iter().map(|layer| layer.path.clone()).collect();
    let alone =
        Alone { says: format!("every token sent to expert {expert}"), experts: vec![expert], must_be: &subject };
    certificate::alone(&mut certificate, run, &paths, &[alone], witnesses)?;
    for claim in &mut certificate.claims {
        claim.says = format!("the dense model is {} with every token sent to expert {expert}", run.name);
    }
    certificate::distances(&mut certificate, &subject, &[run], witnesses)?;
    certificate.upheld()?;
    Ok(Taken { subject, certificate })
}

/// How often each expert of each mixture is given a character of the text, by path.
///
/// # Errors
/// When the device fails.
pub fn usage(run: &Subject, witnesses: &Witnesses<'_>) -> Result<BTreeMap<String, Vec<usize>>, Error> {
    let Some(&(device, backend)) = witnesses.devices.last() else { return Ok(BTreeMap::new()) };
    let context = run.spec.checked.model.context;
    let windows = super::windows_of(&witnesses.tokens, context, 0);
    let outputs = certificate::outputs(run, device, backend, &windows)?;
    let mut counts = BTreeMap::new();
    for layer in mixtures(run)? {
        let experts = layer.experts().invariant("a `moe` has a number of experts");
        let mut used = vec![0; experts];
        for (window, outputs) in outputs.iter().enumerate() {
            let gates = outputs.get(&Output::Gates(layer.path.clone())).invariant("a layer that routes has gates");
            // Not what the padding behind the text goes to.
            let own = witnesses.tokens.len().saturating_sub(window * context).min(context);
            for row in gates.to_f64().chunks(experts).take(own) {
                row.iter().zip(&mut used).filter(|(weight, _)| **weight != 0.0).for_each(|(_, used)| *used += 1);
            }
        }
        counts.insert(layer.path, used);
    }
    Ok(counts)
}

/// The experts that each mixture keeps, in order, by path. Mixtures that are written once keep equally many.
fn kept(
    run: &Subject,
    wanted: &Kept,
    used: &BTreeMap<String, Vec<usize>>,
) -> Result<BTreeMap<String, Vec<usize>>, Error> {
    let layers = mixtures(run)?;
    let most = |layer: &FeedForward, count: usize| -> Result<Vec<usize>, Error> {
        let counts = used.get(&layer.path).ok_or_else(|| wrong(format!("the record has no layer `{}`", layer.path)))?;
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.sort_by_key(|&expert| std::cmp::Reverse(counts[expert]));
        order.truncate(count);
        order.sort_unstable();
        Ok(order)
    };
    let mut all = BTreeMap::new();
    for layer in &layers {
        let experts = layer.experts().invariant("a `moe` has a number of experts");
        let these = match wanted {
            Kept::These(these) => {
                if let Some(none) = these.iter().find(|&&expert| expert >= experts) {
                    return Err(no_expert(layer, *none, experts));
                }
                let mut these = these.clone();
                these.sort_unstable();
                these.dedup();
                these
            }
            Kept::Most(count) if *count > experts => {
                return Err(wrong(format!("`{}` has {experts} experts, fewer than {count}", layer.path)));
            }
            Kept::Most(count) => most(layer, *count)?,
            Kept::Used => {
                let alike = layers.iter().filter(|other| other.span == layer.span);
                let in_use = alike.filter_map(|l| used.get(&l.path)).map(|c| c.iter().filter(|&&n| n > 0).count());
                most(layer, in_use.max().unwrap_or(experts))?
            }
        };
        if these.is_empty() {
            return Err(wrong(format!("nothing would be left of `{}`", layer.path)));
        }
        all.insert(layer.path.clone(), these);
    }
    if layers.iter().all(|layer| layer.experts() == Some(all[&layer.path].len())) {
        return Err(wrong(format!("every expert of {} would be kept, so there is nothing to drop", run.name)));
    }
    Ok(all)
}

/// A mixture with fewer experts. `used` says how often each was used, by path of the layer.
///
/// # Errors
/// When nothing would be left, or a router does not say which of its numbers belong to which expert.
pub fn prune(
    run: &Subject,
    wanted: &Kept,
    used: &BTreeMap<String, Vec<usize>>,
    registry: &Registry,
    witnesses: &Witnesses<'_>,
) -> Result<(Taken, BTreeMap<String, Vec<usize>>), Error> {
    let layers = mixtures(run)?;
    let kept = kept(run, wanted, used)?;
    let spec = text::rewritten(run, &layers, registry, |_, file, layer| {
        Ok((text::count_of(file, layer)?, kept[&layer.path].len().to_string()))
    })?;
    let mut subject = Subject::new("the pruned model".to_string(), spec, run.vocab.clone(), BTreeMap::new())?;
    for state in subject.states.iter().filter(|state| state.kind.of_model()) {
        let tensor = run.tensor(&state.name, &state.name)?;
        let layer = layers.iter().find(|layer| layer.inner(&state.name).is_some());
        let tensor = match layer {
            None => tensor.clone(),
            Some(layer) => {
                let experts = layer.experts().invariant("a `moe` has a number of experts");
                let refused = || {
                    wrong(format!(
                        "`{}` is {} in {} and would be {}: it is not known which of its numbers belong to which expert",
                        state.name,
                        tensor.ty(),
                        run.name,
                        state.ty
                    ))
                };
                if state.kind != StateKind::Parameter && tensor.as_i32().is_some() {
                    return Err(wrong(format!(
                        "`{}` names the experts of tokens, also those that would be gone",
                        state.name
                    )));
                }
                selected(tensor, &state.ty.shape, experts, &kept[&layer.path]).ok_or_else(refused)?
            }
        };
        subject.tensors.insert(state.name.clone(), tensor);
    }
    let mut certificate = Certificate::new("prune", witnesses);
    let promised = |new: &BTreeMap<Output, Tensor>, old: &BTreeMap<Output, Tensor>| {
        layers.iter().try_for_each(|layer| same_gates(new, old, &layer.path, &kept[&layer.path]))
    };
    certificate::as_it_routes(&mut certificate, &subject, run, promised, witnesses)?;
    certificate::distances(&mut certificate, &subject, &[run], witnesses)?;
    certificate.upheld()?;
    Ok((Taken { subject, certificate }, kept))
}

/// That all weights of the experts that are left are what they were, so that those which are gone had none.
fn same_gates(
    new: &BTreeMap<Output, Tensor>,
    old: &BTreeMap<Output, Tensor>,
    path: &str,
    kept: &[usize],
) -> Result<(), String> {
    let gates = |outputs: &BTreeMap<Output, Tensor>| {
        let gates = outputs.get(&Output::Gates(path.to_string())).invariant("a layer that routes has gates");
        (gates.to_f64(), gates.shape().last().copied().unwrap_or(1))
    };
    let ((new, columns), (old, before)) = (gates(new), gates(old));
    for (new, old) in new.chunks(columns).zip(old.chunks(before)) {
        let gone = (0..before).find(|expert| old[*expert] != 0.0 && !kept.contains(expert));
        if let Some(expert) = gone {
            return Err(format!("expert {expert} of `{path}`, which is gone, worked on characters of the text"));
        }
        if new.iter().zip(kept).any(|(new, &expert)| (new - old[expert]).abs() > 1e-5) {
            return Err(format!("the weights in `{path}` depend on the experts that are gone"));
        }
    }
    Ok(())
}

/// The parts of a tensor that belong to some experts: along the one axis that is not as before.
fn selected(tensor: &Tensor, shape: &[usize], experts: usize, kept: &[usize]) -> Option<Tensor> {
    if tensor.shape() == shape {
        return Some(tensor.clone());
    }
    let mut differing = (0..shape.len()).filter(|&axis| tensor.shape().get(axis) != Some(&shape[axis]));
    let (axis, None) = (differing.next()?, differing.next()) else { return None };
    let (before, after) = (*tensor.shape().get(axis)?, shape[axis]);
    if tensor.shape().len() != shape.len() || !before.is_multiple_of(experts) {
        return None;
    }
    // Numbers that one expert has along the axis: slots, or inner experts.
    let each = before / experts;
    if after != each * kept.len() {
        return None;
    }
    let inner: usize = shape[axis + 1..].iter().product::<usize>() * each;
    let values = tensor.to_f32();
    let outer = values.chunks(inner * experts);
    let parts = outer.flat_map(|outer| kept.iter().flat_map(move |&expert| &outer[expert * inner..][..inner]));
    Tensor::new(shape, Data::F32(parts.copied().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_an_expert_lies_along_one_axis() {
        let tensor = |shape: &[usize]| {
            let n: usize = shape.iter().product();
            Tensor::new(shape, Data::F32((0..n).map(|i| i as f32).collect())).unwrap()
        };
        let rows = selected(&tensor(&[3, 2]), &[2, 2], 3, &[0, 2]).unwrap();
        assert_eq!(rows.to_f32(), [0.0, 1.0, 4.0, 5.0]);
        let columns = selected(&tensor(&[2, 3]), &[2, 1], 3, &[1]).unwrap();
        assert_eq!(columns.to_f32(), [1.0, 4.0]);
        // Two slots for each of three experts.
        let slots = selected(&tensor(&[1, 6]), &[1, 4], 3, &[0, 2]).unwrap();
        assert_eq!(slots.to_f32(), [0.0, 1.0, 4.0, 5.0]);
        assert_eq!(selected(&tensor(&[4]), &[4], 3, &[0]), Some(tensor(&[4])));
        assert_eq!(selected(&tensor(&[3, 3]), &[2, 2], 3, &[0, 1]), None);
        assert_eq!(selected(&tensor(&[4]), &[2], 3, &[0, 1]), None);
    }
}
