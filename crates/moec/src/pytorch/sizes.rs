//! Numbers of a graph as formulas of the batch: a lowered graph has the extents of one batch, and the model is written for
//! every number of sequences B and every length T.
//!
//! The model is lowered for some batches of awkward sizes. Graphs that differ in numbers only say what each number is: a
//! product of B, T and a constant, or a share of the tokens that is rounded, such as a capacity.

use moec_ir::{Graph, Node, Op};

/// The graphs of one model for several batches.
pub(super) struct Sizes {
    /// Sequences and their length, for each graph.
    points: Vec<(usize, usize)>,
    graphs: Vec<Graph>,
    /// Rounded shares of the tokens that occur: capacities, numbers of chosen tokens.
    shares: Vec<Share>,
}

/// A number as a formula in Python.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Formula {
    /// The expression, of the names `B` and `T`.
    pub(super) text: String,
    /// Whether it is a sum or a product, which a factor must put in parentheses.
    pub(super) is_compound: bool,
}

/// `max(minimum, floor(c * x))` or `ceil`, x being N or T.
#[derive(Clone, Debug)]
struct Share {
    text: String,
    values: Vec<usize>,
}

/// Sizes of the batches: products of primes and other numbers that no model is likely to have, in an order in which the first
/// ones tell most.
pub(super) const BATCHES: [(usize, usize); 27] = [
    (7, 29),
    (5, 37),
    (11, 53),
    (3, 61),
    (13, 31),
    (17, 43),
    (23, 47),
    (19, 97),
    (29, 71),
    (2, 103),
    (31, 59),
    (6, 83),
    (9, 131),
    (14, 139),
    (37, 113),
    (41, 179),
    (43, 257),
    (101, 331),
    // Where minima of capacities show.
    (1, 1),
    (1, 2),
    (2, 2),
    (1, 5),
    (2, 3),
    (3, 5),
    (2, 7),
    (5, 4),
    (3, 11),
];

impl Sizes {
    /// Keeps the graphs that have the structure of most of them; `None` if there are too few to tell formulas from chance.
    pub(super) fn new(lowered: Vec<((usize, usize), Graph)>) -> Option<Self> {
        let (mut best, mut most) = (0, 0);
        for (i, (_, graph)) in lowered.iter().enumerate() {
            let like = lowered.iter().filter(|(_, other)| is_alike(graph, other)).count();
            if like > most {
                (best, most) = (i, like);
            }
        }
        if most < 6 {
            return None;
        }
        let model = lowered[best].1.clone();
        let (points, graphs) = lowered.into_iter().filter(|(_, graph)| is_alike(&model, graph)).unzip();
        let mut sizes = Self { points, graphs, shares: Vec::new() };
        sizes.find_shares();
        Some(sizes)
    }

    /// The graph whose structure is written.
    pub(super) fn graph(&self) -> &Graph {
        &self.graphs[0]
    }

    /// What a number of a node is for every batch; `None` if no formula is known that gives it.
    pub(super) fn formula(&self, node: usize, number: &dyn Fn(&Node) -> usize) -> Option<Formula> {
        let values = self.values(node, number);
        self.product(&values).or_else(|| self.share(&values)).or_else(|| self.bounded(&values))
    }

    /// As [`Self::formula`], of a number with a fraction, such as the factor of a mean.
    pub(super) fn real(&self, node: usize, number: &dyn Fn(&Node) -> f64) -> Option<Formula> {
        let values = self.values(node, number);
        let is_constant = |values: &[f64]| {
            let first = values[0];
            values
                .iter()
                .all(|v| (v - first).abs() <= 1e-12 * first.abs() || v == &first || (v.is_nan() && first.is_nan()))
        };
        if is_constant(&values) {
            return Some(Formula { text: float(values[0]), is_compound: values[0] < 0.0 });
        }
        for name in ["B", "T", "B * T"] {
            let by = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
                let units = self.points.iter().map(|&point| unit(name, point) as f64);
                values.iter().zip(units).map(|(&v, unit)| f(v, unit)).collect()
            };
            let product = by(&|v, unit| v * unit);
            if is_constant(&product) {
                let denominator = if name.len() > 1 { format!("({name})") } else { name.to_string() };
                return Some(Formula {
                    text: format!("{} / {denominator}", float(rounded(product[0]))),
                    is_compound: true,
                });
            }
            let quotient = by(&|v, unit| v / unit);
            if is_constant(&quotient) {
                let factor = float(rounded(quotient[0]));
                let text = if factor == "1.0" { name.to_string() } else { format!("{factor} * {name}") };
                return Some(Formula { text, is_compound: true });
            }
        }
        None
    }

    fn values<T>(&self, node: usize, number: &dyn Fn(&Node) -> T) -> Vec<T> {
        let at = |graph: &Graph| graph.ids().nth(node).map(|id| number(graph.node(id)));
        self.graphs.iter().filter_map(at).collect()
    }

    /// `c * B * T * share + rest`, with some of the factors.
    fn product(&self, values: &[usize]) -> Option<Formula> {
        let none = Share { text: String::new(), values: vec![1; values.len()] };
        for rest in [0, 1] {
            for share in std::iter::once(&none).chain(&self.shares) {
                for name in ["", "B", "T", "B * T", "(B + 1)", "(B + 1) * T"] {
                    let units = self.points.iter().zip(&share.values).map(|(&point, s)| unit(name, point) * s);
                    let mut factors = values.iter().zip(units).map(|(&v, unit)| {
                        let v = v.checked_sub(rest)?;
                        (unit > 0 && v.is_multiple_of(unit)).then(|| v / unit)
                    });
                    let Some(Some(factor)) = factors.next() else { continue };
                    // A constant is no product.
                    if (rest > 0 && name.is_empty() && share.text.is_empty()) || !factors.all(|f| f == Some(factor)) {
                        continue;
                    }
                    let parts = [name, share.text.as_str()].into_iter().filter(|part| !part.is_empty());
                    let mut parts: Vec<String> = parts.map(str::to_string).collect();
                    if factor != 1 || parts.is_empty() {
                        parts.push(factor.to_string());
                    }
                    let text = parts.join(" * ");
                    let is_compound = parts.len() > 1 || rest > 0 || text.contains(" * ");
                    return Some(match rest {
                        0 => Formula { text, is_compound },
                        _ => Formula { text: format!("{text} + {rest}"), is_compound },
                    });
                }
            }
        }
        None
    }

    /// A rounded share of the tokens.
    fn share(&self, values: &[usize]) -> Option<Formula> {
        self.rounded_share(values).map(|share| Formula { text: share.text, is_compound: false })
    }

    /// `min(a, c * share)`, a being a product: the rows of experts with a capacity.
    fn bounded(&self, values: &[usize]) -> Option<Formula> {
        for share in &self.shares {
            for factor in 1..=4096 {
                let bound = |i: usize| share.values[i] * factor;
                if values.iter().enumerate().any(|(i, &v)| v > bound(i)) {
                    continue;
                }
                let free: Vec<usize> = (0..values.len()).filter(|&i| values[i] < bound(i)).collect();
                let Some(&first) = free.first() else { break };
                let tokens = |i: usize| self.points[i].0 * self.points[i].1;
                let per_token = values[first] / tokens(first);
                let fits = (0..values.len()).all(|i| values[i] == bound(i).min(per_token * tokens(i)));
                if fits {
                    let text = format!("min(B * T * {per_token}, {} * {factor})", share.text);
                    return Some(Formula { text, is_compound: false });
                }
                break;
            }
        }
        None
    }

    /// Looks for the shares that occur, so that other numbers can be multiples of them.
    fn find_shares(&mut self) {
        let mut found: Vec<Share> = Vec::new();
        for (i, id) in self.graph().ids().enumerate() {
            let number: fn(&Node) -> usize = match &self.graph().node(id).op {
                Op::LimitCapacity { .. } => |node| match node.op {
                    Op::LimitCapacity { capacity, .. } => capacity,
                    _ => 0,
                },
                Op::TopK { .. } => |node| match node.op {
                    Op::TopK { k, .. } => k,
                    _ => 0,
                },
                Op::Previous { .. } => |node| match node.op {
                    Op::Previous { time } => time,
                    _ => 0,
                },
                _ => continue,
            };
            let values = self.values(i, &number);
            if found.iter().any(|share| share.values == values) || self.product(&values).is_some() {
                continue;
            }
            found.extend(self.rounded_share(&values));
        }
        self.shares = found;
    }

    /// `max(minimum, floor(c * x))` or `ceil` that gives the values.
    fn rounded_share(&self, values: &[usize]) -> Option<Share> {
        let minimum = *values.iter().min()?;
        for (unit_name, up) in [("B * T", false), ("T", true), ("T", false), ("B * T", true)] {
            let units: Vec<usize> = self.points.iter().map(|&point| unit(unit_name, point)).collect();
            // Where several values are the least one, it is the minimum; the others say between which numbers c lies.
            let (mut low, mut high) = (0.0f64, f64::INFINITY);
            for (&v, &unit) in values.iter().zip(&units) {
                let (v, unit) = (v as f64, unit as f64);
                let (from, to) = if up { ((v - 1.0) / unit, v / unit) } else { (v / unit, (v + 1.0) / unit) };
                high = high.min(to);
                if v as usize > minimum {
                    low = low.max(from);
                }
            }
            let Some((p, q)) = simplest(low, high, up) else { continue };
            let share = |unit: usize| if up { (unit * p).div_ceil(q) } else { unit * p / q };
            // Where no batch is small enough to show a minimum, it is the least that makes sense.
            let minimum = if values.iter().zip(&units).all(|(&v, &unit)| v == share(unit)) { 1 } else { minimum };
            if !values.iter().zip(&units).all(|(&v, &unit)| v == share(unit).max(minimum)) {
                continue;
            }
            let scaled = if p == 1 { unit_name.to_string() } else { format!("{unit_name} * {p}") };
            let rounded = match up {
                true => format!("-({scaled} // -{q})"),
                false => format!("{scaled} // {q}"),
            };
            return Some(Share { text: format!("max({minimum}, {rounded})"), values: values.to_vec() });
        }
        None
    }
}

fn unit(name: &str, (batch, time): (usize, usize)) -> usize {
    match name {
        "B" => batch,
        "T" => time,
        "B * T" => batch * time,
        "(B + 1)" => batch + 1,
        "(B + 1) * T" => (batch + 1) * time,
        _ => 1,
    }
}

/// The fraction with the smallest denominator between two numbers: from `low` on and below `high`, or above `low` and up to
/// `high`.
fn simplest(low: f64, high: f64, up: bool) -> Option<(usize, usize)> {
    (1..=10_000usize).find_map(|q| {
        let scaled = low * q as f64;
        // What a whole number of tokens times a decimal fraction is, is a whole number but for rounding.
        let p = if up { (scaled + 1e-9).floor() + 1.0 } else { (scaled - 1e-9).ceil() };
        let fits = if up { p <= high * q as f64 + 1e-9 } else { p < high * q as f64 - 1e-9 };
        (fits && p >= 1.0).then_some((p as usize, q))
    })
}

/// Without the digits that a division added.
fn rounded(x: f64) -> f64 {
    let near = (x * 1e6).round() / 1e6;
    if (near - x).abs() <= 1e-11 * x.abs() { near } else { x }
}

/// A number as Python writes it.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        "math.nan".into()
    } else if x.is_infinite() {
        if x > 0.0 { "math.inf".into() } else { "-math.inf".into() }
    } else {
        format!("{x:?}")
    }
}

/// Whether graphs differ in numbers only.
fn is_alike(a: &Graph, b: &Graph) -> bool {
    a.len() == b.len()
        && a.ids().zip(b.ids()).all(|(a_id, b_id)| {
            let (a, b) = (a.node(a_id), b.node(b_id));
            a.name == b.name
                && a.op.mnemonic() == b.op.mnemonic()
                && a.operands == b.operands
                && a.results.len() == b.results.len()
                && a.results.iter().zip(&b.results).all(|(a, b)| a.rank() == b.rank())
        })
}
