//! Initial values of persistent tensors.

use crate::executable::{Executable, ExecutableError};
use crate::streams::Purpose;
use moec_ir::{DType, Data, Init, Invariant, Tensor, TensorType};
use moec_plan::{StateDecl, on_threads};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The first values of all persistent tensors of a model: parameters drawn from `parameters` (name and initialiser),
/// states of routers from `states`, everything else (moments of the optimiser) zero.
///
/// Element `i` of a parameter depends on (seed, name, i) only: adding a layer does not change the others.
pub fn initial_tensors(
    seed: u64,
    declared: &[StateDecl],
    parameters: &[(String, Init)],
    states: &[(String, Tensor)],
) -> BTreeMap<String, Tensor> {
    let tensors = on_threads(declared, |state| initial(seed, state, parameters, states));
    declared.iter().map(|state| state.name.clone()).zip(tensors).collect()
}

fn initial(seed: u64, state: &StateDecl, parameters: &[(String, Init)], states: &[(String, Tensor)]) -> Tensor {
    // An average begins as its parameter does.
    let parameter = state.averaged().unwrap_or(&state.name);
    match (parameters.iter().find(|(name, _)| name == parameter), states.iter().find(|(name, _)| *name == state.name)) {
        (Some((_, init)), _) => draw(seed, parameter, *init, &state.ty),
        (None, Some((_, initial))) => initial.clone(),
        (None, None) => zeros(&state.ty),
    }
}

/// Tensors that are drawn together, on all cores: more take more memory.
const DRAWN_TOGETHER: usize = 16;

/// Writes [`initial_tensors`] to the device.
///
/// # Errors
/// When a type differs from the program's or the device fails.
pub fn initialise(
    executable: &mut Executable<'_>,
    seed: u64,
    parameters: &[(String, Init)],
    states: &[(String, Tensor)],
) -> Result<(), ExecutableError> {
    for declared in executable.program().states.chunks(DRAWN_TOGETHER) {
        executable.write_states(&initial_tensors(seed, declared, parameters, states))?;
    }
    Ok(())
}

fn draw(seed: u64, name: &str, init: Init, ty: &TensorType) -> Tensor {
    let digest = Sha256::digest(name.as_bytes());
    let index = digest.iter().take(8).fold(0u64, |index, &byte| index << 8 | u64::from(byte));
    let stream = Purpose::Initial.stream(seed, index);
    let elements = 0..ty.elements() as u32;
    let values: Vec<f32> = match init {
        Init::Constant(value) => vec![value.get() as f32; ty.elements()],
        Init::Normal { std } => elements.map(|i| (std.get() * stream.normal(i)) as f32).collect(),
        Init::Uniform { bound } => elements.map(|i| (bound.get() * (2.0 * stream.uniform(i) - 1.0)) as f32).collect(),
        Init::Orthogonal { gain } => {
            let columns = ty.shape.last().copied().unwrap_or(1).max(1);
            let drawn = elements.map(|i| stream.normal(i)).collect();
            orthogonal(drawn, columns).into_iter().map(|x| (gain.get() * x) as f32).collect()
        }
    };
    Tensor::new(ty.shape.clone(), Data::F32(values)).invariant("there is a value for each element")
}

/// Unit vectors from a matrix of `columns` columns by the Gram-Schmidt process: the rows, or the columns if there are
/// more rows.
fn orthogonal(mut values: Vec<f64>, columns: usize) -> Vec<f64> {
    let rows = values.len() / columns;
    // Vector v, element i of the matrix.
    let (count, length) = (rows.min(columns), rows.max(columns));
    let at = |v: usize, i: usize| if rows <= columns { v * columns + i } else { i * columns + v };
    for v in 0..count {
        // Twice, because what one pass leaves behind is of the size of its rounding errors.
        for _ in 0..2 {
            for u in 0..v {
                let overlap: f64 = (0..length).map(|i| values[at(v, i)] * values[at(u, i)]).sum();
                (0..length).for_each(|i| values[at(v, i)] -= overlap * values[at(u, i)]);
            }
        }
        let norm = (0..length).map(|i| values[at(v, i)].powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        (0..length).for_each(|i| values[at(v, i)] /= norm);
    }
    values
}

/// Zeros as a device holds them.
pub(crate) fn zeros(ty: &TensorType) -> Tensor {
    let data = match ty.dtype {
        DType::F32 => Data::F32(vec![0.0; ty.elements()]),
        DType::I32 => Data::I32(vec![0; ty.elements()]),
    };
    Tensor::new(ty.shape.clone(), data).invariant("there is a value for each element")
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::StateRole;
    use moec_plan::StateKind;

    fn declare(name: &str, ty: TensorType, kind: StateKind) -> StateDecl {
        StateDecl { name: name.into(), ty, kind }
    }

    #[test]
    fn distributions_have_their_moments() {
        let ty = TensorType::f32([100, 333]);
        let normal = draw(1, "w", Init::Normal { std: 0.02.into() }, &ty).to_f64();
        let mean = normal.iter().sum::<f64>() / normal.len() as f64;
        let variance = normal.iter().map(|x| x * x).sum::<f64>() / normal.len() as f64;
        assert!(mean.abs() < 5e-4 && (variance.sqrt() / 0.02 - 1.0).abs() < 0.02, "{mean} {variance}");
        let uniform = draw(1, "w", Init::Uniform { bound: 0.5.into() }, &ty).to_f64();
        assert!(uniform.iter().all(|x| (-0.5..0.5).contains(x)));
        let variance = uniform.iter().map(|x| x * x).sum::<f64>() / uniform.len() as f64;
        assert!((variance * 12.0 - 1.0).abs() < 0.02, "{variance}");
        assert!(draw(1, "w", Init::Constant(1.0.into()), &ty).to_f64().iter().all(|&x| x == 1.0));
    }

    #[test]
    fn orthogonal_matrices_have_orthogonal_vectors() {
        for (rows, columns) in [(1, 1), (3, 7), (7, 3), (8, 8)] {
            let ty = TensorType::f32([rows, columns]);
            let m = draw(3, "w", Init::Orthogonal { gain: 0.1.into() }, &ty).to_f64();
            let vector = |v: usize| -> Vec<f64> {
                if rows <= columns {
                    m[v * columns..(v + 1) * columns].to_vec()
                } else {
                    (0..rows).map(|i| m[i * columns + v]).collect()
                }
            };
            for v in 0..rows.min(columns) {
                for u in 0..=v {
                    let product: f64 = vector(v).iter().zip(vector(u)).map(|(a, b)| a * b).sum();
                    let expected = if u == v { 0.01 } else { 0.0 };
                    assert!((product - expected).abs() < 1e-8, "{rows}x{columns}: {product}");
                }
            }
        }
    }

    #[test]
    fn values_depend_on_seed_and_name_only() {
        let init = Init::Normal { std: 1.0.into() };
        let (short, long) = (TensorType::f32([3]), TensorType::f32([17]));
        let a = draw(5, "blocks.0.w", init, &short).to_f64();
        assert_eq!(a, draw(5, "blocks.0.w", init, &long).to_f64()[..3]);
        assert_ne!(a, draw(5, "blocks.1.w", init, &short).to_f64());
        assert_ne!(a, draw(6, "blocks.0.w", init, &short).to_f64());
    }

    #[test]
    fn every_declared_tensor_gets_a_value() {
        let declared = [
            declare("w", TensorType::f32([2, 3]), StateKind::Parameter),
            declare("adamw.m.w", TensorType::f32([2, 3]), StateKind::State(StateRole::Optimizer)),
            declare("table", TensorType::i32([2]), StateKind::State(StateRole::Router)),
        ];
        let tensors = initial_tensors(
            0,
            &declared,
            &[("w".into(), Init::Constant(2.0.into())), ("unused".into(), Init::Constant(9.0.into()))],
            &[("table".into(), Tensor::ints([7, 8]))],
        );
        assert_eq!(tensors.len(), 3);
        assert_eq!(tensors["w"].data(), &Data::F32(vec![2.0; 6]));
        assert_eq!(tensors["adamw.m.w"].data(), &Data::F32(vec![0.0; 6]));
        assert_eq!(tensors["table"].as_i32(), Some([7, 8].as_slice()));
    }
}
