//! Scalars with a text form of their own: times, quantities, base64. Each parser returns the canonical form or Go's error text.

use api::quantity::Quantity;
use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

/// RFC 3339 in UTC, whole seconds (the rest is cut off).
pub fn time(text: &str) -> Result<String, String> {
    parse_time(text, "2006-01-02T15:04:05Z07:00").map(|t| t.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// RFC 3339 in UTC with six decimals.
pub fn micro_time(text: &str) -> Result<String, String> {
    parse_time(text, "2006-01-02T15:04:05.000000Z07:00").map(|t| {
        let micros = t.subsec_nanosecond() / 1000;
        format!("{}.{micros:06}Z", t.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    })
}

fn parse_time(text: &str, layout: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (rest, part) = match digits {
            0..4 => (text, "2006"),
            _ if text.len() <= 4 => ("", "-"),
            _ if text.len() < 11 => (&text[text.len().min(10)..], "T"),
            _ => ("", "Z07:00"),
        };
        format!("parsing time {} as {layout:?}: cannot parse {} as {part:?}", api::field::go_quote(text), api::field::go_quote(rest))
    })
}

/// Seconds and nanoseconds since the epoch.
pub fn seconds_nanos(text: &str) -> Option<(i64, i32)> {
    let t: Timestamp = text.parse().ok()?;
    let (mut seconds, mut nanos) = (t.as_second(), t.subsec_nanosecond());
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    Some((seconds, nanos))
}

pub fn from_seconds_nanos(seconds: i64, nanos: i32) -> Option<String> {
    Timestamp::new(seconds, nanos).ok().map(|t| t.to_string())
}

/// A float as Go writes it: a whole one without a point.
pub fn float(value: f64) -> Value {
    let whole = value.fract() == 0.0 && value.abs() < 1e15;
    if whole { Value::from(value as i64) } else { Value::from(value) }
}

pub fn quantity(text: &str) -> Result<String, String> {
    text.trim_matches(' ').parse::<Quantity>().map(|q| q.to_string()).map_err(|e| e.to_string())
}

/// Go does not look at the bits that are left over at the end.
const LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// Canonical base64. Go ignores line breaks.
pub fn base64(text: &str) -> Result<String, String> {
    if text.contains(['\n', '\r']) {
        let joined: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        return base64(&joined);
    }
    match LENIENT.decode(text) {
        Ok(bytes) => Ok(STANDARD.encode(bytes)),
        Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => {
            Err(format!("illegal base64 data at input byte {at}"))
        }
        Err(_) => Err(format!("illegal base64 data at input byte {}", text.len().saturating_sub(text.len() % 4))),
    }
}

pub fn base64_bytes(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

pub fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
