//! Quotas and limits of a namespace.

use anyhow::Result;
use tests::{ensure_contains, ensure_eq, until};

use crate::Spine;

const LIMITS: &str = r#"
apiVersion: v1
kind: ResourceQuota
metadata: {name: all}
spec: {hard: {pods: "5", requests.cpu: 500m, configmaps: "6", count/jobs.batch: "1"}}
---
apiVersion: v1
kind: LimitRange
metadata: {name: sizes}
spec:
  limits:
  - {type: Container, default: {cpu: 200m, memory: 32Mi}, defaultRequest: {cpu: 100m}, max: {cpu: "1"}, maxLimitRequestRatio: {cpu: "4"}}
"#;

pub fn quotas_hold_and_give_back(spine: &Spine) -> Result<()> {
    let kubectl = spine.own("c-quota")?;
    kubectl.apply(LIMITS)?;
    let used = |name: &str| kubectl.path("quota/all", &format!("{{.status.used.{}}}", name.replace('.', r"\.")));
    // Every namespace has kube-root-ca.crt.
    until(10, "the quota is counted", || ensure_eq(used("configmaps")?, "1".into(), "used"))?;

    // Twenty at once: as many as there is room for, and not one more.
    let create = |number: usize| {
        let kubectl = kubectl.clone();
        std::thread::spawn(move || kubectl.run(&format!("create configmap c{number} --from-literal=a=b")))
    };
    let threads: Vec<_> = (0..20).map(create).collect();
    let mut made = 0;
    for thread in threads {
        let output = thread.join().map_err(|_| anyhow::anyhow!("kubectl's thread panicked"))??;
        match output.code {
            0 => made += 1,
            _ => ensure_contains(
                &output.stderr,
                &["exceeded quota: all, requested: configmaps=1, used: configmaps=6, limited: configmaps=6"],
            )?,
        }
    }
    ensure_eq(made, 5, "created at once")?;
    kubectl.ok("delete configmap -l !nothing --field-selector metadata.name!=kube-root-ca.crt")?;
    until(5, "what was deleted is given back", || ensure_eq(used("configmaps")?, "1".into(), "used"))?;

    kubectl.ok("run web --image=coracle/web:1")?;
    ensure_eq(
        kubectl.path("pod/web", "{.spec.containers[0].resources}")?,
        r#"{"limits":{"cpu":"200m","memory":"32Mi"},"requests":{"cpu":"100m","memory":"32Mi"}}"#.into(),
        "defaults",
    )?;
    ensure_eq(used("requests.cpu")?, "100m".into(), "charged at once")?;
    let big = r#"--overrides={"spec":{"containers":[{"name":"big","image":"coracle/web:1","resources":{"limits":{"cpu":"2"}}}]}}"#;
    let refused = kubectl.run_with("run big --image=coracle/web:1", &[big])?;
    ensure_contains(&refused.stderr, &["maximum cpu usage per Container is 1, but limit is 2"])?;
    kubectl.ok("create deployment many --image=coracle/web:1 --replicas=9")?;
    until(30, "the quota stops a ReplicaSet", || ensure_eq((used("requests.cpu")?, used("pods")?), ("500m".into(), "5".into()), "used"))?;
    until(20, "the Deployment says why", || {
        let why = kubectl.path("deployment/many", "{.status.conditions[?(@.type=='ReplicaFailure')].message}")?;
        ensure_contains(&why, &["exceeded quota: all"])
    })?;
    ensure_contains(&kubectl.ok("describe namespace c-quota")?, &["requests.cpu      500m  500m"])?;
    kubectl.ok("delete pod web --now")?;
    // The ReplicaSet's creates back off while they are refused, twice as long each time.
    until(40, "the room is used", || ensure_eq(kubectl.path("deployment/many", "{.status.replicas}")?, "5".into(), "replicas"))
}
