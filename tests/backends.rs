//! One case table on every backend: the interpreter, the CPU, and wgpu where there is a device.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use moec_ir::{declarations, evaluate};
use moec_kernels::{CubeBackend, Device, DeviceProfile};
use moec_plan::{
    Backend, ClusterOptions, Clusters, Interpreter, LaunchLimits, OptimizeOptions, cluster, optimize, plan,
};
use moec_tests::cases::{self, Case};
use moec_tests::compare::assert_close;
use std::collections::BTreeSet;

/// Runs a case with each node on its own and, where that is something else, in the clusters of a device with these limits.
fn run(backend: &dyn Backend, limits: LaunchLimits, case: &Case, tolerance: f64) {
    let clusters = clustered(case, limits);
    for clusters in [Some(Clusters::single(&case.graph)), is_fused(&clusters).then_some(clusters)].iter().flatten() {
        run_clusters(backend, case, clusters, tolerance);
    }
}

fn clustered(case: &Case, limits: LaunchLimits) -> Clusters {
    let options = ClusterOptions { limits, ..ClusterOptions::default() };
    cluster(&case.graph, &options).unwrap_or_else(|e| panic!("{}: {e}", case.name)).0
}

fn this_cpu() -> LaunchLimits {
    DeviceProfile::this_cpu().launch_limits()
}

fn is_fused(clusters: &Clusters) -> bool {
    clusters.iter().any(|c| c.nodes.len() > 1)
}

fn run_clusters(backend: &dyn Backend, case: &Case, clusters: &Clusters, tolerance: f64) {
    let expected = evaluate(&case.graph, &case.values).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let program = plan(&[("case".to_string(), clusters)]).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let mut session = backend.prepare(&program).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    for state in &program.states {
        session.write_state(&state.name, &case.values[&state.name]).unwrap();
    }
    let inputs: Vec<_> = program.plans[0].inputs.iter().map(|p| (p.name.as_str(), &case.values[&p.name])).collect();
    session.run("case", &inputs).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    for (name, value) in &expected.outputs {
        let found = session.output("case", name).unwrap();
        assert_close(&format!("{} on {}: {name}", case.name, backend.name()), &found, value, tolerance);
    }
    for (name, value) in &expected.updates {
        let found = session.read_state(name).unwrap();
        assert_close(&format!("{} on {}: update {name}", case.name, backend.name()), &found, value, tolerance);
    }
}

#[test]
fn the_table_has_a_case_for_every_operation() {
    let mut covered = BTreeSet::new();
    for case in cases::all() {
        covered.extend(case.graph.ids().map(|id| case.graph.node(id).op.mnemonic()));
    }
    // Parameters are bound like states; the whole-model tests have them.
    for declared in declarations().filter(|declared| declared.mnemonic != "parameter") {
        assert!(covered.contains(declared.mnemonic), "`{}` has no case", declared.mnemonic);
    }
}

#[test]
fn the_table_has_a_case_for_every_fusion() {
    let mut found = BTreeSet::new();
    for case in cases::all() {
        let clusters = clustered(&case, this_cpu());
        found.extend(clusters.iter().filter(|c| c.nodes.len() > 1).map(|c| c.kernel.mnemonic()));
        if ["fused", "dispatched", "that unpacks", "with sums", "with its gradient"]
            .iter()
            .any(|name| case.name.contains(name))
        {
            assert!(is_fused(&clusters), "{}:\n{clusters}", case.name);
        }
    }
    let kernels = [
        "adamw",
        "dispatched_grouped_matmul",
        "dispatched_grouped_matmul_weight_grad",
        "dispatched_grouped_matmul_weight_grad_with_sums",
        "dispatched_unpacking_grouped_matmul",
        "fused",
        "fused_combine",
        "fused_cross_entropy",
        "fused_dispatch",
        "fused_dispatched_grouped_matmul",
        "fused_dispatched_unpacking_grouped_matmul",
        "fused_embed",
        "fused_grouped_matmul",
        "fused_layer_norm",
        "fused_layer_norm_grad",
        "fused_matmul",
        "fused_rms_norm",
        "fused_rms_norm_grad",
        "fused_unpacking_grouped_matmul",
        "fused_unpacking_matmul",
        "grouped_matmul_weight_grad_with_sums",
        "matmul_with_sums",
        "unpacking_grouped_matmul",
        "unpacking_matmul",
    ];
    assert_eq!(found.iter().collect::<Vec<_>>(), kernels);
}

#[test]
fn interpreter_runs_the_table() {
    for case in cases::all() {
        run(&Interpreter, this_cpu(), &case, 1e-9);
    }
}

#[test]
fn cpu_runs_the_table() {
    let backend = CubeBackend::open(Device::Cpu).unwrap();
    for case in cases::all() {
        run(&backend, this_cpu(), &case, case.tolerance);
    }
}

#[test]
fn wgpu_runs_the_table() {
    if !moec_kernels::wgpu_available() {
        let required = std::env::var_os("MOEC_REQUIRE_WGPU").is_some_and(|value| value == "1");
        assert!(!required, "MOEC_REQUIRE_WGPU is set, but there is no wgpu device");
        println!("skipped: no wgpu device");
        return;
    }
    let backend = CubeBackend::open(Device::Wgpu).unwrap();
    for case in cases::all() {
        run(&backend, DeviceProfile::gpu().launch_limits(), &case, case.tolerance);
    }
}

#[test]
fn optimised_cases_evaluate_alike() {
    for case in cases::all() {
        let expected = evaluate(&case.graph, &case.values).unwrap();
        let (optimized, _) =
            optimize(&case.graph, &OptimizeOptions::default()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let found = evaluate(&optimized, &case.values).unwrap();
        for (name, value) in &expected.outputs {
            assert_close(&format!("{}: {name}", case.name), &found.outputs[name], value, 1e-12);
        }
    }
}
