//! One frame as it travels, and the items in it. What decodes comes back from its own encoding.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sync::{
    ingress,
    journal::chain,
    wire::{self, Item, Message, frame},
};

fuzz_target!(init: targets::be_quiet(), |data: &[u8]| targets::hunt(|| {
    let Ok(message) = wire::decode(data) else { return };
    let plain = minicbor::to_vec(&message).expect("encoding into memory cannot fail");
    // A frame that was packed, or numbers that were written longer than need be, may fit only as they were.
    if plain.len() < wire::MAX_FRAME {
        assert_eq!(wire::decode(&frame::encode_plain(&message)).as_ref(), Ok(&message));
        assert_eq!(wire::decode(&frame::encode(&message)).as_ref(), Ok(&message));
    }
    let Message::Log { items, .. } = message else { return };
    for item in items.iter().filter_map(|item| minicbor::decode::<Item>(item).ok()) {
        drop(item.change.map(|change| ingress::parse(&change)));
        drop(item.entry.map(|entry| chain::decode(&entry)));
    }
}));
