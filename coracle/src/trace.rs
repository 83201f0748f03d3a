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

pub async fn trace(cluster: &Cluster, object: &str, namespace: &str, all: bool) -> Result<()> {
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
    let object = Object { resource, namespace: namespace.into(), name: name.into() };
    print!("{}", fit(&render(&entries, &object, all)));
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

/// What `object` (resource, namespace, name) set off as a tree, times counted from its root. With `all` everything the journal has about it;
/// else from the newest write to it that nothing but its author caused: the newest apply.
fn render(entries: &[JournalEntry], object: &Object, all: bool) -> String {
    let mut entries: Vec<&JournalEntry> = entries.iter().collect();
    entries.sort_by_key(|entry| (entry.time, entry.revision));
    let children = tree(&entries);
    let none = Vec::new();
    let roots = children.get(&None).unwrap_or(&none);
    let newest = roots.iter().rposition(|root| object.is_of(entries[*root])).filter(|_| !all).map(|place| &roots[place..=place]);
    let roots = newest.unwrap_or(roots);
    let start = roots.first().map_or(0, |root| entries[*root].time);
    let mut lines = Lines { entries: &entries, children: &children, object, start, text: String::new() };
    lines.text.push_str(&format!("{:>9}  {:>6}  {:>7}  WHO, WHAT\n", "MS", "REV", "CAUSE"));
    for root in roots {
        lines.write(*root, None, "", "");
    }
    lines.text
}

/// The object that is traced.
struct Object {
    resource: String,
    namespace: String,
    name: String,
}

impl Object {
    fn is_of(&self, entry: &JournalEntry) -> bool {
        (&self.resource, &self.namespace, &self.name) == (&entry.resource, &entry.namespace, &entry.name)
    }
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
    object: &'a Object,
    start: u64,
    text: String,
}

impl Lines<'_> {
    /// `branch` leads this line, `indent` its children's.
    fn write(&mut self, index: usize, parent: Option<usize>, branch: &str, indent: &str) {
        let entry = self.entries[index];
        let milliseconds = entry.time.saturating_sub(self.start) as f64 / 1000.0;
        let revision = if entry.verb == "note" { String::new() } else { format!("@{}", entry.revision) };
        let cause = entry.cause.as_ref().map(|cause| format!("← @{}", cause.revision)).unwrap_or_default();
        let what = self.what(entry, parent.map(|parent| self.entries[parent]));
        self.text.push_str(&format!("{milliseconds:>+9.1}  {revision:>6}  {cause:>7}  {branch}{}  {what}\n", who(entry)));
        let children = self.children.get(&Some(index)).map_or(&[][..], Vec::as_slice);
        for (place, child) in children.iter().enumerate() {
            let (turn, go_on) = if place + 1 == children.len() { ("└ ", "  ") } else { ("├ ", "│ ") };
            self.write(*child, Some(index), &format!("{indent}{turn}"), &format!("{indent}{go_on}"));
        }
    }

    /// `create pods web-1-x`; of what the line above is about, only the verb: `patch status`, `sandbox created`.
    fn what(&self, entry: &JournalEntry, parent: Option<&JournalEntry>) -> String {
        let verb = match (&entry.note, entry.subresource.as_str()) {
            (Some(note), _) => note.clone(),
            (None, "") => entry.verb.clone(),
            (None, subresource) => format!("{} {subresource}", entry.verb),
        };
        if parent
            .is_some_and(|parent| (&parent.resource, &parent.namespace, &parent.name) == (&entry.resource, &entry.namespace, &entry.name))
        {
            return verb;
        }
        let resource = entry.resource.split('.').next().unwrap_or_default();
        let namespace = if entry.namespace == self.object.namespace || entry.namespace.is_empty() {
            String::new()
        } else {
            format!("{}/", entry.namespace)
        };
        let of = if entry.subresource.is_empty() && entry.note.is_none() { "" } else { "of " };
        format!("{verb} {of}{resource} {namespace}{}", entry.name)
    }
}

/// The program, and whose it is where the name does not say it.
fn who(entry: &JournalEntry) -> String {
    let agent = entry.agent.split('/').next().unwrap_or_default();
    match entry.user.strip_prefix("system:").unwrap_or(&entry.user) {
        "" => agent.to_string(),
        user if user == agent => agent.to_string(),
        user => format!("{agent} {}", user.strip_prefix("node:").unwrap_or(user)),
    }
}

/// Lines that do not fit the terminal end in an ellipsis; what goes to a file or a pipe stays whole.
fn fit(text: &str) -> String {
    let Some((terminal_size::Width(width), _)) = terminal_size::terminal_size_of(std::io::stdout()) else { return text.to_string() };
    let width = usize::from(width).max(40);
    let shorten = |line: &str| match line.chars().count() > width {
        true => line.chars().take(width - 1).chain(['…']).collect(),
        false => line.to_string(),
    };
    text.lines().map(|line| shorten(line) + "\n").collect()
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

    fn web() -> Object {
        Object { resource: "deployments.apps".into(), namespace: "default".into(), name: "web".into() }
    }

    #[test]
    fn an_apply_as_a_tree() {
        insta::assert_snapshot!(render(&chain(), &web(), false), @r"
            MS     REV    CAUSE  WHO, WHAT
          +0.0     @10           kubectl kubernetes-admin  create deployments web
          +4.2     @11    ← @10  └ kube-controller-manager  create replicasets web-1
          +9.0     @12    ← @11    └ kube-controller-manager  create pods web-1-x
         +31.0     @13    ← @12      └ kube-scheduler  create binding
        +150.5            ← @13        ├ kubelet worker1  sandbox created
        +250.0     @14    ← @13        └ kube-controller-manager  update endpointslices web-a
        +260.0                           └ kube-proxy  rules written
        ");
    }

    #[test]
    fn begins_at_the_newest_apply_unless_all_is_asked() {
        let mut entries = chain();
        entries.push(entry(900_000, 20, "kubectl", "patch", "deployments.apps", "web", ""));
        entries.push(entry(
            905_000,
            21,
            "kube-controller-manager",
            "update",
            "replicasets.apps",
            "web-1",
            "deployments.apps/default/web@20",
        ));
        assert_eq!(render(&entries, &web(), false).lines().count(), 3);
        assert_eq!(render(&entries, &web(), true).lines().count(), 1 + entries.len());
    }

    #[test]
    fn an_entry_whose_cause_left_the_journal_is_a_root() {
        let text = render(&chain()[2..3], &web(), false);
        assert!(text.lines().nth(1).unwrap().ends_with("kube-controller-manager  create pods web-1-x"), "{text}");
    }
}
