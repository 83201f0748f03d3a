//! Approves what a kubelet may have without asking a human.
//!
//! Client certificates: if the requester has the permission `nodeclient` or `selfnodeclient`, as upstream's
//! `approver/sarapprove.go`. Serving certificates: if the requester is that node and all names are the node's own.

use std::sync::Arc;

use api::key::Key;
use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::core::params::PostParams;
use machinery::{Informer, Next, WorkQueue};

use super::{KUBELET_CLIENT, KUBELET_SERVING, Subject};
use crate::context::Context;
use crate::shared::conditions::{self, Condition};
use crate::shared::{meta, watch, write};

const NAME: &str = "certificatesigningrequest-approving-controller";
const NODE_PREFIX: &str = "system:node:";

struct Controller {
    client: kube::Client,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
}

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let this = Arc::new(Controller { client: context.client.clone(), requests: context.informers.of(), nodes: context.informers.of() });
    watch::itself(&this.requests, &queue);
    watch_nodes(&this, &queue);
    this.requests.synced().await;
    this.nodes.synced().await;
    context
        .run(NAME, queue, move |key| {
            let this = this.clone();
            async move { this.sync(&key).await }
        })
        .await
}

/// A kubelet may ask before its node has the addresses that the request names.
fn watch_nodes(this: &Controller, queue: &WorkQueue<Key>) {
    let (queue, requests) = (queue.clone(), this.requests.clone());
    this.nodes.on_change(move |change| {
        let (Some(new), old) = (&change.new, &change.old) else { return };
        if old.as_ref().is_some_and(|old| addresses(old) == addresses(new)) {
            return;
        }
        let user = format!("{NODE_PREFIX}{}", meta::name(&**new));
        for csr in requests.list().iter().filter(|csr| csr.spec.username.as_deref() == Some(user.as_str())) {
            queue.add_caused(meta::key(&**csr), change.cause());
        }
    });
}

fn addresses(node: &Node) -> Vec<&str> {
    let listed = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    listed.iter().map(|address| address.address.as_str()).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Recognized {
    /// Approve if the requester has one of these permissions.
    Client { own: bool },
    /// Approve if the names are those of the node.
    Serving { node: String },
}

impl Controller {
    async fn sync(&self, key: &Key) -> anyhow::Result<Next> {
        let Some(csr) = self.requests.get(key) else { return Ok(Next::Done) };
        if super::is_issued(&csr) || super::has(&csr, "Approved") || super::has(&csr, "Denied") {
            return Ok(Next::Done);
        }
        let subject = match super::der(&csr).and_then(|der| super::subject(&der)) {
            Ok(subject) => subject,
            Err(error) => {
                tracing::warn!(%key, %error, "cannot read certificate request");
                return Ok(Next::Done);
            }
        };
        match recognize(&csr, &subject) {
            None => {}
            Some(Recognized::Serving { node }) => {
                let node = self.nodes.get(&Key::cluster(node));
                if node.is_some_and(|node| owns_names(&node, &subject)) {
                    let text = "Auto approving kubelet serving certificate after verifying that it names the node alone.";
                    self.approve(&csr, text).await?;
                }
            }
            Some(Recognized::Client { own }) => {
                if own && self.permitted(&csr, "selfnodeclient").await? {
                    let text = "Auto approving self kubelet client certificate after SubjectAccessReview.";
                    self.approve(&csr, text).await?;
                } else if self.permitted(&csr, "nodeclient").await? {
                    self.approve(&csr, "Auto approving kubelet client certificate after SubjectAccessReview.").await?;
                }
            }
        }
        Ok(Next::Done)
    }

    async fn approve(&self, csr: &CertificateSigningRequest, text: &str) -> kube::Result<()> {
        let mut approved = csr.clone();
        let list = &mut approved.status.get_or_insert_default().conditions;
        conditions::set(list, CertificateSigningRequestCondition::new("Approved", "True", "AutoApproved", text, Timestamp::now()));
        write::unless_gone(write::update_subresource(&self.client, "approval", &approved).await)
    }

    async fn permitted(&self, csr: &CertificateSigningRequest, subresource: &str) -> kube::Result<bool> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: csr.spec.username.clone(),
                uid: csr.spec.uid.clone(),
                groups: csr.spec.groups.clone(),
                extra: csr.spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".to_owned()),
                    resource: Some("certificatesigningrequests".to_owned()),
                    verb: Some("create".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    version: Some("*".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

fn recognize(csr: &CertificateSigningRequest, subject: &Subject) -> Option<Recognized> {
    let node = subject.common_name.strip_prefix(NODE_PREFIX)?;
    let own = csr.spec.username.as_deref() == Some(subject.common_name.as_str());
    if subject.organizations != ["system:nodes"] || subject.other_names > 0 {
        return None;
    }
    let nameless = subject.dns_names.is_empty() && subject.addresses.is_empty();
    match csr.spec.signer_name.as_str() {
        KUBELET_CLIENT if nameless && has_usages(csr, "client auth") => Some(Recognized::Client { own }),
        KUBELET_SERVING if own && !nameless && has_usages(csr, "server auth") => Some(Recognized::Serving { node: node.to_owned() }),
        _ => None,
    }
}

/// Exactly what a kubelet needs; key encipherment is for RSA keys only.
fn has_usages(csr: &CertificateSigningRequest, purpose: &str) -> bool {
    let usages = csr.spec.usages.as_deref().unwrap_or_default();
    let has = |wanted: &str| usages.iter().any(|usage| usage == wanted);
    let allowed = ["digital signature", "key encipherment", purpose];
    has(purpose) && has("digital signature") && usages.iter().all(|usage| allowed.contains(&usage.as_str()))
}

fn owns_names(node: &Node, subject: &Subject) -> bool {
    let known = addresses(node);
    let is_name = |name: &String| *name == meta::name(node) || known.contains(&name.as_str());
    let is_address = |wanted: &std::net::IpAddr| known.iter().any(|known| known.parse() == Ok(*wanted));
    subject.dns_names.iter().all(is_name) && subject.addresses.iter().all(is_address)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::request;
    use super::*;
    use k8s_openapi::api::core::v1::{NodeAddress, NodeStatus};

    fn recognized(csr: &CertificateSigningRequest) -> Option<Recognized> {
        recognize(csr, &super::super::subject(&super::super::der(csr).unwrap()).unwrap())
    }

    #[test]
    fn only_kubelets_own_requests_are_recognized() {
        let serving = ["digital signature", "server auth"];
        let sans = ["n1", "10.0.0.1"];
        let good = request(KUBELET_SERVING, "system:node:n1", "system:nodes", &sans, &serving);
        assert_eq!(recognized(&good), Some(Recognized::Serving { node: "n1".into() }));
        let mut other = good.clone();
        other.spec.username = Some("system:node:n2".into());
        assert_eq!(recognized(&other), None, "for another node");
        let nameless = request(KUBELET_SERVING, "system:node:n1", "system:nodes", &[], &serving);
        assert_eq!(recognized(&nameless), None);
        let admin = request(KUBELET_SERVING, "system:node:n1", "system:masters", &sans, &serving);
        assert_eq!(recognized(&admin), None);
        let client = request(KUBELET_CLIENT, "system:node:n1", "system:nodes", &[], &["digital signature", "client auth"]);
        assert_eq!(recognized(&client), Some(Recognized::Client { own: true }));
        let both = request(KUBELET_CLIENT, "system:node:n1", "system:nodes", &[], &["client auth", "server auth"]);
        assert_eq!(recognized(&both), None);
    }

    #[test]
    fn all_names_must_be_the_nodes() {
        let mut node = Node::default();
        node.metadata.name = Some("n1".into());
        let address = NodeAddress { address: "10.0.0.1".into(), type_: "InternalIP".into() };
        node.status = Some(NodeStatus { addresses: Some(vec![address]), ..NodeStatus::default() });
        let names =
            |dns: &str, ip: &str| Subject { dns_names: vec![dns.into()], addresses: vec![ip.parse().unwrap()], ..Subject::default() };
        assert!(owns_names(&node, &names("n1", "10.0.0.1")));
        assert!(!owns_names(&node, &names("n2", "10.0.0.1")));
        assert!(!owns_names(&node, &names("n1", "10.0.0.2")));
    }
}
