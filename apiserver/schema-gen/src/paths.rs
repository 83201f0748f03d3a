//! The paths of the OpenAPI documents, derived from the `KINDS` table.
//!
//! Each operation is stated once ([`Operation`]) and rendered for v2 or v3. kubectl looks here for the query parameters that a server
//! understands (`dryRun`, `fieldValidation`). Upstream: `apiserver/pkg/endpoints/installer.go`.

use kinds::{KINDS, Kind};
use serde_json::{Map, Value, json};

use crate::openapi::definition_name;
use crate::types::{Types, group_version};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    V2,
    V3,
}

impl Dialect {
    pub fn reference(self, name: &str) -> Value {
        match self {
            Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

const PATCHES: [&str; 4] = ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"];
const ANSWERS: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// Query parameters: name, type, description.
type Query = (&'static str, &'static str, &'static str);

const PRETTY: Query = ("pretty", "string", "If 'true', then the output is pretty printed.");
const WRITE: &[Query] = &[
    PRETTY,
    ("dryRun", "string", "When present, indicates that modifications should not be persisted. Valid values are: - All: all dry run stages will be processed"),
    ("fieldManager", "string", "fieldManager is a name associated with the actor or entity that is making these changes."),
    ("fieldValidation", "string", "fieldValidation instructs the server on how to handle objects in the request (POST/PUT/PATCH) containing unknown or duplicate fields. Valid values are: Ignore, Warn, Strict."),
];
const FORCE: Query = ("force", "boolean", "Force is going to \"force\" Apply requests.");
const LIST: &[Query] = &[
    PRETTY,
    ("allowWatchBookmarks", "boolean", "allowWatchBookmarks requests watch events with type \"BOOKMARK\"."),
    ("continue", "string", "The continue option should be set when retrieving more results from the server."),
    ("fieldSelector", "string", "A selector to restrict the list of returned objects by their fields. Defaults to everything."),
    ("labelSelector", "string", "A selector to restrict the list of returned objects by their labels. Defaults to everything."),
    ("limit", "integer", "limit is a maximum number of responses to return for a list call."),
    ("resourceVersion", "string", "resourceVersion sets a constraint on what resource versions a request may be served from."),
    ("resourceVersionMatch", "string", "resourceVersionMatch determines how resourceVersion is applied to list calls."),
    ("sendInitialEvents", "boolean", "sendInitialEvents=true may be set together with watch=true."),
    ("timeoutSeconds", "integer", "Timeout for the list/watch call."),
    ("watch", "boolean", "Watch for changes to the described resources and return them as a stream of add, update, and remove notifications."),
];
const DELETE: &[Query] = &[
    PRETTY,
    ("dryRun", "string", "When present, indicates that modifications should not be persisted."),
    ("gracePeriodSeconds", "integer", "The duration in seconds before the object should be deleted."),
    ("orphanDependents", "boolean", "Deprecated: please use the PropagationPolicy, this field will be deprecated in 1.7."),
    ("propagationPolicy", "string", "Whether and how garbage collection will be performed."),
];

struct Operation<'a> {
    method: &'static str,
    /// `x-kubernetes-action`.
    action: &'static str,
    id: String,
    description: String,
    tag: String,
    gvk: (&'a str, &'a str, &'a str),
    query: Vec<Query>,
    /// Definition of the body, with the media types it may have.
    body: Option<(String, &'static [&'static str])>,
    /// Definition of the answer; none for what is no object (logs, exec).
    answer: Option<String>,
}

/// Every group and version of the table.
pub fn group_versions() -> Vec<(String, String)> {
    let mut all: Vec<_> = KINDS.iter().flat_map(|k| k.versions.iter().map(|v| (k.group.to_owned(), (*v).to_owned()))).collect();
    all.sort();
    all.dedup();
    all
}

/// All paths, or those of one group and version.
pub fn of(types: &Types, only: Option<(&str, &str)>, dialect: Dialect) -> Value {
    let mut paths = Map::new();
    for kind in KINDS {
        for version in kind.versions.iter().filter(|v| only.is_none_or(|only| only == (kind.group, **v))) {
            kind_paths(types, kind, version, dialect, &mut paths);
        }
    }
    Value::Object(paths)
}

fn kind_paths(types: &Types, kind: &Kind, version: &str, dialect: Dialect, paths: &mut Map<String, Value>) {
    let root = if kind.group.is_empty() { format!("/api/{version}") } else { format!("/apis/{}/{version}", kind.group) };
    let scoped = if kind.namespaced { format!("{root}/namespaces/{{namespace}}/{}", kind.plural) } else { format!("{root}/{}", kind.plural) };
    let scope = if kind.namespaced { "Namespaced" } else { "" };
    let has = |verb: &str| kind.verbs.contains(&verb);
    let maker = Maker { types, kind, version };
    let own = (kind.group, version, kind.kind);
    let mut collection = Vec::new();
    if has("list") {
        collection.push(maker.operation("list", &format!("{scope}{}", kind.kind), own, ""));
    }
    if has("create") {
        collection.push(maker.operation("create", &format!("{scope}{}", kind.kind), own, ""));
    }
    if has("deletecollection") {
        collection.push(maker.operation("deletecollection", &format!("Collection{scope}{}", kind.kind), own, ""));
    }
    put(paths, &scoped, kind.namespaced, false, &collection, dialect);
    let verbs = ["get", "update", "patch", "delete"];
    let item: Vec<_> = verbs.iter().filter(|v| has(v)).map(|v| maker.operation(v, &format!("{scope}{}", kind.kind), own, "")).collect();
    put(paths, &format!("{scoped}/{{name}}"), kind.namespaced, true, &item, dialect);
    for sub in kind.subresources {
        let served = sub.served.map_or(own, |s| (if s.group.is_empty() && s.version.is_empty() { kind.group } else { s.group }, if s.version.is_empty() { version } else { s.version }, s.kind));
        let name = format!("{scope}{}{}", kind.kind, capitalized(sub.name));
        let operations: Vec<_> = sub.verbs.iter().map(|v| maker.operation(v, &name, served, sub.name)).collect();
        put(paths, &format!("{scoped}/{{name}}/{}", sub.name), kind.namespaced, true, &operations, dialect);
    }
    if kind.namespaced && has("list") {
        let everywhere = maker.operation("list", &format!("{}ForAllNamespaces", kind.kind), own, "");
        put(paths, &format!("{root}/{}", kind.plural), false, false, &[everywhere], dialect);
    }
}

/// Makes the operations of one kind in one version.
struct Maker<'a> {
    types: &'a Types,
    kind: &'a Kind,
    version: &'a str,
}

impl<'a> Maker<'a> {
    fn definition(&self, (group, version, kind): (&str, &str, &str)) -> Option<String> {
        let go = self.types.iter().find(|(go, t)| {
            let (package, name) = go.rsplit_once('.').unwrap_or_default();
            t.kind && name == kind && !package.starts_with("meta/") && group_version(package) == (group.to_owned(), version.to_owned())
        });
        go.map(|(go, _)| definition_name(go))
    }

    fn operation(&self, verb: &str, name: &str, gvk: (&'a str, &'a str, &'a str), subresource: &str) -> Operation<'a> {
        let object = self.definition(gvk);
        let tag = format!("{}_{}", group_name(self.kind.group).to_lowercase(), self.version);
        let id = |word: &str| format!("{word}{}{}{name}", group_name(self.kind.group), capitalized(self.version));
        let what = if subresource.is_empty() { self.kind.kind.to_owned() } else { format!("{subresource} of the specified {}", self.kind.kind) };
        let options = definition_name("meta/v1.DeleteOptions");
        let base = Operation { method: "get", action: "get", id: String::new(), description: String::new(), tag, gvk, query: vec![PRETTY], body: None, answer: object.clone() };
        let write = |word: &str, method, action| Operation {
            method,
            action,
            id: id(word),
            query: WRITE.to_vec(),
            body: object.clone().map(|o| (o, &ANSWERS[..])),
            ..Operation { tag: base.tag.clone(), answer: object.clone(), description: format!("{word} {what}"), ..empty(gvk) }
        };
        match verb {
            "list" => {
                let (group, version, kind) = gvk;
                let list = self.definition((group, version, &format!("{kind}List")));
                Operation { action: "list", id: id("list"), description: format!("list or watch objects of kind {what}"), query: LIST.to_vec(), answer: list, ..base }
            }
            "create" => write("create", "post", "post"),
            "update" => write("replace", "put", "put"),
            "patch" => {
                let mut query = WRITE.to_vec();
                query.push(FORCE);
                let body = Some((definition_name("meta/v1.Patch"), &PATCHES[..]));
                Operation { query, body, description: format!("partially update {what}"), ..write("patch", "patch", "patch") }
            }
            "delete" | "deletecollection" => {
                let (action, query) = if verb == "delete" { ("delete", DELETE.to_vec()) } else { ("deletecollection", [DELETE, &LIST[1..]].concat()) };
                let status = Some(definition_name("meta/v1.Status"));
                Operation { method: "delete", action, id: id("delete"), description: format!("{verb} {what}"), query, body: Some((options, &ANSWERS[..])), answer: status, ..base }
            }
            _ => Operation { id: id("read"), description: format!("read {what}"), ..base },
        }
    }
}

fn empty<'a>(gvk: (&'a str, &'a str, &'a str)) -> Operation<'a> {
    Operation { method: "", action: "", id: String::new(), description: String::new(), tag: String::new(), gvk, query: Vec::new(), body: None, answer: None }
}

/// `rbac.authorization.k8s.io` → `RbacAuthorization`; the core group is `Core`.
fn group_name(group: &str) -> String {
    match group.trim_end_matches(".k8s.io") {
        "" => "Core".to_owned(),
        group => group.split('.').map(capitalized).collect(),
    }
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn put(paths: &mut Map<String, Value>, path: &str, namespaced: bool, named: bool, operations: &[Operation], dialect: Dialect) {
    if operations.is_empty() {
        return;
    }
    let mut item = Map::new();
    for operation in operations {
        item.insert(operation.method.to_owned(), render(operation, dialect));
    }
    let mut parameters = Vec::new();
    for (on, name, description) in [(named, "name", "name of the object"), (namespaced, "namespace", "object name and auth scope, such as for teams and projects")] {
        if on {
            parameters.push(parameter(name, "path", "string", description, true, dialect));
        }
    }
    if !parameters.is_empty() {
        item.insert("parameters".to_owned(), Value::Array(parameters));
    }
    // Two rows may serve one path (a subresource of several versions never does; kinds sharing storage do).
    paths.entry(path.to_owned()).or_insert(Value::Object(item));
}

fn parameter(name: &str, place: &str, kind: &str, description: &str, required: bool, dialect: Dialect) -> Value {
    let mut parameter = json!({"name": name, "in": place, "description": description});
    match dialect {
        Dialect::V2 => {
            parameter["type"] = json!(kind);
            parameter["uniqueItems"] = json!(true);
        }
        Dialect::V3 => parameter["schema"] = json!({"type": kind, "uniqueItems": true}),
    }
    if required {
        parameter["required"] = json!(true);
    }
    parameter
}

fn render(operation: &Operation, dialect: Dialect) -> Value {
    let (group, version, kind) = operation.gvk;
    let mut parameters: Vec<Value> = operation.query.iter().map(|(name, kind, text)| parameter(name, "query", kind, text, false, dialect)).collect();
    let mut body = json!({
        "description": operation.description,
        "operationId": operation.id,
        "tags": [operation.tag],
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    });
    let schema = |name: &Option<String>| name.as_ref().map_or_else(|| json!({"type": "string"}), |name| dialect.reference(name));
    let codes: &[(&str, &str)] = match operation.method {
        "post" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
        "put" | "patch" => &[("200", "OK"), ("201", "Created")],
        _ => &[("200", "OK")],
    };
    let mut responses = Map::new();
    responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    let content = |media: &[&str], schema: Value| Value::Object(media.iter().map(|m| ((*m).to_owned(), json!({"schema": schema}))).collect());
    for (code, text) in codes {
        let mut response = json!({"description": text});
        match dialect {
            Dialect::V2 => response["schema"] = schema(&operation.answer),
            Dialect::V3 => response["content"] = content(&ANSWERS, schema(&operation.answer)),
        }
        responses.insert((*code).to_owned(), response);
    }
    body["responses"] = Value::Object(responses);
    if let Some((definition, media)) = &operation.body {
        let required = operation.method != "delete";
        match dialect {
            Dialect::V2 => {
                parameters.push(json!({"name": "body", "in": "body", "required": required, "schema": dialect.reference(definition)}));
                body["consumes"] = json!(media);
            }
            Dialect::V3 => body["requestBody"] = json!({"required": required, "content": content(media, dialect.reference(definition))}),
        }
    }
    if dialect == Dialect::V2 {
        body["produces"] = json!(ANSWERS);
    }
    body["parameters"] = Value::Array(parameters);
    body
}
