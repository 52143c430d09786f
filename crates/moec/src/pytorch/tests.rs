//! The text that is written, which is read like code. That it computes what moec computes is held by tests/interchange.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use super::*;
use crate::Spec;

const FRAME: &str = "
model small {
  context 8
  vocab characters
  embed(width: 12, positions: learned)
  repeat 3 {
    residual { layer_norm  attention(heads: 2, dropout: 0.1) }
    residual { layer_norm  LAYER }
  }
  layer_norm
  unembed
}
train { batch 5  PRECISION }
";

fn written(layer: &str, precision: &str) -> String {
    let text = FRAME.replace("LAYER", layer).replace("PRECISION", precision);
    let spec = Spec::parse("small.moe", &text).unwrap();
    source(&spec.checked.model, &spec.checked.recipe, 31, "the spec").unwrap()
}

/// The classes of a model, without what is above and below them.
fn classes(text: &str) -> &str {
    let start =
        text.match_indices("\nclass ").map(|(at, _)| at).find(|&at| text[at..].contains("    \"\"\"`")).unwrap();
    let start = text[..start].len();
    &text[start..text.find("    @classmethod").unwrap()]
}

#[test]
fn noisy_scores_with_balance_losses() {
    let layer = "moe(experts: 3 * mlp(hidden: 20, dropout: 0.1), route: noisy_top_k(k: 2), \
                 balance: [load(weight: 0.01), z(weight: 0.001)])";
    insta::assert_snapshot!(written(layer, ""));
}

#[test]
fn a_capacity_is_a_formula_of_the_batch() {
    let layer =
        "moe(experts: 3 * mlp(hidden: 20), route: switch, capacity: capacity(factor: 1.25, evaluation_factor: 2.0))";
    insta::assert_snapshot!(classes(&written(layer, "precision bf16")));
}

#[test]
fn tokens_that_pass_by() {
    let layer = "mixture_of_depths(capacity: 0.25) { residual { layer_norm  attention(heads: 2) } }";
    insta::assert_snapshot!(classes(&written(layer, "")));
}

#[test]
fn mixtures_of_whole_sequences() {
    let layer = "moe(experts: 3 * mlp(hidden: 20), route: soft_moe(slots: 2), allow: lookahead)";
    insta::assert_snapshot!(classes(&written(layer, "")));
}

#[test]
fn what_is_not_used_is_not_written() {
    let text = written("mlp(hidden: 20)", "");
    for name in ["sort_by_expert", "top_k", "bf16", "ROUNDED", "self.losses"] {
        assert!(!text.contains(name), "{name}: {text}");
    }
    // Every function at the top has a name of its own, and is found by it.
    let helpers = Helpers::new();
    assert_eq!(helpers.parts.len(), HELPERS.matches("\n\n\n").count() + 1);
}

#[test]
fn a_spec_in_a_string_stays_what_it_is() {
    let spec = Spec::parse("small.moe", &FRAME.replace("LAYER", "mlp(hidden: 20)").replace("PRECISION", "")).unwrap();
    let text = source(&spec.checked.model, &spec.checked.recipe, 31, "// \"\"\" and \\N").unwrap();
    assert!(text.contains(r#"// \"\"\" and \\N"#), "{text}");
}
