//! Amounts of CPU, memory and the like: exact decimal numbers with a suffix.
//!
//! Held as a count of nano-units (10⁻⁹) in an `i128`; upstream, too, rounds anything finer up to nano. Canonical form as upstream:
//! no fractional digits, the largest suffix that loses nothing, the family of suffix kept.
//! Upstream: `apimachinery/pkg/api/resource/quantity.go`.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    #[default]
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// Compares by amount alone: `1` equals `1000m`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseQuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const NANO: i128 = 1_000_000_000;
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
/// Larger binary amounts are capped, as upstream caps them at 2^63-1.
const MAX_BINARY: i128 = i64::MAX as i128 * NANO;
/// Upstream's others know no bound; ours is far beyond any that counts.
const MAX_DECIMAL: i128 = i128::MAX / 1024;

impl Quantity {
    pub const ZERO: Quantity = Quantity { nano: 0, format: Format::DecimalSi };

    pub fn parse(text: &str) -> Result<Self, ParseQuantityError> {
        text.parse()
    }

    pub fn from_value(value: i64) -> Self {
        Quantity { nano: value as i128 * NANO, format: Format::DecimalSi }
    }

    pub fn from_milli(milli: i64) -> Self {
        Quantity { nano: milli as i128 * (NANO / 1000), format: Format::DecimalSi }
    }

    pub fn from_bytes(bytes: i64) -> Self {
        Quantity { nano: bytes as i128 * NANO, format: Format::BinarySi }
    }

    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Thousandths, rounded up: CPU as the scheduler counts it.
    pub fn milli(&self) -> i128 {
        div_up(self.nano, NANO / 1000)
    }

    /// Whole units, rounded up: bytes, counts.
    pub fn value(&self) -> i64 {
        div_up(self.nano, NANO).clamp(i64::MIN as i128, i64::MAX as i128) as i64
    }

    /// Whether it is a whole number of units. Upstream counts in 64 bits' worth of thousandths, and so refuses what is beyond them.
    pub fn is_integer(&self) -> bool {
        self.milli() as i64 % 1000 == 0
    }

    pub fn to_k8s(&self) -> K8sQuantity {
        K8sQuantity(self.to_string())
    }
}

/// Division that rounds away from zero, as upstream's `ScaledValue`.
fn div_up(n: i128, d: i128) -> i128 {
    let q = n / d;
    if n % d == 0 { q } else { q + n.signum() }
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseQuantityError::Format);
        }
        if !suffix.bytes().all(|b| b.is_ascii_digit() || b"eEinumkKMGTP+-".contains(&b)) {
            return Err(ParseQuantityError::Format);
        }
        let (format, binary_shift, exponent) = parse_suffix(suffix)?;
        let most = if format == Format::BinarySi { MAX_BINARY } else { MAX_DECIMAL };
        let nano = scale(whole, fraction, binary_shift, exponent, most);
        Ok(Quantity { nano: if negative { -nano } else { nano }, format })
    }
}

/// `(family, power of two, power of ten)`.
fn parse_suffix(suffix: &str) -> Result<(Format, u32, i32), ParseQuantityError> {
    if let Some((_, shift)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::BinarySi, *shift, 0));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::DecimalSi, 0, *exponent));
    }
    match suffix.strip_prefix(['e', 'E']).and_then(|digits| digits.parse::<i32>().ok()) {
        Some(exponent) => Ok((Format::DecimalExponent, 0, exponent)),
        None => Err(ParseQuantityError::Suffix),
    }
}

/// `whole.fraction × 2^shift × 10^exponent` in nano-units, rounded up, capped.
fn scale(whole: &str, fraction: &str, shift: u32, exponent: i32, most: i128) -> i128 {
    let mut places = fraction.len() as i32 - exponent - 9;
    let mut n: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        if n > i128::MAX / 16 {
            // Beyond any amount that counts: further digits only change the magnitude.
            places -= 1;
            continue;
        }
        n = n * 10 + (digit - b'0') as i128;
    }
    n = n.checked_mul(1 << shift).unwrap_or(i128::MAX);
    while places < 0 && n != 0 && n <= most {
        n = n.saturating_mul(10);
        places += 1;
    }
    let mut lost = false;
    while places > 0 && n != 0 {
        lost |= n % 10 != 0;
        n /= 10;
        places -= 1;
    }
    (n + lost as i128).min(most)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let whole = self.nano % NANO == 0;
        let units = self.nano / NANO;
        if self.format == Format::BinarySi && whole && units.abs() >= 1024 {
            let (suffix, shift) = BINARY.iter().rev().find(|(_, shift)| units % (1i128 << shift) == 0).copied().unwrap_or(("", 0));
            return write!(f, "{}{suffix}", units >> shift);
        }
        if self.format == Format::BinarySi && whole {
            return write!(f, "{units}");
        }
        let (mut n, mut exponent) = (self.nano, -9);
        while n % 1000 == 0 && exponent < 18 {
            n /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { write!(f, "{n}") } else { write!(f, "{n}e{exponent}") };
        }
        let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s);
        write!(f, "{n}{suffix}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl Add for Quantity {
    type Output = Quantity;
    /// An empty left side takes the right side's format, as upstream.
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.nano == 0 { other.format } else { self.format };
        Quantity { nano: self.nano + other.nano, format }
    }
}
impl Sub for Quantity {
    type Output = Quantity;
    fn sub(self, other: Quantity) -> Quantity {
        let format = if self.nano == 0 { other.format } else { self.format };
        Quantity { nano: self.nano - other.nano, format }
    }
}
impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Quantity) {
        *self = *self + other;
    }
}
impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Quantity) {
        *self = *self - other;
    }
}

impl TryFrom<&K8sQuantity> for Quantity {
    type Error = ParseQuantityError;
    fn try_from(quantity: &K8sQuantity) -> Result<Self, Self::Error> {
        quantity.0.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_form() {
        for (text, canonical) in [
            ("0", "0"),
            ("0m", "0"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1.5", "1500m"),
            ("0.1", "100m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e6", "12e6"),
            ("1Ki", "1Ki"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("-1", "-1"),
            ("+2", "2"),
            ("1M", "1M"),
            ("1000k", "1M"),
            (".5", "500m"),
            ("5.", "5"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("100Ei", "9223372036854775807"),
            ("99999999999999999999", "99999999999999999999"),
            ("0.0001", "100u"),
            ("1000000Ki", "1000000Ki"),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), canonical, "{text}");
        }
        for text in ["", "-", "1.2.3", "abc", "1Kib", "1 Gi", "1ee3", "Gi", "1e", "1mi"] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        let q = |t: &str| Quantity::parse(t).unwrap();
        assert_eq!(q("1.5").milli(), 1500);
        assert_eq!(q("100u").milli(), 1);
        assert_eq!(q("1500m").value(), 2);
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert_eq!((q("2") - q("500m")).to_string(), "1500m");
        assert!(q("1Ki") > q("1k"));
        assert_eq!(q("1"), q("1000m"));
    }
}
