//! When a CronJob is due.
//!
//! Upstream: `pkg/controller/cronjob/utils.go`, schedules as `robfig/cron` reads them: five fields, `@hourly` and the
//! like, `@every 1h30m`, by the clock of `timeZone` (UTC if none is given).

use std::time::Duration;

use anyhow::Context as _;
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// Times missed beyond which something is wrong with the schedule or the clock.
const TOO_MANY: usize = 100;

pub struct Schedule {
    rule: Rule,
    zone: TimeZone,
}

enum Rule {
    Fields(Box<Cron>),
    Every(Duration),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// The latest time at or before now that was not handled yet.
    pub at: Option<Timestamp>,
    pub too_many_missed: bool,
    pub next: Option<Timestamp>,
}

impl Schedule {
    pub fn parse(text: &str, zone: Option<&str>) -> anyhow::Result<Self> {
        let zone = match zone {
            Some(name) => TimeZone::get(name).with_context(|| format!("unknown time zone {name}"))?,
            None => TimeZone::UTC,
        };
        let rule = match text.strip_prefix("@every ") {
            Some(duration) => Rule::Every(crate::config::duration(duration.trim()).map_err(anyhow::Error::msg)?),
            None => Rule::Fields(Box::new(CronParser::builder().seconds(Seconds::Disallowed).build().parse(text)?)),
        };
        Ok(Schedule { rule, zone })
    }

    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// `earliest`: the last time that was handled, or the CronJob's making.
    pub fn due(&self, earliest: Timestamp, now: Timestamp) -> Due {
        let mut due = Due { at: None, too_many_missed: false, next: None };
        let mut at = earliest;
        let mut missed = 0;
        while let Some(next) = self.after(at) {
            if next > now {
                due.next = Some(next);
                return due;
            }
            missed += 1;
            due.at = Some(next);
            at = next;
            if missed > TOO_MANY {
                due.too_many_missed = true;
                due.at = self.before(now).or(due.at);
                due.next = self.after(due.at.unwrap_or(now));
                return due;
            }
        }
        due
    }

    fn after(&self, at: Timestamp) -> Option<Timestamp> {
        match &self.rule {
            Rule::Every(period) => at.checked_add((*period).max(Duration::from_secs(1))).ok(),
            Rule::Fields(cron) => cron.find_next_occurrence(&self.local(at), false).ok().map(|time: Zoned| time.timestamp()),
        }
    }

    /// The latest time at or before `at`; only fields know theirs without counting from the start.
    fn before(&self, at: Timestamp) -> Option<Timestamp> {
        match &self.rule {
            Rule::Every(_) => Some(at),
            Rule::Fields(cron) => cron.find_previous_occurrence(&self.local(at), true).ok().map(|time: Zoned| time.timestamp()),
        }
    }

    fn local(&self, at: Timestamp) -> Zoned {
        at.to_zoned(self.zone.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn due_times() {
        let hourly = Schedule::parse("0 * * * *", None).unwrap();
        let due = hourly.due(at("2025-01-01T10:30:00Z"), at("2025-01-01T10:59:00Z"));
        assert_eq!((due.at, due.next), (None, Some(at("2025-01-01T11:00:00Z"))));
        let due = hourly.due(at("2025-01-01T10:30:00Z"), at("2025-01-01T12:10:00Z"));
        assert_eq!((due.at, due.next), (Some(at("2025-01-01T12:00:00Z")), Some(at("2025-01-01T13:00:00Z"))));
        let due = hourly.due(at("2024-01-01T10:30:00Z"), at("2025-01-01T12:10:00Z"));
        assert_eq!((due.at, due.too_many_missed), (Some(at("2025-01-01T12:00:00Z")), true));
    }

    #[test]
    fn zones_nicknames_and_nonsense() {
        let noon = Schedule::parse("0 12 * * *", Some("Europe/Berlin")).unwrap();
        assert_eq!(noon.due(at("2025-01-01T00:00:00Z"), at("2025-01-01T01:00:00Z")).next, Some(at("2025-01-01T11:00:00Z")));
        let every = Schedule::parse("@every 90s", None).unwrap();
        assert_eq!(every.due(at("2025-01-01T00:00:00Z"), at("2025-01-01T00:01:00Z")).next, Some(at("2025-01-01T00:01:30Z")));
        assert!(Schedule::parse("@hourly", None).is_ok());
        for text in ["", "* * * *", "60 * * * *", "* * * * * *"] {
            assert!(Schedule::parse(text, None).is_err(), "{text:?}");
        }
    }
}
