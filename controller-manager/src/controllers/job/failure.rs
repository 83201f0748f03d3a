//! What a failed pod means for its Job: podFailurePolicy, and the back-off before the next try.
//!
//! Upstream: `pkg/controller/job/{pod_failure_policy,backoff_utils}.go`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement as ExitCodes, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::shared::{meta, pods};

const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(10 * 60);

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Count,
    Ignore,
    /// Counted, and its index is given up.
    FailIndex,
    FailJob(String),
}

/// By the first rule of the Job's policy that matches.
pub fn verdict(job: &Job, pod: &Pod) -> Verdict {
    let policy = job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref());
    for (index, rule) in policy.iter().flat_map(|policy| policy.rules.iter()).enumerate() {
        if let Some(what) = matches(rule, pod) {
            let text = || {
                let (pod, action) = (meta::key(pod), &rule.action);
                format!("{what} matching {action} rule at index {index}").replacen("{pod}", &pod.to_string(), 1)
            };
            return match rule.action.as_str() {
                "Ignore" => Verdict::Ignore,
                "FailIndex" => Verdict::FailIndex,
                "FailJob" => Verdict::FailJob(text()),
                _ => Verdict::Count,
            };
        }
    }
    Verdict::Count
}

/// How often an index failed before a pod was made for it.
pub const COUNTED: &str = "batch.kubernetes.io/job-index-failure-count";
/// Failures that the policy ignores; they only lengthen the back-off.
pub const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failures {
    pub counted: u32,
    pub ignored: u32,
}

impl Failures {
    fn before(pod: &Pod) -> Self {
        let count = |name: &str| meta::annotation(pod, name).and_then(|text| text.parse().ok()).unwrap_or(0);
        Failures { counted: count(COUNTED), ignored: count(IGNORED) }
    }

    /// Of an index, by its pods so far.
    pub fn of_index<'a>(job: &Job, pods: impl Iterator<Item = &'a Arc<Pod>>) -> Self {
        let after = |pod: &Arc<Pod>| {
            let before = Failures::before(pod);
            match pods::phase(pod) == "Failed" {
                false => before,
                true if verdict(job, pod) == Verdict::Ignore => Failures { ignored: before.ignored + 1, ..before },
                true => Failures { counted: before.counted + 1, ..before },
            }
        };
        pods.map(after).max().unwrap_or_default()
    }
}

/// Whether with this failed pod its index has failed: backoffLimitPerIndex is reached, or the policy says so.
pub fn fails_index(job: &Job, pod: &Pod, limit: i32) -> bool {
    match verdict(job, pod) {
        Verdict::FailIndex => true,
        Verdict::Ignore => false,
        _ => i64::from(Failures::before(pod).counted) >= i64::from(limit),
    }
}

/// What matched, with `{pod}` where the pod's name belongs.
fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    if let Some(codes) = &rule.on_exit_codes {
        let status = pod.status.as_ref()?;
        let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        return containers.filter_map(|container| matched_exit(codes, container)).next();
    }
    let wanted = rule.on_pod_conditions.as_deref().unwrap_or_default();
    wanted.iter().find_map(|wanted| {
        let found = pods::condition(pod, &wanted.type_)?;
        (found.status == wanted.status).then(|| format!("Pod {{pod}} has condition {}", wanted.type_))
    })
}

fn matched_exit(codes: &ExitCodes, container: &ContainerStatus) -> Option<String> {
    if codes.container_name.as_ref().is_some_and(|name| *name != container.name) {
        return None;
    }
    let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
    let listed = codes.values.contains(&code);
    let matched = code != 0 && if codes.operator == "In" { listed } else { !listed };
    matched.then(|| format!("Container {} for pod {{pod}} failed with exit code {code}", container.name))
}

/// When the next pod may be made: 10 s after a failure, doubled with each further one since the last success.
pub fn next_try<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>, now: Timestamp) -> Option<Timestamp> {
    let mut ends: Vec<(Timestamp, bool)> =
        pods.into_iter().filter(|pod| pods::is_finished(pod)).map(|pod| (ended(pod, now), pods::phase(pod) == "Failed")).collect();
    ends.sort_unstable();
    let failures: Vec<Timestamp> = ends.iter().rev().take_while(|(_, failed)| *failed).map(|(at, _)| *at).collect();
    let doublings = u32::try_from(failures.len().checked_sub(1)?).unwrap_or(u32::MAX).min(10);
    let delay = (FIRST_DELAY * 2_u32.pow(doublings)).min(LONGEST_DELAY);
    failures.first()?.checked_add(delay).ok().filter(|at| *at > now)
}

fn ended(pod: &Pod, now: Timestamp) -> Timestamp {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ends = containers.filter_map(|container| {
        let terminated = container.state.as_ref()?.terminated.as_ref()?;
        Some(terminated.finished_at.as_ref()?.0)
    });
    let gone = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    ends.max().or(gone).unwrap_or_else(|| meta::created(pod).min(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::pods::fixtures::{Fixture, at, pod};
    use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicy};
    use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated};

    fn exited(name: &str, code: i32, second: i64) -> Fixture {
        let mut fixture = pod(name).phase(if code == 0 { "Succeeded" } else { "Failed" });
        let finished_at = Some(meta::time(at(second)));
        let terminated = Some(ContainerStateTerminated { exit_code: code, finished_at, ..Default::default() });
        let state = Some(ContainerState { terminated, ..ContainerState::default() });
        let status = ContainerStatus { name: "main".into(), state, ..ContainerStatus::default() };
        fixture.0.status.as_mut().unwrap().container_statuses = Some(vec![status]);
        fixture
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let rule = |action: &str, operator: &str, values: &[i32]| PodFailurePolicyRule {
            action: action.into(),
            on_exit_codes: Some(ExitCodes { operator: operator.into(), values: values.to_vec(), container_name: None }),
            ..PodFailurePolicyRule::default()
        };
        let rules = vec![rule("Ignore", "In", &[7]), rule("FailJob", "NotIn", &[1])];
        let spec = JobSpec { pod_failure_policy: Some(PodFailurePolicy { rules }), ..JobSpec::default() };
        let job = Job { spec: Some(spec), ..Job::default() };
        assert_eq!(verdict(&job, &exited("a", 7, 1).0), Verdict::Ignore);
        assert_eq!(verdict(&job, &exited("a", 1, 1).0), Verdict::Count);
        let text = "Container main for pod default/a failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(verdict(&job, &exited("a", 42, 1).0), Verdict::FailJob(text.into()));
    }

    #[test]
    fn tries_back_off_until_one_succeeds() {
        let pods = |codes: &[i32]| codes.iter().zip(100..).map(|(code, at)| exited("a", *code, at).arc()).collect::<Vec<_>>();
        assert_eq!(next_try(&pods(&[]), at(100)), None);
        assert_eq!(next_try(&pods(&[1]), at(100)), Some(at(110)));
        assert_eq!(next_try(&pods(&[1, 1, 1]), at(102)), Some(at(142)));
        assert_eq!(next_try(&pods(&[1, 1, 0]), at(102)), None);
        assert_eq!(next_try(&pods(&[1]), at(111)), None);
    }
}
