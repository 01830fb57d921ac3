//! Changes of one document, one after the other: kind, id, and the bodies of change chunks.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: targets::be_quiet(), |data: &[u8]| targets::hunt(|| {
    let Some((kind, id, rest)) = targets::document(data) else { return };
    let batch: Vec<Vec<u8>> = targets::parts(rest).iter().map(|body| targets::seal(1, body)).collect();
    targets::take(kind, id, &batch);
}));
