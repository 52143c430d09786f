//! Metrics that provoke each fault, and some that must provoke none.

use super::*;
use crate::{Registry, Spec};
use moec_ir::Function;
use moec_model::NoisePolicy;
use std::collections::BTreeMap;

const SPEC: &str = "model m {
  context 8
  vocab   characters
  embed(width: 8, positions: learned)
  residual {
    moe(
      experts: 8 * mlp(hidden: 8),
      route:   softmax_top_k(k: 2),
      BALANCE
      capacity: capacity(factor: 1.0),
    )
  }
  unembed
}
";

struct Subject {
    spec: Spec,
    layers: Vec<MoeLayerInfo>,
}

impl Subject {
    fn new(balance: &str) -> Self {
        Self::of(&SPEC.replace("BALANCE", balance))
    }

    fn of(text: &str) -> Self {
        let spec = Spec::parse("m.moe", text).unwrap();
        let (model, recipe) = (&spec.checked.model, &spec.checked.recipe);
        let lowered = crate::pipeline::lower(model, recipe, 5, Function::TrainStep, NoisePolicy::Generated).unwrap();
        assert!(Registry::with_builtins().find_loss("switch").is_some());
        Self { layers: lowered.moe_layers, spec }
    }

    fn diagnoses(&self, metrics: &[Metric]) -> Vec<Diagnosis> {
        diagnose(&Evidence { layers: &self.layers, metrics, ..Evidence::default() })
    }

    fn faults(&self, metrics: &[Metric]) -> Vec<Fault> {
        self.diagnoses(metrics).iter().map(|d| d.fault).collect()
    }
}

fn panel(load: [f64; 8]) -> LayerBalance {
    let rows: f64 = load.iter().sum();
    LayerBalance {
        path: "moe".into(),
        load_rows: load.to_vec(),
        zero_computation_rows: Vec::new(),
        experts_per_token: None,
        load_max_over_mean: load.iter().copied().fold(0.0, f64::max) / rows * 8.0,
        experts_without_tokens: load.iter().filter(|r| **r == 0.0).count(),
        entropy_nats: 0.5,
        dropped_share: 0.0,
        balance: 8.0 * load.iter().map(|r| (r / rows).powi(2)).sum::<f64>(),
        auxiliary: BTreeMap::new(),
    }
}

const EVEN: [f64; 8] = [100.0; 8];

fn evaluation(step: u64, (train, val): (f64, f64), layer: LayerBalance) -> Metric {
    Metric::Evaluation(Evaluation {
        step,
        train_loss_nats: train,
        validation_loss_nats: Some(val),
        active_parameters: None,
        layers: vec![layer],
    })
}

fn step(step: u64, loss_nats: f64, objective: f64) -> Metric {
    let objective = Some(objective);
    Metric::Train(TrainMetric {
        step,
        loss_nats,
        objective,
        grad_norm: None,
        lr: 1e-3,
        step_ms: 1.0,
        tokens_per_s: 1.0,
    })
}

#[test]
fn a_sound_training_has_no_fault() {
    let subject = Subject::new("balance: [switch(weight: 0.01)],");
    assert_eq!(subject.layers.len(), 1);
    let metrics = [
        step(100, 3.0, 3.1),
        evaluation(100, (3.0, 3.1), panel([90.0, 110.0, 80.0, 120.0, 100.0, 100.0, 95.0, 105.0])),
        step(200, 2.0, 2.1),
        evaluation(200, (2.0, 2.2), panel(EVEN)),
    ];
    assert_eq!(subject.diagnoses(&metrics), []);
    assert_eq!(subject.diagnoses(&[]), []);
    // Too few rows to say who is idle.
    let few = [evaluation(100, (3.0, 3.0), panel([1.0, 0.0, 1.0, 1.0, 2.0, 1.0, 0.0, 1.0]))];
    assert_eq!(subject.diagnoses(&few), []);
}

#[test]
fn a_collapse_is_told_once_with_its_idle_experts() {
    let load = [500.0, 400.0, 30.0, 30.0, 30.0, 10.0, 0.0, 0.0];
    let subject = Subject::new("");
    let found = subject.diagnoses(&[evaluation(100, (3.0, 3.0), panel(load))]);
    let [collapse] = &found[..] else { panic!("{found:?}") };
    assert_eq!((collapse.fault, &collapse.layers[..]), (Fault::Collapse, &["moe".to_string()][..]));
    assert_eq!(collapse.seen, "2 of 8 experts get 90 % of the rows, 2 get nothing at all");
    assert!(
        collapse.cure.contains("switch(weight: 0.01)") && collapse.cure.contains("noisy_top_k"),
        "{}",
        collapse.cure
    );
    // There is no `balance` yet: the place is the layer's.
    let line = collapse.line(&subject.spec.source).unwrap();
    assert_eq!((line.file.as_str(), line.number, line.text.as_str()), ("m.moe", 6, "moe("));
}

#[test]
fn idle_experts_are_counted_over_evaluations() {
    let load = [100.0, 100.0, 100.0, 100.0, 100.0, 150.0, 150.0, 0.0];
    let subject = Subject::new("balance: [importance(weight: 0.01), switch(weight: 0.02)],");
    let metrics = [100, 200, 300].map(|at| evaluation(at, (3.0, 3.0), panel(load)));
    let found = subject.diagnoses(&metrics);
    let [idle] = &found[..] else { panic!("{found:?}") };
    assert_eq!(idle.seen, "1 of 8 experts got no token in the last evaluation, as in all evaluations before");
    assert!(idle.cure.contains("`switch(weight: 0.2)`"), "{}", idle.cure);
    let line = idle.line(&subject.spec.source).unwrap();
    assert_eq!((line.number, line.text.as_str()), (9, "balance: [importance(weight: 0.01), switch(weight: 0.02)],"));
    let text = idle.text(&subject.spec.source);
    assert!(
        text.starts_with("diagnosis: experts get nothing, or nearly nothing (moe): 1 of 8")
            && text.contains("at m.moe:9: balance"),
        "{text}"
    );
}

#[test]
fn an_expert_with_nearly_nothing_is_idle() {
    let load = [100.0, 100.0, 100.0, 100.0, 100.0, 150.0, 150.0, 1.0];
    let found = Subject::new("").diagnoses(&[evaluation(100, (3.0, 3.0), panel(load))]);
    assert_eq!(found[0].seen, "1 of 8 experts got no token, or nearly none, in the last evaluation");
    assert_eq!(
        Subject::new("").faults(&[evaluation(
            10,
            (3.0, 3.0),
            panel([5.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0])
        )]),
        []
    );
}

#[test]
fn a_capacity_that_drops_is_found_at_its_line() {
    let subject = Subject::new("");
    let dropping = |dropped_share| [evaluation(100, (3.0, 3.0), LayerBalance { dropped_share, ..panel(EVEN) })];
    assert_eq!(subject.faults(&dropping(0.01)), []);
    let found = subject.diagnoses(&dropping(0.12));
    assert_eq!(found[0].fault, Fault::Dropped);
    assert!(found[0].seen.starts_with("12 %"));
    assert_eq!(found[0].line(&subject.spec.source).unwrap().text, "capacity: capacity(factor: 1.0),");
}

#[test]
fn a_balance_loss_without_effect_is_told() {
    let uneven = [300.0, 200.0, 100.0, 100.0, 50.0, 20.0, 20.0, 10.0];
    let metrics = [100, 200, 300, 400].map(|at| evaluation(at, (2.0, 2.0), panel(uneven)));
    let with = Subject::new("balance: [switch(weight: 0.001)],");
    let found = with.diagnoses(&metrics);
    assert_eq!(found[0].fault, Fault::BalanceWithoutEffect, "{found:?}");
    assert!(found[0].cure.contains("`switch(weight: 0.01)`"), "{}", found[0].cure);
    // Without a loss there is none that could be without effect, and one that works is left alone.
    assert_eq!(Subject::new("").faults(&metrics), []);
    assert_eq!(with.faults(&metrics[..3]), [], "it is too early to say");
    let worse = panel([400.0, 300.0, 60.0, 40.0, 20.0, 20.0, 20.0, 20.0]);
    let working: Vec<Metric> = std::iter::once(evaluation(10, (3.0, 3.0), worse)).chain(metrics).collect();
    assert_eq!(with.faults(&working), []);
}

#[test]
fn balance_losses_that_weigh_much_are_told() {
    let subject = Subject::new("balance: [switch(weight: 1.0)],");
    let even = evaluation(200, (2.0, 2.0), panel(EVEN));
    let found = subject.diagnoses(&[step(100, 2.0, 3.0), step(200, 2.0, 3.0), even.clone()]);
    assert_eq!(found[0].fault, Fault::BalanceTooStrong);
    assert!(found[0].seen.contains("33 %") && found[0].cure.contains("`switch(weight: 0.1)`"), "{found:?}");
    assert_eq!(subject.faults(&[step(100, 2.0, 3.0), step(200, 2.0, 2.1), even]), []);
    // Small weights of many layers add up.
    let layers: Vec<MoeLayerInfo> =
        (0..48).map(|i| MoeLayerInfo { path: format!("moe_{i}"), ..subject.layers[0].clone() }).collect();
    let metrics = [step(100, 2.0, 2.6)];
    assert_eq!(diagnose(&Evidence { layers: &layers, metrics: &metrics, ..Evidence::default() }), []);
}

#[test]
fn one_expert_with_all_the_weight_is_told() {
    let subject = Subject::new("");
    let sure = LayerBalance { entropy_nats: 0.01, ..panel(EVEN) };
    let found = subject.diagnoses(&[evaluation(100, (3.0, 3.0), sure)]);
    assert_eq!(found[0].fault, Fault::OneHasAllWeight);
    assert_eq!(found[0].line(&subject.spec.source).unwrap().text, "route:   softmax_top_k(k: 2),");
}

#[test]
fn a_text_that_is_learnt_by_heart_is_told_with_the_best_step() {
    let subject = Subject::new("");
    let losses = [(100, (2.5, 2.6)), (200, (2.0, 2.2)), (300, (1.0, 2.6))];
    let metrics = losses.map(|(at, losses)| evaluation(at, losses, panel(EVEN)));
    let found = subject.diagnoses(&metrics);
    assert_eq!((found[0].fault, found[0].line(&subject.spec.source)), (Fault::LearntByHeart, None));
    assert!(found[0].cure.contains("`steps 200`"), "{}", found[0].cure);
    assert_eq!(subject.faults(&metrics[..2]), []);
}

#[test]
fn layers_with_one_fault_and_one_cure_share_a_diagnosis() {
    let subject = Subject::new("");
    let mut layers = subject.layers.clone();
    layers.push(MoeLayerInfo { path: "moe_2".into(), ..layers[0].clone() });
    let dropping = |path: &str| LayerBalance { path: path.into(), dropped_share: 0.2, ..panel(EVEN) };
    let both = Metric::Evaluation(Evaluation {
        step: 100,
        train_loss_nats: 2.0,
        validation_loss_nats: None,
        active_parameters: None,
        layers: vec![dropping("moe"), dropping("moe_2")],
    });
    let found = diagnose(&Evidence { layers: &layers, metrics: &[both], ..Evidence::default() });
    let [dropped] = &found[..] else { panic!("{found:?}") };
    assert_eq!(dropped.layers, ["moe", "moe_2"]);
    assert!(dropped.seen.starts_with("in moe 20 %"), "{}", dropped.seen);
}

#[test]
fn noise_that_changes_no_choice_is_learnt_away() {
    let subject = Subject::of(&SPEC.replace("BALANCE", "").replace("softmax_top_k", "noisy_top_k"));
    let with = |share| {
        let noise = BTreeMap::from([("moe".to_string(), share)]);
        diagnose(&Evidence { layers: &subject.layers, noise, ..Evidence::default() })
    };
    let found = with(0.002);
    assert_eq!(found[0].fault, Fault::NoiseLearntAway);
    assert!(found[0].seen.contains("0.2 %") && found[0].cure.contains("epsilon"), "{found:?}");
    assert_eq!(found[0].line(&subject.spec.source).unwrap().number, 8);
    assert_eq!(with(0.2), []);
}

#[test]
fn a_router_that_stands_still_while_others_move_is_told() {
    let subject = Subject::new("");
    let with = |router, others| {
        let turns = BTreeMap::from([("moe".to_string(), Turn { steps: (100, 200), router, others })]);
        diagnose(&Evidence { layers: &subject.layers, turns, ..Evidence::default() })
    };
    let found = with(0.0, 4.0);
    assert_eq!(found[0].fault, Fault::RouterStandsStill);
    assert!(found[0].seen.starts_with("from step 100 to step 200"), "{found:?}");
    // One that moves is fine, and where nothing moves the rate is too small for all.
    assert_eq!((with(0.5, 4.0), with(0.0, 0.0)), (vec![], vec![]));
}

#[test]
fn a_balance_loss_is_not_too_strong_where_the_load_is_uneven() {
    let subject = Subject::new("balance: [switch(weight: 1.0)],");
    let collapsed = evaluation(200, (2.0, 2.0), panel([500.0, 400.0, 30.0, 30.0, 30.0, 10.0, 0.0, 0.0]));
    assert_eq!(subject.faults(&[step(100, 2.0, 3.0), step(200, 2.0, 3.0), collapsed]), [Fault::Collapse]);
}

#[test]
fn before_step_50_only_a_divergence_is_told() {
    let subject = Subject::new("");
    let collapsed = |at| evaluation(at, (3.0, 3.0), panel([500.0, 400.0, 30.0, 30.0, 30.0, 10.0, 0.0, 0.0]));
    assert_eq!(subject.faults(&[collapsed(12)]), []);
    assert_eq!(subject.faults(&[collapsed(50)]), [Fault::Collapse]);
    let missing = |metrics: &[Metric]| what_is_missing(&Evidence { metrics, ..Evidence::default() });
    assert!(missing(&[collapsed(12)]).unwrap().starts_with("12 steps are too few"), "{:?}", missing(&[collapsed(12)]));
    assert_eq!(missing(&[collapsed(50)]), None);
    assert!(missing(&[step(60, 2.0, 2.0)]).unwrap().contains("no evaluation"));
    assert!(missing(&[]).unwrap().contains("no step"));
    assert_eq!(subject.faults(&[collapsed(5), diverged_at(7)]), [Fault::Diverged]);
}

fn diverged_at(step: u64) -> Metric {
    Metric::Diverged(Divergence { step, what: "the training loss".into() })
}

const RECIPE: &str = "train {
  steps 100
  optimizer adamw(lr: 3e-1)
}
";

#[test]
fn a_divergence_is_told_with_the_line_of_the_rate() {
    let subject = Subject::of(&(SPEC.replace("BALANCE", "") + RECIPE));
    let with = |metrics: &[Metric]| {
        let recipe = Some(&subject.spec.checked.recipe);
        diagnose(&Evidence { layers: &subject.layers, metrics, recipe, ..Evidence::default() })
    };
    let found = with(&[step(60, 3.0, 3.0), diverged_at(70)]);
    let [diverged] = &found[..] else { panic!("{found:?}") };
    assert_eq!((diverged.fault, diverged.layers.len()), (Fault::Diverged, 0));
    assert_eq!(diverged.seen, "the training loss is not finite after step 70, with a learning rate of 0.3");
    assert_eq!(
        diverged.cure,
        "a lower learning rate, `optimizer adamw(lr: 1e-3)`, or a bound on the gradient, `clip 1.0`"
    );
    assert_eq!(diverged.line(&subject.spec.source).unwrap().text, "optimizer adamw(lr: 3e-1)");
    assert_eq!(with(&[step(60, 3.0, 3.0), step(70, 2.9, 2.9)]), []);
}

#[test]
fn a_model_that_only_guesses_after_its_training_is_told() {
    let subject = Subject::of(&(SPEC.replace("BALANCE", "") + RECIPE));
    let with = |at, losses| {
        let (metrics, recipe) = ([evaluation(at, losses, panel(EVEN))], Some(&subject.spec.checked.recipe));
        diagnose(&Evidence {
            layers: &subject.layers,
            metrics: &metrics,
            vocab: Some(20),
            recipe,
            ..Evidence::default()
        })
    };
    let found = with(100, (3.2, 3.1));
    assert_eq!(found[0].fault, Fault::NoBetterThanGuessing);
    assert!(found[0].seen.contains("3.100") && found[0].seen.contains("2.996"), "{found:?}");
    assert!(found[0].cure.contains("adamw(lr: 1e-3)"), "{found:?}");
    // Where the text of training is learnt, another rate is no cure.
    assert!(with(100, (1.0, 3.1))[0].cure.contains("unlike"));
    // It is better than guessing, or still on its way.
    assert_eq!((with(100, (2.9, 2.9)), with(60, (3.2, 3.1))), (vec![], vec![]));
}

#[test]
fn a_second_expert_that_is_never_drawn_is_noise_that_is_learnt_away() {
    let gshard = |second: &str| {
        let route = format!("gshard(second: {second})");
        Subject::of(&SPEC.replace("BALANCE", "").replace("softmax_top_k(k: 2)", &route))
    };
    let sure = [evaluation(100, (3.0, 3.0), LayerBalance { entropy_nats: 0.01, ..panel(EVEN) })];
    let found = gshard("random").diagnoses(&sure);
    assert_eq!(found[0].fault, Fault::NoiseLearntAway);
    assert!(found[0].cure.contains("gshard(second: always)"), "{found:?}");
    assert_eq!(gshard("random").faults(&[evaluation(100, (3.0, 3.0), panel(EVEN))]), []);
    // Without chance it is one expert with all the weight, and `gshard` has no `k` to lower.
    let found = gshard("always").diagnoses(&sure);
    assert_eq!(found[0].fault, Fault::OneHasAllWeight);
    assert!(!found[0].cure.contains("k: 1"), "{found:?}");
}

#[test]
fn what_keeps_noise_fits_the_router() {
    let subject = Subject::of(&SPEC.replace("BALANCE", "").replace("softmax_top_k(k: 2)", "switch(jitter: 0.01)"));
    let noise = BTreeMap::from([("moe".to_string(), 0.002)]);
    let found = diagnose(&Evidence { layers: &subject.layers, noise, ..Evidence::default() });
    assert_eq!(found[0].fault, Fault::NoiseLearntAway);
    assert!(found[0].cure.contains("`jitter` in `switch(..)`") && !found[0].cure.contains("epsilon"), "{found:?}");
}
