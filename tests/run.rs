//! A graph on a backend, as a command would run it.

use moec_ir::{Graph, Tensor};
use moec_plan::{Backend, ClusterOptions, OptimizeOptions, cluster, optimize, plan};
use std::collections::BTreeMap;

/// Optimises, clusters and plans a graph, runs it with the values of its inputs, parameters and states by name, and returns
/// its outputs and what it updates by name.
pub fn run(backend: &dyn Backend, graph: &Graph, values: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let (optimized, _) = optimize(graph, &OptimizeOptions::default()).unwrap();
    let (clusters, _) = cluster(&optimized, &ClusterOptions::default()).unwrap();
    let program = plan(&[("f".to_string(), &clusters)]).unwrap();
    let mut session = backend.prepare(&program).unwrap();
    for state in &program.states {
        session.write_state(&state.name, &values[&state.name]).unwrap();
    }
    let inputs: Vec<_> = program.plans[0].inputs.iter().map(|p| (p.name.as_str(), &values[&p.name])).collect();
    session.run("f", &inputs).unwrap();
    let outputs = graph.outputs().iter().map(|(name, _)| (name.clone(), session.output("f", name).unwrap()));
    let mut found: BTreeMap<String, Tensor> = outputs.collect();
    found.extend(graph.updates().iter().map(|(name, _)| (name.clone(), session.read_state(name).unwrap())));
    found
}
