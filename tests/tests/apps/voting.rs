//! manifests/voting: a StatefulSet of three Redis, and a Job.

use anyhow::Result;
use serde_json::json;
use tests::kubectl::Kubectl;
use tests::{ensure_contains, ensure_eq, until};

use crate::{Apps, folder};

const PORT: u16 = 30082;
const MEMBERS: [&str; 3] = ["store-0", "store-1", "store-2"];

fn settled(kubectl: &Kubectl) -> Result<()> {
    kubectl.ok("rollout status statefulset/store --timeout=600s").map(drop)
}

/// Every member has these votes, whoever counts.
fn votes_are(apps: &Apps, kubectl: &Kubectl, cats: u32, members: &[&str]) -> Result<()> {
    for member in members {
        until(60, member, || {
            let said = kubectl.ok(&format!("exec {member} -- redis-cli hget votes cats"))?;
            ensure_eq(said.trim().to_owned(), cats.to_string(), "votes")
        })?;
    }
    until(30, "the count", || ensure_eq(apps.json(PORT, "/votes")?["votes"].clone(), json!({"cats": cats, "dogs": 0}), "votes"))
}

fn vote(apps: &Apps) -> Result<()> {
    until(60, "vote", || apps.ask("POST", PORT, "/votes/cats", "")).map(drop)
}

pub fn members_start_in_order_and_votes_count(apps: &Apps) -> Result<()> {
    let kubectl = apps.cluster.kubectl("default");
    kubectl.ok_with("apply -f", &[&folder("voting")])?;
    settled(&kubectl)?;
    let started = "jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=='Ready')].lastTransitionTime}{'\\n'}{end}";
    let started = kubectl.ok_with("get pods -l app=voting,part=store --sort-by=.metadata.name", &["-o", started])?;
    let times: Vec<&str> = started.lines().filter_map(|line| line.split_once(' ')).map(|(_, time)| time).collect();
    ensure_eq(times.is_sorted() && times.len() == 3, true, &format!("order of {started}"))?;
    kubectl.ok("wait --for=condition=Complete job/open-election --timeout=60s")?;
    kubectl.ok("rollout status deployment/vote --timeout=60s")?;
    for _ in 0..3 {
        vote(apps)?;
    }
    votes_are(apps, &kubectl, 3, &MEMBERS)
}

/// Names, claims and nodes of the claims.
fn identity(kubectl: &Kubectl) -> Result<String> {
    let claims = "jsonpath={range .items[*]}{.metadata.name} {.spec.volumeName}{'\\n'}{end}";
    kubectl.ok_with("get pvc -l app=voting --sort-by=.metadata.name", &["-o", claims])
}

pub fn identity_and_data_are_kept(apps: &Apps) -> Result<()> {
    let kubectl = apps.cluster.kubectl("default");
    let before = identity(&kubectl)?;
    ensure_contains(&before, &["data-store-0", "data-store-1", "data-store-2"])?;
    kubectl.ok("delete pod store-0 store-2")?;
    settled(&kubectl)?;
    votes_are(apps, &kubectl, 3, &MEMBERS)?;
    kubectl.ok("rollout restart statefulset/store")?;
    settled(&kubectl)?;
    votes_are(apps, &kubectl, 3, &MEMBERS)?;
    kubectl.ok("scale statefulset store --replicas=1")?;
    kubectl.ok("wait --for=delete pod/store-1 pod/store-2 --timeout=60s")?;
    vote(apps)?;
    votes_are(apps, &kubectl, 4, &MEMBERS[..1])?;
    kubectl.ok("scale statefulset store --replicas=3")?;
    settled(&kubectl)?;
    votes_are(apps, &kubectl, 4, &MEMBERS)?;
    ensure_eq(identity(&kubectl)?, before, "claims and volumes")
}

pub fn the_job_runs_once(apps: &Apps) -> Result<()> {
    let kubectl = apps.cluster.kubectl("default");
    ensure_contains(&kubectl.ok("logs job/open-election")?, &["cats: open", "dogs: open"])?;
    ensure_contains(&kubectl.ok_with("apply -f", &[&folder("voting")])?, &["job.batch/open-election unchanged"])?;
    ensure_eq(kubectl.path("job/open-election", "{.status.succeeded}")?, "1".into(), "successes")
}

pub fn an_update_stops_at_the_partition(apps: &Apps) -> Result<()> {
    let kubectl = apps.cluster.kubectl("default");
    let partition = |n: u8| json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": n}}}}).to_string();
    let marks = || {
        let marks = "jsonpath={range .items[*]}{.spec.containers[0].env[?(@.name=='MARK')].value}.{end}";
        kubectl.ok_with("get pods -l app=voting,part=store --sort-by=.metadata.name", &["-o", marks])
    };
    kubectl.ok_with("patch statefulset store -p", &[&partition(2)])?;
    kubectl.ok("set env statefulset/store MARK=new")?;
    settled(&kubectl)?;
    ensure_eq(marks()?, "..new.".into(), "members with the update")?;
    let revisions = kubectl.path("statefulset/store", "{.status.updatedReplicas} {.status.currentRevision} {.status.updateRevision}")?;
    let revisions: Vec<&str> = revisions.split(' ').collect();
    ensure_eq(revisions[0] == "1" && revisions[1] != revisions[2], true, &format!("{revisions:?}"))?;
    // One that is lost comes back as what it was.
    kubectl.ok("delete pod store-1")?;
    settled(&kubectl)?;
    ensure_eq(marks()?, "..new.".into(), "members with the update")?;
    kubectl.ok_with("patch statefulset store -p", &[&partition(0)])?;
    settled(&kubectl)?;
    ensure_eq(marks()?, "new.new.new.".into(), "members with the update")?;
    votes_are(apps, &kubectl, 4, &MEMBERS)
}

pub fn claims_go_with_their_members_if_asked(apps: &Apps) -> Result<()> {
    let kubectl = apps.cluster.kubectl("default");
    let policy = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete"}}}).to_string();
    kubectl.ok_with("patch statefulset store -p", &[&policy])?;
    kubectl.ok("scale statefulset store --replicas=2")?;
    kubectl.ok("wait --for=delete pod/store-2 pvc/data-store-2 --timeout=300s")?;
    kubectl.ok("scale statefulset store --replicas=3")?;
    settled(&kubectl)?;
    // A new claim, and its primary's data on it.
    votes_are(apps, &kubectl, 4, &MEMBERS)
}
