//! A mixture whose experts come from runs.

use super::assemble::{self, Experts, is_last_map};
use super::certificate::{self, Alone};
use super::layers::{FeedForward, MOE, all_compute, feed_forward, full_width, same_meaning, same_trunk};
use super::{
    Certificate, Gates, MeaningDifference, MergeRecipe, SliceScale, Subject, SurgeryError, Trunk, Witnesses, gates,
    text, wrong,
};
use crate::error::Error;
use crate::spec::Spec;
use moec_ir::Tensor;
use moec_model::{Registry, ResolvedValue};
use moec_runtime::Vocab;
use std::collections::BTreeMap;

/// The router of a mixture where the recipe names none: two experts of each token, or two copies with all their slices.
fn usual_route(recipe: &MergeRecipe) -> String {
    let copies = recipe.experts.len().saturating_mul(recipe.copies);
    format!("softmax_top_k(k: {}, bias: false)", copies.min(2) * recipe.slices)
}

/// What the mixture is called before it has a folder.
const NEW: &str = "the new model";

/// A mixture, and what was kept of what it was made of.
#[derive(Debug)]
pub struct Merged {
    /// The mixture.
    pub subject: Subject,
    /// Its mixtures, by path.
    pub layers: Vec<String>,
    /// What was kept.
    pub certificate: Certificate,
    /// What is to be said of the gates.
    pub warnings: Vec<String>,
}

/// What runs are put together to.
pub struct Sources<'a> {
    /// Gives everything but the experts.
    pub base: &'a Subject,
    /// The runs of the experts, in the order of the recipe; a run that gives several stands here several times.
    pub donors: Vec<&'a Subject>,
    /// The run of the expert that every token goes to.
    pub shared: Option<&'a Subject>,
    /// The text of the mixture, where the recipe names one.
    pub spec: Option<Spec>,
}

/// Puts runs together to a mixture, and measures what it must equal.
///
/// # Errors
/// When the recipe asks for what cannot be, the runs do not agree, or the mixture is not what it must be.
pub fn merge(
    recipe: &MergeRecipe,
    sources: Sources<'_>,
    registry: &Registry,
    first: impl FnOnce(&Subject) -> Result<BTreeMap<String, Tensor>, Error>,
    witnesses: &Witnesses<'_>,
) -> Result<Merged, Error> {
    check(recipe, &sources)?;
    let Sources { base, donors, shared, spec } = sources;
    let ours = feed_forward(base);
    if ours.is_empty() {
        return Err(wrong(format!("{} has no `mlp` that could become a mixture", base.name)));
    }
    all_compute(&base.name, &ours)?;
    full_width(&base.name, &ours)?;
    let spec = match spec {
        Some(spec) => spec,
        None => derived(recipe, base, &ours, registry)?,
    };
    let mut subject = Subject::new("the merged model".to_string(), spec, base.vocab.clone(), BTreeMap::new())?;
    let mixtures = feed_forward(&subject);
    all_compute(&subject.name, &mixtures)?;
    full_width(&subject.name, &mixtures)?;
    same_number(&subject, &mixtures, base, &ours)?;
    let theirs: Vec<Vec<FeedForward>> = donors.iter().map(|donor| feed_forward(donor)).collect();
    let replaced: Vec<usize> = (0..ours.len()).filter(|&i| is_made(&mixtures[i], &ours[i], recipe)).collect();
    if replaced.is_empty() {
        return Err(wrong("the model has no mixture whose experts could come from runs".to_string()));
    }
    let shared_layers = shared.map(feed_forward).unwrap_or_default();
    let all = donors.iter().copied().zip(&theirs).chain(shared.map(|run| (run, &shared_layers)));
    for (run, layers) in all {
        same_number(run, layers, base, &ours)?;
        all_compute(&run.name, layers)?;
        full_width(&run.name, layers)?;
    }
    agree(recipe, base, &donors, &ours, &theirs, &replaced)?;
    let plan = Plan { recipe, base, donors: &donors, ours: &ours, theirs: &theirs, replaced: &replaced };
    suits(&plan, &subject, &mixtures, shared.zip(Some(shared_layers.as_slice())))?;
    for &i in &replaced {
        if shared.is_some() && !mixtures[i].arguments.contains_key("shared") {
            let message =
                format!("`shared` names a run, and `{}` has no shared expert: give a `spec`", mixtures[i].path);
            return Err(wrong(message));
        }
        if let Some(&ResolvedValue::Int(hidden)) = theirs[0][i].arguments.get("hidden")
            && hidden % recipe.slices as i64 != 0
        {
            let (slices, layer) = (recipe.slices, &theirs[0][i].path);
            return Err(wrong(format!("{slices} slices do not divide the {hidden} hidden units of `{layer}`")));
        }
        if recipe.slices > 1 && theirs[0][i].kind == MOE {
            return Err(wrong(format!("`{}` is a mixture, which is not cut into slices", theirs[0][i].path)));
        }
    }
    let trunk = Subject { tensors: assemble::trunk(recipe, base, &donors)?, ..base.clone() };
    let width = subject.spec.checked.model.width;
    let bases: Vec<FeedForward> = replaced.iter().map(|&i| ours[i].clone()).collect();
    let directions = if recipe.gates.prompted() { Some(gates::directions(recipe, base, &bases)?) } else { None };
    subject.tensors = first(&subject)?;
    let (mut warnings, mut factors) = (Vec::new(), Vec::new());
    for (number, &i) in replaced.iter().enumerate() {
        let (mixture, ours) = (&mixtures[i], &ours[i]);
        if mixture.experts() != Some(recipe.experts()) {
            let found = mixture.experts().unwrap_or(0);
            return Err(wrong(format!(
                "`{}` has {found} experts, and the recipe makes {}",
                mixture.path,
                recipe.experts()
            )));
        }
        if recipe.gates == Gates::Copied {
            copy_router(&mut subject, base, mixture, ours)?;
        }
        let rows = directions.as_ref().map(|all| &all[number]);
        if recipe.gates != Gates::Copied {
            let (lowered, tensors) = (&subject.lowered, &mut subject.tensors);
            warnings.extend(gates::rows(recipe, lowered, mixture, width, rows, tensors)?);
        }
        factors.push(assemble::slice_factor(recipe, mixture)?);
    }
    keep_trunk(&mut subject, &trunk, &mixtures, &ours, &replaced)?;
    for &i in replaced.iter().filter(|_| recipe.gates != Gates::Copied) {
        let gate = |name: &&String| mixtures[i].inner(name).is_some_and(|inner| inner.starts_with("shared_gate."));
        if subject.tensors.keys().any(|name| gate(&name)) {
            let path = &mixtures[i].path;
            warnings.push(format!("the gate of the shared expert of `{path}` comes from no run: it begins at random"));
        }
    }
    let filled = |subject: &mut Subject, noisy: bool| {
        for (&i, &factor) in replaced.iter().zip(&factors) {
            let sources = donors.iter().zip(&theirs).map(|(donor, layers)| (*donor, &layers[i])).collect();
            let shared = shared.zip(shared_layers.get(i));
            fill(subject, &mixtures[i], &Experts { sources, recipe, factor, noisy }, shared)?;
        }
        Ok::<(), Error>(())
    };
    filled(&mut subject, true)?;
    if let Some((name, _)) = subject.tensors.iter().find(|(_, tensor)| !finite(tensor)) {
        return Err(wrong(format!("`{name}` would hold what is no finite number")));
    }

    let layers: Vec<String> = replaced.iter().map(|&i| mixtures[i].path.clone()).collect();
    let mut certificate = Certificate::new("merge", witnesses);
    if let Some(why) = plan.inexact(&factors) {
        certificate.remarks.push(format!("no equality is promised: {why}"));
    } else {
        // Where tensors belong is measured without what changes the outputs on purpose.
        let mut plain = subject.clone();
        filled(&mut plain, false)?;
        if shared.is_some() {
            without_shared(&mut plain, &layers);
        }
        let without = match (recipe.noise > 0.0, shared.is_some()) {
            (true, true) => "noise and shared experts left out, ",
            (true, false) => "noise left out, ",
            (false, true) => "shared experts left out, ",
            (false, false) => "",
        };
        plan.certify(&mut certificate, (&plain, &layers), without, &trunk.tensors, registry, witnesses)?;
    }
    certificate::distances(&mut certificate, &subject, &plan.others(), witnesses)?;
    certificate.upheld()?;
    Ok(Merged { subject, layers, certificate, warnings })
}

/// What a recipe cannot ask for, whatever the runs are.
fn check(recipe: &MergeRecipe, sources: &Sources<'_>) -> Result<(), Error> {
    if recipe.experts.is_empty() {
        return Err(wrong("`experts` names no run".to_string()));
    }
    if recipe.copies == 0 || recipe.slices == 0 {
        return Err(wrong("`copies` and `slices` are at least 1".to_string()));
    }
    if !recipe.residual_scale.is_finite() {
        return Err(wrong("`residual_scale` is a finite number".to_string()));
    }
    if !recipe.noise.is_finite() || recipe.noise < 0.0 {
        return Err(wrong(format!("`noise` is a deviation, not negative: {} is none", recipe.noise)));
    }
    if recipe.slice_factor.is_some_and(|s| !s.is_finite() || s <= 0.0) {
        return Err(wrong("`slice_factor` is a number above 0".to_string()));
    }
    match (&recipe.weights, recipe.trunk) {
        (Some(_), Trunk::Base) => return Err(wrong("`weights` are those of a trunk that is an average".to_string())),
        (Some(weights), _) if weights.len() != recipe.experts.len() => {
            let message = format!("there are {} weights for {} experts", weights.len(), recipe.experts.len());
            return Err(wrong(message));
        }
        (Some(weights), _)
            if weights.iter().any(|w| !w.is_finite() || *w < 0.0) || weights.iter().sum::<f64>() <= 0.0 =>
        {
            return Err(wrong("`weights` are not negative, and not all 0".to_string()));
        }
        _ => {}
    }
    // What would not be looked at was meant to do something.
    let prompts = recipe.experts.iter().flat_map(|source| [source.prompts().0, source.prompts().1]);
    let has_prompts = prompts.into_iter().any(|prompts| !prompts.is_empty());
    let is_made = recipe.spec.is_none() && recipe.gates != Gates::Copied;
    let without_use = [
        (
            has_prompts && !recipe.gates.prompted(),
            "the experts have prompts, and `gates` is none of `last`, `average` and `embedding`",
        ),
        (recipe.model.is_some() && recipe.spec.is_none(), "`model` names one of the file in `spec`, and there is none"),
        (
            (recipe.route.is_some() || recipe.balance.is_some()) && !is_made,
            "`route` and `balance` are for a model that is made of the base; this one has its own routers",
        ),
        (
            recipe.slices == 1 && (recipe.slice_factor.is_some() || recipe.slice_scale != SliceScale::Down),
            "`slice_scale` and `slice_factor` are for more than one slice",
        ),
    ];
    if let Some((_, message)) = without_use.iter().find(|(found, _)| *found) {
        return Err(wrong((*message).to_string()));
    }
    for run in sources.donors.iter().copied().chain(sources.shared) {
        same_vocabulary(sources.base, run)?;
        same_context(sources.base, run)?;
    }
    Ok(())
}

/// Models are compared on windows of one length.
fn same_context(base: &Subject, run: &Subject) -> Result<(), SurgeryError> {
    let (ours, theirs) = (base.spec.checked.model.context, run.spec.checked.model.context);
    if ours == theirs {
        return Ok(());
    }
    Err(SurgeryError::Meaning(Box::new(MeaningDifference {
        layer: run.spec.checked.model.name.clone(),
        argument: "`context`".to_string(),
        run: run.name.clone(),
        found: theirs.to_string(),
        other: base.name.clone(),
        expected: ours.to_string(),
    })))
}

fn same_vocabulary(base: &Subject, run: &Subject) -> Result<(), SurgeryError> {
    let (ours, theirs) = (base.vocab.to_text(), run.vocab.to_text());
    if ours == theirs {
        return Ok(());
    }
    let only = |a: &str, b: &Vocab, name: &str| {
        a.chars().find(|&c| b.id(c).is_none()).map(|c| format!("{c:?} is only in that of {name}"))
    };
    let difference = only(&ours, &run.vocab, &base.name).or_else(|| only(&theirs, &base.vocab, &run.name));
    Err(SurgeryError::Vocabulary {
        a: base.name.clone(),
        b: run.name.clone(),
        difference: difference.unwrap_or_default(),
    })
}

/// The base with each feed-forward layer as a mixture; as it is, where it is one whose routers are kept.
fn derived(recipe: &MergeRecipe, base: &Subject, ours: &[FeedForward], registry: &Registry) -> Result<Spec, Error> {
    if recipe.gates == Gates::Copied {
        if ours.iter().any(|layer| layer.kind != MOE) {
            let message = format!("`gates: copied` takes the routers of {}, which is no mixture", base.name);
            return Err(wrong(message));
        }
        return text::rewritten(base, [], registry, |_, _, layer| Ok((layer.span, String::new())));
    }
    let usual = usual_route(recipe);
    let (route, balance) = (recipe.route.as_deref().unwrap_or(&usual), recipe.balance.as_deref());
    for (key, text) in [("route", Some(route)), ("balance", balance)] {
        text.map_or(Ok(()), |text| text::require_value(key, text))?;
    }
    text::rewritten(base, ours, registry, |source, file, layer| {
        let mixture = text::as_mixture(source, file, layer, recipe.experts(), recipe.slices, (route, balance))?;
        Ok((layer.span, mixture))
    })
}

/// Whether the experts of a layer of the new model come from the runs: it is a mixture, and in the base it is what one of
/// its experts is, or its router is kept.
fn is_made(new: &FeedForward, old: &FeedForward, recipe: &MergeRecipe) -> bool {
    let holds_mixtures = || new.expert("expert").is_some_and(|expert| expert.kind == MOE);
    new.kind == MOE && (old.kind != MOE || recipe.gates == Gates::Copied || holds_mixtures())
}

/// That a model has as many feed-forward layers as the base.
fn same_number(run: &Subject, layers: &[FeedForward], base: &Subject, ours: &[FeedForward]) -> Result<(), Error> {
    if layers.len() == ours.len() {
        return Ok(());
    }
    let (theirs, ours) = (layers.len(), ours.len());
    Err(wrong(format!("{} has {theirs} feed-forward layers, {} has {ours}", run.name, base.name)))
}

/// That the layers which belong together compute the same of the same numbers.
fn agree(
    recipe: &MergeRecipe,
    base: &Subject,
    donors: &[&Subject],
    ours: &[FeedForward],
    theirs: &[Vec<FeedForward>],
    replaced: &[usize],
) -> Result<(), Error> {
    for (donor, layers) in donors.iter().zip(theirs) {
        if recipe.trunk != Trunk::Base {
            same_trunk(base, donor)?;
        }
        for &i in replaced {
            // With routers that are kept, the base has mixtures where the runs have experts.
            let (other, name) = match recipe.gates {
                Gates::Copied => (&theirs[0][i], donors[0].name.as_str()),
                _ => (&ours[i], base.name.as_str()),
            };
            same_meaning((&layers[i], &donor.name), (other, name))?;
        }
    }
    Ok(())
}

/// The router of a mixture as the base has it.
fn copy_router(subject: &mut Subject, base: &Subject, new: &FeedForward, old: &FeedForward) -> Result<(), Error> {
    let names: Vec<String> = subject.tensors.keys().cloned().collect();
    for name in names {
        let Some(inner) = new.inner(&name).filter(|inner| !inner.starts_with("experts.")) else { continue };
        let tensor = base.tensor(&format!("{}.{inner}", old.path), &name)?.clone();
        subject.tensors.insert(name, tensor);
    }
    Ok(())
}

/// The experts of a mixture, and the one that every token goes to.
fn fill(
    subject: &mut Subject,
    mixture: &FeedForward,
    experts: &Experts<'_>,
    shared: Option<(&Subject, &FeedForward)>,
) -> Result<(), Error> {
    let kind = experts.sources.first().map_or("", |(_, layer)| layer.kind);
    for state in subject.states.iter().filter(|state| state.kind.of_model()) {
        let Some(inner) = mixture.inner(&state.name) else { continue };
        let expert =
            inner.strip_prefix("experts.").map(|inner| inner.strip_prefix(kind).and_then(|i| i.strip_prefix('.')));
        let tensor = match (expert, inner.strip_prefix("shared.")) {
            (Some(Some(inner)), _) => experts.stacked(inner, &state.name, &state.ty)?,
            (Some(None), _) => {
                let message = format!(
                    "the experts of `{}` are not one `{kind}` each, as the feed-forward layers of the runs are",
                    mixture.path
                );
                return Err(wrong(message));
            }
            (None, Some(inner)) => {
                let Some((run, layer)) = shared else {
                    let message = format!("`{}` has a shared expert, and the recipe names no run for it", mixture.path);
                    return Err(wrong(message));
                };
                // `mlp.up.weight`, or of several `0.mlp.up.weight`.
                let inner = inner.split_once("mlp.").map_or(inner, |(_, inner)| inner);
                let theirs = format!("{}.{inner}", layer.path);
                run.tensor_of(&theirs, &state.name, &state.ty, NEW)?.clone()
            }
            (None, None) => continue,
        };
        subject.tensors.insert(state.name.clone(), tensor);
    }
    Ok(())
}

/// Everything that is no mixture from runs.
fn keep_trunk(
    subject: &mut Subject,
    trunk: &Subject,
    mixtures: &[FeedForward],
    ours: &[FeedForward],
    replaced: &[usize],
) -> Result<(), Error> {
    for state in subject.states.iter().filter(|state| state.kind.of_model()) {
        let layer = mixtures.iter().position(|layer| layer.inner(&state.name).is_some());
        if layer.is_some_and(|i| replaced.contains(&i)) {
            continue;
        }
        let inner = layer.and_then(|i| Some((i, mixtures[i].inner(&state.name)?)));
        let name = inner.map_or(state.name.clone(), |(i, inner)| format!("{}.{inner}", ours[i].path));
        let tensor = trunk.tensor_of(&name, &state.name, &state.ty, NEW)?.clone();
        subject.tensors.insert(state.name.clone(), tensor);
    }
    Ok(())
}

fn finite(tensor: &Tensor) -> bool {
    tensor.as_i32().is_some() || tensor.to_f32().iter().all(|x| x.is_finite())
}

/// That the model computes the same as the runs of the same numbers: its trunk what the base does, its experts what theirs
/// do.
fn suits(
    plan: &Plan<'_>,
    new: &Subject,
    mixtures: &[FeedForward],
    shared: Option<(&Subject, &[FeedForward])>,
) -> Result<(), Error> {
    same_trunk(plan.base, new)?;
    for (i, mixture) in mixtures.iter().enumerate() {
        if !plan.replaced.contains(&i) {
            same_meaning((mixture, &new.name), (&plan.ours[i], &plan.base.name))?;
            continue;
        }
        let one = || wrong(format!("the experts of `{}` are not one `mlp` or `moe` each", mixture.path));
        let expert = mixture.expert("expert").ok_or_else(one)?;
        let theirs = plan.theirs[0][i].clone().sliced(plan.recipe.slices);
        same_meaning((&expert, &new.name), (&theirs, &plan.donors[0].name))?;
        if let Some((run, layers)) = shared
            && let Some(expert) = mixture.expert("shared_expert")
        {
            same_meaning((&expert, &new.name), (&layers[i], &run.name))?;
        }
    }
    Ok(())
}

/// Everything that a merge is made of.
struct Plan<'a> {
    recipe: &'a MergeRecipe,
    base: &'a Subject,
    donors: &'a [&'a Subject],
    /// The feed-forward layers of the base.
    ours: &'a [FeedForward],
    /// Those of each donor.
    theirs: &'a [Vec<FeedForward>],
    /// Which of them become mixtures.
    replaced: &'a [usize],
}

impl<'a> Plan<'a> {
    /// The models that went in, each once.
    fn others(&self) -> Vec<&'a Subject> {
        let mut others: Vec<&Subject> = vec![self.base];
        for donor in self.donors {
            if !others.iter().any(|other| other.identity == donor.identity) {
                others.push(donor);
            }
        }
        others
    }

    /// Why nothing can be equal, if so: slices make up for other weights than they have when they work alone, or not exactly.
    fn inexact(&self, factors: &[f64]) -> Option<&'static str> {
        let slices = self.recipe.slices;
        let is_relu =
            |layer: &FeedForward| layer.arguments.get("activation") == Some(&ResolvedValue::Text("relu".to_string()));
        let spread = self.recipe.slice_scale == SliceScale::Spread;
        if slices > 1 && factors.iter().any(|factor| *factor != slices as f64) {
            Some("slices make up for other weights than equal ones that add up to 1")
        } else if spread && !self.replaced.iter().all(|&i| is_relu(&self.theirs[0][i])) {
            Some("`slice_scale: spread` is exact for `relu` alone")
        } else {
            None
        }
    }

    /// What the mixture must be with all tokens sent to one source, and as it routes. `subject` is the mixture without what
    /// changes its outputs on purpose, and `without` says what that is.
    fn certify(
        &self,
        certificate: &mut Certificate,
        (subject, layers): (&Subject, &[String]),
        without: &str,
        trunk: &BTreeMap<String, Tensor>,
        registry: &Registry,
        witnesses: &Witnesses<'_>,
    ) -> Result<(), Error> {
        let (recipe, donors) = (self.recipe, self.donors);
        let mut dense: Vec<Subject> = Vec::new();
        for number in 0..donors.len() {
            match self.dense(number, trunk, registry)? {
                Ok(model) => dense.push(model),
                Err(why) => {
                    certificate.remarks.push(why);
                    return Ok(());
                }
            }
        }
        let mut all = Vec::new();
        for (source, must_be) in dense.iter().enumerate() {
            for copy in 0..recipe.copies {
                let first = (source * recipe.copies + copy) * recipe.slices;
                let experts: Vec<usize> = (first..first + recipe.slices).collect();
                let sent = match experts.as_slice() {
                    [only] => format!("every token sent to expert {only}"),
                    [first, .., last] => format!("every token sent to experts {first} to {last}"),
                    [] => continue,
                };
                all.push(Alone { says: format!("{without}{sent}"), experts, must_be });
            }
        }
        certificate::alone(certificate, subject, layers, &all, witnesses)?;
        let same = donors.iter().all(|donor| donor.identity == donors[0].identity);
        match dense.first() {
            Some(dense) if same && without.is_empty() => {
                let promised = |new: &_, _: &_| certificate::sums_to_one(new, layers, recipe.slices);
                certificate::as_it_routes(certificate, subject, dense, promised, witnesses)?;
            }
            _ => {
                let why = if same { "it is not as it was made" } else { "its experts are of several runs" };
                certificate.remarks.push(format!("no equality is promised for the model as it routes: {why}"));
            }
        }
        if same && recipe.copies > 1 && recipe.noise == 0.0 {
            let remark = "the copies of an expert are the same: only the router's weights and dropout tell their \
                          gradients apart; `noise` does so from the start";
            certificate.remarks.push(remark.to_string());
        }
        Ok(())
    }

    /// A run's own model, with the trunk of the mixture around its feed-forward layers; or why there is none.
    fn dense(
        &self,
        number: usize,
        trunk: &BTreeMap<String, Tensor>,
        registry: &Registry,
    ) -> Result<Result<Subject, String>, Error> {
        let (base, donor, layers) = (self.base, self.donors[number], &self.theirs[number]);
        // Its own text says what its numbers mean. Where its trunk would mean something else, that of the base does.
        let own = same_trunk(base, donor).is_ok();
        let (mut model, layers) = if own {
            (donor.clone(), layers.clone())
        } else {
            let host = if self.recipe.gates == Gates::Copied { dense_of(base, registry)? } else { base.clone() };
            in_the_base(host, donor, layers, self.replaced)
        };
        let mut whole = own;
        for (name, tensor) in &mut model.tensors {
            match self.replaced.iter().find_map(|&i| layers[i].inner(name)) {
                Some(inner) if is_last_map(inner) && self.recipe.residual_scale != 1.0 => {
                    let scaled = tensor.to_f64().iter().map(|x| x * self.recipe.residual_scale).collect();
                    *tensor = assemble::floats(tensor.shape(), scaled);
                }
                Some(_) => {}
                None => match trunk.get(name) {
                    Some(ours) if ours == tensor => {}
                    Some(ours) if ours.ty() == tensor.ty() => {
                        whole = false;
                        *tensor = ours.clone();
                    }
                    _ => {
                        let (donor, base) = (&donor.name, &base.name);
                        return Ok(Err(format!(
                            "nothing is claimed of the experts of {donor}: its `{name}` has no counterpart in {base}"
                        )));
                    }
                },
            }
        }
        if !whole || self.recipe.residual_scale != 1.0 {
            model.name = format!("{} with the trunk of the merged model", donor.name);
        }
        Ok(Ok(model))
    }
}

/// Takes away what every token goes through besides the experts of some mixtures.
fn without_shared(subject: &mut Subject, layers: &[String]) {
    for (name, tensor) in &mut subject.tensors {
        let of_shared = layers.iter().any(|path| {
            let inner = name.strip_prefix(path.as_str()).and_then(|rest| rest.strip_prefix(".shared."));
            inner.is_some_and(is_last_map)
        });
        if of_shared {
            *tensor = assemble::floats(tensor.shape(), vec![0.0; tensor.ty().elements()]);
        }
    }
}

/// The text of a mixture with one expert in the place of each `moe`, and its trunk.
fn dense_of(base: &Subject, registry: &Registry) -> Result<Subject, Error> {
    let layers = feed_forward(base);
    let mixtures = layers.iter().filter(|layer| layer.kind == MOE);
    let spec = text::rewritten(base, mixtures, registry, |source, file, layer| {
        Ok((layer.span, text::as_expert(source, file, layer)?))
    })?;
    let mut dense = Subject::new(base.name.clone(), spec, base.vocab.clone(), BTreeMap::new())?;
    let names = dense.states.iter().filter(|state| state.kind.of_model()).map(|state| &state.name);
    dense.tensors = names.filter_map(|name| Some((name.clone(), base.tensors.get(name)?.clone()))).collect();
    Ok(dense)
}

/// A dense model with the feed-forward layers of another run.
fn in_the_base(
    mut host: Subject,
    donor: &Subject,
    theirs: &[FeedForward],
    replaced: &[usize],
) -> (Subject, Vec<FeedForward>) {
    let ours = feed_forward(&host);
    for &i in replaced {
        let tensors = donor.tensors.iter().filter_map(|(name, tensor)| Some((theirs[i].inner(name)?, tensor)));
        host.tensors.extend(tensors.map(|(inner, tensor)| (format!("{}.{inner}", ours[i].path), tensor.clone())));
    }
    (host, ours)
}
