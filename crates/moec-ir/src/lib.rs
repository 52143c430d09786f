//! The graph language: types, operations, petgraph storage, text form, verifier, reference evaluator.
