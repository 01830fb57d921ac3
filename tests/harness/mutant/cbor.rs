//! Mutations of CBOR as a tree: what messages, items and journal entries are made of.
//!
//! Byte strings are looked into: an item inside a message, a change inside an item, an entry inside an item are
//! mutated as what they are, a change with a new checksum.

use super::{bytes, chunk, draw};
use crate::{
    corpus::{Corpus, pick},
    random::Random,
};

/// Deeper than anything that is said.
const MAX_DEPTH: usize = 64;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Cbor {
    /// A number that is not negative.
    Number(u64),
    /// -1 less this number.
    Negative(u64),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Text, perhaps not UTF-8.
    Text(Vec<u8>),
    /// Values in order.
    Array(Vec<Cbor>),
    /// Keys and values in order.
    Map(Vec<(Cbor, Cbor)>),
    /// A tag and its value.
    Tagged(u64, Box<Cbor>),
    /// Yes, no, null and what else is simple.
    Simple(u64),
}

/// Parses one value that is all of the bytes.
pub fn parse(bytes: &[u8]) -> Option<Cbor> {
    let mut rest = bytes;
    let value = value(&mut rest, MAX_DEPTH)?;
    rest.is_empty().then_some(value)
}

fn value(rest: &mut &[u8], depth: usize) -> Option<Cbor> {
    let depth = depth.checked_sub(1)?;
    let (major, number) = head(rest)?;
    let length = usize::try_from(number).ok()?;
    Some(match major {
        0 => Cbor::Number(number),
        1 => Cbor::Negative(number),
        2 => Cbor::Bytes(take(rest, length)?.to_vec()),
        3 => Cbor::Text(take(rest, length)?.to_vec()),
        4 => Cbor::Array((0..length).map(|_| value(rest, depth)).collect::<Option<_>>()?),
        5 => {
            let pair = |rest: &mut &[u8]| Some((value(rest, depth)?, value(rest, depth)?));
            Cbor::Map((0..length).map(|_| pair(rest)).collect::<Option<_>>()?)
        }
        6 => Cbor::Tagged(number, Box::new(value(rest, depth)?)),
        _ => Cbor::Simple(number),
    })
}

fn head(rest: &mut &[u8]) -> Option<(u8, u64)> {
    let first = take(rest, 1)?[0];
    let number = match first & 0x1f {
        small @ 0..=23 => u64::from(small),
        size @ 24..=27 => {
            let bytes = take(rest, 1 << (size - 24))?;
            bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
        }
        _ => return None,
    };
    Some((first >> 5, number))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

/// Encodes a value, each number in its shortest form.
pub fn encode(value: &Cbor) -> Vec<u8> {
    let mut bytes = Vec::new();
    push(&mut bytes, value);
    bytes
}

fn push(bytes: &mut Vec<u8>, value: &Cbor) {
    match value {
        Cbor::Number(number) => push_head(bytes, 0, *number),
        Cbor::Negative(number) => push_head(bytes, 1, *number),
        Cbor::Bytes(content) => {
            push_head(bytes, 2, content.len() as u64);
            bytes.extend(content);
        }
        Cbor::Text(content) => {
            push_head(bytes, 3, content.len() as u64);
            bytes.extend(content);
        }
        Cbor::Array(values) => {
            push_head(bytes, 4, values.len() as u64);
            values.iter().for_each(|value| push(bytes, value));
        }
        Cbor::Map(pairs) => {
            push_head(bytes, 5, pairs.len() as u64);
            pairs.iter().for_each(|(key, value)| {
                push(bytes, key);
                push(bytes, value);
            });
        }
        Cbor::Tagged(tag, value) => {
            push_head(bytes, 6, *tag);
            push(bytes, value);
        }
        Cbor::Simple(number) => push_head(bytes, 7, *number),
    }
}

fn push_head(bytes: &mut Vec<u8>, major: u8, number: u64) {
    let be = number.to_be_bytes();
    let (size, tail) = match number {
        0..=23 => (be[7], &be[8..]),
        24..=0xff => (24, &be[7..]),
        0x100..=0xffff => (25, &be[6..]),
        0x1_0000..=0xffff_ffff => (26, &be[4..]),
        _ => (27, &be[..]),
    };
    bytes.push(major << 5 | size);
    bytes.extend(tail);
}

/// Mutates one value of the tree, each with the same chance.
pub fn mutate(random: &mut Random, corpus: &Corpus, tree: &mut Cbor) {
    let count = count(tree);
    let mut left = pick(random, count);
    if let Some(found) = nth(tree, &mut left) {
        worsen(random, corpus, found);
    }
}

fn count(value: &Cbor) -> usize {
    1 + match value {
        Cbor::Array(values) => values.iter().map(count).sum(),
        Cbor::Map(pairs) => pairs.iter().map(|(_, value)| count(value)).sum(),
        Cbor::Tagged(_, value) => count(value),
        _ => 0,
    }
}

fn nth<'a>(value: &'a mut Cbor, left: &mut usize) -> Option<&'a mut Cbor> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Cbor::Array(values) => values.iter_mut().find_map(|value| nth(value, left)),
        Cbor::Map(pairs) => pairs.iter_mut().find_map(|(_, value)| nth(value, left)),
        Cbor::Tagged(_, value) => nth(value, left),
        _ => None,
    }
}

fn worsen(random: &mut Random, corpus: &Corpus, value: &mut Cbor) {
    if random.chance(5) {
        *value = stranger(random);
        return;
    }
    match value {
        Cbor::Number(number) | Cbor::Negative(number) | Cbor::Simple(number) => {
            *number = match random.below(5) {
                0 => number.wrapping_add(1),
                1 => number.wrapping_sub(1),
                2 => {
                    *draw(random, &[0, 1, 23, 24, 255, 1 << 16, 1 << 31, 1 << 32, i64::MAX as u64, u64::MAX])
                }
                3 => random.below(32),
                _ => random.draw(),
            }
        }
        Cbor::Bytes(content) => *content = worse_bytes(random, corpus, content),
        Cbor::Text(content) => {
            *content = match random.below(4) {
                0 => Vec::new(),
                1 => b"x".repeat(pick(random, 20_000)),
                _ => bytes::mutate(random, content),
            }
        }
        Cbor::Array(values) => worse_list(random, values),
        Cbor::Map(pairs) => {
            if !pairs.is_empty() && random.chance(40) {
                let at = pick(random, pairs.len());
                pairs[at].0 = Cbor::Number(random.below(14));
            } else {
                worse_list(random, pairs);
            }
        }
        Cbor::Tagged(tag, _) => *tag = random.below(300),
    }
}

/// Bytes as what they are: a change, an item or entry, or anything.
fn worse_bytes(random: &mut Random, corpus: &Corpus, content: &[u8]) -> Vec<u8> {
    if random.chance(10) {
        return match random.below(3) {
            0 => Vec::new(),
            1 => corpus.any_change(random).bytes.clone(),
            _ => vec![0xff; 1 << random.below(17)],
        };
    }
    if let Some(situation) = corpus.situation_of(content) {
        return super::change(random, corpus, &situation);
    }
    if chunk::split(content).is_some() && content.starts_with(&[0x85, 0x6f, 0x4a, 0x83]) {
        let donor = &corpus.any_change(random).bytes;
        let columns = if random.chance(50) { chunk::columns(random, content, donor) } else { None };
        return columns.unwrap_or_else(|| chunk::reseal(random, content, bytes::mutate));
    }
    match parse(content) {
        Some(mut tree @ (Cbor::Map(_) | Cbor::Array(_))) => {
            mutate(random, corpus, &mut tree);
            encode(&tree)
        }
        _ => bytes::mutate(random, content),
    }
}

fn worse_list<T: Clone>(random: &mut Random, values: &mut Vec<T>) {
    if values.is_empty() {
        return;
    }
    let (from, to) = (pick(random, values.len()), pick(random, values.len()));
    match random.below(4) {
        0 => drop(values.remove(from)),
        1 => values.swap(from, to),
        2 => values.insert(to, values[from].clone()),
        _ => {
            let again = std::iter::repeat_n(values[from].clone(), 1 << random.below(6));
            values.splice(to..to, again);
        }
    }
}

/// A value that does not belong there.
fn stranger(random: &mut Random) -> Cbor {
    match random.below(7) {
        0 => Cbor::Number(random.draw()),
        1 => Cbor::Negative(random.below(300)),
        2 => Cbor::Bytes(random.bytes::<16>().to_vec()),
        3 => Cbor::Text(b"central".to_vec()),
        4 => Cbor::Simple(*draw(random, &[20, 21, 22, 23])),
        5 => Cbor::Tagged(24, Box::new(Cbor::Bytes(vec![0]))),
        // Whoever reads it without a bound on depth runs out of stack.
        _ => (0..2_000).fold(Cbor::Number(0), |inner, _| Cbor::Array(vec![inner])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_parsed_is_encoded_as_it_was() {
        let bytes = [
            &[0x82, 0x05, 0xa2, 0x00, 0x18, 0x64, 0x01, 0x83, 0x20, 0xf6][..],
            &[0x1b, 0, 0, 0, 1, 0, 0, 0, 0],
        ];
        let value = parse(&bytes.concat()).expect("a value");
        assert_eq!(encode(&value), bytes.concat());
        assert_eq!(parse(&[0x9f, 0xff]), None, "what is nowhere written is not parsed either");
    }
}
