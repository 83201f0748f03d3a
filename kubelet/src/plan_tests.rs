//! Cases read: a pod, what the runtime reports, and the actions as text.

use std::sync::Arc;

use super::*;
use crate::observed::Sandbox;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn pod(yaml_like: serde_json::Value) -> Pod {
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"}, "spec": yaml_like
    }))
    .unwrap()
}

fn simple(policy: &str) -> Pod {
    pod(serde_json::json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]}))
}

fn sandbox(id: &str, attempt: u32, ready: bool) -> Sandbox {
    Sandbox { id: id.into(), attempt, ready, created_at: at(i64::from(attempt)), ips: vec![], host_network: false }
}

fn run(pod: &Pod, name: &str, sandbox: &str, state: State, restarts: i32, exit_code: i32) -> Arc<Instance> {
    Arc::new(Instance {
        id: format!("{name}{restarts}"),
        sandbox: sandbox.into(),
        name: name.into(),
        restarts,
        state,
        created_at: at(10 + i64::from(restarts)),
        started_at: at(10),
        finished_at: at(20),
        exit_code,
        reason: String::new(),
        message: String::new(),
        image: "i".into(),
        image_id: "sha".into(),
        hash: pod.container(name).map(|c| c.hash()).unwrap_or_default(),
        log_path: String::new(),
        annotations: BTreeMap::new(),
        mounts: vec![],
    })
}

fn text(plan: &Plan) -> String {
    let mut lines: Vec<String> = plan
        .actions
        .iter()
        .map(|action| match action {
            Action::StopContainer { id, message, .. } => format!("stop {id}: {message}"),
            Action::StopSandbox { id } => format!("stop sandbox {id}"),
            Action::RemoveContainer { id } => format!("remove {id}"),
            Action::RemoveSandbox { id } => format!("remove sandbox {id}"),
            Action::CreateSandbox { attempt } => format!("create sandbox #{attempt}"),
            Action::Start { name, restarts } => format!("start {name} #{restarts}"),
        })
        .collect();
    lines.extend(plan.waiting.iter().map(|(name, w)| format!("{name} waits: {} {}", w.reason, w.message)));
    if plan.finished {
        lines.push("finished".into());
    }
    lines.join("\n")
}

fn planned(pod: &Pod, observed: &Observed) -> String {
    planned_with(pod, observed, &BTreeMap::new(), &Backoff::standard())
}

fn planned_with(pod: &Pod, observed: &Observed, health: &BTreeMap<String, Health>, backoff: &Backoff) -> String {
    text(&plan(&Inputs { pod, observed, health, backoff, now: at(20) }))
}

#[test]
fn one_container_through_its_life() {
    let pod = simple("Always");
    let seen = |runs: Vec<Arc<Instance>>| Observed { sandboxes: vec![sandbox("s0", 0, true)], containers: runs };
    let cases = [
        ("nothing yet", Observed::default(), "create sandbox #0"),
        ("sandbox ready", seen(vec![]), "start a #0"),
        ("running", seen(vec![run(&pod, "a", "s0", State::Running, 0, 0)]), ""),
        ("crashed", seen(vec![run(&pod, "a", "s0", State::Exited, 0, 1)]), "start a #1"),
        ("cut off before start", seen(vec![run(&pod, "a", "s0", State::Created, 0, 0)]), "remove a0\nstart a #0"),
        (
            "unknown",
            seen(vec![run(&pod, "a", "s0", State::Unknown, 0, 0)]),
            "stop a0: Container a is in unknown state, try killing it before restart",
        ),
        (
            "sandbox died",
            Observed { sandboxes: vec![sandbox("s0", 0, false)], containers: vec![run(&pod, "a", "s0", State::Exited, 0, 137)] },
            "create sandbox #1",
        ),
        (
            "old runs pruned",
            seen(vec![
                run(&pod, "a", "s0", State::Running, 2, 0),
                run(&pod, "a", "s0", State::Exited, 1, 1),
                run(&pod, "a", "s0", State::Exited, 0, 1),
            ]),
            "remove a0",
        ),
    ];
    for (name, observed, expected) in cases {
        assert_eq!(planned(&pod, &observed), expected, "{name}");
    }
}

#[test]
fn ephemeral_containers_start_once() {
    let pod = pod(serde_json::json!({
        "initContainers": [{"name": "init"}], "containers": [{"name": "a"}], "ephemeralContainers": [{"name": "debug"}],
    }));
    let seen = |runs: Vec<Arc<Instance>>| Observed { sandboxes: vec![sandbox("s0", 0, true)], containers: runs };
    let starting = run(&pod, "init", "s0", State::Running, 0, 0);
    assert_eq!(planned(&pod, &seen(vec![starting.clone()])), "start debug #0", "while the pod initialises");
    assert_eq!(planned(&pod, &seen(vec![starting, run(&pod, "debug", "s0", State::Exited, 0, 1)])), "", "never again");
    assert_eq!(planned(&pod, &Observed::default()), "create sandbox #0", "not before the sandbox");
}

#[test]
fn restart_policies() {
    for (policy, exit_code, expected) in [
        ("Always", 0, "start a #1"),
        ("OnFailure", 0, "finished"),
        ("OnFailure", 3, "start a #1"),
        ("Never", 0, "finished"),
        ("Never", 3, "finished"),
    ] {
        let pod = simple(policy);
        let observed =
            Observed { sandboxes: vec![sandbox("s0", 0, true)], containers: vec![run(&pod, "a", "s0", State::Exited, 0, exit_code)] };
        assert_eq!(planned(&pod, &observed), expected, "{policy} {exit_code}");
    }
}

#[test]
fn crash_loop_waits_with_upstreams_words() {
    let pod = simple("Always");
    let observed = Observed { sandboxes: vec![sandbox("s0", 0, true)], containers: vec![run(&pod, "a", "s0", State::Exited, 1, 1)] };
    let mut backoff = Backoff::standard();
    backoff.next(&backoff_key(&pod.spec().containers[0]), at(10), at(10));
    assert_eq!(
        planned_with(&pod, &observed, &BTreeMap::new(), &backoff),
        "a waits: CrashLoopBackOff back-off 10s restarting failed container=a pod=web_default(u1)"
    );
}

#[test]
fn probes_condemn() {
    let pod = simple("Always");
    let observed = Observed { sandboxes: vec![sandbox("s0", 0, true)], containers: vec![run(&pod, "a", "s0", State::Running, 0, 0)] };
    let health = BTreeMap::from([("a0".to_owned(), Health { failed: Some(ProbeKind::Liveness), ..Health::default() })]);
    assert_eq!(
        planned_with(&pod, &observed, &health, &Backoff::standard()),
        "stop a0: Container a failed liveness probe, will be restarted"
    );
}

#[test]
fn init_containers_in_order_and_sidecars_stay() {
    let pod = pod(serde_json::json!({
        "restartPolicy": "Always",
        "initContainers": [{"name": "one", "image": "i"}, {"name": "side", "image": "i", "restartPolicy": "Always"}, {"name": "two", "image": "i"}],
        "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]
    }));
    let mut observed = Observed { sandboxes: vec![sandbox("s0", 0, true)], containers: vec![] };
    let started = BTreeMap::from([("side0".to_owned(), Health { started: true, ready: true, failed: None })]);
    let backoff = Backoff::standard();
    let go = |observed: &Observed| planned_with(&pod, observed, &started, &backoff);
    assert_eq!(go(&observed), "start one #0");
    observed.containers = vec![run(&pod, "one", "s0", State::Running, 0, 0)];
    assert_eq!(go(&observed), "");
    observed.containers = vec![run(&pod, "one", "s0", State::Exited, 0, 1)];
    assert_eq!(go(&observed), "start one #1");
    observed.containers = vec![run(&pod, "one", "s0", State::Exited, 0, 0)];
    assert_eq!(go(&observed), "start side #0");
    observed.containers.push(run(&pod, "side", "s0", State::Running, 0, 0));
    assert_eq!(planned(&pod, &observed), "", "the sidecar has not started yet");
    assert_eq!(go(&observed), "start two #0");
    observed.containers.push(run(&pod, "two", "s0", State::Exited, 0, 0));
    assert_eq!(go(&observed), "start a #0\nstart b #0");
    observed.containers.push(run(&pod, "a", "s0", State::Running, 0, 0));
    observed.containers[1] = run(&pod, "side", "s0", State::Exited, 0, 1);
    assert_eq!(go(&observed), "start side #1\nstart b #0", "a sidecar restarts beside its pod");
    observed.sandboxes.insert(0, sandbox("s1", 1, true));
    observed.sandboxes[1].ready = false;
    assert_eq!(go(&observed), "start one #1", "a new sandbox initialises again");
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let pod = pod(serde_json::json!({
        "restartPolicy": "Never", "initContainers": [{"name": "one", "image": "i"}], "containers": [{"name": "a", "image": "i"}]
    }));
    let mut observed = Observed { sandboxes: vec![sandbox("s0", 0, true)], containers: vec![run(&pod, "one", "s0", State::Exited, 0, 1)] };
    assert_eq!(planned(&pod, &observed), "finished");
    observed.sandboxes[0].ready = false;
    assert_eq!(planned(&pod, &observed), "finished", "not in another sandbox either");
}

#[test]
fn the_end_stops_containers_then_sidecars_then_the_sandbox() {
    let pod = pod(serde_json::json!({
        "initContainers": [{"name": "proxy", "image": "i", "restartPolicy": "Always"}, {"name": "side", "image": "i", "restartPolicy": "Always"}], "containers": [{"name": "a", "image": "i"}]
    }));
    let mut observed = Observed {
        sandboxes: vec![sandbox("s0", 0, true)],
        containers: vec![
            run(&pod, "a", "s0", State::Running, 0, 0),
            run(&pod, "side", "s0", State::Running, 0, 0),
            run(&pod, "proxy", "s0", State::Running, 0, 0),
        ],
    };
    let end = |observed: &Observed| text(&plan_end(&pod, observed));
    assert_eq!(end(&observed), "stop a0: Stopping container a\nfinished");
    observed.containers[0] = run(&pod, "a", "s0", State::Exited, 0, 0);
    assert_eq!(end(&observed), "stop side0: Stopping container side\nfinished");
    observed.containers[1] = run(&pod, "side", "s0", State::Exited, 0, 0);
    assert_eq!(end(&observed), "stop proxy0: Stopping container proxy\nfinished", "the first started ends last");
    observed.containers[2] = run(&pod, "proxy", "s0", State::Exited, 0, 0);
    assert_eq!(end(&observed), "stop sandbox s0\nfinished");
    observed.sandboxes[0].ready = false;
    assert_eq!(end(&observed), "finished");
}

#[test]
fn durations_print_as_in_go() {
    for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
        assert_eq!(go_duration(Duration::from_secs(seconds)), text);
    }
}
