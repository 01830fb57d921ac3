//! Which sites are connected now, so that a revocation finds them.
//!
//! Deliberately absent: what is said in a session, which the engine knows, and when a site was last heard,
//! which the store keeps.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sync::{
    id::SiteId,
    quic::{CloseCode, Connection},
};

/// Connections of all sites. Cheap to clone; all clones are the same list.
#[derive(Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<Live>>);

#[derive(Default)]
struct Live {
    next: u64,
    connections: BTreeMap<(SiteId, u64), Connection>,
}

impl Sessions {
    /// Lists a connection until it ends. Do this before the certificate is judged: a revocation in between
    /// then ends the connection, and one before is seen by the judgement.
    pub(crate) fn add(&self, site: SiteId, connection: &Connection) {
        let key = {
            let mut live = self.live();
            live.next += 1;
            let key = (site, live.next);
            live.connections.insert(key, connection.clone());
            key
        };
        let (sessions, connection) = (self.clone(), connection.clone());
        tokio::spawn(async move {
            connection.closed().await;
            sessions.live().connections.remove(&key);
        });
    }

    /// Ends all connections of a site and says why; returns how many there were.
    pub(crate) fn end(&self, site: SiteId, code: CloseCode, reason: &str) -> usize {
        let live = self.live();
        let of_site = live.connections.range((site, 0)..=(site, u64::MAX));
        of_site.map(|(_, connection)| code.close(connection, reason)).count()
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        // Nothing in here can be half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
