//! Balanced assignment of tokens to experts by auction (BASE layers, Lewis et al. 2021, arXiv 2103.16716).
//!
//! Every expert offers `floor(N/E)` places and, when E does not divide N, one more, which is a lot of its own. The places
//! of a lot are worth the same to a token, so that it is the auction for similar objects of Bertsekas & Castanon (1989,
//! "The auction algorithm for the transportation problem"): the price of a lot is the least that is paid for one of its
//! places. In a round all tokens without a place bid at once, each for the lot where its score minus the price is highest,
//! and offers the price plus its lead over the second best lot plus [`EPSILON`]. The highest bids take the places of those
//! that pay least, who bid in the next round. So that no expert ends below `floor(N/E)`, `E - N % E` further bidders to
//! whom every place is worth nothing compete for the additional places, until all places are taken.
//!
//! Prices only rise, and nobody pays more than the range of the scores for one place while another is free, which bounds
//! the number of bids; [`BIDS_PER_PLACE`] is far above that bound. At the end nobody would gain more than [`EPSILON`] by
//! another place, so the sum of the scores is within `EPSILON` per bidder of the largest possible.
//!
//! What is left is gained by exchanges along cycles of experts, each of which passes one token on to the next
//! ([`Exchange`]): a balanced assignment without a cycle that gains is one with the largest sum (the optimality condition
//! of minimum cost flows, Klein 1967).
//!
//! Bids of a round, lots, and the steps of a walk of exchanges do not depend on each other: a device may compute them side by
//! side and has the same result.

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
    let mut left = auction.paid.len().saturating_mul(bids_per_place);
    let mut bidders: Vec<usize> = (0..tokens + auction.fillers()).collect();
    while !bidders.is_empty() {
        if left < bidders.len() {
            return in_token_order(values, tokens, experts);
        }
        left -= bidders.len();
        bidders = auction.round(&bidders);
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
    /// What is paid for each place, 0 while it is free: `floor` places of expert 0, of expert 1, .., each a binary heap with
    /// the cheapest first; then, if E does not divide N, one additional place per expert.
    paid: Vec<f64>,
    /// Who holds each place: a token, or from `tokens` on one of the bidders to whom nothing is worth anything.
    holders: Vec<usize>,
}

/// An offer for a place of the lot whose cheapest place this is.
#[derive(Clone, Copy)]
struct Bid {
    cheapest: usize,
    offer: f64,
}

impl<'a> Auction<'a> {
    fn new(values: &'a [f64], tokens: usize, experts: usize) -> Self {
        let floor = tokens / experts.max(1);
        let additional = if tokens == experts * floor { 0 } else { experts };
        let places = experts * floor + additional;
        Self { values, tokens, experts, floor, paid: vec![0.0; places], holders: vec![NOBODY; places] }
    }

    /// How many bidders keep tokens from additional places. None are needed where no place has to be taken.
    fn fillers(&self) -> usize {
        if self.floor == 0 { 0 } else { self.paid.len() - self.tokens }
    }

    /// All bids at the same prices, and then the lots. Returns who has no place after it.
    fn round(&mut self, bidders: &[usize]) -> Vec<usize> {
        let bids: Vec<Bid> = bidders.iter().map(|&bidder| self.bid(bidder)).collect();
        let turned_away = bidders.iter().zip(bids).map(|(&bidder, bid)| self.take(bidder, bid));
        turned_away.filter(|&bidder| bidder != NOBODY).collect()
    }

    /// What a bidder offers.
    fn bid(&self, bidder: usize) -> Bid {
        let (is_token, common) = (bidder < self.tokens, self.experts * self.floor);
        let (mut best, mut second, mut cheapest) = (f64::NEG_INFINITY, f64::NEG_INFINITY, 0);
        let mut consider = |at: usize, value: f64| {
            let gain = value - self.paid[at];
            if gain > best {
                (second, best, cheapest) = (best, gain, at);
            } else if gain > second {
                second = gain;
            }
        };
        for expert in 0..self.experts {
            let value = if is_token { self.values[bidder * self.experts + expert] } else { 0.0 };
            if is_token && self.floor > 0 {
                consider(expert * self.floor, value);
            }
            if self.paid.len() > common {
                consider(common + expert, value);
            }
        }
        let lead = if second == f64::NEG_INFINITY { 0.0 } else { best - second };
        Bid { cheapest, offer: self.paid[cheapest] + (lead + EPSILON) }
    }

    /// Gives the cheapest place of a lot to a bidder who offers more than is paid for it. Returns who has no place now:
    /// the former holder or the bidder.
    fn take(&mut self, bidder: usize, Bid { cheapest, offer }: Bid) -> usize {
        if offer <= self.paid[cheapest] {
            return bidder;
        }
        self.paid[cheapest] = offer;
        let former = std::mem::replace(&mut self.holders[cheapest], bidder);
        if cheapest < self.experts * self.floor {
            self.sift_down(cheapest);
        }
        former
    }

    /// Restores the heap of an expert's places after more is paid for its root.
    fn sift_down(&mut self, root: usize) {
        let mut at = 0;
        loop {
            let mut child = 2 * at + 1;
            if child >= self.floor {
                return;
            }
            if child + 1 < self.floor && self.paid[root + child + 1] < self.paid[root + child] {
                child += 1;
            }
            if self.paid[root + child] >= self.paid[root + at] {
                return;
            }
            self.paid.swap(root + child, root + at);
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
    /// The step from one expert to another, at `from * experts + to`.
    steps: Vec<Step>,
    /// Gain of the best walk known that ends at each expert.
    gain: Vec<f64>,
    /// The expert before each on its walk; [`NOBODY`] where a walk starts.
    from: Vec<usize>,
}

/// What passing on one token, or an additional place, gains.
#[derive(Clone, Copy)]
struct Step {
    gain: f64,
    /// The token; [`NOBODY`] if an additional place moves.
    token: usize,
}

impl<'a> Exchange<'a> {
    fn new(values: &'a [f64], experts: usize) -> Self {
        let none = Step { gain: f64::NEG_INFINITY, token: NOBODY };
        let steps = vec![none; experts * experts];
        Self { values, experts, steps, gain: vec![0.0; experts], from: vec![NOBODY; experts] }
    }

    /// Makes the first exchange that gains; false if there is none.
    fn improve(&mut self, assigned: &mut [usize]) -> bool {
        self.gain.fill(0.0);
        self.from.fill(NOBODY);
        self.find_steps(assigned);
        // A walk that still grows after as many rounds as there are experts has met itself.
        for _ in 0..=self.experts {
            if !self.lengthen() {
                return false;
            }
            if let Some(start) = (0..self.experts).find(|&start| self.is_on_a_cycle(start)) {
                let mut at = start;
                loop {
                    let from = self.from[at];
                    if let Some(expert) = assigned.get_mut(self.steps[from * self.experts + at].token) {
                        *expert = at;
                    }
                    at = from;
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

    /// The best step between any two experts: of equal ones that of the first token, and of a token rather than a place.
    fn find_steps(&mut self, assigned: &[usize]) {
        self.steps.fill(Step { gain: f64::NEG_INFINITY, token: NOBODY });
        let mut loads = vec![0; self.experts];
        for (token, &from) in assigned.iter().enumerate() {
            loads[from] += 1;
            let scores = &self.values[token * self.experts..(token + 1) * self.experts];
            for to in 0..self.experts {
                let (gain, step) = (scores[to] - scores[from], &mut self.steps[from * self.experts + to]);
                if to != from && gain > step.gain {
                    *step = Step { gain, token };
                }
            }
        }
        let floor = assigned.len() / self.experts;
        if assigned.len() == floor * self.experts {
            return;
        }
        for from in 0..self.experts {
            for to in 0..self.experts {
                let step = &mut self.steps[from * self.experts + to];
                if loads[from] == floor && loads[to] > floor && step.gain < 0.0 {
                    *step = Step { gain: 0.0, token: NOBODY };
                }
            }
        }
    }

    /// Lengthens every walk of the round before by the step that gains most; whether there were any.
    fn lengthen(&mut self) -> bool {
        let before = self.gain.clone();
        let mut grown = false;
        for to in 0..self.experts {
            for from in 0..self.experts {
                let gain = before[from] + self.steps[from * self.experts + to].gain;
                if gain > self.gain[to] + TOLERANCE {
                    (self.gain[to], self.from[to]) = (gain, from);
                    grown = true;
                }
            }
        }
        grown
    }
}

#[cfg(test)]
mod tests;
