use super::*;
use k8s_openapi::api::apps::v1::{DeploymentStatus, DeploymentStrategy, ReplicaSetStatus, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{Container, PodSpec};

fn template(image: &str) -> PodTemplateSpec {
    let container = Container { name: "web".into(), image: Some(image.into()), ..Container::default() };
    let spec = PodSpec { containers: vec![container], ..PodSpec::default() };
    PodTemplateSpec { metadata: None, spec: Some(spec) }
}

fn deployment(replicas: i32, image: &str, surge: i32, unavailable: i32) -> Deployment {
    let mut deployment = Deployment::default();
    deployment.metadata.name = Some("web".into());
    deployment.metadata.uid = Some("d".into());
    deployment.spec = Some(DeploymentSpec {
        replicas: Some(replicas),
        template: template(image),
        strategy: Some(DeploymentStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(IntOrString::Int(surge)),
                max_unavailable: Some(IntOrString::Int(unavailable)),
            }),
        }),
        ..DeploymentSpec::default()
    });
    deployment
}

/// A ReplicaSet made `age` seconds after the epoch, with `available` of `size` replicas.
fn replica_set(of: &Deployment, image: &str, revision: i64, size: i32, available: i32) -> Arc<ReplicaSet> {
    let mut of = of.clone();
    of.spec.get_or_insert_default().template = template(image);
    let mut rs = new_replica_set(&of, of.spec.as_ref().unwrap()).unwrap();
    rs.metadata.uid = Some(format!("rs{revision}"));
    rs.metadata.creation_timestamp = Some(meta::time(jiff::Timestamp::from_second(revision).unwrap()));
    annotate(&of, &mut rs, revision);
    set_size(&of, &mut rs, size);
    rs.status = Some(ReplicaSetStatus { replicas: size, available_replicas: Some(available), ..Default::default() });
    Arc::new(rs)
}

fn steps(deployment: &Deployment, replica_sets: &[Arc<ReplicaSet>]) -> Vec<String> {
    let plan = plan(&Observed { deployment, replica_sets, running: &|rs| status_replicas(rs) > 0 }).unwrap();
    let revision = |rs: &ReplicaSet| revision_of(rs);
    let line = |step: &Step| match step {
        Step::Create(rs) => format!("create r{} with {}", revision(rs), replicas(rs)),
        Step::Update { rs, from } => format!("r{} {from}->{}", revision(rs), replicas(rs)),
        Step::Delete(rs) => format!("delete r{}", revision(rs)),
    };
    plan.steps.iter().map(line).collect()
}

#[test]
fn a_rollout_step_by_step() {
    let d = deployment(3, "v2", 1, 0);
    let rs = |image, revision, size, available| replica_set(&d, image, revision, size, available);
    assert_eq!(steps(&d, &[]), ["create r1 with 3"]);
    assert_eq!(steps(&d, &[rs("v1", 1, 3, 3)]), ["create r2 with 1"]);
    assert_eq!(steps(&d, &[rs("v1", 1, 3, 3), rs("v2", 2, 1, 0)]), [""; 0]);
    assert_eq!(steps(&d, &[rs("v1", 1, 3, 3), rs("v2", 2, 1, 1)]), ["r1 3->2"]);
    assert_eq!(steps(&d, &[rs("v1", 1, 2, 2), rs("v2", 2, 1, 1)]), ["r2 1->2"]);
    assert_eq!(steps(&d, &[rs("v1", 1, 1, 1), rs("v2", 2, 3, 3)]), ["r1 1->0"]);
    assert_eq!(steps(&d, &[rs("v1", 1, 0, 0), rs("v2", 2, 3, 3)]), [""; 0]);
}

#[test]
fn unhealthy_old_replicas_go_first() {
    let d = deployment(3, "v2", 1, 0);
    let sets = [replica_set(&d, "v1", 1, 3, 1), replica_set(&d, "v2", 2, 1, 0)];
    assert_eq!(steps(&d, &sets), [""; 0], "not below the wished availability");
    let d = deployment(3, "v2", 1, 2);
    let sets = [replica_set(&d, "v1", 1, 3, 1), replica_set(&d, "v2", 2, 1, 0)];
    assert_eq!(steps(&d, &sets), ["r1 3->1"]);
}

#[test]
fn going_back_reuses_the_old_replica_set_under_a_new_revision() {
    let d = deployment(3, "v1", 1, 0);
    let sets = [replica_set(&d, "v1", 1, 0, 0), replica_set(&d, "v2", 2, 3, 3)];
    assert_eq!(steps(&d, &sets), ["r3 0->1"]);
}

#[test]
fn recreate_stops_before_it_starts() {
    let mut d = deployment(2, "v2", 0, 0);
    d.spec.as_mut().unwrap().strategy = Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None });
    assert_eq!(steps(&d, &[replica_set(&d, "v1", 1, 2, 2)]), ["r1 2->0"]);
    let mut draining = (*replica_set(&d, "v1", 1, 0, 0)).clone();
    draining.status = Some(ReplicaSetStatus { replicas: 1, ..Default::default() });
    assert_eq!(steps(&d, &[Arc::new(draining)]), [""; 0]);
    assert_eq!(steps(&d, &[replica_set(&d, "v1", 1, 0, 0)]), ["create r2 with 2"]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    let before = deployment(10, "v2", 3, 2);
    let sets = [replica_set(&before, "v1", 1, 8, 8), replica_set(&before, "v2", 2, 5, 0)];
    let d = deployment(15, "v2", 3, 2);
    assert_eq!(steps(&d, &sets), ["r2 5->7", "r1 8->11"]);
    let mut paused = deployment(4, "v3", 1, 0);
    paused.spec.as_mut().unwrap().paused = Some(true);
    let sets = [replica_set(&deployment(3, "v2", 1, 0), "v2", 1, 3, 3)];
    assert_eq!(steps(&paused, &sets), ["r1 3->4"], "a paused Deployment scales but does not roll");
}

#[test]
fn history_is_limited_when_the_rollout_is_over() {
    let mut d = deployment(1, "v4", 1, 0);
    d.spec.as_mut().unwrap().revision_history_limit = Some(1);
    let status = Some(1);
    d.status =
        Some(DeploymentStatus { replicas: status, updated_replicas: status, available_replicas: status, ..DeploymentStatus::default() });
    let sets = [1, 2, 3].map(|n| replica_set(&d, &format!("v{n}"), n, 0, 0));
    let sets = [sets.to_vec(), vec![replica_set(&d, "v4", 4, 1, 1)]].concat();
    assert_eq!(steps(&d, &sets), ["delete r1", "delete r2"]);
}
