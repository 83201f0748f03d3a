//! Completion indexes of an Indexed Job: `0-2,4`.
//!
//! Upstream: `pkg/controller/job/indexed_job_utils.go`.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

use crate::shared::meta;

pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";

pub type Indexes = BTreeSet<i32>;

pub fn of(pod: &Pod) -> Option<i32> {
    meta::annotation(pod, INDEX)?.parse().ok().filter(|index| *index >= 0)
}

/// Reads what [`format`] wrote; indexes beyond the Job's completions are dropped.
pub fn parse(text: &str, completions: i32) -> Indexes {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<i32>().ok()?..=last.parse::<i32>().ok()?)
    };
    text.split(',').filter_map(range).flatten().filter(|index| *index < completions).collect()
}

/// Runs of three and more, and pairs, as ranges.
pub fn format(indexes: &Indexes) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let text = |(first, last): &(i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_as_read() {
        for text in ["", "0", "0,1", "0-2,4", "1,3,5-9"] {
            assert_eq!(format(&parse(text, 100)), text);
        }
        assert_eq!(format(&parse("0-9", 5)), "0-4");
    }
}
