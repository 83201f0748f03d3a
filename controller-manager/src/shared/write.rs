//! Typed writes to the API, the same four lines for every kind, and what their errors mean.
//!
//! Invariant: nothing here retries. A conflict goes back to the work queue, which will see a newer object.

use api::key::Key;
use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::Request;
use kube::core::params::{DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Error, Resource, Result};
pub use machinery::controller::{is_already_exists, is_conflict, is_not_found};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A kind known at compile time: every type of `k8s-openapi` that is stored.
pub trait Object:
    Resource<DynamicType = ()>
    + Metadata<Ty = ObjectMeta>
    + Clone
    + std::fmt::Debug
    + PartialEq
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = ()>
        + Metadata<Ty = ObjectMeta>
        + Clone
        + std::fmt::Debug
        + PartialEq
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

fn request<K: Object>(namespace: &str) -> Request {
    Request::new(K::url_path(&(), (!namespace.is_empty()).then_some(namespace)))
}

fn body<T: Serialize>(object: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(object).map_err(Error::SerdeError)
}

fn key_of<K: Object>(object: &K) -> Key {
    Key::of_meta(object.metadata())
}

pub async fn create<K: Object>(client: &Client, object: &K) -> Result<K> {
    let request = request::<K>(&key_of(object).namespace).create(&PostParams::default(), body(object)?).map_err(Error::BuildRequest)?;
    client.request(request).await
}

/// PUT: the object's resourceVersion makes it conditional.
pub async fn update<K: Object>(client: &Client, object: &K) -> Result<K> {
    let key = key_of(object);
    let request = request::<K>(&key.namespace).replace(&key.name, &PostParams::default(), body(object)?).map_err(Error::BuildRequest)?;
    client.request(request).await
}

pub async fn update_status<K: Object>(client: &Client, object: &K) -> Result<K> {
    update_subresource(client, "status", object).await
}

pub async fn update_subresource<K: Object>(client: &Client, subresource: &str, object: &K) -> Result<K> {
    let key = key_of(object);
    let request = request::<K>(&key.namespace)
        .replace_subresource(subresource, &key.name, &PostParams::default(), body(object)?)
        .map_err(Error::BuildRequest)?;
    client.request(request).await
}

/// The object as the API server has it now, past the informers' cache.
pub async fn get<K: Object>(client: &Client, key: &Key) -> Result<Option<K>> {
    let request = request::<K>(&key.namespace).get(&key.name, &GetParams::default()).map_err(Error::BuildRequest)?;
    match client.request(request).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

pub async fn merge<K: Object>(client: &Client, key: &Key, patch: &Value) -> Result<K> {
    patched(client, key, "", &Patch::Merge(patch)).await
}

pub async fn strategic<K: Object>(client: &Client, key: &Key, patch: &Value) -> Result<K> {
    patched(client, key, "", &Patch::Strategic(patch)).await
}

pub async fn strategic_status<K: Object>(client: &Client, key: &Key, patch: &Value) -> Result<K> {
    patched(client, key, "status", &Patch::Strategic(patch)).await
}

async fn patched<K: Object>(client: &Client, key: &Key, subresource: &str, patch: &Patch<&Value>) -> Result<K> {
    let request = request::<K>(&key.namespace);
    let params = PatchParams::default();
    let request = match subresource {
        "" => request.patch(&key.name, &params, patch),
        subresource => request.patch_subresource(subresource, &key.name, &params, patch),
    };
    client.request(request.map_err(Error::BuildRequest)?).await
}

pub async fn delete<K: Object>(client: &Client, key: &Key, params: &DeleteParams) -> Result<()> {
    let request = request::<K>(&key.namespace).delete(&key.name, params).map_err(Error::BuildRequest)?;
    // The answer is the object or a Status, depending on finalizers and grace: neither is used.
    client.request::<Value>(request).await.map(drop)
}

/// Deletes this very object, not a namesake that replaced it.
pub fn only(uid: &str) -> DeleteParams {
    DeleteParams { preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }), ..DeleteParams::default() }
}

/// For deletes and patches of what may be gone already.
pub fn unless_gone<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

/// For objects that several writers may create.
pub fn unless_exists<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if !is_already_exists(&error) => Err(error),
        _ => Ok(()),
    }
}

pub fn is_invalid(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.is_invalid())
}

/// The namespace is being deleted: nothing new can be made in it, and nobody should be told.
pub fn is_namespace_terminating(error: &Error) -> bool {
    let Error::Api(status) = error else { return false };
    status.details.as_ref().is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
}

/// The server's words alone, as upstream prints an API error in events and conditions.
pub fn message(error: &Error) -> String {
    match error {
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Did the step fail because we looked at an old object? Then nothing should be concluded from it.
pub fn is_conflict_in<T>(result: &Result<T>) -> bool {
    result.as_ref().is_err_and(is_conflict)
}
