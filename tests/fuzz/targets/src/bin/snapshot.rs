//! A whole document: kind, id, and the body of a document chunk.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sync::ingress::snapshot;

fuzz_target!(init: targets::be_quiet(), |data: &[u8]| targets::hunt(|| {
    let Some((kind, id, body)) = targets::document(data) else { return };
    if let Ok(changes) = snapshot::read(kind, id, &targets::seal(0, body)) {
        targets::take(kind, id, &changes);
    }
}));
