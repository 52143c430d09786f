//! `moec bench`: how fast a model trains here, beside what this machine can do at most.

use crate::cli::args::BenchArgs;
use crate::cli::configuration;
use crate::cli::console::Console;
use crate::cli::devices::{Devices, why_no_faster};
use crate::cli::exit::{Exit, Failure};
use crate::cli::kernel_table::{KernelTable, flops_of_step, least_seconds};
use crate::cli::units::{bytes, grouped, milliseconds, scaled};
use crate::pipeline::{CompileOptions, Compiled, Function};
use crate::{Device, Spec, cli::downloads, initial_states, read_source, train_config};
use moec_ir::Invariant;
use moec_kernels::{CubeBackend, Limits, Yardstick};
use moec_model::Registry;
use moec_plan::{Backend, Interpreter, Plan};
use moec_runtime::{Dataset, Executable, Profiled, Split, TrainConfig, train_loss, train_step};
use serde::Serialize;
use std::io::BufRead;
use std::time::Instant;

/// Steps between two measurements of the machine's limits: close enough that both see the same machine.
const SLICE: u64 = 5;

/// Steps that are timed kernel by kernel.
const PROFILED: u64 = 11;

/// What was measured.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    model: String,
    device: &'static str,
    parameters: usize,
    /// Batches of a step.
    #[serde(skip)]
    batches: usize,
    tokens_per_step: usize,
    gflop_per_step: f64,
    /// Median over the slices.
    limits: Option<LimitsReport>,
    step: StepReport,
    /// Of this process until its first training step was done.
    first_step_s: f64,
    memory: MemoryReport,
    profile: KernelTable,
}

#[derive(Serialize)]
struct LimitsReport {
    gflops_per_s: f64,
    gbytes_per_s: f64,
    /// The least time of a step on such a machine.
    step_ms: f64,
}

#[derive(Serialize)]
struct StepReport {
    steps: usize,
    median_ms: f64,
    best_ms: f64,
    /// Median over the slices of: the slice's mean step over the limit measured right after it.
    over_limit: Option<f64>,
    tokens_per_s: f64,
}

#[derive(Serialize)]
struct MemoryReport {
    planned_bytes: usize,
    /// The most that this process held in memory, before the limits were measured; `None` where the system does not say.
    peak_resident_bytes: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// When the spec or the data is wrong, the device fails, or training diverges.
pub(crate) fn run(args: &BenchArgs, registry: &Registry, devices: Devices, console: &Console) -> Result<Exit, Failure> {
    let begun = Instant::now();
    let (reading, source) = (&args.spec.reading, read_source(&args.spec.spec)?);
    let mut set = configuration::given(reading, &source, registry)?;
    set.extend(args.precision.set());
    let spec = Spec::check(source, registry, reading.model.as_deref(), &set)?;
    console.diagnostics(&spec.source, &spec.checked.warnings, args.spec.reading.message_format);
    if let Some(note) = why_no_faster(spec.checked.recipe.precision, args.device) {
        console.note(note);
    }
    let data = args.data.clone().unwrap_or_else(|| spec.data(&args.spec.spec, registry));
    let corpus = downloads::corpus(&data, registry, console)?;
    let dataset = spec.dataset(&corpus)?;
    dataset.windows(Split::Train, spec.checked.model.context)?;
    let compiled = spec.compile(dataset.vocab(), args.device, &CompileOptions::only([Function::TrainStep]))?;
    let bench = Bench { spec: &spec, compiled: &compiled, dataset: &dataset, devices, begun };
    match args.device {
        Device::Interpreter => bench.run(&Interpreter, None, args, console)?,
        Device::Cpu => bench.with_kernels(moec_kernels::Device::Cpu, args, console)?,
        Device::Wgpu => bench.with_kernels(moec_kernels::Device::Wgpu, args, console)?,
    }
    Ok(Exit::Success)
}

struct Bench<'a> {
    spec: &'a Spec,
    compiled: &'a Compiled,
    dataset: &'a Dataset,
    devices: Devices,
    begun: Instant,
}

impl Bench<'_> {
    fn with_kernels(&self, device: moec_kernels::Device, args: &BenchArgs, console: &Console) -> Result<(), Failure> {
        let mut backend = CubeBackend::open(device)?;
        if let Some(cache) = self.devices.cache(args.device) {
            backend = backend.with_cache(cache);
        }
        self.run(&backend, Some(&backend), args, console)
    }

    fn run(
        &self,
        backend: &dyn Backend,
        cube: Option<&CubeBackend>,
        args: &BenchArgs,
        console: &Console,
    ) -> Result<(), Failure> {
        let (program, model) = (&self.compiled.program, &self.spec.checked.model);
        let config = TrainConfig { steps: u64::MAX, ..train_config(&self.spec.checked.recipe) };
        let mut session = Profiled::new(backend.prepare(program)?, Function::TrainStep);
        session.pause();
        let mut executable = Executable::new(program, &mut session, model.context)?;
        let lowered = &self.compiled.lowered;
        let states = initial_states(&lowered.states, self.dataset, self.spec.folder())?;
        moec_runtime::initialise(&mut executable, config.seed, &lowered.parameters, &states)?;
        let mut steps = Steps { dataset: self.dataset, config, made: 0 };
        steps.make(&mut executable)?;
        let first_step_s = self.begun.elapsed().as_secs_f64();
        // What the first step leaves behind is warmed up, and the peak of memory is reached.
        steps.make(&mut executable)?;
        let peak_resident_bytes = peak_resident_bytes();
        if args.serve {
            return steps.serve(&mut executable, console, first_step_s);
        }

        let plan = program
            .plan(Function::TrainStep.name())
            .ok_or_else(|| Failure::new(Exit::Fault, "the program cannot train"))?;
        let before =
            program.plan(Function::Accumulate.name()).map(|adding| (adding, (steps.config.batches - 1) as f64));
        let of_step = |of: &dyn Fn(&Plan) -> f64| of(plan) + before.map_or(0.0, |(adding, times)| times * of(adding));
        let mut yardstick = cube.map(Yardstick::new).transpose()?;
        let (mut times, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        while (times.len() as u64) < args.steps {
            let slice: Vec<f64> = (0..SLICE.min(args.steps - times.len() as u64))
                .map(|_| steps.make(&mut executable))
                .collect::<Result<_, Failure>>()?;
            if let Some(yardstick) = &mut yardstick {
                let limit = yardstick.measure()?;
                let mean = slice.iter().sum::<f64>() / slice.len() as f64;
                ratios.push(mean / of_step(&|plan| least_seconds(plan, limit)));
                limits.push(limit);
            }
            times.extend(slice);
        }
        session.resume();
        let mut executable = Executable::new(program, &mut session, model.context)?;
        for _ in 0..=PROFILED {
            steps.make(&mut executable)?;
        }
        let limit = (!limits.is_empty()).then(|| Limits {
            flops: median(limits.iter().map(|l| l.flops)),
            bytes: median(limits.iter().map(|l| l.bytes)),
        });
        let median_s = median(times.iter().copied());
        let tokens = self.spec.checked.recipe.sequences() * model.context;
        let report = Report {
            schema: "moec.bench/1",
            model: model.name.clone(),
            device: args.device.name(),
            parameters: lowered.parameter_count(),
            batches: self.spec.checked.recipe.accumulate,
            tokens_per_step: tokens,
            gflop_per_step: flops_of_step(program, self.spec.checked.recipe.accumulate) / 1e9,
            limits: limit.map(|l| LimitsReport {
                gflops_per_s: l.flops / 1e9,
                gbytes_per_s: l.bytes / 1e9,
                step_ms: 1e3 * of_step(&|plan| least_seconds(plan, l)),
            }),
            step: StepReport {
                steps: times.len(),
                median_ms: 1e3 * median_s,
                best_ms: 1e3 * times.iter().copied().fold(f64::INFINITY, f64::min),
                over_limit: (!ratios.is_empty()).then(|| median(ratios.iter().copied())),
                tokens_per_s: tokens as f64 / median_s,
            },
            first_step_s,
            memory: MemoryReport { planned_bytes: program.state_bytes() + program.arena_bytes(), peak_resident_bytes },
            profile: KernelTable::new(plan, session.timings(), limit),
        };
        if args.json {
            let json = serde_json::to_value(&report);
            return console
                .json(&json.map_err(|e| Failure::new(Exit::Fault, format!("cannot write the report: {e}")))?);
        }
        console.write(&report.text(plan, console.columns()))
    }
}

/// Training steps one after another, each timed from its launch until its loss is read.
struct Steps<'a> {
    dataset: &'a Dataset,
    config: TrainConfig,
    made: u64,
}

impl Steps<'_> {
    /// Makes a step and returns its seconds.
    fn make(&mut self, executable: &mut Executable<'_>) -> Result<f64, Failure> {
        let begun = Instant::now();
        train_step(executable, self.dataset, &self.config, self.made)?;
        let loss = train_loss(executable)?;
        self.made += 1;
        if !loss.is_finite() {
            return Err(Failure::new(Exit::Diverged, format!("the loss is not finite after step {}", self.made)));
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Makes as many steps as each line of standard input asks for, `go N`, until it ends.
    fn serve(&mut self, executable: &mut Executable<'_>, console: &Console, first_step_s: f64) -> Result<(), Failure> {
        let line = |value: serde_json::Value| console.out(value.to_string());
        line(serde_json::json!({ "ready": true, "first_step_s": first_step_s }))?;
        for request in std::io::stdin().lock().lines() {
            let request =
                request.map_err(|e| Failure::new(Exit::Failure, format!("cannot read standard input: {e}")))?;
            let count = request.strip_prefix("go ").and_then(|n| n.trim().parse::<u64>().ok());
            let count = count.ok_or_else(|| {
                Failure::new(Exit::Usage, format!("`{request}` is no request")).help("write `go N` to make N steps")
            })?;
            for _ in 0..count {
                let ms = 1e3 * self.make(executable)?;
                line(serde_json::json!({ "step": self.made, "ms": ms }))?;
            }
        }
        line(serde_json::json!({ "peak_resident_bytes": peak_resident_bytes() }))
    }
}

impl Report {
    fn text(&self, plan: &Plan, columns: usize) -> String {
        let step = &self.step;
        let mut lines = vec![format!(
            "{} on {}: {} parameters, {} tokens and {} steps of the plan a training step",
            self.model,
            self.device,
            grouped(self.parameters as u64),
            grouped(self.tokens_per_step as u64),
            plan.steps.len()
        )];
        if let Some(l) = &self.limits {
            lines.push(format!(
                "limits   {:.0} GFLOP/s of multiply-adds, {:.1} GB/s of memory: no step of {}FLOP below {} ms",
                l.gflops_per_s,
                l.gbytes_per_s,
                scaled(self.gflop_per_step * 1e9),
                milliseconds(l.step_ms, 1)
            ));
        }
        let over = step.over_limit.map(|x| format!(", {x:.2} times the limit")).unwrap_or_default();
        lines.push(format!(
            "step     {} ms in the median of {}, {} at best{over}; {} tokens/s",
            milliseconds(step.median_ms, 1),
            step.steps,
            milliseconds(step.best_ms, 1),
            grouped(step.tokens_per_s as u64)
        ));
        lines.push(format!("start    {:.2} s until the first step was done", self.first_step_s));
        let peak = self.memory.peak_resident_bytes.map(|n| format!(", {} resident", bytes(n))).unwrap_or_default();
        lines.push(format!("memory   {} planned{peak}", bytes(self.memory.planned_bytes as u64)));
        if self.batches > 1 {
            lines.push(format!("kernels  of the last of the {} batches of a step, which makes it", self.batches));
        }
        if self.device == Device::Wgpu.name() {
            lines.push("kernels  timed one by one, each with the wait for it: together longer than a step".to_string());
        }
        format!("{}\n\n{}", lines.join("\n"), self.profile.text(columns))
    }
}

/// The middle of some numbers, of which there is at least one.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    *values.get(values.len() / 2).invariant("something was measured")
}

/// The most memory that this process ever held.
fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}
