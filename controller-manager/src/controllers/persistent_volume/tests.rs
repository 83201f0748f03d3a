//! Tables of what the plans say, in upstream's words.

use std::sync::Arc;

use api::volume::directory;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use super::claim::{self, View};
use super::volume::{self, Reclaim};
use super::{bond, default_class, provision};
use crate::shared::meta;

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn merged(mut base: Value, more: Value) -> Value {
    for (field, value) in more.as_object().unwrap() {
        base[field] = value.clone();
    }
    base
}

fn pvc(annotations: Value, spec: Value) -> PersistentVolumeClaim {
    let base = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    of(json!({"metadata": {"namespace": "n", "name": "c", "uid": "u", "annotations": annotations}, "spec": merged(base, spec)}))
}

fn pv(name: &str, spec: Value, phase: &str) -> Arc<PersistentVolume> {
    let base = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}});
    Arc::new(of(json!({"metadata": {"name": name}, "spec": merged(base, spec), "status": {"phase": phase}})))
}

fn class(name: &str, provisioner: &str, mode: &str) -> StorageClass {
    of(json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode, "reclaimPolicy": "Delete"}))
}

fn node(name: &str) -> Node {
    of(json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}))
}

fn to(uid: &str) -> Value {
    json!({"claimRef": {"namespace": "n", "name": "c", "uid": uid}})
}

fn said(claim: &PersistentVolumeClaim, view: &View) -> String {
    let plan = claim::plan(claim, view);
    let step = match plan.step {
        claim::Step::Bind(volume) => format!("bind {}", meta::name(&*volume)),
        claim::Step::AssignClass(name) => format!("class {name}"),
        step => format!("{step:?}").to_lowercase(),
    };
    plan.tell.map_or(step.clone(), |tell| format!("{step}: {}: {}", tell.reason, tell.message))
}

#[test]
fn claims_without_a_volume() {
    let none = json!({});
    let delayed = class("slow", directory::PROVISIONER, "WaitForFirstConsumer");
    let at_once = class("slow", "x.example.com", "Immediate");
    let small = pv("small", json!({"accessModes": ["ReadWriteMany", "ReadWriteOnce"]}), "Available");
    let (big, reserved) = (pv("big", json!({"capacity": {"storage": "9Gi"}}), "Available"), pv("mine", to(""), "Available"));
    let of_class = pv("of-class", json!({"storageClassName": "slow"}), "Available");
    let slow = json!({"storageClassName": "slow"});
    let chosen = json!({"volume.kubernetes.io/selected-node": "n1"});
    let nothing = "wait: FailedBinding: no persistent volumes available for this claim and no storage class is set";
    let first = "wait: WaitForFirstConsumer: waiting for first consumer to be created before binding";
    let (web, pods) = (["web".to_owned()], ["a".to_owned(), "b".to_owned()]);
    #[rustfmt::skip]
    type Row<'a> = (Value, Value, Vec<Arc<PersistentVolume>>, Option<&'a StorageClass>, Option<&'a str>, &'a [String], &'a str);
    let table: Vec<Row> = vec![
        (none.clone(), none.clone(), vec![], None, None, &[], nothing),
        (none.clone(), json!({"storageClassName": ""}), vec![], None, Some("std"), &[], nothing),
        (none.clone(), none.clone(), vec![], None, Some("std"), &[], "class std"),
        (none.clone(), none.clone(), vec![small.clone(), big.clone()], None, None, &[], "bind big"),
        (none.clone(), none.clone(), vec![big, reserved], None, None, &[], "bind mine"),
        (none.clone(), slow.clone(), vec![small], None, None, &[], "provision"),
        (none.clone(), slow.clone(), vec![of_class.clone()], Some(&at_once), None, &[], "bind of-class"),
        (none.clone(), slow.clone(), vec![of_class], Some(&delayed), None, &[], first),
        (none.clone(), slow.clone(), vec![], Some(&delayed), None, &web, "wait: WaitForPodScheduled: waiting for pod web to be scheduled"),
        (
            none.clone(),
            slow.clone(),
            vec![],
            Some(&delayed),
            None,
            &pods,
            "wait: WaitForPodScheduled: waiting for pods a,b to be scheduled",
        ),
        (chosen, slow.clone(), vec![], Some(&delayed), None, &[], "provision"),
        (none, slow, vec![], Some(&at_once), None, &[], "provision"),
    ];
    for (annotations, spec, volumes, class, default_class, waiting_pods, expected) in table {
        let view = View { volumes: &volumes, class, default_class, waiting_pods };
        assert_eq!(said(&pvc(annotations, spec), &view), expected);
    }
}

#[test]
fn claims_with_a_volume() {
    let (none, done) = (json!({}), json!({"pv.kubernetes.io/bind-completed": "yes"}));
    let named = json!({"volumeName": "v"});
    let lost = "lost: ClaimLost: Bound claim has lost";
    #[rustfmt::skip]
    let table = [
        (&none, vec![], "wait".to_owned()),
        (&none, vec![pv("v", none.clone(), "Available")], "bind v".into()),
        (&none, vec![pv("v", to("u"), "Bound")], "bind v".into()),
        (&none, vec![pv("v", json!({"capacity": {"storage": "1Mi"}}), "Available")],
            "wait: VolumeMismatch: Cannot bind to requested volume \"v\": requested PV is too small".into()),
        (&none, vec![pv("v", to("other"), "Bound")], "wait: FailedBinding: volume \"v\" already bound to a different claim.".into()),
        (&done, vec![], format!("{lost} its PersistentVolume. Data on the volume is lost!")),
        (&done, vec![pv("v", to("u"), "Bound")], "bind v".into()),
        (&done, vec![pv("v", none.clone(), "Available")], "bind v".into()),
        (&done, vec![pv("v", to("other"), "Bound")],
            "lost: ClaimMisbound: Two claims are bound to the same volume, this one is bound incorrectly".into()),
    ];
    for (annotations, volumes, expected) in table {
        let view = View { volumes: &volumes, class: None, default_class: None, waiting_pods: &[] };
        assert_eq!(said(&pvc(annotations.clone(), named.clone()), &view), expected);
    }
    let view = View { volumes: &[], class: None, default_class: None, waiting_pods: &[] };
    assert_eq!(said(&pvc(done.clone(), none), &view), format!("{lost} reference to PersistentVolume. Data on the volume is lost!"));
}

#[test]
fn volumes() {
    use volume::Step;
    let claim = |spec: Value| Some(pvc(json!({}), spec));
    let made = |policy: &str| {
        let mut volume = (*pv("v", to("u"), "Bound")).clone();
        volume.metadata.annotations = Some([("pv.kubernetes.io/provisioned-by".to_owned(), "p".to_owned())].into());
        volume.spec.as_mut().unwrap().persistent_volume_reclaim_policy = Some(policy.to_owned());
        Arc::new(volume)
    };
    for (volume, claim, expected) in [
        (pv("v", json!({}), "Pending"), None, Step::Phase("Available")),
        (pv("v", to(""), "Pending"), claim(json!({})), Step::Phase("Available")),
        (pv("v", to("u"), "Bound"), None, Step::Release),
        (pv("v", to("u"), "Bound"), claim(json!({})), Step::SyncClaim),
        (pv("v", to("u"), "Bound"), claim(json!({"volumeMode": "Block"})), Step::WrongMode),
        (pv("v", to("u"), "Available"), claim(json!({"volumeName": "v"})), Step::Phase("Bound")),
        (pv("v", to("u"), "Bound"), claim(json!({"volumeName": "w"})), Step::Unbind),
        (made("Delete"), claim(json!({"volumeName": "w"})), Step::Release),
        (made("Retain"), claim(json!({"volumeName": "w"})), Step::Unbind),
    ] {
        assert_eq!(volume::plan(&volume, claim.as_ref()), expected, "{volume:?}");
    }
}

#[test]
fn reclaiming() {
    let reclaim = |by: Option<&str>, policy: &str| {
        let annotations = by.map(|by| json!({"pv.kubernetes.io/provisioned-by": by}));
        let volume = json!({"metadata": {"name": "v", "annotations": annotations}, "spec": {"persistentVolumeReclaimPolicy": policy}});
        volume::reclaim(&of::<PersistentVolume>(volume))
    };
    assert_eq!(reclaim(Some(directory::PROVISIONER), "Delete"), Reclaim::Delete);
    assert_eq!(reclaim(Some(directory::PROVISIONER), "Retain"), Reclaim::Nothing);
    assert_eq!(reclaim(Some("x.example.com"), "Delete"), Reclaim::Nothing);
    for (policy, reason) in [("Delete", "VolumeFailedDelete"), ("Recycle", "VolumeFailedRecycle")] {
        assert!(matches!(reclaim(None, policy), Reclaim::Fail(tell) if tell.reason == reason), "{policy}");
    }
}

#[test]
fn provisioning() {
    use provision::Plan;
    let ours = class("std", directory::PROVISIONER, "WaitForFirstConsumer");
    let chosen = || pvc(json!({"volume.kubernetes.io/selected-node": "n1"}), json!({"storageClassName": "std"}));
    let refused = |claim: &PersistentVolumeClaim, class: Option<&StorageClass>| match provision::plan(claim, class, None) {
        Plan::Refuse(tell) => format!("{}: {}", tell.reason, tell.message),
        other => format!("{other:?}"),
    };
    assert_eq!(refused(&chosen(), None), "ProvisioningFailed: storageclass.storage.k8s.io \"std\" not found");
    let static_only = class("std", "kubernetes.io/no-provisioner", "Immediate");
    assert_eq!(refused(&chosen(), Some(&static_only)), "ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner");
    let device = pvc(json!({}), json!({"storageClassName": "std", "volumeMode": "Block"}));
    assert!(refused(&device, Some(&ours)).ends_with("coracle.dev/directory does not support block volume provisioning"));
    assert!(refused(&pvc(json!({}), json!({"storageClassName": "std"})), Some(&ours)).contains("no node was chosen"));
    assert!(matches!(provision::plan(&chosen(), Some(&class("std", "x.example.com", "Immediate")), None), Plan::External(_)));
    assert_eq!(provision::plan(&chosen(), Some(&ours), None), Plan::ChooseAgain);
    let Plan::Make(made) = provision::plan(&chosen(), Some(&ours), Some(&node("n1"))) else { panic!("nothing made") };
    assert_eq!(meta::name(&*made), "pvc-u");
    assert!(api::volume::is_bound_to(&made, &chosen()) && meta::has_finalizer(&made.metadata, directory::FINALIZER));
    assert_eq!(meta::label(&*made, directory::NODE), Some("n1"));
    let spec = made.spec.unwrap();
    assert_eq!(spec.local.unwrap().path, "/var/lib/coracle/volumes/pvc-u");
    assert_eq!(spec.capacity.unwrap()["storage"].0, "1Gi");
    assert_eq!(
        json!(spec.node_affinity),
        json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}})
    );
}

#[test]
fn a_bond_is_written_once_and_undone_as_it_was_made() {
    let (claim, volume) = (pvc(json!({}), json!({})), pv("v", json!({}), "Available"));
    let bound = bond::volume_to_claim(&volume, &claim).unwrap();
    assert_eq!(bond::volume_to_claim(&bound, &claim), None);
    assert_eq!(bond::unbound(&bound).spec.unwrap().claim_ref, None);
    let with_volume = bond::claim_to_volume(&claim, &bound).unwrap();
    assert_eq!(bond::claim_to_volume(&with_volume, &bound), None);
    let told = bond::claim_phase(&with_volume, "Bound", Some(&bound)).unwrap();
    assert_eq!(bond::claim_phase(&told, "Bound", Some(&bound)), None);
    // What a user reserved stays reserved.
    let reserved = bond::volume_to_claim(&pv("v", to(""), "Available"), &claim).unwrap();
    assert_eq!(reserved.metadata.annotations, None);
    let again = bond::unbound(&reserved).spec.unwrap().claim_ref.unwrap();
    assert_eq!((again.name.as_deref(), again.uid), (Some("c"), None));
}

#[test]
fn the_newest_default_class_counts() {
    let mark = |name: &str, default: &str, age: &str| -> Arc<StorageClass> {
        Arc::new(of(json!({"metadata": {"name": name, "creationTimestamp": age,
            "annotations": {"storageclass.kubernetes.io/is-default-class": default}}, "provisioner": "p"})))
    };
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    assert_eq!(default_class(&[mark("no", "false", new)]), None);
    assert_eq!(default_class(&[mark("a", "true", old), mark("c", "true", new), mark("b", "true", new)]).as_deref(), Some("b"));
}
