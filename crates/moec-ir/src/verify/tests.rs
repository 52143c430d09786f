//! Tests of this module's parent.

use super::*;
use crate::graph::Node;
use crate::{Builder, Phase, parse};

/// Errors of a graph given as the lines between the braces, as text.
#[track_caller]
fn errors(stage: Stage, body: &str) -> Vec<String> {
    let graph = parse(&format!("graph {{\n{body}\n}}\n")).unwrap_or_else(|e| panic!("{e} in\n{body}"));
    match verify(&graph, stage) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

fn node(op: Op, operands: &[Value], result: TensorType, name: &str) -> Node {
    Node {
        op,
        operands: operands.to_vec(),
        results: vec![result],
        name: name.into(),
        origin: None,
        phase: Phase::Forward,
    }
}

fn input(name: &str) -> Node {
    node(Op::Input { name: name.into(), ty: TensorType::f32([2]) }, &[], TensorType::f32([2]), name)
}

fn violations(graph: &Graph) -> Vec<Violation> {
    verify(graph, Stage::Training).err().unwrap_or_default().into_iter().map(|e| e.violation).collect()
}

#[test]
fn a_graph_from_the_builder_is_fine() {
    let mut b = Builder::new();
    let x = b.input("x", TensorType::f32([3, 5]));
    let w = b.parameter("w", [7, 5]);
    let y = b.linear(x, w, None);
    let (values, indices) = b.top_k(y, 2);
    b.output("values", values);
    b.output("indices", indices);
    let graph = b.finish().unwrap();
    for stage in [Stage::Forward, Stage::Training] {
        assert_eq!(verify(&graph, stage), Ok(()));
    }
}

#[test]
fn corrupt_structure_is_found() {
    let mut g = Graph::new();
    let x = g.push(input("x"));
    let x = g.value(x);
    let neg = |operands: &[Value], result: usize, name| {
        node(Op::Unary(crate::Unary::Neg), operands, TensorType::f32([result]), name)
    };
    g.push(neg(&[x.result(3)], 2, "slot"));
    g.push(neg(&[x], 5, "type"));
    g.push(neg(&[x, x], 2, "arity"));
    let own = g.unchecked(4, 0);
    g.push(neg(&[own], 2, "loop"));
    g.push(input("loop"));
    g.set_output("", own.result(9));
    let found = violations(&g);
    assert_eq!(
        found,
        [
            Violation::Dangling { node: 0, slot: 3 },
            Violation::ResultTypes { stored: "f32[5]".into(), inferred: "f32[2]".into() },
            Violation::Infer(InferError::Arity { op: "neg", expected: "1".into(), found: 2 }),
            Violation::Order("loop".into()),
            Violation::NameTaken,
            Violation::NoName,
            Violation::Dangling { node: 4, slot: 9 },
        ]
    );
}

#[test]
fn types_and_names_of_sources_are_checked() {
    let found = errors(
        Stage::Forward,
        r#"
        %w = parameter : i32[2]
        %x = input : f32[2]
        %y = state {name = "x"} : f32[2]
        %z = fill {value = 0.0} : f32[]
        output o = %x
        output o = %z
        update x = %x
        update y = %x
        update w = %w
        update w = %w"#,
    );
    assert_eq!(
        found,
        [
            "%w: a parameter is f32, not i32[2]",
            "%y: `x` is declared already by %x",
            "output o: the name is taken already",
            "update x: there is no state or parameter of that name",
            "update y: there is no state or parameter of that name",
            "update w: a parameter is not updated in the forward stage",
            "update w: the name is taken already",
            "update w: a parameter is not updated in the forward stage",
        ]
    );
}

#[test]
fn updates_keep_the_type() {
    let body = "%s = state : f32[2]\n%x = input : f32[3]\nupdate s = %x";
    assert_eq!(errors(Stage::Forward, body), ["update s: the new value is f32[3], but the tensor is f32[2]"]);
    assert!(errors(Stage::Forward, "%s = state : f32[2]\n%x = neg(%s) : f32[2]\nupdate s = %x").is_empty());
    assert!(errors(Stage::Training, "%w = parameter : f32[2]\n%x = neg(%w) : f32[2]\nupdate w = %x").is_empty());
}

#[test]
fn stages_are_legal_in_order() {
    let gradient = "%y = input : f32[2, 3]\n%g = softmax_grad(%y, %y) : f32[2, 3]";
    assert_eq!(errors(Stage::Forward, gradient), ["%g: `softmax_grad` is not legal in the forward stage"]);
    assert!(errors(Stage::Training, gradient).is_empty());
    let rotary = |inverse| {
        format!("%x = input : f32[2, 6]\n%r = rotary(%x) {{heads = 1, time = 2, base = 10.0{inverse}}} : f32[2, 6]")
    };
    assert!(errors(Stage::Forward, &rotary("")).is_empty());
    // Per segment of rows, this is as good a product as any.
    let segments = "%x = input : f32[4, 2]\n%o = ramp {step = 2} : i32[3]\n\
                    %w = grouped_matmul_weight_grad(%x, %x, %o) : f32[2, 2, 2]";
    assert!(errors(Stage::Forward, segments).is_empty());
    assert_eq!(errors(Stage::Forward, &rotary(", inverse")).len(), 1);
}

#[test]
fn attributes_are_in_range() {
    let body = "
        %x = input : f32[2, 6]
        %c = input : f32[6]
        %h = input : f32[3]
        %n:2 = rms_norm(%x, %c) {epsilon = -1.0} : f32[2, 6], f32[2]
        %a:2 = attention(%x) {heads = 1, time = 2, scale = NaN, dropout = -0.5} : f32[2, 2], f32[2, 1]
        %r = rotary(%x) {heads = 1, time = 2, base = 0.0} : f32[2, 6]
        %p:3 = adamw(%x, %x, %x, %x, %h) {beta1 = 1.0, beta2 = 0.9, epsilon = inf, weight_decay = 0.0} \
                : f32[2, 6], f32[2, 6], f32[2, 6]";
    assert_eq!(
        errors(Stage::Training, body),
        [
            "%n: epsilon is -1.0, not finite and not negative",
            "%a: scale is NaN, not finite",
            "%a: dropout is -0.5, not in [0, 1)",
            "%r: base is 0.0, not finite and above 0",
            "%p: beta1 is 1.0, not in [0, 1)",
            "%p: epsilon is inf, not finite and not negative",
        ]
    );
}

#[test]
fn keys_belong_to_one_stream() {
    let x = "%x = input : f32[2, 6]\n%rng = input : i32[4]\n";
    let twice = format!(
        "{x}%a = dropout(%x, %rng) {{rate = 0.5, key = 1}} : f32[2, 6]\n\
         %b = dropout(%a, %rng) {{rate = 0.5, key = 1}} : f32[2, 6]"
    );
    assert_eq!(errors(Stage::Forward, &twice), ["%b: draws from key 1, which belongs to %a"]);
    // The gradient of a dropout is the same dropout.
    assert!(errors(Stage::Training, &twice).is_empty());
    for other in [
        "%b = dropout(%x, %rng) {rate = 0.25, key = 1} : f32[2, 6]",
        "%r = sum(%x) {axes = [1]} : f32[2]\n%b = dropout(%r, %rng) {rate = 0.5, key = 1} : f32[2]",
        "%b = random_uniform(%rng) {key = 1} : f32[2, 6]",
        "%b:2 = attention(%x, %rng) {heads = 1, time = 2, scale = 1.0, dropout = 0.5, key = 1} : f32[2, 2], f32[2, 1]",
    ] {
        let body = format!("{x}%a = dropout(%x, %rng) {{rate = 0.5, key = 1}} : f32[2, 6]\n{other}");
        assert_eq!(errors(Stage::Training, &body), ["%b: draws from key 1, which belongs to %a"], "{other}");
        let body = body.replace("{rate = 0.5, key = 1} : f32[2, 6]", "{rate = 0.5, key = 2} : f32[2, 6]");
        assert!(errors(Stage::Training, &body).is_empty(), "{other}");
    }
    let attention = format!(
        "{x}%a:2 = attention(%x, %rng) {{heads = 1, time = 2, scale = 1.0, dropout = 0.5, key = 1}} : f32[2, 2], f32[2, 1]\n\
         %g = attention_grad(%a, %x, %a, %a#1, %rng) {{heads = 1, time = 2, scale = 1.0, dropout = 0.5, key = 1}} : f32[2, 6]"
    );
    assert!(errors(Stage::Training, &attention).is_empty());
    let large = format!("{x}%b = random_normal(%rng) {{key = 1}} : f32[65536, 65536]");
    assert_eq!(errors(Stage::Forward, &large), ["%b: draws 8589934592 random words, more than 2^32"]);
}

#[test]
fn errors_stand_below_their_lines() {
    let body = "%y = input : f32[2, 3]\n%g = softmax_grad(%y, %y) : f32[2, 3]\noutput o = %g\noutput o = %y";
    let graph = parse(&format!("graph {{\n{body}\n}}\n")).unwrap();
    let errors = verify(&graph, Stage::Forward).unwrap_err();
    assert_eq!(
        annotate(&graph, &errors),
        "graph {\n\
         \x20 %y = input : f32[2, 3]\n\
         \x20 %g = softmax_grad(%y, %y) : f32[2, 3]\n\
         \x20 ^ `softmax_grad` is not legal in the forward stage\n\
         \x20 output o = %g\n\
         \x20 output o = %y\n\
         \x20 ^ the name is taken already\n\
         }\n"
    );
}
