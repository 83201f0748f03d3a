//! When the node is short of memory or disk: `--eviction-hard`.
//!
//! Upstream: `pkg/kubelet/eviction/{helpers,defaults_linux}.go`, v1.33. Of its signals we know the two that become node conditions
//! and a pod can cause; a threshold set for one leaves the other at its default.

use std::path::Path;
use std::str::FromStr;

use api::Quantity;

/// What must be left.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Amount {
    /// Of the whole, 0 to 100.
    Percent(f64),
    Bytes(i64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    memory: Amount,
    disk: Amount,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds { memory: Amount::Bytes(100 << 20), disk: Amount::Percent(10.0) }
    }
}

impl FromStr for Thresholds {
    type Err = String;

    /// `memory.available<100Mi,nodefs.available<10%`
    fn from_str(text: &str) -> Result<Self, String> {
        let mut thresholds = Thresholds::default();
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (signal, amount) = item.split_once('<').ok_or_else(|| format!("{item:?} is not of the form signal<amount"))?;
            match signal {
                "memory.available" => thresholds.memory = amount.parse()?,
                "nodefs.available" => thresholds.disk = amount.parse()?,
                _ => return Err(format!("{signal:?} is not supported: only memory.available and nodefs.available")),
            }
        }
        Ok(thresholds)
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is neither a quantity nor a percentage");
        match text.strip_suffix('%') {
            Some(number) => number.parse().ok().filter(|number| (0.0..=100.0).contains(number)).map(Amount::Percent).ok_or_else(bad),
            None => Quantity::parse(text).map(|quantity| Amount::Bytes(quantity.value())).map_err(|_| bad()),
        }
    }
}

impl Amount {
    fn of(self, whole: i64) -> i64 {
        match self {
            Amount::Percent(percent) => (whole as f64 * percent / 100.0) as i64,
            Amount::Bytes(bytes) => bytes,
        }
    }
}

impl Thresholds {
    pub fn short_of_memory(&self) -> bool {
        let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let bytes =
            |name: &str| Some(info.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<i64>().ok())? * 1024);
        bytes("MemAvailable:").zip(bytes("MemTotal:")).is_some_and(|(left, whole)| left < self.memory.of(whole))
    }

    pub fn short_of_disk(&self, path: &Path) -> bool {
        let Ok(disk) = nix::sys::statvfs::statvfs(path) else { return false };
        let bytes = |blocks: u64| i64::try_from(blocks * disk.fragment_size()).unwrap_or(i64::MAX);
        bytes(disk.blocks_available()) < self.disk.of(bytes(disk.blocks()))
    }

    /// Memory that pods can't have, because the node would be short of it.
    pub fn kept_memory(&self, whole: i64) -> i64 {
        self.memory.of(whole)
    }

    pub fn kept_disk(&self, whole: i64) -> i64 {
        self.disk.of(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_as_upstream_writes_them() {
        assert_eq!("".parse(), Ok(Thresholds::default()));
        let thresholds: Thresholds = "nodefs.available<1%,memory.available<1Gi".parse().unwrap();
        assert_eq!((thresholds.kept_disk(1000), thresholds.kept_memory(0)), (10, 1 << 30));
        for bad in ["nodefs.available", "nodefs.available<x", "nodefs.available<101%", "other<1"] {
            assert!(bad.parse::<Thresholds>().is_err(), "{bad}");
        }
    }
}
