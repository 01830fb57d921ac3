//! The one thread that writes, and the transaction that a command sees.
//!
//! Commands queue up; whoever is first opens a transaction and everyone who waits by then joins it, each
//! inside a savepoint of its own. One commit, with the disk flushed, pays for all of them, and only after
//! it is anybody answered. A command that fails takes back its own savepoint only.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
};

use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use sync::{
    document::Author,
    id::{Incarnation, Origin},
    time::{Clock, Timestamp},
};

use crate::{Given, Opening, StoreError, authority::Known, life, open::Open, quota::Quotas, schema, view};

/// Commands that share one commit at most.
const GROUP: usize = 64;

/// Commands of people and machines that wait at most: sixteen commits, a few hundred milliseconds on a slow
/// disk. Whoever comes then is told at once, and not after a time-out.
const WAITING: usize = 16 * GROUP;

/// What a commit changed for the peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Last position of the log for each peer whose log has grown.
    pub grown: BTreeMap<Origin, u64>,
    /// Whether entries came into the journal: ours, or what a peer brought.
    pub noted: bool,
}

type Finish = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
type Job = Box<dyn FnOnce(&mut Tx<'_>) -> (Result<(), StoreError>, Finish) + Send>;
type Watcher = Box<dyn Fn(&Committed) + Send>;

/// Who is told of commits, on the writer's thread.
#[derive(Default)]
struct Watchers {
    /// Of those in which a peer's log has grown.
    logs: Option<Watcher>,
    /// Of those in which the journal has.
    journal: Option<Watcher>,
}

impl Watchers {
    fn tell(&self, committed: &Committed) {
        for (watcher, concerns) in
            [(&self.logs, !committed.grown.is_empty()), (&self.journal, committed.noted)]
        {
            if let Some(watcher) = watcher.as_ref().filter(|_| concerns) {
                watcher(committed);
            }
        }
    }
}

/// The queue in front of the writing thread.
pub(crate) struct Writer {
    queue: Mutex<Option<Sender<(Given, Job)>>>,
    /// Jobs in the queue.
    waiting: Arc<AtomicUsize>,
    watchers: Arc<Mutex<Watchers>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What the thread keeps between transactions.
pub(crate) struct State {
    pub(crate) origin: Origin,
    pub(crate) incarnation: Incarnation,
    /// Copy of the incarnation beside the database.
    pub(crate) beside: PathBuf,
    /// How often the database was opened.
    pub(crate) starts: u64,
    /// Key that central seals with.
    pub(crate) key: Option<[u8; 32]>,
    pub(crate) clock: Clock,
    /// The latest instant that our own clock showed at a write, unless central said that it was ahead.
    pub(crate) known: Timestamp,
    pub(crate) quotas: Quotas,
    pub(crate) open: Open,
}

/// A transaction, as one command sees it.
pub struct Tx<'t> {
    pub(crate) sql: &'t Connection,
    pub(crate) state: &'t mut State,
    pub(crate) given: Given,
    pub(crate) author: Option<Author>,
    pub(crate) touched: BTreeSet<i64>,
    pub(crate) grown: BTreeMap<Origin, u64>,
    /// Entries came into the journal.
    pub(crate) noted: Cell<bool>,
    /// While items of a peer's log are taken over: what was found out of the peer.
    pub(crate) known: RefCell<Option<Known>>,
    /// A site asked for something since the transaction began.
    pub(crate) was_asked: bool,
}

pub(crate) fn database(folder: &Path) -> PathBuf {
    folder.join("holdfast.db")
}

/// Where a restore prepares the database that will take the other's place.
pub(crate) fn staged(folder: &Path) -> PathBuf {
    folder.join("holdfast.db.restoring")
}

/// Key under which a restored database says so until its next start.
pub(crate) const RESTORED: &str = "restored";

/// Key of the latest instant that is known to have been by our own clock.
pub(crate) const KNOWN_TIME: &str = "known_time";

/// Opens a connection that only reads.
pub(crate) fn reader(database: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags)
        .map_err(|source| StoreError::Open { path: database.to_path_buf(), source: Arc::new(source) })?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(64);
    schema::settle_plans(&connection)?;
    Ok(connection)
}

impl Writer {
    /// Opens the database, settles which incarnation lives in it, and starts the thread.
    pub(crate) fn open(
        opening: &Opening,
        generation: Option<&str>,
    ) -> Result<(Self, Arc<Mutex<Incarnation>>), StoreError> {
        let path = database(&opening.folder);
        make_folder(&opening.folder)?;
        refuse_unfinished(&opening.folder)?;
        let mut connection = Connection::open(&path)
            .map_err(|source| StoreError::Open { path: path.clone(), source: Arc::new(source) })?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.set_prepared_statement_cache_capacity(256);
        schema::prepare(&mut connection)?;
        let state = life::settle(&mut connection, opening, generation)?;
        let incarnation = Arc::new(Mutex::new(state.incarnation));
        let lives = Arc::clone(&incarnation);

        let (sender, receiver) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let queue = Queue { receiver, waiting: Arc::clone(&waiting) };
        let watchers = Arc::new(Mutex::new(Watchers::default()));
        let told = Arc::clone(&watchers);
        #[expect(clippy::disallowed_methods, reason = "this is the one writer, and the thread is its work")]
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || work(connection, state, &queue, &told, &lives))
            .map_err(|source| StoreError::File {
                action: "start the writer of",
                path,
                source: Arc::new(source),
            })?;
        let writer =
            Writer { queue: Mutex::new(Some(sender)), waiting, watchers, thread: Mutex::new(Some(thread)) };
        Ok((writer, incarnation))
    }

    pub(crate) fn watch(&self, watcher: Watcher) {
        if let Ok(mut watchers) = self.watchers.lock() {
            watchers.logs = Some(watcher);
        }
    }

    pub(crate) fn watch_journal(&self, watcher: Watcher) {
        if let Ok(mut watchers) = self.watchers.lock() {
            watchers.journal = Some(watcher);
        }
    }

    /// Queues a command of a person or a machine; `Busy` where too many wait.
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        given: Given,
        command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
        done: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        if self.waiting.load(Ordering::Relaxed) >= WAITING {
            return done(Err(StoreError::Busy));
        }
        self.submit_always(given, command, done);
    }

    /// Queues what the replication engine asks, which bounds itself: a session has a few questions at a time,
    /// and all sessions together `engine::pressure::AT_WRITER` portions of a log.
    pub(crate) fn submit_always<T: Send + 'static>(
        &self,
        given: Given,
        command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
        done: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        let job: Job = Box::new(move |tx| {
            let outcome = command(tx);
            let kept = outcome.as_ref().map(drop).map_err(StoreError::clone);
            let finish: Finish = Box::new(move |committed| done(committed.and(outcome)));
            (kept, finish)
        });
        let Ok(queue) = self.queue.lock() else { return };
        if let Some(sender) = queue.as_ref() {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            // A thread that has ended drops the job, and with it the caller's channel: `Closed`.
            drop(sender.send((given, job)));
        }
    }
}

impl Drop for Writer {
    /// Ends the thread after everything that was submitted: the database is closed when this returns.
    fn drop(&mut self) {
        if let Ok(mut queue) = self.queue.lock() {
            queue.take();
        }
        let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            drop(thread.join());
        }
    }
}

/// The thread's end of the queue.
struct Queue {
    receiver: Receiver<(Given, Job)>,
    waiting: Arc<AtomicUsize>,
}

impl Queue {
    /// Waits for the next job; nothing when nobody can submit any more.
    fn wait(&self) -> Option<(Given, Job)> {
        self.receiver.recv().ok().inspect(|_| self.one_less())
    }

    /// The next job that is there already.
    fn next(&self) -> Option<(Given, Job)> {
        self.receiver.try_recv().ok().inspect(|_| self.one_less())
    }

    fn one_less(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn work(
    mut connection: Connection,
    mut state: State,
    queue: &Queue,
    watchers: &Mutex<Watchers>,
    incarnation: &Mutex<Incarnation>,
) {
    while let Some(first) = queue.wait() {
        let mut jobs = VecDeque::from([first]);
        while jobs.len() < GROUP
            && let Some(next) = queue.next()
        {
            jobs.push_back(next);
        }
        // More than one transaction only where SQLite took one back in the middle of the group.
        while !jobs.is_empty() {
            let (finishes, outcome) = commit_group(&mut connection, &mut state, &mut jobs);
            if finishes.is_empty() {
                // Not even a transaction begins: whoever waits hears that the store is closed.
                jobs.clear();
            }
            if let Ok(committed) = &outcome
                && let Ok(watchers) = watchers.lock()
            {
                watchers.tell(committed);
            }
            if let Ok(mut incarnation) = incarnation.lock() {
                *incarnation = state.incarnation;
            }
            let outcome = outcome.map(drop);
            for finish in finishes {
                finish(outcome.clone());
            }
        }
    }
}

fn commit_group(
    connection: &mut Connection,
    state: &mut State,
    jobs: &mut VecDeque<(Given, Job)>,
) -> (Vec<Finish>, Result<Committed, StoreError>) {
    let mut finishes = Vec::with_capacity(jobs.len());
    let mut committed = Committed::default();
    let incarnation = state.incarnation;
    let outcome = (|| -> Result<(), StoreError> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let before = (state.clock.last(), state.known);
        while let Some((given, job)) = jobs.pop_front() {
            transaction.prepare_cached("SAVEPOINT command")?.execute([])?;
            let incarnation = state.incarnation;
            let mut tx = Tx {
                sql: &transaction,
                state,
                given,
                author: None,
                touched: BTreeSet::new(),
                grown: BTreeMap::new(),
                noted: Cell::new(false),
                known: RefCell::new(None),
                was_asked: false,
            };
            let (kept, finish) = job(&mut tx);
            finishes.push(finish);
            let Tx { touched, grown, noted, .. } = tx;
            match kept {
                Ok(()) => {
                    transaction.prepare_cached("RELEASE command")?.execute([])?;
                    committed.grown.extend(grown);
                    committed.noted |= noted.get();
                }
                // A full disk makes SQLite take back the whole transaction by itself: nothing of what the
                // group has done so far is left, and everybody in it hears why.
                Err(error) if transaction.is_autocommit() => return Err(error),
                Err(_) => {
                    transaction.execute_batch("ROLLBACK TO command; RELEASE command")?;
                    // What the command wrote into open documents is not in the database.
                    state.open.forget(&touched);
                    state.incarnation = incarnation;
                }
            }
        }
        if state.clock.last() != before.0 {
            set_meta(&transaction, "clock", &state.clock.last().0.to_be_bytes())?;
        }
        if state.known != before.1 {
            set_meta(&transaction, KNOWN_TIME, &state.known.0.to_be_bytes())?;
        }
        transaction.commit()?;
        Ok(())
    })();
    if outcome.is_err() {
        state.open.clear();
        state.incarnation = incarnation;
    }
    (finishes, outcome.map(|()| committed))
}

impl Tx<'_> {
    /// Whose replica this is.
    pub fn origin(&self) -> Origin {
        self.state.origin
    }

    /// Instant that the edge gave.
    pub fn now(&self) -> Timestamp {
        self.given.now
    }

    /// Person, rule or program that acts.
    pub fn by(&self) -> &str {
        &self.given.by
    }

    /// How many documents were read from the disk since the database was opened.
    pub fn documents_loaded(&self) -> u64 {
        self.state.open.loaded()
    }

    /// How many documents are in memory just now.
    pub fn documents_open(&self) -> usize {
        self.state.open.len()
    }

    /// About how much memory they take, and how much they may take, in bytes.
    pub fn documents_open_bytes(&self) -> (usize, usize) {
        (self.state.open.bytes(), self.state.open.most())
    }

    /// Derived tables as they are inside this transaction.
    pub fn view(&self) -> view::View<'_> {
        view::View::new(self.sql, self.state.origin)
    }

    /// The author of everything in this transaction: one stamp, one source of nonces.
    pub(crate) fn author(&mut self) -> Result<&mut Author, StoreError> {
        if self.author.is_none() {
            let at = self.state.clock.tick(self.given.now);
            self.state.known = self.state.known.max(self.given.now);
            let epoch = self.view().policy_epoch()?;
            let author = self.given.author(self.state.incarnation, self.state.origin, at, epoch);
            self.author = Some(author);
        }
        Ok(self.author.as_mut().expect("it was just made"))
    }

    /// Keeps the highest time that central confirmed, which orders are judged by.
    pub fn confirm_central_time(&mut self, time: Timestamp) -> Result<(), StoreError> {
        if time > self.view().central_time()? {
            set_meta(self.sql, "central_time", &time.0.to_be_bytes())?;
        }
        Ok(())
    }

    /// Makes the derived tables again from the documents. Nothing changes if they were right.
    pub fn rebuild_views(&mut self) -> Result<(), StoreError> {
        view::rebuild(self.sql)
    }
}

pub(crate) fn set_meta(sql: &Connection, key: &str, value: &[u8]) -> Result<(), StoreError> {
    sql.prepare_cached(
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
    )?
    .execute(params![key, value])?;
    Ok(())
}

pub(crate) fn meta(sql: &Connection, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(sql
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()?)
}

/// A restore that was broken off before there was any database must not end in an empty one.
#[expect(clippy::disallowed_methods, reason = "the folder of the database is the writer's")]
fn refuse_unfinished(folder: &Path) -> Result<(), StoreError> {
    let staged = staged(folder);
    if staged.exists() && !database(folder).exists() {
        return Err(StoreError::Unfinished { path: staged });
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the folder of the database is the writer's")]
fn make_folder(folder: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(folder).map_err(|source| StoreError::File {
        action: "create folder",
        path: folder.to_path_buf(),
        source: Arc::new(source),
    })
}
