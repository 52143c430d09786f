//! Balanced assignment of tokens to experts: the auction and the exchanges that `moec_ir::balanced_assignment` describes,
//! step for step, in 32 bits.
//!
//! One unit holds the whole auction, since each bid depends on the one before. Prices and holders of the places stand in
//! scratch memory: first the `floor` places of each expert, a binary heap with the cheapest first, then one additional
//! place per expert if there are any. Where the scores are small binary fractions every number is exact, and the result
//! is that of the reference.
//!
//! Mesa's software device leaves every loop of a unit after 65535 rounds in all, and then not all tokens have experts:
//! there, only small auctions end as they should.

#![allow(unsafe_code, reason = "kernel launches")]

use super::order::order_key;
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
}

/// The score of a token for an expert, from 0 on, in units of a power of two.
#[cube]
fn value_of(scores: &[f32], at: usize, lowest: f32, scale: f32) -> f32 {
    (min(max(scores[at], -LARGEST), LARGEST) - lowest) * scale
}

/// Restores the heap of an expert's places after the price of its root rose.
#[cube]
fn sift_down(prices: &mut [f32], holders: &mut [i32], root: usize, count: usize) {
    let mut at = 0usize.runtime();
    let mut child = 1usize.runtime();
    while child < count {
        if child + 1 < count && prices[root + child + 1] < prices[root + child] {
            child += 1;
        }
        if prices[root + child] < prices[root + at] {
            let price = prices[root + at];
            let holder = holders[root + at];
            prices[root + at] = prices[root + child];
            holders[root + at] = holders[root + child];
            prices[root + child] = price;
            holders[root + child] = holder;
            at = child;
            child = 2 * at + 1;
        } else {
            child = count;
        }
    }
}

/// One bid of `bidder`. Returns who lost the place, or -1.
#[cube]
fn bid(
    scores: &[f32],
    prices: &mut [f32],
    holders: &mut [i32],
    bidder: usize,
    lowest: f32,
    scale: f32,
    e: &Extents,
) -> i32 {
    let is_token = bidder < e.tokens;
    let common = e.experts * e.floor;
    let mut seen = 0u32.runtime();
    let mut best = 0.0f32.runtime();
    let mut second = 0.0f32.runtime();
    let mut place = 0usize.runtime();
    for expert in 0..e.experts {
        let mut value = 0.0f32.runtime();
        if is_token {
            value = value_of(scores, bidder * e.experts + expert, lowest, scale);
        }
        // The cheapest of the heap and the two below it, one of which is the second cheapest; then the additional place.
        #[unroll]
        for i in 0..4usize {
            let mut at = common + expert;
            let mut offered = e.places > common;
            if comptime!(i < 3) {
                at = expert * e.floor + i;
                offered = is_token && i < e.floor;
            }
            if offered {
                let gain = value - prices[at];
                if seen == 0u32 || gain > best {
                    second = best;
                    best = gain;
                    place = at;
                    seen += 1u32;
                } else if seen == 1u32 || gain > second {
                    second = gain;
                    seen += 1u32;
                }
            }
        }
    }
    let lead = select(seen > 1u32, best - second, 0.0f32);
    prices[place] = prices[place] + (lead + EPSILON);
    let former = holders[place];
    holders[place] = i32::cast_from(bidder);
    if place < common {
        sift_down(prices, holders, place, e.floor);
    }
    former
}

/// Balanced, but not near the best sum: each token in turn takes the expert that it likes best of those that may accept
/// one more. The first places' holders serve as loads.
#[cube]
fn in_token_order(scores: &[f32], chosen: &mut [i32], loads: &mut [i32], lowest: f32, scale: f32, e: &Extents) {
    let floor = i32::cast_from(e.floor);
    let mut additional = e.tokens - e.experts * e.floor;
    for expert in 0..e.experts {
        loads[expert] = 0i32;
    }
    for token in 0..e.tokens {
        let mut best = (-1.0f32).runtime();
        let mut choice = 0usize.runtime();
        for expert in 0..e.experts {
            let open = loads[expert] < floor || (loads[expert] == floor && additional > 0);
            let value = value_of(scores, token * e.experts + expert, lowest, scale);
            if open && value > best {
                best = value;
                choice = expert;
            }
        }
        if loads[choice] == floor {
            additional -= 1;
        }
        loads[choice] = loads[choice] + 1i32;
        chosen[token] = i32::cast_from(choice);
    }
}

/// Lengthens every walk by the steps that gain; whether there were any. `walks` holds for each expert the one before it
/// (-1 where a walk starts), then the token passed on to it (-1 if an additional place moves), then the loads.
#[cube]
fn lengthen(
    scores: &[f32],
    chosen: &[i32],
    gain: &mut [f32],
    walks: &mut [i32],
    lowest: f32,
    scale: f32,
    e: &Extents,
) -> bool {
    let mut grown = false.runtime();
    for token in 0..e.tokens {
        let from = chosen[token] as usize;
        let own = value_of(scores, token * e.experts + from, lowest, scale);
        for to in 0..e.experts {
            let reached = gain[from] + (value_of(scores, token * e.experts + to, lowest, scale) - own);
            if to != from && reached > gain[to] + TOLERANCE {
                gain[to] = reached;
                walks[to] = i32::cast_from(from);
                walks[e.experts + to] = i32::cast_from(token);
                grown = true;
            }
        }
    }
    if e.tokens != e.floor * e.experts {
        let floor = i32::cast_from(e.floor);
        for from in 0..e.experts {
            for to in 0..e.experts {
                let moves = walks[2 * e.experts + from] == floor && walks[2 * e.experts + to] > floor;
                if moves && gain[from] > gain[to] + TOLERANCE {
                    gain[to] = gain[from];
                    walks[to] = i32::cast_from(from);
                    walks[e.experts + to] = -1i32;
                    grown = true;
                }
            }
        }
    }
    grown
}

/// The first expert whose walk back meets it again, or -1.
#[cube]
fn find_cycle(walks: &[i32], experts: usize) -> i32 {
    let mut found = (-1i32).runtime();
    for expert in 0..experts {
        if found < 0 {
            let start = i32::cast_from(expert);
            let mut at = walks[expert];
            let mut steps = 0usize.runtime();
            while at >= 0 && at != start && steps < experts {
                at = walks[at as usize];
                steps += 1;
            }
            if at == start {
                found = start;
            }
        }
    }
    found
}

/// Makes the first exchange of tokens along a cycle of experts that gains; false if there is none.
#[cube]
fn improve(
    scores: &[f32],
    chosen: &mut [i32],
    gain: &mut [f32],
    walks: &mut [i32],
    lowest: f32,
    scale: f32,
    e: &Extents,
) -> bool {
    for expert in 0..e.experts {
        gain[expert] = 0.0f32.runtime();
        walks[expert] = -1i32;
        walks[2 * e.experts + expert] = 0i32;
    }
    for token in 0..e.tokens {
        let load = 2 * e.experts + chosen[token] as usize;
        walks[load] = walks[load] + 1i32;
    }
    let mut start = (-1i32).runtime();
    let mut round = 0usize.runtime();
    while round <= e.experts && start < 0 {
        if lengthen(scores, &*chosen, gain, walks, lowest, scale, e) {
            start = find_cycle(&*walks, e.experts);
            round += 1;
        } else {
            round = e.experts + 1;
        }
    }
    if start >= 0 {
        let mut at = start;
        let mut going = true.runtime();
        while going {
            let token = walks[e.experts + at as usize];
            if token >= 0 {
                chosen[token as usize] = at;
            }
            at = walks[at as usize];
            going = at != start;
        }
    }
    start >= 0
}

#[cube(launch_unchecked)]
fn auction(
    scores: &[f32],
    chosen: &mut [i32],
    prices: &mut [f32],
    holders: &mut [i32],
    e: &Extents,
    fillers: usize,
    limit: u32,
    exchanges_at_most: u32,
) {
    if ABSOLUTE_POS == 0 {
        let (tokens, experts, floor, places) = (e.tokens, e.experts, e.floor, e.places);
        let common = experts * floor;
        let mut refused = false;
        let mut lowest = LARGEST.runtime();
        let mut highest = (-LARGEST).runtime();
        for i in 0..tokens * experts {
            refused = refused || order_key(scores[i]) == 0u32;
            let score = min(max(scores[i], -LARGEST), LARGEST);
            lowest = min(lowest, score);
            highest = max(highest, score);
        }
        for token in 0..tokens {
            chosen[token] = -1i32;
        }
        if !refused {
            for place in 0..places {
                prices[place] = 0.0f32.runtime();
                holders[place] = -1i32;
            }
            // The inverse of the largest power of two that is not above the range; 0 for no range.
            let exponent = u32::reinterpret(highest - lowest) >> 23u32;
            let scale = f32::reinterpret(select(exponent == 0u32, 0u32, (254u32 - exponent) << 23u32));
            let mut left = limit;
            let mut given_up = false;
            for bidder in 0..tokens + fillers {
                let mut next = i32::cast_from(bidder);
                while next >= 0 {
                    if left == 0u32 {
                        given_up = true;
                        next = -1i32;
                    } else {
                        left -= 1u32;
                        next = bid(scores, prices, holders, next as usize, lowest, scale, e);
                    }
                }
            }
            if given_up {
                in_token_order(scores, chosen, holders, lowest, scale, e);
            } else {
                for place in 0..places {
                    let holder = holders[place];
                    if holder >= 0 && (holder as usize) < tokens {
                        let mut expert = place - min(common, place);
                        if place < common {
                            expert = place / floor;
                        }
                        chosen[holder as usize] = i32::cast_from(expert);
                    }
                }
            }
            // A device that cuts long loops short can leave tokens without an expert.
            let mut assigned = 0usize.runtime();
            for token in 0..tokens {
                if chosen[token] >= 0 {
                    assigned += 1;
                }
            }
            let mut exchanges = select(assigned == tokens, exchanges_at_most, 0u32);
            while exchanges > 0u32 {
                let found = improve(scores, chosen, prices, holders, lowest, scale, e);
                exchanges = select(found, exchanges - 1u32, 0u32);
            }
        }
    }
}

/// One expert per token from `scores [tokens, experts]`, or -1 for all if a score is NaN.
pub(crate) fn launch(l: &Launcher, scores: Arg, chosen: Arg, tokens: usize, experts: usize) {
    let floor = tokens / experts;
    let additional = if tokens == experts * floor { 0 } else { experts };
    let places = experts * floor + additional;
    let fillers = if floor == 0 { 0 } else { places - tokens };
    let at_most = |each: u32, of: usize| of.saturating_mul(each as usize).min(u32::MAX as usize) as u32;
    let (limit, exchanges) = (at_most(BIDS_PER_PLACE, places), at_most(EXCHANGES_PER_TOKEN, tokens));
    let [prices, holders] = l.scratch().halves();
    l.launch(
        1,
        || "balanced_assignment".to_string(),
        // SAFETY: `LaunchLimits` allow no more tokens and three times the experts together than half of the scratch memory has
        // elements, and there are no more places and walks than that; holders are -1 or bidders, walks hold experts and
        // tokens or -1, and only tokens index `chosen`, all of which have an expert when exchanges begin.
        |t| unsafe {
            let (scores, chosen) = (t.bind(scores, 1), t.bind(chosen, 1));
            let (prices, holders) = (t.bind(prices, 1), t.bind(holders, 1));
            let extents = ExtentsLaunch::new(tokens, experts, floor, places);
            run!(t, auction(scores, chosen, prices, holders, extents, fillers, limit, exchanges));
        },
    );
}
