//! The view follows events, and fits every terminal.

use super::draw::{Colours, draw};
use super::keys::Key;
use super::view::{About, Curve, Event, View};
use moec_plan::{Optimizer, Schedule};
use moec_runtime::{Evaluation, LayerBalance, Metric, TrainConfig, TrainMetric};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::collections::BTreeMap;
use std::time::Duration;

/// A run of 1000 steps of 512 tokens, evaluated every 250 steps on 20 batches of both splits.
fn about() -> About {
    let config = TrainConfig {
        steps: 1000,
        seed: 1,
        optimizer: Optimizer::default().with("lr", 1e-3),
        schedule: Schedule::named("cosine").unwrap().with("warmup", 100),
        batches: 1,
        log_every: 50,
        evaluate_every: 250,
        evaluate_batches: 20,
        patience: None,
        checkpoint_every: 500,
        keep: None,
        keep_best: false,
    };
    About {
        model: "noisy_top2".into(),
        device: "cpu",
        run: "runs/noisy_top2".into(),
        config,
        splits: 2,
        tokens: 512,
        before: Vec::new(),
    }
}

fn trained(step: u64) -> TrainMetric {
    let loss = 1.6 + 2.6 * (-(step as f64) / 180.0).exp() + 0.05 * (step as f64 * 0.7).sin();
    TrainMetric {
        step,
        loss_nats: loss,
        objective: None,
        grad_norm: Some(0.42),
        lr: 1e-3,
        step_ms: 98.0,
        tokens_per_s: 5224.0,
    }
}

/// A layer whose rows are those of a fifth less than two experts a token.
fn layer(path: String, experts: usize) -> LayerBalance {
    let all = 20.0 * 512.0 * 1.6;
    let weights: Vec<f64> = (0..experts).map(|e| if e == 3 { 0.0 } else { (e % 8) as f64 + 1.0 }).collect();
    let sum: f64 = weights.iter().sum();
    let load: Vec<f64> = weights.iter().map(|w| all * w / sum).collect();
    LayerBalance {
        path,
        load_max_over_mean: load.iter().copied().fold(0.0, f64::max) * experts as f64 / all,
        load_rows: load,
        zero_computation_rows: Vec::new(),
        experts_per_token: None,
        experts_without_tokens: 1,
        entropy_nats: 0.361,
        dropped_share: 0.2,
        balance: 1.5,
        auxiliary: BTreeMap::new(),
    }
}

fn evaluated(step: u64, layers: usize, experts: usize) -> Evaluation {
    let loss = trained(step).loss_nats;
    Evaluation {
        step,
        train_loss_nats: loss,
        validation_loss_nats: Some(loss + 0.08),
        active_parameters: None,
        layers: (0..layers).map(|l| layer(format!("blocks.{l}.moe"), experts)).collect(),
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A run whose first step took 8 s, then 100 ms each; evaluations 20 ms a batch after 2 s for the first one, and 1 s to save.
fn after(steps: u64, layers: usize, experts: usize) -> View {
    let mut view = View::new(about());
    let mut now = ms(0);
    view.apply(Event::Started { step: 0 }, now);
    for step in 1..=steps {
        now += if step == 1 { ms(8000) } else { ms(100) };
        view.apply(Event::Stepped { step }, now);
        if step.is_multiple_of(50) {
            view.apply(Event::Logged(trained(step)), now);
        }
        if step.is_multiple_of(250) {
            for done in 1..=40 {
                now += if step == 250 && done == 1 { ms(2000) } else { ms(20) };
                view.apply(Event::Evaluating { done, batches: 40 }, now);
            }
            view.apply(Event::Evaluated(evaluated(step, layers, experts)), now);
        }
        if step.is_multiple_of(500) {
            now += ms(1000);
            view.apply(Event::Saved, now);
        }
    }
    view
}

fn shown(view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(view, Colours { are_on: false }, frame.area(), frame.buffer_mut())).unwrap();
    // `TestBackend` quotes its lines; without them a picture is what a user sees.
    let text = terminal.backend().to_string();
    text.lines().map(|line| line.trim_matches('"').trim_end().to_string() + "\n").collect()
}

#[track_caller]
fn expect(name: &str, picture: String) {
    insta::with_settings!({
        snapshot_path => "../../../../../tests/snapshots",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, { insta::assert_snapshot!(format!("live.{name}"), picture) });
}

#[test]
fn the_picture_fits_terminals_of_60_80_and_120_columns() {
    let mut view = after(620, 8, 8);
    view.said =
        vec!["eval  500  train 1.7811  val 1.8611".into(), "saved runs/noisy_top2/checkpoints/step-00000500".into()];
    for (width, height) in [(60, 24), (80, 24), (120, 40)] {
        expect(&width.to_string(), shown(&view, width, height));
    }
}

#[test]
fn there_is_a_picture_before_anything_is_known() {
    let mut view = View::new(about());
    view.apply(Event::Started { step: 0 }, ms(0));
    view.elapsed = ms(3200);
    expect("begun", shown(&view, 80, 24));
}

#[test]
fn many_experts_share_bars_and_many_layers_are_scrolled() {
    let mut view = after(250, 24, 256);
    expect("many", shown(&view, 100, 24));
    let first =
        |view: &View| shown(view, 100, 24).lines().find(|line| line.starts_with("blocks.")).unwrap().to_string();
    assert!(first(&view).starts_with("blocks.0.moe"));
    view.apply(Event::Pressed(Key::Down), ms(40_000));
    assert!(first(&view).starts_with("blocks.1.moe"));
    view.apply(Event::Pressed(Key::Up), ms(40_000));
    view.apply(Event::Pressed(Key::Up), ms(40_000));
    assert!(first(&view).starts_with("blocks.0.moe"));
    // The last ones fill the table.
    for _ in 0..100 {
        view.apply(Event::Pressed(Key::Down), ms(40_000));
    }
    assert!(shown(&view, 100, 24).contains("blocks.23.moe"));
    let more = |view: &View| shown(view, 100, 24).lines().filter(|line| line.starts_with("blocks.")).count();
    assert!(more(&view) > 3);
}

#[test]
fn no_size_of_a_terminal_is_too_small_to_draw() {
    let view = after(510, 8, 8);
    let begun = View::new(about());
    for width in (1..140).step_by(7) {
        for height in 1..40 {
            for view in [&view, &begun] {
                let picture = shown(view, width, height);
                assert!(picture.lines().all(|line| line.chars().count() <= usize::from(width)));
            }
        }
    }
    // Where only a few rows are there, they are those that matter.
    let small = shown(&view, 60, 4);
    assert!(small.contains("step 510 of 1,000") && small.contains("left"), "{small}");
}

#[test]
fn time_left_has_no_compilation_in_it_and_evaluations_beside_it() {
    let view = after(500, 1, 4);
    let (left, spent) = (view.clock.left().unwrap(), view.clock.spent());
    // 500 steps of 100 ms, two evaluations of 40 batches of 20 ms, and a second to save at the end.
    assert!((left.steps - 50.0).abs() < 1e-6 && (left.evaluating - 1.6).abs() < 1e-6, "{left:?}");
    assert!((left.saving - 1.0).abs() < 1e-6 && left.is_timed, "{left:?}");
    assert!((spent.compiling - 7.9 - 1.98).abs() < 1e-6, "{spent:?}");
    assert!((spent.steps - 50.0).abs() < 1e-6 && (spent.evaluating - 1.6).abs() < 1e-6, "{spent:?}");
    let total = spent.compiling + spent.steps + spent.evaluating + spent.saving;
    assert!((total - view.elapsed.as_secs_f64()).abs() < 1e-6, "all that is over is accounted for");
    let picture = shown(&view, 80, 24);
    assert!(picture.contains("left 53 s") && picture.contains("compiling 10 s"), "{picture}");
}

#[test]
fn experts_per_token_are_measured_after_the_capacity() {
    let view = after(250, 2, 8);
    assert_eq!(view.layers.len(), 2);
    assert!((view.layers[0].experts_per_token - 1.6).abs() < 1e-9);
    assert_eq!((view.layers[0].idle, view.layers[0].dropped_share), (1, 0.2));
    assert_eq!(view.evaluating, None);
}

#[test]
fn a_run_that_goes_on_has_its_curves_from_the_beginning() {
    let before = vec![Metric::Train(trained(50)), Metric::Evaluation(evaluated(50, 1, 4)), Metric::Train(trained(100))];
    let view = View::new(About { before, ..about() });
    assert_eq!((view.loss.points().len(), view.train.points().len(), view.validation.points().len()), (2, 1, 1));
    assert_eq!(view.layers.len(), 1);
}

#[test]
fn an_evaluation_in_progress_and_a_stop_are_shown() {
    let mut view = after(499, 1, 4);
    view.apply(Event::Stepped { step: 500 }, view.elapsed + ms(100));
    view.apply(Event::Evaluating { done: 7, batches: 40 }, view.elapsed + ms(140));
    assert!(shown(&view, 80, 24).contains("evaluating: 7 of 40 batches"));
    view.apply(Event::Stopping, view.elapsed);
    let picture = shown(&view, 80, 24);
    assert!(picture.contains("stopping after this step and saving") && !picture.contains("left "), "{picture}");
}

#[test]
fn lines_that_were_said_have_no_control_characters() {
    let mut view = after(60, 1, 4);
    view.said = vec!["\u{1b}[1m\u{1b}[31merror\u{1b}[0m: a\tb\u{7}\n  c".into()];
    assert!(shown(&view, 80, 24).contains("error: ab c\n"));
}

#[test]
fn a_curve_of_many_points_keeps_its_shape_in_few() {
    let mut curve = Curve::default();
    for step in 1..=100_000u64 {
        curve.push(step, step as f64 / 1e5);
    }
    let points = curve.points();
    assert!((500..1100).contains(&points.len()), "{}", points.len());
    assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert!(points.iter().all(|(step, value)| (step / 1e5 - value).abs() < 1e-9));
    assert!(points[points.len() - 1].0 > 99_000.0);
}
