//! Which characters go to which experts: counted, and held against what chance would give.

use crate::cli::routing::record::{Layer, Route};
use crate::cli::units::grouped;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The counts of a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LayerCharacters {
    /// Path of the layer.
    layer: String,
    /// Number of the layer among those that route.
    number: usize,
    strategy: String,
    /// Choices that were counted: of every character those of its experts that had room, or its `slot`-th.
    choices: usize,
    /// Entropy of the experts over all choices, in nats.
    entropy_nats: f64,
    /// Mean over choices of the entropy of their character's experts.
    entropy_of_characters_nats: f64,
    experts: Vec<ExpertCharacters>,
    characters: Vec<CharacterExperts>,
}

/// What goes to an expert.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct ExpertCharacters {
    expert: usize,
    choices: usize,
    share_of_choices: f64,
    /// Those that it is chosen for, the ones it has most of beyond chance first.
    characters: Vec<Pair>,
}

/// A character and an expert.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Pair {
    character: char,
    count: usize,
    share_of_expert: f64,
    /// Of the times that the text has the character.
    share_of_character: f64,
    /// The share of the expert, relative to the share of the character in all choices: 1 is chance.
    lift: f64,
}

/// Where a character goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct CharacterExperts {
    character: char,
    /// How often the text has it.
    occurrences: usize,
    choices: usize,
    /// Entropy of its experts, in nats.
    entropy_nats: f64,
    /// Choices of every expert.
    counts: Vec<usize>,
}

/// Counts the routes of a layer; with `slot` only the `slot`-th expert of a character by weight, from 1.
pub(crate) fn count(layer: &Layer, number: usize, routes: &[Route], slot: Option<usize>) -> LayerCharacters {
    let mut table: BTreeMap<char, (usize, Vec<usize>)> = BTreeMap::new();
    for route in routes.iter().filter(|route| route.layer == layer.path) {
        let (occurrences, counts) = table.entry(route.character).or_insert_with(|| (0, vec![0; layer.experts]));
        *occurrences += 1;
        let chosen: Vec<usize> = match slot {
            Some(slot) => route.choice(slot).into_iter().collect(),
            None => route.ranked(),
        };
        for expert in chosen {
            counts[expert] += 1;
        }
    }
    let mut of_expert = vec![0; layer.experts];
    for (_, counts) in table.values() {
        for (sum, count) in of_expert.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    let choices: usize = of_expert.iter().sum();
    let characters: Vec<CharacterExperts> = (table.iter())
        .map(|(&character, (occurrences, counts))| CharacterExperts {
            character,
            occurrences: *occurrences,
            choices: counts.iter().sum(),
            entropy_nats: entropy(counts),
            counts: counts.clone(),
        })
        .collect();
    let experts = (of_expert.iter().enumerate()).map(|(e, &n)| expert(e, n, choices, &characters)).collect();
    let weighted: f64 = characters.iter().map(|c| c.choices as f64 * c.entropy_nats).sum();
    LayerCharacters {
        layer: layer.path.clone(),
        number,
        strategy: layer.strategy.clone(),
        choices,
        entropy_nats: entropy(&of_expert),
        entropy_of_characters_nats: weighted / choices.max(1) as f64,
        experts,
        characters,
    }
}

fn expert(expert: usize, choices: usize, all: usize, characters: &[CharacterExperts]) -> ExpertCharacters {
    let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
    let mut pairs: Vec<(f64, Pair)> = (characters.iter())
        .filter(|c| c.counts[expert] > 0)
        .map(|c| {
            let count = c.counts[expert];
            let by_chance = share(choices, all) * c.choices as f64;
            let pair = Pair {
                character: c.character,
                count,
                share_of_expert: share(count, choices),
                share_of_character: share(count, c.occurrences),
                lift: count as f64 / by_chance,
            };
            (count as f64 - by_chance, pair)
        })
        .collect();
    pairs.sort_by(|(a, x), (b, y)| b.total_cmp(a).then(x.character.cmp(&y.character)));
    let characters = pairs.into_iter().map(|(_, pair)| pair).collect();
    ExpertCharacters { expert, choices, share_of_choices: share(choices, all), characters }
}

/// Entropy of shares, in nats.
fn entropy(counts: &[usize]) -> f64 {
    let all = counts.iter().sum::<usize>() as f64;
    let terms = counts.iter().filter(|&&n| n > 0).map(|&n| {
        let share = n as f64 / all;
        -share * share.ln()
    });
    // A sum of nothing is -0.
    terms.sum::<f64>() + 0.0
}

/// The table of a layer: of every expert the first `top` characters.
pub(crate) fn table(counted: &LayerCharacters, top: usize) -> String {
    let mut out = format!(
        "{} (layer {}), {}: {} choices\nentropy of the experts {:.3} nats; once the character is known {:.3}\n",
        counted.layer,
        counted.number,
        counted.strategy,
        grouped(counted.choices as u64),
        counted.entropy_nats,
        counted.entropy_of_characters_nats,
    );
    let entropies: BTreeMap<char, f64> = counted.characters.iter().map(|c| (c.character, c.entropy_nats)).collect();
    let shown = |pair: &Pair| format!("{:?}", pair.character);
    let pairs = counted.experts.iter().flat_map(|e| e.characters.iter().take(top));
    let width = pairs.map(|pair| shown(pair).chars().count()).max().unwrap_or(0).max("char".len());
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "expert     load  {:<width$}  {:>7}  {:>7}  {:>7}  {:>5}  entropy",
        "char", "count", "of load", "of char", "lift"
    );
    for expert in &counted.experts {
        let head = format!("{:>6}  {:>5.1} %", expert.expert, 100.0 * expert.share_of_choices);
        if expert.characters.is_empty() || top == 0 {
            let _ = writeln!(out, "{head}");
        }
        for (i, pair) in expert.characters.iter().take(top).enumerate() {
            let head = if i == 0 { head.as_str() } else { "" };
            let _ = writeln!(
                out,
                "{head:<15}  {:<width$}  {:>7}  {:>5.1} %  {:>5.1} %  {:>5.2}  {:>7.3}",
                shown(pair),
                grouped(pair.count as u64),
                100.0 * pair.share_of_expert,
                100.0 * pair.share_of_character,
                pair.lift,
                entropies.get(&pair.character).copied().unwrap_or(0.0)
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer() -> Layer {
        Layer { path: "blocks.0.moe".into(), strategy: "softmax_top_k".into(), experts: 3 }
    }

    fn route(character: char, experts: &[usize], weights: &[f32], dropped: &[bool]) -> Route {
        Route {
            layer: "blocks.0.moe".into(),
            position: 0,
            character,
            experts: experts.to_vec(),
            weights: weights.to_vec(),
            dropped: dropped.to_vec(),
        }
    }

    #[test]
    fn characters_are_counted_and_held_against_chance() {
        let kept = [false, false];
        let mut routes = vec![
            route('a', &[0, 1], &[0.75, 0.25], &kept),
            route('a', &[0, 1], &[0.25, 0.75], &kept),
            route('\n', &[1, 0], &[0.75, 0.25], &[false, true]),
            route('b', &[], &[], &[]),
        ];
        routes.push(Route { layer: "another".into(), ..route('a', &[2, 1], &[0.5, 0.5], &kept) });
        let all = count(&layer(), 0, &routes, None);
        assert_eq!((all.choices, all.experts.len(), all.characters.len()), (5, 3, 3));
        let counts = |c: char| all.characters.iter().find(|x| x.character == c).unwrap().counts.clone();
        assert_eq!((counts('a'), counts('\n'), counts('b')), (vec![2, 2, 0], vec![0, 1, 0], vec![0, 0, 0]));
        let a = &all.experts[0].characters[0];
        assert_eq!((a.character, a.count, a.share_of_expert, a.share_of_character), ('a', 2, 1.0, 1.0));
        assert!((a.lift - 1.0 / 0.8).abs() < 1e-12);
        // 1 of 3 by expert 1, where 0.6 would be chance; of `a` there are fewer than by chance.
        assert_eq!(all.experts[1].characters.iter().map(|p| p.character).collect::<Vec<_>>(), ['\n', 'a']);
        assert!((all.characters[1].entropy_nats - 2f64.ln()).abs() < 1e-12);
        assert!((all.entropy_of_characters_nats - 0.8 * 2f64.ln()).abs() < 1e-12);
        assert!(all.experts[2].characters.is_empty());

        let first = count(&layer(), 0, &routes, Some(1));
        assert_eq!(first.experts.iter().map(|e| e.choices).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(count(&layer(), 0, &routes, Some(3)).choices, 0);
    }

    #[test]
    fn the_table_has_a_block_for_every_expert_and_fits_narrow_terminals() {
        let kept = [false, false];
        let routes = [route('a', &[0, 1], &[0.75, 0.25], &kept), route('\n', &[1, 0], &[0.75, 0.25], &[false, true])];
        let text = table(&count(&layer(), 4, &routes, None), 1);
        assert_eq!(
            text,
            "blocks.0.moe (layer 4), softmax_top_k: 3 choices
entropy of the experts 0.637 nats; once the character is known 0.462
expert     load  char    count  of load  of char   lift  entropy
     0   33.3 %  'a'         1  100.0 %  100.0 %   1.50    0.693
     1   66.7 %  '\\n'        1   50.0 %  100.0 %   1.50    0.000
     2    0.0 %
"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 70));
    }
}
