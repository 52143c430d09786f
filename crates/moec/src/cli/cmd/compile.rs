//! `moec compile`: sizes, layers, kernels and memory on one screen, or any stage of the compilation as text.

use crate::cli::args::{CompileArgs, Emit};
use crate::cli::configuration::Values;
use crate::cli::console::{COLUMNS, Console};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{self, Output};
use crate::cli::table::Table;
use crate::cli::units::{bytes, grouped, scaled};
use crate::cli::wrapping::wrapped;
use crate::pipeline::{self, Checked, CompileOptions, Compiled, Function};
use crate::{read_source, require_memory};
use moec_ir::{Graph, Op};
use moec_kernels::DeviceProfile;
use moec_model::{LayerInfo, MoeLayerInfo, NoisePolicy, Registry, Vocab};
use moec_plan::{BackendError, FUSIONS, OptimizeOptions, on_threads};
use moec_syntax::{SourceFile, did_you_mean};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Runs the command.
///
/// # Errors
/// When the file is wrong, the model needs more memory than the device has, or the output cannot be written.
pub(crate) fn run(args: &CompileArgs, registry: &Registry, console: &Console) -> Result<Exit, Failure> {
    let reading = &args.spec.reading;
    let set: Vec<String> = reading.set.iter().cloned().chain(args.precision.set()).collect();
    let source = Values::read(reading.config.as_deref(), &set)?.placed(&read_source(&args.spec.spec)?);
    let sources = output::files_of_spec(&args.spec.spec, &source);
    let output = args.output.as_deref().map(|path| Output::new(path, &sources)).transpose()?;
    if args.emit == Some(Emit::Ast) {
        let file = moec_syntax::parse(&source).map_err(|d| of_source(&source, d))?;
        return deliver(output.as_ref(), console, &format!("{file:#?}\n"));
    }
    let checked =
        pipeline::check(&source, registry, args.spec.reading.model.as_deref()).map_err(|d| of_source(&source, d))?;
    console.diagnostics(&source, &checked.warnings, args.spec.reading.message_format);
    let vocab = match checked.model.vocab {
        Vocab::Characters => args.vocab,
        Vocab::Size(n) => n,
    };
    let function = Function::of_name(&args.function).ok_or_else(|| {
        let names = Function::ALL.map(Function::name);
        Failure::new(Exit::Usage, format!("there is no function {}", args.function))
            .help(format!("the functions are {}", names.join(", ")))
    })?;
    match args.emit {
        Some(Emit::Model) => return deliver(output.as_ref(), console, &checked.to_yaml()),
        Some(emit @ (Emit::Ir | Emit::Dot)) => {
            let graph = graph_after(args, &checked, &source, vocab, function)?;
            let text = if emit == Emit::Ir { moec_ir::print(&graph) } else { dot(&graph) };
            return deliver(output.as_ref(), console, &text);
        }
        Some(Emit::Ast | Emit::Plan) | None => {}
    }
    let mut functions = pipeline::functions_of(&checked.model, &checked.recipe);
    if args.emit == Some(Emit::Plan) && !functions.contains(&function) {
        // Fails with the reason.
        functions.push(function);
    }
    if let Some(after) = &args.after {
        known_pass(after, &pipeline::passes())?;
    }
    let options = CompileOptions {
        after: args.after.clone(),
        max_rewrites: args.opt_steps,
        limits: args.device.launch_limits(),
        ..CompileOptions::only(functions)
    };
    let compiled = pipeline::compile(&checked.model, &checked.recipe, vocab, &options).map_err(|e| e.at(&source))?;
    if args.time_passes {
        report_times(&compiled, console);
    }
    if args.emit == Some(Emit::Plan) {
        let mut listing = moec_plan::listing(&compiled.program);
        listing.plans.retain(|p| p.function == function.name());
        let yaml = serde_yaml::to_string(&listing);
        let yaml = yaml.map_err(|e| Failure::new(Exit::Failure, format!("cannot write the plan: {e}")))?;
        return deliver(output.as_ref(), console, &yaml);
    }
    require_memory(&compiled.memory, args.device, &source)?;
    // Whoever reads a file has another terminal, or none.
    let columns = output.is_none().then(|| console.columns());
    let text = if args.json {
        format!("{:#}\n", as_json(&checked, &compiled, vocab)?)
    } else {
        screen(&source, &checked, &compiled, vocab, columns)?
    };
    deliver(output.as_ref(), console, &text)
}

fn of_source(source: &SourceFile, diagnostics: Vec<moec_syntax::Diagnostic>) -> Failure {
    Failure::source(source.clone(), diagnostics, Exit::Usage)
}

/// To the file that `-o` names, or to standard output.
fn deliver(output: Option<&Output>, console: &Console, text: &str) -> Result<Exit, Failure> {
    match output {
        None => console.write(text)?,
        Some(output) => output.write(text)?,
    }
    Ok(Exit::Success)
}

/// The graph of a function after a pass; after all of them by default.
fn graph_after(
    args: &CompileArgs,
    checked: &Checked,
    source: &SourceFile,
    vocab: usize,
    function: Function,
) -> Result<Graph, Failure> {
    let failed = |e: pipeline::CompileError| Failure::from(e.at(source));
    let (model, recipe) = (&checked.model, &checked.recipe);
    let lowered = pipeline::lower(model, recipe, vocab, function, NoisePolicy::Generated);
    let lowered = lowered.map_err(|e| failed(e.into()))?;
    let after = args.after.as_deref();
    if after == Some("lower") {
        return Ok(lowered.graph);
    }
    let completed = pipeline::complete(&lowered, recipe, function).map_err(failed)?;
    if after == Some("differentiate") {
        return Ok(completed);
    }
    if let Some(name) = after {
        if FUSIONS.iter().any(|f| f.name == name) {
            let failure = format!("{name} decides which nodes are computed together, and leaves the graph as it is");
            return Err(Failure::new(Exit::Usage, failure).help("--emit plan shows what it decides"));
        }
        known_pass(name, &["lower", "differentiate"].into_iter().chain(pipeline::passes()).collect::<Vec<_>>())?;
    }
    let options =
        OptimizeOptions { after: args.after.clone(), max_rewrites: args.opt_steps, ..OptimizeOptions::default() };
    let optimized = moec_plan::optimize(&completed, &options).map_err(|e| failed(e.into()))?;
    Ok(optimized.0)
}

/// Refuses the name of a pass that there is not.
fn known_pass(name: &str, names: &[&str]) -> Result<(), Failure> {
    if names.contains(&name) {
        return Ok(());
    }
    let failure = Failure::new(Exit::Usage, format!("there is no pass {name}"));
    let failure = match did_you_mean(name, names.iter().copied()) {
        Some(near) => failure.help(format!("did you mean {near}?")),
        None => failure,
    };
    Err(failure.help(format!("the passes are {}", names.join(", "))))
}

fn report_times(compiled: &Compiled, console: &Console) {
    for (stage, time) in &compiled.times {
        console.note(format!("{stage:<16} {:>8.2} ms", time.as_secs_f64() * 1e3));
    }
    for (function, report) in &compiled.reports {
        for pass in &report.passes {
            console.note(format!(
                "  {:<12} {:<16} {:>8.2} ms  {:>5} rewrites  {:>5} nodes",
                function.name(),
                pass.name,
                pass.time.as_secs_f64() * 1e3,
                pass.rewrites,
                pass.nodes
            ));
        }
    }
}

/// Rows of the layer table: the iterations of a `repeat` that are alike share a row.
struct Row {
    path: String,
    times: usize,
    info: LayerInfo,
}

fn rows(layers: &[LayerInfo]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for info in layers {
        let generic = generic_path(&info.path);
        let same = |r: &&mut Row| {
            r.path == generic
                && (r.info.parameters, r.info.active, r.info.flops) == (info.parameters, info.active, info.flops)
        };
        match rows.iter_mut().find(same) {
            Some(row) => row.times += 1,
            None => rows.push(Row { path: generic, times: 1, info: info.clone() }),
        }
    }
    rows
}

/// `blocks.3.moe` as `blocks.*.moe`.
fn generic_path(path: &str) -> String {
    let parts: Vec<&str> =
        path.split('.').map(|p| if p.bytes().all(|b| b.is_ascii_digit()) { "*" } else { p }).collect();
    parts.join(".")
}

struct Totals {
    parameters: u64,
    active: u64,
    forward: u64,
    backward: u64,
    tokens: u64,
}

fn totals(checked: &Checked, compiled: &Compiled) -> Totals {
    let forward = compiled.lowered.layers.iter().map(|l| l.flops as u64).fold(0, u64::saturating_add);
    Totals {
        parameters: compiled.lowered.parameter_count() as u64,
        active: compiled.lowered.active_parameter_count() as u64,
        forward,
        // Each product has two gradients of its own size.
        backward: forward.saturating_mul(2),
        tokens: (checked.recipe.sequences() as u64).saturating_mul(checked.model.context as u64),
    }
}

/// Launches and distinct kernels of every function, in the order of the graphs.
fn kernels(compiled: &Compiled) -> Result<Vec<(usize, usize)>, Failure> {
    let profile = DeviceProfile::this_cpu();
    let listed = on_threads(&compiled.clusters, |(function, _)| {
        let names = moec_kernels::kernel_names(&compiled.program, function.name(), &profile)?;
        let distinct: BTreeSet<&String> = names.iter().flatten().collect();
        Ok((names.iter().map(Vec::len).sum(), distinct.len()))
    });
    listed.into_iter().map(|listed| listed.map_err(|error: BackendError| error.into())).collect()
}

/// The summary for a terminal of so many columns, or for a file.
fn screen(
    source: &SourceFile,
    checked: &Checked,
    compiled: &Compiled,
    vocab: usize,
    columns: Option<usize>,
) -> Result<String, Failure> {
    let columns = columns.unwrap_or(COLUMNS);
    let memory = &compiled.memory;
    let (model, recipe) = (&checked.model, &checked.recipe);
    let t = totals(checked, compiled);
    let mut s = String::new();
    let mut line = |text: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(s, "{}", wrapped(&text, columns));
    };
    line(format!("{} ({})", model.name, source.name()));
    line(format!("  {} parameters, {} active per token", grouped(t.parameters), grouped(t.active)));
    line(format!(
        "  {}FLOP per token forward, {}FLOP backward; {}FLOP per step of {} x {} tokens",
        with_space(t.forward as f64),
        with_space(t.backward as f64),
        with_space((t.forward + t.backward).saturating_mul(t.tokens) as f64),
        recipe.sequences_text(),
        model.context
    ));
    // Without a text the number of its characters is not known.
    let assumed = match model.vocab {
        Vocab::Characters => " characters; a training counts those of its text, as --vocab N does",
        Vocab::Size(_) => "",
    };
    line(format!("  vocabulary {vocab}{assumed}; {}", model.causality));
    line(String::new());
    let mut table = Table::new(&["layer", "parameters", "active", "FLOP per token"], 1);
    for row in rows(&compiled.lowered.layers) {
        let times = if row.times > 1 { format!(" x {}", row.times) } else { String::new() };
        let number = |each: usize| grouped((each * row.times) as u64);
        let Row { path, info, .. } = &row;
        table.row([format!("{path}{times}"), number(info.parameters), number(info.active), number(info.flops)]);
    }
    for row in table.lines(columns.saturating_sub(2)) {
        line(format!("  {row}"));
    }
    for moe in distinct_moe(compiled) {
        line(format!("  {moe}"));
    }
    line(String::new());
    for ((function, clusters), (launches, distinct)) in compiled.clusters.iter().zip(kernels(compiled)?) {
        line(format!(
            "  {:<11} {:>4} nodes, {:>4} launches of {:>3} kernels",
            function.name(),
            clusters.len(),
            launches,
            distinct
        ));
    }
    line(String::new());
    line(format!(
        "  memory      {} planned: parameters {}, optimizer {}{}, largest arena {}",
        bytes(memory.total_bytes()),
        bytes(memory.parameter_bytes),
        bytes(memory.optimizer_bytes),
        if memory.router_bytes > 0 { format!(", routers {}", bytes(memory.router_bytes)) } else { String::new() },
        bytes(memory.functions.iter().map(|f| f.arena_bytes).max().unwrap_or(0))
    ));
    for f in &memory.functions {
        line(format!(
            "  {:<11} peak {}: activations {}, gradients {}, temporaries {}, inputs and outputs {}",
            f.name,
            bytes(f.peak_bytes),
            bytes(f.activation_bytes),
            bytes(f.gradient_bytes),
            bytes(f.temporary_bytes),
            bytes(f.input_output_bytes)
        ));
    }
    Ok(s)
}

/// `5.26 M`, with a blank before the unit also where there is no prefix.
fn with_space(n: f64) -> String {
    let text = scaled(n);
    if text.contains(' ') { text } else { text + " " }
}

/// The experts of a mixture layer: `8 experts`, or `8 experts, 2 of which compute nothing,`.
pub(crate) fn numbered(moe: &MoeLayerInfo) -> String {
    match moe.zero_computation {
        0 => format!("{} experts", moe.experts),
        others => format!("{} experts, {others} of which compute nothing,", moe.experts),
    }
}

/// One line per kind of mixture layer.
fn distinct_moe(compiled: &Compiled) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for moe in &compiled.lowered.moe_layers {
        let capacity = moe.capacity.map_or("every token kept".to_string(), |p| format!("capacity {p} tokens"));
        let shared = if moe.shared > 0 { format!(" + {} shared", moe.shared) } else { String::new() };
        let losses: Vec<String> = moe.losses.iter().map(|(name, weight)| format!("{name} x {weight}")).collect();
        let losses = if losses.is_empty() { "no balance loss".to_string() } else { losses.join(", ") };
        let line = format!(
            "{}: {} of {}{shared} by {}; {capacity}; {losses}",
            generic_path(&moe.path),
            (moe.experts_per_token * 100.0).round() / 100.0,
            numbered(moe),
            moe.strategy
        );
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

fn as_json(checked: &Checked, compiled: &Compiled, vocab: usize) -> Result<Value, Failure> {
    let memory = &compiled.memory;
    let t = totals(checked, compiled);
    let layers: Vec<Value> = compiled
        .lowered
        .layers
        .iter()
        .map(|l| json!({ "path": l.path, "kind": l.kind, "parameters": l.parameters, "active": l.active, "flops": l.flops }))
        .collect();
    let functions: Vec<Value> = compiled
        .clusters
        .iter()
        .zip(kernels(compiled)?)
        .map(|((function, clusters), (launches, distinct))| {
            json!({ "name": function.name(), "nodes": clusters.len(), "launches": launches, "kernels": distinct })
        })
        .collect();
    Ok(json!({
        "schema": "moec.compile/1",
        "model": checked.model.name,
        "vocab": vocab,
        "causality": checked.model.causality.to_string(),
        "parameters": t.parameters,
        "active_parameters": t.active,
        "forward_flops_per_token": t.forward,
        "backward_flops_per_token": t.backward,
        "tokens_per_step": t.tokens,
        "layers": layers,
        "functions": functions,
        "memory": {
            "total_bytes": memory.total_bytes(),
            "parameter_bytes": memory.parameter_bytes,
            "optimizer_bytes": memory.optimizer_bytes,
            "router_bytes": memory.router_bytes,
            "cache_bytes": memory.cache_bytes,
            "functions": memory.functions,
        },
    }))
}

/// The graph for Graphviz: one box per node, edges labelled with the type of what flows.
fn dot(graph: &Graph) -> String {
    let mut s = String::from("digraph moec {\n  rankdir=TB;\n  node [shape=box, fontname=\"monospace\"];\n");
    for id in graph.ids() {
        let node = graph.node(id);
        let shape = match &node.op {
            Op::Input { .. } => ", style=rounded",
            Op::Parameter { .. } | Op::State { .. } => ", style=filled",
            _ => "",
        };
        let _ = writeln!(s, "  n{} [label=\"{}\\n{}\"{shape}];", id.index(), node.name, node.op.mnemonic());
        for operand in graph.operands(id) {
            let ty = graph.ty(*operand);
            let _ = writeln!(s, "  n{} -> n{} [label=\"{ty}\"];", operand.node.index(), id.index());
        }
    }
    s.push_str("}\n");
    s
}
