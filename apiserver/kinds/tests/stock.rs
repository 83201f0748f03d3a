//! What Kubernetes says about invalid objects against what we say. Recorded from stock 1.20.2 by server-side dry run, then
//! brought to v1.33: a few texts and field paths have changed since.
#![allow(clippy::unwrap_used)]

use api::Gvk;
use serde_json::Value;

#[test]
fn says_what_stock_says() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("stock.json")).unwrap();
    let mut report = String::new();
    for case in &cases {
        let mut object = case["object"].clone();
        let gvk = Gvk::from_api_version(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        let kind = kinds::by_gvk(&gvk).unwrap();
        schema::default(&gvk, &mut object);
        object = kinds::convert(object, &kind.storage_gvk().api_version());
        kind.strategy.prepare_for_create(kind, &mut object);
        let mut ours: Vec<String> = kinds::validate_object_meta(kind, &object)
            .iter()
            .chain(&kind.strategy.validate(kind, &object))
            .map(ToString::to_string)
            .collect();
        let mut stock: Vec<String> = case["errors"].as_array().unwrap().iter().map(|e| e.as_str().unwrap().to_owned()).collect();
        ours.sort();
        stock.sort();
        if ours != stock {
            report += &format!("\n{gvk}\n");
            for line in stock.iter().filter(|line| !ours.contains(line)) {
                report += &format!("  - {line}\n");
            }
            for line in ours.iter().filter(|line| !stock.contains(line)) {
                report += &format!("  + {line}\n");
            }
        }
    }
    assert!(report.is_empty(), "{report}");
}
