//! Who `USER` is: numbers, or names of the image's own `/etc/passwd` and `/etc/group`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// (user, group) of `NAME`, `NAME:GROUP`, `1000`, `1000:1000`. A user's group, if none is said, is the one of its entry, else 0.
pub fn find(root: &Path, user: &str) -> Result<(u32, u32)> {
    let read = |file: &str| fs::read_to_string(root.join("etc").join(file)).unwrap_or_default();
    let (name, group) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    let passwd = read("passwd");
    let entry = entry(&passwd, name);
    let uid =
        name.parse().ok().or_else(|| entry.as_ref()?.get(2)?.parse().ok()).with_context(|| format!("the image has no user {name}"))?;
    let gid = match group {
        Some(group) => {
            let groups = read("group");
            let found = self::entry(&groups, group);
            group.parse().ok().or_else(|| found?.get(2)?.parse().ok()).with_context(|| format!("the image has no group {group}"))?
        }
        None => entry.and_then(|entry| entry.get(3)?.parse().ok()).unwrap_or(0),
    };
    Ok((uid, gid))
}

fn entry<'a>(text: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let mut entries = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    entries.find(|entry| entry.first() == Some(&name) || entry.get(2) == Some(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nredis:x:101:102::/:/bin/false\n").unwrap();
        fs::write(dir.path().join("etc/group"), "www:x:33:\n").unwrap();
        for (user, ids) in [("redis", (101, 102)), ("101", (101, 102)), ("redis:www", (101, 33)), ("7", (7, 0)), ("7:8", (7, 8))] {
            assert_eq!(find(dir.path(), user).unwrap(), ids, "{user}");
        }
        assert!(find(dir.path(), "nobody").is_err() && find(dir.path(), "redis:none").is_err());
    }
}
