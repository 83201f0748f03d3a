//! Exponential back-off per key, with the clock as an argument.
//!
//! A key's delay starts at `initial`, doubles with each new failure up to `max`, and is forgotten when the next failure
//! comes more than twice `max` after the last. Upstream: client-go `util/flowcontrol/backoff.go`, v1.33.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    delay: Duration,
    updated: Timestamp,
}

impl Backoff {
    pub fn new(initial: Duration, max: Duration) -> Self {
        Backoff { initial, max, entries: BTreeMap::new() }
    }

    /// Container restarts and image pulls: 10 s to 300 s.
    pub fn standard() -> Self {
        Backoff::new(Duration::from_secs(10), Duration::from_secs(300))
    }

    /// The key's delay, zero before its first failure.
    pub fn delay(&self, key: &str) -> Duration {
        self.entries.get(key).map(|e| e.delay).unwrap_or_default()
    }

    /// How long to wait still, when the last failure was at `event`.
    pub fn remaining(&self, key: &str, event: Timestamp, now: Timestamp) -> Option<Duration> {
        let entry = self.entries.get(key)?;
        if self.expired(entry, event) {
            return None;
        }
        let passed = Duration::try_from(now.duration_since(event)).unwrap_or_default();
        entry.delay.checked_sub(passed).filter(|d| !d.is_zero())
    }

    /// Counts a new attempt after the failure at `event`.
    pub fn next(&mut self, key: &str, event: Timestamp, now: Timestamp) {
        let delay = match self.entries.get(key) {
            Some(entry) if !self.expired(entry, event) => (entry.delay * 2).min(self.max),
            _ => self.initial,
        };
        self.entries.insert(key.to_owned(), Entry { delay, updated: now });
    }

    pub fn reset(&mut self, key: &str) {
        self.entries.remove(key);
    }

    fn expired(&self, entry: &Entry, event: Timestamp) -> bool {
        event.duration_since(entry.updated) > jiff::SignedDuration::try_from(self.max * 2).unwrap_or(jiff::SignedDuration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn doubles_to_the_maximum_and_forgets() {
        let mut backoff = Backoff::standard();
        assert_eq!(backoff.remaining("c", at(0), at(0)), None);
        let mut now = 0;
        let mut delays = Vec::new();
        for _ in 0..7 {
            backoff.next("c", at(now), at(now));
            delays.push(backoff.delay("c").as_secs());
            now += 1;
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.remaining("c", at(now), at(now + 100)), Some(Duration::from_secs(200)));
        assert_eq!(backoff.remaining("c", at(now), at(now + 300)), None);
        assert_eq!(backoff.remaining("c", at(now + 601), at(now + 601)), None);
        backoff.next("c", at(now + 601), at(now + 601));
        assert_eq!(backoff.delay("c").as_secs(), 10);
    }
}
