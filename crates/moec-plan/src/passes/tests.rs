//! Every pass on graphs written as text, each with a case that it must leave alone.

use super::{OptimizeOptions, PASSES, Rewrites, optimize};
use crate::error::PlanError;
use moec_ir::{Graph, parse, print};

fn graph(lines: &str) -> Graph {
    parse(&format!("graph {{\n{lines}\n}}")).unwrap()
}

/// Runs one pass alone.
fn run(pass: &str, lines: &str) -> (Graph, usize) {
    let pass = PASSES.iter().find(|p| p.name == pass).unwrap();
    let mut rewrites = Rewrites::new(None);
    let before = graph(lines);
    let result = (pass.run)(&before, &mut rewrites).unwrap().unwrap_or(before);
    (result, rewrites.done())
}

#[track_caller]
fn becomes(pass: &str, before: &str, after: &str) {
    let (found, rewrites) = run(pass, before);
    assert_eq!(print(&found), print(&graph(after)));
    assert!(rewrites > 0);
}

#[track_caller]
fn stays(pass: &str, lines: &str) {
    let (found, rewrites) = run(pass, lines);
    assert_eq!(print(&found), print(&graph(lines)));
    assert_eq!(rewrites, 0);
}

#[test]
fn fold_const_computes_what_is_filled() {
    becomes(
        "fold_const",
        "%two = fill {value = 2.0} : f32[3]
         %wide = broadcast(%two) : f32[7, 3]
         %root = sqrt(%wide) : f32[7, 3]
         %sum = sum(%root) {axes = [0]} : f32[3]
         %squares = sum_of_squares(%two, %wide) : f32[]
         output sum = %sum
         output squares = %squares",
        "%two = fill {value = 2.0} : f32[3]
         %wide = fill {value = 2.0} : f32[7, 3]
         %root = fill {value = 1.4142135623730951} : f32[7, 3]
         %sum = fill {value = 9.899494936611665} : f32[3]
         %squares = fill {value = 96.0} : f32[]
         output sum = %sum
         output squares = %squares",
    );
}

#[test]
fn fold_const_leaves_what_is_given() {
    stays(
        "fold_const",
        "%x = input : f32[3]
         %zero = fill {value = 0.0} : f32[3]
         %product = mul(%x, %zero) : f32[3]
         output product = %product",
    );
}

#[test]
fn canonicalise_drops_what_does_nothing() {
    becomes(
        "canonicalise",
        "%x = input : f32[7, 3]
         %zero = fill {value = 0.0} : f32[7, 3]
         %one = fill {value = 1.0} : f32[7, 3]
         %a = add(%zero, %x) : f32[7, 3]
         %b = mul(%a, %one) : f32[7, 3]
         %c = neg(%b) : f32[7, 3]
         %d = neg(%c) : f32[7, 3]
         %e = reshape(%d) : f32[21]
         %f = reshape(%e) : f32[7, 3]
         %g = broadcast(%f) : f32[7, 3]
         output y = %g",
        "%x = input : f32[7, 3]
         %zero = fill {value = 0.0} : f32[7, 3]
         %one = fill {value = 1.0} : f32[7, 3]
         %c = neg(%x) : f32[7, 3]
         %e = reshape(%x) : f32[21]
         output y = %x",
    );
}

#[test]
fn canonicalise_joins_permutations_and_lets_gradients_pass() {
    becomes(
        "canonicalise",
        "%x = input : f32[2, 3, 5]
         %a = stop_gradient(%x) : f32[2, 3, 5]
         %b = permute(%a) {axes = [1, 2, 0]} : f32[3, 5, 2]
         %c = permute(%b) {axes = [1, 0, 2]} : f32[5, 3, 2]
         %d = permute(%b) {axes = [2, 0, 1]} : f32[2, 3, 5]
         %e = neg(%d) : f32[2, 3, 5]
         output c = %c
         output e = %e",
        "%x = input : f32[2, 3, 5]
         %b = permute(%x) {axes = [1, 2, 0]} : f32[3, 5, 2]
         %c = permute(%x) {axes = [2, 1, 0]} : f32[5, 3, 2]
         %e = neg(%x) : f32[2, 3, 5]
         output c = %c
         output e = %e",
    );
    stays(
        "canonicalise",
        "%x = input : f32[3, 3]
         %t = permute(%x) {axes = [1, 0]} : f32[3, 3]
         output t = %t",
    );
}

#[test]
fn canonicalise_merges_factors_and_terms() {
    becomes(
        "canonicalise",
        "%x = input : f32[3]
         %two = fill {value = 2.0} : f32[3]
         %a = mul(%two, %x) : f32[3]
         %b = mul(%a, %two) : f32[3]
         %n = neg(%b) : f32[3]
         %c = sub(%x, %n) : f32[3]
         output y = %c",
        "%x = input : f32[3]
         %two = fill {value = 2.0} : f32[3]
         %a = mul(%x, %two) : f32[3]
         %b.constant = fill {value = 4.0} : f32[3]
         %b = mul(%x, %b.constant) : f32[3]
         %n = neg(%b) : f32[3]
         %c = add(%x, %b) : f32[3]
         output y = %c",
    );
}

#[test]
fn canonicalise_turns_needless_broadcasts_and_sums_into_reshapes() {
    becomes(
        "canonicalise",
        "%x = input : f32[3]
         %a = broadcast(%x) : f32[1, 3]
         %b = sum(%a) {axes = [0]} : f32[3]
         %s = sum(%x) {axes = [0]} : f32[]
         %t = broadcast(%s) : f32[7, 1]
         %u = broadcast(%t) : f32[7, 3]
         output b = %b
         output u = %u",
        "%x = input : f32[3]
         %a = reshape(%x) : f32[1, 3]
         %s = sum(%x) {axes = [0]} : f32[]
         %t = broadcast(%s) : f32[7, 1]
         %u = broadcast(%s) : f32[7, 3]
         output b = %x
         output u = %u",
    );
}

#[test]
fn canonicalise_keeps_a_product_with_zero() {
    // 0 * infinity is not 0.
    stays(
        "canonicalise",
        "%x = input : f32[3]
         %zero = fill {value = 0.0} : f32[3]
         %product = mul(%x, %zero) : f32[3]
         %e = exp(%product) : f32[3]
         %l = log(%e) : f32[3]
         output y = %l",
    );
}

#[test]
fn cse_computes_equal_expressions_once() {
    becomes(
        "cse",
        "%x = input : f32[3]
         %y = input : f32[3]
         %rng = input : i32[4]
         %a = add(%x, %y) : f32[3]
         %b = add(%y, %x) : f32[3]
         %c = dropout(%a, %rng) {rate = 0.5, key = 1} : f32[3]
         %d = dropout(%b, %rng) {rate = 0.5, key = 1} : f32[3]
         output c = %c
         output d = %d",
        "%x = input : f32[3]
         %y = input : f32[3]
         %rng = input : i32[4]
         %a = add(%x, %y) : f32[3]
         %c = dropout(%a, %rng) {rate = 0.5, key = 1} : f32[3]
         output c = %c
         output d = %c",
    );
}

#[test]
fn cse_tells_differences_and_streams_apart() {
    stays(
        "cse",
        "%x = input : f32[3]
         %y = input : f32[3]
         %rng = input : i32[4]
         %a = sub(%x, %y) : f32[3]
         %b = sub(%y, %x) : f32[3]
         %c = dropout(%a, %rng) {rate = 0.5, key = 1} : f32[3]
         %d = dropout(%a, %rng) {rate = 0.5, key = 2} : f32[3]
         output b = %b
         output c = %c
         output d = %d",
    );
}

#[test]
fn dce_drops_what_nothing_depends_on() {
    becomes(
        "dce",
        "%x = input : f32[3]
         %unused = input : f32[3]
         %w = parameter : f32[3]
         %a = exp(%x) : f32[3]
         %b = exp(%unused) : f32[3]
         %c = neg(%b) : f32[3]
         output a = %a",
        "%x = input : f32[3]
         %unused = input : f32[3]
         %w = parameter : f32[3]
         %a = exp(%x) : f32[3]
         output a = %a",
    );
}

#[test]
fn dce_keeps_updates() {
    stays(
        "dce",
        "%bias = state : f32[3]
         %new = exp(%bias) : f32[3]
         update bias = %new",
    );
}

#[test]
fn fusion_reads_broadcasts_in_place() {
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
        "%x = input : f32[7, 3]
         %row = input : f32[7]
         %bias = input : f32[3]
         %scalar = input : f32[]
         %d = fused(%x, %bias, %row, %scalar) {access = [full, repeat, stretch(3), scalar],
           t0 = load(0), t1 = load(1), t2 = add(t0, t1), t3 = load(2), t4 = mul(t2, t3), t5 = load(3),
           t6 = sub(t4, t5), t7 = const(0.5), t8 = max(t6, t7), results = [t8]} : f32[7, 3]
         output d = %d",
    );
}

#[test]
fn fusion_gives_a_value_with_other_readers_as_a_result() {
    becomes(
        "fuse_elementwise",
        "%x = input : f32[7, 3]
         %a = exp(%x) : f32[7, 3]
         %b = neg(%a) : f32[7, 3]
         %s = sum(%a) {axes = [0]} : f32[3]
         output b = %b
         output s = %s",
        "%x = input : f32[7, 3]
         %b:2 = fused(%x) {access = [full], t0 = load(0), t1 = exp(t0), t2 = neg(t1), results = [t1, t2]}
           : f32[7, 3], f32[7, 3]
         %s = sum(%b) {axes = [0]} : f32[3]
         output b = %b#1
         output s = %s",
    );
}

#[test]
fn fusion_never_makes_a_program_wait_for_itself() {
    // %b needs %s, which needs %a.
    becomes(
        "fuse_elementwise",
        "%x = input : f32[7, 3]
         %a = exp(%x) : f32[7, 3]
         %s = softmax(%a) : f32[7, 3]
         %b = mul(%a, %s) : f32[7, 3]
         %c = neg(%b) : f32[7, 3]
         output c = %c",
        "%x = input : f32[7, 3]
         %a = exp(%x) : f32[7, 3]
         %s = softmax(%a) : f32[7, 3]
         %c = fused(%a, %s) {access = [full, full], t0 = load(0), t1 = load(1), t2 = mul(t0, t1), t3 = neg(t2),
           results = [t3]} : f32[7, 3]
         output c = %c",
    );
}

#[test]
fn fusion_keeps_forward_values_out_of_the_backward_pass() {
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
fn fusion_leaves_single_operations_and_other_broadcasts() {
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
fn fusion_looks_through_reshapes() {
    becomes(
        "fuse_elementwise",
        "%x = input : f32[7, 3]
         %a = exp(%x) : f32[7, 3]
         %flat = reshape(%a) : f32[21]
         %b = neg(%flat) : f32[21]
         output a = %a
         output b = %b",
        "%x = input : f32[7, 3]
         %b:2 = fused(%x) {access = [full], t0 = load(0), t1 = exp(t0), t2 = neg(t1), results = [t1, t2]}
           : f32[21], f32[21]
         %a = reshape(%b) : f32[7, 3]
         output a = %a
         output b = %b#1",
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
        "%x = input : f32[7, 3]
         %w = parameter : f32[5, 3]
         %bias = parameter : f32[5]
         %rest = input : f32[7, 5]
         %rng = input : i32[4]
         %s:2 = fused_matmul(%x, %w, %bias, %rest, %rng) {transpose_b, bias, access = [full, full], t0 = load(0), t1 = relu(t0), t2 = dropout(t1, rate = 0.5, key = 3), t3 = load(1), t4 = add(t3, t2), results = [t0, t4]}
           : f32[7, 5], f32[7, 5]
         output y = %s
         output s = %s#1",
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
        "%x = input : f32[4, 4]
         %w = parameter : f32[4, 4]
         %a = relu(%x) : f32[4, 4]
         %p = matmul(%a, %w) : f32[4, 4]
         %t = fused_matmul(%x, %w, %p, %a) {access = [full, full, full], t0 = load(0), t1 = load(1), t2 = add(t1, t0), t3 = load(2), t4 = add(t2, t3), results = [t4]} : f32[4, 4]
         output t = %t",
    );
}

#[test]
fn fusion_stays_within_what_a_launch_can_bind() {
    let mut lines = String::from("%x0 = input : f32[5]\n%s0 = exp(%x0) : f32[5]\n");
    for i in 1..30 {
        lines += &format!("%x{i} = input : f32[5]\n%s{i} = add(%s{}, %x{i}) : f32[5]\n", i - 1);
    }
    lines += "output s = %s29";
    let (fused, _) = run("fuse_elementwise", &lines);
    let mut programs = 0;
    for id in fused.ids() {
        if let moec_ir::Op::Fused(p) = &fused.node(id).op {
            assert!(p.accesses.len() <= 8);
            programs += 1;
        }
    }
    assert!((4..=6).contains(&programs), "{programs}");
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
        "%logits = input : f32[7, 3]
         %targets = input : i32[7]
         %given = input : f32[]
         %half = fill {value = 0.5} : f32[1]
         %dloss = reshape(%half) : f32[]
         %loss:2 = fused_cross_entropy(%logits, %targets) {dloss = 0.5} : f32[], f32[7, 3]
         %twice = add(%loss, %loss) : f32[]
         %sum = sum(%loss#1) {axes = [0]} : f32[3]
         output loss = %loss
         output dlogits = %loss#1
         output twice = %twice
         output sum = %sum",
    );
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
    let joined = format!(
        "%adamw.b:6 = adamw(%b, %g.b, %adamw.m.b, %adamw.v.b, %a, %g.a, %adamw.m.a, %adamw.v.a, %hyper, %scale) {ADAMW}
           : f32[2, 16], f32[2, 16], f32[2, 16], f32[16], f32[16], f32[16]\n"
    );
    let after = updates(&tensors, |name, shape| match name {
        "a" => String::new(),
        "b" => joined.clone(),
        _ => adamw(name, shape),
    });
    let follow = [updated("a", "b", 3), updated("odd", "odd", 0), updated("b", "b", 0), updated("large", "large", 0)];
    becomes("group_updates", &before, &(gradients.to_string() + &after + &follow.concat()));
    let (once, _) = optimize(&graph(&before), &OptimizeOptions::default()).unwrap();
    let (twice, report) = optimize(&once, &OptimizeOptions::default()).unwrap();
    assert_eq!(print(&once), print(&twice));
    assert!(report.passes.iter().all(|p| p.rewrites == 0));
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
    let (grouped, rewrites) = run("group_updates", &lines);
    let sizes: Vec<usize> =
        grouped.ids().map(|id| grouped.node(id).results.len() / 3).filter(|&tensors| tensors > 0).collect();
    assert_eq!((sizes, rewrites), (vec![6, 6, 6, 2], 16));
}

#[test]
fn a_pass_that_does_not_exist_is_named_with_those_that_do() {
    let options = OptimizeOptions { after: Some("fuse".into()), ..OptimizeOptions::default() };
    let error = optimize(&Graph::new(), &options).unwrap_err();
    assert!(matches!(&error, PlanError::NoPass { name, .. } if name == "fuse"));
    assert!(error.to_string().contains("fuse_elementwise"));
}

#[test]
fn optimising_twice_changes_nothing_more() {
    let lines = "%x = input : f32[7, 3]
         %bias = parameter : f32[3]
         %b = broadcast(%bias) : f32[7, 3]
         %a = add(%b, %x) : f32[7, 3]
         %r = relu(%a) : f32[7, 3]
         %s = sum(%r) {axes = [1]} : f32[7]
         output s = %s";
    let (once, _) = optimize(&graph(lines), &OptimizeOptions::default()).unwrap();
    let (twice, report) = optimize(&once, &OptimizeOptions::default()).unwrap();
    assert_eq!(print(&once), print(&twice));
    assert!(report.passes.iter().all(|p| p.rewrites == 0));
}

#[test]
fn fuse_sums_lets_products_sum_what_they_read() {
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
        "%dy = input : f32[7, 3]
         %x = input : f32[7, 5]
         %offsets = input : i32[3]
         %dw:2 = matmul_with_sums(%dy, %x) {transpose_a} : f32[3, 5], f32[3]
         %dws:2 = grouped_matmul_weight_grad_with_sums(%dy, %x, %offsets) : f32[2, 3, 5], f32[2, 3]
         %twice = add(%dw#1, %dw#1) : f32[3]
         output dw = %dw
         output db = %twice
         output dws = %dws
         output dbs = %dws#1",
    );
}

#[test]
fn fuse_sums_leaves_other_sums() {
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
        "%dy = input : f32[7, 3]
         %x = input : f32[7, 3]
         %gain = input : f32[3]
         %mean = input : f32[7]
         %rstd = input : f32[7]
         %residual = input : f32[7, 3]
         %sum:3 = fused_layer_norm_grad(%dy, %x, %gain, %mean, %rstd, %residual) {access = [full, full], t0 = load(0), t1 = load(1), t2 = add(t0, t1), results = [t2]} : f32[7, 3], f32[3], f32[3]
         %twice = add(%sum#1, %sum#1) : f32[3]
         output dx = %sum
         output twice = %twice
         output dshift = %sum#2",
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
fn fuse_dispatch_lets_products_fetch_their_rows() {
    becomes(
        "fuse_dispatch",
        "%x = input : f32[7, 3]
         %w = input : f32[2, 5, 3]
         %experts = input : i32[7, 2]
         %dy = input : f32[14, 5]
         %sort:3 = sort_by_expert(%experts) {experts = 2} : i32[3], i32[14], i32[7, 2]
         %rows = dispatch(%x, %sort#1, %sort#2) : f32[14, 3]
         %up = fused_grouped_matmul(%rows, %w, %sort) {transpose_b, access = [full], t0 = load(0), t1 = relu(t0), results = [t1]} : f32[14, 5]
         %dw:2 = grouped_matmul_weight_grad_with_sums(%dy, %rows, %sort) : f32[2, 5, 3], f32[2, 5]
         output up = %up
         output dw = %dw
         output db = %dw#1",
        "%x = input : f32[7, 3]
         %w = input : f32[2, 5, 3]
         %experts = input : i32[7, 2]
         %dy = input : f32[14, 5]
         %sort:3 = sort_by_expert(%experts) {experts = 2} : i32[3], i32[14], i32[7, 2]
         %up = fused_dispatched_grouped_matmul(%x, %w, %sort, %sort#1, %sort#2) {transpose_b, access = [full], t0 = load(0), t1 = relu(t0), results = [t1]} : f32[14, 5]
         %dw:2 = dispatched_grouped_matmul_weight_grad_with_sums(%dy, %x, %sort, %sort#1, %sort#2) : f32[2, 5, 3], f32[2, 5]
         output up = %up
         output dw = %dw
         output db = %dw#1",
    );
}

#[test]
fn fuse_dispatch_leaves_rows_that_are_needed() {
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
