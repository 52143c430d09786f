//! Names as fingers slip on them: one letter is missing, too much, another one, or has changed places.
//!
//! Read by the tests of the command line and of the language, which count what is made of a slip.

use std::collections::{BTreeMap, BTreeSet};

/// Keys beside each other.
const ROWS: [&str; 4] = ["1234567890-", "qwertyuiop", "asdfghjkl", "zxcvbnm"];

/// The keys to the left and to the right of a letter; that of `_` is `-` with the other hand.
fn beside(letter: char) -> Vec<char> {
    let row = ROWS.iter().find_map(|row| row.find(letter).map(|at| (row.as_bytes(), at)));
    let Some((row, at)) = row else { return Vec::new() };
    [at.checked_sub(1), Some(at + 1)].into_iter().flatten().filter_map(|i| row.get(i)).map(|b| char::from(*b)).collect()
}

/// Every name that one slip makes of this one: a letter left out, doubled, exchanged with the next, hit together with or
/// instead of a key beside it, and some of the frequent letters in every place.
pub(crate) fn typos(name: &str) -> BTreeSet<String> {
    let letters: Vec<char> = name.chars().collect();
    let mut made = BTreeSet::new();
    let mut keep = |letters: &[char]| {
        made.insert(letters.iter().collect::<String>());
    };
    for at in 0..letters.len() {
        let with = |replaced: &[char]| [&letters[..at], replaced, &letters[at + 1..]].concat();
        keep(&with(&[]));
        if let Some(next) = letters.get(at + 1) {
            keep(&[&letters[..at], &[*next, letters[at]], &letters[at + 2..]].concat());
        }
        let frequent = "estn".chars();
        for other in beside(letters[at]).into_iter().chain(frequent).chain([letters[at]]) {
            keep(&with(&[other]));
            keep(&with(&[other, letters[at]]));
            keep(&with(&[letters[at], other]));
        }
    }
    made.remove(name);
    made.remove("");
    made
}

/// Slips of one kind: how many there were, and what became of them.
#[derive(Default)]
pub(crate) struct Count {
    pub(crate) tried: usize,
    /// Those that were taken for something else.
    pub(crate) accepted: Vec<String>,
    /// Those that were refused without the name that was meant, with what was said.
    pub(crate) unanswered: Vec<String>,
}

impl Count {
    /// Counts a slip: what was proposed if it was refused.
    pub(crate) fn note(&mut self, name: &str, typo: &str, refusal: Option<Option<String>>) {
        self.tried += 1;
        // A name that is as near is as good an answer.
        let is_near = |other: &str| other == name || strsim::damerau_levenshtein(other, typo) <= 1;
        match refusal {
            None => self.accepted.push(format!("{name}: {typo}")),
            Some(Some(proposed)) if is_near(&proposed) => {}
            Some(proposed) => self.unanswered.push(format!("{name}: {typo} -> {}", proposed.as_deref().unwrap_or("-"))),
        }
    }

    /// Says the numbers, and what is wrong with them: all slips must be refused, and nineteen of twenty answered.
    pub(crate) fn wrong(&self, kind: &str) -> Option<String> {
        let answered = self.tried - self.accepted.len() - self.unanswered.len();
        let share = 100.0 * answered as f64 / self.tried.max(1) as f64;
        println!(
            "{kind}: {} typos, {} refused, {answered} ({share:.1} %) with the name that was meant",
            self.tried,
            self.tried - self.accepted.len()
        );
        let is_right = self.tried > 0 && self.accepted.is_empty() && share >= 95.0;
        let (accepted, unanswered) = (self.accepted.join("\n  "), self.unanswered.join("\n  "));
        (!is_right).then(|| format!("{kind}: {share:.1} %\n accepted\n  {accepted}\n not answered\n  {unanswered}\n"))
    }
}

/// Holds every kind to what [`Count::wrong`] says.
#[track_caller]
pub(crate) fn require(counts: &BTreeMap<&str, Count>) {
    let wrong: Vec<String> = counts.iter().filter_map(|(kind, count)| count.wrong(kind)).collect();
    assert!(!counts.is_empty() && wrong.is_empty(), "{}", wrong.join("\n"));
}
