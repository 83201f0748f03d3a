use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use serde_json::{Value, json};

use super::*;
use crate::testing::Cluster;
use crate::user::{User, extra};

const URL: &str = "https://kubernetes.default.svc.cluster.local";
const NOW: i64 = 1_700_000_000;

fn pem(kind: &str, der: &[u8]) -> String {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(der))
}

fn ec_pem() -> String {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    pem("PRIVATE KEY", key.to_pkcs8v1().unwrap().as_ref())
}

fn rsa_pem() -> String {
    let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    pem("PRIVATE KEY", AsDer::<Pkcs8V1Der<'_>>::as_der(&key).unwrap().as_ref())
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

fn cluster() -> Cluster {
    Cluster::default()
        .with("serviceaccounts", json!({"metadata": {"namespace": "ns", "name": "app", "uid": "u-sa"}}))
        .with("nodes", json!({"metadata": {"name": "n1", "uid": "u-node"}}))
        .with("secrets", json!({"metadata": {"namespace": "ns", "name": "s", "uid": "u-secret"}}))
        .with(
            "pods",
            json!({
                "metadata": {"namespace": "ns", "name": "p", "uid": "u-pod"},
                "spec": {"serviceAccountName": "app", "nodeName": "n1"},
            }),
        )
}

fn pair(pem: &str) -> (Issuer, Verifier) {
    let issuer = Issuer::new(SigningKey::from_pem(pem.as_bytes()).unwrap(), URL, vec![URL.to_owned()]);
    let keys = VerifyingKey::all_from_pem(pem.as_bytes()).unwrap();
    (issuer, Verifier::new(vec![URL.to_owned()], keys, vec![URL.to_owned()]))
}

fn request(seconds: Option<i64>, audiences: &[&str], bound: Option<(&str, &str, &str)>) -> TokenRequest {
    let bound_object_ref = bound.map(|(kind, name, uid)| BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()).filter(|uid| !uid.is_empty()),
    });
    let audiences = audiences.iter().map(ToString::to_string).collect();
    TokenRequest { spec: TokenRequestSpec { audiences, bound_object_ref, expiration_seconds: seconds }, ..TokenRequest::default() }
}

fn issue(issuer: &Issuer, cluster: &Cluster, body: TokenRequest) -> Result<TokenRequest, String> {
    let request = Request { namespace: "ns", name: "app", body, now: at(0) };
    issuer.issue(request, cluster).map(|issued| issued.body).map_err(|status| status.message)
}

fn token_of(body: &TokenRequest) -> &str {
    &body.status.as_ref().unwrap().token
}

fn claims_of(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[test]
fn round_trip_with_both_algorithms() {
    for pem in [ec_pem(), rsa_pem()] {
        let (issuer, verifier) = pair(&pem);
        let body = issue(&issuer, &cluster(), request(None, &[], Some(("Pod", "p", "u-pod")))).unwrap();
        assert_eq!(body.status.as_ref().unwrap().expiration_timestamp.0, at(3600));
        let verified = verifier.verify(token_of(&body), &[], at(1), &cluster()).unwrap();
        assert_eq!(verified.audiences, [URL]);
        let User { name, uid, groups, extra } = verified.user;
        assert_eq!((name.as_str(), uid.as_str()), ("system:serviceaccount:ns:app", "u-sa"));
        assert_eq!(groups, ["system:serviceaccounts", "system:serviceaccounts:ns"]);
        for (key, value) in [(extra::POD_NAME, "p"), (extra::POD_UID, "u-pod"), (extra::NODE_NAME, "n1"), (extra::NODE_UID, "u-node")] {
            assert_eq!(extra[key], [value]);
        }
        assert!(extra[extra::CREDENTIAL_ID][0].starts_with("JTI="));
    }
}

#[test]
fn claims_are_upstreams() {
    let (issuer, _) = pair(&ec_pem());
    let body = issue(&issuer, &cluster(), request(Some(600), &["vault"], Some(("Secret", "s", "")))).unwrap();
    let mut claims = claims_of(token_of(&body));
    assert!(claims["jti"].as_str().unwrap().len() == 36);
    claims.as_object_mut().unwrap().remove("jti");
    assert_eq!(
        claims,
        json!({
            "aud": ["vault"], "exp": NOW + 600, "iat": NOW, "nbf": NOW, "iss": URL, "sub": "system:serviceaccount:ns:app",
            "kubernetes.io": {
                "namespace": "ns",
                "secret": {"name": "s", "uid": "u-secret"},
                "serviceaccount": {"name": "app", "uid": "u-sa"},
            },
        })
    );
}

/// What `kube-api-access` volumes ask for lives a year and says when it should have been renewed.
#[test]
fn only_pod_bound_tokens_of_the_known_length_are_extended() {
    let (issuer, _) = pair(&ec_pem());
    let year = 365 * 24 * 3600;
    let pod = Some(("Pod", "p", "u-pod"));
    let cases = [
        (Some(3607), vec![], pod, year, Some(NOW + 3607)),
        (Some(3607), vec!["vault"], pod, 3607, None),
        (Some(3607), vec![], None, 3607, None),
        (Some(7200), vec![], pod, 7200, None),
    ];
    for (seconds, audiences, bound, lifetime, warn) in cases {
        let body = issue(&issuer, &cluster(), request(seconds, &audiences, bound)).unwrap();
        let claims = claims_of(token_of(&body));
        assert_eq!(claims["exp"], json!(NOW + lifetime));
        assert_eq!(claims["kubernetes.io"].get("warnafter").and_then(Value::as_i64), warn);
        assert_eq!(body.status.unwrap().expiration_timestamp.0, at(seconds.unwrap()));
    }
}

#[test]
fn refusals_to_issue() {
    let (issuer, _) = pair(&ec_pem());
    let other =
        cluster().with("pods", json!({"metadata": {"namespace": "ns", "name": "q", "uid": "x"}, "spec": {"serviceAccountName": "b"}}));
    let cases = [
        (
            request(Some(599), &[], None),
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes",
        ),
        (
            request(Some(1 << 33), &[], None),
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 8589934592: may not specify a duration larger than 2^32 seconds",
        ),
        (request(None, &[], Some(("Pod", "none", ""))), "pods \"none\" not found"),
        (
            request(None, &[], Some(("Pod", "q", ""))),
            "cannot bind token for serviceaccount \"app\" to pod running with different serviceaccount name.",
        ),
        (
            request(None, &[], Some(("Pod", "p", "old"))),
            "Operation cannot be fulfilled on Pod \"p\": the UID in the bound object reference (old) does not match the UID in record. The object might have been deleted and then recreated",
        ),
        (request(None, &[], Some(("ConfigMap", "c", ""))), "cannot bind token to object of type /v1, Kind=ConfigMap"),
    ];
    for (body, message) in cases {
        assert_eq!(issue(&issuer, &other, body).unwrap_err(), message);
    }
    assert_eq!(issue(&issuer, &Cluster::default(), request(None, &[], None)).unwrap_err(), "serviceaccounts \"app\" not found");
}

#[test]
fn a_token_dies_with_what_it_is_bound_to() {
    let (issuer, verifier) = pair(&ec_pem());
    let issue = |bound| issue(&issuer, &cluster(), request(None, &[], bound)).unwrap();
    let verify = |body: &TokenRequest, cluster: &Cluster, now| verifier.verify(token_of(body), &[], now, cluster).map(drop);
    let without = |resource: &str, namespace: &str, name: &str| {
        let mut cluster = cluster();
        cluster.remove(resource, namespace, name);
        cluster
    };
    let (pod, secret, node, plain) =
        (issue(Some(("Pod", "p", ""))), issue(Some(("Secret", "s", ""))), issue(Some(("Node", "n1", ""))), issue(None));
    assert_eq!(verify(&pod, &without("pods", "ns", "p"), at(0)), Err(TokenError::Invalidated));
    assert_eq!(verify(&secret, &without("secrets", "ns", "s"), at(0)), Err(TokenError::Invalidated));
    assert_eq!(verify(&node, &without("nodes", "", "n1"), at(0)), Err(TokenError::Invalidated));
    assert_eq!(verify(&pod, &without("nodes", "", "n1"), at(0)), Ok(()));
    assert!(matches!(verify(&plain, &without("serviceaccounts", "ns", "app"), at(0)), Err(TokenError::NoAccount { .. })));
    let reborn = cluster().with("pods", json!({"metadata": {"namespace": "ns", "name": "p", "uid": "new"}}));
    assert!(matches!(verify(&pod, &reborn, at(0)), Err(TokenError::Uid { kind: "Pod", .. })));
    let dying = cluster().with(
        "pods",
        json!({"metadata": {
            "namespace": "ns", "name": "p", "uid": "u-pod", "deletionTimestamp": at(0).to_string(),
        }}),
    );
    assert_eq!(verify(&pod, &dying, at(60)), Ok(()));
    assert_eq!(verify(&pod, &dying, at(61)), Err(TokenError::Invalidated));
}

#[test]
fn time_audience_and_signature() {
    let (issuer, verifier) = pair(&ec_pem());
    let (stranger, _) = pair(&ec_pem());
    let good = issue(&issuer, &cluster(), request(None, &[], None)).unwrap();
    let verify = |token: &str, wanted: &[&str], now| {
        let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        verifier.verify(token, &wanted, now, &cluster()).map(|v| v.audiences)
    };
    let token = token_of(&good);
    assert_eq!(verify(token, &[], at(3660)), Ok(vec![URL.to_owned()]));
    assert_eq!(verify(token, &[], at(3661)), Err(TokenError::Expired));
    assert_eq!(verify(token, &[], at(-61)), Err(TokenError::NotYet));
    assert_eq!(verify(token, &["vault", URL], at(0)), Ok(vec![URL.to_owned()]));
    assert_eq!(
        verify(token, &["vault"], at(0)).unwrap_err().to_string(),
        format!("token audiences [{URL:?}] is invalid for the target audiences [\"vault\"]")
    );
    let forged = issue(&stranger, &cluster(), request(None, &[], None)).unwrap();
    assert_eq!(verify(token_of(&forged), &[], at(0)), Err(TokenError::Signature("no keys found")));

    let parts: Vec<&str> = token.split('.').collect();
    let mut claims = claims_of(token);
    claims["sub"] = "system:serviceaccount:ns:admin".into();
    let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
    let tampered = format!("{}.{payload}.{}", parts[0], parts[2]);
    assert_eq!(verify(&tampered, &[], at(0)), Err(TokenError::Signature("no key verifies it")));
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    assert_eq!(verify(&format!("{header}.{}.", parts[1]), &[], at(0)), Err(TokenError::Signature("no key verifies it")));
    for garbage in ["", "x", "a.b.c", "..", &"a.".repeat(9)] {
        assert_eq!(verify(garbage, &[], at(0)), Err(TokenError::Foreign), "{garbage}");
    }
}

#[test]
fn discovery_documents() {
    let keys: Vec<_> = [ec_pem(), rsa_pem()].iter().flat_map(|pem| VerifyingKey::all_from_pem(pem.as_bytes()).unwrap()).collect();
    let documents = Discovery::new(URL, "10.0.0.1:6443", &keys);
    let configuration: Value = serde_json::from_str(&documents.configuration).unwrap();
    assert_eq!(
        configuration,
        json!({
            "issuer": URL, "jwks_uri": "https://10.0.0.1:6443/openid/v1/jwks", "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256", "RS256"],
        })
    );
    let set: Value = serde_json::from_str(&documents.key_set).unwrap();
    assert_eq!(set["keys"][0]["crv"], "P-256");
    assert_eq!(URL_SAFE_NO_PAD.decode(set["keys"][0]["x"].as_str().unwrap()).unwrap().len(), 32);
    assert_eq!(set["keys"][1]["e"], "AQAB");
    assert_eq!(URL_SAFE_NO_PAD.decode(set["keys"][1]["n"].as_str().unwrap()).unwrap().len(), 256);
    assert!(SigningKey::from_pem(b"not pem").is_err());
}

#[test]
fn a_secrets_token_lives_with_its_secret() {
    let pem = ec_pem();
    let (_, verifier) = pair(&pem);
    let key = SigningKey::from_pem(pem.as_bytes()).unwrap();
    let claims = json!({
        "iss": "kubernetes/serviceaccount",
        "kubernetes.io/serviceaccount/namespace": "ns",
        "kubernetes.io/serviceaccount/secret.name": "t",
        "kubernetes.io/serviceaccount/service-account.name": "app",
        "kubernetes.io/serviceaccount/service-account.uid": "u-sa",
        "sub": "system:serviceaccount:ns:app",
    });
    let header = json!({"alg": "ES256", "kid": key.public().id});
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()).unwrap()));
    let secret = |labels: Value, data: &str| json!({"metadata": {"namespace": "ns", "name": "t", "uid": "u-t", "labels": labels}, "data": {"token": STANDARD.encode(data)}});
    let verify = |cluster: Cluster| verifier.verify(&token, &[], at(0), &cluster).map(|verified| (verified.user.name, verified.audiences));
    assert_eq!(
        verify(cluster().with("secrets", secret(json!({}), &token))),
        Ok(("system:serviceaccount:ns:app".to_owned(), vec![URL.to_owned()]))
    );
    assert_eq!(verify(cluster()), Err(TokenError::Invalidated));
    assert_eq!(verify(cluster().with("secrets", secret(json!({}), "another"))), Err(TokenError::NotTheStored));
    let marked = secret(json!({"kubernetes.io/legacy-token-invalid-since": "2026-01-01"}), &token);
    assert_eq!(verify(cluster().with("secrets", marked)), Err(TokenError::MarkedInvalid(api::Key::new("ns", "t"))));
}
