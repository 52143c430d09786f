//! Balanced assignment of tokens to experts by auction (BASE layers, Lewis et al. 2021, arXiv 2103.16716).
//!
//! Bertsekas' auction, one bidder at a time. Every expert offers `floor(N/E)` places and, when E does not divide N, one
//! more. A token without a place bids for the place where its score minus the price is highest: the price rises by the
//! lead over the second best place plus [`EPSILON`], and whoever held the place bids next. The places of an expert are
//! worth the same to a token and differ in price only. So that no expert ends below `floor(N/E)`, `E - N % E` further
//! bidders to whom every place is worth nothing compete for the additional places, until all places are taken.
//!
//! Prices only rise, and nobody pays more than the range of the scores for one place while another is free, which bounds
//! the number of bids; [`BIDS_PER_PLACE`] is far above that bound. At the end nobody would gain more than [`EPSILON`] by
//! another place, so the sum of the scores is within `EPSILON` per bidder of the largest possible.
//!
//! What is left is gained by exchanges along cycles of experts, each of which passes one token on to the next
//! ([`Exchange`]): a balanced assignment without a cycle that gains is one with the largest sum (the optimality condition
//! of minimum cost flows, Klein 1967).

/// What a bid adds beyond the lead, in units of the largest power of two that is not above the range of the scores.
/// There are fewer than two bidders per token, so this is less than a 64th of the range per token.
const EPSILON: f64 = 1.0 / 128.0;

/// Bids, for each place, after which the auction would be given up for an assignment in the order of tokens.
const BIDS_PER_PLACE: usize = 1024;

/// A step of an exchange counts if it gains more than this, in the units of [`EPSILON`].
const TOLERANCE: f64 = 1.0 / 262_144.0;

/// Exchanges, for each token, after which no further one is looked for.
const EXCHANGES_PER_TOKEN: usize = 16;

/// Scores count as within this distance of 0, so that their range is finite in 32 bits.
const LARGEST: f64 = (1u128 << 125) as f64;

/// Nobody holds the place.
const NOBODY: usize = usize::MAX;

/// The expert of each token, given `scores [N, E]` row by row: every expert gets `floor(N/E)` or `ceil(N/E)` tokens, and
/// the sum of the scores is the largest possible, but for rounding: within `N * (max - min) / 100_000`. The same for the
/// same scores; among equal places the one of the lower expert is taken.
///
/// All -1 if a score is NaN, or if `scores` is not whole rows of `experts`.
pub fn balanced_assignment(scores: &[f64], experts: usize) -> Vec<i32> {
    assignment(scores, experts, BIDS_PER_PLACE)
}

fn assignment(scores: &[f64], experts: usize, bids_per_place: usize) -> Vec<i32> {
    let Some(tokens) = scores.len().checked_div(experts) else { return Vec::new() };
    if tokens * experts != scores.len() || scores.iter().any(|s| s.is_nan()) {
        return vec![-1; tokens];
    }
    let values = normalised(scores);
    let mut result = auctioned(&values, tokens, experts, bids_per_place);
    let mut exchange = Exchange::new(&values, experts);
    for _ in 0..tokens.saturating_mul(EXCHANGES_PER_TOKEN) {
        if !exchange.improve(&mut result) {
            break;
        }
    }
    result.into_iter().map(|expert| expert as i32).collect()
}

/// The assignment that the auction ends with.
fn auctioned(values: &[f64], tokens: usize, experts: usize, bids_per_place: usize) -> Vec<usize> {
    let mut auction = Auction::new(values, tokens, experts);
    let mut left = auction.prices.len().saturating_mul(bids_per_place);
    for bidder in 0..tokens + auction.fillers() {
        let mut next = Some(bidder);
        while let Some(bidder) = next {
            if left == 0 {
                return in_token_order(values, tokens, experts);
            }
            left -= 1;
            next = auction.bid(bidder);
        }
    }
    auction.experts_of_tokens()
}

/// The scores from 0 on, in units of the largest power of two that is not above their range; in these units the range
/// is below 2, and small binary fractions keep their exact values.
fn normalised(scores: &[f64]) -> Vec<f64> {
    let clamped = || scores.iter().map(|s| s.clamp(-LARGEST, LARGEST));
    let lowest = clamped().fold(f64::INFINITY, f64::min);
    let range = clamped().fold(f64::NEG_INFINITY, f64::max) - lowest;
    // Below the smallest normal number of 32 bits all scores count as equal.
    let unit = if range < f64::from(f32::MIN_POSITIVE) { f64::INFINITY } else { power_of_two_below(range) };
    clamped().map(|s| (s - lowest) / unit).collect()
}

/// The largest power of two that is not above a normal number.
fn power_of_two_below(x: f64) -> f64 {
    const EXPONENT: u64 = 0x7ff0_0000_0000_0000;
    f64::from_bits(x.to_bits() & EXPONENT)
}

struct Auction<'a> {
    values: &'a [f64],
    tokens: usize,
    experts: usize,
    /// Places that every expert has at least.
    floor: usize,
    /// Price of each place: `floor` places of expert 0, of expert 1, .., each a binary heap with the cheapest first;
    /// then, if E does not divide N, one additional place per expert.
    prices: Vec<f64>,
    /// Who holds each place: a token, or from `tokens` on one of the bidders to whom nothing is worth anything.
    holders: Vec<usize>,
}

impl<'a> Auction<'a> {
    fn new(values: &'a [f64], tokens: usize, experts: usize) -> Self {
        let floor = tokens / experts.max(1);
        let additional = if tokens == experts * floor { 0 } else { experts };
        let places = experts * floor + additional;
        Self { values, tokens, experts, floor, prices: vec![0.0; places], holders: vec![NOBODY; places] }
    }

    /// How many bidders keep tokens from additional places. None are needed where no place has to be taken.
    fn fillers(&self) -> usize {
        if self.floor == 0 { 0 } else { self.prices.len() - self.tokens }
    }

    /// One bid. Returns who lost the place.
    fn bid(&mut self, bidder: usize) -> Option<usize> {
        let (is_token, common) = (bidder < self.tokens, self.experts * self.floor);
        let (mut best, mut second, mut place) = (f64::NEG_INFINITY, f64::NEG_INFINITY, 0);
        let mut consider = |at: usize, gain: f64| {
            if gain > best {
                (second, best, place) = (best, gain, at);
            } else if gain > second {
                second = gain;
            }
        };
        for expert in 0..self.experts {
            let value = if is_token { self.values[bidder * self.experts + expert] } else { 0.0 };
            if is_token && self.floor > 0 {
                let root = expert * self.floor;
                consider(root, value - self.prices[root]);
                // The second cheapest of a heap is one of the two below its root.
                for below in root + 1..root + self.floor.min(3) {
                    consider(below, value - self.prices[below]);
                }
            }
            if self.prices.len() > common {
                consider(common + expert, value - self.prices[common + expert]);
            }
        }
        let lead = if second == f64::NEG_INFINITY { 0.0 } else { best - second };
        self.prices[place] += lead + EPSILON;
        let former = std::mem::replace(&mut self.holders[place], bidder);
        if place < common {
            self.sift_down(place);
        }
        (former != NOBODY).then_some(former)
    }

    /// Restores the heap of an expert's places after the price of its root rose.
    fn sift_down(&mut self, root: usize) {
        let mut at = 0;
        loop {
            let mut child = 2 * at + 1;
            if child >= self.floor {
                return;
            }
            if child + 1 < self.floor && self.prices[root + child + 1] < self.prices[root + child] {
                child += 1;
            }
            if self.prices[root + child] >= self.prices[root + at] {
                return;
            }
            self.prices.swap(root + child, root + at);
            self.holders.swap(root + child, root + at);
            at = child;
        }
    }

    fn experts_of_tokens(&self) -> Vec<usize> {
        let mut result = vec![0; self.tokens];
        let common = self.experts * self.floor;
        for (place, &holder) in self.holders.iter().enumerate() {
            if let Some(expert) = result.get_mut(holder) {
                let of = if place < common { place / self.floor } else { place - common };
                *expert = of;
            }
        }
        result
    }
}

/// Balanced, but not near the best sum: each token in turn takes the expert that it likes best of those that may accept
/// one more.
fn in_token_order(values: &[f64], tokens: usize, experts: usize) -> Vec<usize> {
    let (floor, mut additional) = (tokens / experts, tokens % experts);
    let mut loads = vec![0; experts];
    let mut result = Vec::with_capacity(tokens);
    for token in 0..tokens {
        let (mut best, mut chosen) = (f64::NEG_INFINITY, 0);
        for expert in 0..experts {
            let open = loads[expert] < floor || loads[expert] == floor && additional > 0;
            if open && values[token * experts + expert] > best {
                (best, chosen) = (values[token * experts + expert], expert);
            }
        }
        if loads[chosen] == floor {
            additional -= 1;
        }
        loads[chosen] += 1;
        result.push(chosen);
    }
    result
}

/// Looks for cycles of experts along which passing one token each gains: Bellman and Ford's longest walks from anywhere,
/// of which one that gains without end closes a cycle. An expert with fewer tokens than another can also take over its
/// additional place, which gains nothing by itself.
struct Exchange<'a> {
    values: &'a [f64],
    experts: usize,
    /// Gain of the best walk known that ends at each expert.
    gain: Vec<f64>,
    /// The expert before each on its walk; [`NOBODY`] where a walk starts.
    from: Vec<usize>,
    /// The token that is passed on to it; [`NOBODY`] if an additional place moves.
    token: Vec<usize>,
    loads: Vec<usize>,
}

impl<'a> Exchange<'a> {
    fn new(values: &'a [f64], experts: usize) -> Self {
        Self {
            values,
            experts,
            gain: vec![0.0; experts],
            from: vec![0; experts],
            token: vec![NOBODY; experts],
            loads: vec![0; experts],
        }
    }

    /// Makes the first exchange that gains; false if there is none.
    fn improve(&mut self, assigned: &mut [usize]) -> bool {
        self.gain.fill(0.0);
        self.from.fill(NOBODY);
        self.loads.fill(0);
        assigned.iter().for_each(|&expert| self.loads[expert] += 1);
        // A walk that still grows after as many rounds as there are experts has met itself.
        for _ in 0..=self.experts {
            if !self.lengthen(assigned) {
                return false;
            }
            if let Some(start) = (0..self.experts).find(|&start| self.is_on_a_cycle(start)) {
                let mut at = start;
                loop {
                    if let Some(expert) = assigned.get_mut(self.token[at]) {
                        *expert = at;
                    }
                    at = self.from[at];
                    if at == start {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Whether the walk back from an expert meets it again.
    fn is_on_a_cycle(&self, start: usize) -> bool {
        let mut at = self.from[start];
        for _ in 0..self.experts {
            if at == start || at == NOBODY {
                break;
            }
            at = self.from[at];
        }
        at == start
    }

    /// Lengthens every walk by the steps that gain; whether there were any.
    fn lengthen(&mut self, assigned: &[usize]) -> bool {
        let mut grown = false;
        for (token, &from) in assigned.iter().enumerate() {
            let scores = &self.values[token * self.experts..(token + 1) * self.experts];
            for to in 0..self.experts {
                let gain = self.gain[from] + (scores[to] - scores[from]);
                if to != from && gain > self.gain[to] + TOLERANCE {
                    (self.gain[to], self.from[to], self.token[to]) = (gain, from, token);
                    grown = true;
                }
            }
        }
        let floor = assigned.len() / self.experts;
        if assigned.len() == floor * self.experts {
            return grown;
        }
        for from in 0..self.experts {
            for to in 0..self.experts {
                let moves = self.loads[from] == floor && self.loads[to] > floor;
                if moves && self.gain[from] > self.gain[to] + TOLERANCE {
                    (self.gain[to], self.from[to], self.token[to]) = (self.gain[from], from, NOBODY);
                    grown = true;
                }
            }
        }
        grown
    }
}

#[cfg(test)]
mod tests;
