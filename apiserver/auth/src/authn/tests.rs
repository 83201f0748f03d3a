use std::sync::Arc;

use jiff::Timestamp;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls_pki_types::CertificateDer;
use serde_json::json;

use super::*;
use crate::testing::Cluster;

fn certificate(name: &str, organizations: &[&str]) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    if !name.is_empty() {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    for organization in organizations {
        params.distinguished_name.push(DnType::OrganizationName, *organization);
    }
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
}

fn authenticator() -> Authenticator {
    Authenticator::new(Verifier::new(vec!["https://x".into()], Vec::new(), vec!["https://x".into()]))
}

#[test]
fn certificates_name_users() {
    let authenticate = |certificates: &[CertificateDer<'_>]| {
        authenticator().authenticate(certificates, None, Timestamp::UNIX_EPOCH, &Cluster::default()).unwrap()
    };
    let user = authenticate(&[certificate("jane", &["dev"])]).unwrap();
    assert_eq!((user.name.as_str(), user.groups), ("jane", vec!["dev".to_owned(), "system:authenticated".to_owned()]));
    assert!(user.extra[extra::CREDENTIAL_ID][0].starts_with("X509SHA256="));
    assert_eq!(authenticate(&[certificate("", &["dev"])]), None);
    assert_eq!(authenticate(&[]), None);
    let node = authenticate(&[certificate("system:node:n1", &["system:nodes"])]).unwrap();
    assert_eq!(node.node_name(), Some("n1"));
}

#[test]
fn a_bad_token_is_refused_and_not_anonymous() {
    let authenticate = |bearer| authenticator().authenticate(&[], bearer, Timestamp::UNIX_EPOCH, &Cluster::default());
    assert_eq!(authenticate(Some("nonsense")).unwrap_err().code, 401);
    assert_eq!(authenticate(Some("  ")), Ok(None));
}

#[test]
fn bearer_scheme() {
    for (header, token) in [("Bearer abc", Some("abc")), ("bearer  abc ", Some("abc")), ("Basic abc", None), ("Bearer", None), ("", None)] {
        assert_eq!(bearer(header), token, "{header}");
    }
}

#[test]
fn bearer_in_a_websocket_protocol() {
    const HEAD: &str = "base64url.bearer.authorization.k8s.io";
    let found = |text: &str| {
        bearer_of_protocols([text.replace('@', HEAD).as_str()].into_iter())
            .map(|found| found.map(|(token, rest)| format!("{token} {rest}")))
    };
    let cases = [
        ("v4.channel.k8s.io, @.YWJj", Ok(Some("abc v4.channel.k8s.io".to_owned()))),
        ("v4.channel.k8s.io", Ok(None)),
        ("@.YWJj", Err("missing additional subprotocol")),
        ("@.YWJj, @.YWJj, v4.channel.k8s.io", Err("multiple base64.bearer.authorization tokens specified")),
        ("@.YW=, v4.channel.k8s.io", Err("invalid base64.bearer.authorization token encoding")),
    ];
    for (text, expected) in cases {
        assert_eq!(found(text), expected, "{text}");
    }
}

fn impersonators() -> Cluster {
    let role = |name: &str, rules| json!({"metadata": {"name": name}, "rules": rules});
    let bind = |name: &str| {
        let subject = json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name});
        let role = json!({"kind": "ClusterRole", "name": name, "apiGroup": "rbac.authorization.k8s.io"});
        json!({"metadata": {"name": name}, "roleRef": role, "subjects": [subject]})
    };
    let rule = |groups: &str, resources: &str, names: &[&str]| json!({"verbs": ["impersonate"], "apiGroups": [groups], "resources": [resources], "resourceNames": names});
    Cluster::default()
        .with(
            "clusterroles.rbac.authorization.k8s.io",
            role(
                "ops",
                json!([
                    rule("", "users", &["jane"]),
                    rule("", "groups", &["dev"]),
                    rule("", "serviceaccounts", &["app"]),
                    rule("authentication.k8s.io", "userextras/team", &["red"]),
                    rule("authentication.k8s.io", "uids", &["u1"]),
                ]),
            ),
        )
        .with("clusterrolebindings.rbac.authorization.k8s.io", bind("ops"))
}

#[test]
fn impersonation_needs_leave_for_every_part() {
    let authorizer = impersonators().authorizer();
    let try_as = |headers: &[(&str, &str)]| {
        let asked = Impersonation::from_headers(headers.iter().copied()).unwrap().unwrap();
        impersonate(&Arc::new(User::new("ops", ["system:authenticated"])), &asked, &authorizer)
            .map(|user| (user.name, user.groups))
            .map_err(|status| status.message)
    };
    let ok = |name: &str, groups: &[&str]| Ok((name.to_owned(), groups.iter().map(ToString::to_string).collect::<Vec<_>>()));
    let user = ("impersonate-user", "jane");
    assert_eq!(try_as(&[user]), ok("jane", &["system:authenticated"]));
    assert_eq!(try_as(&[user, ("impersonate-group", "dev")]), ok("jane", &["dev", "system:authenticated"]));
    assert_eq!(
        try_as(&[("impersonate-user", "system:serviceaccount:ns:app")]),
        ok("system:serviceaccount:ns:app", &["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"])
    );
    assert!(try_as(&[user, ("impersonate-extra-team", "red"), ("impersonate-uid", "u1")]).is_ok());
    assert_eq!(
        try_as(&[("impersonate-user", "root")]).unwrap_err(),
        "users \"root\" is forbidden: User \"ops\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
    assert_eq!(
        try_as(&[user, ("impersonate-group", "system:masters")]).unwrap_err(),
        "groups \"system:masters\" is forbidden: User \"ops\" cannot impersonate resource \"groups\" in API group \"\" at the cluster scope"
    );
    assert!(try_as(&[user, ("impersonate-extra-team", "blue")]).is_err());
    assert!(Impersonation::from_headers([("impersonate-group", "dev")]).is_err());
    assert_eq!(Impersonation::from_headers([("accept", "x")]), Ok(None));
    let escaped = Impersonation::from_headers([user, ("impersonate-extra-a.io%2fb", "v")]).unwrap().unwrap();
    assert_eq!(escaped.extra["a.io/b"], ["v"]);
}
