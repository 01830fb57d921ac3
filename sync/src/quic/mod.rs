//! The one part of this crate that touches a socket: QUIC with mutual TLS.
//!
//! From the ground up: [`tls`] says who may speak to whom, [`endpoint`] owns the UDP socket and lets peers
//! in, `knock` is how a central that starts is noticed, [`connection`] is what a session runs over, [`stream`] cuts
//! streams into frames and carries blobs, [`enrol`] is how a site gets its certificate; [`driver`] runs the engine
//! over it, fed by `feed`, speaking through `line`.
//! Two protocols share the port, told apart by ALPN: [`SESSION`] between an enrolled site and central, and
//! [`ENROLMENT`] for a machine that has no valid certificate yet.
//!
//! Deliberately absent: the engine's rules, files, and the wall clock. Instants come from a [`tls::WallClock`]
//! that the caller brings. Randomness is made here only where the TLS and QUIC libraries make it themselves:
//! private keys, handshake secrets, and connection ids.

pub mod tls;

pub mod connection;

mod tcp;

mod choice;

mod knock;

pub mod endpoint;

pub mod stream;

pub mod enrol;

mod feed;
mod line;
pub mod driver;

use std::io;

use quinn::{ConnectionError, VarInt};

pub use connection::{Connection, RecvStream, SendStream, Transport};
pub use endpoint::Endpoint;
pub use knock::UdpPath;

/// ALPN of a session between a site and central (RFC 7301).
pub const SESSION: &[u8] = b"holdfast/1";

/// ALPN of enrolment, and of renewal with an expired certificate.
pub const ENROLMENT: &[u8] = b"holdfast-enrol/1";

/// Name in central's certificate (a DNS SAN), whatever address it is reached at.
pub const CENTRAL_NAME: &str = "central.holdfast";

/// Port, UDP and TCP, that central listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 7443;

/// Why one side closed a connection: the application error code of QUIC's CONNECTION_CLOSE
/// (RFC 9000 §19.19). Numbers are never used again for something else; those from 1 to 255 are the engine's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseCode {
    /// Nothing is wrong; the work is done.
    Done,
    /// A session needs a site certificate and none was shown.
    NoCertificate,
    /// The certificate is from the right authority but does not name a site.
    NotASite,
    /// The site certificate has expired; it can still be renewed.
    CertificateExpired,
    /// The site was removed from the fleet.
    Revoked,
    /// The peer broke the protocol: a frame too large, bytes that do not decode.
    Protocol,
    /// This program is being stopped; come back soon.
    Stopping,
    /// Too much to do; come back later.
    Busy,
}

impl CloseCode {
    const ALL: [Self; 8] = [
        Self::Done,
        Self::NoCertificate,
        Self::NotASite,
        Self::CertificateExpired,
        Self::Revoked,
        Self::Protocol,
        Self::Stopping,
        Self::Busy,
    ];

    /// The number on the wire.
    pub fn code(self) -> VarInt {
        VarInt::from_u32(self.number())
    }

    /// The number as an integer.
    pub fn number(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::NoCertificate => 257,
            Self::NotASite => 258,
            Self::CertificateExpired => 259,
            Self::Revoked => 260,
            Self::Protocol => 261,
            Self::Stopping => 262,
            Self::Busy => 263,
        }
    }

    /// Closes `connection` at once with this code; `reason` is for the log of the other side.
    pub fn close(self, connection: &Connection, reason: &str) {
        connection.close(self.number(), reason);
    }

    /// Returns the code and reason with which the peer closed; nothing when the connection ended any other
    /// way or the code is not one of ours.
    pub fn of(error: &ConnectionError) -> Option<(Self, String)> {
        let ConnectionError::ApplicationClosed(close) = error else {
            return None;
        };
        let code = Self::ALL.into_iter().find(|code| code.code() == close.error_code)?;
        Some((code, String::from_utf8_lossy(&close.reason).into_owned()))
    }
}

/// Finds the loss of the connection under an error that came through `AsyncRead` or `AsyncWrite`.
fn connection_error(error: &io::Error) -> Option<&ConnectionError> {
    let inner = error.get_ref()?;
    if let Some(quinn::ReadError::ConnectionLost(lost)) = inner.downcast_ref() {
        return Some(lost);
    }
    match inner.downcast_ref() {
        Some(quinn::WriteError::ConnectionLost(lost)) => Some(lost),
        _ => None,
    }
}

#[cfg(test)]
mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_close_code_has_its_own_number_outside_the_engines() {
        let numbers: Vec<u64> = CloseCode::ALL.iter().map(|code| code.code().into_inner()).collect();
        assert_eq!(numbers, [0, 257, 258, 259, 260, 261, 262, 263]);
    }
}
