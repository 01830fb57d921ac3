//! Makes of honest bytes what nobody honest would send, and seals it again so that no checksum gives it away.
//!
//! `bytes` is what needs no understanding. `chunk` takes Automerge's chunks apart into columns and puts them
//! together again with the length and checksum that they should have; `change` edits what a change says and
//! encodes it as Automerge would; `cbor` edits the tree of a message, an item or a journal entry. Each mutant
//! is decided by the random numbers alone. `trial` is what a mutant of a change must not do to a replica, `tally`
//! counts where mutants ended.

pub mod bytes;
pub mod chunk;
pub mod change;
pub mod cbor;
pub mod tally;
pub mod trial;

use std::{
    cell::Cell,
    panic,
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use sync::{
    document::Document,
    wire::{self, Message, frame},
};

use crate::{
    corpus::{Corpus, Situation, pick},
    random::Random,
};

/// A mutant of the change of a situation: of its bytes, of its columns, or of what it says.
pub fn change(random: &mut Random, corpus: &Corpus, situation: &Situation<'_>) -> Vec<u8> {
    let honest = &situation.next.bytes;
    match random.below(10) {
        0..2 => chunk::reseal(random, honest, bytes::mutate),
        2..4 => {
            let donor = corpus.any_change(random);
            chunk::columns(random, honest, &donor.bytes)
                .unwrap_or_else(|| chunk::reseal(random, honest, bytes::mutate))
        }
        _ => change::edit(random, corpus, situation)
            .unwrap_or_else(|| chunk::reseal(random, honest, bytes::mutate)),
    }
}

/// A mutant of the snapshot of a document: of its bytes, of its columns, or one into which somebody's
/// Automerge has taken a change that ours would refuse.
pub fn snapshot(random: &mut Random, corpus: &Corpus, situation: &Situation<'_>) -> Vec<u8> {
    let honest = situation.document.snapshot();
    match random.below(10) {
        0..2 => chunk::reseal(random, &honest, bytes::mutate),
        2..4 => {
            let donor = corpus.situation(random).document.snapshot();
            chunk::columns(random, &honest, &donor)
                .unwrap_or_else(|| chunk::reseal(random, &honest, bytes::mutate))
        }
        _ => {
            let mutant = change(random, corpus, situation);
            spoiled(situation.document, &mutant)
                .unwrap_or_else(|| chunk::reseal(random, &honest, bytes::mutate))
        }
    }
}

/// The snapshot of a document in which Automerge alone has taken a change.
fn spoiled(document: &Document, change: &[u8]) -> Option<Vec<u8>> {
    // What claims more operations than there is memory would not come back from Automerge.
    sync::ingress::lint(change).ok()?;
    quietly(|| {
        let change = automerge::Change::try_from(change).ok()?;
        let mut document = document.clone();
        document.apply(change).ok()?;
        Some(document.snapshot())
    })
    .ok()?
}

/// A mutant of a frame: of its bytes as they travel, or of the message in it, plain.
pub fn frame(random: &mut Random, corpus: &Corpus, honest: &[u8]) -> Vec<u8> {
    match (random.below(10), wire::decode(honest)) {
        (0..2, _) | (_, Err(_)) => bytes::mutate(random, honest),
        (2..4, Ok(message)) => {
            let plain = frame::encode_plain(&message);
            [&plain[..1], &bytes::mutate(random, &plain[1..])].concat()
        }
        (_, Ok(message)) => message_frame(random, corpus, &message),
    }
}

fn message_frame(random: &mut Random, corpus: &Corpus, message: &Message) -> Vec<u8> {
    let plain = frame::encode_plain(message);
    let Some(mut tree) = cbor::parse(&plain[1..]) else { return bytes::mutate(random, &plain) };
    for _ in 0..=random.below(2) {
        cbor::mutate(random, corpus, &mut tree);
    }
    [&plain[..1], &cbor::encode(&tree)].concat()
}

/// A mutant of a journal entry.
pub fn entry(random: &mut Random, corpus: &Corpus, honest: &[u8]) -> Vec<u8> {
    match (random.below(10), cbor::parse(honest)) {
        (0..3, _) | (_, None) => bytes::mutate(random, honest),
        (_, Some(mut tree)) => {
            for _ in 0..=random.below(2) {
                cbor::mutate(random, corpus, &mut tree);
            }
            cbor::encode(&tree)
        }
    }
}

/// One of them, drawn.
pub(crate) fn draw<'a, T>(random: &mut Random, from: &'a [T]) -> &'a T {
    &from[pick(random, from.len())]
}

/// Panics of the writers of stores so far: nobody can be quiet for them, so none of them is heard once
/// [`quietly`] has been called. One that is not under guard ends its thread, and the store is closed then.
pub fn writer_panics() -> u64 {
    WRITER_PANICS.load(Ordering::SeqCst)
}

static WRITER_PANICS: AtomicU64 = AtomicU64::new(0);

/// Runs what is expected to make foreign code panic, without its message in the output of this thread, and
/// says whether it did.
///
/// # Errors
/// What it panicked with.
pub fn quietly<T>(run: impl FnOnce() -> T) -> thread::Result<T> {
    thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name() == Some("store-writer") {
                WRITER_PANICS.fetch_add(1, Ordering::SeqCst);
            } else if !QUIET.get() {
                loud(info);
            }
        }));
    });
    let before = QUIET.replace(true);
    let result = panic::catch_unwind(panic::AssertUnwindSafe(run));
    QUIET.set(before);
    result
}
