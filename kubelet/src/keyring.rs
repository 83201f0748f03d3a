//! Which credentials of a pod's pull secrets are for an image.
//!
//! An entry's key is a registry, or a registry and a path that the image's name must begin with; `*` stands for (part of) one label of
//! the host's name. Longer keys are tried first. Upstream: `pkg/credentialprovider/keyring.go`, `config.go`, v1.33.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use k8s_cri::v1::AuthConfig;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;

/// Docker's own name for the registry of images without one.
const DEFAULT_REGISTRY: &str = "index.docker.io";

/// `HOST[:PORT][/PATH]` → its entries, in the order of the secrets.
#[derive(Default)]
pub struct Keyring(BTreeMap<String, Vec<AuthConfig>>);

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

impl Keyring {
    /// Errors: a secret of a pull type that is not what its type says.
    pub fn new(secrets: &[Arc<Secret>]) -> Result<Keyring, String> {
        let mut keyring = Keyring::default();
        for secret in secrets {
            for (address, entry) in entries(secret)? {
                let auth = entry.credentials()?;
                keyring.0.entry(key(&address)).or_default().push(auth);
            }
        }
        Ok(keyring)
    }

    /// Those for the repository: `registry.example:5000/team/app`, `docker.io/library/nginx`.
    pub fn lookup(&self, repository: &str) -> Vec<AuthConfig> {
        let matching = self.0.iter().rev().filter(|(key, _)| matches(key, repository));
        let found: Vec<AuthConfig> = matching.flat_map(|(_, auths)| auths.clone()).collect();
        let default = repository.starts_with("docker.io/");
        if found.is_empty() && default { self.0.get(DEFAULT_REGISTRY).cloned().unwrap_or_default() } else { found }
    }
}

fn entries(secret: &Secret) -> Result<BTreeMap<String, Entry>, String> {
    let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice()).filter(|b| !b.is_empty());
    let bad = |e: serde_json::Error| e.to_string();
    match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => match data(".dockerconfigjson") {
            Some(bytes) => serde_json::from_slice::<Config>(bytes).map(|config| config.auths).map_err(bad),
            None => Ok(BTreeMap::new()),
        },
        Some("kubernetes.io/dockercfg") => {
            data(".dockercfg").map_or(Ok(BTreeMap::new()), |bytes| serde_json::from_slice(bytes).map_err(bad))
        }
        _ => Ok(BTreeMap::new()),
    }
}

impl Entry {
    /// `auth`, base64 of `USER:PASSWORD`, wins over the two fields.
    fn credentials(self) -> Result<AuthConfig, String> {
        if self.auth.is_empty() {
            return Ok(AuthConfig { username: self.username, password: self.password, ..AuthConfig::default() });
        }
        let engine = if self.auth.ends_with('=') { &STANDARD } else { &STANDARD_NO_PAD };
        let decoded = engine.decode(&self.auth).map_err(|e| e.to_string())?;
        let text = String::from_utf8(decoded).map_err(|e| e.to_string())?;
        let (username, password) =
            text.split_once(':').ok_or("unable to parse auth field, must be formatted as base64(username:password)")?;
        Ok(AuthConfig { username: username.to_owned(), password: password.to_owned(), ..AuthConfig::default() })
    }
}

/// `https://index.docker.io/v1/` → `index.docker.io`.
fn key(address: &str) -> String {
    let bare = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://")).unwrap_or(address);
    let (host, path) = bare.find('/').map_or((bare, ""), |at| bare.split_at(at));
    let path = path.strip_prefix("/v1/").or_else(|| path.strip_prefix("/v2/")).map_or(path.to_owned(), |rest| format!("/{rest}"));
    if path == "/" { host.to_owned() } else { format!("{host}{path}") }
}

fn split(name: &str) -> (&str, Option<&str>, &str) {
    let (host, path) = name.find('/').map_or((name, ""), |at| name.split_at(at));
    let (host, port) = host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port)));
    (host, port, path)
}

fn matches(key: &str, repository: &str) -> bool {
    let ((key_host, key_port, key_path), (host, port, path)) = (split(key), split(repository));
    let (patterns, labels): (Vec<&str>, Vec<&str>) = (key_host.split('.').collect(), host.split('.').collect());
    key_port == port && path.starts_with(key_path) && patterns.len() == labels.len() && patterns.iter().zip(labels).all(|(p, l)| glob(p, l))
}

/// `*` stands for any characters.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => {
            text.strip_prefix(before).is_some_and(|rest| (0..=rest.len()).any(|at| rest.is_char_boundary(at) && glob(after, &rest[at..])))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(kind: &str, file: &str, content: &str) -> Arc<Secret> {
        let data = BTreeMap::from([(file.to_owned(), ByteString(content.as_bytes().to_vec()))]);
        Arc::new(Secret { type_: Some(kind.into()), data: Some(data), ..Secret::default() })
    }

    fn json(content: &str) -> Arc<Secret> {
        secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", content)
    }

    #[test]
    fn keys_and_images() {
        for (address, repository, fits) in [
            ("registry.example", "registry.example/app", true),
            ("https://registry.example/v2/", "registry.example/app", true),
            ("registry.example:5000", "registry.example/app", false),
            ("registry.example:5000", "registry.example:5000/app", true),
            ("registry.example/team", "registry.example/team/app", true),
            ("registry.example/team", "registry.example/other/app", false),
            ("*.example", "registry.example/app", true),
            ("*.example", "a.registry.example/app", false),
            ("reg*y.example", "registry.example/app", true),
            ("docker.io", "docker.io/library/nginx", true),
            ("https://index.docker.io/v1/", "docker.io/library/nginx", true),
            ("registry.example", "docker.io/library/nginx", false),
        ] {
            let keyring = Keyring::new(&[json(&format!(r#"{{"auths":{{"{address}":{{"username":"u","password":"p"}}}}}}"#))]).unwrap();
            assert_eq!(keyring.lookup(repository).len(), usize::from(fits), "{address} {repository}");
        }
    }

    #[test]
    fn longer_keys_first_and_all_of_a_key() {
        let one = json(r#"{"auths":{"r.example":{"username":"wide","password":"p"},"r.example/team":{"auth":"bmFycm93OnA6cQ=="}}}"#);
        let two = secret("kubernetes.io/dockercfg", ".dockercfg", r#"{"r.example":{"username":"second","password":"p"}}"#);
        let found = Keyring::new(&[one, two]).unwrap().lookup("r.example/team/app");
        let names: Vec<_> = found.iter().map(|auth| (auth.username.as_str(), auth.password.as_str())).collect();
        assert_eq!(names, [("narrow", "p:q"), ("wide", "p"), ("second", "p")]);
    }

    #[test]
    fn other_secrets_and_broken_ones() {
        let opaque = secret("Opaque", ".dockerconfigjson", r#"{"auths":{"r.example":{}}}"#);
        assert!(Keyring::new(&[opaque]).unwrap().lookup("r.example/a").is_empty());
        assert!(Keyring::new(&[json("{")]).is_err());
        assert!(Keyring::new(&[json(r#"{"auths":{"r.example":{"auth":"bm9jb2xvbg=="}}}"#)]).is_err());
    }
}
