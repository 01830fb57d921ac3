//! Who signs now: the authority, for all who sign with it or show what it signed.
//!
//! An operator can have it succeeded and its predecessor retired while central runs. The file is replaced first, then
//! central's own certificate ([`Seat::show_with`]), then the successor signs. The journal is told what changed
//! afterwards, and at the next start if a crash comes between ([`store::command::authority::follow`]).

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use store::command::authority::Standing;
use tokio::sync::{Mutex, watch};

use super::ca::{Authority, CaError};
use crate::{content::off_runtime, event_loop::Edge};

/// The authority in force. All clones are the same.
#[derive(Clone)]
pub(crate) struct Seat {
    folder: PathBuf,
    edge: Edge,
    present: watch::Sender<Arc<Authority>>,
    /// One change at a time.
    turn: Arc<Mutex<()>>,
    show: Arc<OnceLock<Show>>,
}

/// Shows peers a certificate of the authority.
type Show = Box<dyn Fn(&Authority) + Send + Sync>;

impl Seat {
    /// Begins with the authority of this data folder.
    pub(crate) fn new(folder: PathBuf, edge: Edge, authority: Authority) -> Self {
        let present = watch::Sender::new(Arc::new(authority));
        Seat { folder, edge, present, turn: Arc::default(), show: Arc::default() }
    }

    /// Who signs now.
    pub(crate) fn present(&self) -> Arc<Authority> {
        Arc::clone(&self.present.borrow())
    }

    /// Says how peers are shown certificates from now on; the first to say so wins.
    pub(crate) fn show_with(&self, show: impl Fn(&Authority) + Send + Sync + 'static) {
        drop(self.show.set(Box::new(show)));
    }

    /// Shows peers another certificate of the authority.
    pub(crate) fn show(&self) {
        self.show_of(&self.present());
    }

    fn show_of(&self, authority: &Authority) {
        if let Some(show) = self.show.get() {
            show(authority);
        }
    }

    /// Puts a successor in the place of the authority.
    ///
    /// # Errors
    /// Those of [`Authority::succeed`].
    pub(crate) async fn succeed(&self) -> Result<(), CaError> {
        let serials = [self.edge.entropy(), self.edge.entropy()];
        let now = self.edge.now();
        self.change(move |authority, folder| authority.succeed(folder, serials, now)).await
    }

    /// Ends the predecessor.
    ///
    /// # Errors
    /// Those of [`Authority::retire`].
    pub(crate) async fn retire(&self) -> Result<(), CaError> {
        self.change(|authority, folder| authority.retire(folder)).await
    }

    async fn change(
        &self,
        change: impl FnOnce(&Authority, &std::path::Path) -> Result<Authority, CaError> + Send + 'static,
    ) -> Result<(), CaError> {
        let _turn = self.turn.lock().await;
        let (before, folder) = (self.present(), self.folder.clone());
        let next = off_runtime(move || change(&before, &folder)).await?;
        // Whoever is certified by a successor has been shown it.
        self.show_of(&next);
        self.present.send_replace(Arc::new(next));
        Ok(())
    }
}

impl Authority {
    /// What the store compares and journals.
    pub(crate) fn standing(&self) -> Standing {
        let own = self.described();
        Standing {
            authority: own.fingerprint,
            made_at: own.made_at,
            not_after: own.not_after,
            predecessor: self.predecessor_described().map(|it| it.fingerprint),
        }
    }
}
