//! What a hostile site puts on the wire: frames that its own honest engine would not send.
//!
//! The certificate is right, the session is established, the bytes are not. Everything in here is found by
//! looking at the bytes alone; writing what a site may not write needs no tampering and is not in here.

use sync::wire::{self, Item, Message};

use crate::random::Random;

/// Makes a frame worse and says how; nothing when this frame offers nothing.
pub fn tamper(random: &mut Random, frame: &[u8]) -> Option<(Vec<u8>, &'static str)> {
    let message = wire::decode(frame).ok()?;
    match message {
        Message::Log { from, mut items, seal } => {
            let index = usize::try_from(random.below(items.len() as u64)).ok()?;
            let mut item: Item = minicbor::decode(&items[index]).ok()?;
            let what = spoil(random, &mut item)?;
            items[index] = item.to_bytes().into();
            Some((wire::encode(&Message::Log { from, items, seal }), what))
        }
        Message::Ack { position } => {
            let position = position.wrapping_add(1_000 + random.below(1 << 40));
            Some((wire::encode(&Message::Ack { position }), "an acknowledgement of what was never sent"))
        }
        Message::Heartbeat { .. } => {
            let mut bytes = frame.to_vec();
            let index = usize::try_from(random.below(bytes.len() as u64)).ok()?;
            bytes[index] ^= 1 << random.below(8);
            Some((bytes, "a frame with a flipped bit"))
        }
        Message::Compare { pulled, pushed, mut fingerprint } => {
            fingerprint.sum ^= 1;
            Some((wire::encode(&Message::Compare { pulled, pushed, fingerprint }), "a wrong fingerprint"))
        }
        _ => None,
    }
}

fn spoil(random: &mut Random, item: &mut Item) -> Option<&'static str> {
    if let Some(change) = &mut item.change {
        let index = usize::try_from(random.below(change.len() as u64)).ok()?;
        change[index] ^= 1 << random.below(8);
        return Some("a change with a flipped bit");
    }
    let entry = item.entry.as_mut()?;
    if random.chance(50) {
        entry.truncate(entry.len() / 2);
        return Some("half a journal entry");
    }
    let index = usize::try_from(random.below(entry.len() as u64)).ok()?;
    entry[index] ^= 1 << random.below(8);
    Some("a journal entry with a flipped bit")
}
