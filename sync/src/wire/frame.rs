//! Frames: one message, one byte of format before it, at most 256 KiB, also when unpacked.
//!
//! The transport gives a frame its length. Format 1 is plain CBOR, format 2 the same compressed with zstd
//! and the dictionary that is shipped with the program; a reader that does not know a format says so
//! instead of guessing. Each frame is compressed by itself, so a lost session leaves no state behind, and
//! contexts are lent from a pool: one per session would cost gigabytes at a thousand sites.

use std::sync::{Mutex, PoisonError};

use zstd::bulk::{Compressor, Decompressor};

use super::Message;

/// Largest frame, format byte included.
pub const MAX_FRAME: usize = 256 << 10;

/// Most items of one `Log` message.
pub const MAX_ITEMS: usize = 4_096;

const PLAIN: u8 = 1;
const PACKED: u8 = 2;

/// Frames below this are not worth packing.
const MIN_PACKED: usize = 96;

/// Trained from logs of simulated sites (`cargo bench -p tests --bench dictionary` makes it anew). A frame names
/// the dictionary that it needs by its id; another one will be another file beside this.
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");

/// Level of zstd's default; higher ones cost more time than the WAN gives back.
const LEVEL: i32 = 3;

/// What packs and unpacks.
struct Press {
    pack: Compressor<'static>,
    unpack: Decompressor<'static>,
}

/// Presses that nobody uses just now: as many as threads ever packed at once.
static POOL: Mutex<Vec<Press>> = Mutex::new(Vec::new());

fn with_press<T>(work: impl FnOnce(&mut Press) -> T) -> std::io::Result<T> {
    let lent = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut press = match lent {
        Some(press) => press,
        None => Press {
            pack: Compressor::with_dictionary(LEVEL, DICTIONARY)?,
            unpack: Decompressor::with_dictionary(DICTIONARY)?,
        },
    };
    let done = work(&mut press);
    POOL.lock().unwrap_or_else(PoisonError::into_inner).push(press);
    Ok(done)
}

/// Bytes that are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MAX_FRAME`].
    #[error("frame of {0} bytes is longer than {MAX_FRAME}")]
    TooLong(usize),
    /// No byte at all.
    #[error("frame is empty")]
    Empty,
    /// A format that this program does not know.
    #[error("frame has format {0}, this program knows 1 and 2")]
    Format(u8),
    /// Not what the dictionary packs, or more than a frame may hold.
    #[error("frame cannot be unpacked: {0}")]
    Unpack(String),
    /// Not a message.
    #[error("frame cannot be decoded: {0}")]
    Decode(String),
    /// More items than a message may have.
    #[error("log message has {0} items, at most {MAX_ITEMS} are taken")]
    TooManyItems(usize),
}

/// Encodes a message, packed where that is shorter.
///
/// # Panics
/// When the frame would be longer than [`MAX_FRAME`]: whoever makes messages bounds them.
pub fn encode(message: &Message) -> Vec<u8> {
    let plain = encode_plain(message);
    if plain.len() < MIN_PACKED {
        return plain;
    }
    // Without memory for a context the plain frame does as well.
    let packed = with_press(|press| press.pack.compress(&plain[1..])).and_then(|packed| packed);
    match packed {
        Ok(packed) if packed.len() + 1 < plain.len() => {
            let mut frame = Vec::with_capacity(packed.len() + 1);
            frame.push(PACKED);
            frame.extend_from_slice(&packed);
            frame
        }
        Ok(_) | Err(_) => plain,
    }
}

/// About how much of a frame these bytes take once they are packed.
pub fn weight(bytes: &[u8]) -> usize {
    let packed = with_press(|press| press.pack.compress(bytes)).and_then(|packed| packed);
    packed.map_or(bytes.len(), |packed| packed.len())
}

/// Encodes a message as it is.
///
/// # Panics
/// As [`encode`].
pub fn encode_plain(message: &Message) -> Vec<u8> {
    let mut bytes = vec![PLAIN];
    minicbor::encode(message, &mut bytes).expect("encoding into memory cannot fail");
    assert!(bytes.len() <= MAX_FRAME, "messages are made to fit a frame");
    bytes
}

/// Decodes a frame.
///
/// # Errors
/// What is wrong with it. No bytes panic.
pub fn decode(bytes: &[u8]) -> Result<Message, FrameError> {
    if bytes.len() > MAX_FRAME {
        return Err(FrameError::TooLong(bytes.len()));
    }
    let unpacked;
    let body = match bytes.split_first() {
        None => return Err(FrameError::Empty),
        Some((&PLAIN, body)) => body,
        Some((&PACKED, packed)) => {
            // The buffer is bounded, whatever the frame says of itself.
            let done = with_press(|press| press.unpack.decompress(packed, MAX_FRAME));
            let done = done.and_then(|unpacked| unpacked);
            unpacked = done.map_err(|error| FrameError::Unpack(error.to_string()))?;
            &unpacked[..]
        }
        Some((&format, _)) => return Err(FrameError::Format(format)),
    };
    let message = minicbor::decode::<Message>(body).map_err(|error| FrameError::Decode(error.to_string()))?;
    match &message {
        Message::Log { items, .. } if items.len() > MAX_ITEMS => Err(FrameError::TooManyItems(items.len())),
        _ => Ok(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::{Incarnation, SiteId},
        time::Timestamp,
        wire::{Cursor, Fingerprint, Rolling, Seal, version},
    };

    fn hello() -> Message {
        Message::Hello {
            versions: version::OURS,
            site: SiteId([1; 16]),
            incarnation: Incarnation([2; 16]),
            policy_epoch: 7,
            pulled: Cursor { position: 70_000, rolling: Rolling([3; 16]) },
            pushed: Cursor { position: 90_000, rolling: Rolling([4; 16]) },
            fingerprint: Fingerprint { changes: 123_456, sum: u128::MAX, heads: Some(1) },
            clock: Timestamp(1_795_000_000_000),
            central: Some(Incarnation([5; 16])),
            seal: Some(Seal([6; 16])),
            plain: None,
            log: Some(0),
        }
    }

    #[test]
    fn h5_the_first_words_of_a_reconnect_fit_256_bytes() {
        // Plain: real ids and hashes hardly pack.
        let bytes = encode_plain(&hello());
        assert_eq!(decode(&bytes), Ok(hello()));
        expect_test::expect!["183"].assert_eq(&bytes.len().to_string());
    }

    #[test]
    fn h6_a_frame_that_unpacks_to_more_than_a_frame_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        assert!(bomb.len() < MAX_FRAME);
        let frame = [&[PACKED][..], &bomb].concat();
        assert!(matches!(decode(&frame), Err(FrameError::Unpack(_))));
        assert!(matches!(decode(&[PACKED, 1, 2, 3]), Err(FrameError::Unpack(_))));
    }

    #[test]
    fn p15_bytes_that_are_no_message_are_refused_in_words() {
        let check =
            |bytes: &[u8], expected: &str| assert_eq!(decode(bytes).unwrap_err().to_string(), expected);
        check(&[], "frame is empty");
        check(&[9, 0], "frame has format 9, this program knows 1 and 2");
        check(&vec![1; MAX_FRAME + 1], "frame of 262145 bytes is longer than 262144");
        assert!(matches!(decode(&[1, 0x82, 0x18, 0xff, 0xa0]), Err(FrameError::Decode(_))));
        assert!(matches!(decode(&encode_plain(&hello())[..40]), Err(FrameError::Decode(_))));
    }

    #[test]
    fn h6_no_mutation_of_a_frame_panics() {
        for base in [encode_plain(&hello()), encode(&hello())] {
            mutate(&base);
        }
    }

    fn mutate(base: &[u8]) {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).expect("31 bits")
        };
        for _ in 0..20_000 {
            let mut bytes = base.to_vec();
            for _ in 0..=next() % 3 {
                let at = next() % bytes.len();
                bytes[at] = u8::try_from(next() % 256).expect("a byte");
            }
            bytes.truncate(1 + next() % base.len());
            drop(decode(&bytes));
        }
    }
}
