//! Mutations of bytes that mean nothing to whoever makes them.

use super::draw;
use crate::{corpus::pick, random::Random};

/// Changes, takes out, doubles or adds some bytes.
pub fn mutate(random: &mut Random, honest: &[u8]) -> Vec<u8> {
    let mut bytes = honest.to_vec();
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            bytes.push(0);
        }
        let at = pick(random, bytes.len());
        let byte = bytes[at];
        match random.below(12) {
            0..2 => bytes[at] = byte_of(random),
            2..5 => bytes[at] = byte ^ (1 << random.below(8)),
            5 => bytes[at] = byte.wrapping_add(1),
            6 => bytes[at] = byte.wrapping_sub(1),
            7..9 => bytes[at] = *draw(random, &[0, 1, 0x3f, 0x40, 0x7e, 0x7f, 0x80, 0xff]),
            9 => {
                let end = (at + 1 + pick(random, 16)).min(bytes.len());
                bytes.drain(at..end);
            }
            10 => {
                let end = (at + 1 + pick(random, 16)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => {
                let new: Vec<u8> = (0..=random.below(4)).map(|_| byte_of(random)).collect();
                bytes.splice(at..at, new);
            }
        }
    }
    bytes
}

fn byte_of(random: &mut Random) -> u8 {
    u8::try_from(random.below(256)).expect("a byte")
}
