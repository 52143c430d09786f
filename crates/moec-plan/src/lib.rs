//! Forward graph to executable plan: differentiate, optimise, schedule, place memory.
