//! Reads as Go clients make them: protobuf, metadata only, streamed lists, pages.

#![allow(clippy::unwrap_used)]

mod support;

use api::Gvk;
use http::Method;
use schema::{FieldValidation, Media, decode};
use serde_json::{Value, json};
use support::{Client, Server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"set": "a"}}, "data": {"k": "v"}, "binaryData": {"b": "AAE="}})
}

async fn start(dir: &std::path::Path, names: &[&str]) -> (Server, Client) {
    let server = Server::start(dir).await;
    let mut client = server.client("admin").await;
    client
        .json(Method::POST, "/api/v1/namespaces", Some(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})))
        .await;
    for name in names {
        assert_eq!(client.json(Method::POST, MAPS, Some(&map(name))).await.0, 201);
    }
    (server, client)
}

fn from_protobuf(bytes: &[u8], gvk: &Gvk) -> Value {
    decode(bytes, Media::Protobuf, gvk, FieldValidation::Strict).unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn protobuf_says_what_json_says() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, mut client) = start(dir.path(), &["a", "b"]).await;
    let (_, json) = client.json(Method::GET, &format!("{MAPS}/a"), None).await;
    let (code, headers, body) = client.get_as(&format!("{MAPS}/a"), "application/vnd.kubernetes.protobuf, */*").await.unwrap();
    assert_eq!((code.as_u16(), &headers["content-type"]), (200, &http::HeaderValue::from_static(PROTOBUF)));
    assert_eq!(from_protobuf(&body, &Gvk::new("", "v1", "ConfigMap")), json);

    let (_, list) = client.json(Method::GET, &format!("{MAPS}?labelSelector=set"), None).await;
    let (_, _, body) = client.get_as(&format!("{MAPS}?labelSelector=set"), PROTOBUF).await.unwrap();
    let decoded = from_protobuf(&body, &Gvk::new("", "v1", "ConfigMapList"));
    let of = |list: &Value| list["items"].as_array().unwrap().iter().map(|item| item["metadata"].clone()).collect::<Vec<_>>();
    assert_eq!((of(&decoded), &decoded["metadata"]), (of(&list), &list["metadata"]));

    let metadata = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json");
    let (_, _, body) = client.get_as(&format!("{MAPS}?labelSelector=set"), &metadata).await.unwrap();
    let decoded = from_protobuf(&body, &Gvk::new("meta.k8s.io", "v1", "PartialObjectMetadataList"));
    assert_eq!(of(&decoded), of(&list));

    let (code, _, body) = client.get_as(&format!("{MAPS}/none"), PROTOBUF).await.unwrap();
    assert_eq!(code, 404);
    assert_eq!(from_protobuf(&body, &Gvk::new("", "v1", "Status"))["message"], "configmaps \"none\" not found");

    let (_, headers, body) =
        client.get_as(&format!("{MAPS}?watch=1&resourceVersion=0&timeoutSeconds=1&fieldSelector=metadata.name=a"), PROTOBUF).await.unwrap();
    assert_eq!(headers["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
    assert_eq!(body, schema::watch_event("ADDED", &schema::encode_protobuf(&Gvk::new("", "v1", "ConfigMap"), &json)));

    let tables = format!("{PROTOBUF};as=Table;g=meta.k8s.io;v=v1");
    assert_eq!(client.get_as(MAPS, &tables).await.unwrap().0, 406);
    assert_eq!(client.get_as(MAPS, "text/html").await.unwrap().0, 406);
    assert_eq!(client.get_as(&format!("{MAPS}?watch=1"), "application/yaml").await.unwrap().0, 406);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_list_ends_with_a_marked_bookmark() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, mut client) = start(dir.path(), &["a", "b"]).await;
    let path = format!(
        "{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1&labelSelector=set"
    );
    let (_, _, body) = client.get_as(&path, "application/json").await.unwrap();
    let events: Vec<Value> =
        body.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(|line| serde_json::from_slice(line).unwrap()).collect();
    let seen: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(seen, ["ADDED", "ADDED", "BOOKMARK"]);
    let bookmark = &events[2]["object"];
    assert_eq!(bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert!(
        bookmark["metadata"]["resourceVersion"].as_str().unwrap() >= events[1]["object"]["metadata"]["resourceVersion"].as_str().unwrap()
    );
    let (code, said) = client.json(Method::GET, &format!("{MAPS}?watch=1&sendInitialEvents=true"), None).await;
    assert_eq!((code, &said["details"]["causes"][0]["field"]), (422, &json!("resourceVersionMatch")));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_of_one_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, mut client) = start(dir.path(), &["a", "b", "c", "d"]).await;
    let (_, first) = client.json(Method::GET, &format!("{MAPS}?limit=2&fieldSelector=metadata.name!=kube-root-ca.crt"), None).await;
    let (_, counted) = client.json(Method::GET, &format!("{MAPS}?limit=1"), None).await;
    assert_eq!(counted["metadata"]["remainingItemCount"], 3);
    assert!(first["metadata"].get("remainingItemCount").is_none());
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    assert_eq!(client.json(Method::DELETE, &format!("{MAPS}/c"), None).await.0, 200);
    assert_eq!(client.json(Method::POST, MAPS, Some(&map("cc"))).await.0, 201);
    let (_, rest) =
        client.json(Method::GET, &format!("{MAPS}?limit=5&continue={token}&fieldSelector=metadata.name!=kube-root-ca.crt"), None).await;
    let names: Vec<&str> = rest["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["c", "d"]);
    assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let at = first["metadata"]["resourceVersion"].as_str().unwrap();
    let (_, exact) = client.json(Method::GET, &format!("{MAPS}?resourceVersion={at}&resourceVersionMatch=Exact"), None).await;
    assert_eq!(exact["items"].as_array().unwrap().len(), 4);
}
