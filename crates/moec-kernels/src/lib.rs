//! CubeCL kernels and the backend that launches a plan with them.
