//! What tells experts apart in a text: a colour each, or a letter where there are no colours.

use moec_ir::Invariant;

/// Backgrounds for black letters, by their numbers among the 256 colours of terminals: blue, yellow, cyan, rose, lime, olive,
/// pink, pale cyan. Chosen so that each two of them differ also for those who see no red, no green or no blue (the test
/// measures it), and the first few most.
const COLOURS: [u8; 8] = [68, 227, 81, 168, 148, 106, 217, 159];

/// Ways to use a colour. More experts than colours are told apart by these.
const STYLES: [Style; 3] = [Style::Filled, Style::Letters, Style::Underlined];

/// Labels where there are no colours.
const LABELS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Label of an expert that has none of its own.
const OTHER: char = '+';

/// Label of a character that no expert was asked for.
const NONE: char = '.';

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Black on the colour.
    Filled,
    /// The colour on black.
    Letters,
    /// Black on the colour, underlined.
    Underlined,
}

/// How a character is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// As an expert with a mark of its own.
    Own(usize),
    /// As one of the experts that share a mark, because there are more than marks.
    Other,
    /// As one that no expert works on.
    None,
}

/// The marks of the experts of a layer.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    of: Vec<Mark>,
    colours: bool,
}

impl Marks {
    /// A mark for each expert. Where they are more than marks, those with the most characters have one; `counts` has the
    /// characters of every expert.
    pub(crate) fn new(counts: &[usize], colours: bool) -> Self {
        let limit = if colours { COLOURS.len() * STYLES.len() } else { LABELS.len() };
        if counts.len() <= limit {
            return Self { of: (0..counts.len()).map(Mark::Own).collect(), colours };
        }
        let mut by_count: Vec<usize> = (0..counts.len()).collect();
        by_count.sort_by_key(|&expert| (std::cmp::Reverse(counts[expert]), expert));
        by_count.truncate(limit);
        by_count.sort_unstable();
        let mut of = vec![Mark::Other; counts.len()];
        for (mark, expert) in by_count.into_iter().enumerate() {
            of[expert] = Mark::Own(mark);
        }
        Self { of, colours }
    }

    /// The mark of an expert, or of none.
    pub(crate) fn of(&self, expert: Option<usize>) -> Mark {
        expert.map_or(Mark::None, |expert| self.of.get(expert).copied().unwrap_or(Mark::Other))
    }

    /// Whether marks are colours.
    pub(crate) fn are_colours(&self) -> bool {
        self.colours
    }

    /// The letter of a mark.
    pub(crate) fn label(mark: Mark) -> char {
        match mark {
            Mark::Own(number) => LABELS.get(number).map_or(OTHER, |&byte| char::from(byte)),
            Mark::Other => OTHER,
            Mark::None => NONE,
        }
    }

    /// A text in the colour of a mark.
    pub(crate) fn paint(mark: Mark, text: &str) -> String {
        let number = match mark {
            Mark::None => return text.to_string(),
            Mark::Other => return format!("\x1b[4m{text}\x1b[0m"),
            Mark::Own(number) => number,
        };
        let colour = COLOURS[number % COLOURS.len()];
        let style = STYLES.get(number / COLOURS.len()).invariant("there are as many marks as colours in every style");
        let begin = match style {
            Style::Filled => format!("\x1b[30;48;5;{colour}m"),
            Style::Letters => format!("\x1b[40;38;5;{colour}m"),
            Style::Underlined => format!("\x1b[4;30;48;5;{colour}m"),
        };
        format!("{begin}{text}\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is seen of linear light: by most, and by those without the cones for red, green or blue (Machado, Oliveira and
    /// Fernandes 2009, severity 1).
    const SEEN: [[[f64; 3]; 3]; 4] = [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.152_286, 1.052_583, -0.204_868], [0.114_503, 0.786_281, 0.099_216], [-0.003_882, -0.048_116, 1.051_998]],
        [[0.367_322, 0.860_646, -0.227_968], [0.280_085, 0.672_501, 0.047_413], [-0.011_820, 0.042_940, 0.968_881]],
        [[1.255_528, -0.076_749, -0.178_779], [-0.078_411, 0.930_809, 0.147_602], [0.004_733, 0.691_367, 0.303_900]],
    ];

    /// Linear light of one of the 216 colours of the cube.
    fn light(colour: u8) -> [f64; 3] {
        const LEVELS: [f64; 6] = [0.0, 95.0, 135.0, 175.0, 215.0, 255.0];
        let cube = usize::from(colour - 16);
        [cube / 36, cube / 6 % 6, cube % 6].map(|level| {
            let x = LEVELS[level] / 255.0;
            if x <= 0.04045 { x / 12.92 } else { ((x + 0.055) / 1.055).powf(2.4) }
        })
    }

    fn product(matrix: [[f64; 3]; 3], x: [f64; 3]) -> [f64; 3] {
        matrix.map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum())
    }

    /// Coordinates in which distances are those that are seen (Oklab).
    fn lab(light: [f64; 3]) -> [f64; 3] {
        let cones = [
            [0.412_221_470_8, 0.536_332_536_3, 0.051_445_992_9],
            [0.211_903_498_2, 0.680_699_545_1, 0.107_396_956_6],
            [0.088_302_461_9, 0.281_718_837_6, 0.629_978_700_5],
        ];
        let axes = [
            [0.210_454_255_3, 0.793_617_785_0, -0.004_072_046_8],
            [1.977_998_495_1, -2.428_592_205_0, 0.450_593_709_9],
            [0.025_904_037_1, 0.782_771_766_2, -0.808_675_766_0],
        ];
        product(axes, product(cones, light.map(|x| x.clamp(0.0, 1.0))).map(f64::cbrt))
    }

    #[test]
    fn colours_differ_for_everybody_and_carry_black_letters() {
        for (i, &a) in COLOURS.iter().enumerate() {
            let luminance: f64 = light(a).iter().zip([0.2126, 0.7152, 0.0722]).map(|(x, w)| x * w).sum();
            assert!((luminance + 0.05) / 0.05 > 5.0, "black on {a} is hard to read");
            for &b in &COLOURS[..i] {
                for seen in SEEN {
                    let (x, y) = (lab(product(seen, light(a))), lab(product(seen, light(b))));
                    let distance = x.iter().zip(y).map(|(p, q)| (p - q).powi(2)).sum::<f64>().sqrt();
                    assert!(distance > 0.1, "{a} and {b} differ by {distance:.3}");
                }
            }
        }
    }

    #[test]
    fn the_fullest_experts_have_marks_where_there_are_more_than_marks() {
        let few = Marks::new(&[1, 0, 2], true);
        assert_eq!([Some(0), Some(2), None].map(|e| few.of(e)), [Mark::Own(0), Mark::Own(2), Mark::None]);
        let counts: Vec<usize> = (0..100).collect();
        let many = Marks::new(&counts, true);
        assert_eq!([75, 76, 99].map(|e| many.of(Some(e))), [Mark::Other, Mark::Own(0), Mark::Own(23)]);
        let labels = Marks::new(&counts, false);
        assert_eq!([37, 38, 99].map(|e| Marks::label(labels.of(Some(e)))), ['+', '0', 'Z']);
        assert_eq!(Marks::label(Mark::None), '.');
        let painted: std::collections::BTreeSet<String> =
            (0..24).map(|e| Marks::paint(many.of(Some(76 + e)), "x")).collect();
        assert_eq!(painted.len(), 24);
    }
}
