//! `kubectl --as`: acting as another user, if one may.
//!
//! Upstream: `apiserver/pkg/endpoints/filters/impersonation.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Status;

use crate::authz::{Attributes, Authorizer, Decision, forbidden};
use crate::user::{
    ALL_AUTHENTICATED, ALL_SERVICE_ACCOUNTS, ALL_UNAUTHENTICATED, ANONYMOUS, SERVICE_ACCOUNTS_GROUP_PREFIX, User,
    split_service_account_name,
};

const EXTRA_PREFIX: &str = "impersonate-extra-";

/// The request's `Impersonate-*` headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Impersonation {
    pub user: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Impersonation {
    /// Reads headers as they come (names in lower case). `None` when there are none.
    pub fn from_headers<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Option<Self>, Status> {
        let mut found = Impersonation::default();
        for (name, value) in headers {
            match name {
                "impersonate-user" => found.user = value.to_owned(),
                "impersonate-uid" => found.uid = value.to_owned(),
                "impersonate-group" => found.groups.push(value.to_owned()),
                name => {
                    if let Some(key) = name.strip_prefix(EXTRA_PREFIX) {
                        found.extra.entry(unescape(key)).or_default().push(value.to_owned());
                    }
                }
            }
        }
        if found.user.is_empty() && found != Impersonation::default() {
            let what = format!("requested {found:?} without impersonating a user");
            return Err(Status::internal(what));
        }
        Ok((!found.user.is_empty()).then_some(found))
    }
}

/// Extra keys travel percent-encoded, since header names can't hold `/`.
fn unescape(key: &str) -> String {
    let mut out = Vec::with_capacity(key.len());
    let mut bytes = key.bytes();
    while let Some(byte) = bytes.next() {
        let rest = bytes.clone();
        let pair = (rest.clone().next(), rest.clone().nth(1));
        let value = |b: u8| (b as char).to_digit(16);
        match (byte, pair) {
            (b'%', (Some(high), Some(low))) => match (value(high), value(low)) {
                (Some(high), Some(low)) => {
                    out.push((high * 16 + low) as u8);
                    bytes.nth(1);
                }
                _ => out.push(byte),
            },
            _ => out.push(byte),
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| key.to_owned())
}

/// The user to act as, after every part of it was authorized with the verb `impersonate`; 403 otherwise.
pub fn impersonate(requester: &Arc<User>, asked: &Impersonation, authorizer: &Authorizer) -> Result<User, Status> {
    let check = |attributes: Attributes| match authorizer.authorize(&attributes) {
        Decision::Allow(_) => Ok(()),
        decision => Err(forbidden(&attributes, decision.reason())),
    };
    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        check(Attributes {
            user: requester.clone(),
            verb: "impersonate".to_owned(),
            api_group: group.to_owned(),
            api_version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            resource_request: true,
            ..Attributes::default()
        })
    };
    const GROUP: &str = "authentication.k8s.io";
    let mut groups = asked.groups.clone();
    match split_service_account_name(&asked.user) {
        Some((namespace, name)) => {
            may("", "serviceaccounts", "", namespace, name)?;
            if groups.is_empty() {
                groups = vec![ALL_SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS_GROUP_PREFIX}{namespace}")];
            }
        }
        None => may("", "users", "", "", &asked.user)?,
    }
    for group in &asked.groups {
        may("", "groups", "", "", group)?;
    }
    for (key, values) in &asked.extra {
        for value in values {
            may(GROUP, "userextras", key, "", value)?;
        }
    }
    if !asked.uid.is_empty() {
        may(GROUP, "uids", "", "", &asked.uid)?;
    }
    let mut user = User { name: asked.user.clone(), uid: asked.uid.clone(), groups, extra: asked.extra.clone() };
    if user.name == ANONYMOUS {
        if !user.in_group(ALL_UNAUTHENTICATED) {
            user.groups.push(ALL_UNAUTHENTICATED.to_owned());
        }
    } else if !user.in_group(ALL_AUTHENTICATED) && !user.in_group(ALL_UNAUTHENTICATED) {
        user.groups.push(ALL_AUTHENTICATED.to_owned());
    }
    Ok(user)
}
