//! Random forward graphs over every operation: optimised and planned, they evaluate alike.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use moec_ir::testing::{Sample, samples};
use moec_ir::{Tensor, evaluate};
use moec_plan::{Backend, ClusterOptions, Interpreter, OptimizeOptions, cluster, optimize, plan};
use proptest::prelude::*;

fn close(what: &str, found: &Tensor, expected: &Tensor) -> Result<(), TestCaseError> {
    prop_assert_eq!(found.ty(), expected.ty(), "{}", what);
    for (a, b) in found.to_f64().into_iter().zip(expected.to_f64()) {
        let same = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-12 * (1.0 + b.abs());
        prop_assert!(same, "{}: {} is not {}", what, a, b);
    }
    Ok(())
}

proptest! {
    #[test]
    fn optimised_graphs_and_their_plans_evaluate_alike(sample in samples()) {
        let Sample { graph, bindings, .. } = sample;
        let expected = evaluate(&graph, &bindings).unwrap();
        let (optimized, _) = optimize(&graph, &OptimizeOptions::default()).unwrap();
        let found = evaluate(&optimized, &bindings).unwrap();
        prop_assert_eq!(found.outputs.len(), expected.outputs.len());
        for (name, value) in &expected.outputs {
            close(name, &found.outputs[name], value)?;
        }
        for (name, value) in &expected.updates {
            close(name, &found.updates[name], value)?;
        }

        let (clusters, _) = cluster(&optimized, &ClusterOptions::default()).unwrap();
        let program = plan(&[("f".into(), &clusters)]).unwrap();
        let mut session = Interpreter.prepare(&program).unwrap();
        for s in &program.states {
            session.write_state(&s.name, &bindings[&s.name]).unwrap();
        }
        let inputs: Vec<_> = program.plans[0].inputs.iter().map(|p| (p.name.as_str(), &bindings[&p.name])).collect();
        session.run("f", &inputs).unwrap();
        for (name, value) in &expected.outputs {
            close(name, &session.output("f", name).unwrap(), value)?;
        }
        for (name, value) in &expected.updates {
            close(name, &session.read_state(name).unwrap(), value)?;
        }
    }
}
