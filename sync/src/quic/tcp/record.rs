//! What stands on the TLS stream: records of one byte of kind, three bytes of length (big-endian), and as many
//! bytes. With [`MAX_BODY`] one of them fills one TLS record.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest body, in bytes.
pub(super) const MAX_BODY: usize = (16 << 10) - HEADER;

/// Bytes of kind and length.
const HEADER: usize = 4;

/// Longest reason of a close, in bytes. QUIC has no more room for it than a packet has.
const MAX_REASON: usize = 1_000;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// 0: bytes of the stream.
    Data(Bytes),
    /// 1: the stream ends here.
    End,
    /// 2: the end has arrived, and so has all before it.
    Ended,
    /// 3: nobody here reads what you send.
    Stop,
    /// 4: a sign of life.
    Ping,
    /// 5: the connection is over; an application error code (`u32`, big-endian) and a reason for people.
    Close(u32, String),
}

/// Bytes that are no record: the peer does not speak this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a record of kind {kind} with {length} bytes")]
pub(super) struct NoRecord {
    kind: u8,
    length: usize,
}

impl Record {
    /// Appends the record to what is sent.
    ///
    /// # Panics
    /// When the body is longer than [`MAX_BODY`], which no caller makes.
    pub(super) fn write(&self, buffer: &mut BytesMut) {
        let head = |buffer: &mut BytesMut, kind: u32, length: usize| {
            assert!(length <= MAX_BODY, "a record fits its length");
            buffer.put_u32(kind << 24 | u32::try_from(length).expect("checked above"));
        };
        match self {
            Record::Data(bytes) => {
                head(buffer, 0, bytes.len());
                buffer.put_slice(bytes);
            }
            Record::End => head(buffer, 1, 0),
            Record::Ended => head(buffer, 2, 0),
            Record::Stop => head(buffer, 3, 0),
            Record::Ping => head(buffer, 4, 0),
            Record::Close(code, reason) => {
                let reason = &reason.as_bytes()[..reason.floor_char_boundary(MAX_REASON)];
                head(buffer, 5, 4 + reason.len());
                buffer.put_u32(*code);
                buffer.put_slice(reason);
            }
        }
    }

    /// Takes the first record off what has arrived; nothing if it is not whole yet.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn read(buffer: &mut BytesMut) -> Result<Option<Self>, NoRecord> {
        let Some(head) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let [kind, high, middle, low] = *head;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let no_record = NoRecord { kind, length };
        let fits = match kind {
            0 => length <= MAX_BODY,
            1..=4 => length == 0,
            5 => (4..=4 + MAX_REASON).contains(&length),
            _ => false,
        };
        if !fits {
            return Err(no_record);
        }
        if buffer.len() < HEADER + length {
            return Ok(None);
        }
        buffer.advance(HEADER);
        let mut body = buffer.split_to(length).freeze();
        Ok(Some(match kind {
            0 => Record::Data(body),
            1 => Record::End,
            2 => Record::Ended,
            3 => Record::Stop,
            4 => Record::Ping,
            _ => Record::Close(body.get_u32(), String::from_utf8_lossy(&body).into_owned()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_read_as_it_was_written_however_it_is_cut() {
        let records = [
            Record::Data(Bytes::new()),
            Record::Data(vec![7; MAX_BODY].into()),
            Record::End,
            Record::Ended,
            Record::Stop,
            Record::Ping,
            Record::Close(260, "site lyon left the fleet".into()),
            Record::Close(0, String::new()),
        ];
        let mut wire = BytesMut::new();
        records.iter().for_each(|record| record.write(&mut wire));
        for step in [1, 3, 5_000, wire.len()] {
            let (mut arrived, mut read) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(step) {
                arrived.extend_from_slice(piece);
                while let Some(record) = Record::read(&mut arrived).unwrap() {
                    read.push(record);
                }
            }
            assert_eq!(read, records);
            assert!(arrived.is_empty());
        }
    }

    #[test]
    fn what_is_no_record_is_noticed_by_its_head() {
        for head in [[0, 0, 0x3f, 0xfd], [1, 0, 0, 1], [4, 0xff, 0xff, 0xff], [5, 0, 0, 3], [6, 0, 0, 0]] {
            assert!(Record::read(&mut BytesMut::from(&head[..])).is_err(), "{head:?}");
        }
        assert_eq!(Record::read(&mut BytesMut::from(&[6, 0, 0][..])), Ok(None));
    }

    #[test]
    fn a_long_reason_is_cut_between_two_characters() {
        let mut wire = BytesMut::new();
        Record::Close(1, "é".repeat(900)).write(&mut wire);
        let Some(Record::Close(1, reason)) = Record::read(&mut wire).unwrap() else { panic!("a close") };
        assert_eq!(reason, "é".repeat(500));
    }
}
