//! Every fusion on graphs written as text, each with a case that it must leave alone.

use super::{ClusterOptions, Clusters, Decisions, FUSIONS, Rewrites, View, cluster, resolve};
use crate::error::PlanError;
use crate::kernel::Body;
use crate::limits::LaunchLimits;
use moec_ir::{Graph, parse};
use std::sync::Arc;

fn graph(lines: &str) -> Graph {
    parse(&format!("graph {{\n{lines}\n}}")).unwrap()
}

/// Lets some fusions decide, in that order.
fn run<'a>(fusions: impl IntoIterator<Item = &'a str>, graph: &Graph, limits: LaunchLimits) -> (Clusters, usize) {
    let view = View::new(graph, limits);
    let (mut budget, mut decisions) = (Rewrites::new(None), Decisions::default());
    for name in fusions {
        let fusion = FUSIONS.iter().find(|f| f.name == name).unwrap();
        (fusion.decide)(&view, &mut budget, &mut decisions);
    }
    let clusters = resolve::resolve(&view, &decisions);
    (Clusters { clusters, graph: Arc::new(graph.clone()) }, budget.done())
}

/// Lets one fusion decide; compares what is launched.
#[track_caller]
fn becomes(fusion: &str, lines: &str, clusters: &str) {
    let (found, decisions) = run([fusion], &graph(lines), LaunchLimits::default());
    let expected: Vec<&str> = clusters.lines().map(str::trim).collect();
    assert_eq!(found.to_string().lines().collect::<Vec<_>>(), expected);
    assert!(decisions > 0);
}

#[track_caller]
fn stays(fusion: &str, lines: &str) {
    let graph = graph(lines);
    let (found, decisions) = run([fusion], &graph, LaunchLimits::default());
    assert_eq!(found, Clusters::single(&graph));
    assert_eq!(decisions, 0);
}

#[test]
fn a_program_reads_broadcasts_in_place() {
    becomes(
        "fuse_elementwise",
        "%x = input : f32[7, 3]
         %row = input : f32[7]
         %bias = input : f32[3]
         %scalar = input : f32[]
         %half = fill {value = 0.5} : f32[7, 3]
         %column = reshape(%row) : f32[7, 1]
         %rows = broadcast(%column) : f32[7, 3]
         %biases = broadcast(%bias) : f32[7, 3]
         %scalars = broadcast(%scalar) : f32[7, 3]
         %a = add(%x, %biases) : f32[7, 3]
         %b = mul(%a, %rows) : f32[7, 3]
         %c = sub(%b, %scalars) : f32[7, 3]
         %d = max(%c, %half) : f32[7, 3]
         output d = %d",
        "%d = max(sub(mul(add(%x, repeat(%bias)), stretch(%row, 3)), scalar(%scalar)), 0.5)",
    );
}

#[test]
fn a_value_with_other_readers_is_a_result_too() {
    becomes(
        "fuse_elementwise",
        "%x = input : f32[7, 3]
         %a = exp(%x) : f32[7, 3]
         %b = neg(%a) : f32[7, 3]
         %s = sum(%a) {axes = [0]} : f32[3]
         output b = %b
         output s = %s",
        "%a = exp(%x); %b = neg(%a)
         %s = sum(%a) {axes = [0]}",
    );
}

#[test]
fn a_value_that_a_program_reads_often_is_computed_once() {
    becomes(
        "fuse_elementwise",
        "%x = input : f32[7, 3]
         %a = exp(%x) : f32[7, 3]
         %b = neg(%a) : f32[7, 3]
         %c = mul(%a, %b) : f32[7, 3]
         output c = %c",
        "t1 = exp(%x); %c = mul(t1, neg(t1))",
    );
}

#[test]
fn a_program_never_waits_for_itself() {
    // %b needs %s, which needs %a.
    becomes(
        "fuse_elementwise",
        "%x = input : f32[7, 3]
         %a = exp(%x) : f32[7, 3]
         %s = softmax(%a) : f32[7, 3]
         %b = mul(%a, %s) : f32[7, 3]
         %c = neg(%b) : f32[7, 3]
         output c = %c",
        "%a = exp(%x)
         %s = softmax(%a)
         %c = neg(mul(%a, %s))",
    );
}

#[test]
fn forward_values_stay_out_of_the_backward_pass() {
    stays(
        "fuse_elementwise",
        "%x = input : f32[7, 3]
         %a = exp(%x) : f32[7, 3]
         phase backward
         %b = neg(%a) : f32[7, 3]
         output a = %a
         output b = %b",
    );
}

#[test]
fn single_operations_and_other_broadcasts_stay_alone() {
    stays(
        "fuse_elementwise",
        "%x = input : f32[2, 1, 3]
         %y = input : f32[2, 4, 3]
         %wide = broadcast(%x) : f32[2, 4, 3]
         %z = add(%wide, %y) : f32[2, 4, 3]
         output z = %z",
    );
}

#[test]
fn a_program_looks_through_reshapes() {
    becomes(
        "fuse_elementwise",
        "%x = input : f32[7, 3]
         %a = exp(%x) : f32[7, 3]
         %flat = reshape(%a) : f32[21]
         %b = neg(%flat) : f32[21]
         output a = %a
         output b = %b",
        "%a = exp(%x); %b = neg(%a)",
    );
}

#[test]
fn a_product_goes_on_with_the_program_that_reads_it() {
    becomes(
        "fuse_elementwise",
        "%x = input : f32[7, 3]
         %w = parameter : f32[5, 3]
         %bias = parameter : f32[5]
         %rest = input : f32[7, 5]
         %rng = input : i32[4]
         %y = matmul(%x, %w, %bias) {transpose_b, bias} : f32[7, 5]
         %r = relu(%y) : f32[7, 5]
         %d = dropout(%r, %rng) {rate = 0.5, key = 3} : f32[7, 5]
         %s = add(%rest, %d) : f32[7, 5]
         output y = %y
         output s = %s",
        "%y = matmul(%x, %w, %bias) {transpose_b, bias}; %s = add(%rest, dropout(relu(%y), rate = 0.5, key = 3))",
    );
}

#[test]
fn a_program_takes_in_one_product_and_never_one_that_it_feeds() {
    // The product with `%a` waits for the program, and of two that are added one stays alone.
    becomes(
        "fuse_elementwise",
        "%x = input : f32[4, 4]
         %w = parameter : f32[4, 4]
         %a = relu(%x) : f32[4, 4]
         %p = matmul(%a, %w) : f32[4, 4]
         %q = matmul(%x, %w) : f32[4, 4]
         %s = add(%p, %q) : f32[4, 4]
         %t = add(%s, %a) : f32[4, 4]
         output t = %t",
        "%a = relu(%x)
         %p = matmul(%a, %w)
         y = matmul(%x, %w); %t = add(add(%p, y), %a)",
    );
}

#[test]
fn programs_stay_within_what_a_launch_can_bind() {
    let mut lines = String::from("%x0 = input : f32[5]\n%s0 = exp(%x0) : f32[5]\n");
    for i in 1..30 {
        lines += &format!("%x{i} = input : f32[5]\n%s{i} = add(%s{}, %x{i}) : f32[5]\n", i - 1);
    }
    lines += "output s = %s29";
    for (bindings, most, programs) in [(31, 8, 4..=6), (8, 5, 6..=10)] {
        let limits = LaunchLimits { bindings, ..LaunchLimits::default() };
        let (clusters, _) = run(["fuse_elementwise"], &graph(&lines), limits);
        let accesses = clusters.iter().filter_map(|cluster| match &cluster.kernel.body {
            Body::Elementwise(program) => Some(program.accesses.len()),
            _ => None,
        });
        let accesses: Vec<usize> = accesses.collect();
        assert!(accesses.iter().all(|&n| n <= most), "{accesses:?}");
        assert!(programs.contains(&accesses.len()), "{accesses:?}");
    }
}

/// A loss and its gradient, with further lines.
fn loss_with_gradient(dloss: &str, more: &str) -> String {
    format!(
        "%logits = input : f32[7, 3]
         %targets = input : i32[7]
         %given = input : f32[]
         %half = fill {{value = 0.5}} : f32[1]
         %dloss = reshape(%half) : f32[]
         %loss:2 = cross_entropy(%logits, %targets) : f32[], f32[7]
         %twice = add(%loss, %loss) : f32[]
         %grad.loss = cross_entropy_grad(%{dloss}, %logits, %loss#1, %targets) : f32[7, 3]
         %sum = sum(%grad.loss) {{axes = [0]}} : f32[3]
         output loss = %loss
         output dlogits = %grad.loss
         output twice = %twice
         output sum = %sum
         {more}"
    )
}

#[test]
fn a_cross_entropy_is_computed_with_its_gradient() {
    becomes(
        "fuse_cross_entropy",
        &loss_with_gradient("dloss", ""),
        "(%loss, %grad.loss) = cross_entropy_with_gradient(%logits, %targets) {dloss = 0.5}
         %twice = add(%loss, %loss)
         %sum = sum(%grad.loss) {axes = [0]}",
    );
}

#[test]
fn a_cross_entropy_of_too_many_tokens_stays_apart_from_its_gradient() {
    let limits = LaunchLimits { scratch: 12, ..LaunchLimits::default() };
    assert_eq!(run(["fuse_cross_entropy"], &graph(&loss_with_gradient("dloss", "")), limits).1, 0);
}

#[test]
fn a_cross_entropy_stays_without_its_gradient_alone() {
    // The gradient that arrives is not known, or something else reads the log-sum-exp, or there is no gradient.
    stays("fuse_cross_entropy", &loss_with_gradient("given", ""));
    stays("fuse_cross_entropy", &loss_with_gradient("twice", ""));
    stays("fuse_cross_entropy", &loss_with_gradient("dloss", "output lse = %loss#1"));
    let second = loss_with_gradient("dloss", "output second = %second")
        .replace("%sum =", "%second = cross_entropy_grad(%given, %logits, %loss#1, %targets) : f32[7, 3]\n%sum =");
    stays("fuse_cross_entropy", &second);
    stays(
        "fuse_cross_entropy",
        "%logits = input : f32[7, 3]
         %targets = input : i32[7]
         %loss:2 = cross_entropy(%logits, %targets) : f32[], f32[7]
         output loss = %loss",
    );
}

#[test]
fn a_cross_entropy_stays_apart_from_the_gradient_of_another() {
    stays(
        "fuse_cross_entropy",
        "%logits = input : f32[7, 3]
         %targets = input : i32[7]
         %others = input : i32[7]
         %one = fill {value = 1.0} : f32[]
         %loss:2 = cross_entropy(%logits, %targets) : f32[], f32[7]
         %grad.loss = cross_entropy_grad(%one, %logits, %loss#1, %others) : f32[7, 3]
         output loss = %loss
         output dlogits = %grad.loss",
    );
}

/// Parameters with their moments, each followed by what `update` writes.
fn updates(tensors: &[(&str, &str)], update: impl Fn(&str, &str) -> String) -> String {
    let mut lines = "%hyper = input : f32[3]\n%scale = input : f32[]\n".to_string();
    for (name, shape) in tensors {
        lines += &format!("%{name} = parameter : f32[{shape}]\n");
        for moment in ["m", "v"] {
            lines += &format!("%adamw.{moment}.{name} = state : f32[{shape}]\n");
        }
        lines += &update(name, shape);
    }
    lines
}

fn gradients(tensors: &[(&str, &str)]) -> String {
    tensors.iter().map(|(name, shape)| format!("%g.{name} = input : f32[{shape}]\n")).collect()
}

const ADAMW: &str = "{beta1 = 0.9, beta2 = 0.99, epsilon = 1e-8, weight_decay = 0.1}";

fn adamw(name: &str, shape: &str) -> String {
    format!(
        "%adamw.{name}:3 = adamw(%{name}, %g.{name}, %adamw.m.{name}, %adamw.v.{name}, %hyper, %scale) {ADAMW}
           : f32[{shape}], f32[{shape}], f32[{shape}]\n"
    )
}

/// The updates of a tensor by three neighbouring results of a node.
fn updated(name: &str, node: &str, first: usize) -> String {
    format!(
        "update {name} = %adamw.{node}#{first}\nupdate adamw.m.{name} = %adamw.{node}#{}\n\
         update adamw.v.{name} = %adamw.{node}#{}\n",
        first + 1,
        first + 2
    )
}

#[test]
fn updates_of_small_tensors_are_joined_by_width_in_the_order_of_their_gradients() {
    // Vectors of `odd` are narrow, and `large` is large. Gradients come in another order than parameters.
    let tensors = [("a", "16"), ("odd", "7"), ("b", "2, 16"), ("large", "16400")];
    let gradients = "%g.b = input : f32[2, 16]\n%g.large = input : f32[16400]\n%g.odd = input : f32[7]\n\
                     %g.a = input : f32[16]\n";
    let before = gradients.to_string() + &updates(&tensors, adamw) + &tensors.map(|(t, _)| updated(t, t, 0)).concat();
    let alone = |t: &str| {
        format!(
            "({0}, {0}#1, {0}#2) = adamw(%{t}, %g.{t}, %adamw.m.{t}, %adamw.v.{t}, %hyper, %scale) {ADAMW}\n",
            format!("%adamw.{t}")
        )
    };
    let joined = "(%adamw.b, %adamw.b#1, %adamw.b#2, %adamw.a, %adamw.a#1, %adamw.a#2) = adamw(%b, %g.b, %adamw.m.b, \
                  %adamw.v.b, %a, %g.a, %adamw.m.a, %adamw.v.a, %hyper, %scale)";
    let expected = format!("{}{joined} {ADAMW}\n{}", alone("odd"), alone("large"));
    becomes("group_updates", &before, &expected);
}

#[test]
fn updates_with_other_attributes_scales_or_readers_stay_apart() {
    let tensors = [("a", "16"), ("b", "16"), ("c", "16"), ("d", "16")];
    let lines = gradients(&tensors)
        + &updates(&tensors, |name, shape| match name {
            "a" => adamw(name, shape),
            "b" => adamw(name, shape).replace("0.99", "0.9"),
            "c" => adamw(name, shape).replace(", %scale", ""),
            _ => adamw(name, shape) + "%reader = neg(%adamw.d#1) : f32[16]\n",
        });
    stays("group_updates", &(lines + &tensors.map(|(name, _)| updated(name, name, 0)).concat() + "output y = %reader"));
}

#[test]
fn joined_updates_stay_within_what_a_launch_can_bind() {
    let names: Vec<String> = (0..20).map(|i| format!("w{i}")).collect();
    let tensors: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "3")).collect();
    let mut lines = gradients(&tensors) + &updates(&tensors, adamw);
    lines.extend(names.iter().map(|n| updated(n, n, 0)));
    for (bindings, expected) in [(31, vec![6, 6, 6, 2]), (16, vec![3, 3, 3, 3, 3, 3, 2])] {
        let limits = LaunchLimits { bindings, ..LaunchLimits::default() };
        let (clusters, decisions) = run(["group_updates"], &graph(&lines), limits);
        let updates = clusters.iter().filter(|c| matches!(c.kernel.body, Body::Updates(_)));
        assert_eq!(updates.map(|c| c.nodes.len()).collect::<Vec<_>>(), expected);
        assert_eq!(decisions, 20 - expected.len());
    }
}

#[test]
fn a_fusion_that_does_not_exist_is_named_with_those_that_do() {
    let options = ClusterOptions { after: Some("fuse".into()), ..ClusterOptions::default() };
    let error = cluster(&Graph::new(), &options).unwrap_err();
    assert!(matches!(&error, PlanError::NoPass { name, .. } if name == "fuse"));
    assert!(error.to_string().contains("fuse_elementwise"));
}

#[test]
fn products_sum_what_they_read() {
    becomes(
        "fuse_sums",
        "%dy = input : f32[7, 3]
         %x = input : f32[7, 5]
         %offsets = input : i32[3]
         %dw = matmul(%dy, %x) {transpose_a} : f32[3, 5]
         %db = sum(%dy) {axes = [0]} : f32[3]
         %dws = grouped_matmul_weight_grad(%dy, %x, %offsets) : f32[2, 3, 5]
         %dbs = grouped_sum(%dy, %offsets) : f32[2, 3]
         %twice = add(%db, %db) : f32[3]
         output dw = %dw
         output db = %twice
         output dws = %dws
         output dbs = %dbs",
        "(%dw, %db) = matmul(%dy, %x) {transpose_a, sums}
         (%dws, %dbs) = grouped_matmul_weight_grad(%dy, %x, %offsets) {sums}
         %twice = add(%db, %db)",
    );
}

#[test]
fn products_leave_other_sums() {
    // Of the other operand, over other rows, over the other axis, and one that is there before the product can be.
    stays(
        "fuse_sums",
        "%dy = input : f32[7, 3]
         %x = input : f32[7, 5]
         %offsets = input : i32[3]
         %others = input : i32[3]
         %early = sum(%x) {axes = [0]} : f32[5]
         %dw = matmul(%dy, %x) {transpose_a} : f32[3, 5]
         %columns = sum(%dy) {axes = [1]} : f32[7]
         %dws = grouped_matmul_weight_grad(%dy, %x, %offsets) : f32[2, 3, 5]
         %dbs = grouped_sum(%dy, %others) : f32[2, 3]
         %late = matmul(%x, %dy) {transpose_a} : f32[5, 3]
         output early = %early
         output dw = %dw
         output columns = %columns
         output dws = %dws
         output dbs = %dbs
         output late = %late",
    );
}

#[test]
fn a_product_that_a_program_goes_on_with_leaves_its_sum() {
    let graph = graph(
        "%dy = input : f32[7, 3]
         %x = input : f32[7, 5]
         %dw = matmul(%dy, %x) {transpose_a} : f32[3, 5]
         %db = sum(%dy) {axes = [0]} : f32[3]
         %half = fill {value = 0.5} : f32[3, 5]
         %scaled = mul(%dw, %half) : f32[3, 5]
         output dw = %scaled
         output db = %db",
    );
    for fusions in [["fuse_elementwise", "fuse_sums"], ["fuse_sums", "fuse_elementwise"]] {
        let (clusters, _) = run(fusions, &graph, LaunchLimits::default());
        let expected = "%db = sum(%dy) {axes = [0]}\ny = matmul(%dy, %x) {transpose_a}; %scaled = mul(y, 0.5)\n";
        assert_eq!(clusters.to_string(), expected);
    }
}

#[test]
fn a_program_goes_on_with_the_first_result_only() {
    becomes(
        "fuse_elementwise",
        "%dy = input : f32[7, 3]
         %x = input : f32[7, 3]
         %gain = input : f32[3]
         %mean = input : f32[7]
         %rstd = input : f32[7]
         %residual = input : f32[7, 3]
         %grad:3 = layer_norm_grad(%dy, %x, %gain, %mean, %rstd) : f32[7, 3], f32[3], f32[3]
         %sum = add(%grad, %residual) : f32[7, 3]
         %twice = add(%grad#1, %grad#1) : f32[3]
         output dx = %sum
         output twice = %twice
         output dshift = %grad#2",
        "(y, %grad#1, %grad#2) = layer_norm_grad(%dy, %x, %gain, %mean, %rstd); %sum = add(y, %residual)
         %twice = add(%grad#1, %grad#1)",
    );
    // Of one row all results have as many elements: the others are not what the program goes on with, alone or beside
    // the first.
    for y in ["add(%grad#1, %gain)", "add(%grad, %grad#1)"] {
        stays(
            "fuse_elementwise",
            &format!(
                "%dy = input : f32[1, 3]
                 %x = input : f32[1, 3]
                 %gain = input : f32[1, 3]
                 %flat = reshape(%gain) : f32[3]
                 %mean = input : f32[1]
                 %rstd = input : f32[1]
                 %grad:3 = layer_norm_grad(%dy, %x, %flat, %mean, %rstd) : f32[1, 3], f32[3], f32[3]
                 %row = reshape(%grad#1) : f32[1, 3]
                 %y = {} : f32[1, 3]
                 output y = %y",
                y.replace("%grad#1", "%row")
            ),
        );
    }
}

#[test]
fn a_norm_goes_on_with_the_program_that_reads_its_rows() {
    becomes(
        "fuse_elementwise",
        "%x = input : f32[7, 3]
         %gain = input : f32[3]
         %residual = input : f32[7, 3]
         %norm:2 = rms_norm(%x, %gain) {epsilon = 1e-5} : f32[7, 3], f32[7]
         %r = relu(%norm) : f32[7, 3]
         %sum = add(%residual, %r) : f32[7, 3]
         output sum = %sum
         output rstd = %norm#1",
        "(y, %norm#1) = rms_norm(%x, %gain) {epsilon = 1e-5}; %sum = add(%residual, relu(y))",
    );
}

#[test]
fn products_fetch_their_rows() {
    let lines = "%x = input : f32[7, 3]
         %w = input : f32[2, 5, 3]
         %experts = input : i32[7, 2]
         %dy = input : f32[14, 5]
         %sort:3 = sort_by_expert(%experts) {experts = 2} : i32[3], i32[14], i32[7, 2]
         %rows = dispatch(%x, %sort#1, %sort#2) : f32[14, 3]
         %up = grouped_matmul(%rows, %w, %sort) {transpose_b} : f32[14, 5]
         %r = relu(%up) : f32[14, 5]
         %dw = grouped_matmul_weight_grad(%dy, %rows, %sort) : f32[2, 5, 3]
         %db = grouped_sum(%dy, %sort) : f32[2, 5]
         output r = %r
         output dw = %dw
         output db = %db";
    becomes(
        "fuse_dispatch",
        lines,
        "(%sort, %sort#1, %sort#2) = sort_by_expert(%experts) {experts = 2}
         %up = grouped_matmul(rows %x by %sort#1 and %sort#2, %w, %sort) {transpose_b}
         %r = relu(%up)
         %dw = grouped_matmul_weight_grad(%dy, rows %x by %sort#1 and %sort#2, %sort)
         %db = grouped_sum(%dy, %sort)",
    );
    let (clusters, report) = cluster(&graph(lines), &ClusterOptions::default()).unwrap();
    assert_eq!(
        clusters.to_string(),
        "(%sort, %sort#1, %sort#2) = sort_by_expert(%experts) {experts = 2}
y = grouped_matmul(rows %x by %sort#1 and %sort#2, %w, %sort) {transpose_b}; %r = relu(y)
(%dw, %db) = grouped_matmul_weight_grad(%dy, rows %x by %sort#1 and %sort#2, %sort) {sums}
"
    );
    // Fewer decisions fetch the rows for one product, and make them for the other.
    for most in 0..=report.rewrites() {
        let options = ClusterOptions { max_decisions: Some(most), ..ClusterOptions::default() };
        assert_eq!(cluster(&graph(lines), &options).unwrap().1.rewrites(), most);
    }
}

#[test]
fn rows_that_something_else_needs_are_made() {
    // Weighted ones; those that another operation reads; those that a product reads where it does not fetch, or in
    // segments of its own.
    for (rows, other) in [
        ("dispatch(%x, %sort#1, %sort#2)", "grouped_matmul(%rows, %w, %others) {transpose_b} : f32[14, 5]"),
        ("dispatch(%x, %sort#1, %sort#2, %weights) {weighted}", "neg(%x) : f32[7, 3]"),
        ("dispatch(%x, %sort#1, %sort#2)", "neg(%rows) : f32[14, 3]"),
        ("dispatch(%x, %sort#1, %sort#2)", "grouped_matmul_weight_grad(%rows, %rows, %sort) : f32[2, 3, 3]"),
    ] {
        stays(
            "fuse_dispatch",
            &format!(
                "%x = input : f32[7, 3]
                 %w = input : f32[2, 5, 3]
                 %weights = input : f32[7, 2]
                 %experts = input : i32[7, 2]
                 %others = input : i32[3]
                 %sort:3 = sort_by_expert(%experts) {{experts = 2}} : i32[3], i32[14], i32[7, 2]
                 %rows = {rows} : f32[14, 3]
                 %up = grouped_matmul(%rows, %w, %sort) {{transpose_b}} : f32[14, 5]
                 %other = {other}
                 output up = %up
                 output other = %other"
            ),
        );
    }
}

#[test]
fn nothing_is_joined_with_an_operation_over_nothing() {
    stays(
        "fuse_elementwise",
        "%x = input : f32[7, 0]
         %w = input : f32[0, 3]
         %residual = input : f32[7, 3]
         %y = matmul(%x, %w) : f32[7, 3]
         %sum = add(%y, %residual) : f32[7, 3]
         output sum = %sum",
    );
    stays(
        "fuse_sums",
        "%dy = input : f32[7, 3]
         %x = input : f32[7, 0]
         %dw = matmul(%dy, %x) {transpose_a} : f32[3, 0]
         %db = sum(%dy) {axes = [0]} : f32[3]
         output dw = %dw
         output db = %db",
    );
}

#[test]
fn the_order_of_fusions_does_not_matter() {
    let text = include_str!("../../../../tests/autodiff/mixture_of_experts.ir");
    let graph = crate::differentiate(&parse(text).unwrap(), "objective", &crate::Wrt::Parameters).unwrap();
    let graph =
        crate::add_optimizer(&graph, &crate::Optimizer::default(), &crate::StepOptions::clipped(Some(1.0))).unwrap();
    let names = FUSIONS.map(|f| f.name);
    let (expected, _) = run(names, &graph, LaunchLimits::default());
    assert_ne!(expected, Clusters::single(&graph));
    // Every order of five, and the others after them.
    for number in 0..120 {
        let (mut left, mut order, mut rest) = (names.to_vec(), Vec::new(), number);
        for n in (1..=left.len()).rev() {
            order.push(left.remove(rest % n));
            rest /= n;
        }
        assert_eq!(run(order.iter().copied(), &graph, LaunchLimits::default()).0, expected, "{order:?}");
    }
}

#[test]
fn what_is_too_large_for_the_device_is_said() {
    let graph = graph(
        "%scores = input : f32[174758, 5]
         %fits = input : f32[174758, 4]
         %a = balanced_assignment(%fits) : i32[174758, 1]
         %b = balanced_assignment(%scores) : i32[174758, 1]
         output a = %a
         output b = %b",
    );
    let error = cluster(&graph, &ClusterOptions::default()).unwrap_err();
    let message = "%b: balanced_assignment: for 174758 tokens and 5 experts 524290 numbers are put aside, which are more than 524288";
    assert_eq!(error.to_string(), message);
}

#[test]
fn operations_on_few_numbers_are_one_launch() {
    // The squared coefficient of variation of a sum over tokens, and the way back to it.
    becomes(
        "fuse_small",
        "%x = input : f32[512, 8]
         %s = sum(%x) {axes = [0]} : f32[8]
         %total = sum(%s) {axes = [0]} : f32[]
         %eighth = fill {value = 0.125} : f32[]
         %mean = mul(%total, %eighth) : f32[]
         %means = broadcast(%mean) : f32[8]
         %d = sub(%s, %means) : f32[8]
         %dd = mul(%d, %d) : f32[8]
         %v = sum(%dd) {axes = [0]} : f32[]
         phase backward
         %g = add(%d, %d) : f32[8]
         %row = reshape(%g) : f32[1, 8]
         %y = broadcast(%row) : f32[512, 8]
         %z = softmax(%y) : f32[512, 8]
         output v = %v
         output z = %z",
        "%s = sum(%x) {axes = [0]}
         s1 = sum(%s); s2 = mul(s1, 0.125); t2 = sub(%s, scalar(s2)); s3 = mul(t2, t2); %row = add(t2, t2); %v = sum(s3)
         %y = broadcast(%row) {shape = [512, 8]}
         %z = softmax(%y)",
    );
    // Several leading axes, and what is read through a reshape.
    becomes(
        "fuse_small",
        "%x = input : f32[3, 4, 2]
         %a = exp(%x) : f32[3, 4, 2]
         %s = sum(%a) {axes = [0, 1]} : f32[2]
         %row = reshape(%s) : f32[1, 2]
         %b = neg(%row) : f32[1, 2]
         output b = %b",
        "s1 = exp(%x); s2 = sum(s1) {terms = 12}; %b = neg(s2)",
    );
}

#[test]
fn what_is_not_small_or_waits_between_stays() {
    // Many elements, random numbers, sums of each row, an update.
    stays(
        "fuse_small",
        "%x = input : f32[257]
         %small = input : f32[2, 3, 2]
         %rng = input : i32[4]
         %a = exp(%x) : f32[257]
         %b = neg(%a) : f32[257]
         %c = dropout(%small, %rng) {rate = 0.5, key = 1} : f32[2, 3, 2]
         %d = sum(%c) {axes = [1, 2]} : f32[2]
         phase optimizer
         %e = exp(%small) : f32[2, 3, 2]
         %f = neg(%e) : f32[2, 3, 2]
         output b = %b
         output d = %d
         output f = %f",
    );
    // %c needs %b, which needs %a by way of something else.
    becomes(
        "fuse_small",
        "%x = input : f32[2, 3]
         %a = exp(%x) : f32[2, 3]
         %b = softmax(%a) : f32[2, 3]
         %c = add(%a, %b) : f32[2, 3]
         %d = sum(%c) {axes = [0, 1]} : f32[]
         output d = %d",
        "%a = exp(%x)
         %b = softmax(%a)
         s2 = add(%a, %b); %d = sum(s2)",
    );
}

#[test]
fn few_numbers_leave_a_program_to_the_product_before_it() {
    let graph = graph(
        "%x = input : f32[3, 4]
         %w = input : f32[4, 2]
         %y = matmul(%x, %w) : f32[3, 2]
         %z = relu(%y) : f32[3, 2]
         %s = sum(%z) {axes = [0]} : f32[2]
         %t = exp(%s) : f32[2]
         output t = %t",
    );
    let (clusters, _) = cluster(&graph, &ClusterOptions::default()).unwrap();
    let expected = "y = matmul(%x, %w); %z = relu(y)\ns1 = sum(%z) {terms = 3}; %t = exp(s1)\n";
    assert_eq!(clusters.to_string(), expected);
}

#[test]
fn a_reshape_that_is_looked_through_stays_where_it_is_needed() {
    // %c is no program, and reads the reshape itself.
    becomes(
        "fuse_small",
        "%x = input : f32[4, 3]
         %p = input : f32[1, 3]
         %e = exp(%x) : f32[4, 3]
         %a = sum(%e) {axes = [0]} : f32[3]
         %r = reshape(%a) : f32[1, 3]
         phase optimizer
         %c = add(%p, %r) : f32[1, 3]
         output c = %c",
        "s1 = exp(%x); %a = sum(s1) {terms = 4}
         %c = add(%p, %r)",
    );
}
