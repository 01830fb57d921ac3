//! Entries of one journal, each bound to the one before it here, so that none is refused for that alone.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sync::journal::{Head, chain};

fuzz_target!(init: targets::be_quiet(), |data: &[u8]| targets::hunt(|| {
    let mut head: Option<Head> = None;
    for part in targets::parts(data) {
        let Ok(mut entry) = chain::decode(part) else { continue };
        let last = head.filter(|head| head.incarnation == entry.incarnation);
        entry.previous = last.map_or([0; 32], |last| last.hash);
        entry.seq = last.map_or(0, |last| last.seq) + 1;
        let bytes = minicbor::to_vec(&entry).expect("encoding into memory cannot fail");
        match chain::follow(entry.stream, head.as_ref(), &bytes) {
            Ok((again, next)) => {
                assert_eq!(again, entry);
                assert!(chain::follow(entry.stream, Some(&next), &bytes).is_err(), "nothing follows itself");
                head = Some(next);
            }
            Err(chain::ChainError::TooLong(_)) => {}
            Err(error) => panic!("an entry that was bound is refused: {error}"),
        }
    }
}));
