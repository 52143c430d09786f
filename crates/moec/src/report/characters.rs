//! Which expert gets which characters: shares, and how far they are from chance.

use crate::report::html::{html, visible};
use crate::report::{RoutedLayer, RoutedText};
use std::collections::BTreeMap;

/// Cells of the tables of all layers and runs, at most, and rows of one, at least and at most.
const CELLS: usize = 6_000;
const ROWS: (usize, usize) = (10, 48);

/// Deviations from chance from which on a share is no chance.
const SURE: f64 = 3.0;

/// Characters that are named for an expert.
const NAMED: usize = 6;

/// How often which expert worked on which character.
struct Counts {
    experts: usize,
    /// How often each character occurs, and how often each expert worked on it; where an expert had no room it did not.
    by_character: BTreeMap<char, (f64, Vec<f64>)>,
    by_expert: Vec<f64>,
    /// Length of the text.
    all: f64,
}

/// The part of a character that an expert works on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Share {
    share: f64,
    /// That, relative to the part of the whole text that the expert works on.
    lift: f64,
    /// Whether chance does not explain it.
    sure: bool,
}

impl Counts {
    fn of(text: &RoutedText, layer: &RoutedLayer) -> Self {
        let mut counts = Self {
            experts: layer.experts,
            by_character: BTreeMap::new(),
            by_expert: vec![0.0; layer.experts],
            all: text.characters.len() as f64,
        };
        for (character, choices) in text.characters.iter().zip(&layer.choices) {
            let none = || (0.0, vec![0.0; layer.experts]);
            let (occurs, row) = counts.by_character.entry(*character).or_insert_with(none);
            *occurs += 1.0;
            for choice in choices.iter().filter(|c| !c.dropped && c.expert < layer.experts) {
                row[choice.expert] += 1.0;
                counts.by_expert[choice.expert] += 1.0;
            }
        }
        counts
    }

    /// None for an expert that works on nothing.
    fn share(&self, character: char, expert: usize) -> Option<Share> {
        let (occurs, row) = self.by_character.get(&character)?;
        let chance = self.by_expert[expert] / self.all;
        if chance == 0.0 {
            return None;
        }
        let expected = occurs * chance;
        // Of a binomial count; with less than one expected, a few choices are no evidence.
        let deviation = (expected * (1.0 - chance)).max(1.0).sqrt();
        let share = row[expert] / occurs;
        Some(Share { share, lift: share / chance, sure: (row[expert] - expected).abs() >= SURE * deviation })
    }

    /// The characters, the most frequent first.
    fn frequent(&self) -> Vec<char> {
        let mut characters: Vec<(f64, char)> = self.by_character.iter().map(|(c, (occurs, _))| (*occurs, *c)).collect();
        characters.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        characters.into_iter().map(|(_, c)| c).collect()
    }

    /// What an expert gets more of than chance would give it, most of it first.
    fn favourites(&self, expert: usize) -> Vec<(char, Share)> {
        let mut found: Vec<(char, Share)> = (self.by_character.keys())
            .filter_map(|c| Some((*c, self.share(*c, expert)?)))
            .filter(|(_, s)| s.sure && s.lift > 1.0)
            .collect();
        let count = |c: &char| self.by_character[c].1[expert];
        found.sort_by(|a, b| count(&b.0).total_cmp(&count(&a.0)).then(a.0.cmp(&b.0)));
        found.truncate(NAMED);
        found
    }
}

/// Appends a table of the experts with what they get, and one of characters by experts. `texts` is the number of layers and
/// runs that share the page.
pub(super) fn tables(text: &RoutedText, layer: &RoutedLayer, texts: usize, out: &mut String) {
    let counts = Counts::of(text, layer);
    if counts.by_expert.iter().all(|n| *n == 0.0) {
        return;
    }
    out.push_str("<details open><summary>What each expert gets more of than chance</summary>\n<div class=\"wide\" tabindex=\"0\"><table>\n<thead><tr><th scope=\"col\">expert</th><th scope=\"col\">works on</th><th scope=\"col\" class=\"words\">characters, with the part of them that it works on and the lift</th></tr></thead>\n<tbody>\n");
    for expert in 0..counts.experts {
        html!(
            out,
            "<tr><th scope=\"row\" class=\"key\"><b class=\"e{}\">{}</b></th><td>{}</td><td class=\"words many\">",
            expert,
            expert,
            percent(counts.by_expert[expert] / counts.all)
        );
        let favourites = counts.favourites(expert);
        for (character, share) in &favourites {
            html!(
                out,
                "<span class=\"fav\"><b>{}</b> {} <small>×{}</small></span> ",
                visible(*character),
                percent(share.share),
                lift(share.lift)
            );
        }
        if favourites.is_empty() {
            out.push_str(if counts.by_expert[expert] == 0.0 { "nothing at all" } else { "nothing in particular" });
        }
        out.push_str("</td></tr>\n");
    }
    out.push_str("</tbody></table></div></details>\n");
    matrix(&counts, texts, out);
}

/// Characters by experts.
fn matrix(counts: &Counts, texts: usize, out: &mut String) {
    let (least, most) = ROWS;
    let rows = (CELLS / (texts.max(1) * counts.experts.max(1))).clamp(least, most);
    let characters = counts.frequent();
    out.push_str("<details><summary>All of it: characters by experts</summary>\n<p>The part of a character's occurrences that an expert works on, in percent, and the lift against chance under the pointer. Marked where chance does not explain it: <span class=\"up\">▲ more</span>, <span class=\"down\">▼ less</span>.");
    if characters.len() > rows {
        html!(out, " The {} most frequent of {} characters.", rows, characters.len());
    }
    out.push_str(
        "</p>\n<div class=\"wide\" tabindex=\"0\"><table class=\"matrix\">\n<thead><tr><td></td><th scope=\"col\">times</th>",
    );
    for expert in 0..counts.experts {
        html!(out, "<th scope=\"col\">{}</th>", expert);
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for character in characters.into_iter().take(rows) {
        let times = counts.by_character[&character].0;
        html!(out, "<tr><th scope=\"row\">{}</th><td>{}</td>", visible(character), times);
        for expert in 0..counts.experts {
            match counts.share(character, expert) {
                None => out.push_str("<td>–</td>"),
                Some(s) => {
                    let (class, sign) = match (s.sure, s.lift > 1.0) {
                        (true, true) => (" class=\"up\"", "▲"),
                        (true, false) => (" class=\"down\"", "▼"),
                        (false, _) => ("", ""),
                    };
                    out.push_str("<td");
                    out.push_str(class);
                    html!(out, " title=\"×{}\">{}{}</td>", lift(s.lift), sign, format!("{:.0}", 100.0 * s.share));
                }
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div></details>\n");
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn lift(lift: f64) -> String {
    if lift < 10.0 { format!("{lift:.1}") } else { format!("{lift:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Choice;

    /// Expert 0 has every `a`, expert 1 every `b`; what is dropped does not count.
    fn text() -> (RoutedText, RoutedLayer) {
        let characters: Vec<char> = "ab".repeat(50).chars().chain(['c']).collect();
        let choice = |expert, dropped| Choice { expert, weight: 1.0, dropped };
        let choices = characters.iter().map(|c| match c {
            'a' => vec![choice(0, false)],
            'b' => vec![choice(1, false), choice(0, true)],
            _ => vec![choice(1, false)],
        });
        let layer = RoutedLayer { path: "moe".into(), strategy: "x".into(), experts: 3, choices: choices.collect() };
        (RoutedText { characters, ..RoutedText::default() }, layer)
    }

    #[test]
    fn shares_are_held_against_chance() {
        let (text, layer) = text();
        let counts = Counts::of(&text, &layer);
        assert_eq!((counts.by_expert.clone(), counts.all), (vec![50.0, 51.0, 0.0], 101.0));
        let a = counts.share('a', 0).unwrap();
        assert!(a.share == 1.0 && (a.lift - 2.02).abs() < 1e-9 && a.sure, "{a:?}");
        let b = counts.share('b', 0).unwrap();
        assert!(b.share == 0.0 && b.lift == 0.0 && b.sure, "{b:?}");
        // A single character is no evidence.
        assert!(!counts.share('c', 1).unwrap().sure);
        assert_eq!((counts.share('a', 2), counts.share('z', 0)), (None, None));
        assert_eq!(counts.frequent(), ['a', 'b', 'c']);
        let favourites: Vec<char> = counts.favourites(1).into_iter().map(|f| f.0).collect();
        assert_eq!(favourites, ['b']);
    }

    #[test]
    fn tables_have_every_expert() {
        let (text, layer) = text();
        let mut out = String::new();
        tables(&text, &layer, 1, &mut out);
        for part in [
            "<b>a</b> 100 % <small>×2.0</small>",
            "nothing at all",
            "class=\"up\" title=\"×2.0\">▲100<",
            "class=\"down\"",
        ] {
            assert!(out.contains(part), "{part}: {out}");
        }
        let mut none = String::new();
        tables(&RoutedText::default(), &RoutedLayer::default(), 1, &mut none);
        assert_eq!(none, "");
    }
}
