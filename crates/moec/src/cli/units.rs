//! Numbers for people.

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

/// `9.00 M`: three digits and a decimal prefix.
pub(crate) fn scaled(n: f64) -> String {
    let (value, prefix) = match n.abs() {
        a if a >= 1e12 => (n / 1e12, " T"),
        a if a >= 1e9 => (n / 1e9, " G"),
        a if a >= 1e6 => (n / 1e6, " M"),
        a if a >= 1e3 => (n / 1e3, " k"),
        _ => return format!("{n:.0}"),
    };
    let decimals = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}{prefix}")
}

/// `36.0 MB`, decimal.
pub(crate) fn bytes(n: u64) -> String {
    let text = scaled(n as f64);
    if text.contains(' ') { format!("{text}B") } else { format!("{text} B") }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(8_996_545), "8,996,545");
        assert_eq!(scaled(8_996_545.0), "9.00 M");
        assert_eq!(scaled(12_345.0), "12.3 k");
        assert_eq!(scaled(999.0), "999");
        assert_eq!(bytes(144_000_000), "144 MB");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(duration(59.4), "59 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        assert_eq!(duration(3720.0), "1 h 02 min");
    }
}
