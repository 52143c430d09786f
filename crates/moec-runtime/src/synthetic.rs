//! The embedded corpus: play-like dialogue from a small probabilistic grammar whose entropy is known exactly.
//!
//! Six speakers take turns. Who speaks next depends on who spoke last, and every speaker has nouns, adjectives and verbs
//! of their own, so experts have something to specialise on. The text looks like this:
//!
//! ```text
//! PILOT:
//! The narrow harbour follows every old anchor near the tide. O stormy sail!
//!
//! MASON:
//! Will my hammer lift the grey stone?
//! ```
//!
//! # Entropy
//! The grammar is unambiguous: at every choice, the texts that the alternatives can begin with are known, and none is a
//! prefix of another's. So a text determines the choices that made it, and the entropy of the text is that of the
//! choices. Let `h_s` and `l_s` be the expected negative log-probability and number of characters of one turn of speaker
//! `s` (they follow from the grammar by linear equations: the expectation of a rule is the weighted mean over its
//! alternatives of their own surprise plus the expectations of their parts), `e_s` the entropy of the choice of the next
//! speaker, and `p` the stationary distribution of the speakers. By the renewal-reward theorem the entropy rate is
//!
//! `H = sum_s p_s (h_s + e_s) / sum_s p_s l_s` = 0.38794 nats per character, given by [`entropy_per_character`].
//!
//! No model can have a lower expected cross-entropy on it. A model that sees only the last `T` characters pays a little
//! more, for what lies outside its window.

use crate::streams::{Purpose, Stream};

/// The corpus ends with the first turn that reaches this many characters (all of them ASCII).
pub const CHARACTERS: usize = 1_000_000;

/// A speaker: name in the text, name when addressed, and a vocabulary. Words are ordered from frequent to rare, and no
/// word of `nouns` or `adjectives` begins with another, nor any of `verbs`.
struct Speaker {
    heading: &'static str,
    address: &'static str,
    nouns: &'static [&'static str],
    adjectives: &'static [&'static str],
    verbs: &'static [&'static str],
    /// Weights of who speaks next, by position in [`SPEAKERS`]; nobody answers himself.
    followers: [u32; 6],
}

/// Every word carries the space before it. Verbs are in their base form and take a plain `s`.
const SPEAKERS: [Speaker; 6] = [
    Speaker {
        heading: "PILOT:\n",
        address: "Pilot",
        nouns: &[
            " sail", " harbour", " tide", " anchor", " gull", " mast", " compass", " deck", " wave", " rope",
            " voyage", " reef", " cabin", " island",
        ],
        adjectives: &[" stormy", " salty", " narrow", " drifting", " distant", " foggy", " leaking"],
        verbs: &[" follow", " steer", " hoist", " flood", " sight", " drown", " tow", " outrun", " weather", " moor"],
        followers: [0, 6, 3, 1, 2, 4],
    },
    Speaker {
        heading: "COOK:\n",
        address: "Cook",
        nouns: &[
            " soup", " oven", " kettle", " onion", " bread", " pepper", " goose", " spoon", " table", " butter",
            " pudding", " cellar", " apple", " feast",
        ],
        adjectives: &[" burnt", " sweet", " hungry", " greasy", " tender", " sour", " steaming"],
        verbs: &[" stir", " taste", " boil", " spill", " carve", " sweeten", " roast", " serve", " devour", " knead"],
        followers: [3, 0, 1, 6, 4, 2],
    },
    Speaker {
        heading: "SCHOLAR:\n",
        address: "Scholar",
        nouns: &[
            " planet",
            " question",
            " book",
            " comet",
            " theorem",
            " letter",
            " moon",
            " circle",
            " reason",
            " proof",
            " candle",
            " error",
            " library",
            " shadow",
        ],
        adjectives: &[" learned", " obscure", " elegant", " certain", " idle", " celestial", " forgotten"],
        verbs: &[
            " explain",
            " doubt",
            " measure",
            " refute",
            " observe",
            " name",
            " predict",
            " resemble",
            " prove",
            " contain",
        ],
        followers: [2, 1, 0, 4, 3, 6],
    },
    Speaker {
        heading: "GARDENER:\n",
        address: "Gardener",
        nouns: &[
            " rose", " orchard", " root", " weed", " bee", " hedge", " seed", " spade", " willow", " meadow", " frost",
            " ladder", " nettle", " thorn",
        ],
        adjectives: &[" green", " muddy", " early", " blooming", " wild", " shaded", " withered"],
        verbs: &[" plant", " water", " prune", " shade", " gather", " uproot", " dig", " smell", " trim", " tend"],
        followers: [4, 2, 6, 0, 1, 3],
    },
    Speaker {
        heading: "MASON:\n",
        address: "Mason",
        nouns: &[
            " stone", " wall", " hammer", " arch", " tower", " chisel", " bridge", " mortar", " chapel", " pillar",
            " dust", " wheel", " vault", " quarry",
        ],
        adjectives: &[" heavy", " grey", " crooked", " square", " unfinished", " solid", " broken"],
        verbs: &[" lift", " build", " crack", " support", " level", " guard", " topple", " join", " raise", " outlast"],
        followers: [1, 4, 2, 3, 0, 6],
    },
    Speaker {
        heading: "QUEEN:\n",
        address: "Queen",
        nouns: &[
            " crown", " army", " traitor", " throne", " duke", " banner", " castle", " oath", " sword", " herald",
            " treaty", " kingdom", " prison", " jewel",
        ],
        adjectives: &[" royal", " loyal", " bitter", " noble", " cruel", " gilded", " banished"],
        verbs: &[
            " command", " betray", " pardon", " crown", " summon", " exile", " obey", " conquer", " avenge", " reward",
        ],
        followers: [6, 3, 4, 2, 1, 0],
    },
];

/// Words that every speaker uses, after their own.
const SHARED_NOUNS: [&str; 4] = [" night", " world", " friend", " heart"];
const SHARED_ADJECTIVES: [&str; 3] = [" old", " good", " little"];
const ADVERBS: [&str; 4] = [" never", " always", " slowly", " gladly"];

/// Relative frequency of the word of that rank: Zipf's law, in integers.
fn zipf(rank: usize) -> u32 {
    60 / (rank as u32 + 1) + 1
}

type RuleId = usize;

#[derive(Clone, Copy, Debug)]
enum Part {
    Text(&'static str),
    Rule(RuleId),
}

/// What a rule may become, with an integer weight.
#[derive(Clone, Debug)]
struct Alternative {
    weight: u32,
    parts: Vec<Part>,
}

/// A rule is the list of its alternatives; a turn is a rule per speaker.
struct Grammar {
    rules: Vec<Vec<Alternative>>,
    turns: Vec<RuleId>,
}

fn alternative(weight: u32, parts: &[Part]) -> Alternative {
    Alternative { weight, parts: parts.to_vec() }
}

/// One alternative per word, by Zipf's law.
fn words<'a>(list: impl IntoIterator<Item = &'a &'static str>) -> Vec<Alternative> {
    list.into_iter().enumerate().map(|(rank, word)| alternative(zipf(rank), &[Part::Text(word)])).collect()
}

impl Grammar {
    fn new() -> Self {
        let mut grammar = Self { rules: Vec::new(), turns: Vec::new() };
        let opening = grammar.rule(vec![
            alternative(8, &[Part::Text("The")]),
            alternative(4, &[Part::Text("My")]),
            alternative(2, &[Part::Text("Every")]),
            alternative(2, &[Part::Text("This")]),
        ]);
        let determiner = grammar.rule(vec![
            alternative(8, &[Part::Text(" the")]),
            alternative(4, &[Part::Text(" my")]),
            alternative(2, &[Part::Text(" every")]),
            alternative(1, &[Part::Text(" your")]),
        ]);
        let adverb = grammar.rule(words(&ADVERBS));
        for (own, speaker) in SPEAKERS.iter().enumerate() {
            let turn = grammar.speaker(own, speaker, opening, determiner, adverb);
            grammar.turns.push(turn);
        }
        grammar
    }

    fn rule(&mut self, alternatives: Vec<Alternative>) -> RuleId {
        self.rules.push(alternatives);
        self.rules.len() - 1
    }

    /// The rules of one speaker; the turn is returned.
    fn speaker(&mut self, own: usize, who: &Speaker, opening: RuleId, determiner: RuleId, adverb: RuleId) -> RuleId {
        use Part::{Rule, Text};
        let noun = self.rule(words(who.nouns.iter().chain(&SHARED_NOUNS)));
        let adjective = self.rule(words(who.adjectives.iter().chain(&SHARED_ADJECTIVES)));
        let verb = self.rule(words(who.verbs));
        let others = SPEAKERS.iter().enumerate().filter(|&(i, _)| i != own);
        let address =
            self.rule(others.map(|(i, other)| alternative(who.followers[i], &[Text(other.address)])).collect());
        // thing = noun | adjective noun
        let thing = self.rule(vec![alternative(3, &[Rule(noun)]), alternative(2, &[Rule(adjective), Rule(noun)])]);
        // deed = verb "s" determiner thing | adverb verb "s" determiner thing
        let object = [Rule(verb), Text("s"), Rule(determiner), Rule(thing)];
        let deed = self.rule(vec![
            alternative(5, &object),
            alternative(1, &[Rule(adverb), Rule(verb), Text("s"), Rule(determiner), Rule(thing)]),
        ]);
        // rest = "." | "!" | " near" determiner thing rest | ",\nand" determiner thing deed rest | ..
        let rest = self.rules.len();
        self.rule(vec![
            alternative(9, &[Text(".")]),
            alternative(2, &[Text("!")]),
            alternative(3, &[Text(" near"), Rule(determiner), Rule(thing), Rule(rest)]),
            alternative(2, &[Text(",\nand"), Rule(determiner), Rule(thing), Rule(deed), Rule(rest)]),
            alternative(2, &[Text(", for"), Rule(determiner), Rule(thing), Rule(deed), Rule(rest)]),
        ]);
        let sentence = self.rule(vec![
            alternative(6, &[Rule(opening), Rule(thing), Rule(deed), Rule(rest)]),
            alternative(
                2,
                &[Text("Will"), Rule(determiner), Rule(thing), Rule(verb), Rule(determiner), Rule(thing), Text("?")],
            ),
            alternative(1, &[Text("O"), Rule(thing), Text("!")]),
            alternative(2, &[Rule(address), Text(","), Rule(verb), Rule(determiner), Rule(thing), Rule(rest)]),
        ]);
        // speech = sentence more;  more = end of the turn | one more sentence
        let more = self.rules.len();
        self.rule(vec![alternative(3, &[Text("\n\n")]), alternative(2, &[Text(" "), Rule(sentence), Rule(more)])]);
        self.rule(vec![alternative(1, &[Text(who.heading), Rule(sentence), Rule(more)])])
    }

    /// Expected surprise (nats) and length (characters) of every rule: the solution of the linear equations in the module
    /// documentation, by iteration, which converges geometrically because every rule ends with probability 1.
    fn expectations(&self) -> Vec<(f64, f64)> {
        let mut current = vec![(0.0, 0.0); self.rules.len()];
        for _ in 0..10_000 {
            let next: Vec<(f64, f64)> = self.rules.iter().map(|rule| expectation(rule, &current)).collect();
            let settled = next.iter().zip(&current).all(|(a, b)| a == b);
            current = next;
            if settled {
                break;
            }
        }
        current
    }
}

fn expectation(rule: &[Alternative], of: &[(f64, f64)]) -> (f64, f64) {
    let total = total_weight(rule);
    let (mut surprise, mut length) = (0.0, 0.0);
    for alternative in rule {
        let p = f64::from(alternative.weight) / total;
        let (mut s, mut l) = (-p.ln(), 0.0);
        for part in &alternative.parts {
            match part {
                Part::Text(text) => l += text.len() as f64,
                Part::Rule(id) => {
                    s += of[*id].0;
                    l += of[*id].1;
                }
            }
        }
        surprise += p * s;
        length += p * l;
    }
    (surprise, length)
}

fn total_weight(rule: &[Alternative]) -> f64 {
    rule.iter().map(|a| f64::from(a.weight)).sum()
}

/// Stationary distribution of the speakers and the entropy of each one's choice of the next, in nats.
fn speaker_chain() -> ([f64; 6], [f64; 6]) {
    let probability = |s: usize, t: usize| {
        let total: u32 = SPEAKERS[s].followers.iter().sum();
        f64::from(SPEAKERS[s].followers[t]) / f64::from(total)
    };
    let mut stationary = [1.0 / 6.0; 6];
    for _ in 0..1_000 {
        let mut next = [0.0; 6];
        for s in 0..6 {
            for t in 0..6 {
                next[t] += stationary[s] * probability(s, t);
            }
        }
        stationary = next;
    }
    let mut entropy = [0.0; 6];
    for s in 0..6 {
        entropy[s] = (0..6).map(|t| probability(s, t)).filter(|&p| p > 0.0).map(|p| -p * p.ln()).sum();
    }
    (stationary, entropy)
}

/// The entropy rate of the corpus in nats per character: the lowest cross-entropy that any model can reach.
///
/// It is a property of the grammar, so it does not depend on the seed; see the module documentation.
pub fn entropy_per_character() -> f64 {
    let grammar = Grammar::new();
    let expectations = grammar.expectations();
    let (stationary, next_speaker) = speaker_chain();
    let (mut surprise, mut length) = (0.0, 0.0);
    for (s, &turn) in grammar.turns.iter().enumerate() {
        surprise += stationary[s] * (expectations[turn].0 + next_speaker[s]);
        length += stationary[s] * expectations[turn].1;
    }
    surprise / length
}

/// Draws choices one after another.
struct Draws {
    stream: Stream,
    position: u32,
}

impl Draws {
    /// An index with probability proportional to its weight.
    fn choose(&mut self, weights: impl Iterator<Item = u32> + Clone) -> usize {
        let total: u64 = weights.clone().map(u64::from).sum();
        let mut left = self.stream.below(self.position, total);
        self.position = self.position.wrapping_add(1);
        for (i, weight) in weights.enumerate() {
            if left < u64::from(weight) {
                return i;
            }
            left -= u64::from(weight);
        }
        0
    }
}

/// The corpus of a seed: about 1 MB of ASCII text, the same on every platform.
pub fn generate(seed: u64) -> String {
    let grammar = Grammar::new();
    let mut draws = Draws { stream: Purpose::Synthetic.stream(seed, 0), position: 0 };
    let mut text = String::with_capacity(CHARACTERS + 4096);
    let mut speaker = draws.choose([1u32; 6].into_iter());
    while text.len() < CHARACTERS {
        let mut pending = vec![Part::Rule(grammar.turns[speaker])];
        while let Some(part) = pending.pop() {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Rule(id) => {
                    let rule = &grammar.rules[id];
                    let chosen = draws.choose(rule.iter().map(|a| a.weight));
                    pending.extend(rule[chosen].parts.iter().rev());
                }
            }
        }
        speaker = draws.choose(SPEAKERS[speaker].followers.into_iter());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Literals that an alternative can begin with.
    fn first(grammar: &Grammar, parts: &[Part]) -> BTreeSet<&'static str> {
        match parts.first().expect("no alternative is empty") {
            Part::Text(text) => BTreeSet::from([*text]),
            Part::Rule(id) => grammar.rules[*id].iter().flat_map(|a| first(grammar, &a.parts)).collect(),
        }
    }

    /// Recovers the choices of a text and returns its negative log-probability; panics where more or fewer than one
    /// alternative fits.
    fn surprise(grammar: &Grammar, text: &str) -> f64 {
        let firsts: Vec<Vec<BTreeSet<&str>>> =
            grammar.rules.iter().map(|r| r.iter().map(|a| first(grammar, &a.parts)).collect()).collect();
        let mut rest = text;
        let mut nats = 0.0;
        let mut last: Option<usize> = None;
        while !rest.is_empty() {
            let fitting: Vec<usize> = (0..6).filter(|&s| rest.starts_with(SPEAKERS[s].heading)).collect();
            assert_eq!(fitting.len(), 1);
            let speaker = fitting[0];
            if let Some(last) = last {
                let followers = SPEAKERS[last].followers;
                nats -= (f64::from(followers[speaker]) / f64::from(followers.iter().sum::<u32>())).ln();
            }
            last = Some(speaker);
            let mut pending = vec![Part::Rule(grammar.turns[speaker])];
            while let Some(part) = pending.pop() {
                match part {
                    Part::Text(literal) => rest = rest.strip_prefix(literal).expect("the text follows the grammar"),
                    Part::Rule(id) => {
                        let rule = &grammar.rules[id];
                        let fitting: Vec<usize> = (0..rule.len())
                            .filter(|&a| firsts[id][a].iter().any(|literal| rest.starts_with(literal)))
                            .collect();
                        assert_eq!(fitting.len(), 1, "{:?}", &rest[..rest.len().min(40)]);
                        nats -= (f64::from(rule[fitting[0]].weight) / total_weight(rule)).ln();
                        pending.extend(rule[fitting[0]].parts.iter().rev());
                    }
                }
            }
        }
        nats
    }

    #[test]
    fn no_two_alternatives_can_begin_alike() {
        let grammar = Grammar::new();
        for rule in &grammar.rules {
            let firsts: Vec<Vec<&str>> = rule.iter().map(|a| first(&grammar, &a.parts).into_iter().collect()).collect();
            for i in 0..firsts.len() {
                for j in 0..firsts.len() {
                    for a in &firsts[i] {
                        for b in &firsts[j] {
                            assert!(i == j || !a.starts_with(b), "{a:?} and {b:?}");
                        }
                    }
                }
            }
        }
        for a in &SPEAKERS {
            assert_eq!(SPEAKERS.iter().filter(|b| b.heading.starts_with(a.heading)).count(), 1);
        }
    }

    #[test]
    fn entropy_is_that_of_generated_text() {
        let grammar = Grammar::new();
        let entropy = entropy_per_character();
        for seed in [0, 1, 1337] {
            let text = generate(seed);
            let measured = surprise(&grammar, &text) / text.len() as f64;
            assert!((measured / entropy - 1.0).abs() < 0.01, "seed {seed}: {measured} against {entropy}");
        }
        // A change of the grammar changes what every published loss is compared with.
        assert!((entropy - ENTROPY).abs() < 1e-9, "{entropy}");
    }
    const ENTROPY: f64 = 0.387_943_610_961_150_5;

    #[test]
    fn nobody_answers_himself() {
        for (i, s) in SPEAKERS.iter().enumerate() {
            assert_eq!(s.followers[i], 0);
            assert_eq!(s.followers.iter().filter(|&&w| w == 0).count(), 1);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_text_everywhere() {
        let text = generate(0);
        assert!(text.is_ascii());
        assert!((CHARACTERS..CHARACTERS + 4096).contains(&text.len()));
        assert_ne!(text, generate(1));
        assert_eq!(crate::data::sha256_hex(text.as_bytes()), SEED_0_SHA256);
        assert!(text.ends_with("\n\n"));
    }
    const SEED_0_SHA256: &str = "21f5fa9c33828024f7e0da2891c206ad5d37f649813e529dca1f1ba66cdc3776";
}
