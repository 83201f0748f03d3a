//! The identity of a caller. Upstream: `apiserver/pkg/authentication/user`.

use std::collections::BTreeMap;

pub const ANONYMOUS: &str = "system:anonymous";
pub const ALL_AUTHENTICATED: &str = "system:authenticated";
pub const ALL_UNAUTHENTICATED: &str = "system:unauthenticated";
pub const PRIVILEGED_GROUP: &str = "system:masters";
pub const NODES_GROUP: &str = "system:nodes";
pub const NODE_USER_PREFIX: &str = "system:node:";
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
pub const ALL_SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
pub const SERVICE_ACCOUNTS_GROUP_PREFIX: &str = "system:serviceaccounts:";

/// Keys of [`User::extra`] that bound tokens carry.
pub mod extra {
    pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
    pub const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
    pub const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
    pub const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
    pub const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    pub fn new<G: Into<String>>(name: &str, groups: impl IntoIterator<Item = G>) -> Self {
        User { name: name.to_owned(), groups: groups.into_iter().map(Into::into).collect(), ..User::default() }
    }

    pub fn anonymous() -> Self {
        User::new(ANONYMOUS, [ALL_UNAUTHENTICATED])
    }

    /// `system:serviceaccount:NAMESPACE:NAME` with its two groups (not yet `system:authenticated`).
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let groups = [ALL_SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS_GROUP_PREFIX}{namespace}")];
        User { uid: uid.to_owned(), ..User::new(&service_account_name(namespace, name), groups) }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    pub fn first_extra(&self, key: &str) -> Option<&str> {
        self.extra.get(key)?.first().map(String::as_str)
    }

    /// The node's name, when the user is `system:node:NAME` in `system:nodes`.
    pub fn node_name(&self) -> Option<&str> {
        let name = self.name.strip_prefix(NODE_USER_PREFIX)?;
        self.in_group(NODES_GROUP).then_some(name)
    }

    /// Every caller who proved an identity is in `system:authenticated`, once.
    #[must_use]
    pub fn authenticated(mut self) -> Self {
        if self.name != ANONYMOUS && !self.in_group(ALL_AUTHENTICATED) && !self.in_group(ALL_UNAUTHENTICATED) {
            self.groups.push(ALL_AUTHENTICATED.to_owned());
        }
        self
    }
}

pub fn service_account_name(namespace: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}")
}

/// `(namespace, name)` of a service account's user name.
pub fn split_service_account_name(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')?;
    let valid = api::names::is_dns1123_label(namespace).is_empty() && api::names::is_dns1123_subdomain(name).is_empty();
    valid.then_some((namespace, name))
}
