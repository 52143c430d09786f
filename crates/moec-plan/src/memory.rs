//! Where every region of the arena goes, and when it is alive.

use crate::plan::ALIGNMENT;
use crate::schedule::{RegionKind, Tasks};

/// First and last step at which a region is alive, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) first: usize,
    pub(crate) last: usize,
}

impl Life {
    fn meets(self, other: Life) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// When each region is alive under an order of the tasks; `None` for persistent tensors.
///
/// Inputs and outputs are alive throughout: the caller writes and reads them at any time between two runs.
pub(crate) fn lives(tasks: &Tasks, order: &[usize]) -> Vec<Option<Life>> {
    let end = order.len().saturating_sub(1);
    let mut lives: Vec<Option<Life>> = tasks
        .regions
        .iter()
        .map(|r| match r.kind {
            RegionKind::Input | RegionKind::Output => Some(Life { first: 0, last: end }),
            RegionKind::State(_) | RegionKind::Temporary => None,
        })
        .collect();
    for (step, &i) in order.iter().enumerate() {
        for b in tasks.tasks[i].operands.iter().chain(&tasks.tasks[i].results) {
            let region = tasks.drafts[b.index()].region;
            if tasks.regions[region].kind == RegionKind::Temporary {
                lives[region].get_or_insert(Life { first: step, last: step }).last = step;
            }
        }
    }
    lives
}

/// Rounds up to a multiple of [`ALIGNMENT`], saturating at the largest one.
fn aligned(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX / ALIGNMENT * ALIGNMENT)
}

/// Offset of each region in the arena (0 for those that have none), and the size of the arena.
///
/// Large regions are placed first, each into the smallest gap that it fits among the regions that are alive at the same
/// time (best fit). Ties go to the region with the lower number and the gap at the lower offset, so that equal graphs
/// give equal plans.
pub(crate) fn place(tasks: &Tasks, lives: &[Option<Life>]) -> (Vec<usize>, usize) {
    let size = |r: usize| aligned(tasks.regions[r].bytes);
    let mut largest_first: Vec<(usize, Life)> =
        lives.iter().enumerate().filter_map(|(r, l)| Some((r, (*l)?))).collect();
    largest_first.sort_by_key(|&(r, _)| (std::cmp::Reverse(size(r)), r));

    let mut offsets = vec![0usize; tasks.regions.len()];
    let mut arena = 0usize;
    // Sorted by offset.
    let mut placed: Vec<(usize, usize, Life)> = Vec::new();
    for (region, life) in largest_first {
        let need = size(region);
        if need == 0 {
            continue;
        }
        let (mut best, mut best_gap) = (None, usize::MAX);
        let mut top = 0usize;
        for &(offset, end, _) in placed.iter().filter(|p| p.2.meets(life)) {
            let gap = offset.saturating_sub(top);
            if gap >= need && gap < best_gap {
                (best, best_gap) = (Some(top), gap);
            }
            top = top.max(end);
        }
        let offset = best.unwrap_or(top);
        let end = offset.saturating_add(need);
        offsets[region] = offset;
        arena = arena.max(end);
        let position = placed.partition_point(|p| p.0 <= offset);
        placed.insert(position, (offset, end, life));
    }
    (offsets, arena)
}
