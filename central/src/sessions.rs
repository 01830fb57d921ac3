//! Which sites are connected now, so that a revocation finds them and operators see over what, where they are, and
//! which of them are asked to wait.
//!
//! Deliberately absent: what is said in a session, which the engine knows, and when a site was last heard,
//! which the store keeps.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use sync::{
    id::SiteId,
    quic::{CloseCode, Connection, Transport, UdpPath},
    time::Timestamp,
};
use tokio::sync::Notify;

/// Connections of all sites. Cheap to clone; all clones are the same list.
#[derive(Clone, Default)]
pub(crate) struct Sessions {
    live: Arc<Mutex<Live>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Live {
    next: u64,
    /// By site, and in the order in which they came.
    connections: BTreeMap<(SiteId, u64), Listed>,
    waiting: BTreeMap<SiteId, Waiting>,
}

/// That central takes nothing of a site for the time being.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Waiting {
    /// When the site goes on.
    pub(crate) until: Timestamp,
    /// Why it waits.
    pub(crate) why: String,
}

struct Listed {
    connection: Connection,
    /// Since when it carries a session; nothing if it only fetches content beside one.
    session_since: Option<Timestamp>,
}

impl Sessions {
    /// Lists a connection until it ends. Do this before the certificate is judged: a revocation in between
    /// then ends the connection, and one before is seen by the judgement. `session_since` is now for a session
    /// and nothing for a connection beside it. Returns how many connections the site has now, this one included.
    pub(crate) fn add(
        &self,
        site: SiteId,
        connection: &Connection,
        session_since: Option<Timestamp>,
    ) -> usize {
        let (key, count) = {
            let mut live = self.live();
            live.next += 1;
            let key = (site, live.next);
            live.connections.insert(key, Listed { connection: connection.clone(), session_since });
            (key, live.connections.range((site, 0)..=(site, u64::MAX)).count())
        };
        self.changed.notify_one();
        let (sessions, connection) = (self.clone(), connection.clone());
        tokio::spawn(async move {
            connection.closed().await;
            sessions.changed.notify_one();
            let mut live = sessions.live();
            live.connections.remove(&key);
            if live.connections.range((site, 0)..=(site, u64::MAX)).next().is_none() {
                live.waiting.remove(&site);
            }
        });
        count
    }

    /// Ends all connections of a site and says why; returns how many there were.
    pub(crate) fn end(&self, site: SiteId, code: CloseCode, reason: &str) -> usize {
        let live = self.live();
        let of_site = live.connections.range((site, 0)..=(site, u64::MAX));
        of_site.map(|(_, listed)| code.close(&listed.connection, reason)).count()
    }

    /// What carries the newest session of a site, and since when; nothing if it has none.
    pub(crate) fn carried_by(&self, site: SiteId) -> Option<(Transport, Timestamp)> {
        let live = self.live();
        let mut of_site = live.connections.range((site, 0)..=(site, u64::MAX)).rev();
        of_site.find_map(|(_, Listed { connection, session_since })| {
            let is_open = connection.close_reason().is_none();
            session_since.filter(|_| is_open).map(|since| (connection.transport(), since))
        })
    }

    /// Where the sites are whose newest session runs over QUIC.
    pub(crate) fn udp_paths(&self) -> BTreeMap<SiteId, UdpPath> {
        let live = self.live();
        let open = live.connections.iter().filter(|(_, listed)| {
            listed.session_since.is_some() && listed.connection.close_reason().is_none()
        });
        // Later ones take the place of earlier ones of the same site.
        let newest: BTreeMap<SiteId, &Connection> =
            open.map(|((site, _), listed)| (*site, &listed.connection)).collect();
        newest.into_iter().filter_map(|(site, connection)| Some((site, connection.udp_path()?))).collect()
    }

    /// Waits until connections have come or gone since this was asked last. Only for one who asks.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Notes that a site was asked to wait, or with `None` that something of it is taken again.
    pub(crate) fn note_waiting(&self, site: SiteId, waiting: Option<Waiting>) {
        let mut live = self.live();
        match waiting {
            Some(waiting) => drop(live.waiting.insert(site, waiting)),
            None => drop(live.waiting.remove(&site)),
        }
    }

    /// That a site was asked to wait, if it was and nothing of it was taken since.
    pub(crate) fn waiting(&self, site: SiteId) -> Option<Waiting> {
        self.live().waiting.get(&site).cloned()
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        // Nothing in here can be half done.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
