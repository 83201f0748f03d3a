//! Every stable kind of v1.33 through every encoding, against upstream's golden files.
//!
//! The files lie beside the project (`../shared/golden`), or where `$CORACLE_GOLDEN` says; without them the test says so and passes.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use schema::{FieldValidation, Media, decode, encode_protobuf, lookup, peek_gvk};
use serde_json::Value;

fn golden() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden");
    let folder = std::env::var_os("CORACLE_GOLDEN").map_or(beside, PathBuf::from).join("v1.33.0");
    if folder.is_dir() {
        return Some(folder);
    }
    println!("SKIPPED: no golden files in {}", folder.display());
    None
}

/// The stable kinds' files without their ending. A WatchEvent has no kind in JSON, so nothing to look it up by.
fn stems(folder: &Path) -> Vec<PathBuf> {
    let mut stems: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| path.with_extension(""))
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            !name.contains("alpha") && !name.contains("beta") && !name.contains("after_roundtrip") && !name.contains("WatchEvent")
        })
        .collect();
    stems.sort();
    stems
}

fn file(stem: &Path, ending: &str) -> Vec<u8> {
    std::fs::read(format!("{}.{ending}", stem.display())).unwrap()
}

/// Where the two differ, for a readable failure.
fn difference(path: &str, ours: &Value, theirs: &Value, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                let none = Value::from("<absent>");
                difference(&format!("{path}.{key}"), a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| difference(&format!("{path}[{i}]"), a, b, out));
        }
        (a, b) if a == b => {}
        (a, b) => out.push(format!("{path}: ours {a}, golden {b}")),
    }
}

#[test]
fn every_stable_kind_round_trips() {
    let Some(folder) = golden() else { return };
    let (mut failures, mut count) = (Vec::new(), 0);
    for stem in stems(&folder) {
        let name = stem.file_name().unwrap().to_string_lossy().into_owned();
        let json = file(&stem, "json");
        let theirs: Value = serde_json::from_slice(&json).unwrap();
        let gvk = peek_gvk(&json, Media::Json).unwrap();
        if lookup(&gvk).is_none() {
            failures.push(format!("{name}: no type for {gvk:?}"));
            continue;
        }
        count += 1;
        for (media, ending) in [(Media::Json, "json"), (Media::Yaml, "yaml"), (Media::Protobuf, "pb")] {
            match decode(&file(&stem, ending), media, &gvk, FieldValidation::Strict) {
                Err(e) => failures.push(format!("{name}.{ending}: {e}")),
                Ok((ours, _)) => {
                    let mut differences = Vec::new();
                    difference("", &ours, &theirs, &mut differences);
                    failures.extend(differences.into_iter().map(|d| format!("{name}.{ending}: {d}")));
                }
            }
        }
        let (ours, theirs) = (encode_protobuf(&gvk, &theirs), file(&stem, "pb"));
        if ours != theirs {
            let at = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
            failures.push(format!("{name}: protobuf differs at byte {at} of {} (ours {})", theirs.len(), ours.len()));
        }
    }
    assert!(failures.is_empty(), "{} of {count} kinds' checks failed:\n{}", failures.len(), failures.join("\n"));
    println!("{count} kinds");
}

/// The same laws for objects that say little: what is filled in stays, and survives every encoding.
#[test]
fn sparse_objects_are_stable() {
    for t in schema::types::TYPES.iter().filter(|t| t.is_kind() && t.go != "meta/v1.WatchEvent") {
        let gvk = api::key::Gvk::new(t.group, t.version, t.name());
        let (mut object, _) = decode(b"{}", Media::Json, &gvk, FieldValidation::Strict).unwrap();
        schema::default(&gvk, &mut object);
        schema::normalize(&gvk, &mut object);
        let once = object.clone();
        schema::default(&gvk, &mut object);
        schema::normalize(&gvk, &mut object);
        assert_eq!(object, once, "{}: default and normalize are idempotent", t.go);
        let bytes = encode_protobuf(&gvk, &object);
        let (back, _) = decode(&bytes, Media::Protobuf, &gvk, FieldValidation::Strict).unwrap();
        assert_eq!(back, object, "{}: through protobuf", t.go);
        let patched = schema::patch::strategic(&gvk, &object, &serde_json::json!({})).unwrap();
        assert_eq!(patched, object, "{}: an empty patch changes nothing", t.go);
    }
}
