//! Word of what was deleted, of every kind.
//!
//! The garbage collector watches the metadata of all kinds; who wants to know of deletions listens here and needs no watches of its own.

use api::cause::Cause;
use parking_lot::RwLock;

type Listener = Box<dyn Fn(&Cause) + Send + Sync>;

/// The cause of what follows is the deleted object at its last revision.
#[derive(Default)]
pub struct Departures {
    listeners: RwLock<Vec<Listener>>,
}

impl Departures {
    pub fn listen(&self, listener: impl Fn(&Cause) + Send + Sync + 'static) {
        self.listeners.write().push(Box::new(listener));
    }

    pub fn tell(&self, gone: &Cause) {
        self.listeners.read().iter().for_each(|listener| listener(gone));
    }
}
