//! Comparing tensors: differences are measured against the largest element of the expected tensor.

use moec_ir::Tensor;

/// Largest absolute difference divided by the largest absolute expected element (or by 1 if that is smaller than
/// `floor`, so that tensors of zeros can be compared).
pub fn relative_error(found: &[f64], expected: &[f64], floor: f64) -> f64 {
    assert_eq!(found.len(), expected.len(), "numbers of elements differ");
    let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let scale = if largest > floor { largest } else { 1.0 };
    let mut worst = 0.0f64;
    for (f, e) in found.iter().zip(expected) {
        if f.is_nan() != e.is_nan() {
            return f64::INFINITY;
        }
        if f.is_infinite() || e.is_infinite() {
            if f != e {
                return f64::INFINITY;
            }
            continue;
        }
        worst = worst.max((f - e).abs() / scale);
    }
    worst
}

/// Asserts that two tensors agree: integers exactly, floats within `tolerance` of the largest element.
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.shape(), expected.shape(), "{what}: shapes differ");
    if let (Some(f), Some(e)) = (found.as_i32(), expected.as_i32()) {
        assert_eq!(f, e, "{what}: integers differ");
        return;
    }
    let error = relative_error(&found.to_f64(), &expected.to_f64(), 1e-6);
    assert!(error <= tolerance, "{what}: relative error {error:.3e} exceeds {tolerance:.1e}");
}
