//! What all services of the running site share.
//!
//! Handlers read snapshots of the replica and submit commands to its writer; both leave the runtime's
//! threads free. Instants and entropy come from the [`Edge`] of the event loop.

use std::sync::{Arc, atomic::AtomicU64};

use store::{Store, StoreError, Tx};
use sync::{
    id::{MacAddr, SiteId},
    time::Timestamp,
};
use tokio::sync::watch;

use crate::{
    boot::{self, script},
    cache::Content,
    event_loop::Edge,
    link::Link,
    renewal::{Certificate, Summons},
    sight,
    tftp::loaders::Loaders,
};

/// The running site.
pub struct Agent {
    /// Who it is.
    pub site: SiteId,
    /// Central as `host:port`.
    pub central: String,
    /// The replica.
    pub store: Store,
    /// Clock and entropy.
    pub edge: Edge,
    /// How machines reach it, and how long they wait.
    pub server: script::Server,
    /// Boot loaders.
    pub loaders: Loaders,
    /// What machines' tokens are made with.
    pub site_secret: [u8; 32],
    /// The bearer token of operators.
    pub admin_token: String,
    /// Where the link stands.
    pub link: watch::Sender<Link>,
    /// What content is waited for.
    pub content: watch::Sender<Content>,
    /// How long the site's certificate is good.
    pub certificate: watch::Sender<Option<Certificate>>,
    /// What sessions say of it.
    pub summons: watch::Sender<Summons>,
    /// Counts what may have changed wishes, orders or settings.
    pub changes: watch::Sender<u64>,
    /// Boot requests in this run.
    pub boots_seen: AtomicU64,
}

impl Agent {
    /// Reads one snapshot of the replica.
    ///
    /// # Errors
    /// Those of `read`; `Closed` while the program is stopping.
    pub async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Agent, &store::View<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let agent = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || agent.store.read(|view| read(&agent, view)));
        task.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Runs a command as `by` and waits for its commit.
    ///
    /// # Errors
    /// Those of the command and of the commit; nothing is changed then.
    pub async fn submit<T: Send + 'static>(
        &self,
        by: &str,
        command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.store.submit(self.edge.given(by), command, move |outcome| drop(sender.send(outcome)));
        receiver.await.unwrap_or(Err(StoreError::Closed))
    }

    /// What is known of a machine that asks.
    ///
    /// # Errors
    /// When the replica cannot be read.
    pub async fn sight(self: &Arc<Self>, mac: MacAddr) -> Result<boot::view::View, StoreError> {
        let link = self.link.borrow().state;
        let now = self.edge.now();
        self.read(move |agent, view| sight::of(view, agent.store.blobs(), agent.site, mac, link, now)).await
    }

    /// Says that wishes, orders or settings may be others now.
    pub fn note_change(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Our clock, or the highest time that central confirmed, whichever is later: certificates are judged
    /// by it, because a branch machine may start in 1970. What central confirmed is on disk.
    pub fn latest_time(&self) -> Timestamp {
        let confirmed = self.store.read(|view| view.central_time()).unwrap_or_default();
        confirmed.max(self.edge.now())
    }
}
