//! The table that says where the time of a training step goes, kernel by kernel.

use crate::cli::table::Table;
use moec_ir::{Function, Phase};
use moec_kernels::Limits;
use moec_plan::{Plan, Program, Work, work};
use moec_runtime::{KernelRow, Timings};
use serde::Serialize;

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    /// Which part of the step, or all of it.
    phase: &'static str,
    /// Operation and extents; empty for a whole phase.
    kernel: String,
    /// Steps of the plan.
    steps: usize,
    /// Milliseconds in a training step.
    ms: f64,
    /// Share of the training step.
    share: f64,
    /// Achieved operations per second, in units of 10^9; 0 where there are no products.
    gflops_per_s: f64,
    /// Achieved bytes per second, in units of 10^9, if each operand and result moves once.
    gbytes_per_s: f64,
    /// The least time for that work on a machine with these limits, as a share of the time taken. Above 1 where data
    /// comes from caches.
    of_limit: Option<f64>,
}

/// Where the time goes, by phase and by kernel.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct KernelTable {
    pub(crate) phases: Vec<Line>,
    pub(crate) kernels: Vec<Line>,
}

impl KernelTable {
    /// Of the timed runs of a plan, beside what the device can do at most.
    pub(crate) fn new(plan: &Plan, timings: &Timings, limits: Option<Limits>) -> Self {
        let total = timings.total().as_secs_f64();
        let line = |phase, kernel: &str, rows: &[&KernelRow]| {
            let seconds: f64 = rows.iter().map(|r| r.time.as_secs_f64()).sum();
            let mut work = Work::default();
            rows.iter().for_each(|r| work += r.work);
            // What each kernel needs at least, added up: one may be bound by arithmetic and the next by memory.
            let least = limits.map(|l| rows.iter().map(|r| r.work.seconds(l.flops, l.bytes)).sum::<f64>());
            let per_second = |amount: f64| if seconds > 0.0 { amount / seconds / 1e9 } else { 0.0 };
            Line {
                phase,
                kernel: kernel.to_string(),
                steps: rows.iter().map(|r| r.steps).sum(),
                ms: seconds * 1e3,
                share: if total > 0.0 { seconds / total } else { 0.0 },
                gflops_per_s: per_second(work.flops),
                gbytes_per_s: per_second(work.bytes),
                of_limit: least.map(|least| if seconds > 0.0 { least / seconds } else { 0.0 }),
            }
        };
        let rows = timings.by_kind(plan);
        let phases = Phase::ALL.map(|phase| {
            let of_phase: Vec<&KernelRow> = rows.iter().filter(|r| r.phase == phase).collect();
            line(phase.name(), "", &of_phase)
        });
        let kernels = rows.iter().map(|row| line(row.phase.name(), &row.kind, &[row])).collect();
        Self { phases: phases.into_iter().filter(|l| l.steps > 0).collect(), kernels }
    }

    /// The table as text, no wider than that.
    pub(crate) fn text(&self, columns: usize) -> String {
        let mut heads = vec!["phase", "kernel", "steps", "ms", "share", "GFLOP/s", "GB/s"];
        if self.kernels.iter().any(|l| l.of_limit.is_some()) {
            heads.push("of limit");
        }
        let mut table = Table::new(&heads, 2);
        for l in self.phases.iter().chain(&self.kernels) {
            table.row([
                l.phase.to_string(),
                if l.kernel.is_empty() { "all".to_string() } else { l.kernel.clone() },
                l.steps.to_string(),
                format!("{:.3}", l.ms),
                format!("{:.1} %", 100.0 * l.share),
                if l.gflops_per_s > 0.0 { format!("{:.1}", l.gflops_per_s) } else { String::new() },
                format!("{:.1}", l.gbytes_per_s),
                l.of_limit.map(|x| format!("{:.0} %", 100.0 * x)).unwrap_or_default(),
            ]);
        }
        table.text(columns)
    }
}

/// The least seconds that a training step takes on a machine with these limits: its products at the peak of
/// multiply-adds, and what the optimiser reads and writes at the speed of memory. Everything else could be computed on
/// the way.
pub(crate) fn least_seconds(plan: &Plan, limits: Limits) -> f64 {
    let steps = plan.steps.iter().map(|step| (step.phase, work(plan, step)));
    steps
        .map(|(phase, work)| match phase {
            Phase::Optimizer => work.bytes / limits.bytes,
            Phase::Forward | Phase::Backward => work.flops / limits.flops,
        })
        .sum()
}

/// Operations of the products of a training step of so many batches, all but the last of which accumulate.
pub(crate) fn flops_of_step(program: &Program, batches: usize) -> f64 {
    let flops = |plan: &Plan| plan.steps.iter().map(|step| work(plan, step).flops).sum::<f64>();
    let of = |function: Function| program.plan(function.name()).map_or(0.0, flops);
    of(Function::TrainStep) + (batches.max(1) - 1) as f64 * of(Function::Accumulate)
}
