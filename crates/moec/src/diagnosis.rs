//! What is wrong with a training, as far as its metrics show it: what was seen, why it matters, which line to change.
//!
//! Most of it is read from the evaluations and training lines of a run and from what its model declares, and no device is
//! needed. What metrics cannot show, whether noise still matters and whether a router still moves, is measured by whoever
//! has a checkpoint, and handed over in the [`Evidence`]. A fault is told once for all layers that share it.

use moec_model::{MoeLayerInfo, Quantity, Randomness, Recipe};
use moec_runtime::{Divergence, Evaluation, LayerBalance, Metric, TrainMetric};
use moec_syntax::{SourceFile, Span};
use std::collections::BTreeMap;

/// Steps before which nothing but a divergence is told: at the usual rates weights have hardly moved from where they started,
/// so that what is seen is the draw of the start.
const ENOUGH_STEPS: u64 = 50;

/// Rows for each expert below which an evaluation says nothing about who is idle.
const ENOUGH_ROWS: f64 = 20.0;

/// Evaluations before which it is too early to say that a balance loss has no effect.
const ENOUGH_EVALUATIONS: usize = 4;

/// Part of an even share below which an expert is as good as idle.
const STARVING: f64 = 0.02;

/// A collapse leaves less than this part of the experts beyond the k that a token needs at least.
const COLLAPSED: f64 = 0.25;

/// Share of dropped choices from which on it matters.
const MANY_DROPPED: f64 = 0.03;

/// `balance` of a layer whose balance loss has no effect, at least.
const UNBALANCED: f64 = 1.5;

/// Share of what is minimised that balance losses make where they are too strong, all together and those of a layer: those
/// of many layers add up to much, and are still weak in each.
const TOO_STRONG: f64 = 0.2;
const TOO_STRONG_EACH: f64 = 0.02;

/// Part of the largest entropy below which one expert has all the weight.
const ONE_HAS_ALL: f64 = 0.05;

/// Rise of the validation loss, in nats, from which on a text is learnt by heart.
const RISE: f64 = 0.05;

/// Share of the choices that noise changes, below which it is learnt away.
const NO_NOISE: f64 = 0.01;

/// Degrees that a router turns at most if it stands still, and that the other weights turn at least, so that it could have
/// moved.
const STILL: f64 = 0.005;
const MOVING: f64 = 0.1;

/// What is known about a training.
#[derive(Clone, Debug, Default)]
pub struct Evidence<'a> {
    /// The mixture layers of the model.
    pub layers: &'a [MoeLayerInfo],
    /// What the run reported.
    pub metrics: &'a [Metric],
    /// Number of different characters, V: a model that knows nothing has a loss of ln V.
    pub vocab: Option<usize>,
    /// What it was asked for: when it is at its end, and its learning rate.
    pub recipe: Option<&'a Recipe>,
    /// By layers whose router is random in training: the share of characters that go to other experts with the noise than
    /// without it.
    pub noise: BTreeMap<String, f64>,
    /// By layers: how their weights moved between two checkpoints.
    pub turns: BTreeMap<String, Turn>,
}

/// How far weights moved between two checkpoints, as angles in degrees, which weight decay does not change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// Steps of the checkpoints.
    pub steps: (u64, u64),
    /// The router of the layer.
    pub router: f64,
    /// All other weights of the model.
    pub others: f64,
}

/// What kind of fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Fault {
    /// A number of the training is no longer finite.
    Diverged,
    /// After the training the loss is still that of guessing, or above it.
    NoBetterThanGuessing,
    /// A layer sends nearly everything to few experts.
    Collapse,
    /// Experts get no token, or nearly none.
    Idle,
    /// The capacity drops many choices.
    Dropped,
    /// The load stays uneven, although a balance loss is there.
    BalanceWithoutEffect,
    /// Balance losses are a large part of what is minimised.
    BalanceTooStrong,
    /// Of several experts of a token one has all the weight.
    OneHasAllWeight,
    /// The noise of a router no longer changes what it chooses.
    NoiseLearntAway,
    /// A router does not move, while other weights do.
    RouterStandsStill,
    /// The validation loss rises while the training loss falls.
    LearntByHeart,
}

impl Fault {
    /// One word for programs.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Diverged => "diverged",
            Fault::NoBetterThanGuessing => "no_better_than_guessing",
            Fault::Collapse => "collapse",
            Fault::Idle => "idle",
            Fault::Dropped => "dropped",
            Fault::BalanceWithoutEffect => "balance_without_effect",
            Fault::BalanceTooStrong => "balance_too_strong",
            Fault::OneHasAllWeight => "one_has_all_weight",
            Fault::NoiseLearntAway => "noise_learnt_away",
            Fault::RouterStandsStill => "router_stands_still",
            Fault::LearntByHeart => "learnt_by_heart",
        }
    }

    /// A short heading.
    pub fn title(self) -> &'static str {
        match self {
            Fault::Diverged => "the training diverged",
            Fault::NoBetterThanGuessing => "the model is no better than guessing",
            Fault::Collapse => "few experts get nearly everything",
            Fault::Idle => "experts get nothing, or nearly nothing",
            Fault::Dropped => "the capacity drops many choices",
            Fault::BalanceWithoutEffect => "the balance loss has no effect",
            Fault::BalanceTooStrong => "the balance losses weigh much",
            Fault::OneHasAllWeight => "one expert has all the weight",
            Fault::NoiseLearntAway => "the noise is learnt away",
            Fault::RouterStandsStill => "a router stands still",
            Fault::LearntByHeart => "the text is learnt by heart",
        }
    }

    /// Why it matters.
    pub fn why(self) -> &'static str {
        match self {
            Fault::Diverged => {
                "nothing can be learnt from numbers that are not finite; what was saved before is intact, but is on its way there"
            }
            Fault::NoBetterThanGuessing => {
                "the same probability for every character, which needs no training at all, has this loss"
            }
            Fault::Collapse => {
                "the experts that get most tokens learn fastest, so they score best and get even more; the parameters of \
                 the others are dead weight"
            }
            Fault::Idle => {
                "an expert without tokens learns nothing and costs memory; late in a training it rarely comes back"
            }
            Fault::Dropped => {
                "a token that finds no room gets nothing from that expert, only what the residual passes on"
            }
            Fault::BalanceWithoutEffect => {
                "what the loss is there for does not happen: the task's gradient is stronger"
            }
            Fault::BalanceTooStrong => {
                "the router then follows the balance more than the task, and experts that all get a bit of everything \
                 learn the same"
            }
            Fault::OneHasAllWeight => "the other chosen experts are computed, and their results multiplied by almost 0",
            Fault::NoiseLearntAway => {
                "noise is there to try experts on tokens that would not reach them; without it the choice is final, whether it \
                 is good or not"
            }
            Fault::RouterStandsStill => "the choice of experts is what it was at random in the beginning",
            Fault::LearntByHeart => "from there on the model gets better at this text and worse at every other",
        }
    }
}

/// A fault with its cure.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnosis {
    /// What kind of fault it is.
    pub fault: Fault,
    /// The layers that have it; none for one of the whole training.
    pub layers: Vec<String>,
    /// What was seen, with numbers.
    pub seen: String,
    /// What to change.
    pub cure: String,
    /// Where: the argument of the `moe` at this place, which may not be written yet.
    place: Option<(Span, &'static str)>,
}

/// A line of a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecLine {
    /// The name of the file.
    pub file: String,
    /// Its number, from 1.
    pub number: usize,
    /// What it says.
    pub text: String,
}

impl Diagnosis {
    /// One that is made up, without a place.
    #[cfg(all(test, feature = "cli"))]
    pub(crate) fn of(fault: Fault, layers: Vec<String>, seen: &str, cure: &str) -> Self {
        Self { fault, layers, seen: seen.to_string(), cure: cure.to_string(), place: None }
    }

    /// The line to change: that of the argument, or else the first of its layer, where the argument is to be added.
    pub fn line(&self, source: &SourceFile) -> Option<SpecLine> {
        let (span, argument) = self.place?;
        let file = source.file(span.file());
        let (first, last) = (file.line_column(span.start()).line, file.line_column(span.end()).line);
        let says = |line: &usize| {
            let text = file.line(*line).trim_start();
            // Arguments of a layer in one line stand behind others.
            text.split([',', '(']).any(|part| {
                part.trim_start().strip_prefix(argument).is_some_and(|rest| rest.trim_start().starts_with(':'))
            })
        };
        let number = (first..=last).find(says).unwrap_or(first);
        let text = file.line(number).trim().to_string();
        Some(SpecLine { file: file.name().to_string(), number, text })
    }

    /// Everything on a few lines of text, for a terminal; `source` is the text of the model.
    pub fn text(&self, source: &SourceFile) -> String {
        let layers = if self.layers.is_empty() { String::new() } else { format!(" ({})", names(&self.layers)) };
        let line = self.line(source).map(|l| format!("\n  at {}:{}: {}", l.file, l.number, l.text)).unwrap_or_default();
        let (title, why) = (self.fault.title(), self.fault.why());
        format!("diagnosis: {title}{layers}: {}\n  why: {why}\n  cure: {}{line}", self.seen, self.cure)
    }
}

/// `blocks.0.moe, blocks.1.moe`, and how many more.
fn names(layers: &[String]) -> String {
    match layers {
        [a, b, c, _, rest @ ..] if !rest.is_empty() => format!("{a}, {b}, {c} and {} more", rest.len() + 1),
        _ => layers.join(", "),
    }
}

/// What keeps [`diagnose`] from saying all that it could, if anything does: too few steps, or no evaluation.
pub fn what_is_missing(evidence: &Evidence<'_>) -> Option<String> {
    let is_evaluated = evidence.metrics.iter().any(|metric| as_evaluation(metric).is_some());
    let unseen = || "there is no evaluation, by which routing is judged: `evaluate(every: ..)`".to_string();
    too_early(evidence).or_else(|| (!is_evaluated).then(unseen))
}

/// The faults that [`diagnose`] had enough to look for, in the words of who has none of them.
pub fn looked_for(evidence: &Evidence<'_>) -> Vec<&'static str> {
    let evaluations = evidence.metrics.iter().filter(|metric| as_evaluation(metric).is_some()).count();
    let is_mixed = !evidence.layers.is_empty() && evaluations > 0;
    let is_balanced = evidence.layers.iter().any(|layer| layer.losses.iter().any(|(_, weight)| *weight > 0.0));
    let last = evidence.metrics.iter().filter_map(as_evaluation).next_back();
    let is_over = last.zip(evidence.recipe).is_some_and(|(last, recipe)| last.step >= recipe.steps);
    let all = [
        (true, "no divergence"),
        (is_over && evidence.vocab.is_some(), "better than guessing"),
        (is_mixed, "no idle or crowded experts"),
        (is_mixed, "no drops beyond a few percent"),
        (is_mixed && is_balanced && evaluations >= ENOUGH_EVALUATIONS, "no balance loss without effect"),
        (is_balanced, "no balance loss that is too strong"),
        (!evidence.noise.is_empty(), "no noise without effect"),
        (!evidence.turns.is_empty(), "no router that stands still"),
        (evaluations > 1, "nothing learnt by heart"),
    ];
    all.into_iter().filter_map(|(is_looked_for, fault)| is_looked_for.then_some(fault)).collect()
}

/// Why it is too early to say anything but that it diverged, if it is.
fn too_early(evidence: &Evidence<'_>) -> Option<String> {
    let steps = evidence.metrics.iter().map(Metric::step).max();
    let of_checkpoint = evidence.turns.values().map(|turn| turn.steps.1).max();
    match steps.max(of_checkpoint) {
        None if evidence.noise.is_empty() => Some("no step has been reported yet".to_string()),
        Some(steps) if steps < ENOUGH_STEPS => {
            let count = if steps == 1 { "1 step is" } else { &format!("{steps} steps are") };
            Some(format!(
                "{count} too few to say more than whether it diverged; from step {ENOUGH_STEPS} on there is more"
            ))
        }
        _ => None,
    }
}

/// What is wrong with a training, the worst first. Of one that has made few steps, only whether it diverged
/// ([`what_is_missing`]).
pub fn diagnose(evidence: &Evidence<'_>) -> Vec<Diagnosis> {
    let Evidence { layers, metrics, .. } = evidence;
    let evaluations: Vec<&Evaluation> = metrics.iter().filter_map(as_evaluation).collect();
    let steps: Vec<&TrainMetric> = metrics.iter().filter_map(as_step).collect();
    let diverged = metrics.iter().find_map(as_divergence).map(|d| diverged(d, evidence.recipe));
    if too_early(evidence).is_some() {
        return diverged.into_iter().collect();
    }
    let mut found = Vec::new();
    for layer in *layers {
        let history: Vec<&LayerBalance> =
            evaluations.iter().filter_map(|e| e.layers.iter().find(|l| l.path == layer.path)).collect();
        found.extend(evidence.noise.get(&layer.path).and_then(|share| learnt_away(layer, *share)));
        found.extend(evidence.turns.get(&layer.path).and_then(|turn| stands_still(layer, turn)));
        let Some(last) = history.last() else { continue };
        let case = Case { layer, history: &history, last };
        // A layer that has collapsed has idle experts and is out of balance: that is told once.
        match case.collapse() {
            Some(diagnosis) => found.push(diagnosis),
            None => found.extend(case.idle().into_iter().chain(case.without_effect())),
        }
        found.extend(case.dropped().into_iter().chain(case.second_is_never_drawn().or_else(|| case.one_has_all())));
    }
    // Where the load is uneven, a loss that weighs much is not too strong.
    let is_uneven = |d: &Diagnosis| matches!(d.fault, Fault::Collapse | Fault::Idle | Fault::BalanceWithoutEffect);
    let uneven = found.iter().any(is_uneven);
    let mut found = together(found);
    found.extend(too_strong(layers, &steps).filter(|_| !uneven));
    let by_heart = by_heart(&evaluations);
    // A model that was better once has learnt something, and lost it.
    found.extend(guessing(evidence, &evaluations).filter(|_| by_heart.is_none()));
    found.extend(diverged.into_iter().chain(by_heart));
    found.sort_by_key(|diagnosis| diagnosis.fault);
    found
}

fn as_evaluation(metric: &Metric) -> Option<&Evaluation> {
    if let Metric::Evaluation(evaluation) = metric { Some(evaluation) } else { None }
}

fn as_divergence(metric: &Metric) -> Option<&Divergence> {
    if let Metric::Diverged(divergence) = metric { Some(divergence) } else { None }
}

fn as_step(metric: &Metric) -> Option<&TrainMetric> {
    if let Metric::Train(step) = metric { Some(step) } else { None }
}

/// Layers that share a fault and a cure have one diagnosis, with what was seen in the first of them.
fn together(found: Vec<Diagnosis>) -> Vec<Diagnosis> {
    let mut all: Vec<Diagnosis> = Vec::new();
    for diagnosis in found {
        let same = |d: &&mut Diagnosis| {
            (d.fault, &d.cure, d.place) == (diagnosis.fault, &diagnosis.cure, diagnosis.place) && !d.layers.is_empty()
        };
        match all.iter_mut().find(same) {
            Some(known) => known.layers.extend(diagnosis.layers),
            None => all.push(diagnosis),
        }
    }
    for diagnosis in &mut all {
        if let [first, _, ..] = &diagnosis.layers[..] {
            diagnosis.seen = format!("in {first} {}", diagnosis.seen);
        }
    }
    all
}

/// A mixture layer with what its evaluations said, oldest first.
struct Case<'a> {
    layer: &'a MoeLayerInfo,
    history: &'a [&'a LayerBalance],
    last: &'a LayerBalance,
}

impl Case<'_> {
    fn diagnosis(&self, fault: Fault, seen: String, cure: String, argument: &'static str) -> Option<Diagnosis> {
        Some(of_layer(self.layer, fault, seen, &cure, argument))
    }

    fn rows(&self) -> f64 {
        self.last.load_rows.iter().sum()
    }

    fn is_measured(&self) -> bool {
        let all = self.rows() + self.last.zero_computation_rows.iter().sum::<f64>();
        all >= ENOUGH_ROWS * (self.last.load_rows.len() + self.last.zero_computation_rows.len()) as f64
    }

    /// Experts that compute for a token, if all experts have equally many tokens.
    fn computing_per_token(&self) -> f64 {
        let (computed, others) = (self.last.load_rows.len(), self.last.zero_computation_rows.len());
        let share = computed as f64 / (computed + others).max(1) as f64;
        (self.layer.experts_per_token * share).max(1.0)
    }

    /// Whether the choice is learnt at all: that of a table is not.
    fn is_learnt(&self) -> bool {
        !self.layer.strategy.contains("hash")
    }

    /// The balance loss with the largest weight, of those that balance the load.
    fn loss(&self) -> Option<&(String, f64)> {
        let balancing = self.layer.losses.iter().filter(|(name, weight)| name != "z" && *weight > 0.0);
        balancing.max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// What spreads the load, and the argument that says it.
    fn spreading(&self) -> (String, &'static str) {
        match self.loss() {
            _ if !self.is_learnt() => ("route by another table: this one is not learnt".to_string(), "route"),
            Some((name, weight)) => (
                format!("raise the weight of the balance loss: `{name}(weight: {})`", number(weight * 10.0)),
                "balance",
            ),
            None => {
                let loss = format!("`balance: [{}(weight: 0.01)]`", self.fitting_loss());
                let cure = match self.layer.strategy.as_str() {
                    "softmax_top_k" => {
                        format!("add a balance loss to the `moe`, {loss}, or noise, `route: noisy_top_k(k: ..)`")
                    }
                    _ => format!("add a balance loss to the `moe`: {loss}"),
                };
                (cure, "balance")
            }
        }
    }

    fn provides(&self, quantity: Quantity) -> bool {
        self.layer.traits.provides.contains(&quantity)
    }

    /// A balance loss that the router of the layer can have.
    fn fitting_loss(&self) -> &'static str {
        if self.provides(Quantity::Probabilities) { "switch" } else { "importance" }
    }

    fn collapse(&self) -> Option<Diagnosis> {
        let experts = self.last.load_rows.len() as f64;
        let least = self.computing_per_token();
        // As many experts with equal loads would be as unequal.
        let rows = self.rows();
        if rows == 0.0 {
            return None;
        }
        let squares: f64 = self.last.load_rows.iter().map(|r| (r / rows).powi(2)).sum();
        let used = 1.0 / squares;
        if !self.is_measured() || experts <= least + 1.0 || used >= least + COLLAPSED * (experts - least) {
            return None;
        }
        let mut sorted = self.last.load_rows.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let most = (least.ceil() as usize).min(sorted.len());
        let share = sorted[..most].iter().sum::<f64>() / rows;
        let idle = self.last.experts_without_tokens;
        let idle = match idle {
            0 => String::new(),
            1 => ", one gets nothing at all".to_string(),
            n => format!(", {n} get nothing at all"),
        };
        let (cure, argument) = self.spreading();
        let seen = match most {
            1 => format!("one of {experts} experts gets {} of the rows{idle}", percent(share)),
            n => format!("{n} of {experts} experts get {} of the rows{idle}", percent(share)),
        };
        self.diagnosis(Fault::Collapse, seen, cure, argument)
    }

    fn idle(&self) -> Option<Diagnosis> {
        let idle = starving(self.last);
        if idle == 0 || !self.is_measured() {
            return None;
        }
        let always = self.history.iter().rev().take_while(|l| starving(l) > 0).count();
        let since = match self.history.len() {
            all if all == always && all > 1 => ", as in all evaluations before".to_string(),
            _ if always > 1 => format!(", for {always} evaluations in a row"),
            _ => String::new(),
        };
        let experts = self.last.load_rows.len();
        let got = if idle == self.last.experts_without_tokens { "no token" } else { "no token, or nearly none," };
        let seen = format!("{idle} of {experts} experts got {got} in the last evaluation{since}");
        let (cure, argument) = self.spreading();
        self.diagnosis(Fault::Idle, seen, cure, argument)
    }

    fn without_effect(&self) -> Option<Diagnosis> {
        let (name, weight) = self.loss()?;
        let (first, last) = (self.history.first()?.balance, self.last.balance);
        if self.history.len() < ENOUGH_EVALUATIONS || last < UNBALANCED || last < 0.9 * first {
            return None;
        }
        let seen = format!(
            "`balance` went from {first:.2} to {last:.2} under `{name}(weight: {})`; 1 is even",
            number(*weight)
        );
        let (cure, argument) = self.spreading();
        self.diagnosis(Fault::BalanceWithoutEffect, seen, cure, argument)
    }

    fn dropped(&self) -> Option<Diagnosis> {
        let share = self.last.dropped_share;
        if share < MANY_DROPPED {
            return None;
        }
        let seen = format!("{} of the choices found no room in the last evaluation", percent(share));
        let cure = "raise `factor` of `capacity(..)` for training and `evaluation_factor` for evaluation and sampling, or \
                    the weight of the balance loss, so that fewer choices meet at one expert";
        self.diagnosis(Fault::Dropped, seen, cure.to_string(), "capacity")
    }

    fn one_has_all(&self) -> Option<Diagnosis> {
        let (chosen, entropy) = (self.layer.experts_per_token, self.last.entropy_nats);
        if !self.has_one_with_all() {
            return None;
        }
        let seen = format!(
            "the weights of a token's {} experts have an entropy of {entropy:.3} nats; equal ones would have {:.3}",
            number(chosen),
            chosen.ln()
        );
        let fewer = match self.layer.strategy.as_str() {
            "softmax_top_k" | "noisy_top_k" | "sigmoid_top_k" => Some("choose fewer experts, `k: 1`"),
            _ => None,
        };
        let small = self.small_scores().map(|loss| format!("keep the scores small with {loss}"));
        let cure: Vec<String> = fewer.map(str::to_string).into_iter().chain(small).collect();
        let cure = match &cure[..] {
            [] => "choose fewer experts".to_string(),
            cures => cures.join(", or "),
        };
        self.diagnosis(Fault::OneHasAllWeight, seen, cure, "route")
    }

    /// Whether one of several experts of a token has all the weight.
    fn has_one_with_all(&self) -> bool {
        let chosen = self.layer.experts_per_token;
        chosen >= 1.5 && self.last.entropy_nats < ONE_HAS_ALL * chosen.ln()
    }

    /// What keeps the scores of the router small, if it can have that.
    fn small_scores(&self) -> Option<&'static str> {
        self.provides(Quantity::Logits).then_some("`z(weight: 0.001)` in `balance: [..]`")
    }

    /// In training `gshard` draws its second expert with twice its weight: one without weight is never tried.
    fn second_is_never_drawn(&self) -> Option<Diagnosis> {
        let is_random = self.layer.traits.random == Randomness::Training && self.layer.strategy == "gshard";
        if !is_random || !self.has_one_with_all() {
            return None;
        }
        let seen = format!(
            "the weights of a token's two experts have an entropy of {:.3} nats, so the second is hardly ever drawn in training",
            self.last.entropy_nats
        );
        let cure = "use it always, `gshard(second: always)`, or keep the scores small with `z(weight: 0.001)` in `balance: [..]`";
        self.diagnosis(Fault::NoiseLearntAway, seen, cure.to_string(), "route")
    }
}

/// Experts with less than a part of an even share.
fn starving(layer: &LayerBalance) -> usize {
    let even = layer.load_rows.iter().sum::<f64>() / layer.load_rows.len().max(1) as f64;
    layer.load_rows.iter().filter(|rows| **rows < STARVING * even || **rows == 0.0).count()
}

fn of_layer(layer: &MoeLayerInfo, fault: Fault, seen: String, cure: &str, argument: &'static str) -> Diagnosis {
    let (layers, place) = (vec![layer.path.clone()], Some((layer.span, argument)));
    Diagnosis { fault, layers, seen, cure: cure.to_string(), place }
}

fn learnt_away(layer: &MoeLayerInfo, share: f64) -> Option<Diagnosis> {
    let seen = format!("the noise of training changes the experts of {:.1} % of the characters", 100.0 * share);
    let cure = match layer.strategy.as_str() {
        "noisy_top_k" => {
            "keep some of it with `epsilon: 0.1` in `noisy_top_k(..)`, the least deviation that it can learn; or give it a \
             reason to stay: `load(weight: 0.01)` in `balance: [..]`"
        }
        "switch" => {
            "keep the scores small, so that it matters, with `z(weight: 0.001)` in `balance: [..]`; or raise `jitter` in \
             `switch(..)`"
        }
        _ if layer.traits.provides.contains(&Quantity::Logits) => {
            "keep the scores small, so that it matters, with `z(weight: 0.001)` in `balance: [..]`; or raise the noise of the \
             router"
        }
        _ => "raise the noise of the router",
    };
    (share < NO_NOISE).then(|| of_layer(layer, Fault::NoiseLearntAway, seen, cure, "route"))
}

fn stands_still(layer: &MoeLayerInfo, turn: &Turn) -> Option<Diagnosis> {
    let Turn { steps: (from, to), router, others } = turn;
    let seen = format!(
        "from step {from} to step {to} its weights turned by {router:.4} degrees, all others together by {others:.2}"
    );
    let cure = "let the weights of the experts depend on the scores: more than one expert a token, or `normalize: all` where \
                the router has it; a balance loss moves it, too";
    (*router < STILL && *others > MOVING).then(|| of_layer(layer, Fault::RouterStandsStill, seen, cure, "route"))
}

/// Of the last fifth of the reported steps.
fn too_strong(layers: &[MoeLayerInfo], steps: &[&TrainMetric]) -> Option<Diagnosis> {
    let balanced: Vec<&MoeLayerInfo> = layers.iter().filter(|l| l.losses.iter().any(|(_, w)| *w > 0.0)).collect();
    let late = &steps[steps.len() - steps.len().div_ceil(5)..];
    let shares: Vec<f64> = late
        .iter()
        .filter_map(|s| Some((s.objective? - s.loss_nats) / s.objective?))
        .filter(|s| s.is_finite())
        .collect();
    let share = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    if balanced.is_empty() || share <= TOO_STRONG || share <= TOO_STRONG_EACH * balanced.len() as f64 {
        return None;
    }
    let strongest = balanced.iter().flat_map(|l| &l.losses).max_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(Diagnosis {
        fault: Fault::BalanceTooStrong,
        layers: balanced.iter().map(|l| l.path.clone()).collect(),
        seen: format!("balance losses are {} of what is minimised", percent(share)),
        cure: format!(
            "lower the weight, `{}(weight: {})`, and see whether `val` falls",
            strongest.0,
            number(strongest.1 / 10.0)
        ),
        place: balanced.first().map(|l| (l.span, "balance")),
    })
}

fn by_heart(evaluations: &[&Evaluation]) -> Option<Diagnosis> {
    let last = evaluations.last()?;
    let validation = |e: &Evaluation| e.validation_loss_nats.unwrap_or(f64::INFINITY);
    let best = evaluations.iter().min_by(|a, b| validation(a).total_cmp(&validation(b)))?;
    let rise = last.validation_loss_nats? - best.validation_loss_nats?;
    if rise < RISE || last.train_loss_nats >= best.train_loss_nats {
        return None;
    }
    let seen = format!(
        "`val` was {:.3} at step {} and is {:.3} at step {}, while `train` fell from {:.3} to {:.3}",
        validation(best),
        best.step,
        validation(last),
        last.step,
        best.train_loss_nats,
        last.train_loss_nats
    );
    let cure = format!(
        "stop at `steps {}`, or let `evaluate(patience: 3)` end it; or more text, `dropout`, fewer or smaller experts",
        best.step
    );
    Some(Diagnosis { fault: Fault::LearntByHeart, layers: Vec::new(), seen, cure, place: None })
}

/// A loss that is not below that of equal probabilities, at the end of a training.
fn guessing(evidence: &Evidence<'_>, evaluations: &[&Evaluation]) -> Option<Diagnosis> {
    let (last, recipe, vocab) = (evaluations.last()?, evidence.recipe?, evidence.vocab?);
    let uniform = (vocab as f64).ln();
    let (name, loss) = match last.validation_loss_nats {
        Some(loss) => ("val", loss),
        None => ("train", last.train_loss_nats),
    };
    if vocab < 2 || last.step < recipe.steps || loss < uniform {
        return None;
    }
    let seen = format!(
        "`{name}` is {loss:.3} after {} steps; the same probability for each of {vocab} characters has {uniform:.3}",
        last.step
    );
    // A comparison does not evaluate what it trains on.
    let has_learnt = last.train_loss_nats < uniform;
    let cure = if has_learnt {
        format!(
            "`train` is {:.3}, so the held-out text is unlike the text before it: more text, or another one; `split` says how \
             much is held out",
            last.train_loss_nats
        )
    } else {
        let slower = slower(recipe);
        format!("a lower learning rate, `optimizer {}(lr: {slower})`, or more steps", recipe.optimizer.spec.name)
    };
    let setting = if has_learnt { "data" } else { "optimizer" };
    Some(of_recipe(Fault::NoBetterThanGuessing, seen, cure, recipe, setting))
}

fn diverged(divergence: &Divergence, recipe: Option<&Recipe>) -> Diagnosis {
    let seen = format!("{} is not finite after step {}", divergence.what, divergence.step);
    let Some(recipe) = recipe else {
        let cure = "a lower learning rate".to_string();
        return Diagnosis { fault: Fault::Diverged, layers: Vec::new(), seen, cure, place: None };
    };
    // Not always what the line says: it may have been overridden.
    let seen = format!("{seen}, with a learning rate of {}", recipe.optimizer.lr());
    let bound = if recipe.clip.is_none() { ", or a bound on the gradient, `clip 1.0`" } else { "" };
    let cure =
        format!("a lower learning rate, `optimizer {}(lr: {})`{bound}", recipe.optimizer.spec.name, slower(recipe));
    of_recipe(Fault::Diverged, seen, cure, recipe, "optimizer")
}

/// A rate to try next: a third, but one far above the usual rate is not cured by that.
fn slower(recipe: &Recipe) -> String {
    format!("{:.0e}", (recipe.optimizer.lr() / 3.0).min(recipe.optimizer.default_lr()))
}

/// At the line where a setting of the recipe is written, if it is.
fn of_recipe(fault: Fault, seen: String, cure: String, recipe: &Recipe, setting: &'static str) -> Diagnosis {
    let place = recipe.span(setting).map(|span| (span, setting));
    Diagnosis { fault, layers: Vec::new(), seen, cure, place }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// `0.1`, `2`: three digits at most.
fn number(x: f64) -> String {
    format!("{}", (x * 1e6).round() / 1e6)
}

#[cfg(test)]
mod tests;
