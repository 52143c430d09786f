//! The optimiser: a table of passes and the loop that runs them.
//!
//! A pass reads a graph and builds a new one that evaluates alike (up to rounding). Every single change it makes asks
//! [`Rewrites::take`] first, so that a miscompilation is found by bisecting over [`OptimizeOptions::max_rewrites`].

mod canonicalise;
mod cse;
mod dce;
mod fold_const;
pub(crate) mod rebuild;
#[cfg(test)]
mod tests;

use crate::error::PlanError;
use moec_ir::{Graph, GraphError, Stage, VerifyError, verify};
use std::time::{Duration, Instant};

/// A pass of the optimiser.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Name, as in `--after NAME`.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// May give nothing where the graph stays as it is.
    run: fn(&Graph, &mut Rewrites) -> Result<Option<Graph>, GraphError>,
}

/// All passes, in the order in which they run.
pub const PASSES: [Pass; 4] = [
    Pass { name: "fold_const", summary: "computes what is made of filled tensors only", run: fold_const::run },
    Pass {
        name: "canonicalise",
        summary: "applies algebraic identities and brings equal expressions into one form",
        run: canonicalise::run,
    },
    Pass { name: "cse", summary: "computes equal expressions once", run: cse::run },
    Pass { name: "dce", summary: "drops what no output or update depends on", run: dce::run },
];

/// How [`optimize`] runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptimizeOptions {
    /// Stop after the pass of this name.
    pub after: Option<String>,
    /// Stop after this many rewrites of all passes together.
    pub max_rewrites: Option<usize>,
    /// Verify the graph that comes out, and where it is not valid find the pass that broke it.
    pub verify: bool,
}

impl Default for OptimizeOptions {
    /// All passes without limit; verified in debug builds.
    fn default() -> Self {
        Self { after: None, max_rewrites: None, verify: cfg!(debug_assertions) }
    }
}

/// What one pass did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassRun {
    /// Name of the pass.
    pub name: &'static str,
    /// How many changes it made.
    pub rewrites: usize,
    /// Number of nodes after it.
    pub nodes: usize,
    /// How long it took.
    pub time: Duration,
}

/// What the optimiser did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassReport {
    /// Number of nodes of the graph given.
    pub nodes: usize,
    /// The passes that ran, in order.
    pub passes: Vec<PassRun>,
}

impl PassReport {
    /// Changes of all passes together.
    pub fn rewrites(&self) -> usize {
        self.passes.iter().map(|p| p.rewrites).sum()
    }
}

/// Counts the changes of passes against a budget.
#[derive(Debug)]
pub(crate) struct Rewrites {
    left: usize,
    done: usize,
}

impl Rewrites {
    pub(crate) fn new(budget: Option<usize>) -> Self {
        Self { left: budget.unwrap_or(usize::MAX), done: 0 }
    }

    /// Whether one more change may be made; counts it if so.
    pub(crate) fn take(&mut self) -> bool {
        let may = self.left > 0;
        if may {
            self.left -= 1;
            self.done += 1;
        }
        may
    }

    /// Number of changes so far.
    pub(crate) fn done(&self) -> usize {
        self.done
    }
}

/// Runs the passes of [`PASSES`] over a graph of any stage.
///
/// Inputs, parameters and states all stay, used or not: they are the interface of the function.
///
/// # Errors
/// When there is no pass to stop after of that name, or when verification finds that the graph given is not valid or
/// that a pass broke it.
pub fn optimize(graph: &Graph, options: &OptimizeOptions) -> Result<(Graph, PassReport), PlanError> {
    if let Some(name) = &options.after
        && !PASSES.iter().any(|p| p.name == name)
    {
        let known = PASSES.map(|p| p.name).join(", ");
        return Err(PlanError::NoPass { name: name.clone(), known });
    }
    if options.verify {
        verify(graph, Stage::Training).map_err(|e| PlanError::InvalidGraph(first_violations(&e)))?;
    }
    let (optimized, report) = run_passes(graph, options, false)?;
    if options.verify && verify(&optimized, Stage::Training).is_err() {
        // Verifying costs about as much as a pass, so whose fault it is is only looked for when there is one.
        return run_passes(graph, options, true);
    }
    Ok((optimized, report))
}

/// Runs the passes, and verifies the graph after each if asked to.
fn run_passes(graph: &Graph, options: &OptimizeOptions, verifying: bool) -> Result<(Graph, PassReport), PlanError> {
    let mut graph = graph.clone();
    let mut report = PassReport { nodes: graph.len(), passes: Vec::new() };
    let mut rewrites = Rewrites::new(options.max_rewrites);
    for pass in PASSES {
        let (start, before) = (Instant::now(), rewrites.done());
        let broken = |reason: String| PlanError::BrokenGraph { pass: pass.name, reason };
        if let Some(new) = (pass.run)(&graph, &mut rewrites).map_err(|e| broken(e.to_string()))? {
            graph = new;
        }
        let time = start.elapsed();
        if verifying {
            verify(&graph, Stage::Training).map_err(|errors| broken(first_violations(&errors)))?;
        }
        report.passes.push(PassRun { name: pass.name, rewrites: rewrites.done() - before, nodes: graph.len(), time });
        if options.after.as_deref() == Some(pass.name) {
            break;
        }
    }
    Ok((graph, report))
}

fn first_violations(errors: &[VerifyError]) -> String {
    let lines: Vec<String> = errors.iter().take(3).map(ToString::to_string).collect();
    lines.join("; ")
}
