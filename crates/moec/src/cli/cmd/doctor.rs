//! `moec doctor`: what there is on this machine, and whether each device computes what it should.

use crate::cli::args::DoctorArgs;
use crate::cli::console::Console;
use crate::cli::devices::Devices;
use crate::cli::exit::{Exit, Failure};
use crate::cli::folders;
use crate::cli::units::grouped;
use crate::units::bytes;
use crate::{CompileOptions, Corpus, Dataset, Device, Function, KernelCache, Session, Spec, train_config};
use moec_plan::{Backend, Interpreter};
use moec_runtime::{train_loss, train_step};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// A small model with every kind of kernel that a mixture of experts needs.
const MODEL: &str = "
model patient {
  context 8
  vocab   characters
  embed(width: 16, positions: learned)
  residual { layer_norm  attention(heads: 2) }
  residual { layer_norm  moe(experts: 4 * mlp(hidden: 32), route: softmax_top_k(k: 2), balance: [switch]) }
  layer_norm
  unembed
}
train { batch 4  optimizer adamw(lr: 1e-2)  clip 1.0 }
";

/// Steps that a device is trained for.
const STEPS: u64 = 3;

/// How far its loss may be from that of the reference, relatively.
const TOLERANCE: f64 = 1e-4;

#[derive(Serialize)]
struct Report {
    schema: &'static str,
    version: &'static str,
    processor: Processor,
    /// Bytes of memory that a model could get; `None` where the system does not say.
    available_memory_bytes: Option<u64>,
    kernels: Option<Kernels>,
    data: Option<PathBuf>,
    devices: Vec<Finding>,
}

#[derive(Serialize)]
struct Processor {
    name: String,
    threads: usize,
    /// Floats of a vector register.
    lanes: usize,
}

#[derive(Serialize)]
struct Kernels {
    folder: PathBuf,
    entries: u64,
    bytes: u64,
    limit_bytes: u64,
}

/// What was found out about a device.
#[derive(Serialize)]
struct Finding {
    device: &'static str,
    #[serde(flatten)]
    state: State,
}

#[derive(Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum State {
    /// It computes what the reference does.
    Sound {
        /// From opening it to the last step.
        seconds: f64,
    },
    /// It computes something else.
    Wrong { loss: f64, expected: f64 },
    /// It is not there, or does not work.
    Missing { reason: String, advice: &'static str },
}

/// Runs the command.
///
/// # Errors
/// When the reference itself fails, or standard output is gone.
pub(crate) fn run(args: &DoctorArgs, devices: Devices, console: &Console) -> Result<Exit, Failure> {
    let spec = Spec::parse("patient.moe", MODEL)?;
    let data = spec.dataset(&Corpus::synthetic(1))?;
    let reference = Interpreter;
    let expected = trained(&reference, Device::Interpreter, &spec, &data)?;
    let findings = Device::ALL
        .map(|device| Finding { device: device.name(), state: examine(device, devices, &spec, &data, expected) });
    let sound = findings.iter().all(|finding| match finding.state {
        State::Sound { .. } => true,
        State::Missing { .. } => finding.device == Device::Wgpu.name(),
        State::Wrong { .. } => false,
    });
    let report = Report {
        schema: "moec.doctor/1",
        version: env!("CARGO_PKG_VERSION"),
        processor: processor(),
        available_memory_bytes: moec_kernels::available_memory(),
        kernels: kernels(),
        data: folders::data().ok(),
        devices: findings.into(),
    };
    if args.json {
        let value = serde_json::to_value(&report).map_err(|e| Failure::new(Exit::Fault, e.to_string()))?;
        console.json(&value)?;
    } else {
        print(&report, console)?;
    }
    Ok(if sound { Exit::Success } else { Exit::Device })
}

fn examine(device: Device, devices: Devices, spec: &Spec, data: &Dataset, expected: f64) -> State {
    let begun = Instant::now();
    let result = devices.open(device).and_then(|backend| trained(&*backend, device, spec, data));
    match result {
        Ok(loss) if ((loss - expected) / expected).abs() <= TOLERANCE => {
            State::Sound { seconds: begun.elapsed().as_secs_f64() }
        }
        Ok(loss) => State::Wrong { loss, expected },
        Err(failure) => State::Missing { reason: failure.to_string(), advice: advice(device) },
    }
}

/// The loss after a few steps.
fn trained(backend: &dyn Backend, device: Device, spec: &Spec, data: &Dataset) -> Result<f64, Failure> {
    let compiled = spec.compile(data.vocab(), device, &CompileOptions::only([Function::TrainStep]))?;
    let config = train_config(&spec.checked.recipe);
    let mut session = Session::on(backend, spec, &compiled)?;
    session.initialise(data, config.seed)?;
    let mut executable = session.executable()?;
    for step in 0..STEPS {
        train_step(&mut executable, data, &config, step)?;
    }
    Ok(train_loss(&mut executable)?)
}

/// What to do where a device is missing.
fn advice(device: Device) -> &'static str {
    match device {
        Device::Wgpu => {
            "it needs a driver for Vulkan, Metal or Direct3D 12; on Linux `vulkaninfo` shows what is there, and \
             mesa-vulkan-drivers brings a software device"
        }
        Device::Cpu | Device::Interpreter => "please report it with this output",
    }
}

fn processor() -> Processor {
    let known = std::fs::read_to_string("/proc/cpuinfo").ok();
    let line = known.as_deref().and_then(|text| text.lines().find(|line| line.starts_with("model name")));
    let name = line.and_then(|line| line.split_once(':')).map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    Processor {
        name: name.to_owned(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        lanes: moec_kernels::Device::Cpu.profile().lanes(),
    }
}

fn kernels() -> Option<Kernels> {
    let folder = folders::kernels()?;
    let usage = KernelCache::usage(&folder).ok()?;
    Some(Kernels { folder, entries: usage.entries, bytes: usage.bytes, limit_bytes: KernelCache::LIMIT })
}

fn print(report: &Report, console: &Console) -> Result<(), Failure> {
    let line = |name: &str, text: String| console.out(format!("{name:<12} {text}"));
    line("moec", format!("{} for {} on {}", report.version, std::env::consts::ARCH, std::env::consts::OS))?;
    let Processor { name, threads, lanes } = &report.processor;
    line("processor", format!("{name}, {threads} threads, vectors of {lanes} floats"))?;
    let memory =
        report.available_memory_bytes.map_or("not said by the system".to_owned(), |n| format!("{} free", bytes(n)));
    line("memory", memory)?;
    line("compiler", "LLVM, part of this program".to_owned())?;
    line(
        "kernels",
        match &report.kernels {
            Some(k) => format!(
                "{} compiled, {} of {} in {}",
                grouped(k.entries),
                bytes(k.bytes),
                bytes(k.limit_bytes),
                k.folder.display()
            ),
            None => "not kept between commands (MOEC_CACHE is `off`, or there is no home folder)".to_owned(),
        },
    )?;
    line("data", report.data.as_ref().map_or("no folder".to_owned(), |folder| folder.display().to_string()))?;
    for Finding { device, state } in &report.devices {
        line(
            device,
            match state {
                State::Sound { seconds } => format!("sound: {STEPS} steps agree with the reference ({seconds:.2} s)"),
                State::Wrong { loss, expected } => {
                    format!(
                        "WRONG: a loss of {loss:.6} where the reference has {expected:.6}\n{:<13}please report it with this output",
                        ""
                    )
                }
                State::Missing { reason, advice } => format!("missing: {reason}\n{:<13}{advice}", ""),
            },
        )?;
    }
    Ok(())
}
