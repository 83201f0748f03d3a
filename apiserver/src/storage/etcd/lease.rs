//! Leases for keys that expire, shared: one lease serves all keys written within a minute, as etcd would suffer from one per key.
//!
//! A key may live a little longer than asked, never shorter. Upstream counterpart: `storage/etcd3/lease_manager.go` (v1.33).

use std::time::Duration;

use etcd_client::Client;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{CALL_TIMEOUT, Result, StoreError, interpret};

/// A lease is reused for the smaller of these: seconds, percent of the asked time.
const REUSE: (Duration, u32) = (Duration::from_secs(60), 5);
/// All keys of a lease vanish in one transaction: not too many.
const MAX_KEYS: usize = 1000;

#[derive(Default)]
pub struct Leases {
    /// Locked over the grant, so that a burst of writers shares one lease.
    current: Mutex<Option<Lease>>,
}

struct Lease {
    id: i64,
    expires: Instant,
    keys: usize,
}

impl Leases {
    /// A lease that lasts at least `ttl`.
    pub async fn get(&self, client: &Client, ttl: Duration) -> Result<i64> {
        let mut current = self.current.lock().await;
        let now = Instant::now();
        if let Some(lease) = current.as_mut().filter(|lease| lease.serves(ttl, now)) {
            lease.keys += 1;
            return Ok(lease.id);
        }
        let seconds = (ttl + extra(ttl)).as_millis().div_ceil(1000);
        let mut granter = client.lease_client();
        let granting = granter.grant(i64::try_from(seconds).unwrap_or(i64::MAX), None);
        let doing = "granting a lease";
        let Ok(granted) = tokio::time::timeout(CALL_TIMEOUT, granting).await else {
            return Err(StoreError::TimedOut { doing: doing.to_owned() });
        };
        let id = granted.map_err(|error| interpret(doing, error))?.0.id;
        *current = Some(Lease { id, expires: now + Duration::from_secs(seconds as u64), keys: 1 });
        Ok(id)
    }

    pub async fn forget(&self) {
        *self.current.lock().await = None;
    }
}

fn extra(ttl: Duration) -> Duration {
    (ttl * REUSE.1 / 100).min(REUSE.0)
}

impl Lease {
    /// It lasts long enough, and not much longer.
    fn serves(&self, ttl: Duration, now: Instant) -> bool {
        now + ttl <= self.expires && now + ttl + extra(ttl) >= self.expires && self.keys < MAX_KEYS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lease_serves_for_a_minute_and_a_thousand_keys() {
        let (granted, hour) = (Instant::now(), Duration::from_secs(3600));
        let lease = |keys| Lease { id: 1, expires: granted + hour + extra(hour), keys };
        for (keys, after, ttl, serves) in
            [(1, 0, 3600, true), (1, 59, 3600, true), (1, 61, 3600, false), (1000, 0, 3600, false), (1, 0, 600, false), (1, 0, 7200, false)]
        {
            let now = granted + Duration::from_secs(after);
            assert_eq!(lease(keys).serves(Duration::from_secs(ttl), now), serves, "{keys} keys, {after} s, ttl {ttl}");
        }
    }
}
