//! Tests of this module's parent.

use super::*;
use crate::random;

/// How many tokens each expert gets; every token must have one.
fn loads(assigned: &[i32], experts: usize) -> Vec<usize> {
    let mut loads = vec![0; experts];
    for &expert in assigned {
        loads[usize::try_from(expert).unwrap()] += 1;
    }
    loads
}

#[track_caller]
fn is_balanced(assigned: &[i32], experts: usize) {
    let (floor, ceil) = (assigned.len() / experts, assigned.len().div_ceil(experts));
    assert!(loads(assigned, experts).iter().all(|&load| load == floor || load == ceil), "{assigned:?}");
}

fn total(scores: &[f64], assigned: &[i32], experts: usize) -> f64 {
    assigned.iter().enumerate().map(|(n, &e)| scores[n * experts + e as usize]).sum()
}

/// The largest sum of a balanced assignment, by shortest augmenting paths over one place per column (Jonker &
/// Volgenant): every expert has `ceil(N/E)` places, and rows that only additional places accept fill what is left.
fn best_total(scores: &[f64], experts: usize) -> f64 {
    let tokens = scores.len() / experts;
    let (floor, ceil) = (tokens / experts, tokens.div_ceil(experts));
    let places = experts * ceil;
    let cost = |row: usize, column: usize| {
        let additional = column % ceil >= floor;
        match row < tokens {
            true => -scores[row * experts + column / ceil],
            false if additional => 0.0,
            // Dearer than any exchange of tokens.
            false => 1e7,
        }
    };
    // Rows and columns from 1, as the algorithm is usually written.
    let (mut u, mut v) = (vec![0.0; places + 1], vec![0.0; places + 1]);
    let mut row_of = vec![0; places + 1];
    for row in 1..=places {
        let (mut column, mut least) = (0, vec![f64::INFINITY; places + 1]);
        let (mut used, mut way) = (vec![false; places + 1], vec![0; places + 1]);
        row_of[0] = row;
        while row_of[column] != 0 {
            used[column] = true;
            let (from, mut delta, mut next) = (row_of[column], f64::INFINITY, 0);
            for j in (1..=places).filter(|&j| !used[j]) {
                let reduced = cost(from - 1, j - 1) - u[from] - v[j];
                if reduced < least[j] {
                    (least[j], way[j]) = (reduced, column);
                }
                if least[j] < delta {
                    (delta, next) = (least[j], j);
                }
            }
            for j in 0..=places {
                if used[j] {
                    u[row_of[j]] += delta;
                    v[j] -= delta;
                } else {
                    least[j] -= delta;
                }
            }
            column = next;
        }
        while column != 0 {
            row_of[column] = row_of[way[column]];
            column = way[column];
        }
    }
    (1..=places).filter(|&j| row_of[j] <= tokens).map(|j| -cost(row_of[j] - 1, j - 1)).sum()
}

#[track_caller]
fn is_near_the_best(scores: &[f64], experts: usize) {
    let assigned = balanced_assignment(scores, experts);
    is_balanced(&assigned, experts);
    let range = scores.iter().copied().fold(f64::MIN, f64::max) - scores.iter().copied().fold(f64::MAX, f64::min);
    let (found, best) = (total(scores, &assigned, experts), best_total(scores, experts));
    let tolerance = assigned.len() as f64 * range / 100_000.0 + 1e-6 * (1.0 + best.abs());
    assert!(best - found <= tolerance, "{found} is not within {tolerance} of {best}: {scores:?}");
    // And the prices are all that it lost: nothing is better than the best.
    assert!(found <= best + 1e-6 * (1.0 + best.abs()), "{found} {best}");
}

struct Draw {
    keys: (u32, u32),
    counter: u32,
}

impl Draw {
    fn new(seed: u64) -> Self {
        Self { keys: random::keys(random::state(seed, 0), 0), counter: 0 }
    }

    fn below(&mut self, n: usize) -> usize {
        self.counter += 1;
        random::bits(self.keys, self.counter) as usize % n
    }

    fn normal(&mut self) -> f64 {
        self.counter += 1;
        random::normal_at(self.keys, self.counter)
    }
}

#[test]
fn random_scores_come_near_the_best() {
    for seed in 0..200 {
        let mut draw = Draw::new(seed);
        let (tokens, experts) = (1 + draw.below(20), 1 + draw.below(7));
        let scores: Vec<f64> = (0..tokens * experts).map(|_| draw.normal()).collect();
        is_near_the_best(&scores, experts);
    }
}

#[test]
fn adversarial_scores_come_near_the_best() {
    for seed in 0..50 {
        let mut draw = Draw::new(1000 + seed);
        let (tokens, experts) = (2 + draw.below(24), 2 + draw.below(5));
        let scores: Vec<f64> = (0..tokens * experts)
            .map(|i| {
                let (n, e) = (i / experts, i % experts);
                match seed % 5 {
                    // Everyone wants the same expert, some a little more.
                    0 => {
                        if e == 0 {
                            100.0 + 0.1 * n as f64
                        } else {
                            0.0
                        }
                    }
                    // Everyone has the same order of experts.
                    1 => -(e as f64),
                    // Products: an exchange of any two tokens matters.
                    2 => (n as f64 + 1.0) * (e as f64 + 1.0),
                    // Few values, many ties.
                    3 => draw.below(3) as f64,
                    // One enormous score, and differences far below its epsilon.
                    _ => {
                        if i == 3 {
                            1e6
                        } else {
                            draw.normal()
                        }
                    }
                }
            })
            .collect();
        is_near_the_best(&scores, experts);
    }
}

#[test]
fn what_is_plain_to_see() {
    // Each token has one expert that it likes, and they fit.
    let scores = [9.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 9.0];
    assert_eq!(balanced_assignment(&scores, 3), [0, 1, 2]);
    // One expert, and fewer tokens than experts.
    assert_eq!(balanced_assignment(&[3.0, -1.0, 7.0], 1), [0, 0, 0]);
    assert_eq!(balanced_assignment(&[0.0, 1.0, 2.0, 3.0, 4.0], 5), [4]);
    assert_eq!(balanced_assignment(&[], 3), []);
    // All equal.
    for (tokens, experts) in [(1, 1), (7, 3), (17, 4), (33, 7), (3, 17), (64, 8)] {
        is_balanced(&balanced_assignment(&vec![0.5; tokens * experts], experts), experts);
    }
}

#[test]
fn every_input_ends_balanced() {
    let odd = [f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1e300, -1e300, 1e-300, 5e-324, 1.0];
    for seed in 0..40 {
        let mut draw = Draw::new(2000 + seed);
        let (tokens, experts) = (1 + draw.below(40), 1 + draw.below(9));
        let scores: Vec<f64> = (0..tokens * experts).map(|_| odd[draw.below(odd.len())]).collect();
        is_balanced(&balanced_assignment(&scores, experts), experts);
    }
    let mut draw = Draw::new(7);
    let scores: Vec<f64> = (0..2048 * 16).map(|_| draw.normal()).collect();
    is_balanced(&balanced_assignment(&scores, 16), 16);
}

#[test]
fn a_nan_refuses_every_token() {
    let mut scores = vec![1.0; 12];
    scores[7] = f64::NAN;
    assert_eq!(balanced_assignment(&scores, 3), [-1; 4]);
    assert_eq!(balanced_assignment(&[1.0; 7], 3), [-1; 2]);
    assert_eq!(balanced_assignment(&[1.0], 0), []);
}

#[test]
fn an_auction_that_is_given_up_is_balanced_too() {
    for (tokens, experts) in [(1, 1), (7, 3), (17, 4), (33, 7), (3, 17)] {
        let mut draw = Draw::new(3);
        let scores: Vec<f64> = (0..tokens * experts).map(|_| draw.normal()).collect();
        is_balanced(&assignment(&scores, experts, 0), experts);
    }
    assert_eq!(assignment(&[0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 5.0, 0.0], 2, 0), [1, 1, 1, 0, 0]);
}

#[test]
fn far_fewer_bids_are_made_than_allowed() {
    // Everyone wants the same expert, the last ones most: the prices climb in steps of epsilon.
    for (tokens, experts) in [(64, 2), (65, 8), (200, 3)] {
        let scores: Vec<f64> = (0..tokens * experts)
            .map(|i| if i % experts == 0 { 1.0 + 0.9 * (i / experts) as f64 / tokens as f64 } else { 1e-9 * i as f64 })
            .collect();
        let auction = |bids_per_place| auctioned(&normalised(&scores), tokens, experts, bids_per_place);
        assert_eq!(auction(BIDS_PER_PLACE / 2), auction(BIDS_PER_PLACE));
        assert_ne!(auction(1), auction(BIDS_PER_PLACE));
    }
}
