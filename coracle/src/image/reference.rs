//! Image names as containerd and Docker read them: `nginx` is `docker.io/library/nginx:latest`.
//! Upstream: `github.com/distribution/reference`, normalize.go.

use std::fmt;

use anyhow::{Result, bail};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    pub registry: String,
    pub repository: String,
    /// A tag, or a digest `sha256:…`.
    pub version: String,
}

impl Reference {
    pub fn parse(text: &str) -> Result<Reference> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let (registry, repository) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => ("docker.io", name),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let official = registry == "docker.io" && !repository.contains('/');
        let repository = if official { format!("library/{repository}") } else { repository.to_owned() };
        let fine = !name.is_empty()
            && registry.starts_with(|c: char| c.is_ascii_alphanumeric())
            && repository.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c))
            && !repository.split('/').any(|part| part.is_empty() || part.starts_with('.'));
        if !fine {
            bail!("invalid image name {text:?}");
        }
        let version = digest.or(tag).unwrap_or("latest").to_string();
        Ok(Reference { registry: registry.into(), repository, version })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.version.contains(':') { '@' } else { ':' };
        write!(f, "{}/{}{separator}{}", self.registry, self.repository, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed_as_docker_does() {
        for (short, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("docker.io/redis:6.0.5", "docker.io/library/redis:6.0.5"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("coracle/web:1", "docker.io/coracle/web:1"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("localhost/a", "localhost/a:latest"),
            ("host:5000/a/b:v1", "host:5000/a/b:v1"),
            ("a@sha256:00", "docker.io/library/a@sha256:00"),
        ] {
            assert_eq!(Reference::parse(short).unwrap().to_string(), full, "{short}");
        }
    }

    #[test]
    fn names_that_could_leave_the_store_are_refused() {
        for bad in ["", "../x", "a//b", "A/b", "docker.io/../etc"] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
