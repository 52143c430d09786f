//! Colours that people who see some colours alike can tell apart, and never the only sign of anything: experts have numbers,
//! runs have letters, lines have dashes.

use std::fmt::Write as _;

/// Colours of experts and of runs, by Okabe and Ito (2008), in the order in which neighbours differ most.
const COLOURS: [&str; 8] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a700", "#7f7f7f"];

/// How many colours of lines there are.
pub(super) const LINES: usize = 6;

/// The class that gives a group of runs its colour.
pub(super) fn line(group: usize) -> String {
    format!("g{}", group % LINES)
}

/// Classes of loads relative to an even share: what is below the bound, and its words. The last one has no bound. The contrast
/// to the page grows with the load, in light and dark alike, and the hue turns where the share is even.
pub(super) const LOADS: [(f64, &str); 7] = [
    (0.25, "below ¼"),
    (0.5, "¼ to ½"),
    (0.8, "½ to 0.8"),
    (1.25, "even"),
    (2.0, "1.25 to 2"),
    (4.0, "2 to 4"),
    (f64::INFINITY, "4 and more"),
];

/// The class of a load relative to an even share.
pub(super) fn load_class(relative: f64) -> usize {
    LOADS.iter().position(|(bound, _)| relative < *bound).unwrap_or(LOADS.len() - 1)
}

/// Rules for the colours of so many experts: `.eN` is expert N, its number stands below each of its characters.
pub(super) fn expert_rules(experts: usize) -> String {
    let mut css = String::new();
    for expert in 0..experts {
        let colour = COLOURS[expert % COLOURS.len()];
        // Writing to a string cannot fail.
        let _ = write!(css, ".e{expert}{{--c:{colour}}}.tx .e{expert}::after{{content:\"{expert}\"}}");
        if expert >= 10 {
            // Two digits have the width of one character.
            let _ = write!(css, ".tx .e{expert}::after{{font-size:.5em;top:2.6em}}");
        }
        // Experts of one colour differ by the line below.
        let line = match expert / COLOURS.len() % 4 {
            0 => continue,
            1 => "solid",
            2 => "dotted",
            _ => "double",
        };
        let _ = write!(css, ".tx .e{expert},.key .e{expert}{{text-decoration:underline {line}}}");
    }
    css
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_have_classes() {
        assert_eq!([0.0, 0.25, 0.79, 1.0, 1.25, 3.0, 100.0].map(load_class), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn experts_of_one_colour_differ() {
        let css = expert_rules(20);
        for rule in [".e0{--c:#0072b2}", ".e8{--c:#0072b2}", ".tx .e8,.key .e8{text-decoration:underline solid}"] {
            assert!(css.contains(rule), "{css}");
        }
        assert!(!css.contains(".tx .e0,"));
    }
}
