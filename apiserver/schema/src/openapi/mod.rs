//! The OpenAPI documents, made by `schema-gen` and carried compressed: nothing is built at run time.
//!
//! Whole: list types, merge keys and patch strategies of every field, and the query parameters of every operation.
//! Upstream: `api/openapi-spec`, `kube-openapi/pkg/handler{,3}` (v1.33).

mod documents;

use std::io::Read;

use flate2::read::GzDecoder;

pub use documents::{V2, V2_PROTOBUF, V3};

/// One document, compressed.
pub struct Document {
    /// Below `/openapi/v3/`: `apis/apps/v1`. Empty for v2.
    pub path: &'static str,
    /// By which a client knows a document that it has already: SHA-512 of the plain bytes.
    pub hash: &'static str,
    pub gzip: &'static [u8],
}

impl Document {
    /// The plain bytes, for clients that can't unpack. Errors: none in practice, the bytes are our own.
    pub fn plain(&self) -> impl Read + Send + use<> {
        GzDecoder::new(self.gzip)
    }
}

/// The document of a path below `/openapi/v3/`.
pub fn v3(path: &str) -> Option<&'static Document> {
    V3.iter().find(|document| document.path == path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn tree(document: &Document) -> Value {
        serde_json::from_reader(std::io::BufReader::new(document.plain())).unwrap()
    }

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| match value {
                Value::String(target) if key == "$ref" => drop(found.insert(target.rsplit('/').next().unwrap().to_owned())),
                _ => references(value, found),
            }),
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn no_document_refers_to_what_it_lacks() {
        for document in V3.iter().chain([&V2]) {
            let tree = tree(document);
            let schemas = tree.pointer("/components/schemas").or(tree.get("definitions")).unwrap().as_object().unwrap();
            let mut wanted = BTreeSet::new();
            references(&tree, &mut wanted);
            let dangling: Vec<_> = wanted.iter().filter(|name| !schemas.contains_key(*name)).collect();
            assert!(dangling.is_empty(), "{}: {dangling:?}", document.path);
        }
    }

    #[test]
    fn kubectl_finds_what_it_needs() {
        let apps = tree(v3("apis/apps/v1").unwrap());
        let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        let parameters: Vec<&str> = patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        assert!(parameters.contains(&"fieldValidation") && parameters.contains(&"dryRun"));
        let containers = &apps["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    }
}
