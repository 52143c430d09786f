//! Trains and samples a prepared plan: data, loop, metrics, checkpoints.
