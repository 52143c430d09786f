//! Curves over steps as inline SVG. The drawing is stretched to the width that there is, and the words beside it are text
//! of the page, so that they can be read at every width.

use crate::report::html::html;
use std::fmt::Write as _;

/// Width and height of the drawing in its own units.
const SIZE: (f64, f64) = (1000.0, 400.0);

/// Least distance of two words at the ends of curves, as a share of the height.
const APART: f64 = 0.055;

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stroke {
    /// The number to judge by.
    Solid,
    Dashed,
    /// What stands behind the others.
    Faint,
}

impl Stroke {
    /// Attributes of SVG.
    pub(super) fn attributes(self) -> &'static str {
        match self {
            Stroke::Solid => "stroke-width=\"2.5\"",
            Stroke::Dashed => "stroke-width=\"2\" stroke-dasharray=\"7 4\"",
            Stroke::Faint => "stroke-width=\"1\" stroke-opacity=\"0.65\"",
        }
    }
}

/// A curve, with a band around it where it is the mean of several.
pub(super) struct Curve {
    /// What it is, in the line that says what is under the pointer.
    pub(super) name: String,
    /// The class that gives it its colour.
    pub(super) colour: String,
    pub(super) stroke: Stroke,
    pub(super) points: Vec<(f64, f64)>,
    /// Least and largest value at each of the points.
    pub(super) band: Vec<(f64, f64)>,
    /// The word at its end.
    pub(super) end: Option<String>,
}

/// A drawing.
pub(super) struct Plot {
    pub(super) curves: Vec<Curve>,
    /// For those who do not see it.
    pub(super) description: String,
    pub(super) unit: &'static str,
}

impl Plot {
    /// Appends the drawing; nothing if there is no point.
    pub(super) fn draw(&self, out: &mut String) {
        let all = || self.curves.iter().flat_map(|c| &c.points);
        let last = all().map(|p| p.0).fold(0.0, f64::max);
        let Some(range) = range(all().map(|p| p.1).chain(self.curves.iter().flat_map(|c| c.band.iter().map(|b| b.1))))
        else {
            return;
        };
        let place = Place { last: last.max(1.0), range };
        html!(
            out,
            "<figure class=\"plot\"><div class=\"area\">\n<svg viewBox=\"0 0 {} {}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\" data-last=\"{}\">\n",
            SIZE.0,
            SIZE.1,
            self.description,
            place.last
        );
        let (across, along) = (ticks(range.0, range.1, 6), ticks(0.0, place.last, 7));
        for y in &across {
            html!(out, "<path class=\"grid\" d=\"M0 {}H{}\"/>", coordinate(place.y(*y)), SIZE.0);
        }
        for curve in &self.curves {
            if curve.band.len() == curve.points.len() && curve.band.len() > 1 {
                html!(out, "<path class=\"band {}\" d=\"{}\"/>", curve.colour, place.band(curve));
            }
        }
        for curve in &self.curves {
            let points: Vec<String> = curve.points.iter().map(|(x, y)| format!("{x:.0},{y:.3}")).collect();
            html!(
                out,
                "<path class=\"curve {}\" data-name=\"{}\" data-points=\"{}\" d=\"{}\" ",
                curve.colour,
                curve.name,
                points.join(" "),
                place.line(&curve.points)
            );
            let is_dot = curve.points.len() == 1;
            out.push_str(if is_dot { "stroke-width=\"9\"" } else { curve.stroke.attributes() });
            out.push_str("/>\n");
        }
        out.push_str("</svg>\n");
        for y in &across {
            html!(out, "<span class=\"y\" style=\"top:{}%\">{}</span>", percent(place.y(*y) / SIZE.1), short(*y));
        }
        for x in &along {
            html!(out, "<span class=\"x\" style=\"left:{}%\">{}</span>", percent(place.x(*x) / SIZE.0), short(*x));
        }
        for End { word, colour, x, y } in self.ends(&place) {
            html!(
                out,
                "<span class=\"end g {}\" style=\"left:{}%;top:{}%\">{}</span>",
                colour,
                percent(x),
                percent(y),
                word
            );
        }
        html!(out, "</div><figcaption class=\"axis\">{}, over steps</figcaption></figure>\n", self.unit);
    }

    /// The words at the ends of curves with their places, moved apart where they would meet.
    fn ends(&self, place: &Place) -> Vec<End> {
        let end = |c: &Curve| {
            let (step, value) = *c.points.last()?;
            let (x, y) = (place.x(step) / SIZE.0, (place.y(value) / SIZE.1).clamp(0.0, 1.0));
            Some(End { word: c.end.clone()?, colour: c.colour.clone(), x, y })
        };
        let mut ends: Vec<End> = self.curves.iter().filter_map(end).collect();
        ends.sort_by(|a, b| a.y.total_cmp(&b.y));
        let places: Vec<f64> = ends.iter().map(|end| end.y).collect();
        // The last ones may stand below the drawing, where there is nothing else.
        for (end, y) in ends.iter_mut().zip(apart(&places, APART, f64::INFINITY)) {
            end.y = y;
        }
        ends
    }
}

/// The word at the end of a curve, at shares of width and height.
struct End {
    word: String,
    colour: String,
    x: f64,
    y: f64,
}

/// Where numbers lie in a drawing.
struct Place {
    last: f64,
    range: (f64, f64),
}

impl Place {
    fn x(&self, step: f64) -> f64 {
        step / self.last * SIZE.0
    }

    fn y(&self, value: f64) -> f64 {
        let (low, high) = self.range;
        // What lies far above is cut off at the edge.
        ((high - value) / (high - low) * SIZE.1).max(-SIZE.1)
    }

    fn line(&self, points: &[(f64, f64)]) -> String {
        let mut path = String::new();
        for (i, (x, y)) in points.iter().enumerate() {
            let command = if i == 0 { 'M' } else { 'L' };
            // Writing to a string cannot fail.
            let _ = write!(path, "{command}{} {}", coordinate(self.x(*x)), coordinate(self.y(*y)));
        }
        // A single point is a line of no length, which round caps make a dot.
        if points.len() == 1 { path + "h0" } else { path }
    }

    fn band(&self, curve: &Curve) -> String {
        let steps = curve.points.iter().map(|p| p.0);
        let low = steps.clone().zip(&curve.band).map(|(x, b)| (x, b.0));
        let high = steps.zip(&curve.band).map(|(x, b)| (x, b.1));
        let around: Vec<(f64, f64)> = high.chain(low.collect::<Vec<_>>().into_iter().rev()).collect();
        self.line(&around) + "Z"
    }
}

/// From the least value to nearly the largest: a few large ones, as at the beginning of a training, do not press down all
/// the others.
pub(super) fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let mut sorted: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (low, most) = (*sorted.first()?, *sorted.last()?);
    let usual = sorted[(sorted.len() - 1) * 97 / 100];
    // Of a few values, none is unusual.
    let high = if sorted.len() > 40 && most - low > 2.0 * (usual - low) { usual + 0.25 * (usual - low) } else { most };
    let margin = (0.04 * (high - low)).max(1e-3);
    Some((low - margin, high + margin))
}

/// Places in their order, moved down where they would be less than `least` apart, and up again from where there is no more
/// room.
pub(super) fn apart(places: &[f64], least: f64, end: f64) -> Vec<f64> {
    let mut places = places.to_vec();
    for i in 1..places.len() {
        places[i] = places[i].max(places[i - 1] + least);
    }
    let mut end = end;
    for place in places.iter_mut().rev() {
        *place = place.min(end);
        end = *place - least;
    }
    places
}

/// Round numbers in a range, at most so many.
pub(super) fn ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
    let rough = (high - low) / most as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough * 0.999).unwrap_or(power);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|v| *v <= high + step * 1e-9).take(most + 2).collect()
}

/// A number of at most one decimal, which is finer than a screen.
pub(super) fn coordinate(value: f64) -> String {
    let rounded = (value * 10.0).round() / 10.0;
    format!("{}", if rounded == 0.0 { 0.0 } else { rounded })
}

fn percent(share: f64) -> String {
    format!("{:.2}", 100.0 * share)
}

/// A tick: `1.5`, `2k`.
pub(super) fn short(value: f64) -> String {
    let rounded = (value * 1e6).round() / 1e6;
    let prefixes = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match prefixes.iter().find(|(power, _)| rounded >= *power) {
        Some((power, prefix)) => format!("{}{prefix}", (rounded / power * 1e6).round() / 1e6),
        None => format!("{rounded}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 5000.0, 7), [0.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0]);
        assert_eq!(ticks(1.48, 4.3, 6), [1.5, 2.0, 2.5, 3.0, 3.5, 4.0]);
        assert_eq!(ticks(0.0, 1.0, 7).len(), 6);
        assert_eq!([short(1500.0), short(0.30000000000000004), short(20.0)], ["1.5k", "0.3", "20"]);
        assert_eq!([short(2.5e12), short(1e9), short(1.2e6)], ["2.5T", "1G", "1.2M"]);
    }

    #[test]
    fn places_are_moved_apart_within_their_room() {
        assert_eq!(apart(&[0.0, 0.1, 5.0], 1.0, f64::INFINITY), [0.0, 1.0, 5.0]);
        assert_eq!(apart(&[3.0, 3.5, 3.5], 1.0, 4.0), [2.0, 3.0, 4.0]);
        assert_eq!(apart(&[], 1.0, 4.0), [0.0; 0]);
    }

    #[test]
    fn a_few_large_values_do_not_press_down_the_others() {
        let mut values: Vec<f64> = (0..200).map(|i| 2.0 + f64::from(i) / 200.0).collect();
        let (low, high) = range(values.iter().copied()).unwrap();
        assert!(low < 2.0 && high > 2.99 && high < 3.1);
        values.push(40.0);
        assert!(range(values.into_iter()).unwrap().1 < 4.0);
        assert_eq!(range(std::iter::empty()), None);
    }

    #[test]
    fn words_at_the_ends_are_moved_apart() {
        let curve = |end: &str, y| Curve {
            name: "val".to_string(),
            colour: "g0".to_string(),
            stroke: Stroke::Solid,
            points: vec![(0.0, 3.0), (10.0, y)],
            band: Vec::new(),
            end: Some(end.to_string()),
        };
        let plot = Plot { curves: vec![curve("a", 1.0), curve("b", 1.01)], description: String::new(), unit: "loss" };
        let ends = plot.ends(&Place { last: 10.0, range: (0.0, 4.0) });
        assert_eq!((ends[0].word.as_str(), ends[1].word.as_str(), ends[0].x), ("b", "a", 1.0));
        assert!(ends[1].y - ends[0].y >= APART);
        let mut out = String::new();
        plot.draw(&mut out);
        assert!(out.contains("M0 ") && !out.contains("NaN") && !out.contains("inf"), "{out}");
    }
}
