//! Which transport a site dials with: UDP where it passes, TCP where it does not.
//!
//! UDP goes first. TCP follows after [`HEAD_START`] if nothing has answered by then, or soon if TCP is what
//! worked last; whichever comes through first is the connection. [`udp_answers`] is how a site that runs over
//! TCP finds out that it need not.
//!
//! An answer is final. Where somebody speaks who is not our central, or does not want us, no other transport
//! is tried: it would only hide what a person must know.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use quinn::ConnectionError;
use tokio::time::{sleep, timeout};

use super::{
    CENTRAL_NAME, CloseCode, Connection, Transport,
    endpoint::{DialError, Endpoint, IDLE, KEEP_ALIVE, transport},
    tcp, tls,
};

/// What UDP has to itself. A handshake over a bad satellite link takes one round trip and perhaps two
/// retransmissions, after one and two seconds.
const HEAD_START: Duration = Duration::from_secs(4);

/// The same where TCP is what worked last: a round trip and a half around the world.
const SHORT_HEAD_START: Duration = Duration::from_millis(500);

/// Who has not answered after this does not.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// What worked last from here.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Option<Transport>>);

impl Memory {
    fn note(&self, transport: Transport) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(transport);
    }

    fn head_start(&self) -> Duration {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            None | Some(Transport::Quic) => HEAD_START,
            Some(Transport::Tcp) => SHORT_HEAD_START,
        }
    }
}

/// How one attempt failed.
enum Failed {
    /// Somebody is there.
    Answered(DialError),
    /// Nobody is there, as far as one can see from here.
    Silent(String),
}

/// Connects to central at `address` over whichever transport comes through, and goes through the handshake.
///
/// A refusal of *our* certificate arrives later, on the connection: in TLS 1.3 the client finishes first.
///
/// # Errors
/// When nobody answers for ten seconds, or the other side is not the central that `tls` demands.
#[expect(clippy::disallowed_methods, reason = "the head start is time")]
pub async fn dial(
    endpoint: &Endpoint,
    address: SocketAddr,
    tls: tls::Client,
) -> Result<Connection, DialError> {
    let nobody = format!("no answer within {} s", ANSWER.as_secs());
    let (mut udp_failed, mut tcp_failed) = (None, None);
    let dialed = async {
        let (udp, tcp) = (over_udp(endpoint, address, &tls), over_tcp(endpoint, address, &tls));
        let tcp = async {
            sleep(endpoint.memory.head_start()).await;
            tcp.await
        };
        tokio::pin!(udp, tcp);
        loop {
            let (outcome, failed) = tokio::select! {
                biased;
                outcome = &mut udp, if udp_failed.is_none() => (outcome, &mut udp_failed),
                outcome = &mut tcp, if tcp_failed.is_none() => (outcome, &mut tcp_failed),
                else => return None,
            };
            match outcome {
                Ok(connection) => return Some(Ok(connection)),
                Err(Failed::Answered(error)) => return Some(Err(error)),
                Err(Failed::Silent(why)) => *failed = Some(why),
            }
        }
    };
    let dialed = timeout(ANSWER, dialed).await.ok().flatten();
    let silent = |why: Option<String>| why.unwrap_or_else(|| nobody.clone());
    let dialed = dialed.unwrap_or_else(|| {
        Err(DialError::Nobody { udp: silent(udp_failed.take()), tcp: silent(tcp_failed.take()) })
    });
    if let Ok(connection) = &dialed {
        endpoint.memory.note(connection.transport());
    }
    dialed
}

/// Whether central answers over UDP. If it does, the next [`dial`] begins with that.
pub(super) async fn udp_answers(endpoint: &Endpoint, address: SocketAddr, tls: &tls::Client) -> bool {
    match timeout(ANSWER, over_udp(endpoint, address, tls)).await {
        Ok(Ok(connection)) => {
            CloseCode::Done.close(&connection, "only to see whether UDP passes");
            endpoint.memory.note(Transport::Quic);
            true
        }
        Ok(Err(_)) | Err(_) => false,
    }
}

async fn over_udp(endpoint: &Endpoint, address: SocketAddr, tls: &tls::Client) -> Result<Connection, Failed> {
    let mut config = quinn::ClientConfig::new(tls.quic.clone());
    config.transport_config(transport(KEEP_ALIVE, IDLE));
    let connecting = endpoint.quic.connect_with(config, address, CENTRAL_NAME);
    // For example IPv6 from an IPv4 socket.
    let connecting = connecting.map_err(|error| Failed::Silent(error.to_string()))?;
    match connecting.await {
        Ok(connection) => Ok(Connection::over_quic(connection)),
        Err(error @ (ConnectionError::TimedOut | ConnectionError::LocallyClosed)) => {
            Err(Failed::Silent(error.to_string()))
        }
        Err(error) => Err(Failed::Answered(error.into())),
    }
}

async fn over_tcp(endpoint: &Endpoint, address: SocketAddr, tls: &tls::Client) -> Result<Connection, Failed> {
    match tcp::dial(address, tls, endpoint.lifeline()).await {
        Ok(connection) => Ok(Connection::over_tcp(connection)),
        Err(tcp::DialError::Nobody(error)) => Err(Failed::Silent(error.to_string())),
        Err(tcp::DialError::Answered(error)) => Err(Failed::Answered(error.into())),
    }
}
