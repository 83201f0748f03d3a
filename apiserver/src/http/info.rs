//! What a request is about, read from its method, path and query.
//!
//! ```text
//! /api/{version}/…  /apis/{group}/{version}/…     then     namespaces/{ns}/{resource}/{name}/{subresource}/{rest}
//! ```
//! Upstream counterpart: `apiserver/pkg/endpoints/request/requestinfo.go` (v1.33).

use api::FieldSelector;
use http::Method;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub is_resource: bool,
    pub path: String,
    /// get, list, watch, create, update, patch, delete, deletecollection, or the lower-case method for non-resources.
    pub verb: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// Path segments behind the subresource (`proxy/metrics` → `["metrics"]`).
    pub rest: Vec<String>,
}

/// The query's parameters, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Self {
        Query(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// The first value of a parameter, "" if there is none.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }

    /// `true`, `1`, … as Go's `strconv.ParseBool`, and a bare parameter.
    pub fn flag(&self, name: &str) -> bool {
        self.has(name) && !matches!(self.get(name), "false" | "0" | "f" | "F" | "FALSE" | "False")
    }
}

impl RequestInfo {
    pub fn new(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = RequestInfo { path: path.to_owned(), verb: method.as_str().to_lowercase(), ..RequestInfo::default() };
        let parts: Vec<String> = path.split('/').filter(|p| !p.is_empty()).map(decode_segment).collect();
        let rest = match parts.first().map(String::as_str) {
            Some("api") if parts.len() >= 3 => {
                info.version = parts[1].clone();
                &parts[2..]
            }
            Some("apis") if parts.len() >= 4 => {
                (info.group, info.version) = (parts[1].clone(), parts[2].clone());
                &parts[3..]
            }
            _ => return info,
        };
        info.is_resource = true;
        info.verb = verb_of(method).to_owned();
        info.read_resource(rest);
        info.refine_verb(query);
        info
    }

    fn read_resource(&mut self, parts: &[String]) {
        let mut parts = parts;
        if matches!(parts.first().map(String::as_str), Some("watch")) && parts.len() > 1 {
            self.verb = "watch".into();
            parts = &parts[1..];
        }
        let is_namespace_itself = |sub: &str| matches!(sub, "status" | "finalize");
        if parts.first().is_some_and(|p| p == "namespaces") && parts.len() > 1 {
            self.namespace = parts[1].clone();
            // namespaces/x and namespaces/x/status are about the namespace; deeper paths are about what is in it.
            if parts.len() > 2 && !is_namespace_itself(&parts[2]) {
                parts = &parts[2..];
            }
        }
        let mut parts = parts.iter().cloned();
        self.resource = parts.next().unwrap_or_default();
        self.name = parts.next().unwrap_or_default();
        self.subresource = parts.next().unwrap_or_default();
        self.rest = parts.collect();
    }

    fn refine_verb(&mut self, query: &Query) {
        if self.name.is_empty() && self.verb == "get" {
            self.verb = if query.flag("watch") { "watch" } else { "list" }.into();
        } else if self.name.is_empty() && self.verb == "delete" {
            self.verb = "deletecollection".into();
        }
        // A list of one name is permitted to who may see that name.
        if matches!(self.verb.as_str(), "list" | "watch" | "deletecollection")
            && self.name.is_empty()
            && let Ok(selector) = FieldSelector::parse(query.get("fieldSelector"))
            && let Some(name) = selector.exact("metadata.name").filter(|n| api::names::is_path_segment_name(n).is_empty())
        {
            self.name = name.to_owned();
        }
    }
}

fn verb_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

fn decode_segment(segment: &str) -> String {
    if !segment.contains('%') {
        return segment.to_owned();
    }
    // `+` is itself in a path.
    let escaped = segment.replace('+', "%2B");
    form_urlencoded::parse(escaped.as_bytes()).next().map_or_else(|| segment.to_owned(), |(name, _)| name.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_paths_as_upstream() {
        let cases = [
            ("GET", "/api/v1/namespaces", "", "list||v1||namespaces||"),
            ("GET", "/api/v1/namespaces/a", "", "get||v1|a|namespaces|a|"),
            ("PUT", "/api/v1/namespaces/a/finalize", "", "update||v1|a|namespaces|a|finalize"),
            ("GET", "/api/v1/namespaces/a/pods", "watch=1", "watch||v1|a|pods||"),
            ("GET", "/api/v1/pods", "fieldSelector=metadata.name%3Dx", "list||v1||pods|x|"),
            ("POST", "/apis/apps/v1/namespaces/a/deployments", "", "create|apps|v1|a|deployments||"),
            ("PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale", "", "patch|apps|v1|a|deployments|d|scale"),
            ("DELETE", "/api/v1/nodes", "", "deletecollection||v1||nodes||"),
            ("GET", "/api/v1/nodes/n/proxy/metrics", "", "get||v1||nodes|n|proxy"),
            (
                "GET",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "",
                "get|rbac.authorization.k8s.io|v1||clusterroles|system:node|",
            ),
        ];
        for (method, path, query, expected) in cases {
            let i = RequestInfo::new(&method.parse().unwrap(), path, &Query::parse(query));
            assert!(i.is_resource);
            let got = [i.verb, i.group, i.version, i.namespace, i.resource, i.name, i.subresource].join("|");
            assert_eq!(got, expected, "{path}");
        }
        assert!(!RequestInfo::new(&Method::GET, "/apis/apps/v1", &Query::default()).is_resource);
    }
}
