//! Balanced assignment of tokens to experts: the auction and the exchanges that `moec_ir::balanced_assignment` describes,
//! step for step, in 32 bits.
//!
//! The units of one cube hold an auction together: they share the bids of a round, then the lots, and in the exchanges the
//! experts that are gone to; between the two they meet. On a CPU one unit does all of it. What is put aside lies in scratch
//! memory. Where the scores are small binary fractions every number is exact, and the result is that of the reference.
//!
//! Mesa's software device leaves every loop of a unit after 65535 rounds in all, and then not all tokens have experts:
//! there, only small auctions end as they should.

#![allow(unsafe_code, reason = "kernel launches")]

use super::order::order_key;
use super::together::{self, first, meet};
use crate::launch::{Arg, Launcher, run};
use cubecl::prelude::*;

/// What a bid adds beyond the lead, in units of the largest power of two that is not above the range of the scores.
const EPSILON: f32 = 1.0 / 128.0;

/// Bids, for each place, after which the auction is given up.
const BIDS_PER_PLACE: u32 = 1024;

/// Scores count as within this distance of 0: 2^125, so that the inverse of their range is a normal number.
const LARGEST: f32 = 4.253_529_6e37;

/// A step of an exchange counts if it gains more than this.
const TOLERANCE: f32 = 1.0 / 262_144.0;

/// Exchanges, for each token, after which no further one is looked for.
const EXCHANGES_PER_TOKEN: u32 = 16;

/// Extents of an auction.
#[derive(CubeType, CubeLaunch)]
struct Extents {
    tokens: usize,
    experts: usize,
    floor: usize,
    places: usize,
    /// Tokens, and those who keep tokens from additional places.
    bidders: usize,
}

/// What is put aside. During the auction `numbers` are what is paid for each place, each lot a binary heap with the cheapest
/// first, and the offers of a round; `indices` are who holds each place, who bids in this round, for which place, and how
/// many they are. During the exchanges `numbers` are the gain of the walk to each expert, that of the round after, and those
/// of the steps, and `indices` the expert before each on its walk (-1 where a walk starts), its load, whether its walk grew,
/// whether it meets itself, and the tokens of the steps (-1 if an additional place moves).
#[derive(CubeType, CubeLaunch)]
struct Aside {
    numbers: Box<[f32]>,
    indices: Box<[i32]>,
}

/// The score of a token for an expert, from 0 on, in units of a power of two.
#[cube]
fn value_of(scores: &[f32], at: usize, lowest: f32, scale: f32) -> f32 {
    (min(max(scores[at], -LARGEST), LARGEST) - lowest) * scale
}

/// Restores the heap of an expert's places after more is paid for its root.
#[cube]
fn sift_down(aside: &mut Aside, root: usize, count: usize) {
    let mut at = 0usize.runtime();
    let mut child = 1usize.runtime();
    while child < count {
        if child + 1 < count && aside.numbers[root + child + 1] < aside.numbers[root + child] {
            child += 1;
        }
        if aside.numbers[root + child] < aside.numbers[root + at] {
            let paid = aside.numbers[root + at];
            let holder = aside.indices[root + at];
            aside.numbers[root + at] = aside.numbers[root + child];
            aside.indices[root + at] = aside.indices[root + child];
            aside.numbers[root + child] = paid;
            aside.indices[root + child] = holder;
            at = child;
            child = 2 * at + 1;
        } else {
            child = count;
        }
    }
}

/// Writes down what the bidder of a row of the round offers, and for which place.
#[cube]
fn bid(scores: &[f32], aside: &mut Aside, row: usize, lowest: f32, scale: f32, e: &Extents) {
    let bidder = aside.indices[e.places + row] as usize;
    let is_token = bidder < e.tokens;
    let common = e.experts * e.floor;
    let mut seen = 0u32.runtime();
    let mut best = 0.0f32.runtime();
    let mut second = 0.0f32.runtime();
    let mut cheapest = 0usize.runtime();
    for expert in 0..e.experts {
        let mut value = 0.0f32.runtime();
        if is_token {
            value = value_of(scores, bidder * e.experts + expert, lowest, scale);
        }
        #[unroll]
        for additional in 0..2u32 {
            let mut at = expert * e.floor;
            let mut offered = is_token && e.floor > 0;
            if comptime!(additional == 1) {
                at = common + expert;
                offered = e.places > common;
            }
            if offered {
                let gain = value - aside.numbers[at];
                if seen == 0u32 || gain > best {
                    second = best;
                    best = gain;
                    cheapest = at;
                    seen += 1u32;
                } else if seen == 1u32 || gain > second {
                    second = gain;
                    seen += 1u32;
                }
            }
        }
    }
    let lead = select(seen > 1u32, best - second, 0.0f32);
    aside.numbers[e.places + row] = aside.numbers[cheapest] + (lead + EPSILON);
    aside.indices[e.places + e.bidders + row] = i32::cast_from(cheapest);
}

/// Gives the places of a lot, which begins at `root`, to the highest bids of the round, in whose rows those who lost them
/// are written, or -1 for nobody.
#[cube]
fn take(aside: &mut Aside, root: usize, count: usize, e: &Extents) {
    for row in 0..count {
        let offer = aside.numbers[e.places + row];
        let wanted = aside.indices[e.places + e.bidders + row] as usize;
        if wanted == root && offer > aside.numbers[root] {
            aside.numbers[root] = offer;
            let former = aside.indices[root];
            aside.indices[root] = aside.indices[e.places + row];
            aside.indices[e.places + row] = former;
            if root < e.experts * e.floor {
                sift_down(aside, root, e.floor);
            }
        }
    }
}

/// Holds the auction; false if it was given up after `limit` bids.
#[cube]
fn hold(
    scores: &[f32],
    aside: &mut Aside,
    lowest: f32,
    scale: f32,
    limit: u32,
    e: &Extents,
    #[comptime] units: u32,
) -> bool {
    let (bidders, counter) = (e.places, e.places + 2 * e.bidders);
    let common = e.experts * e.floor;
    let mut lots = e.places - common;
    if e.floor > 0 {
        lots += e.experts;
    }
    for place in range_stepped(first(units), e.places, units as usize) {
        aside.numbers[place] = 0.0f32.runtime();
        aside.indices[place] = -1i32;
    }
    for bidder in range_stepped(first(units), e.bidders, units as usize) {
        aside.indices[bidders + bidder] = i32::cast_from(bidder);
    }
    meet(units);
    let mut left = limit;
    let mut given_up = false.runtime();
    let mut count = e.bidders;
    while count > 0 {
        if left < count as u32 {
            given_up = true;
            count = 0;
        } else {
            left -= count as u32;
            for row in range_stepped(first(units), count, units as usize) {
                bid(scores, aside, row, lowest, scale, e);
            }
            meet(units);
            for lot in range_stepped(first(units), lots, units as usize) {
                let mut root = common + lot % e.experts;
                if e.floor > 0 && lot < e.experts {
                    root = lot * e.floor;
                }
                take(aside, root, count, e);
            }
            meet(units);
            if first(units) == 0 {
                let mut remaining = 0usize.runtime();
                for row in 0..count {
                    let bidder = aside.indices[bidders + row];
                    if bidder >= 0 {
                        aside.indices[bidders + remaining] = bidder;
                        remaining += 1;
                    }
                }
                aside.indices[counter] = i32::cast_from(remaining);
            }
            meet(units);
            count = aside.indices[counter] as usize;
        }
    }
    !given_up
}

/// Balanced, but not near the best sum: each token in turn takes the expert that it likes best of those that may accept
/// one more. The first indices serve as loads.
#[cube]
fn in_token_order(scores: &[f32], chosen: &mut [i32], aside: &mut Aside, lowest: f32, scale: f32, e: &Extents) {
    let floor = i32::cast_from(e.floor);
    let mut additional = e.tokens - e.experts * e.floor;
    for expert in 0..e.experts {
        aside.indices[expert] = 0i32;
    }
    for token in 0..e.tokens {
        let mut best = (-1.0f32).runtime();
        let mut choice = 0usize.runtime();
        for expert in 0..e.experts {
            let load = aside.indices[expert];
            let open = load < floor || (load == floor && additional > 0);
            let value = value_of(scores, token * e.experts + expert, lowest, scale);
            if open && value > best {
                best = value;
                choice = expert;
            }
        }
        if aside.indices[choice] == floor {
            additional -= 1;
        }
        aside.indices[choice] = aside.indices[choice] + 1i32;
        chosen[token] = i32::cast_from(choice);
    }
}

/// Gives the tokens that hold places their experts.
#[cube]
fn settle(chosen: &mut [i32], aside: &Aside, e: &Extents, #[comptime] units: u32) {
    let common = e.experts * e.floor;
    for place in range_stepped(first(units), e.places, units as usize) {
        let holder = aside.indices[place];
        if holder >= 0 && (holder as usize) < e.tokens {
            let mut expert = place - min(common, place);
            if place < common {
                expert = place / e.floor;
            }
            chosen[holder as usize] = i32::cast_from(expert);
        }
    }
}

/// Finds the best step to each expert from every other.
#[cube]
fn find_steps(
    scores: &[f32],
    chosen: &[i32],
    aside: &mut Aside,
    lowest: f32,
    scale: f32,
    e: &Extents,
    #[comptime] units: u32,
) {
    let experts = e.experts;
    let (gains, tokens) = (2 * experts, 4 * experts);
    for to in range_stepped(first(units), experts, units as usize) {
        aside.numbers[to] = 0.0f32.runtime();
        aside.indices[to] = -1i32;
        for from in 0..experts {
            aside.numbers[gains + from * experts + to] = (-LARGEST).runtime();
            aside.indices[tokens + from * experts + to] = -1i32;
        }
        let mut load = 0i32.runtime();
        for token in 0..e.tokens {
            let from = chosen[token] as usize;
            if from == to {
                load += 1i32;
            } else {
                let there = value_of(scores, token * experts + to, lowest, scale);
                let gain = there - value_of(scores, token * experts + from, lowest, scale);
                let step = from * experts + to;
                if gain > aside.numbers[gains + step] {
                    aside.numbers[gains + step] = gain;
                    aside.indices[tokens + step] = i32::cast_from(token);
                }
            }
        }
        aside.indices[experts + to] = load;
    }
    meet(units);
    if e.tokens != e.floor * experts {
        let floor = i32::cast_from(e.floor);
        for to in range_stepped(first(units), experts, units as usize) {
            for from in 0..experts {
                let step = from * experts + to;
                let moves = aside.indices[experts + from] == floor && aside.indices[experts + to] > floor;
                if moves && aside.numbers[gains + step] < 0.0f32 {
                    aside.numbers[gains + step] = 0.0f32.runtime();
                    aside.indices[tokens + step] = -1i32;
                }
            }
        }
    }
}

/// Lengthens the walk to each expert by the step that gains most, and notes which grew; the gains are for the round after.
#[cube]
fn lengthen(aside: &mut Aside, experts: usize, #[comptime] units: u32) {
    for to in range_stepped(first(units), experts, units as usize) {
        let mut reached = aside.numbers[to];
        let mut grown = 0i32.runtime();
        for from in 0..experts {
            let gain = aside.numbers[from] + aside.numbers[2 * experts + from * experts + to];
            if gain > reached + TOLERANCE {
                reached = gain;
                aside.indices[to] = i32::cast_from(from);
                grown = 1i32.runtime();
            }
        }
        aside.numbers[experts + to] = reached;
        aside.indices[2 * experts + to] = grown;
    }
}

/// Whether the walk back from an expert meets it again.
#[cube]
fn is_on_a_cycle(aside: &Aside, expert: usize, experts: usize) -> bool {
    let start = i32::cast_from(expert);
    let mut at = aside.indices[expert];
    let mut steps = 0usize.runtime();
    while at >= 0 && at != start && steps < experts {
        at = aside.indices[at as usize];
        steps += 1;
    }
    at == start
}

/// Makes the first exchange of tokens along a cycle of experts that gains; false if there is none.
#[cube]
fn improve(
    scores: &[f32],
    chosen: &mut [i32],
    aside: &mut Aside,
    lowest: f32,
    scale: f32,
    e: &Extents,
    #[comptime] units: u32,
) -> bool {
    let experts = e.experts;
    find_steps(scores, &*chosen, aside, lowest, scale, e, units);
    meet(units);
    let mut start = (-1i32).runtime();
    let mut round = 0usize.runtime();
    while round <= experts && start < 0 {
        lengthen(aside, experts, units);
        meet(units);
        let mut grown = 0i32.runtime();
        for expert in 0..experts {
            grown = max(grown, aside.indices[2 * experts + expert]);
        }
        for expert in range_stepped(first(units), experts, units as usize) {
            aside.numbers[expert] = aside.numbers[experts + expert];
            aside.indices[3 * experts + expert] = i32::cast_from(is_on_a_cycle(&*aside, expert, experts));
        }
        meet(units);
        if grown > 0 {
            for expert in 0..experts {
                if start < 0 && aside.indices[3 * experts + expert] != 0i32 {
                    start = i32::cast_from(expert);
                }
            }
            round += 1;
        } else {
            round = experts + 1;
        }
    }
    if start >= 0 {
        if first(units) == 0 {
            let mut at = start;
            let mut going = true.runtime();
            while going {
                let from = aside.indices[at as usize];
                let token = aside.indices[4 * experts + from as usize * experts + at as usize];
                if token >= 0 {
                    chosen[token as usize] = at;
                }
                at = from;
                going = at != start;
            }
        }
        meet(units);
    }
    start >= 0
}

/// The assignment by the units of a cube, or by one.
#[cube]
fn assign(
    scores: &[f32],
    chosen: &mut [i32],
    aside: &mut Aside,
    limit: u32,
    exchanges_at_most: u32,
    e: &Extents,
    #[comptime] units: u32,
) {
    let each = units as usize;
    let mut refused = false.runtime();
    let mut lowest = LARGEST.runtime();
    let mut highest = (-LARGEST).runtime();
    // Every unit looks at all scores, which is little beside what follows.
    for i in 0..e.tokens * e.experts {
        refused = refused || order_key(scores[i]) == 0u32;
        let score = min(max(scores[i], -LARGEST), LARGEST);
        lowest = min(lowest, score);
        highest = max(highest, score);
    }
    for token in range_stepped(first(units), e.tokens, each) {
        chosen[token] = -1i32;
    }
    if !refused {
        // The inverse of the largest power of two that is not above the range; 0 for no range.
        let exponent = u32::reinterpret(highest - lowest) >> 23u32;
        let scale = f32::reinterpret(select(exponent == 0u32, 0u32, (254u32 - exponent) << 23u32));
        if hold(scores, aside, lowest, scale, limit, e, units) {
            settle(chosen, &*aside, e, units);
        } else if first(units) == 0 {
            in_token_order(scores, chosen, aside, lowest, scale, e);
        }
        meet(units);
        // A device that cuts long loops short can leave tokens without an expert.
        let mut assigned = 0usize.runtime();
        for token in 0..e.tokens {
            if chosen[token] >= 0 {
                assigned += 1;
            }
        }
        let mut exchanges = select(assigned == e.tokens, exchanges_at_most, 0u32);
        while exchanges > 0u32 {
            let found = improve(scores, chosen, aside, lowest, scale, e, units);
            exchanges = select(found, exchanges - 1u32, 0u32);
        }
    }
}

#[cube(launch_unchecked)]
fn auction(
    scores: &[f32],
    chosen: &mut [i32],
    aside: &mut Aside,
    e: &Extents,
    limit: u32,
    exchanges_at_most: u32,
    #[comptime] units: u32,
) {
    if comptime!(units > 1) {
        assign(scores, chosen, aside, limit, exchanges_at_most, e, units);
    } else if ABSOLUTE_POS == 0 {
        assign(scores, chosen, aside, limit, exchanges_at_most, e, units);
    }
}

/// One expert per token from `scores [tokens, experts]`, or -1 for all if a score is NaN.
pub(crate) fn launch(l: &Launcher, scores: Arg, chosen: Arg, tokens: usize, experts: usize) {
    let floor = tokens / experts;
    let additional = if tokens == experts * floor { 0 } else { experts };
    let places = experts * floor + additional;
    let bidders = if floor == 0 { tokens } else { places };
    let at_most = |each: u32, of: usize| of.saturating_mul(each as usize).min(u32::MAX as usize) as u32;
    let (limit, exchanges) = (at_most(BIDS_PER_PLACE, places), at_most(EXCHANGES_PER_TOKEN, tokens));
    let units = together::units(l);
    let [numbers, indices] = l.scratch().halves();
    l.launch(
        1,
        || format!("balanced_assignment by {units}"),
        // SAFETY: `LaunchLimits` allow only as many tokens and experts as half of the scratch memory has room for (see
        // `Aside`); bidders and places are below their extents, walks hold experts and steps tokens or -1, and only tokens
        // index `chosen`, all of which have an expert when exchanges begin. There is one cube, and what its units decide
        // before a barrier follows from numbers that are the same for all of them, so that all reach every barrier.
        |t| unsafe {
            let (scores, chosen) = (t.bind(scores, 1), t.bind(chosen, 1));
            let aside = AsideLaunch::new(t.bind(numbers, 1), t.bind(indices, 1));
            let extents = ExtentsLaunch::new(tokens, experts, floor, places, bidders);
            run!(t, auction(scores, chosen, aside, extents, limit, exchanges, units));
        },
    );
}
