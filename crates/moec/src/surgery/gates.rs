//! The rows by which the router of a new mixture decides.

use super::assemble::{floats, name_key, norm};
use super::forward::{Prepared, windows_of};
use super::layers::FeedForward;
use super::{Gates, MergeRecipe, Subject, SurgeryError, wrong};
use crate::device::Device;
use crate::error::Error;
use crate::pipeline::{self, Function};
use moec_ir::{Builder, Invariant, Op, Output, TOKEN_TABLE, Tensor, random};
use moec_model::{Lowered, NoisePolicy};
use std::collections::BTreeMap;

/// Largest condition number of a router's rows that is not remarked on: mergekit's.
const WELL_CONDITIONED: f64 = 5.0;
/// Cosine of two rows from which on they are nearly the same.
const NEARLY_THE_SAME: f64 = 0.99;

/// What the prompts of each expert look like to each router: a unit vector for each source, by layer.
pub(crate) type Directions = Vec<Vec<Vec<f64>>>;

/// The unit vectors of all sources at the layers of a base run, which are `layers`.
///
/// # Errors
/// When an expert has no prompts, all have the same, or the base does not know a character.
pub(crate) fn directions(recipe: &MergeRecipe, base: &Subject, layers: &[FeedForward]) -> Result<Directions, Error> {
    for (i, source) in recipe.experts.iter().enumerate() {
        if source.prompts().0.is_empty() {
            let run = source.run().display();
            return Err(wrong(format!("expert {i} ({run}) has no `positive_prompts`, and its gate is made of them")));
        }
    }
    let prompts = |i: usize| recipe.experts[i].prompts();
    if recipe.experts.len() > 1 && (1..recipe.experts.len()).all(|i| prompts(i) == prompts(0)) {
        return Err(wrong("all experts have the same prompts: no router could tell them apart".to_string()));
    }
    if recipe.copies > 1 {
        return Err(wrong("copies of an expert have the same prompts: no router could tell them apart".to_string()));
    }
    let mut seen = Seen::new(recipe.gates, base, layers)?;
    let mut all = vec![Vec::new(); layers.len()];
    for source in &recipe.experts {
        let (positive, negative) = source.prompts();
        let mut sum = seen.mean(positive)?;
        if !negative.is_empty() {
            let other = seen.mean(negative)?;
            sum.iter_mut().zip(other).for_each(|(sum, other)| sum.iter_mut().zip(other).for_each(|(x, y)| *x -= y));
        }
        for (of_layer, mut row) in all.iter_mut().zip(sum) {
            let length = norm(&row);
            if length == 0.0 {
                let run = source.run().display();
                return Err(wrong(format!("the prompts of {run} cancel each other")));
            }
            row.iter_mut().for_each(|x| *x /= length);
            of_layer.push(row);
        }
    }
    Ok(all)
}

/// How prompts look to the layers of a run.
enum Seen<'a> {
    /// What each layer is given, after the last character or on average.
    Hidden { base: &'a Subject, prepared: Prepared, layers: usize, last: bool },
    /// The mean of their token vectors, for that many layers.
    Tokens { base: &'a Subject, layers: usize },
}

impl<'a> Seen<'a> {
    fn new(gates: Gates, base: &'a Subject, layers: &[FeedForward]) -> Result<Self, Error> {
        if gates == Gates::Embedding {
            return Ok(Seen::Tokens { base, layers: layers.len() });
        }
        let checked = &base.spec.checked;
        let lowered = pipeline::lower(
            &checked.model,
            &checked.recipe,
            base.vocab.len(),
            Function::Logits,
            NoisePolicy::Generated,
        );
        let failed = |e: pipeline::CompileError| e.at(&base.spec.source);
        let graph = lowered.map_err(|e| failed(e.into()))?.graph;
        let given = layers.iter().map(|layer| given_to(&graph, layer)).collect::<Result<Vec<_>, _>>()?;
        let mut graph = graph;
        graph.retain_outputs(|_| false);
        let mut b = Builder::extend(graph);
        for (number, value) in given.into_iter().enumerate() {
            b.output(Output::Rows(number.to_string()), value);
        }
        let graph = b.finish().map_err(|e| failed(e.into()))?;
        // Prompts are few, and the reference knows no rounding.
        let device = Device::Interpreter;
        let mut prepared = Prepared::new(&graph, &base.spec.source, device, &*device.open()?)?;
        prepared.write(|name| base.tensors.get(name))?;
        Ok(Seen::Hidden { base, prepared, layers: layers.len(), last: gates == Gates::Last })
    }

    /// The mean over prompts, a vector for each layer.
    fn mean(&mut self, prompts: &[String]) -> Result<Vec<Vec<f64>>, Error> {
        let mut mean: Vec<Vec<f64>> = Vec::new();
        for prompt in prompts {
            let vectors = self.of(prompt)?;
            if mean.is_empty() {
                mean = vectors.iter().map(|vector| vec![0.0; vector.len()]).collect();
            }
            for (sum, vector) in mean.iter_mut().zip(vectors) {
                sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum += x / prompts.len() as f64);
            }
        }
        Ok(mean)
    }

    fn of(&mut self, prompt: &str) -> Result<Vec<Vec<f64>>, Error> {
        let base = match self {
            Seen::Hidden { base, .. } | Seen::Tokens { base, .. } => *base,
        };
        let tokens = base.vocab.encode(prompt).map_err(|e| wrong(format!("prompt {prompt:?}: {e}")))?;
        if tokens.is_empty() {
            return Err(wrong("a prompt is empty".to_string()));
        }
        match self {
            Seen::Tokens { base, layers } => {
                let table = base.tensors.get(TOKEN_TABLE).invariant("every model has token vectors");
                let width = table.shape().last().copied().unwrap_or(1);
                let values = table.to_f64();
                let rows =
                    tokens.iter().filter_map(|&t| usize::try_from(t).ok()).map(|t| &values[t * width..][..width]);
                let mean = mean_of(rows, width);
                Ok(vec![mean; *layers])
            }
            Seen::Hidden { base, prepared, layers, last } => {
                let context = base.spec.checked.model.context;
                // Of a longer prompt, its end.
                let tokens = &tokens[tokens.len().saturating_sub(context)..];
                let window = windows_of(tokens, context, 0).pop().invariant("a prompt has a window");
                let outputs = prepared.run(&window)?;
                let vector = |layer: usize| {
                    let given = outputs.get(&Output::Rows(layer.to_string())).invariant("it was declared");
                    let width = given.shape().last().copied().unwrap_or(1);
                    let values = given.to_f64();
                    let mut rows = values.chunks(width).take(tokens.len());
                    match last {
                        true => rows.next_back().map(<[f64]>::to_vec).unwrap_or_default(),
                        false => mean_of(rows, width),
                    }
                };
                Ok((0..*layers).map(vector).collect())
            }
        }
    }
}

fn mean_of<'a>(rows: impl Iterator<Item = &'a [f64]>, width: usize) -> Vec<f64> {
    let (mut sum, mut count) = (vec![0.0; width], 0.0);
    for row in rows {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        count += 1.0;
    }
    sum.iter_mut().for_each(|x| *x /= count);
    sum
}

/// What a feed-forward layer is given: the first value that one of its tensors is multiplied with.
fn given_to(graph: &moec_ir::Graph, layer: &FeedForward) -> Result<moec_ir::Value, SurgeryError> {
    let is_of_layer = |value: &moec_ir::Value| match &graph.node(value.node).op {
        Op::Parameter { name, .. } => layer.inner(name).is_some(),
        _ => false,
    };
    let given = graph.ids().find_map(|id| {
        let operands = graph.operands(id);
        let reads = matches!(graph.node(id).op, Op::MatMul { .. }) && operands.iter().any(is_of_layer);
        reads.then(|| operands.iter().copied().find(|value| !is_of_layer(value))).flatten()
    });
    // The router of a mixture comes first, if it looks at what it is given.
    given.ok_or_else(|| {
        let message = "is a mixture whose router does not look at activations, so it is not known what it is given";
        SurgeryError::Recipe(format!("`{}` {message}: use `gates: embedding`", layer.path))
    })
}

/// The parameter of a mixture's router that has a row for each expert.
///
/// # Errors
/// When there is none, or it cannot be told which.
pub(crate) fn gate_of(
    lowered: &Lowered,
    mixture: &FeedForward,
    experts: usize,
    width: usize,
) -> Result<String, SurgeryError> {
    let mut rows: Vec<&str> = lowered
        .graph
        .ids()
        .filter_map(|id| match &lowered.graph.node(id).op {
            Op::Parameter { name, ty } if own(lowered, mixture, name) && ty.shape == [experts, width] => {
                Some(name.as_str())
            }
            _ => None,
        })
        .collect();
    rows.dedup();
    let usual = format!("{}.router.weight", mixture.path);
    match rows.as_slice() {
        _ if rows.contains(&usual.as_str()) => Ok(usual),
        [only] => Ok((*only).to_string()),
        [] => Err(SurgeryError::Recipe(format!(
            "the router of `{}` has no row for each expert that could be made: use `gates: fresh`",
            mixture.path
        ))),
        several => Err(SurgeryError::Recipe(format!(
            "the router of `{}` has several rows for each expert ({}): use `gates: fresh`",
            mixture.path,
            several.join(", ")
        ))),
    }
}

/// Whether a parameter is what the router of this mixture decides by, not one inside an expert.
pub(crate) fn own(lowered: &Lowered, mixture: &FeedForward, parameter: &str) -> bool {
    let inner = mixture.inner(parameter);
    inner.is_some_and(|inner| !inner.starts_with("experts.")) && lowered.router_parameters.contains(parameter)
}

/// The parameters of a mixture's router: `tensors` as they begin, with rows that the recipe asks for. Slices of a copy have
/// the row of the first, so that a token that chooses one chooses all.
///
/// # Errors
/// When the router has no such rows.
pub(crate) fn rows(
    recipe: &MergeRecipe,
    lowered: &Lowered,
    mixture: &FeedForward,
    width: usize,
    directions: Option<&Vec<Vec<f64>>>,
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<Vec<String>, SurgeryError> {
    let experts = recipe.experts();
    let parameters: Vec<String> = tensors.keys().filter(|name| own(lowered, mixture, name)).cloned().collect();
    if recipe.gates != Gates::Fresh {
        let gate = gate_of(lowered, mixture, experts, width)?;
        let keys = random::keys(random::state(recipe.seed, 0), name_key(&gate));
        let uniform = |i: u32| 2.0 * random::uniform(random::bits(keys, i)) - 1.0;
        let values: Vec<f64> = match recipe.gates {
            Gates::Random => (0..(experts * width) as u32).map(|i| random::normal_at(keys, i)).collect(),
            Gates::Uniform => (0..(experts * width) as u32).map(|i| uniform(i) / (width as f64).sqrt()).collect(),
            Gates::Last | Gates::Average | Gates::Embedding => {
                let of_source = directions.invariant("directions were made for gates from prompts");
                of_source.iter().flat_map(|row| row.repeat(recipe.slices)).collect()
            }
            Gates::Zero | Gates::Fresh | Gates::Copied => vec![0.0; experts * width],
        };
        tensors.insert(gate.clone(), floats(&[experts, width], values));
        // Whatever else shifts the scores of experts starts at nothing.
        for name in &parameters {
            if *name != gate && tensors.get(name).is_some_and(|t| t.shape() == [experts]) {
                tensors.insert(name.clone(), floats(&[experts], vec![0.0; experts]));
            }
        }
    }
    if recipe.slices > 1 {
        for name in &parameters {
            let Some(tensor) = tensors.get(name).filter(|t| t.shape().first() == Some(&experts)) else { continue };
            let values = tensor.to_f64();
            let columns = values.len() / experts;
            let first = |e: usize| &values[e / recipe.slices * recipe.slices * columns..][..columns];
            let tied = floats(tensor.shape(), (0..experts).flat_map(|e| first(e).iter().copied()).collect());
            tensors.insert(name.clone(), tied);
        }
    }
    let gate = gate_of(lowered, mixture, experts, width).ok();
    let remark = gate.and_then(|gate| tensors.get(&gate)).map(|rows| judged(&mixture.path, rows, recipe.slices));
    Ok(remark.into_iter().flatten().collect())
}

/// What is to be said of the rows of a router: that they are ill-conditioned, or two of them nearly the same.
fn judged(path: &str, rows: &Tensor, slices: usize) -> Vec<String> {
    let width = rows.shape().last().copied().unwrap_or(1);
    let values = rows.to_f64();
    // Slices have the same row on purpose.
    let rows: Vec<&[f64]> = values.chunks(width).step_by(slices).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    if rows.iter().all(|row| norm(row) == 0.0) {
        return Vec::new();
    }
    let mut remarks = Vec::new();
    'pairs: for (i, a) in rows.iter().enumerate() {
        for (j, b) in rows.iter().enumerate().skip(i + 1) {
            let cosine = dot(a, b) / (norm(a) * norm(b));
            if cosine > NEARLY_THE_SAME {
                let (i, j) = (i * slices, j * slices);
                remarks.push(format!(
                    "the gates of experts {i} and {j} in `{path}` are nearly the same (cosine {cosine:.4}): the router can hardly tell them apart"
                ));
                break 'pairs;
            }
        }
    }
    let gram: Vec<Vec<f64>> = rows.iter().map(|a| rows.iter().map(|b| dot(a, b)).collect()).collect();
    let spectrum = eigenvalues(gram);
    let largest = spectrum.iter().copied().fold(0.0, f64::max);
    let smallest = spectrum.iter().copied().fold(f64::INFINITY, f64::min).max(0.0);
    let condition = (largest / smallest).sqrt();
    if rows.len() <= width && condition > WELL_CONDITIONED {
        let condition = if condition < 1e6 { format!("{condition:.1}") } else { "unbounded".to_string() };
        remarks.push(format!(
            "the gates of `{path}` are ill-conditioned (condition number {condition}, at most {WELL_CONDITIONED} is good): some experts will hardly be used"
        ));
    }
    remarks
}

/// Eigenvalues of a symmetric matrix by Jacobi's rotations (Golub & Van Loan, Matrix Computations, 8.5).
fn eigenvalues(mut a: Vec<Vec<f64>>) -> Vec<f64> {
    let n = a.len();
    for _ in 0..50 {
        let off: f64 = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j] * a[i][j]).sum();
        let all: f64 = (0..n).map(|i| a[i][i] * a[i][i]).sum();
        if off <= 1e-24 * all {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[p][q] == 0.0 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let t = if theta == 0.0 { 1.0 } else { t };
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                for row in &mut a {
                    let (x, y) = (row[p], row[q]);
                    (row[p], row[q]) = (c * x - s * y, s * x + c * y);
                }
                for k in 0..n {
                    let (x, y) = (a[p][k], a[q][k]);
                    (a[p][k], a[q][k]) = (c * x - s * y, s * x + c * y);
                }
            }
        }
    }
    (0..n).map(|i| a[i][i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigenvalues_of_known_matrices() {
        let mut found = eigenvalues(vec![vec![2.0, 1.0, 0.0], vec![1.0, 2.0, 0.0], vec![0.0, 0.0, 7.0]]);
        found.sort_by(f64::total_cmp);
        for (found, expected) in found.iter().zip([1.0, 3.0, 7.0]) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        assert_eq!(eigenvalues(vec![vec![4.0]]), [4.0]);
        // Equal diagonal: the rotation is by 45 degrees.
        let mut found = eigenvalues(vec![vec![0.0, 1.0], vec![1.0, 0.0]]);
        found.sort_by(f64::total_cmp);
        assert!((found[0] + 1.0).abs() < 1e-12 && (found[1] - 1.0).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn rows_that_cannot_tell_experts_apart_are_remarked_on() {
        let rows = |values: &[f32], width: usize| {
            Tensor::new([values.len() / width, width], moec_ir::Data::F32(values.to_vec())).unwrap()
        };
        assert!(judged("moe", &rows(&[1.0, 0.0, 0.0, 1.0], 2), 1).is_empty());
        let same = judged("moe", &rows(&[1.0, 0.0, 1.0, 0.01], 2), 1);
        assert!(
            same.len() == 2 && same[0].contains("experts 0 and 1") && same[1].contains("ill-conditioned"),
            "{same:?}"
        );
        // Slices have the same row, and that is no fault.
        assert!(judged("moe", &rows(&[1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0], 2), 2).is_empty());
        assert!(judged("moe", &rows(&[0.0; 4], 2), 1).is_empty());
    }
}
