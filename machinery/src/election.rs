//! Leader election on a Lease: of several instances, one acts.
//!
//! The holder renews; others watch the clock from when *they* last saw the lease change, so that clocks need not agree.
//! Unlike upstream, a lease whose holder was on this very host, by the same clock, is believed: who comes back after the store was
//! away for longer than a lease lasts does not wait for that once more.
//! Upstream: `client-go/tools/leaderelection/leaderelection.go`, the same times.

use std::time::Duration;

use anyhow::Result;
use api::k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use api::k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use api::k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::{CancellationToken, metrics};

const LEASE_DURATION: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY_PERIOD: Duration = Duration::from_secs(2);

struct Elector {
    leases: Api<Lease>,
    name: String,
    identity: String,
    /// The lease as last seen to change, and when.
    observed: Option<(LeaseSpec, Instant)>,
    /// The lease as we last wrote it: while nobody else writes it, renewing is one request.
    held: Option<Lease>,
}

/// Waits to become the holder of `kube-system/<name>`, then returns a token that is cancelled when leadership is lost
/// or `token` is. A process whose leadership was lost should exit. `None` if `token` came first.
pub async fn acquire(client: Client, name: &str, token: &CancellationToken) -> Option<CancellationToken> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let identity = format!("{}_{}", host.trim(), uuid::Uuid::new_v4());
    let mut elector =
        Elector { leases: Api::namespaced(client, "kube-system"), name: name.to_owned(), identity, observed: None, held: None };
    tracing::info!(lease = name, "waiting to become the leader");
    metrics::get().leads(name, false);
    while !elector.try_hold_or_log().await {
        tokio::select! {
            () = tokio::time::sleep(RETRY_PERIOD) => {}
            () = token.cancelled() => return None,
        }
    }
    tracing::info!(lease = name, identity = elector.identity, "leading");
    metrics::get().leads(name, true);
    let leading = token.child_token();
    tokio::spawn(elector.keep(leading.clone()));
    Some(leading)
}

impl Elector {
    async fn keep(mut self, leading: CancellationToken) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < RENEW_DEADLINE {
            tokio::select! {
                () = tokio::time::sleep(RETRY_PERIOD) => {}
                () = leading.cancelled() => return self.release().await,
            }
            let held = tokio::time::timeout(RENEW_DEADLINE, self.try_hold_or_log()).await;
            if held == Ok(true) {
                renewed = Instant::now();
            }
        }
        tracing::error!(lease = self.name, "leadership lost");
        metrics::get().leads(&self.name, false);
        leading.cancel();
    }

    async fn try_hold_or_log(&mut self) -> bool {
        self.try_hold().await.unwrap_or_else(|error| {
            tracing::debug!(lease = self.name, "cannot hold the lease: {error:#}");
            false
        })
    }

    /// One attempt to take or renew the lease.
    async fn try_hold(&mut self) -> Result<bool> {
        let now = MicroTime(Timestamp::now());
        let found = match self.held.take() {
            Some(held) => Some(held),
            None => self.leases.get_opt(&self.name).await?,
        };
        let Some(mut lease) = found else {
            let mut lease = Lease { spec: Some(self.spec(&now, &now, 0)), ..Lease::default() };
            lease.metadata.name = Some(self.name.clone());
            self.held = Some(self.leases.create(&PostParams::default(), &lease).await?);
            return Ok(true);
        };
        let spec = lease.spec.unwrap_or_default();
        let ours = spec.holder_identity.as_deref() == Some(self.identity.as_str());
        if !ours && !self.expired(&spec) {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or(0) + i32::from(!ours);
        let acquired = if ours { spec.acquire_time.unwrap_or_else(|| now.clone()) } else { now.clone() };
        lease.spec = Some(self.spec(&acquired, &now, transitions));
        // The resourceVersion in `lease` makes this a compare-and-swap; one that is lost is looked at afresh next time.
        self.held = Some(self.leases.replace(&self.name, &PostParams::default(), &lease).await?);
        Ok(true)
    }

    fn spec(&self, acquired: &MicroTime, renewed: &MicroTime, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(LEASE_DURATION.as_secs() as i32),
            acquire_time: Some(acquired.clone()),
            renew_time: Some(renewed.clone()),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Whether the lease has not changed for its whole duration, or has been given up.
    fn expired(&mut self, spec: &LeaseSpec) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || host(holder) == host(&self.identity) && ran_out(spec, Timestamp::now()) {
            return true;
        }
        match &self.observed {
            Some((seen, since)) if seen == spec => since.elapsed() > LEASE_DURATION,
            _ => {
                self.observed = Some((spec.clone(), Instant::now()));
                false
            }
        }
    }

    /// Gives the lease up at a clean stop, so that the next leader need not wait.
    async fn release(mut self) {
        let released = async {
            let mut lease = self.leases.get(&self.name).await?;
            if lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()) == Some(self.identity.as_str()) {
                let now = MicroTime(Timestamp::now());
                let transitions = lease.spec.as_ref().and_then(|s| s.lease_transitions).unwrap_or(0);
                self.identity.clear();
                let spec = LeaseSpec { lease_duration_seconds: Some(1), ..self.spec(&now, &now, transitions) };
                lease.spec = Some(spec);
                self.leases.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        if let Err(error) = released.await {
            tracing::debug!("lease not released, it will expire: {error}");
        }
    }
}

/// The host in an identity: what is before the uuid.
fn host(identity: &str) -> Option<&str> {
    identity.rsplit_once('_').map(|(host, _)| host).filter(|host| !host.is_empty())
}

/// Whether the lease has run out by its holder's clock.
fn ran_out(spec: &LeaseSpec, now: Timestamp) -> bool {
    let Some((renewed, seconds)) = spec.renew_time.as_ref().zip(spec.lease_duration_seconds) else { return false };
    now.duration_since(renewed.0).as_secs() > i64::from(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lease_of_this_host_ends_by_its_clock_and_of_another_by_ours() {
        let _first_wins = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config = kube::Config::new(http::Uri::from_static("https://127.0.0.1:1"));
        let leases = Api::namespaced(crate::client::connect(&config).unwrap(), "kube-system");
        let identity = "master_0c1d".to_owned();
        let mut elector = Elector { leases, name: "x".into(), identity, observed: None, held: None };
        let ago = |seconds: i64| Timestamp::now() - api::k8s_openapi::jiff::SignedDuration::from_secs(seconds);
        for (holder, renewed, expired) in [
            ("master_7a2b", 17, true),
            ("master_7a2b", 12, false),
            ("other_7a2b", 17, false),
            ("host_master_7a2b", 17, false),
            ("7a2b", 17, false),
            ("", 0, true),
        ] {
            let spec = LeaseSpec {
                holder_identity: Some(holder.into()),
                renew_time: Some(MicroTime(ago(renewed))),
                lease_duration_seconds: Some(15),
                ..LeaseSpec::default()
            };
            assert_eq!(elector.expired(&spec), expired, "{holder} {renewed} s ago");
        }
    }
}
