//! Deletes requests that are settled or that nobody took care of.
//!
//! Upstream: `pkg/controller/certificates/cleaner/cleaner.go`.

use std::sync::Arc;
use std::time::Duration;

use api::key::Key;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use machinery::{Informer, Next, WorkQueue};

use crate::context::Context;
use crate::shared::conditions;
use crate::shared::{meta, watch, write};

const NAME: &str = "certificatesigningrequest-cleaner-controller";
const SETTLED: Duration = Duration::from_secs(60 * 60);
const PENDING: Duration = Duration::from_secs(24 * 60 * 60);

pub async fn run(context: Arc<Context>) -> anyhow::Result<()> {
    let queue = WorkQueue::new();
    let requests = context.informers.of::<CertificateSigningRequest>();
    watch::itself(&requests, &queue);
    requests.synced().await;
    let client = context.client.clone();
    context
        .run(NAME, queue, move |key| {
            let (client, requests) = (client.clone(), requests.clone());
            async move { sync(&client, &requests, &key).await }
        })
        .await
}

async fn sync(client: &kube::Client, requests: &Informer<CertificateSigningRequest>, key: &Key) -> anyhow::Result<Next> {
    let Some(csr) = requests.get(key) else { return Ok(Next::Done) };
    let (now, at) = (Timestamp::now(), expires(&csr));
    if at > now {
        return Ok(Next::After(watch::until(at, now)));
    }
    let only = write::only(meta::uid(&*csr));
    write::unless_gone(write::delete::<CertificateSigningRequest>(client, key, &only).await)?;
    Ok(Next::Done)
}

fn expires(csr: &CertificateSigningRequest) -> Timestamp {
    let settled = ["Denied", "Failed", "Approved"].iter().find_map(|type_| {
        let condition = conditions::find(&csr.status.as_ref()?.conditions, type_)?;
        // An approved request that is not signed yet still waits.
        (*type_ != "Approved" || super::is_issued(csr)).then(|| condition.last_update_time.as_ref().map(|time| time.0))?
    });
    let (from, life) = settled.map_or((meta::created(csr), PENDING), |at| (at, SETTLED));
    from.checked_add(life).unwrap_or(Timestamp::MAX)
}
