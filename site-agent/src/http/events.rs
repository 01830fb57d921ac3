//! The journal as it grows: server-sent events (HTML Living Standard §9.2).
//!
//! A reader has a position and nothing else. Whenever the store says that the journal has grown, what follows the
//! position is read in pages, and the next page only when the one before is on its way: whoever reads slowly, or not
//! at all, costs one page. Central's API has the same stream over the whole fleet.
//!
//! Deliberately absent: a queue for each reader, and what is not in the journal.

use std::{convert::Infallible, str::FromStr, sync::Arc, time::Duration};

use axum::{
    extract::{Query, State},
    http::HeaderMap,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_lite::{Stream, stream};
use serde::Deserialize;
use store::{
    Store, StoreError,
    view::{Follower, JournalRow, Look, Step, Tail},
};
use sync::journal::kind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{
    error::Problem,
    operator::{Asked, find_site},
};
use crate::{agent::Agent, error::chain};

/// Readers at a time.
const READERS: usize = 16;

/// Readers that look into the database at a time: each look takes a connection of its own.
const LOOKING: usize = 2;

/// Entries of a page. One has 16 KiB at most.
const PAGE: u64 = 32;

/// A reader hears at least this often, so that both ends notice when the other is gone.
const ALIVE: Duration = Duration::from_secs(15);

/// Who reads along, and what wakes them.
#[derive(Clone)]
pub(super) struct Readers {
    places: Arc<Semaphore>,
    looking: Arc<Semaphore>,
    grown: watch::Receiver<()>,
    stopping: CancellationToken,
}

impl Readers {
    /// Of the journal of this store, until `stopping`.
    pub(super) fn of(store: &Store, stopping: CancellationToken) -> Self {
        let (sender, grown) = watch::channel(());
        store.watch_journal(move || sender.send_replace(()));
        let [places, looking] = [READERS, LOOKING].map(|many| Arc::new(Semaphore::new(many)));
        Readers { places, looking, grown, stopping }
    }
}

/// Query of `GET /events`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    kind: Option<String>,
    site: Option<String>,
    after: Option<String>,
}

/// Entries as they are committed, from the position that the reader names, or from now on.
pub(super) async fn follow(
    State((agent, readers)): State<(Arc<Agent>, Readers)>,
    headers: HeaderMap,
    asked: Asked<Wanted>,
) -> Result<Response, Problem> {
    let Query(wanted) = asked.map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
    let kinds = wanted.kind.as_deref().map(kind::kinds).transpose();
    let kinds = kinds.map_err(|error| Problem::bad_request(error.to_string()))?.unwrap_or_default();
    let named = position(&headers, wanted.after.as_deref())?;
    let Ok(place) = readers.places.try_acquire_owned() else {
        return Err(Problem::too_many_readers(READERS));
    };
    // Marked before the database is asked: what is committed in between wakes the reader once too often.
    let mut grown = readers.grown;
    grown.mark_unchanged();
    let found = agent.read(move |_, view| {
        let site = wanted.site.map(|text| find_site(view, &text)).transpose()?.map(|row| row.id);
        Ok((site, view.newest_entry()?))
    });
    let (site, newest) = found.await?;
    let after = named.unwrap_or(newest);
    if after > newest {
        return Err(Problem::no_such_position(after, newest));
    }
    let reader = Reader {
        agent,
        follower: Follower::new(site, kinds, after, PAGE),
        grown,
        looking: readers.looking,
        stopping: readers.stopping,
        _place: place,
    };
    Ok(Sse::new(reader.events()).keep_alive(KeepAlive::new().interval(ALIVE)).into_response())
}

/// The position that a reader has come to. A browser that connects again keeps the query of the first time and
/// says in the header where it was.
fn position(headers: &HeaderMap, after: Option<&str>) -> Result<Option<u64>, Problem> {
    let last = headers.get("last-event-id").map(|it| String::from_utf8_lossy(it.as_bytes()));
    let (name, text) = match last.as_deref().filter(|text| !text.is_empty()) {
        Some(last) => ("Last-Event-ID", Some(last)),
        None => ("after", after),
    };
    text.map(u64::from_str)
        .transpose()
        .map_err(|error| Problem::bad_request(format!("`{name}` is not the number of an entry: {error}")))
}

/// One reader.
struct Reader {
    agent: Arc<Agent>,
    follower: Follower,
    grown: watch::Receiver<()>,
    looking: Arc<Semaphore>,
    stopping: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut reader| async move {
            let stopping = reader.stopping.clone();
            let event = stopping.run_until_cancelled(reader.next()).await??;
            Some((Ok(event), reader))
        })
    }

    /// The next event; none when the store is closed, or cannot be read.
    async fn next(&mut self) -> Option<Event> {
        loop {
            match self.follower.step() {
                Step::Hear(_, Some(row)) => return Some(told(&row)),
                Step::Hear(upto, None) => return Some(Event::default().id(upto.to_string())),
                Step::Wait => {
                    self.grown.changed().await.ok()?;
                    self.follower.grown();
                }
                Step::Look(look) => match self.look(look).await {
                    Ok(tail) => self.follower.found(tail),
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "a stream of events ended");
                        return None;
                    }
                },
            }
        }
    }

    async fn look(&self, look: Look) -> Result<Tail, StoreError> {
        let _turn = self.looking.acquire().await.map_err(|_| StoreError::Closed)?;
        self.agent.read(move |_, view| look.at(view)).await
    }
}

/// An entry as the list of the journal shows it.
fn told(row: &JournalRow) -> Event {
    let shown = serde_json::to_value(row).expect("rows have text keys only and no other failure");
    let event = Event::default().id(row.entry.to_string());
    let event = match &row.event {
        Some(fact) => event.event(fact.kind()),
        // A newer program wrote it: it arrives as a `message`.
        None => event,
    };
    event.data(shown.to_string())
}
