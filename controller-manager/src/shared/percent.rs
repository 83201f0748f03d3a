//! Counts that may be given in percent: `maxSurge: 25%`.
//!
//! Upstream: `apimachinery/pkg/util/intstr`.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    Up,
    Down,
}

/// The count that `value` means of `total`; none for text that is no percentage.
pub fn of(value: &IntOrString, total: i32, round: Round) -> Option<i32> {
    let percent = match value {
        IntOrString::Int(count) => return Some(*count),
        IntOrString::String(text) => text.strip_suffix('%')?.parse::<i64>().ok()?,
    };
    let hundredths = percent * i64::from(total);
    let count = match round {
        Round::Up => hundredths.div_euclid(100) + i64::from(hundredths.rem_euclid(100) > 0),
        Round::Down => hundredths.div_euclid(100),
    };
    i32::try_from(count).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds() {
        let percent = |text: &str| IntOrString::String(text.into());
        assert_eq!(of(&IntOrString::Int(3), 10, Round::Up), Some(3));
        assert_eq!(of(&percent("25%"), 10, Round::Up), Some(3));
        assert_eq!(of(&percent("25%"), 10, Round::Down), Some(2));
        assert_eq!(of(&percent("100%"), 7, Round::Up), Some(7));
        assert_eq!(of(&percent("a"), 7, Round::Up), None);
    }
}
