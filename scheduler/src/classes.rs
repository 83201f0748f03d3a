//! Pods that no selector can tell apart: same namespace, same labels, both or neither terminating.
//!
//! The thousand replicas of a Deployment are one class, so a selector is evaluated once and not a thousand times.
//! No upstream counterpart.

use std::collections::HashMap;
use std::sync::Arc;

use crate::affinity::Labels;

/// Index into [`Classes`]; reused after the last pod of a class is gone.
pub type ClassId = usize;

/// The class of a pod that is only imagined on a node; no selector matches it.
pub const NO_CLASS: ClassId = usize::MAX;

#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Class {
    pub namespace: String,
    pub labels: Labels,
    pub terminating: bool,
}

#[derive(Default)]
pub struct Classes {
    ids: HashMap<Arc<Class>, ClassId>,
    slots: Vec<Option<(Arc<Class>, usize)>>,
    free: Vec<ClassId>,
}

impl Classes {
    /// The id of the class, one more pod being in it.
    pub fn acquire(&mut self, namespace: &str, labels: &Labels, terminating: bool) -> ClassId {
        let class = Arc::new(Class { namespace: namespace.to_owned(), labels: labels.clone(), terminating });
        if let Some(id) = self.ids.get(&class).copied() {
            if let Some((_, pods)) = &mut self.slots[id] {
                *pods += 1;
            }
            return id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[id] = Some((class.clone(), 1));
        self.ids.insert(class, id);
        id
    }

    pub fn release(&mut self, id: ClassId) {
        let Some((class, pods)) = &mut self.slots[id] else { return };
        *pods -= 1;
        if *pods == 0 {
            self.ids.remove(&**class);
            self.slots[id] = None;
            self.free.push(id);
        }
    }

    /// Which classes match, by id.
    pub fn matching(&self, matches: impl Fn(&Class) -> bool) -> Matching {
        Matching(self.slots.iter().map(|slot| slot.as_ref().is_some_and(|(class, _)| matches(class))).collect())
    }
}

/// The answer of one selector for every class.
#[derive(Clone, Debug, Default)]
pub struct Matching(Vec<bool>);

impl Matching {
    pub fn contains(&self, class: ClassId) -> bool {
        self.0.get(class).copied().unwrap_or(false)
    }

    /// How many pods on a node match.
    pub fn count(&self, classes: &[(ClassId, u32)]) -> i64 {
        classes.iter().filter(|(class, _)| self.contains(*class)).map(|(_, count)| i64::from(*count)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shared_and_reused() {
        let mut classes = Classes::default();
        let web = Labels::from([("app".to_owned(), "web".to_owned())]);
        let a = classes.acquire("default", &web, false);
        assert_eq!(classes.acquire("default", &web, false), a);
        let b = classes.acquire("default", &web, true);
        assert_ne!(a, b);
        assert_eq!(classes.matching(|c| !c.terminating).count(&[(a, 2), (b, 5)]), 2);
        classes.release(a);
        assert_eq!(classes.matching(|c| !c.terminating).count(&[(a, 1)]), 1);
        classes.release(a);
        assert_eq!(classes.matching(|c| !c.terminating).count(&[(a, 1)]), 0);
        assert_eq!(classes.acquire("other", &web, false), a);
    }
}
