//! Tests of this module's parent.

use super::*;
use crate::{Stage, declarations, evaluate, evaluate_op, parse, print, print_with_origins, verify};
use proptest::sample::Index;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

fn bits(tensor: &Tensor) -> Vec<u64> {
    tensor.to_f64().into_iter().map(f64::to_bits).collect()
}

/// Whether the text with origins gives the same graph, and the text without them the same text.
fn reads_back(graph: &Graph) -> bool {
    let plain = parse(&print(graph));
    parse(&print_with_origins(graph)).as_ref() == Ok(graph) && plain.is_ok_and(|g| print(&g) == print(graph))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn samples_are_valid_graphs(sample in samples()) {
        for stage in [Stage::Forward, Stage::Training] {
            prop_assert_eq!(verify(&sample.graph, stage), Ok(()));
        }
    }

    #[test]
    fn text_reads_back(sample in samples()) {
        let text = print(&sample.graph);
        prop_assert_eq!(parse(&text).map(|g| print(&g)), Ok(text));
        prop_assert!(reads_back(&sample.graph));
    }

    #[test]
    fn evaluation_is_deterministic_finite_and_survives_text(sample in samples()) {
        let first = evaluate(&sample.graph, &sample.bindings).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let again = evaluate(&parse(&print(&sample.graph)).unwrap(), &sample.bindings).unwrap();
        prop_assert!(first.outputs.keys().eq(again.outputs.keys()));
        for (name, value) in first.outputs.iter().chain(&first.updates) {
            let other = again.outputs.get(name).or_else(|| again.updates.get(name)).unwrap();
            prop_assert_eq!(bits(value), bits(other));
            prop_assert!(value.to_f64().iter().all(|v| v.abs() <= 100.0 * LARGEST), "{} is {:?}", name, value);
        }
        for (name, value) in sample.graph.outputs() {
            prop_assert_eq!(&first.outputs[name].ty(), sample.graph.ty(*value));
        }
    }

    #[test]
    fn single_precision_inputs_are_close(sample in samples()) {
        // Only that F32 data is accepted everywhere: rounding may flip a tie.
        let rounded = sample.bindings.iter().map(|(name, t)| {
            let t = match t.data() {
                Data::F64(_) => Tensor::new(t.shape(), Data::F32(t.to_f32())).unwrap(),
                Data::F32(_) | Data::I32(_) => t.clone(),
            };
            (name.clone(), t)
        });
        prop_assert!(evaluate(&sample.graph, &rounded.collect()).is_ok());
    }

    #[test]
    fn arbitrary_text_never_panics(text in "(\\PC|[ \n%{}()\\[\\]=:,#@.\"\\\\])*") {
        if let Ok(graph) = parse(&text) {
            prop_assert!(reads_back(&graph), "{}", print_with_origins(&graph));
        }
    }

    #[test]
    fn token_soup_never_panics(tokens in prop::collection::vec(prop::sample::select(TOKENS), 0..40)) {
        let _ = parse(&format!("graph {{ {} }}", tokens.join(" ")));
        let _ = parse(&tokens.concat());
    }

    #[test]
    fn damaged_text_never_panics(
        sample in samples(),
        damage in prop::collection::vec((any::<Index>(), any::<Index>(), prop::sample::select(TOKENS), 0u8..4), 1..4),
    ) {
        let mut text: Vec<char> = print(&sample.graph).chars().collect();
        for (at, other, token, kind) in damage {
            if text.is_empty() {
                break;
            }
            let (i, j) = (at.index(text.len()), other.index(text.len()));
            match kind {
                0 => { text.remove(i); }
                1 => text.swap(i, j),
                2 => { text.splice(i..i, token.chars()); }
                _ => { text.splice(i..=i, token.chars()); }
            }
        }
        let text: String = text.into_iter().collect();
        match parse(&text) {
            Err(e) => {
                prop_assert!(e.line >= 1 && e.line <= text.matches('\n').count() + 1, "{}", e);
                prop_assert!(e.column >= 1 && !e.message.is_empty());
            }
            Ok(graph) => {
                prop_assert!(reads_back(&graph), "{}", print_with_origins(&graph));
                let _ = verify(&graph, Stage::Forward);
                let small = graph.ids().all(|id| graph.node(id).results.iter().all(|ty| ty.elements() < 100_000));
                if small {
                    let _ = evaluate(&graph, &bindings(&graph, 1));
                }
            }
        }
    }

    #[test]
    fn no_operand_makes_an_operation_panic(
        sample in samples(),
        swaps in prop::collection::vec((any::<Index>(), any::<Index>()), 1..4),
        ints in prop::collection::vec(prop::sample::select(vec![-1, 0, 1, 2, 3, -2, i32::MIN, i32::MAX]), 16),
    ) {
        // Every operation of the graph with operands of the right types, but with any integers in them.
        let graph = &sample.graph;
        for (from, to) in swaps {
            let id = graph.ids().nth(from.index(graph.len())).unwrap();
            let offset = to.index(ints.len());
            let operands: Vec<Tensor> = graph.operands(id).iter().map(|&v| {
                let ty = graph.ty(v);
                match ty.dtype {
                    DType::F32 => Tensor::zeros(ty),
                    DType::I32 => {
                        let data = (0..ty.elements()).map(|i| ints[(i + offset) % ints.len()]).collect();
                        Tensor::new(ty.shape.clone(), Data::I32(data)).unwrap()
                    }
                }
            }).collect();
            let op = &graph.node(id).op;
            let refs: Vec<&Tensor> = operands.iter().collect();
            let result = catch_unwind(AssertUnwindSafe(|| evaluate_op(op, &refs).is_ok()));
            prop_assert!(result.is_ok(), "{:?} panics", op);
        }
    }
}

/// Pieces of the text form, well-formed and not.
const TOKENS: &[&str] = &[
    "graph",
    "{",
    "}",
    "%x",
    "%y:2",
    "%x#1",
    "%",
    "=",
    ":",
    ",",
    "(",
    ")",
    "[",
    "]",
    "input",
    "state",
    "top_k",
    "neg",
    "{k = 2}",
    "f32[2, 3]",
    "i32[]",
    "f32[0]",
    "output o = %x",
    "update",
    "@1..2",
    "\"",
    "\\u{",
    "inf",
    "NaN",
    "-1",
    "1e-5",
    "18446744073709551615",
    "99999999999999999999999",
    "0",
    "7",
    "//",
    "\n",
    "é",
    "t0",
    "stretch(0)",
    "axes",
    "%x = input : f32[2, 3]",
    "[0]",
];

#[test]
fn samples_reach_the_forward_operations() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..400 {
        let sample = samples().new_tree(&mut runner).unwrap().current();
        seen.extend(sample.graph.ids().map(|id| sample.graph.node(id).op.mnemonic()));
    }
    // What only sampling uses, and what only gradients need.
    let rest = ["cached_attention", "grouped_sum", "unpack"];
    let forward = declarations().filter(|declared| declared.stage.0 == Stage::Forward);
    for op in forward.map(|declared| declared.mnemonic).filter(|op| !rest.contains(op)) {
        assert!(seen.contains(op), "no sample has {op}");
    }
}
