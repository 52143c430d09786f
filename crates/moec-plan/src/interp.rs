//! The reference backend: runs plans with the reference evaluator, in memory laid out as the plan says.
//!
//! It is slow, but it obeys every buffer: one arena of cells, results written where they belong, nothing kept beside.
//! A step that reads a place which no step of this run has written is an error, so a wrong memory plan does not pass
//! for a right one.

use crate::backend::{Backend, BackendError, Session};
use crate::plan::{Buffer, Plan, Program, Step, Storage};
use moec_ir::{DType, Data, EvalError, Graph, Invariant, Tensor, Value, evaluate_op};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Name of the device.
const NAME: &str = "interpreter";

/// The most cells of 8 bytes that are allocated: this device is for tests and small models.
const MAX_CELLS: usize = 1 << 28;

/// Runs programs on the reference evaluator in 64-bit floats.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interpreter;

/// One element, whatever its type; a device has 4 bytes in its place.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cell {
    /// Nothing was written here in this run.
    Empty,
    Float(f64),
    Int(i32),
}

struct InterpreterSession {
    program: Program,
    states: Vec<Vec<Cell>>,
    arena: Vec<Cell>,
    /// The plan whose outputs are in the arena.
    last: Option<usize>,
}

fn interface(message: impl Into<String>) -> BackendError {
    BackendError::Interface(message.into())
}

fn failed(reason: impl Into<String>) -> BackendError {
    BackendError::Device { device: NAME.into(), reason: reason.into() }
}

impl Backend for Interpreter {
    fn name(&self) -> &str {
        NAME
    }

    fn memory_limit(&self) -> Option<u64> {
        Some((MAX_CELLS * DType::F32.bytes()) as u64)
    }

    fn prepare(&self, program: &Program) -> Result<Box<dyn Session>, BackendError> {
        let bytes = program.state_bytes().saturating_add(program.arena_bytes());
        let available = MAX_CELLS * DType::F32.bytes();
        if bytes > available {
            return Err(BackendError::OutOfMemory {
                device: NAME.into(),
                needed: bytes as u64,
                available: available as u64,
            });
        }
        let zero = |dtype| match dtype {
            DType::F32 => Cell::Float(0.0),
            DType::I32 => Cell::Int(0),
        };
        Ok(Box::new(InterpreterSession {
            states: program.states.iter().map(|s| vec![zero(s.ty.dtype); s.ty.elements()]).collect(),
            arena: vec![Cell::Empty; program.arena_bytes().div_ceil(DType::F32.bytes())],
            program: program.clone(),
            last: None,
        }))
    }
}

fn to_cells(tensor: &Tensor) -> Vec<Cell> {
    match tensor.data() {
        Data::F32(v) => v.iter().map(|&x| Cell::Float(f64::from(x))).collect(),
        Data::F64(v) => v.iter().map(|&x| Cell::Float(x)).collect(),
        Data::I32(v) => v.iter().map(|&x| Cell::Int(x)).collect(),
    }
}

fn to_tensor(cells: &[Cell], shape: &[usize], dtype: DType) -> Option<Tensor> {
    let data = match dtype {
        DType::F32 => Data::F64(
            cells.iter().map(|c| if let Cell::Float(x) = c { Some(*x) } else { None }).collect::<Option<_>>()?,
        ),
        DType::I32 => {
            Data::I32(cells.iter().map(|c| if let Cell::Int(x) = c { Some(*x) } else { None }).collect::<Option<_>>()?)
        }
    };
    Tensor::new(shape.to_vec(), data)
}

impl InterpreterSession {
    fn state_index(&self, name: &str) -> Result<usize, BackendError> {
        let found = self.program.states.iter().position(|s| s.name == name);
        found.ok_or_else(|| interface(format!("there is no persistent tensor `{name}`")))
    }

    fn plan_index(&self, name: &str) -> Result<usize, BackendError> {
        let found = self.program.plans.iter().position(|p| p.name == name);
        found.ok_or_else(|| interface(format!("there is no function `{name}`")))
    }

    fn cells(&mut self, buffer: &Buffer) -> Result<&mut [Cell], BackendError> {
        let n = buffer.ty.elements();
        let (place, start) = match buffer.storage {
            Storage::State(s) => (self.states.get_mut(s), 0),
            Storage::Arena(offset) => (Some(&mut self.arena), offset / DType::F32.bytes()),
        };
        let end = start.saturating_add(n);
        place
            .and_then(|cells| cells.get_mut(start..end))
            .ok_or_else(|| failed(format!("buffer %{} is outside of its storage", buffer.name)))
    }

    fn read(&mut self, buffer: &Buffer) -> Result<Tensor, BackendError> {
        let cells = self.cells(buffer)?;
        to_tensor(cells, &buffer.ty.shape, buffer.ty.dtype)
            .ok_or_else(|| failed(format!("buffer %{} is read, but does not hold {}", buffer.name, buffer.ty)))
    }

    fn write(&mut self, buffer: &Buffer, value: &Tensor) -> Result<(), BackendError> {
        if value.ty() != buffer.ty {
            return Err(failed(format!("%{} is {}, not {}", buffer.name, buffer.ty, value.ty())));
        }
        self.cells(buffer)?.copy_from_slice(&to_cells(value));
        Ok(())
    }

    fn steps(&mut self, plan: &Plan) -> Result<Vec<Duration>, BackendError> {
        let mut times = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            let begun = Instant::now();
            let at = |e: BackendError| failed(format!("%{}: {e}", step.name));
            let operands =
                step.operands.iter().map(|&b| self.read(plan.buffer(b))).collect::<Result<Vec<_>, _>>().map_err(at)?;
            let results = compute(&plan.graph, step, operands).map_err(|e| failed(format!("%{}: {e}", step.name)))?;
            for (&b, value) in step.results.iter().zip(&results) {
                self.write(plan.buffer(b), value).map_err(at)?;
            }
            times.push(begun.elapsed());
        }
        Ok(times)
    }
}

/// Evaluates the nodes of a step, one after the other.
fn compute(graph: &Graph, step: &Step, operands: Vec<Tensor>) -> Result<Vec<Tensor>, EvalError> {
    let cluster = &step.cluster;
    let mut values: BTreeMap<Value, Tensor> = cluster.operands.iter().copied().zip(operands).collect();
    let known = "a cluster computes or reads what its nodes read";
    for &id in &cluster.nodes {
        let operands: Vec<&Tensor> = graph.operands(id).iter().map(|v| values.get(v).invariant(known)).collect();
        let results = evaluate_op(&graph.node(id).op, &operands)?;
        values.extend((0..).map(|slot| graph.value(id).result(slot)).zip(results));
    }
    Ok(cluster.results.iter().map(|v| values.get(v).invariant("a cluster computes its results").clone()).collect())
}

impl Session for InterpreterSession {
    fn write_state(&mut self, name: &str, value: &Tensor) -> Result<(), BackendError> {
        let index = self.state_index(name)?;
        let ty = &self.program.states[index].ty;
        if value.ty() != *ty {
            return Err(interface(format!("`{name}` is {ty}, but the value given is {}", value.ty())));
        }
        self.states[index] = to_cells(value);
        Ok(())
    }

    fn read_state(&mut self, name: &str) -> Result<Tensor, BackendError> {
        let index = self.state_index(name)?;
        let ty = &self.program.states[index].ty;
        to_tensor(&self.states[index], &ty.shape, ty.dtype)
            .ok_or_else(|| failed(format!("`{name}` does not hold {ty}")))
    }

    fn run(&mut self, plan: &str, inputs: &[(&str, &Tensor)]) -> Result<(), BackendError> {
        self.run_timed(plan, inputs).map(drop)
    }

    fn run_timed(&mut self, plan: &str, inputs: &[(&str, &Tensor)]) -> Result<Vec<Duration>, BackendError> {
        let index = self.plan_index(plan)?;
        let plan = self.program.plans[index].clone();
        for (name, _) in inputs {
            if !plan.inputs.iter().any(|p| p.name == *name) {
                return Err(interface(format!("`{}` has no input `{name}`", plan.name)));
            }
        }
        self.last = None;
        self.arena.fill(Cell::Empty);
        for port in &plan.inputs {
            let buffer = plan.buffer(port.buffer);
            let (_, value) = inputs
                .iter()
                .find(|(name, _)| *name == port.name)
                .ok_or_else(|| interface(format!("input `{}` of `{}` is not given", port.name, plan.name)))?;
            if value.ty() != buffer.ty {
                let (name, found) = (&port.name, value.ty());
                return Err(interface(format!("input `{name}` is {}, but the value given is {found}", buffer.ty)));
            }
            self.write(buffer, value)?;
        }
        let times = self.steps(&plan)?;
        self.last = Some(index);
        Ok(times)
    }

    fn output(&mut self, plan: &str, name: &str) -> Result<Tensor, BackendError> {
        let index = self.plan_index(plan)?;
        if self.last != Some(index) {
            return Err(interface(format!("`{plan}` is not what ran last")));
        }
        let plan = &self.program.plans[index];
        let port = plan.outputs.iter().find(|p| p.name == name);
        let port = port.ok_or_else(|| interface(format!("`{}` has no output `{name}`", plan.name)))?;
        let buffer = plan.buffer(port.buffer).clone();
        self.read(&buffer)
    }
}
