//! Meaning: names, shapes and router arguments checked; the model lowered to a forward graph.
