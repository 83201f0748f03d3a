//! Short stable names for templates: `web-6d4cf56db6`.
//!
//! Upstream: `pkg/controller/controller_utils.go` ComputeHash, `apimachinery/pkg/util/rand` SafeEncodeString.
//! Upstream hashes Go's dump of the struct; we hash its JSON, so our hashes differ from a stock cluster's (nothing compares them).

use serde::Serialize;

/// No vowels and no look-alikes, so that no hash spells a word.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// `collisions` sets a second template apart whose hash met an existing name.
pub fn of<T: Serialize>(value: &T, collisions: Option<i32>) -> serde_json::Result<String> {
    let mut bytes = serde_json::to_vec(value)?;
    if let Some(count) = collisions {
        bytes.extend_from_slice(&count.to_le_bytes());
    }
    Ok(safe_encode(&fnv1a(&bytes).to_string()))
}

pub fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

pub fn safe_encode(text: &str) -> String {
    text.bytes().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).collect()
}

/// A random suffix as `generateName` gives.
pub fn random_suffix() -> String {
    (0..5).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_stable_and_collisions_change_them() {
        assert_eq!(fnv1a(b""), 0x811c_9dc5);
        assert_eq!(fnv1a(b"a"), 0xe40c_292c);
        assert_eq!(safe_encode("0123456789"), "456789bcdf");
        let plain = of(&"x", None).unwrap();
        assert_eq!(plain, of(&"x", None).unwrap());
        assert_ne!(plain, of(&"x", Some(1)).unwrap());
    }
}
