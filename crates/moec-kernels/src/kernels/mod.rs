//! The kernels, one file per family. A file's head says what each kernel computes, how memory is laid out, and which
//! unit owns which output element: no kernel uses atomics, so results do not depend on the number of units.

pub(crate) mod fill;
