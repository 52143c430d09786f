//! Tests of this module's parent.

use super::*;
use crate::function::{Binary, Unary};
use crate::op::AdamWAttrs;
use crate::types::{Real, TensorType};
use crate::{Builder, Origin, declarations};
use std::collections::BTreeSet;

/// Every operation, with every attribute set at least once, as the printer writes it.
const EVERYTHING: &str = r#"graph {
  %x = input : f32[4, 6]
  %ids = input {name = "token ids"} : i32[4]
  %rng = input : i32[4]
  %hyper = input : f32[3]
  %"odd \"name\"\\\n\t\u{1} é" = parameter : f32[8, 6]
  %s = state : f32[]
  %moment = state {name = "m", role = optimizer} : f32[]
  %keys = state {role = cache} : f32[4, 3, 4]
  phase backward
  %half = fill {value = 0.5} : f32[4, 6]
  %least = fill {value = -inf} : f32[]
  %nan = fill {value = NaN} : f32[]
  %small = fill {value = 1e-30} : f32[]
  %ramp = ramp {step = -2} : i32[4]
  %flat = reshape(%x) : f32[24]
  %wide = broadcast(%x) : f32[2, 4, 6]
  %turned = permute(%wide) {axes = [2, 0, 1]} : f32[6, 2, 4]
  %constant = stop_gradient(%x) : f32[4, 6]
  %exp = exp(%x) : f32[4, 6]
  %normal_cdf = normal_cdf(%exp) : f32[4, 6]
  %less = less(%x, %half) : f32[4, 6]
  %select = select(%less, %x, %half) : f32[4, 6]
  %number = to_float(%ramp) : f32[4]
  %index = to_index(%number) {size = 3} : i32[4]
  %looked_up = lookup(%index, %ids) : i32[4]
  %previous = previous(%ids) {time = 2} : i32[4]
  %row = sum(%x) {axes = [1]} : f32[4]
  %column = sum(%x) {axes = [0]} : f32[6]
  %up_to = cumsum(%x) {axis = 1, exclusive, reverse} : f32[4, 6]
  %norm = sum_of_squares(%x, %row) : f32[]
  %mm = matmul(%x, %"odd \"name\"\\\n\t\u{1} é") {transpose_b} : f32[4, 8]
  %mm_2 = matmul(%x, %x, %column) {transpose_a, bias} : f32[6, 6]
  %experts_w = parameter : f32[3, 5, 6]
  %experts_b = parameter : f32[3, 5]
  %logits = input : f32[4, 3]
  %top_k:2 = top_k(%logits) {k = 2} : f32[4, 2], i32[4, 2]
  %gate = softmax(%top_k) : f32[4, 2]
  %kept = limit_capacity(%top_k#1) {experts = 3, capacity = 2} : i32[4, 2]
  %choice = limit_capacity(%kept) {experts = 3, capacity = 1, priority = choice} : i32[4, 2]
  %likely = limit_capacity(%kept, %gate) {experts = 3, capacity = 1, priority = probability} : i32[4, 2]
  %fewer:3 = sort_by_expert(%choice) {experts = 3} : i32[4], i32[3], i32[4, 2]
  %balanced = balanced_assignment(%logits) : i32[4, 1]
  %sorted:3 = sort_by_expert(%kept) {experts = 3} : i32[4], i32[8], i32[4, 2]
  %rows = dispatch(%x, %sorted#1, %sorted#2) : f32[8, 6]
  %weighted = dispatch(%x, %sorted#1, %sorted#2, %gate) {weighted} : f32[8, 6]
  %up = grouped_matmul(%rows, %experts_w, %sorted, %experts_b) {transpose_b, bias} : f32[8, 5]
  %down = grouped_matmul(%up, %experts_w, %sorted) : f32[8, 6]
  %dw = grouped_matmul_weight_grad(%up, %rows, %sorted) : f32[3, 5, 6]
  %db = grouped_sum(%up, %sorted) : f32[3, 5]
  %packed = state {role = packed_int8} : i32[3, 2, 6, 1]
  %scale = state {role = scale} : f32[3, 5]
  %unpacked = unpack(%packed, %scale) {format = int8, panel = 4, columns = 5} : f32[3, 6, 5]
  %combined = combine(%down, %sorted#1, %sorted#2, %gate) {weighted} : f32[4, 6]
  %plain = combine(%down, %sorted#1, %sorted#2) : f32[4, 6]
  %dgate = combine_weight_grad(%combined, %down, %sorted#2) : f32[4, 2]
  %gathered = gather_last(%logits, %top_k#1) : f32[4, 2]
  %scattered = scatter_last(%gate, %top_k#1) {size = 3} : f32[4, 3]
  %count = count(%top_k#1) {size = 3} : f32[3]
  %ln:3 = layer_norm(%x, %column, %column) {epsilon = 1e-5} : f32[4, 6], f32[4], f32[4]
  %ln_grad:3 = layer_norm_grad(%ln, %x, %column, %ln#1, %ln#2) : f32[4, 6], f32[6], f32[6]
  %rms:2 = rms_norm(%x, %column) {epsilon = 1e-6} : f32[4, 6], f32[4]
  %rms_grad:2 = rms_norm_grad(%rms, %x, %column, %rms#1) : f32[4, 6], f32[6]
  %softmax_grad = softmax_grad(%gate, %gate) : f32[4, 2]
  %lse = log_sum_exp(%logits) : f32[4]
  %attention:2 = attention(%x) {heads = 2, time = 2, scale = 0.25} : f32[4, 2], f32[4, 2]
  %dropped:2 = attention(%x, %rng) {heads = 1, time = 4, scale = 1.0, dropout = 0.1, key = 4294967295} : f32[4, 2], f32[4, 1]
  %dqkv = attention_grad(%attention, %x, %attention, %attention#1) {heads = 2, time = 2, scale = 0.25} : f32[4, 6]
  %rotary = rotary(%x) {heads = 1, time = 2, base = 10000.0} : f32[4, 6]
  %back = rotary(%rotary) {heads = 1, time = 2, base = 10000.0, inverse} : f32[4, 6]
  %placed = rotary(%x, %ramp) {heads = 1, time = 2, base = 10000.0, positions} : f32[4, 6]
  %embed = embed(%ids, %"odd \"name\"\\\n\t\u{1} é") : f32[4, 6]
  %dtable = embed_grad(%ids, %embed) {rows = 8} : f32[8, 6]
  %ce:2 = cross_entropy(%mm, %ids) : f32[], f32[4]
  %ce_grad = cross_entropy_grad(%ce, %mm, %ce#1, %ids) : f32[4, 8]
  %cached:2 = cached_attention(%x, %keys, %ids) {heads = 1, scale = 1.0} : f32[4, 2], f32[4, 3, 4]
  %noise = random_normal(%rng) {key = 1} : f32[2, 3]
  %uniform = random_uniform(%rng) {key = 2} : f32[7]
  %dropout = dropout(%x, %rng) {rate = 0.25, key = 3} : f32[4, 6]
  phase optimizer
  %adamw:3 = adamw(%x, %x, %x, %x, %hyper, %s) {beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0.01} : f32[4, 6], f32[4, 6], f32[4, 6]
  output loss = %ce
  output load.blocks.0.moe = %count
  output "two words" = %adamw#2
  update s = %norm
}
"#;

#[test]
fn every_operation_prints_and_parses() {
    let graph = parse(EVERYTHING).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(print(&graph), EVERYTHING);
    assert_eq!(
        graph.find("ids").map(|id| graph.node(id).op.clone()),
        Some(Op::Input { name: "token ids".into(), ty: TensorType::i32([4]) })
    );
    let name = "odd \"name\"\\\n\t\u{1} é";
    assert!(matches!(graph.find(name).map(|id| &graph.node(id).op), Some(Op::Parameter { name: n, .. }) if n == name));
    // The functions of one element are below.
    let used: BTreeSet<&str> = graph.ids().map(|id| graph.node(id).op.mnemonic()).collect();
    let function = |name: &str| Unary::named(name).is_some() || Binary::named(name).is_some();
    for declared in declarations().filter(|declared| !function(declared.mnemonic)) {
        assert!(used.contains(declared.mnemonic), "the text above has no `{}`", declared.mnemonic);
    }
}

#[test]
fn every_elementwise_function_prints_and_parses() {
    let mut b = Builder::new();
    let x = b.input("x", TensorType::f32([3]));
    for f in Unary::ALL {
        b.unary(f, x);
    }
    for f in Binary::ALL {
        b.binary(f, x, x);
    }
    let graph = b.finish().unwrap();
    assert_eq!(parse(&print(&graph)), Ok(graph));
}

#[test]
fn origins_are_optional() {
    let mut g = Graph::new();
    let op = Op::Input { name: "x".into(), ty: TensorType::f32([2]) };
    g.add(op.clone(), &[], "x", Some(Origin { file: 0, start: 12, end: 40 })).unwrap();
    assert_eq!(print(&g), "graph {\n  %x = input : f32[2]\n}\n");
    assert_eq!(print_with_origins(&g), "graph {\n  %x = input : f32[2] @12..40\n}\n");
    assert_eq!(parse(&print_with_origins(&g)), Ok(g.clone()));
    assert_ne!(parse(&print(&g)), Ok(g));
    let mut g = Graph::new();
    g.add(op, &[], "x", Some(Origin { file: 3, start: 12, end: 40 })).unwrap();
    assert_eq!(print_with_origins(&g), "graph {\n  %x = input : f32[2] @3:12..40\n}\n");
    assert_eq!(parse(&print_with_origins(&g)), Ok(g));
}

#[test]
fn layout_and_comments_are_free() {
    let text = "// a graph\ngraph{%x=input:f32[ ]// scalar\n%y = neg ( %x ) { } : f32[]\toutput o=%y}";
    let graph = parse(text).unwrap();
    assert_eq!(print(&graph), "graph {\n  %x = input : f32[]\n  %y = neg(%x) : f32[]\n  output o = %y\n}\n");
    assert_eq!(parse("graph { }"), Ok(Graph::new()));
    assert_eq!(print(&Graph::new()), "graph {\n}\n");
}

#[test]
fn reals_keep_their_bits() {
    for value in [0.1, 1.0 / 3.0, f64::MIN_POSITIVE, 5e-324, f64::MAX, -2.5e-8, f64::NEG_INFINITY, f64::NAN, -0.0] {
        let mut b = Builder::new();
        let p = b.fill(value, [2]);
        let hyper = b.fill(value, [3]);
        let value = Real::new(value);
        let attrs = AdamWAttrs { beta1: value, beta2: value, epsilon: value, weight_decay: value };
        b.op(Op::AdamW(attrs), &[p, p, p, p, hyper]);
        let graph = b.finish().unwrap();
        assert_eq!(parse(&print(&graph)), Ok(graph), "{value:?}");
    }
}

#[track_caller]
fn fails(body: &str, expected: &str) {
    let error = parse(&format!("graph {{\n{body}\n}}\n")).expect_err(body);
    assert_eq!(error.to_string(), expected, "in\n{body}");
}

#[test]
fn syntax_errors_say_what_was_expected() {
    let text = |t: &str| parse(t).unwrap_err().to_string();
    assert_eq!(text(""), "line 1, column 1: expected `graph`, found the end of the text");
    assert_eq!(text("grahp {"), "line 1, column 1: expected `graph`, found `grahp`");
    assert_eq!(text("graph {} x"), "line 1, column 10: expected the end of the text, found `x`");
    fails("  %x input : f32[2]", "line 2, column 6: expected `=`, found `input`");
    fails("  %x = input f32[2]", "line 2, column 14: expected `(`, `:` or `{`, found `f32`");
    fails("  %x = input : f32[2", "line 3, column 1: expected `,` or `]`, found `}`");
    fails("  %x = input : f32[2;3]", "line 2, column 21: expected `,` or `]`, found `;`");
    fails("  %x = neg(a) : f32[]", "line 2, column 12: expected `%` or `)`, found `a`");
    fails("  é", "line 2, column 3: expected `%`, `output`, `phase`, `update` or `}`, found `é`");
}

#[test]
fn meaning_errors_say_what_was_expected() {
    let x = "  %x = input : f32[2, 4]\n";
    for (line, expected) in [
        ("%x = neg(%x) : f32[2, 4]", "column 1: %x is defined twice"),
        ("%y = neg(%z) : f32[2, 4]", "column 10: %z is not defined above"),
        ("%y = neg(%x#1) : f32[2, 4]", "column 10: %x has no result 1"),
        ("%y = neg(%x#300) : f32[2, 4]", "column 13: `300` is not a whole number in range"),
        ("%y = negate(%x) : f32[2, 4]", "column 6: unknown operation `negate`"),
        ("%y = neg(%x, %x) : f32[2, 4]", "column 6: neg takes 1 operands, not 2"),
        ("%y = neg(%x) : f32[2, 5]", "column 16: `neg` gives f32[2, 4], not f32[2, 5]"),
        ("%y = neg(%x) : f64[2, 4]", "column 16: unknown element type `f64`; it is `f32` or `i32`"),
        ("%y = top_k(%x) {k = 2} : f32[2, 2], i32[2, 2]", "column 1: %y has 2 results: write `:2` behind its name"),
        ("%y:2 = top_k(%x) : f32[2, 2], i32[2, 2]", "column 8: `top_k` needs the attribute `k`"),
        (
            "%y:2 = top_k(%x) {kk = 2, k = 2} : f32[2, 2]",
            "column 19: `top_k` has no attribute `kk`; it has `k`, `skip`",
        ),
        ("%y:2 = top_k(%x) {k = 2, k = 2} : f32[2, 2]", "column 26: attribute `k` is given twice"),
        ("%y:2 = top_k(%x) {k} : f32[2, 2]", "column 19: attribute `k` needs a value"),
        ("%y:2 = top_k(%x) {k = 2.5} : f32[2, 2]", "column 23: `2.5` is not a whole number in range"),
        ("%y = dropout(%x) {rate = high, key = 1} : f32[]", "column 26: `high` is not a number"),
        ("%y = matmul(%x, %x) {bias = 1} : f32[2, 2]", "column 29: attribute `bias` is a flag and has no value"),
        ("%y = sum(%x) {axes = 1} : f32[2]", "column 22: attribute `axes` is a list in brackets"),
        (
            "%y = permute(%x) {axes = [0, 0]} : f32[2, 2]",
            "column 6: permute: axes [0, 0] are not each axis of f32[2, 4] once",
        ),
        (
            "%y = limit_capacity(%x) {experts = 4, capacity = 1, priority = size} : i32[2, 4]",
            "column 64: `size` is not `token`, `choice` or `probability`",
        ),
        ("%y:3 = sort_by_expert(%x#1) {experts = 4} : i32[5], i32[9], i32[2, 4]", "column 23: %x has no result 1"),
        ("%y = ramp {step = 1000000000} : i32[4]", "column 6: ramp: 4 steps of 1000000000 leave the range of i32"),
        ("%y = input {name = y} : f32[2]", "column 20: a name is a string in quotes"),
        ("%y = fill {value = 0.0} : f32[999999999999, 999]", "column 27: f32[999999999999, 999] is too large"),
        (
            "%y = fill {value = 0.0} : f32[99999999999999999999]",
            "column 31: `99999999999999999999` is not a whole number in range",
        ),
        ("%y = neg(%x) : f32[2, 4] @5..4", "column 26: an origin ends before it starts"),
        ("%\"\" = neg(%x) : f32[2, 4]", "column 1: a node needs a name"),
        ("%\"\\u{d800}\" = neg(%x) : f32[2, 4]", "column 2: `\\u{d800}` is not a character"),
        ("output o = %nothing", "column 12: %nothing is not defined above"),
        ("%y = fused(%x) : f32[2, 4]", "column 6: unknown operation `fused`"),
    ] {
        fails(&format!("{x}{line}"), &format!("line 3, {expected}"));
    }
}

#[test]
fn oversized_texts_are_refused() {
    let text = " ".repeat(MAX_TEXT_BYTES + 1);
    assert!(parse(&text).is_err_and(|e| e.message.contains("more than")));
    // Sizes that only come about by inference are bounded too.
    let body = "  %x = input : f32[99999999, 0]\n  %y = matmul(%x, %x) {transpose_b} : f32[99999999, 99999999]\n";
    assert!(parse(&format!("graph {{\n{body}}}\n")).is_err_and(|e| e.message.contains("too large")));
}

#[test]
fn unknown_values_are_shown() {
    let mut g = Graph::new();
    let nothing = g.unchecked(3, 1);
    g.set_output("o", nothing);
    assert_eq!(print(&g), "graph {\n  output o = %?3#1\n}\n");
}
