//! The table in the kernel as data, and the transaction that takes it from one state to the next.
//!
//! Each Service contributes a [`Fragment`]: chains and sets of its own, and elements of the shared maps. A change of one
//! Service touches its fragment only, whatever the number of the others. An element that two owners want (the same pod
//! behind two Services, the same external address) exists as long as one of them does.
//!
//! Invariants: a transaction is atomic; what it deletes nothing in the new state refers to; equal states give an empty
//! transaction. Upstream: pkg/proxy/nftables/proxier.go, v1.33 (which rewrites whole chains).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use api::Key;

/// The table's name in both families.
pub const TABLE: &str = "kube-proxy";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

/// As nftables spells it, in `table ip …` and in `ip saddr`.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Family::V4 { "ip" } else { "ip6" })
    }
}

/// An element of a shared set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    pub set: &'static str,
    pub key: String,
}

/// What one Service adds to a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Chain → its rules.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Set of its own → its definition.
    pub sets: BTreeMap<String, String>,
    /// The value is empty for sets.
    pub elements: BTreeMap<Slot, String>,
}

/// One table, as it should be in the kernel after the last transaction.
pub struct Table {
    family: Family,
    fragments: BTreeMap<Key, Fragment>,
    elements: BTreeMap<Slot, BTreeMap<Key, String>>,
}

/// What changes between two states.
#[derive(Default)]
struct Plan {
    added_sets: Vec<(String, String)>,
    removed_sets: Vec<String>,
    chains: Vec<(String, Vec<String>)>,
    removed_chains: Vec<String>,
    slots: BTreeSet<Slot>,
}

impl Table {
    pub fn new(family: Family) -> Self {
        Table { family, fragments: BTreeMap::new(), elements: BTreeMap::new() }
    }

    /// Takes over the fragments and returns the transaction that brings the kernel there; empty if nothing changes.
    pub fn update(&mut self, fragments: BTreeMap<Key, Fragment>) -> String {
        let mut plan = Plan::default();
        let mut before = BTreeMap::new();
        for (owner, fragment) in fragments {
            let old = self.fragments.remove(&owner).unwrap_or_default();
            plan.compare(&old, &fragment);
            for slot in old.elements.keys().chain(fragment.elements.keys()) {
                before.entry(slot.clone()).or_insert_with(|| self.effective(slot).cloned());
            }
            self.own(&owner, &old, &fragment);
            if fragment != Fragment::default() {
                self.fragments.insert(owner, fragment);
            }
        }
        plan.slots = before.keys().filter(|slot| before[*slot].as_ref() != self.effective(slot)).cloned().collect();
        self.transaction(&plan, &before)
    }

    fn effective(&self, slot: &Slot) -> Option<&String> {
        self.elements.get(slot)?.values().next()
    }

    fn own(&mut self, owner: &Key, old: &Fragment, new: &Fragment) {
        for slot in old.elements.keys() {
            if let Some(owners) = self.elements.get_mut(slot) {
                owners.remove(owner);
                if owners.is_empty() {
                    self.elements.remove(slot);
                }
            }
        }
        for (slot, value) in &new.elements {
            self.elements.entry(slot.clone()).or_default().insert(owner.clone(), value.clone());
        }
    }

    /// References are made after what they name, and removed before it.
    fn transaction(&self, plan: &Plan, before: &BTreeMap<Slot, Option<String>>) -> String {
        let table = format!("{} {TABLE}", self.family);
        let mut out = String::new();
        let mut line = |text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        for (name, definition) in &plan.added_sets {
            line(format!("add set {table} {name} {{ {definition} }}"));
        }
        for (chain, _) in &plan.chains {
            line(format!("add chain {table} {chain}\nflush chain {table} {chain}"));
        }
        for slot in plan.slots.iter().filter(|slot| before[*slot].is_some()) {
            line(format!("delete element {table} {} {{ {} }}", slot.set, slot.key));
        }
        for (chain, rules) in &plan.chains {
            rules.iter().for_each(|rule| line(format!("add rule {table} {chain} {rule}")));
        }
        for slot in &plan.slots {
            let Some(value) = self.effective(slot) else { continue };
            let value = if value.is_empty() { String::new() } else { format!(" : {value}") };
            line(format!("add element {table} {} {{ {}{value} }}", slot.set, slot.key));
        }
        plan.removed_chains.iter().for_each(|chain| line(format!("flush chain {table} {chain}")));
        plan.removed_chains.iter().for_each(|chain| line(format!("delete chain {table} {chain}")));
        plan.removed_sets.iter().for_each(|set| line(format!("delete set {table} {set}")));
        out
    }

    /// Everything, replacing whatever table of this name is there: after a start, or when a transaction failed.
    pub fn full(&self) -> String {
        let table = format!("{} {TABLE}", self.family);
        let mut out = format!("add table {table}\ndelete table {table}\n{}", base(self.family));
        let mut plan = Plan::default();
        self.fragments.values().for_each(|fragment| plan.compare(&Fragment::default(), fragment));
        plan.slots = self.elements.keys().cloned().collect();
        let before = plan.slots.iter().map(|slot| (slot.clone(), None)).collect();
        out.push_str(&self.transaction(&plan, &before));
        out
    }
}

impl Plan {
    fn compare(&mut self, old: &Fragment, new: &Fragment) {
        for (name, rules) in new.chains.iter().filter(|(name, rules)| old.chains.get(*name) != Some(rules)) {
            self.chains.push((name.clone(), rules.clone()));
        }
        self.removed_chains.extend(old.chains.keys().filter(|name| !new.chains.contains_key(*name)).cloned());
        for (name, definition) in new.sets.iter().filter(|(name, _)| !old.sets.contains_key(*name)) {
            self.added_sets.push((name.clone(), definition.clone()));
        }
        self.removed_sets.extend(old.sets.keys().filter(|name| !new.sets.contains_key(*name)).cloned());
    }
}

/// Traffic to be masqueraded after routing carries this bit of the mark.
pub const MASQUERADE: &str = "meta mark set meta mark or 0x4000";

/// The part that no Service changes. Every look-up is one hash, however many Services there are.
pub fn base(family: Family) -> String {
    let address = if family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
    let loopback = if family == Family::V4 { "127.0.0.0/8" } else { "::1" };
    let to_service = format!("{family} daddr . meta l4proto . th dport");
    let to_node = format!("fib daddr type local {family} daddr != {loopback} meta l4proto . th dport");
    let mut out = String::new();
    let written = write!(
        out,
        "table {family} {TABLE} {{
	comment \"services of this node, written by kube-proxy\"
	set cluster-ips {{ type {address}; }}
	set hairpin {{ type {address} . {address}; }}
	map services {{ type {address} . inet_proto . inet_service : verdict; }}
	map nodeports {{ type inet_proto . inet_service : verdict; }}
	map no-endpoints {{ type {address} . inet_proto . inet_service : verdict; }}
	map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
	map firewall {{ type {address} . inet_proto . inet_service : verdict; }}
	chain refuse {{
		meta l4proto tcp reject with tcp reset
		reject
	}}
	chain dispatch {{
		{to_service} vmap @services
		{to_node} vmap @nodeports
	}}
	chain unanswered {{
		{to_service} vmap @no-endpoints
		{to_node} vmap @no-endpoint-nodeports
		{family} daddr @cluster-ips goto refuse
	}}
	chain nat-prerouting {{
		type nat hook prerouting priority -100; policy accept;
		jump dispatch
	}}
	chain nat-output {{
		type nat hook output priority -100; policy accept;
		jump dispatch
	}}
	chain nat-postrouting {{
		type nat hook postrouting priority 100; policy accept;
		meta mark and 0x4000 != 0 meta mark set meta mark xor 0x4000 masquerade fully-random
		ct status dnat {family} saddr . {family} daddr @hairpin masquerade fully-random
	}}
	chain filter-prerouting {{
		type filter hook prerouting priority -110; policy accept;
		ct state new {to_service} vmap @firewall
	}}
	chain filter-input {{
		type filter hook input priority 0; policy accept;
		ct state new jump unanswered
	}}
	chain filter-forward {{
		type filter hook forward priority 0; policy accept;
		ct state new jump unanswered
	}}
	chain filter-output {{
		type filter hook output priority 0; policy accept;
		ct state new jump unanswered
	}}
}}
"
    );
    debug_assert!(written.is_ok(), "writing to a String cannot fail");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(chain: &str, rules: &[&str], elements: &[(&str, &str)]) -> Fragment {
        Fragment {
            chains: BTreeMap::from([(chain.to_owned(), rules.iter().map(|r| (*r).to_owned()).collect())]),
            sets: BTreeMap::new(),
            elements: elements.iter().map(|(k, v)| (Slot { set: "services", key: (*k).to_owned() }, (*v).to_owned())).collect(),
        }
    }

    fn update(table: &mut Table, owner: &str, fragment: Fragment) -> String {
        table.update(BTreeMap::from([(Key::new("default", owner), fragment)]))
    }

    #[test]
    fn a_change_writes_only_what_changed() {
        let mut table = Table::new(Family::V4);
        let first = update(&mut table, "a", fragment("svc-a", &["drop"], &[("1 . tcp . 80", "goto svc-a")]));
        assert_eq!(
            first,
            "add chain ip kube-proxy svc-a\nflush chain ip kube-proxy svc-a\nadd rule ip kube-proxy svc-a drop\n\
             add element ip kube-proxy services { 1 . tcp . 80 : goto svc-a }\n"
        );
        assert_eq!(update(&mut table, "a", fragment("svc-a", &["drop"], &[("1 . tcp . 80", "goto svc-a")])), "");
        assert_eq!(
            update(&mut table, "a", fragment("svc-a", &["accept"], &[("1 . tcp . 80", "goto svc-a")])),
            "add chain ip kube-proxy svc-a\nflush chain ip kube-proxy svc-a\nadd rule ip kube-proxy svc-a accept\n"
        );
        assert_eq!(
            update(&mut table, "a", Fragment::default()),
            "delete element ip kube-proxy services { 1 . tcp . 80 }\nflush chain ip kube-proxy svc-a\ndelete chain ip kube-proxy svc-a\n"
        );
        assert_eq!(table.full().lines().filter(|l| l.contains("svc-a")).count(), 0);
    }

    #[test]
    fn an_element_lives_as_long_as_one_owner() {
        let mut table = Table::new(Family::V4);
        update(&mut table, "a", fragment("svc-a", &[], &[("1 . tcp . 80", "goto svc-a")]));
        let second = update(&mut table, "b", fragment("svc-b", &[], &[("1 . tcp . 80", "goto svc-b")]));
        assert!(!second.contains("element"), "{second}");
        let gone = update(&mut table, "a", Fragment::default());
        assert!(gone.contains("add element ip kube-proxy services { 1 . tcp . 80 : goto svc-b }"), "{gone}");
    }
}
