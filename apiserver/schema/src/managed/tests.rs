use serde_json::json;

use super::*;

fn gvk() -> Gvk {
    Gvk::new("apps", "v1", "Deployment")
}

fn writer(manager: &str) -> Writer<'_> {
    Writer { manager, subresource: "", ignored: &[&["status"]], now: "2026-01-01T00:00:00Z" }
}

fn config(replicas: Option<i64>, image: &str) -> Value {
    let mut config = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"template": {"spec": {"containers": [{"name": "web", "image": image, "ports": [{"containerPort": 80}]}]}}},
    });
    if let Some(replicas) = replicas {
        config["spec"]["replicas"] = json!(replicas);
    }
    config
}

#[test]
fn an_applier_owns_what_it_speaks_of() {
    let applied = apply(&gvk(), None, &config(Some(3), "a"), &writer("kubectl"), false).unwrap();
    let entry = &applied["metadata"]["managedFields"][0];
    assert_eq!(entry["operation"], "Apply");
    assert_eq!(
        entry["fieldsV1"],
        json!({
            "f:metadata": {"f:labels": {"f:app": {}}},
            "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {
                ".": {}, "f:name": {}, "f:image": {}, "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
            }}}}},
        })
    );
}

#[test]
fn what_is_no_longer_applied_goes_and_the_rest_stays() {
    let mut live = apply(&gvk(), None, &config(Some(3), "a"), &writer("kubectl"), false).unwrap();
    live["spec"]["paused"] = json!(true);
    let next = apply(&gvk(), Some(&live), &config(None, "b"), &writer("kubectl"), false).unwrap();
    assert_eq!(next["spec"]["replicas"], Value::Null);
    assert_eq!(next["spec"]["paused"], true);
    assert_eq!(next["spec"]["template"]["spec"]["containers"][0]["image"], "b");
}

#[test]
fn another_owners_value_is_a_conflict_unless_forced() {
    let live = apply(&gvk(), None, &config(Some(3), "a"), &writer("kubectl"), false).unwrap();
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(5);
    track(&gvk(), Some(&live), &mut scaled, &writer("scaler"));
    let refused = apply(&gvk(), Some(&scaled), &config(Some(3), "a"), &writer("kubectl"), false).unwrap_err();
    assert_eq!(refused.code, 409);
    assert_eq!(refused.message, "Apply failed with 1 conflict: conflict with \"scaler\" using apps/v1: .spec.replicas");
    let forced = apply(&gvk(), Some(&scaled), &config(Some(3), "a"), &writer("kubectl"), true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 3);
    assert_eq!(forced["metadata"]["managedFields"].as_array().unwrap().len(), 1);
}

#[test]
fn several_conflicts_are_listed() {
    let live = apply(&gvk(), None, &config(Some(3), "a"), &writer("one"), false).unwrap();
    let refused = apply(&gvk(), Some(&live), &config(Some(4), "b"), &writer("two"), false).unwrap_err();
    assert_eq!(
        refused.message,
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .spec.replicas\n- .spec.template.spec.containers[name=\"web\"].image"
    );
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let live = apply(&gvk(), None, &config(Some(3), "a"), &writer("kubectl"), false).unwrap();
    let later = Writer { now: "2026-02-02T00:00:00Z", ..writer("kubectl") };
    assert_eq!(apply(&gvk(), Some(&live), &config(Some(3), "a"), &later, false).unwrap(), live);
}

#[test]
fn two_appliers_share_what_they_agree_on() {
    let live = apply(&gvk(), None, &config(Some(3), "a"), &writer("one"), false).unwrap();
    let both = apply(&gvk(), Some(&live), &config(Some(3), "a"), &writer("two"), false).unwrap();
    assert_eq!(both["metadata"]["managedFields"].as_array().unwrap().len(), 2);
    let left = apply(&gvk(), Some(&both), &config(None, "a"), &writer("two"), false).unwrap();
    assert_eq!(left["spec"]["replicas"], 3, "still the other's");
}

#[test]
fn a_create_is_tracked_as_upstream_does() {
    let gvk = Gvk::new("", "v1", "ConfigMap");
    let mut map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "creationTimestamp": null}, "data": {"x": "1"}});
    track(&gvk, None, &mut map, &writer("kubectl-create"));
    let entry = &map["metadata"]["managedFields"][0];
    assert_eq!(entry["fieldsV1"], json!({"f:data": {".": {}, "f:x": {}}}));
    let same = map.clone();
    let later = Writer { now: "2026-02-02T00:00:00Z", ..writer("kubectl-create") };
    track(&gvk, Some(&same), &mut map, &later);
    assert_eq!(map, same, "a no-op changes no time");
}

#[test]
fn items_keep_their_places() {
    let gvk = Gvk::new("", "v1", "Pod");
    let pod = |names: &[&str]| json!({"metadata": {"name": "p"}, "spec": {"containers": names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>()}});
    let names = |pod: &Value| pod["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    for (live, applied, expected) in [(vec!["a", "b"], vec!["b", "a"], "ba"), (vec!["a", "x", "b"], vec!["a", "b", "c"], "axbc"), (vec!["x"], vec!["a"], "xa")] {
        let merged = apply(&gvk, Some(&pod(&live)), &pod(&applied), &writer("m"), true).unwrap();
        assert_eq!(names(&merged).concat(), expected, "{live:?} {applied:?}");
    }
}
