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
    let mut map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "creationTimestamp": null}, "data": {"x": "1"}});
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
    let pod = |names: &[&str]| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>()}});
    let names = |pod: &Value| {
        pod["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (live, applied, expected) in
        [(vec!["a", "b"], vec!["b", "a"], "ba"), (vec!["a", "x", "b"], vec!["a", "b", "c"], "axbc"), (vec!["x"], vec!["a"], "xa")]
    {
        let merged = apply(&gvk, Some(&pod(&live)), &pod(&applied), &writer("m"), true).unwrap();
        assert_eq!(names(&merged).concat(), expected, "{live:?} {applied:?}");
    }
}

/// `manager/operation[/subresource] times fields` of each entry.
fn managers(object: &Value) -> Vec<String> {
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let entry = |entry: &Value| format!("{} {} {}", text(entry, "manager"), text(entry, "subresource"), entry["fieldsV1"]);
    items(&object["metadata"]).iter().map(entry).collect()
}

#[test]
fn what_an_endpoint_leaves_alone_changes_hands_with_nobody() {
    let gvk = gvk();
    let mut live = config(Some(1), "a");
    live["status"] = json!({});
    track(&gvk, None, &mut live, &writer("user"));
    let before = live.clone();
    live["status"] = json!({"replicas": 1});
    let status = Writer { subresource: "status", ignored: &[&["spec"]], ..writer("controller") };
    track(&gvk, Some(&before), &mut live, &status);
    assert_eq!(managers(&live)[0], r#"controller status {"f:status":{"f:replicas":{}}}"#);
    // A PUT without the status takes it from nobody.
    let mut put = live.clone();
    put["metadata"].as_object_mut().unwrap().remove("managedFields");
    put["status"] = json!({});
    track(&gvk, Some(&live), &mut put, &writer("user"));
    assert_eq!(managers(&put), managers(&live));
    // An apply that speaks of it owns nothing of it and meets no conflict.
    let mut applied = config(Some(1), "a");
    applied["status"] = json!({"replicas": 9});
    let merged = apply(&gvk, Some(&live), &applied, &writer("applier"), false).unwrap();
    assert!(!managers(&merged)[0].contains("f:status"), "{:?}", managers(&merged));
}

#[test]
fn the_list_itself_can_be_written() {
    let gvk = gvk();
    let mut live = config(Some(1), "a");
    track(&gvk, None, &mut live, &writer("user"));
    let put = |list: Value| {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = list;
        track(&gvk, Some(&live), &mut new, &writer("user"));
        managers(&new).len()
    };
    assert_eq!((put(json!([{}])), put(json!([])), put(json!([{"manager": "x", "operation": "Nonsense"}]))), (0, 1, 1));
    let handed = json!([{"manager": "heir", "operation": "Update", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]);
    assert_eq!(put(handed), 1);
    let mut cleared = live.clone();
    cleared["metadata"].as_object_mut().unwrap().remove("managedFields");
    let mut new = cleared.clone();
    new["spec"]["replicas"] = json!(2);
    track(&gvk, Some(&cleared), &mut new, &writer("user"));
    assert_eq!(managers(&new).len(), 0, "an object without managers stays without");
    let applied = apply(&gvk, Some(&new), &config(Some(2), "a"), &writer("applier"), false).unwrap();
    assert!(managers(&applied)[1].starts_with("before-first-apply"));
}

#[test]
fn kubectl_takes_over_what_its_client_side_apply_set() {
    let gvk = gvk();
    let mut live = config(Some(3), "a");
    live["metadata"]["annotations"] = json!({LAST_APPLIED: config(Some(3), "a").to_string()});
    track(&gvk, None, &mut live, &writer("kubectl-client-side-apply"));
    assert!(apply(&gvk, Some(&live), &config(Some(3), "b"), &writer("other"), false).is_err());
    let taken = apply(&gvk, Some(&live), &config(Some(3), "b"), &writer("kubectl"), false).unwrap();
    assert_eq!(taken["metadata"]["annotations"][LAST_APPLIED], format!("{}\n", config(Some(3), "b")));
    // What somebody changed since is theirs.
    let before = live.clone();
    live["spec"]["replicas"] = json!(5);
    track(&gvk, Some(&before), &mut live, &writer("scaler"));
    let refused = apply(&gvk, Some(&live), &config(Some(3), "b"), &writer("kubectl"), false).unwrap_err();
    assert_eq!(refused.message, "Apply failed with 1 conflict: conflict with \"scaler\" using apps/v1: .spec.replicas");
}

#[test]
fn many_updaters_become_few() {
    let gvk = Gvk::new("", "v1", "ConfigMap");
    let mut live = json!({"metadata": {"name": "a"}, "data": {"start": ""}});
    track(&gvk, None, &mut live, &writer("m0"));
    for i in 1..=14 {
        let (name, now) = (format!("m{i}"), format!("2026-01-01T00:00:{i:02}Z"));
        let mut new = live.clone();
        new["data"][&name] = json!("x");
        track(&gvk, Some(&live), &mut new, &Writer { now: &now, ..writer(&name) });
        live = new;
    }
    let names = managers(&live);
    assert_eq!(names.len(), MAX_UPDATERS);
    assert!(names[0].starts_with("ancient-changes") && names[0].contains("f:m5") && !names[0].contains("f:m6"), "{names:?}");
}

#[test]
fn times_alone_are_no_change() {
    let at = |time: &str, value: &str| json!({"metadata": {"name": "a", "managedFields": [{"manager": "m", "time": time, "fieldsV1": {}}]}, "data": {"x": value}});
    assert!(same_but_times(&at("1", "x"), &at("2", "x")));
    assert!(!same_but_times(&at("1", "x"), &at("1", "y")));
    let mut other = at("1", "x");
    other["metadata"]["managedFields"][0]["manager"] = json!("n");
    assert!(!same_but_times(&at("1", "x"), &other));
    other["metadata"].as_object_mut().unwrap().remove("managedFields");
    assert!(!same_but_times(&at("1", "x"), &other));
}

#[test]
fn what_does_not_fit_its_type_is_refused_in_upstreams_words() {
    let with = |edit: &dyn Fn(&mut Value)| {
        let mut config = config(Some(1), "a");
        edit(&mut config);
        apply(&gvk(), None, &config, &writer("m"), false).unwrap_err()
    };
    let container = |edit: fn(&mut Value)| with(&move |c| edit(&mut c["spec"]["template"]["spec"]["containers"][0]));
    let head = "failed to create typed patch object (/web; apps/v1, Kind=Deployment): ";
    let deep = ".spec.template.spec.containers";
    let cases = [
        (with(&|c| c["spec"]["foo"] = json!(1)), 500, format!("{head}.spec.foo: field not declared in schema")),
        (with(&|c| c["spec"]["replicas"] = json!("1")), 500, format!("{head}.spec.replicas: expected numeric (int or float), got string")),
        (
            with(&|c| c["metadata"]["labels"]["app"] = json!(true)),
            500,
            format!("{head}.metadata.labels.app: expected string, got &value.valueUnstructured{{Value:true}}"),
        ),
        (
            with(&|c| c["spec"]["template"]["spec"]["containers"] = json!({"a": 1})),
            500,
            format!("{head}{deep}: expected list, got &{{map[a:1]}}"),
        ),
        (
            container(|c| drop(c.as_object_mut().unwrap().remove("name"))),
            500,
            format!(
                "{head}{deep}: element 0: associative list with keys has an element that omits key field \"name\" (and doesn't have default value)"
            ),
        ),
        (
            container(|c| c["ports"] = json!([{"containerPort": 80}, {"containerPort": 80}])),
            500,
            format!("{head}{deep}[name=\"web\"].ports: duplicate entries for key [containerPort=80,protocol=\"TCP\"]"),
        ),
        (with(&|c| c["kind"] = json!("Pod")), 400, "invalid object type: apps/v1, Kind=Pod".to_owned()),
        (with(&|c| c["metadata"]["managedFields"] = json!([])), 400, "metadata.managedFields must be nil".to_owned()),
    ];
    for (status, code, message) in cases {
        assert_eq!((status.code, status.message.as_str()), (code, message.as_str()));
    }
}
