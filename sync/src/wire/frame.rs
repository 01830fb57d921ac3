//! Frames: one message, one byte of format before it, at most 256 KiB.
//!
//! The transport gives a frame its length. Format 1 is plain CBOR; compressed frames will be another
//! number, so that a reader which does not know it says so instead of guessing.

use super::Message;

/// Largest frame, format byte included.
pub const MAX_FRAME: usize = 256 << 10;

/// Most items of one `Log` message.
pub const MAX_ITEMS: usize = 4_096;

const PLAIN: u8 = 1;

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
    #[error("frame has format {0}, this program knows 1")]
    Format(u8),
    /// Not a message.
    #[error("frame cannot be decoded: {0}")]
    Decode(String),
    /// More items than a message may have.
    #[error("log message has {0} items, at most {MAX_ITEMS} are taken")]
    TooManyItems(usize),
}

/// Encodes a message.
///
/// # Panics
/// When the frame would be longer than [`MAX_FRAME`]: whoever makes messages bounds them.
pub fn encode(message: &Message) -> Vec<u8> {
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
    let message = match bytes.split_first() {
        None => return Err(FrameError::Empty),
        Some((&PLAIN, body)) => {
            minicbor::decode::<Message>(body).map_err(|error| FrameError::Decode(error.to_string()))?
        }
        Some((&format, _)) => return Err(FrameError::Format(format)),
    };
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
        }
    }

    #[test]
    fn h5_the_first_words_of_a_reconnect_fit_256_bytes() {
        let bytes = encode(&hello());
        assert_eq!(decode(&bytes), Ok(hello()));
        expect_test::expect!["181"].assert_eq(&bytes.len().to_string());
    }

    #[test]
    fn p15_bytes_that_are_no_message_are_refused_in_words() {
        let check =
            |bytes: &[u8], expected: &str| assert_eq!(decode(bytes).unwrap_err().to_string(), expected);
        check(&[], "frame is empty");
        check(&[9, 0], "frame has format 9, this program knows 1");
        check(&vec![1; MAX_FRAME + 1], "frame of 262145 bytes is longer than 262144");
        assert!(matches!(decode(&[1, 0x82, 0x18, 0xff, 0xa0]), Err(FrameError::Decode(_))));
        assert!(matches!(decode(&encode(&hello())[..40]), Err(FrameError::Decode(_))));
    }

    #[test]
    fn h6_no_mutation_of_a_frame_panics() {
        let base = encode(&hello());
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).expect("31 bits")
        };
        for _ in 0..20_000 {
            let mut bytes = base.clone();
            for _ in 0..=next() % 3 {
                let at = next() % bytes.len();
                bytes[at] = u8::try_from(next() % 256).expect("a byte");
            }
            bytes.truncate(1 + next() % base.len());
            drop(decode(&bytes));
        }
    }
}
