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

/// A text that Python can read, where there is a Python to ask.
fn read_by_python(text: &str) {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let program = "import sys; compile(sys.stdin.buffer.read(), 'model.py', 'exec')";
    let command = Command::new("python3").args(["-c", program]).stdin(Stdio::piped()).spawn();
    let Ok(mut python) = command else { return };
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(python.wait().unwrap().success(), "{text}");
}

/// A router before the frame.
fn written_with(router: &str, layer: &str, precision: &str) -> String {
    let text = format!("{router}\n{}", FRAME.replace("LAYER", layer).replace("PRECISION", precision));
    let spec = Spec::parse("small.moe", &text).unwrap();
    source(&spec.checked.model, &spec.checked.recipe, 31, &text).unwrap()
}

#[test]
fn names_of_python_are_written_another_way() {
    let router = r#"
router awkward(k: int) {
  let class = linear(x, experts)
  let most = linear(x, experts, name: "lambda")
  let type = linear(x, experts, name: "max")
  let half = linear(x, 7, name: "forward")
  let training_scores = linear(half, experts, name: "3d")
  let losses = parameter(experts, start: 0.25)
  let float = parameter(experts, start: 1.0)
  let plain = parameter(experts, start: 2.0)
  let max = tanh(class + most) * float
  let sum = max * max + losses * plain
  let top, chosen = top_k(sum + type + max + training_scores, k)
  return token_choice(experts: chosen, weights: softmax(top))
}
"#;
    let text = written_with(router, "moe(experts: 3 * mlp(hidden: 20), route: awkward(k: 2))", "");
    read_by_python(&text);
    for name in ["class_", "lambda_", "max", "forward_", "losses_", "float_", "plain", "n3d"] {
        assert!(text.contains(&format!("        self.{name} = ")), "{name}: {text}");
    }
    assert!(!text.contains("        max = ") && !text.contains("        sum = "), "{text}");
    let renamed = "    \"blocks.1.moe.class.weight\": \"blocks.1.moe.class_.weight\",\n";
    assert!(text.contains(renamed) && text.contains("RENAMED.get(name, name): tensor"), "{text}");
    assert!(!text.contains("moe.plain\"") && !text.contains("moe.max."), "{text}");
    assert!(!written("mlp(hidden: 20)", "").contains("RENAMED"));
}

#[test]
fn two_names_never_become_one() {
    let siblings = BTreeSet::from(["_x", "a-b", "a+b", "class", "class_", "values", "x"]);
    let names: Vec<String> = siblings.iter().map(|name| names::attribute(name, &siblings, true)).collect();
    assert_eq!(names, ["x_", "a_b", "a_b_", "class__", "class_", "values", "x"]);
    assert_eq!(names::attribute("values", &siblings, false), "values_");
    let locals = ["None", "_", "__x", "3", "", "tokens", "nn", "result"].map(names::local);
    assert_eq!(locals, ["None_", "n_", "nx", "n3", "n", "tokens", "nn_", "result_"]);
    assert_eq!((names::class("True"), names::class("F")), ("True_".into(), "F_".into()));
}

#[test]
fn a_repetition_without_a_layer_is_a_hole_in_the_list() {
    let frame = "model holes { context 8 vocab characters embed(width: 12) repeat COUNT as i { if i != 1 { \
                 residual { layer_norm mlp(hidden: 20) } } } unembed }";
    let text = |count: &str| {
        let spec = Spec::parse("holes.moe", &frame.replace("COUNT", count)).unwrap();
        let text = source(&spec.checked.model, &spec.checked.recipe, 31, "the spec").unwrap();
        read_by_python(&text);
        text
    };
    let three = text("3");
    assert!(three.contains("nn.ModuleList([Block(), nn.Identity(), Block()])"), "{three}");
    assert!(three.contains("self.blocks[2](") && !three.contains("for block in self.blocks:"), "{three}");
    let many = text("12");
    let blocks = ["Block()"; 10].join(", ");
    assert!(many.contains(&format!("nn.ModuleList([Block(), nn.Identity(), {blocks}])")), "{many}");
    assert!(many.contains("for block in self.blocks[2:12]:"), "{many}");
}

#[test]
fn a_parameter_without_axes() {
    let router = "router warm(k: int) { let scale = parameter(start: 0.5)  \
                  let scores = linear(x, experts)  let top, chosen = top_k(scores * scale, k)  \
                  return token_choice(experts: chosen, weights: softmax(top)) }";
    let text = written_with(router, "moe(experts: 3 * mlp(hidden: 20), route: warm(k: 2))", "");
    assert!(text.contains("self.scale = nn.Parameter(torch.full((), 0.5))"), "{text}");
    read_by_python(&text);
}

#[test]
fn control_characters_of_a_spec_are_escaped() {
    let spec = Spec::parse("small.moe", &FRAME.replace("LAYER", "mlp(hidden: 20)").replace("PRECISION", "")).unwrap();
    let text =
        source(&spec.checked.model, &spec.checked.recipe, 31, "// a\0b\x1b[1m\tc\rd\u{85}e\r\n// \"\"\"\"").unwrap();
    assert!(text.contains("    // a\\x00b\\x1b[1m\tc\\x0dd\\x85e\n    // "), "{text}");
    read_by_python(&text);
}

#[test]
fn gradients_of_rounded_products_are_rounded_as_operands() {
    let text = written("moe(experts: 3 * mlp(hidden: 20), route: softmax_top_k(k: 2))", "precision bf16");
    for part in [
        "class RoundedOperand(torch.autograd.Function):",
        "class RoundedGradient(torch.autograd.Function):",
        "return RoundedOperand.apply(x) if ROUNDED else x",
        "return RoundedGradient.apply(y) if ROUNDED else y",
        // The gradient of the bias is that of the unrounded sum.
        "y = bf16_gradient(F.linear(bf16(x), bf16(weight)))",
        "return grouped_linear(rows, self.weight, offsets, self.bias, linear=rounded_linear)",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(text.matches(".bfloat16()").count(), 2, "{text}");
    read_by_python(&text);
}

#[test]
fn what_is_frozen_is_said() {
    assert!(written("mlp(hidden: 20)", "").contains("unless `requires_grad_(False)`"));
}

#[test]
fn windows_and_sinks_of_attention() {
    let text = written("attention(heads: 1, window: 2, sink: true, dropout: 0.1)", "");
    let call = "window=2, sinks=self.sink, dropout=0.1 if self.training else 0.0)";
    assert!(text.contains("masked_attention(") && text.contains(call), "{text}");
    read_by_python(&text);
}
