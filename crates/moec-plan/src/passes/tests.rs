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
fn a_pass_that_does_not_exist_is_named_with_those_that_do() {
    let options = OptimizeOptions { after: Some("fold".into()), ..OptimizeOptions::default() };
    let error = optimize(&Graph::new(), &options).unwrap_err();
    assert!(matches!(&error, PlanError::NoPass { name, .. } if name == "fold"));
    assert!(error.to_string().contains("fold_const"));
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
