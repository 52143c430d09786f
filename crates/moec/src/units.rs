//! Amounts for people.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        assert_eq!(scaled(8_996_545.0), "9.00 M");
        assert_eq!(scaled(12_345.0), "12.3 k");
        assert_eq!(scaled(999.0), "999");
        assert_eq!(bytes(144_000_000), "144 MB");
        assert_eq!(bytes(12), "12 B");
    }
}
