//! Work that is done by the units of one cube together, which meet between its parts, because it is too little, or too
//! much of it waits for what comes before, to be shared by more. On a CPU one unit does all of it.

use crate::launch::{GPU_CUBE, Launcher};
use cubecl::prelude::*;

/// How many units work together.
pub(super) fn units(l: &Launcher) -> u32 {
    if l.is_cpu() { 1 } else { GPU_CUBE }
}

/// First item of this unit; `units` on is its next.
#[cube]
pub(super) fn first(#[comptime] units: u32) -> usize {
    if comptime!(units == 1) { 0usize.runtime() } else { UNIT_POS as usize }
}

/// Waits until all units are here, and see what the others wrote.
#[cube]
pub(super) fn meet(#[comptime] units: u32) {
    if comptime!(units > 1) {
        sync_storage();
    }
}
