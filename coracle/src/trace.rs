//! `coracle trace KIND/NAME`: the causal chain of an object as a tree, from the API server's journal (`GET /debug/journal`).
//!
//! Every write carries the object and revision that made its author act; that is its branch's parent. [`render`] is pure.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use api::cause::{Cause, JournalEntry};
use api::key::{GroupResource, Key};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;

use crate::cluster::Cluster;
use crate::up;

pub async fn trace(cluster: &Cluster, object: &str, namespace: &str) -> Result<()> {
    let (kind, name) = object.split_once('/').with_context(|| format!("expected KIND/NAME, as deployment/quickstart, not {object:?}"))?;
    let client = up::client(cluster).await?;
    let (resource, namespaced) = resolve(&client, kind).await?;
    let namespace = if namespaced { namespace } else { "" };
    let path = format!("/debug/journal?resource={resource}&namespace={namespace}&name={name}");
    let request = http::Request::get(path).body(Vec::new())?;
    let entries: Vec<JournalEntry> = client.request(request).await.context("read the journal")?;
    if entries.is_empty() {
        bail!("the journal has nothing about {kind} {name}: it is bounded, and begins when the API server starts");
    }
    print!("{}", render(&entries));
    Ok(())
}

/// `deploy`, `deployment`, `deployments` or `Deployment` → `deployments.apps`, as kubectl does it: by discovery.
async fn resolve(client: &kube::Client, kind: &str) -> Result<(String, bool)> {
    let (word, group) = kind.split_once('.').unwrap_or((kind, ""));
    let word = word.to_lowercase();
    if let Some(found) = find(&client.list_core_api_resources("v1").await?.resources, &word).filter(|_| group.is_empty()) {
        return Ok((found.name.clone(), found.namespaced));
    }
    for served in client.list_api_groups().await?.groups.into_iter().filter(|served| group.is_empty() || served.name == group) {
        let Some(version) = served.preferred_version.or(served.versions.first().cloned()) else { continue };
        let resources = client.list_api_group_resources(&version.group_version).await?.resources;
        if let Some(found) = find(&resources, &word) {
            return Ok((format!("{}.{}", found.name, served.name), found.namespaced));
        }
    }
    bail!("the server doesn't have a resource type {kind:?}")
}

fn find<'a>(resources: &'a [APIResource], word: &str) -> Option<&'a APIResource> {
    resources.iter().filter(|resource| !resource.name.contains('/')).find(|resource| {
        let short = resource.short_names.as_ref().is_some_and(|names| names.iter().any(|name| name == word));
        resource.name == word || resource.kind.to_lowercase() == word || short
    })
}

/// The entries as a forest: what has no known cause is a root. Times count from the first entry.
pub fn render(entries: &[JournalEntry]) -> String {
    let mut entries: Vec<&JournalEntry> = entries.iter().collect();
    entries.sort_by_key(|entry| (entry.time, entry.revision));
    let children = tree(&entries);
    let lines = Lines { entries: &entries, children: &children, start: entries.first().map_or(0, |entry| entry.time) };
    let mut text = format!("{:>10}  {:>8}\n", "TIME", "REVISION");
    for root in children.get(&None).into_iter().flatten() {
        lines.write(*root, "", "", &mut text);
    }
    text
}

/// Indexes of each entry's children; those of `None` are the roots.
fn tree(entries: &[&JournalEntry]) -> HashMap<Option<usize>, Vec<usize>> {
    let mut children: HashMap<Option<usize>, Vec<usize>> = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        children.entry(parent(entries, index, entry)).or_default().push(index);
    }
    children
}

/// The latest earlier entry that wrote the cause's object at the cause's revision or before it (a revision whose own entry has left
/// the journal counts for the one before). A note without a cause hangs below the object it is about.
fn parent(entries: &[&JournalEntry], index: usize, entry: &JournalEntry) -> Option<usize> {
    let own = || Cause::new(group_resource(&entry.resource), Key::new(&entry.namespace, &entry.name), entry.revision);
    let cause = match (&entry.cause, entry.verb.as_str()) {
        (Some(cause), _) => cause.clone(),
        (None, "note") => own(),
        (None, _) => return None,
    };
    entries[..index].iter().rposition(|earlier| earlier.verb != "note" && wrote(earlier, &cause))
}

fn wrote(entry: &JournalEntry, cause: &Cause) -> bool {
    entry.revision <= cause.revision
        && entry.name == cause.key.name
        && entry.namespace == cause.key.namespace
        && entry.resource == cause.resource.to_string()
}

fn group_resource(text: &str) -> GroupResource {
    let Ok(resource) = text.parse();
    resource
}

struct Lines<'a> {
    entries: &'a [&'a JournalEntry],
    children: &'a HashMap<Option<usize>, Vec<usize>>,
    start: u64,
}

impl Lines<'_> {
    /// `branch` leads this line, `indent` its children's.
    fn write(&self, index: usize, branch: &str, indent: &str, text: &mut String) {
        let entry = self.entries[index];
        let milliseconds = (entry.time - self.start) as f64 / 1000.0;
        let revision = if entry.verb == "note" { String::new() } else { format!("@{}", entry.revision) };
        text.push_str(&format!("{:>10}  {revision:>8}  {branch}{}\n", format!("+{milliseconds:.1}ms"), describe(entry)));
        let none = Vec::new();
        let children = self.children.get(&Some(index)).unwrap_or(&none);
        for (place, child) in children.iter().enumerate() {
            let (turn, go_on) = if place + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            self.write(*child, &format!("{indent}{turn}"), &format!("{indent}{go_on}"), text);
        }
    }
}

/// Who did what to which object, and why.
fn describe(entry: &JournalEntry) -> String {
    let agent = entry.agent.split('/').next().unwrap_or_default();
    let who = if entry.user.strip_prefix("system:") == Some(agent) || entry.user.is_empty() {
        agent.to_string()
    } else {
        format!("{agent} ({})", entry.user)
    };
    let resource = entry.resource.split('.').next().unwrap_or_default();
    let subresource = if entry.subresource.is_empty() { String::new() } else { format!("/{}", entry.subresource) };
    let object = if entry.namespace.is_empty() { entry.name.clone() } else { format!("{}/{}", entry.namespace, entry.name) };
    let what = match &entry.note {
        Some(note) => format!("{note}: {resource} {object}"),
        None => format!("{} {resource}{subresource} {object}", entry.verb),
    };
    let why = entry.cause.as_ref().map(|cause| format!("  ← {} {}@{}", cause.resource.resource, cause.key.name, cause.revision));
    format!("{who}  {what}{}", why.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(time: u64, revision: u64, agent: &str, verb: &str, resource: &str, name: &str, cause: &str) -> JournalEntry {
        JournalEntry {
            time: 1_000_000 + time,
            revision,
            user: if agent == "kubectl" { "kubernetes-admin".into() } else { format!("system:{agent}") },
            agent: format!("{agent}/v1"),
            verb: verb.into(),
            resource: resource.into(),
            namespace: "default".into(),
            name: name.into(),
            cause: (!cause.is_empty()).then(|| cause.parse().unwrap()),
            ..JournalEntry::default()
        }
    }

    fn chain() -> Vec<JournalEntry> {
        let manager = "kube-controller-manager";
        let mut binding = entry(31_000, 13, "kube-scheduler", "create", "pods", "web-1-x", "pods/default/web-1-x@12");
        binding.subresource = "binding".into();
        let mut note = entry(150_500, 13, "kubelet", "note", "pods", "web-1-x", "pods/default/web-1-x@13");
        note.user = "system:node:worker1".into();
        note.note = Some("sandbox created".into());
        let mut rules = entry(260_000, 14, "kube-proxy", "note", "endpointslices.discovery.k8s.io", "web-a", "");
        rules.note = Some("rules written".into());
        vec![
            entry(0, 10, "kubectl", "create", "deployments.apps", "web", ""),
            entry(4_200, 11, manager, "create", "replicasets.apps", "web-1", "deployments.apps/default/web@10"),
            entry(9_000, 12, manager, "create", "pods", "web-1-x", "replicasets.apps/default/web-1@11"),
            binding,
            note,
            entry(250_000, 14, manager, "update", "endpointslices.discovery.k8s.io", "web-a", "pods/default/web-1-x@13"),
            rules,
        ]
    }

    #[test]
    fn an_apply_as_a_tree() {
        insta::assert_snapshot!(render(&chain()), @r"
              TIME  REVISION
            +0.0ms       @10  kubectl (kubernetes-admin)  create deployments default/web
            +4.2ms       @11  └─ kube-controller-manager  create replicasets default/web-1  ← deployments web@10
            +9.0ms       @12     └─ kube-controller-manager  create pods default/web-1-x  ← replicasets web-1@11
           +31.0ms       @13        └─ kube-scheduler  create pods/binding default/web-1-x  ← pods web-1-x@12
          +150.5ms                     ├─ kubelet (system:node:worker1)  sandbox created: pods default/web-1-x  ← pods web-1-x@13
          +250.0ms       @14           └─ kube-controller-manager  update endpointslices default/web-a  ← pods web-1-x@13
          +260.0ms                        └─ kube-proxy  rules written: endpointslices default/web-a
        ");
    }

    #[test]
    fn an_entry_whose_cause_left_the_journal_is_a_root() {
        let text = render(&chain()[2..3]);
        assert!(text.lines().nth(1).unwrap().contains("@12  kube-controller-manager  create pods"), "{text}");
    }
}
