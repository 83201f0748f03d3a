//! Volumes that are small files from the API: configMap, secret, downwardAPI, projected.
//!
//! Upstream: `pkg/volume/{configmap,secret,downwardapi,projected}`, v1.33.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccountTokenProjection, Volume};

use super::atomic::{File, Payload};
use super::{Context, Error, Mounted, VolumePlugin, atomic, io_error, plain};
use crate::fields;
use crate::pod::PodExt;

const DEFAULT_MODE: i32 = 0o644;

fn mode(mode: Option<i32>) -> u32 {
    mode.unwrap_or(DEFAULT_MODE).unsigned_abs() & 0o777
}

/// Where a volume may hold secrets it is in memory, so that they reach no disk.
fn in_memory(context: &Context<'_>) -> Result<(), Error> {
    plain::memory(&context.directory, None, None).map_err(io_error(format!("mount tmpfs on {}", context.directory.display())))
}

fn finish(context: &Context<'_>, payload: &Payload, refresh: Option<Duration>) -> Result<Mounted, Error> {
    atomic::write(&context.directory, payload, context.fs_group()).map_err(io_error(format!("write {}", context.directory.display())))?;
    Ok(Mounted { path: context.directory.clone(), read_only: true, refresh })
}

/// The files of a map: all keys, or those that `items` chooses.
fn select(
    data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    default_mode: u32,
    optional: bool,
    missing: impl Fn(&str) -> String,
) -> Result<Payload, Error> {
    let file = |data: Vec<u8>, mode| File { data, mode, owner: None };
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(data.into_iter().map(|(key, data)| (key, file(data, default_mode))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(data) => {
                let mode = item.mode.map_or(default_mode, |m| mode(Some(m)));
                payload.insert(item.path.clone(), file(data.clone(), mode));
            }
            None if optional => {}
            None => return Err(Error::Refused(missing(&item.key))),
        }
    }
    Ok(payload)
}

fn config_map_data(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

fn secret_data(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
}

async fn config_map_files(
    context: &Context<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
) -> Result<Payload, Error> {
    let map = context.objects.config_map(context.pod.namespace(), name, optional).await?;
    let missing = |key: &str| format!("configmap references non-existent config key: {key}");
    select(map.map(|m| config_map_data(&m)).unwrap_or_default(), items, mode, optional, missing)
}

async fn secret_files(context: &Context<'_>, name: &str, items: Option<&[KeyToPath]>, mode: u32, optional: bool) -> Result<Payload, Error> {
    let secret = context.objects.secret(context.pod.namespace(), name, optional).await?;
    let missing = |key: &str| format!("references non-existent secret key: {key}");
    select(secret.map(|s| secret_data(&s)).unwrap_or_default(), items, mode, optional, missing)
}

fn downward_files(context: &Context<'_>, items: Option<&[DownwardAPIVolumeFile]>, default_mode: u32) -> Result<Payload, Error> {
    let mut payload = Payload::new();
    for item in items.unwrap_or_default() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => fields::field(context.fields, &field.field_path)?,
            (None, Some(resource)) => fields::resource(context.fields, resource, "")?,
            (None, None) => String::new(),
        };
        let mode = item.mode.map_or(default_mode, |m| mode(Some(m)));
        payload.insert(item.path.clone(), File { data: text.into_bytes(), mode, owner: None });
    }
    Ok(payload)
}

pub struct ConfigMaps;

#[async_trait]
impl VolumePlugin for ConfigMaps {
    fn name(&self) -> &'static str {
        "kubernetes.io~configmap"
    }

    fn handles(&self, volume: &Volume) -> bool {
        volume.config_map.is_some()
    }

    async fn mount(&self, context: &Context<'_>, volume: &Volume) -> Result<Mounted, Error> {
        let source = volume.config_map.clone().unwrap_or_default();
        let optional = source.optional == Some(true);
        let files = config_map_files(context, &source.name, source.items.as_deref(), mode(source.default_mode), optional).await?;
        finish(context, &files, None)
    }
}

pub struct Secrets;

#[async_trait]
impl VolumePlugin for Secrets {
    fn name(&self) -> &'static str {
        "kubernetes.io~secret"
    }

    fn handles(&self, volume: &Volume) -> bool {
        volume.secret.is_some()
    }

    async fn mount(&self, context: &Context<'_>, volume: &Volume) -> Result<Mounted, Error> {
        let source = volume.secret.clone().unwrap_or_default();
        let name = source.secret_name.unwrap_or_default();
        let optional = source.optional == Some(true);
        let files = secret_files(context, &name, source.items.as_deref(), mode(source.default_mode), optional).await?;
        in_memory(context)?;
        finish(context, &files, None)
    }
}

pub struct DownwardApi;

#[async_trait]
impl VolumePlugin for DownwardApi {
    fn name(&self) -> &'static str {
        "kubernetes.io~downward-api"
    }

    fn handles(&self, volume: &Volume) -> bool {
        volume.downward_api.is_some()
    }

    async fn mount(&self, context: &Context<'_>, volume: &Volume) -> Result<Mounted, Error> {
        let source = volume.downward_api.clone().unwrap_or_default();
        let files = downward_files(context, source.items.as_deref(), mode(source.default_mode))?;
        finish(context, &files, None)
    }
}

pub struct Projected;

#[async_trait]
impl VolumePlugin for Projected {
    fn name(&self) -> &'static str {
        "kubernetes.io~projected"
    }

    fn handles(&self, volume: &Volume) -> bool {
        volume.projected.is_some()
    }

    async fn mount(&self, context: &Context<'_>, volume: &Volume) -> Result<Mounted, Error> {
        let source = volume.projected.clone().unwrap_or_default();
        let mode = mode(source.default_mode);
        let mut payload = Payload::new();
        let mut refresh: Option<Duration> = None;
        for source in source.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                payload.extend(config_map_files(context, &map.name, map.items.as_deref(), mode, map.optional == Some(true)).await?);
            }
            if let Some(secret) = &source.secret {
                payload.extend(secret_files(context, &secret.name, secret.items.as_deref(), mode, secret.optional == Some(true)).await?);
            }
            if let Some(downward) = &source.downward_api {
                payload.extend(downward_files(context, downward.items.as_deref(), mode)?);
            }
            if let Some(token) = &source.service_account_token {
                let (file, after) = token_file(context, token, mode).await?;
                payload.insert(token.path.clone(), file);
                refresh = Some(refresh.map_or(after, |r| r.min(after)));
            }
        }
        in_memory(context)?;
        finish(context, &payload, refresh)
    }
}

async fn token_file(context: &Context<'_>, source: &ServiceAccountTokenProjection, default_mode: u32) -> Result<(File, Duration), Error> {
    let audience = source.audience.as_deref().unwrap_or_default();
    let seconds = source.expiration_seconds.unwrap_or(3600);
    let (token, refresh) = context.tokens.get(context.pod, audience, seconds).await?;
    let owner = common_user(context.pod);
    // Read by its user alone where that is known, or by the pod's group.
    let mode = if owner.is_some() || context.fs_group().is_some() { 0o600 } else { default_mode };
    Ok((File { data: token.into_bytes(), mode, owner }, refresh))
}

/// The user that all containers run as, if they agree on one.
fn common_user(pod: &Pod) -> Option<u32> {
    let of_pod = pod.spec().security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = pod.all_containers().into_iter().map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}
