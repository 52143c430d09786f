//! What the kernels of a device can do at most, as far as it decides which nodes are computed together.

use crate::kernel::{Body, Kernel};
use moec_ir::{Op, TensorType};

/// Limits of a launch. The kernels of a device know their own; [`LaunchLimits::default`] suits every device of moec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchLimits {
    /// Most buffers of a launch, those that the runtime adds included.
    pub bindings: usize,
    /// Numbers of 4 bytes that a launch can put aside while it runs.
    pub scratch: usize,
    /// Numbers in the widest vectors in which kernels read tensors.
    pub vector: usize,
    /// Columns of the panels in which products read weights that were packed ([`moec_ir::WeightFormat`]); `None` if they
    /// have to be unpacked before.
    pub panel: Option<usize>,
}

/// Buffers that CubeCL and wgpu add to those of a kernel.
const ADDED_BINDINGS: usize = 2;

impl Default for LaunchLimits {
    /// The 31 buffers of Metal, which has the fewest; 4 MiB put aside; vectors of 16; nothing packed.
    fn default() -> Self {
        Self { bindings: 31, scratch: 1 << 20, vector: 16, panel: None }
    }
}

impl LaunchLimits {
    /// Most buffers that a kernel reads and writes.
    pub(crate) fn buffers(&self) -> usize {
        self.bindings.saturating_sub(ADDED_BINDINGS)
    }

    /// Most tensors that one launch updates: four buffers each, the learning rate, and the scale of the gradients.
    pub fn grouped_updates(&self) -> usize {
        (self.buffers().saturating_sub(2) / 4).max(1)
    }

    /// Whether the kernels can compute this from operands of these types; says what is too large if not.
    ///
    /// # Errors
    /// Where something would not fit into what a launch can put aside.
    pub fn check(&self, kernel: &Kernel, operands: &[&TensorType]) -> Result<(), String> {
        let shape = |i: usize| operands.get(i).map_or(&[][..], |ty| ty.shape.as_slice());
        match (&kernel.body, shape(0)) {
            // A number of each token is kept in half of the scratch memory.
            (Body::CrossEntropyWithGradient { .. }, &[tokens, _]) if tokens > self.scratch / 2 => {
                Err(format!("{tokens} tokens are more than {}", self.scratch / 2))
            }
            // Two halves, in one of which lie three indices of every place or bidder, or one of any two experts and four of
            // each.
            (Body::Op(Op::BalancedAssignment), &[tokens, experts]) => {
                let auction = tokens.saturating_add(experts).saturating_mul(3).saturating_add(1);
                let exchanges = experts.saturating_add(4).saturating_mul(experts);
                let (needed, most) = (auction.max(exchanges), self.scratch / 2);
                match needed > most {
                    true => Err(format!(
                        "for {tokens} tokens and {experts} experts {needed} numbers are put aside, which are more than {most}"
                    )),
                    false => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}
