//! ServiceAccount: every namespace has the account `default`.
//!
//! Upstream: `pkg/controller/serviceaccount/serviceaccounts_controller.go`.

use std::sync::Arc;

use api::key::Key;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery::Next;

use crate::context::Context;
use crate::shared::{per_namespace, write};

const ACCOUNT: &str = "default";

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let (client, accounts) = (context.client.clone(), context.informers.of::<ServiceAccount>());
    accounts.synced().await;
    per_namespace::run(&context, "serviceaccount-controller", &accounts.clone(), ACCOUNT, move |namespace: Arc<Namespace>| {
        let (client, accounts) = (client.clone(), accounts.clone());
        async move {
            let name = namespace.metadata.name.clone();
            if accounts.get(&Key::new(name.clone().unwrap_or_default(), ACCOUNT)).is_some() {
                return Ok(Next::Done);
            }
            let metadata = ObjectMeta { name: Some(ACCOUNT.to_owned()), namespace: name, ..ObjectMeta::default() };
            let account = ServiceAccount { metadata, ..ServiceAccount::default() };
            per_namespace::unless_terminating(write::unless_exists(write::create(&client, &account).await))
        }
    })
    .await
}
