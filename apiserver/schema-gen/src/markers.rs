//! The markers in `k8s-pb`'s doc comments: `+listType=map`, `+listMapKey=name`, `+default="x"`, `+optional`, `+structType=atomic`.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::types::{Field, Type, Types};

pub fn read(source: &Path, types: &mut Types) -> Result<()> {
    let mut packages: Vec<String> = types.keys().filter_map(|name| name.rsplit_once('.').map(|(package, _)| package.to_owned())).collect();
    packages.dedup();
    for package in packages {
        let Some(path) = module(source, &package) else { continue };
        read_module(&std::fs::read_to_string(path)?, &package, types);
    }
    Ok(())
}

fn module(source: &Path, package: &str) -> Option<PathBuf> {
    ["api", "apimachinery/pkg/apis", "apiextensions_apiserver/pkg/apis", "kube_aggregator/pkg/apis"]
        .iter()
        .map(|root| source.join(root).join(package).join("mod.rs"))
        .find(|path| path.is_file())
}

fn read_module(text: &str, package: &str, types: &mut Types) {
    let mut comments: Vec<&str> = Vec::new();
    let mut current: Option<String> = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix("///") {
            comments.push(comment.trim());
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.trim_end_matches([' ', '{', '}']).to_owned();
            current = types.get_mut(&format!("{package}.{name}")).map(|t| {
                t.atomic = comments.contains(&"+structType=atomic");
                t.description = description(&comments);
                format!("{package}.{name}")
            });
            comments.clear();
        } else if line.starts_with("#[prost(") {
            if let (Some(tag), Some(field_of)) = (tag(line), current.as_ref().and_then(|name| types.get_mut(name))) {
                mark(field_of, tag, &comments);
            }
            comments.clear();
        }
    }
}

fn tag(attribute: &str) -> Option<u32> {
    let (_, rest) = attribute.split_once("tag = \"")?;
    rest.split_once('"')?.0.parse().ok()
}

fn mark(of: &mut Type, tag: u32, comments: &[&str]) {
    let Some(field) = of.fields.iter_mut().find(|field| field.tag == tag) else { return };
    comments.iter().filter_map(|comment| comment.strip_prefix('+')).for_each(|marker| apply(field, marker));
    field.description = description(comments);
}

/// A comment as openapi-gen renders it: paragraphs, without markers, notes to self, and what follows `---`.
fn description(comments: &[&str]) -> String {
    let prose = comments.iter().take_while(|line| **line != "---").filter(|line| !line.starts_with('+') && !line.starts_with("TODO"));
    let mut text = String::new();
    for line in prose {
        match (line.is_empty(), text.is_empty() || text.ends_with('\n')) {
            (true, false) => text.push_str("\n\n"),
            (true, true) => {}
            (false, true) => text.push_str(line),
            (false, false) => {
                text.push(' ');
                text.push_str(line);
            }
        }
    }
    text.trim_end().replace("\\[", "[").replace("\\]", "]").replace("\\<", "<").replace("\\>", ">")
}

fn apply(field: &mut Field, marker: &str) {
    // Some comments hold "+k8s:listType", a marker of another generator: not ours.
    match marker.split_once('=') {
        Some(("listType", kind)) => field.list_type = kind.trim().to_owned(),
        Some(("listMapKey", key)) => field.map_keys.push(key.trim().to_owned()),
        Some(("default", value)) => field.default = Some(value.trim().to_owned()),
        Some(("structType" | "mapType", "atomic")) => field.atomic = true,
        None if marker.trim() == "optional" => field.optional = true,
        _ => {}
    }
}
