//! Cluster IPs and node ports for Services: each given to one Service only.
//!
//! What is taken is derived from the stored Services when the server starts and kept as a set after that; an address is reserved before the
//! Service is written and given back if the write fails or the Service goes. The lower part of each range is used for explicit requests only, as
//! upstream does (KEP-3070, KEP-3668), so that a fixed `clusterIP: 10.96.0.10` seldom collides.
//! Upstream: `pkg/registry/core/service/{ipallocator,portallocator}`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use parking_lot::Mutex;
use rand::Rng;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    #[error("provided IP is not in the valid range. The range of valid IPs is {0}")]
    AddressNotInRange(String),
    #[error("provided port is not in the valid range. The range of valid ports is {0}-{1}")]
    PortNotInRange(u32, u32),
    #[error("provided IP is already allocated")]
    AddressTaken,
    #[error("provided port is already allocated")]
    PortTaken,
    #[error("range is full")]
    Full,
}

/// Numbers of a range; addresses are offsets into their network.
struct Pool {
    range: RangeInclusive<u32>,
    /// Random picks start here; below it only explicit requests are served until the rest is full.
    dynamic_from: u32,
    taken: BTreeSet<u32>,
}

impl Pool {
    fn new(range: RangeInclusive<u32>, reserved: u32) -> Self {
        Pool { dynamic_from: range.start() + reserved, range, taken: BTreeSet::new() }
    }

    /// A free number: at random first, and if that keeps failing by search.
    fn pick(&mut self) -> Option<u32> {
        let mut random = rand::rng();
        let (low, high) = (self.dynamic_from.min(*self.range.end()), *self.range.end());
        let by_chance = (0..16).map(|_| random.random_range(low..=high)).find(|n| !self.taken.contains(n));
        let number = by_chance.or_else(|| (low..=high).chain(*self.range.start()..low).find(|n| !self.taken.contains(n)))?;
        self.taken.insert(number);
        Some(number)
    }
}

/// Upstream's size of the part kept for explicit requests: `min(max(least, size/16), most)`.
fn reserved(size: u32, least: u32, most: u32) -> u32 {
    if size <= least { 0 } else { (size / 16).clamp(least, most) }
}

/// The Service address range.
pub struct AddressAllocator {
    network: IpNet,
    pool: Mutex<Pool>,
}

impl AddressAllocator {
    /// Network and broadcast address are never given out. IPv6 networks are used up to their first 2^16 addresses, as upstream.
    pub fn new(network: IpNet) -> Self {
        let bits = (network.max_prefix_len() - network.prefix_len()).min(if network.addr().is_ipv4() { 31 } else { 16 });
        let size = 1u32 << bits;
        let last = if network.addr().is_ipv4() { size.saturating_sub(2) } else { size - 1 };
        let pool = Pool::new(1..=last.max(1), reserved(size.saturating_sub(2), 16, 256));
        AddressAllocator { network, pool: Mutex::new(pool) }
    }

    pub fn network(&self) -> IpNet {
        self.network
    }

    /// The first address: the Service `default/kubernetes`.
    pub fn first(&self) -> IpAddr {
        self.at(1)
    }

    fn at(&self, offset: u32) -> IpAddr {
        match self.network.network() {
            IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from(u32::from(base) + offset)),
            IpAddr::V6(base) => IpAddr::V6((u128::from(base) + u128::from(offset)).into()),
        }
    }

    fn offset(&self, address: IpAddr) -> Option<u32> {
        let offset = match (address, self.network.network()) {
            (IpAddr::V4(a), IpAddr::V4(base)) => u128::from(u32::from(a).checked_sub(u32::from(base))?),
            (IpAddr::V6(a), IpAddr::V6(base)) => u128::from(a).checked_sub(u128::from(base))?,
            _ => return None,
        };
        u32::try_from(offset).ok().filter(|offset| self.pool.lock().range.contains(offset))
    }

    pub fn allocate(&self) -> Result<IpAddr, AllocateError> {
        let offset = self.pool.lock().pick().ok_or(AllocateError::Full)?;
        Ok(self.at(offset))
    }

    pub fn reserve(&self, address: IpAddr) -> Result<(), AllocateError> {
        let offset = self.offset(address).ok_or_else(|| AllocateError::AddressNotInRange(self.network.trunc().to_string()))?;
        if self.pool.lock().taken.insert(offset) { Ok(()) } else { Err(AllocateError::AddressTaken) }
    }

    /// Releasing what is free is harmless.
    pub fn release(&self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.pool.lock().taken.remove(&offset);
        }
    }
}

/// The node port range. A port serves one Service, or one Service under two protocols.
pub struct PortAllocator {
    pool: Mutex<Pool>,
}

impl PortAllocator {
    pub fn new(range: RangeInclusive<u16>) -> Self {
        let (low, high) = (u32::from(*range.start()), u32::from(*range.end()));
        PortAllocator { pool: Mutex::new(Pool::new(low..=high, reserved(high - low + 1, 16, 128))) }
    }

    pub fn allocate(&self) -> Result<u16, AllocateError> {
        let port = self.pool.lock().pick().ok_or(AllocateError::Full)?;
        u16::try_from(port).map_err(|_| AllocateError::Full)
    }

    pub fn reserve(&self, port: u16) -> Result<(), AllocateError> {
        let mut pool = self.pool.lock();
        let port = u32::from(port);
        if !pool.range.contains(&port) {
            return Err(AllocateError::PortNotInRange(*pool.range.start(), *pool.range.end()));
        }
        if pool.taken.insert(port) { Ok(()) } else { Err(AllocateError::PortTaken) }
    }

    /// Releasing what is free is harmless.
    pub fn release(&self, port: u16) {
        self.pool.lock().taken.remove(&u32::from(port));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_and_come_back() {
        let pool = AddressAllocator::new("10.96.0.0/28".parse().unwrap());
        assert_eq!(pool.first(), "10.96.0.1".parse::<IpAddr>().unwrap());
        let all: BTreeSet<IpAddr> = (0..14).map(|_| pool.allocate().unwrap()).collect();
        assert_eq!(all.len(), 14);
        assert!(!all.contains(&"10.96.0.0".parse().unwrap()) && !all.contains(&"10.96.0.15".parse().unwrap()));
        assert_eq!(pool.allocate(), Err(AllocateError::Full));
        let one = "10.96.0.7".parse().unwrap();
        assert_eq!(pool.reserve(one), Err(AllocateError::AddressTaken));
        pool.release(one);
        assert_eq!(pool.reserve(one), Ok(()));
        assert_eq!(pool.reserve("10.97.0.1".parse().unwrap()), Err(AllocateError::AddressNotInRange("10.96.0.0/28".into())));
    }

    #[test]
    fn the_lower_part_is_kept_for_explicit_requests() {
        let pool = AddressAllocator::new("10.96.0.0/16".parse().unwrap());
        for _ in 0..1000 {
            assert!(pool.allocate().unwrap() > "10.96.1.0".parse::<IpAddr>().unwrap());
        }
        let ports = PortAllocator::new(30000..=32767);
        for _ in 0..1000 {
            assert!(ports.allocate().unwrap() >= 30128);
        }
        assert_eq!(ports.reserve(30080), Ok(()));
        assert_eq!(ports.reserve(30080), Err(AllocateError::PortTaken));
        assert_eq!(ports.reserve(80), Err(AllocateError::PortNotInRange(30000, 32767)));
    }
}
