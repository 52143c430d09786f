//! `-S PATH=..`: the values that something of a spec takes in turn, as a list or as a range.

/// Values of one sweep, at most: each is a training.
const MOST: u64 = 100;

/// What is swept, and over what.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sweep {
    /// As `-s` takes it: a name of the model, or a setting of the recipe.
    pub(crate) path: String,
    pub(crate) over: Over,
}

/// What a sweep goes over.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Over {
    /// The values in the order in which they were given.
    Values(Vec<String>),
    /// All numbers between two, both included; whole ones if both bounds are written as whole numbers.
    Range { low: f64, high: f64, is_whole: bool, is_log: bool },
}

/// Reads `PATH=A,B,C`, `PATH=LOW..HIGH`, `PATH=LOW..HIGH@log:N` and the like; ranges with a number of points are lists already.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that names it.
pub(crate) fn given(text: &str) -> Result<Sweep, String> {
    let (path, over) = text.split_once('=').ok_or("it is written PATH=VALUES, as in k=1,2,4 or lr=1e-4..1e-2@log:5")?;
    let path = path.trim();
    if path.is_empty() {
        return Err("the path before `=` is missing".into());
    }
    match path {
        "train.seed" => return Err("seeds are repetitions and no variants: --seeds K".into()),
        "train.steps" | "steps" => {
            return Err("the number of steps is the budget, which is equal for all: --steps N".into());
        }
        _ => {}
    }
    let over = match range(over.trim())? {
        Some(over) => over,
        None => Over::Values(list(over)?),
    };
    Ok(Sweep { path: path.to_string(), over })
}

/// The values of a list.
fn list(text: &str) -> Result<Vec<String>, String> {
    let values: Vec<String> = split(text).into_iter().map(|value| value.trim().to_string()).collect();
    if values.iter().any(String::is_empty) {
        return Err("a value is missing between two commas, or behind `=`".into());
    }
    if let Some(twice) = values.iter().enumerate().find(|(i, value)| values[..*i].contains(value)) {
        return Err(format!("{} is there twice", twice.1));
    }
    if values.len() as u64 > MOST {
        return Err(format!("{} values are more than {MOST}", values.len()));
    }
    Ok(values)
}

/// The parts between commas, but for commas in brackets and in quotes.
pub(crate) fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut depth, mut is_quoted) = (Vec::new(), 0, 0i32, false);
    for (at, c) in text.char_indices() {
        match c {
            '"' => is_quoted = !is_quoted,
            '(' | '[' | '{' if !is_quoted => depth += 1,
            ')' | ']' | '}' if !is_quoted => depth -= 1,
            ',' if !is_quoted && depth <= 0 => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

/// A range, if it is one.
fn range(text: &str) -> Result<Option<Over>, String> {
    // A text or a call may hold two points, too.
    let Some((low, rest)) = text.split_once("..").filter(|_| !text.contains(['"', ',', '('])) else { return Ok(None) };
    let (high, scale) = rest.split_once('@').map_or((rest, None), |(high, scale)| (high, Some(scale)));
    let (low, high) = (low.trim(), high.trim());
    let number = |text: &str| -> Result<f64, String> {
        let number = text.parse().ok().filter(|number: &f64| number.is_finite());
        number.ok_or_else(|| format!("`{text}` is no number; a range is LOW..HIGH, as in 1e-4..1e-2@log:5"))
    };
    let (from, to) = (number(low)?, number(high)?);
    if from >= to {
        return Err(format!("the range goes from {low} to {high}: the lower bound comes first"));
    }
    let is_whole = [low, high].iter().all(|text| text.parse::<i64>().is_ok());
    let (scale, points) = match scale.map(|scale| scale.split_once(':').map_or((scale, None), |(s, n)| (s, Some(n)))) {
        None => ("linear", None),
        Some((scale, points)) => (scale.trim(), points),
    };
    let is_log = match scale {
        "log" => true,
        "linear" => false,
        other => return Err(format!("`@{other}` is no scale: @log or @linear, with a number of points @log:5")),
    };
    if is_log && from <= 0.0 {
        return Err(format!("{low} has no logarithm: a range @log begins above 0"));
    }
    let Some(points) = points else { return Ok(Some(Over::Range { low: from, high: to, is_whole, is_log })) };
    let points: u64 = points.trim().parse().map_err(|_| format!("`{points}` is no number of points"))?;
    if !(2..=MOST).contains(&points) {
        return Err(format!("a range has 2 to {MOST} points, and not {points}"));
    }
    let at = |i: u64| {
        let share = i as f64 / (points - 1) as f64;
        if is_log { (from.ln() + share * (to.ln() - from.ln())).exp() } else { from + share * (to - from) }
    };
    let mut values: Vec<String> = (0..points)
        .map(|i| match i {
            0 => low.to_string(),
            i if i == points - 1 => high.to_string(),
            i if is_whole => format!("{:.0}", at(i)),
            i => value(at(i)),
        })
        .collect();
    // Whole numbers of a short range meet.
    values.dedup();
    Ok(Some(Over::Values(values)))
}

impl Sweep {
    /// The values one after the other.
    ///
    /// # Errors
    /// When it is a range of all numbers between two, or has too many.
    pub(crate) fn values(&self) -> Result<Vec<String>, String> {
        match &self.over {
            Over::Values(values) => Ok(values.clone()),
            Over::Range { low, high, is_whole: true, is_log: false } if high - low < MOST as f64 => {
                Ok((0..=(high - low) as u64).map(|i| format!("{}", low + i as f64)).collect())
            }
            Over::Range { low, high, is_log, .. } => {
                let scale = if *is_log { "log" } else { "linear" };
                Err(format!("the range {low}..{high} needs a number of points: {low}..{high}@{scale}:5"))
            }
        }
    }
}

/// A number of three digits as the language writes it: `0.0316`, `3.16e-4`, `20000`. What it is called is what it is.
pub(crate) fn value(x: f64) -> String {
    let short = format!("{x:.2e}");
    let (digits, exponent) = short.split_once('e').unwrap_or((&short, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-3..6).contains(&exponent) {
        let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
        return format!("{digits}e{exponent}");
    }
    short.parse::<f64>().map_or(short.clone(), |rounded| format!("{rounded}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<String> {
        given(text).unwrap().values().unwrap()
    }

    #[test]
    fn lists_and_ranges_have_values() {
        assert_eq!(values("k=1,2,4"), ["1", "2", "4"]);
        assert_eq!(values("experts=4..7"), ["4", "5", "6", "7"]);
        assert_eq!(values("lr=1e-4..1e-2@log:5"), ["1e-4", "3.16e-4", "0.001", "0.00316", "1e-2"]);
        assert_eq!(values("width=32..128@log:3"), ["32", "64", "128"]);
        assert_eq!(values("k=1..3@linear:9"), ["1", "2", "3"]);
        assert_eq!(values("p=0..0.2@linear:3"), ["0", "0.1", "0.2"]);
        assert_eq!(values("train.data=\"../a.txt\",\"../b.txt\""), ["\"../a.txt\"", "\"../b.txt\""]);
        assert_eq!(
            values("train.optimizer=adamw(lr: 1e-3, beta1: 0.9), lion(lr: 1e-4)"),
            ["adamw(lr: 1e-3, beta1: 0.9)", "lion(lr: 1e-4)"]
        );
        let lr = given("lr=1e-4..1e-2@log").unwrap();
        assert_eq!(lr.over, Over::Range { low: 1e-4, high: 1e-2, is_whole: false, is_log: true });
        assert!(lr.values().unwrap_err().contains("0.0001..0.01@log:5"));
    }

    #[test]
    fn what_is_no_sweep_is_refused_with_the_reason() {
        for (text, reason) in [
            ("k", "PATH=VALUES"),
            ("=1,2", "path"),
            ("k=", "missing"),
            ("k=1,,2", "missing"),
            ("k=1,2,1", "twice"),
            ("k=4..1", "lower bound"),
            ("k=1..1", "lower bound"),
            ("k=a..3", "`a` is no number"),
            ("k=1..inf", "`inf` is no number"),
            ("lr=0..1@log:3", "logarithm"),
            ("lr=1..2@cubic:3", "@log or @linear"),
            ("lr=1..2@log:1", "2 to 100"),
            ("lr=1..2@log:many", "number of points"),
            ("train.seed=1,2", "--seeds"),
            ("train.steps=100,200", "--steps"),
        ] {
            let refused = given(text).unwrap_err();
            assert!(refused.contains(reason), "{text}: {refused}");
        }
        assert!(given("k=1..1000").unwrap().values().is_err());
    }

    #[test]
    fn numbers_are_written_as_the_language_does() {
        let written = [3.1622e-4, 0.031622, 0.1, 20000.0, 1.234567e7, 0.0].map(value);
        assert_eq!(written, ["3.16e-4", "0.0316", "0.1", "20000", "1.23e7", "0"]);
    }
}
