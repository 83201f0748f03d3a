//! Changes by rule: every field of a seed dropped, emptied, of a wrong type, out of range, badly named, unknown, said twice.

use serde_json::{Map, Value, json};

pub struct Mutation {
    /// `spec.replicas: -1`
    pub rule: String,
    /// JSON pointer of the field that is changed; empty where it is more than one.
    pub at: String,
    pub body: Value,
}

/// Fields whose keys are the user's.
const MAPS: &[&str] = &[
    "annotations",
    "binaryData",
    "capacity",
    "data",
    "default",
    "defaultRequest",
    "hard",
    "labels",
    "limits",
    "matchLabels",
    "max",
    "min",
    "nodeSelector",
    "parameters",
    "podFixed",
    "requests",
    "selector",
    "stringData",
    "volumeAttributes",
];
/// Elements of a list that are changed one by one.
const ELEMENTS: usize = 2;

pub fn all(seed: &Value) -> Vec<Mutation> {
    let mut found = Vec::new();
    walk(seed, seed, &mut Vec::new(), &mut found);
    metadata(seed, &mut found);
    let (version, kind) = (&seed["apiVersion"], &seed["kind"]);
    let whole = [
        ("bad JSON", json!(format!("{{\"apiVersion\":{version},\"kind\":{kind},"))),
        ("empty object", json!({})),
        ("another kind", with(seed, &["kind".into()], Some(json!("Bogus")))),
        ("another version", with(seed, &["apiVersion".into()], Some(json!("bogus/v9")))),
    ];
    found.extend(whole.map(|(rule, body)| Mutation { rule: rule.into(), at: String::new(), body }));
    found
}

/// `limit` of them, the same ones for the same `number`.
pub fn pick(mut mutations: Vec<Mutation>, limit: usize, number: u64) -> Vec<Mutation> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for index in (1..mutations.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        mutations.swap(index, (state % (index as u64 + 1)) as usize);
    }
    mutations.truncate(limit);
    mutations
}

/// The seed with what is at `path` replaced, or left out.
fn with(seed: &Value, path: &[String], value: Option<Value>) -> Value {
    let mut body = seed.clone();
    let Some((last, parents)) = path.split_last() else { return body };
    match body.pointer_mut(&pointer(parents)) {
        Some(Value::Object(fields)) => {
            match value {
                Some(value) => fields.insert(last.clone(), value),
                None => fields.remove(last),
            };
        }
        Some(Value::Array(items)) => {
            let index = last.parse().unwrap_or_default();
            match value {
                Some(value) => items[index] = value,
                None => drop(items.remove(index)),
            }
        }
        _ => {}
    }
    body
}

fn pointer(path: &[String]) -> String {
    path.iter().map(|step| format!("/{}", step.replace('~', "~0").replace('/', "~1"))).collect()
}

fn walk(seed: &Value, value: &Value, path: &mut Vec<String>, found: &mut Vec<Mutation>) {
    let field = path.last().cloned().unwrap_or_default();
    if !(path.is_empty() || path.len() == 1 && matches!(field.as_str(), "apiVersion" | "kind")) {
        let variants = [("left out", None), ("null", Some(Value::Null))].into_iter().map(|(rule, value)| (rule.to_owned(), value));
        let others = variants_of(&field, value).into_iter().map(|(rule, value)| (rule, Some(value)));
        for (rule, replacement) in variants.chain(others) {
            found.push(Mutation { rule: format!("{}: {rule}", path.join(".")), at: pointer(path), body: with(seed, path, replacement) });
        }
    }
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => items.iter().take(ELEMENTS).enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (name, child) in children {
        path.push(name);
        walk(seed, child, path, found);
        path.pop();
    }
}

fn variants_of(field: &str, value: &Value) -> Vec<(String, Value)> {
    let named = |values: Vec<(&str, Value)>| values.into_iter().map(|(rule, value)| (rule.to_owned(), value)).collect::<Vec<_>>();
    match value {
        Value::Bool(flag) => named(vec![("text", json!("yes")), ("the other", json!(!flag))]),
        Value::Number(_) => {
            let numbers = [json!(-1), json!(0), json!(70_000), json!(2_147_483_648_i64), json!(1.5)];
            let mut all: Vec<_> = numbers.into_iter().map(|number| (number.to_string(), number)).collect();
            all.extend(named(vec![("text", json!("x")), ("object", json!({}))]));
            all
        }
        Value::String(text) => texts(text),
        Value::Array(items) => {
            let mut all = named(vec![("empty", json!([])), ("text", json!("x")), ("object", json!({"a": 1}))]);
            if let Some(first) = items.first() {
                let twice: Vec<Value> = items.iter().chain([first]).cloned().collect();
                all.extend(named(vec![("first twice", json!(twice)), ("numbers", json!([1])), ("nulls", json!([null]))]));
            }
            all
        }
        Value::Object(fields) => {
            let mut all = named(vec![("empty", json!({})), ("text", json!("x")), ("list", json!([]))]);
            let plus = |key: &str, value: Value| {
                let mut fields: Map<String, Value> = fields.clone();
                fields.insert(key.to_owned(), value);
                Value::Object(fields)
            };
            if MAPS.contains(&field) {
                let long = "a".repeat(80);
                all.extend(named(vec![("bad key", plus("bad key!", json!("x"))), ("bad value", plus("k", json!("-bad value!")))]));
                all.extend(named(vec![
                    ("number", plus("k", json!(1))),
                    ("long key", plus(&long, json!("x"))),
                    ("long value", plus("k", json!(long))),
                ]));
            } else {
                all.push(("unknown field".into(), plus("bogusField", json!("x"))));
            }
            all
        }
        Value::Null => Vec::new(),
    }
}

fn texts(text: &str) -> Vec<(String, Value)> {
    let long = "a".repeat(300);
    let mut all: Vec<(String, Value)> = Vec::new();
    for bad in ["", "Bad_Name!", "-a", &long, "a/b", "bogus", "-1", ".5.", "256.1.1.1"] {
        all.push((format!("{:.12?}", &bad[..bad.len().min(12)]), json!(bad)));
    }
    all.extend(
        [("number", json!(7)), ("object", json!({})), ("list", json!(["a"])), ("flag", json!(true))]
            .map(|(rule, value)| (rule.to_owned(), value)),
    );
    let amount = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    if !amount.is_empty() && amount.bytes().all(|b| b.is_ascii_digit()) {
        for quantity in ["1.5.5", "1.23456789", "-5", "0", "1e3", "1024Mi", "0.5", "1500m"] {
            all.push((quantity.to_owned(), json!(quantity)));
        }
    }
    let other_case: String =
        text.chars().map(|c| if c.is_ascii_uppercase() { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() }).collect();
    if other_case != text {
        all.push(("other case".into(), json!(other_case)));
    }
    all
}

fn metadata(seed: &Value, found: &mut Vec<Mutation>) {
    if !seed["metadata"].is_object() {
        return;
    }
    let owner = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": name, "controller": true});
    let rows = [
        ("labels", json!({"bad key!": "x"})),
        ("labels", json!({"a": "b c"})),
        ("annotations", json!({"bad key!": "x"})),
        ("annotations", json!({"a": "x".repeat(300_000)})),
        ("finalizers", json!(["bad"])),
        ("finalizers", json!(["a.b/c", "a.b/c"])),
        ("ownerReferences", json!([{}])),
        ("ownerReferences", json!([owner("a"), owner("b")])),
        ("generateName", json!("Bad_")),
        ("namespace", json!("other")),
        ("creationTimestamp", json!("nope")),
        ("deletionGracePeriodSeconds", json!(-1)),
        ("name", json!("A".repeat(300))),
        ("generation", json!(-1)),
    ];
    for (field, value) in rows {
        let rule = format!("metadata.{field} = {:.30}", value.to_string());
        let path = ["metadata".to_owned(), field.to_owned()];
        found.push(Mutation { rule, at: pointer(&path), body: with(seed, &path, Some(value)) });
    }
}
