//! `ListOptions`: what a list or a watch asks for, checked as upstream checks it.
//!
//! Upstream counterparts: `apimachinery/pkg/apis/meta/internalversion/validation`, `apiserver/pkg/storage/continue.go` (v1.33).

use std::time::Duration;

use api::field::{Error as FieldError, Path};
use api::{GroupKind, Key, Status};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::info::Query;

/// `resourceVersionMatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    Unset,
    Exact,
    NotOlderThan,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListOptions {
    /// `None` = the most recent; 0 = any.
    pub version: Option<u64>,
    pub matching: Match,
    /// 0 = all.
    pub limit: usize,
    pub from: Option<Continue>,
    pub send_initial_events: Option<bool>,
    pub bookmarks: bool,
    pub timeout: Option<Duration>,
}

impl ListOptions {
    /// Errors: 400 for what can't be read, 422 for what does not go together.
    pub fn parse(query: &Query, is_watch: bool) -> Result<Self, Status> {
        let (limit, seconds) = (integer(query, "limit")?, integer(query, "timeoutSeconds")?);
        let errors = if is_watch { watch_errors(query) } else { list_errors(query) };
        if !errors.is_empty() {
            return Err(Status::invalid(&GroupKind::new("meta.k8s.io", "ListOptions"), "", errors));
        }
        let options = ListOptions {
            version: parse_version(query.get("resourceVersion"))?,
            matching: match query.get("resourceVersionMatch") {
                "Exact" => Match::Exact,
                "NotOlderThan" => Match::NotOlderThan,
                _ => Match::Unset,
            },
            limit: usize::try_from(limit).unwrap_or(0),
            from: Some(query.get("continue")).filter(|token| !token.is_empty() && !is_watch).map(Continue::parse).transpose()?,
            send_initial_events: query.has("sendInitialEvents").then(|| query.flag("sendInitialEvents")),
            bookmarks: query.flag("allowWatchBookmarks"),
            timeout: u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs),
        };
        if options.from.is_some() && options.version.unwrap_or(0) != 0 {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        Ok(options)
    }

    /// The snapshot to list; `None` = now.
    pub fn snapshot(&self) -> Option<u64> {
        match (&self.from, self.matching, self.version) {
            (Some(from), ..) => from.revision,
            (None, Match::Exact, version) => version,
            // Paging through the past was how it was said before there was `Exact`.
            (None, Match::Unset, version) if self.limit > 0 => version.filter(|v| *v > 0),
            _ => None,
        }
    }
}

fn integer(query: &Query, name: &str) -> Result<i64, Status> {
    Ok(optional_integer(query, name)?.unwrap_or(0))
}

/// A number of the query, if it is given. Errors: 400, in Go's words.
pub fn optional_integer(query: &Query, name: &str) -> Result<Option<i64>, Status> {
    let text = query.get(name);
    let invalid = |_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(invalid) }
}

/// `None` = the most recent; 0 = any.
pub fn parse_version(text: &str) -> Result<Option<u64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid =
        |_| Status::unclassified(format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"));
    text.parse().map(Some).map_err(invalid)
}

const MATCH: &str = "resourceVersionMatch";

fn list_errors(query: &Query) -> Vec<FieldError> {
    let (matching, path) = (query.get(MATCH), Path::new(MATCH));
    let mut errors = Vec::new();
    let mut forbid = |forbidden: bool, why: &str| {
        if forbidden {
            errors.push(FieldError::forbidden(&path, why))
        }
    };
    if !matching.is_empty() {
        forbid(query.get("resourceVersion").is_empty(), "resourceVersionMatch is forbidden unless resourceVersion is provided");
        forbid(!query.get("continue").is_empty(), "resourceVersionMatch is forbidden when continue is provided");
        if !matches!(matching, "Exact" | "NotOlderThan") {
            errors.push(FieldError::not_supported(&path, matching, &["Exact", "NotOlderThan", ""]));
        }
        if matching == "Exact" && query.get("resourceVersion") == "0" {
            errors.push(FieldError::forbidden(&path, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
        }
    }
    if query.has("sendInitialEvents") {
        errors.push(FieldError::forbidden(&Path::new("sendInitialEvents"), "sendInitialEvents is forbidden for list"));
    }
    errors
}

fn watch_errors(query: &Query) -> Vec<FieldError> {
    let (matching, path) = (query.get(MATCH), Path::new(MATCH));
    let mut errors = Vec::new();
    if query.has("sendInitialEvents") && matching != "NotOlderThan" {
        errors.push(FieldError::forbidden(&path, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
    }
    if matching.is_empty() {
        return errors;
    }
    if !query.has("sendInitialEvents") {
        errors.push(FieldError::forbidden(&path, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"));
    }
    if matching != "NotOlderThan" {
        errors.push(FieldError::not_supported(&path, matching, &["NotOlderThan"]));
    }
    if !query.get("continue").is_empty() {
        errors.push(FieldError::forbidden(&path, "resourceVersionMatch is forbidden when continue is provided"));
    }
    errors
}

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continue {
    pub after: Key,
    /// `None`: in the present, because the snapshot is gone.
    pub revision: Option<u64>,
}

/// Upstream's token, base64 of this JSON.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

impl Continue {
    fn parse(text: &str) -> Result<Self, Status> {
        let invalid = |why: String| Status::bad_request(format!("invalid continue token: {why}"));
        let decoded = URL_SAFE_NO_PAD.decode(text).map_err(|e| invalid(format!("continue key is not valid: {e}")))?;
        let token: Token = serde_json::from_slice(&decoded).map_err(|e| invalid(format!("continue key is not valid: {e}")))?;
        if token.v != "meta.k8s.io/v1" {
            return Err(invalid(format!("continue key is not valid: server does not recognize this encoded version {:?}", token.v)));
        }
        if token.rv == 0 {
            return Err(invalid("continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)".into()));
        }
        if token.start.is_empty() {
            return Err(invalid("continue key is not valid: encoded start key empty (version meta.k8s.io/v1)".into()));
        }
        let Ok(after) = token.start.trim_end_matches('\0').parse();
        Ok(Continue { after, revision: u64::try_from(token.rv).ok() })
    }

    pub fn encode(&self) -> String {
        let rv = self.revision.and_then(|r| i64::try_from(r).ok()).unwrap_or(-1);
        let token = Token { v: "meta.k8s.io/v1".into(), rv, start: format!("{}\0", self.after) };
        // Two strings and a number: encoding can't fail.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_does_not_go_together() {
        let cases = [
            ("", false, Ok(())),
            (
                "resourceVersionMatch=Exact",
                false,
                Err("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"),
            ),
            (
                "resourceVersion=1&resourceVersionMatch=Foo",
                false,
                Err("resourceVersionMatch: Unsupported value: \"Foo\": supported values: \"Exact\", \"NotOlderThan\", \"\""),
            ),
            (
                "resourceVersion=0&resourceVersionMatch=Exact",
                false,
                Err("resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""),
            ),
            ("sendInitialEvents=true", false, Err("sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list")),
            (
                "sendInitialEvents=false",
                true,
                Err("resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
            ),
            (
                "resourceVersionMatch=NotOlderThan",
                true,
                Err("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"),
            ),
            ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=1", true, Ok(())),
            ("limit=x", false, Err("strconv.ParseInt: parsing \"x\": invalid syntax")),
            ("limit=2&continue=e30", false, Err("invalid continue token: continue key is not valid: missing field `v` at line 1 column 2")),
            (
                "resourceVersion=abc",
                false,
                Err("resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax"),
            ),
        ];
        for (query, is_watch, expected) in cases {
            let got = ListOptions::parse(&Query::parse(query), is_watch).map(drop).map_err(|s| s.message);
            let expected = expected.map_err(|e| {
                if e.contains(": Forbidden") || e.contains("Unsupported") {
                    format!("ListOptions.meta.k8s.io \"\" is invalid: {e}")
                } else {
                    e.to_owned()
                }
            });
            assert_eq!(got, expected, "{query}");
        }
    }

    #[test]
    fn knows_which_snapshot_is_asked_for() {
        let token = Continue { after: Key::new("ns", "a"), revision: Some(7) }.encode();
        let lost = Continue { after: Key::new("ns", "a"), revision: None }.encode();
        let cases = [
            ("", None),
            ("resourceVersion=5", None),
            ("resourceVersion=5&limit=1", Some(5)),
            ("resourceVersion=0&limit=1", None),
            ("resourceVersion=5&resourceVersionMatch=Exact", Some(5)),
            ("resourceVersion=5&limit=1&resourceVersionMatch=NotOlderThan", None),
            (&format!("continue={token}"), Some(7)),
            (&format!("continue={lost}"), None),
        ];
        for (query, expected) in cases {
            let options = ListOptions::parse(&Query::parse(query), false).unwrap();
            assert_eq!(options.snapshot(), expected, "{query}");
        }
        let parsed = ListOptions::parse(&Query::parse(&format!("continue={token}&resourceVersion=0")), false).unwrap().from;
        assert_eq!(parsed, Some(Continue { after: Key::new("ns", "a"), revision: Some(7) }));
        assert!(ListOptions::parse(&Query::parse(&format!("continue={token}&resourceVersion=3")), false).is_err());
    }
}
