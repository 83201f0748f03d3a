//! Tokens of service accounts in Secrets, for clients older than the TokenRequest API.
//!
//! A Secret of type `kubernetes.io/service-account-token` that names an account gets that account's token, and goes when the account does.
//! With `--legacy-service-account-token-secrets` every account is given such a Secret and lists it in `.secrets`, as up to v1.23.
//! Upstream: `pkg/controller/serviceaccount/tokens_controller.go` (v1.33; for the flag, v1.23).

mod signer;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use anyhow::Context as _;
use api::key::Key;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery::{Informer, Next, WorkQueue};
use serde_json::json;

use crate::context::Context;
use crate::shared::{hash, meta, write};
use signer::Signer;

const NAME: &str = "serviceaccount-token-controller";
const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// Index of token Secrets by the account they name, as `namespace/name`.
const BY_ACCOUNT: &str = "by-service-account";

/// An account, and a token Secret of its that is gone and should no longer be listed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Work {
    account: Key,
    vanished: Option<String>,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.account)
    }
}

struct Controller {
    client: kube::Client,
    accounts: Informer<ServiceAccount>,
    secrets: Informer<Secret>,
    signer: Signer,
    ca: Option<Vec<u8>>,
    for_every_account: bool,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let config = &context.config;
    let Some(path) = &config.service_account_private_key_file else {
        tracing::info!("no --service-account-private-key-file: Secrets get no tokens");
        return Ok(());
    };
    let read = async |path: &std::path::Path| tokio::fs::read(path).await.with_context(|| format!("cannot read {}", path.display()));
    let ca = match &config.root_ca_file {
        Some(path) => Some(read(path).await?),
        None => None,
    };
    let this = Arc::new(Controller {
        client: context.client.clone(),
        accounts: context.informers.of(),
        secrets: Informer::with_fields(context.client.clone(), context.token.clone(), &format!("type={TYPE}")),
        signer: Signer::from_pem(&read(path).await?).with_context(|| format!("cannot use {}", path.display()))?,
        ca,
        for_every_account: config.legacy_service_account_token_secrets,
    });
    this.secrets.index(BY_ACCOUNT, |secret| vec![account_of(secret).to_string()]);
    let queue = WorkQueue::new();
    let accounts = queue.clone();
    this.accounts.on_change(move |change| accounts.add_caused(Work { account: change.key(), vanished: None }, change.cause()));
    let secrets = queue.clone();
    this.secrets.on_change(move |change| {
        let vanished = change.is_delete().then(|| change.key().name.to_string());
        secrets.add_caused(Work { account: account_of(change.object()), vanished }, change.cause());
    });
    this.accounts.synced().await;
    this.secrets.synced().await;
    context
        .run(NAME, queue, move |work| {
            let this = this.clone();
            async move { this.sync(&work).await }
        })
        .await
}

impl Controller {
    async fn sync(&self, work: &Work) -> anyhow::Result<Next> {
        let key = &work.account;
        let secrets = self.secrets.by(BY_ACCOUNT, &key.to_string());
        let account = self.account(key, &secrets).await?;
        for secret in secrets.iter().filter(|secret| !meta::is_deleting(&***secret)) {
            match account.as_deref().filter(|account| is_of(secret, account)) {
                Some(account) => self.fill(secret, account).await?,
                None => write::unless_gone(
                    write::delete::<Secret>(&self.client, &meta::key(&**secret), &write::only(meta::uid(&**secret))).await,
                )?,
            }
        }
        let Some(account) = account.filter(|account| !meta::is_deleting(&**account)) else { return Ok(Next::Done) };
        if let Some(name) = &work.vanished {
            self.unlist(&account, name).await?;
        } else if self.for_every_account && !self.lists_token(&account, &secrets).await? {
            self.give_token(&account).await?;
        }
        Ok(Next::Done)
    }

    /// Secrets are not thrown away because our cache has not heard of their account yet.
    async fn account(&self, key: &Key, secrets: &[Arc<Secret>]) -> kube::Result<Option<Arc<ServiceAccount>>> {
        let known = self.accounts.get(key);
        let is_enough = |account: &ServiceAccount| secrets.iter().all(|secret| is_of(secret, account));
        match known {
            Some(account) if is_enough(&account) => Ok(Some(account)),
            None if secrets.is_empty() => Ok(None),
            _ => Ok(write::get(&self.client, key).await?.map(Arc::new)),
        }
    }

    async fn fill(&self, secret: &Secret, account: &ServiceAccount) -> anyhow::Result<()> {
        let Some(filled) = filled(secret, account, self.ca.as_deref(), &self.signer)? else { return Ok(()) };
        write::unless_gone(write::update(&self.client, &filled).await)?;
        Ok(())
    }

    /// Does `.secrets` name one of the account's tokens? A Secret that the cache has not heard of yet is asked for.
    async fn lists_token(&self, account: &ServiceAccount, secrets: &[Arc<Secret>]) -> kube::Result<bool> {
        let named: Vec<&str> = listed(account).collect();
        if secrets.iter().any(|secret| named.contains(&meta::name(&**secret))) {
            return Ok(true);
        }
        for name in named {
            let found: Option<Secret> = write::get(&self.client, &Key::new(meta::namespace(account), name)).await?;
            if found.is_some_and(|secret| secret.type_.as_deref() == Some(TYPE) && is_of(&secret, account)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn give_token(&self, account: &ServiceAccount) -> anyhow::Result<()> {
        let live: Option<ServiceAccount> = write::get(&self.client, &meta::key(account)).await?;
        if live.is_none_or(|live| live.metadata.resource_version != account.metadata.resource_version) {
            // It may have a token by now: the change that we have not heard of yet brings us back.
            return Ok(());
        }
        let empty = Secret { metadata: token_meta(account), type_: Some(TYPE.to_owned()), ..Secret::default() };
        let Some(secret) = filled(&empty, account, self.ca.as_deref(), &self.signer)? else { return Ok(()) };
        let made = match write::create(&self.client, &secret).await {
            Err(error) if write::is_namespace_terminating(&error) || write::is_not_found(&error) => return Ok(()),
            made => made?,
        };
        let listing = json!({"metadata": {"uid": meta::uid(account)}, "secrets": [{"name": meta::name(&made)}]});
        let listed = write::strategic::<ServiceAccount>(&self.client, &meta::key(account), &listing).await;
        if listed.is_err() {
            // Nobody would know this token, and the next try makes another.
            write::unless_gone(write::delete::<Secret>(&self.client, &meta::key(&made), &write::only(meta::uid(&made))).await)?;
        }
        Ok(write::unless_gone(listed)?)
    }

    async fn unlist(&self, account: &ServiceAccount, name: &str) -> kube::Result<()> {
        let returned = self.secrets.get(&Key::new(meta::namespace(account), name)).is_some();
        if returned || !listed(account).any(|listed| listed == name) {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": meta::uid(account)}, "secrets": [{"$patch": "delete", "name": name}]});
        write::unless_gone(write::strategic::<ServiceAccount>(&self.client, &meta::key(account), &patch).await)
    }
}

fn account_of(secret: &Secret) -> Key {
    Key::new(meta::namespace(secret), meta::annotation(secret, ACCOUNT_NAME).unwrap_or_default())
}

/// The Secret names this very account, not a namesake that was there before it.
fn is_of(secret: &Secret, account: &ServiceAccount) -> bool {
    let uid = meta::annotation(secret, ACCOUNT_UID).unwrap_or_default();
    account_of(secret) == meta::key(account) && (uid.is_empty() || uid == meta::uid(account))
}

fn listed(account: &ServiceAccount) -> impl Iterator<Item = &str> {
    account.secrets.iter().flatten().filter_map(|reference| reference.name.as_deref())
}

/// Upstream makes this name itself: the token repeats it.
fn token_meta(account: &ServiceAccount) -> ObjectMeta {
    /// Of 63 characters five are the suffix.
    const LONGEST_BASE: usize = 58;
    let mut name = format!("{}-token-", meta::name(account));
    name.truncate(LONGEST_BASE);
    name.push_str(&hash::random_suffix());
    ObjectMeta { name: Some(name), namespace: Some(meta::namespace(account).to_owned()), ..ObjectMeta::default() }
}

/// The Secret with all a token Secret has; none if it lacks nothing.
fn filled(secret: &Secret, account: &ServiceAccount, ca: Option<&[u8]>, signer: &Signer) -> anyhow::Result<Option<Secret>> {
    let held = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map_or(&[][..], |value| &value.0);
    let mut lacking = BTreeMap::new();
    if let Some(ca) = ca.filter(|ca| held("ca.crt") != *ca) {
        lacking.insert("ca.crt".to_owned(), ByteString(ca.to_vec()));
    }
    if held("namespace").is_empty() {
        lacking.insert("namespace".to_owned(), ByteString(meta::namespace(account).into()));
    }
    if held("token").is_empty() {
        lacking.insert("token".to_owned(), ByteString(signer.token(account, meta::name(secret))?.into_bytes()));
    }
    if lacking.is_empty() {
        return Ok(None);
    }
    let mut filled = secret.clone();
    filled.data.get_or_insert_default().extend(lacking);
    let annotations = filled.metadata.annotations.get_or_insert_default();
    annotations.insert(ACCOUNT_NAME.to_owned(), meta::name(account).to_owned());
    annotations.insert(ACCOUNT_UID.to_owned(), meta::uid(account).to_owned());
    Ok(Some(filled))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::Value;

    fn account() -> ServiceAccount {
        let metadata =
            ObjectMeta { name: Some("app".into()), namespace: Some("ns".into()), uid: Some("u1".into()), ..ObjectMeta::default() };
        ServiceAccount { metadata, ..ServiceAccount::default() }
    }

    fn signer() -> Signer {
        Signer::from_pem(rcgen::KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap()
    }

    #[test]
    fn a_secret_is_filled_once_and_put_right() {
        let (account, signer) = (account(), signer());
        let mut secret = Secret { metadata: token_meta(&account), ..Secret::default() };
        secret.metadata.name = Some("s".into());
        let full = filled(&secret, &account, Some(b"CA"), &signer).unwrap().unwrap();
        assert!(is_of(&full, &account));
        assert_eq!(filled(&full, &account, Some(b"CA"), &signer).unwrap(), None);
        let renewed = filled(&full, &account, Some(b"new CA"), &signer).unwrap().unwrap();
        let (old, new) = (full.data.unwrap(), renewed.data.unwrap());
        assert_eq!((old["token"].clone(), new["ca.crt"].0.as_slice()), (new["token"].clone(), &b"new CA"[..]));
        let token = String::from_utf8(old["token"].0.clone()).unwrap();
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap();
        assert_eq!(claims["kubernetes.io/serviceaccount/secret.name"], "s");
        assert_eq!(claims["sub"], "system:serviceaccount:ns:app");
    }

    #[test]
    fn a_namesake_gets_no_old_secrets() {
        let (account, signer) = (account(), signer());
        let secret = Secret { metadata: token_meta(&account), ..Secret::default() };
        let full = filled(&secret, &account, None, &signer).unwrap().unwrap();
        let mut namesake = account.clone();
        namesake.metadata.uid = Some("u2".into());
        assert!(!is_of(&full, &namesake));
    }
}
