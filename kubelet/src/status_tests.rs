//! Cases read: a pod, the runs of its containers, and the status as one line per fact.

use std::sync::Arc;

use super::*;
use crate::observed::Sandbox;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn pod(policy: &str, init: &[&str]) -> Pod {
    let init: Vec<_> = init.iter().map(|name| serde_json::json!({"name": name, "image": "i"})).collect();
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": {"restartPolicy": policy, "initContainers": init, "containers": [{"name": "a", "image": "i"}]}
    }))
    .unwrap()
}

fn run(name: &str, state: State, restarts: i32, exit_code: i32) -> Arc<Instance> {
    Arc::new(Instance {
        id: format!("{name}{restarts}"),
        sandbox: "s0".into(),
        name: name.into(),
        restarts,
        state,
        created_at: at(i64::from(restarts)),
        started_at: at(10),
        finished_at: at(20),
        exit_code,
        reason: if exit_code == 0 { "Completed" } else { "Error" }.into(),
        message: String::new(),
        image: "docker.io/library/i:latest".into(),
        image_id: "sha".into(),
        hash: String::new(),
        log_path: String::new(),
        annotations: BTreeMap::new(),
        mounts: vec![],
    })
}

fn state_text(state: Option<&ContainerState>) -> String {
    match state {
        Some(ContainerState { running: Some(_), .. }) => "running".into(),
        Some(ContainerState { terminated: Some(t), .. }) => format!("terminated {} {}", t.exit_code, t.reason.clone().unwrap_or_default()),
        Some(ContainerState { waiting: Some(w), .. }) => format!("waiting {}", w.reason.clone().unwrap_or_default()),
        _ => "-".into(),
    }
}

/// `phase | container: state (last) restarts ready | conditions that are not plainly true`
fn text(pod: &Pod, runs: Vec<Arc<Instance>>, ready: bool, waiting: Option<&str>, ended: bool) -> String {
    let sandbox =
        Sandbox { id: "s0".into(), attempt: 0, ready: !ended, created_at: at(0), ips: vec!["10.0.0.2".into()], host_network: false };
    let health = runs.iter().map(|r| (r.id.clone(), Health { started: true, ready, failed: None })).collect();
    let observed = Observed { sandboxes: vec![sandbox], containers: runs };
    let waiting = waiting.map(|reason| ("a".to_owned(), Waiting { reason: reason.into(), message: "m".into() })).into_iter().collect();
    let status = pod_status(&Inputs {
        pod,
        observed: &observed,
        health: &health,
        waiting: &waiting,
        messages: &BTreeMap::new(),
        failure: None,
        ended,
        host_ips: &["1.1.1.1".into()],
        now: at(100),
    });
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let containers: Vec<String> = containers
        .map(|c| {
            format!("{}: {} ({}) {} {}", c.name, state_text(c.state.as_ref()), state_text(c.last_state.as_ref()), c.restart_count, c.ready)
        })
        .collect();
    let conditions = status.conditions.iter().flatten().filter(|c| c.status != "True" || c.reason.is_some());
    let conditions: Vec<String> =
        conditions.map(|c| format!("{}={} {}", c.type_, c.status, c.reason.clone().unwrap_or_default())).collect();
    format!("{} | {} | {}", status.phase.unwrap_or_default(), containers.join(", "), conditions.join(", "))
}

const NOT_READY: &str = "Ready=False ContainersNotReady, ContainersReady=False ContainersNotReady";

#[test]
fn a_container_through_its_life() {
    let pod = pod("Always", &[]);
    let cases = [
        (text(&pod, vec![], false, None, false), format!("Pending | a: waiting ContainerCreating (-) 0 false | {NOT_READY}")),
        (text(&pod, vec![], false, Some("ErrImagePull"), false), format!("Pending | a: waiting ErrImagePull (-) 0 false | {NOT_READY}")),
        (text(&pod, vec![run("a", State::Running, 0, 0)], false, None, false), format!("Running | a: running (-) 0 false | {NOT_READY}")),
        (text(&pod, vec![run("a", State::Running, 0, 0)], true, None, false), "Running | a: running (-) 0 true | ".to_owned()),
        (
            text(&pod, vec![run("a", State::Exited, 1, 3)], true, Some("CrashLoopBackOff"), false),
            format!("Running | a: waiting CrashLoopBackOff (terminated 3 Error) 1 false | {NOT_READY}"),
        ),
        (
            text(&pod, vec![run("a", State::Running, 1, 0), run("a", State::Exited, 0, 1)], true, None, false),
            "Running | a: running (terminated 1 Error) 1 true | ".to_owned(),
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
}

#[test]
fn the_end_of_a_job() {
    let over = |reason: &str| format!("PodReadyToStartContainers=False , {reason}");
    let done = "Initialized=True PodCompleted, Ready=False PodCompleted, ContainersReady=False PodCompleted";
    assert_eq!(
        text(&pod("Never", &[]), vec![run("a", State::Exited, 0, 0)], true, None, true),
        format!("Succeeded | a: terminated 0 Completed (-) 0 false | {}", over(done))
    );
    assert_eq!(
        text(&pod("Never", &[]), vec![run("a", State::Exited, 0, 2)], true, None, true),
        format!("Failed | a: terminated 2 Error (-) 0 false | {}", over("Ready=False PodFailed, ContainersReady=False PodFailed"))
    );
}

#[test]
fn initialisation() {
    let pod = pod("Always", &["one"]);
    let not = format!("Initialized=False ContainersNotInitialized, {NOT_READY}");
    assert_eq!(
        text(&pod, vec![run("one", State::Running, 0, 0)], true, None, false),
        format!("Pending | one: running (-) 0 false, a: waiting PodInitializing (-) 0 false | {not}")
    );
    assert_eq!(
        text(&pod, vec![run("one", State::Exited, 0, 0)], true, None, false),
        format!("Pending | one: terminated 0 Completed (-) 0 true, a: waiting PodInitializing (-) 0 false | {NOT_READY}")
    );
}
