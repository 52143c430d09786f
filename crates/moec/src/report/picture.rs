//! A picture of its own: curves as an SVG file that stands in a document or a browser, in light and in dark, and needs nothing
//! beside it. Every curve has its name at its end.

use crate::report::html::html;
use crate::report::palette;
use crate::report::plot::{apart, coordinate, range, short, ticks};

/// The colours of reports.
const COLOURS: &str = include_str!("colours.css");

const STYLE: &str = "text{font-family:system-ui,-apple-system,\"Segoe UI\",Helvetica,Arial,sans-serif;fill:var(--fg)}\
.title{font-size:17px;font-weight:600}.soft{font-size:12.5px;fill:var(--soft)}.tick{font-size:12px;fill:var(--soft)}\
.name{font-size:13px;font-weight:600;fill:var(--g)}.page{fill:var(--bg)}.grid{stroke:var(--line);stroke-width:1}\
.axis{stroke:var(--soft);stroke-width:1}.curve{fill:none;stroke:var(--g);stroke-width:2.2;stroke-linejoin:round;\
stroke-linecap:round}.band{fill:var(--g);fill-opacity:.16}.dot{fill:var(--g)}.try{fill:var(--soft);fill-opacity:.55}.lead{stroke:var(--g);stroke-width:1;\
stroke-opacity:.55;fill:none}";

/// Width and height.
const SIZE: (f64, f64) = (900.0, 520.0);

/// Of the area of the curves: left, top and bottom edge.
const AREA: (f64, f64, f64) = (58.0, 76.0, 464.0);

/// Between two names.
const LINE: f64 = 17.0;

/// Curves with names, at most; of more those that end lowest have them.
const NAMED: usize = ((AREA.2 - AREA.1) / LINE) as usize;

/// Characters of a name, at most; the whole one stands in its title.
const NAME: usize = 42;

/// Share of x at its beginning where curves may leave at the top: a loss falls most in its first steps, where there is least to
/// see.
const BEGINNING: f64 = 0.1;

/// Mean width of a character of a name, on the large side.
const CHARACTER: f64 = 8.2;

/// A curve, with a band around it where it is the mean of several.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) label: String,
    /// In the order of x.
    pub(crate) points: Vec<(f64, f64)>,
    /// Least and largest value at each of the points; empty for none.
    pub(crate) band: Vec<(f64, f64)>,
}

/// A point of its own, which says what it is to the pointer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dot {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) label: String,
}

/// Curves over one axis, and points behind them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Picture {
    pub(crate) title: String,
    /// What is measured in what, and what a band is.
    pub(crate) subtitle: String,
    /// What goes to the right.
    pub(crate) axis: String,
    pub(crate) lines: Vec<Line>,
    pub(crate) dots: Vec<Dot>,
}

/// Where numbers lie.
struct Place {
    x: (f64, f64),
    y: (f64, f64),
    right: f64,
}

impl Place {
    fn x(&self, x: f64) -> f64 {
        AREA.0 + (x - self.x.0) / (self.x.1 - self.x.0) * (self.right - AREA.0)
    }

    fn y(&self, y: f64) -> f64 {
        AREA.2 - (y - self.y.0) / (self.y.1 - self.y.0) * (AREA.2 - AREA.1)
    }

    fn path(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let mut path = String::new();
        for (i, (x, y)) in points.enumerate() {
            path += &format!("{}{} {}", if i == 0 { 'M' } else { 'L' }, coordinate(self.x(x)), coordinate(self.y(y)));
        }
        path
    }
}

impl Picture {
    /// The file.
    pub(crate) fn svg(&self) -> String {
        let mut out = String::new();
        html!(
            &mut out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n<style>",
            SIZE.0,
            SIZE.1,
            format!("{}: {}", self.title, self.lines.iter().map(|l| l.label.as_str()).collect::<Vec<_>>().join(", "))
        );
        out.push_str(COLOURS);
        for group in 0..palette::LINES {
            out.push_str(&format!(".g{group}{{--g:var(--g{group})}}"));
        }
        out.push_str(STYLE);
        html!(&mut out, "</style>\n<rect class=\"page\" width=\"{}\" height=\"{}\"/>\n", SIZE.0, SIZE.1);
        html!(&mut out, "<text class=\"title\" x=\"16\" y=\"30\">{}</text>\n", self.title);
        html!(
            &mut out,
            "<text class=\"soft\" x=\"16\" y=\"50\">{}</text>\n",
            format!("{}{}", self.subtitle, self.left_over())
        );
        if let Some(place) = self.place() {
            self.axes(&place, &mut out);
            self.curves(&place, &mut out);
            self.names(&place, &mut out);
        }
        out.push_str("</svg>\n");
        out
    }

    /// What is said of curves without names.
    fn left_over(&self) -> String {
        match self.drawn().count().saturating_sub(NAMED) {
            0 => String::new(),
            n => format!("; of {} curves the {NAMED} lowest have names, {n} are faint", n + NAMED),
        }
    }

    /// The curves that have points, with their numbers.
    fn drawn(&self) -> impl Iterator<Item = (usize, &Line)> {
        self.lines.iter().enumerate().filter(|(_, line)| !line.points.is_empty())
    }

    /// The numbers of the curves that have names, the highest first.
    fn named(&self) -> Vec<usize> {
        let last = |line: &Line| line.points.last().map_or(f64::INFINITY, |p| p.1);
        let mut named: Vec<(usize, f64)> = self.drawn().map(|(i, line)| (i, last(line))).collect();
        named.sort_by(|a, b| b.1.total_cmp(&a.1));
        named.split_off(named.len().saturating_sub(NAMED)).into_iter().map(|(i, _)| i).collect()
    }

    fn place(&self) -> Option<Place> {
        let points = || self.drawn().flat_map(|(_, line)| &line.points);
        let last = points().map(|p| p.0).chain(self.dots.iter().map(|dot| dot.x)).fold(0.0, f64::max);
        let y = self.heights(BEGINNING * last).or_else(|| self.heights(0.0))?;
        let widest = self.named().iter().map(|i| shown(&self.lines[*i].label).chars().count()).max().unwrap_or(0);
        let right = SIZE.0 - 30.0 - CHARACTER * widest as f64;
        Some(Place { x: (0.0, if last > 0.0 { last } else { 1.0 }), y, right })
    }

    /// The range of the values from some x on.
    fn heights(&self, from: f64) -> Option<(f64, f64)> {
        let of = |line: &Line| -> Vec<f64> {
            let from = line.points.partition_point(|p| p.0 < from);
            let bands = line.band.iter().skip(from).flat_map(|b| [b.0, b.1]);
            line.points[from..].iter().map(|p| p.1).chain(bands).collect()
        };
        let dots = self.dots.iter().filter(|dot| dot.x >= from).map(|dot| dot.y);
        range(self.drawn().flat_map(|(_, line)| of(line)).chain(dots))
    }

    fn axes(&self, place: &Place, out: &mut String) {
        for y in ticks(place.y.0, place.y.1, 6) {
            let at = coordinate(place.y(y));
            html!(out, "<path class=\"grid\" d=\"M{} {}H{}\"/>", AREA.0, at, coordinate(place.right));
            let middle = coordinate(place.y(y) + 4.0);
            html!(
                out,
                "<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n",
                AREA.0 - 8.0,
                middle,
                short(y)
            );
        }
        html!(out, "<path class=\"axis\" d=\"M{} {}H{}\"/>\n", AREA.0, AREA.2, coordinate(place.right));
        for x in ticks(place.x.0, place.x.1, 7) {
            let at = coordinate(place.x(x));
            html!(out, "<path class=\"axis\" d=\"M{} {}v5\"/>", at, AREA.2);
            html!(
                out,
                "<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                at,
                AREA.2 + 20.0,
                short(x)
            );
        }
        let middle = coordinate((AREA.0 + place.right) / 2.0);
        html!(
            out,
            "<text class=\"soft\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
            middle,
            AREA.2 + 42.0,
            self.axis
        );
    }

    fn curves(&self, place: &Place, out: &mut String) {
        let named = self.named();
        // What lies far above the others is cut off at the edge.
        html!(
            out,
            "<clipPath id=\"area\"><rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/></clipPath>\n<g clip-path=\"url(#area)\">\n",
            AREA.0,
            AREA.1,
            coordinate(place.right - AREA.0 + 6.0),
            AREA.2 - AREA.1 + 6.0
        );
        for (i, line) in self.drawn().filter(|(i, line)| named.contains(i) && line.band.len() == line.points.len()) {
            let low = line.points.iter().zip(&line.band).map(|(p, b)| (p.0, b.0));
            let high = line.points.iter().zip(&line.band).map(|(p, b)| (p.0, b.1));
            let around = high.chain(low.collect::<Vec<_>>().into_iter().rev());
            html!(out, "<path class=\"band {}\" d=\"{}Z\"/>\n", palette::line(i), place.path(around));
        }
        for dot in &self.dots {
            html!(
                out,
                "<circle class=\"try\" cx=\"{}\" cy=\"{}\" r=\"4.5\"><title>{}</title></circle>\n",
                coordinate(place.x(dot.x)),
                coordinate(place.y(dot.y)),
                dot.label
            );
        }
        for (i, line) in self.drawn() {
            let faint = if named.contains(&i) { "" } else { " stroke-opacity=\".3\"" };
            // The colours begin anew, the strokes do not.
            let dashes =
                ["", " stroke-dasharray=\"8 4\"", " stroke-dasharray=\"2 4\"", " stroke-dasharray=\"9 3 2 3\""];
            let dash = dashes[(i / palette::LINES) % dashes.len()];
            html!(out, "<path class=\"curve {}\" d=\"{}\"", palette::line(i), place.path(line.points.iter().copied()));
            out.push_str(faint);
            out.push_str(dash);
            html!(out, "><title>{}</title></path>\n", line.label);
        }
        out.push_str("</g>\n");
    }

    /// The names at the ends of the curves, moved apart where they would meet.
    fn names(&self, place: &Place, out: &mut String) {
        let named = self.named();
        let ends: Vec<(f64, f64)> = named
            .iter()
            .filter_map(|i| self.lines[*i].points.last())
            .map(|(x, y)| (place.x(*x), place.y(*y).clamp(AREA.1, AREA.2)))
            .collect();
        let heights: Vec<f64> = ends.iter().map(|end| end.1).collect();
        for ((i, (x, y)), at) in named.iter().zip(&ends).zip(apart(&heights, LINE, AREA.2)) {
            let (colour, label) = (palette::line(*i), &self.lines[*i].label);
            html!(
                out,
                "<circle class=\"dot {}\" cx=\"{}\" cy=\"{}\" r=\"3\"/>",
                colour,
                coordinate(*x),
                coordinate(*y)
            );
            let text = place.right + 18.0;
            html!(
                out,
                "<path class=\"lead {}\" d=\"M{} {}L{} {}\"/>",
                colour,
                coordinate(x + 4.0),
                coordinate(*y),
                coordinate(text - 4.0),
                coordinate(at)
            );
            html!(
                out,
                "<text class=\"name {}\" x=\"{}\" y=\"{}\">{}<title>{}</title></text>\n",
                colour,
                coordinate(text),
                coordinate(at + 4.5),
                shown(label),
                label
            );
        }
    }
}

/// A name that fits beside the curves: its middle is left out where it must be.
fn shown(label: &str) -> String {
    let characters: Vec<char> = label.chars().collect();
    if characters.len() <= NAME {
        return label.to_string();
    }
    let (begin, end) = (NAME / 2 - 1, characters.len() - NAME / 2);
    characters[..begin].iter().chain(&['…']).chain(&characters[end..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(label: &str, last: f64) -> Line {
        Line { label: label.to_string(), points: vec![(0.0, 3.0), (10.0, last)], band: Vec::new() }
    }

    fn picture(lines: Vec<Line>) -> Picture {
        Picture { title: "a < b".into(), subtitle: "nats".into(), axis: "steps".into(), lines, dots: Vec::new() }
    }

    #[test]
    fn names_stand_at_the_ends_and_apart() {
        let svg = picture(vec![line("one", 1.0), line("two", 1.001), line("three", 2.0)]).svg();
        assert!(svg.contains("a &lt; b") && svg.contains(">one<title>"), "{svg}");
        let heights: Vec<f64> = svg
            .lines()
            .filter_map(|l| l.split("<text class=\"name").nth(1)?.split("y=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(heights.len(), 3);
        assert!(heights.windows(2).all(|w| w[1] - w[0] >= LINE - 0.2), "{heights:?}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn many_curves_and_long_names_are_said_and_shortened() {
        let many: Vec<Line> = (0..40).map(|i| line(&format!("curve {i}"), f64::from(i))).collect();
        let svg = picture(many).svg();
        assert!(svg.contains(&format!("the {NAMED} lowest have names")), "{svg}");
        assert!(svg.contains(">curve 0<title>") && !svg.contains(">curve 39<title>"));
        assert_eq!(shown(&"x".repeat(100)).chars().count(), NAME);
        assert_eq!(shown("short"), "short");
    }

    #[test]
    fn without_points_there_is_a_title() {
        let svg = picture(vec![Line { label: "a".into(), points: Vec::new(), band: Vec::new() }]).svg();
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
        let single = picture(vec![Line { label: "a".into(), points: vec![(0.0, 1.0)], band: Vec::new() }]).svg();
        assert!(!single.contains("NaN") && !single.contains("inf"), "{single}");
    }
}
