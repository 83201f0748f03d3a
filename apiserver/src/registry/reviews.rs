//! Questions that are answered and not stored: who is this token, may this user, what may I, a token for this account.
//!
//! Upstream counterparts: `pkg/registry/{authentication,authorization}/*/rest.go`, `pkg/registry/core/serviceaccount/storage/token.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::field::{Error as FieldError, Path};
use api::selector::{FieldSelector, LabelSelector};
use api::{GroupKind, Status};
use auth::User;
use auth::authn::Authenticator;
use auth::authz::{Attributes, Decision};
use serde_json::{Value, json};

use super::tree::{items, text};
use super::{Caller, Registry, Target};

impl Registry {
    /// Answer a review. `None`: the kind is not a review.
    pub fn review(&self, caller: &Caller, authenticator: &Authenticator, target: &Target, body: &Value) -> Result<Option<Value>, Status> {
        if !target.kind.is_virtual() {
            return Ok(None);
        }
        let mut answer = body.clone();
        let errors = target.kind.strategy.validate(target.kind, body);
        if !errors.is_empty() {
            // Upstream leaves the kind out.
            return Err(Status::invalid(&GroupKind::new(target.kind.group, ""), "", errors));
        }
        answer["status"] = match target.kind.kind {
            "TokenReview" => self.token_review(caller, authenticator, body)?,
            "SelfSubjectReview" => json!({"userInfo": user_info(&caller.user)}),
            "SubjectAccessReview" => self.access(named_user(body), body)?,
            "LocalSubjectAccessReview" => {
                check_local(target, body)?;
                self.access(named_user(body), body)?
            }
            "SelfSubjectAccessReview" => self.access(caller.user.clone(), body)?,
            "SelfSubjectRulesReview" => self.rules(caller, text(body, "/spec/namespace"))?,
            _ => return Ok(None),
        };
        if target.kind.kind == "SelfSubjectRulesReview" {
            answer["spec"] = json!({});
        }
        if !answer["metadata"].is_object() {
            answer["metadata"] = json!({});
        }
        if let Some(meta) = answer["metadata"].as_object_mut() {
            meta.entry("creationTimestamp").or_insert(Value::Null);
        }
        Ok(Some(answer))
    }

    fn token_review(&self, caller: &Caller, authenticator: &Authenticator, body: &Value) -> Result<Value, Status> {
        let token = text(body, "/spec/token");
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let audiences: Vec<String> = items(body, "/spec/audiences").iter().filter_map(|a| Some(a.as_str()?.to_owned())).collect();
        Ok(match authenticator.review(token, &audiences, caller.now, &*self.cache) {
            Ok(verified) => json!({"authenticated": true, "user": user_info(&verified.user), "audiences": verified.audiences}),
            Err(error) => json!({"user": {}, "error": error.to_string()}),
        })
    }

    fn access(&self, user: Arc<User>, body: &Value) -> Result<Value, Status> {
        let attributes = attributes(user, body)?;
        Ok(match self.authorizer.authorize(&attributes) {
            Decision::Allow(reason) => access_status(true, false, &reason),
            Decision::Deny(reason) => access_status(false, true, &reason),
            Decision::NoOpinion(reason) => access_status(false, false, &reason),
        })
    }

    fn rules(&self, caller: &Caller, namespace: &str) -> Result<Value, Status> {
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let review = self.authorizer.rules_for(&caller.user, namespace);
        let mut status =
            json!({"resourceRules": review.resource_rules, "nonResourceRules": review.non_resource_rules, "incomplete": review.incomplete});
        if !review.error.is_empty() {
            status["evaluationError"] = review.error.into();
        }
        Ok(status)
    }
}

fn access_status(allowed: bool, denied: bool, reason: &str) -> Value {
    let mut status = json!({"allowed": allowed});
    if denied {
        status["denied"] = true.into();
    }
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    status
}

fn check_local(target: &Target, body: &Value) -> Result<(), Status> {
    let asked = text(body, "/spec/resourceAttributes/namespace");
    if asked == target.key.namespace {
        return Ok(());
    }
    let path = Path::new("spec").child("resourceAttributes").child("namespace");
    let detail = format!("must match metadata.namespace: {}", target.key.namespace);
    let kind = GroupKind::new("authorization.k8s.io", "LocalSubjectAccessReview");
    Err(Status::invalid(&kind, "", vec![FieldError::invalid(&path, asked, detail)]))
}

fn named_user(body: &Value) -> Arc<User> {
    let strings = |value: &Value| value.as_array().into_iter().flatten().filter_map(|v| Some(v.as_str()?.to_owned())).collect::<Vec<_>>();
    let extra: BTreeMap<String, Vec<String>> =
        body["spec"]["extra"].as_object().into_iter().flatten().map(|(key, values)| (key.clone(), strings(values))).collect();
    let mut user = User::new(text(body, "/spec/user"), strings(&body["spec"]["groups"]));
    user.uid = text(body, "/spec/uid").to_owned();
    user.extra = extra;
    Arc::new(user)
}

fn attributes(user: Arc<User>, body: &Value) -> Result<Attributes, Status> {
    let spec = &body["spec"];
    let about = &spec["resourceAttributes"];
    if about.is_null() {
        let url = &spec["nonResourceAttributes"];
        let (path, verb) = (text(url, "/path").to_owned(), text(url, "/verb").to_owned());
        return Ok(Attributes { user, path, verb, ..Attributes::default() });
    }
    let field = |name: &str| text(about, name).to_owned();
    let version = Some(field("/version")).filter(|v| !v.is_empty()).unwrap_or_else(|| "*".into());
    Ok(Attributes {
        user,
        verb: field("/verb"),
        namespace: field("/namespace"),
        api_group: field("/group"),
        api_version: version,
        resource: field("/resource"),
        subresource: field("/subresource"),
        name: field("/name"),
        path: String::new(),
        resource_request: true,
        field_selector: Some(text(about, "/fieldSelector/rawSelector"))
            .filter(|s| !s.is_empty())
            .and_then(|s| FieldSelector::parse(s).ok()),
        label_selector: Some(text(about, "/labelSelector/rawSelector"))
            .filter(|s| !s.is_empty())
            .and_then(|s| LabelSelector::parse(s).ok()),
    })
}

pub fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}
