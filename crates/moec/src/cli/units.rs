//! Numbers for people.

pub(crate) use crate::units::{bytes, scaled};

/// `8,996,545`
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `1 h 02 min`, `3 min 20 s`, `12 s`
pub(crate) fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// A time of so many milliseconds with that many decimals, or with two digits where those would leave less of a short one:
/// `98`, `7.1`, `0.12`.
pub(crate) fn milliseconds(ms: f64, decimals: usize) -> String {
    let two_digits = if ms > 0.0 { (1.0 - ms.log10().floor()).clamp(0.0, 4.0) as usize } else { 0 };
    format!("{ms:.0$}", decimals.max(two_digits))
}

/// A number with three digits: `0.713`, `12.4`, `1300`; very small and very large ones with an exponent.
pub(crate) fn significant(x: f64) -> String {
    let magnitude = x.abs();
    if x == 0.0 {
        return "0".to_string();
    }
    if !(1e-4..1e6).contains(&magnitude) {
        return format!("{x:.2e}");
    }
    format!("{x:.0$}", (2.0 - magnitude.log10().floor()).max(0.0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(8_996_545), "8,996,545");
        assert_eq!(duration(59.4), "59 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        for (ms, text) in [(170.3, "170"), (98.4, "98"), (7.04, "7.0"), (0.4, "0.40"), (0.123, "0.12"), (0.0, "0")] {
            assert_eq!(milliseconds(ms, 0), text);
        }
        assert_eq!((milliseconds(98.44, 1), milliseconds(0.0471, 1)), ("98.4".into(), "0.047".into()));
        assert_eq!(duration(3720.0), "1 h 02 min");
        for (x, text) in
            [(0.713, "0.713"), (12.44, "12.4"), (1300.0, "1300"), (0.0, "0"), (0.01234, "0.0123"), (3.21e-7, "3.21e-7")]
        {
            assert_eq!(significant(x), text);
        }
    }
}
