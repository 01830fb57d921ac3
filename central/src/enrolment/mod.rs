//! How a machine becomes a site of this fleet.
//!
//! [`ca`] is the fleet's own certificate authority, `seat` who it is now, [`token`] the invitations, [`certificate`] what a machine
//! asks to have certified. The exchange itself is [`sync::quic::enrol`]; the one who joins these parts with
//! the store implements its [`Desk`](sync::quic::enrol::Desk).
//!
//! Deliberately absent: where tokens are stored, who may make them, and the journal. Instants and randomness
//! are given; only private keys are made here, by the library that signs with them.

pub mod ca;

pub(crate) mod seat;

pub mod token;

pub mod certificate;

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        net::{Ipv4Addr, SocketAddr},
        sync::{
            Arc, Mutex,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    use expect_test::{Expect, expect};
    use sync::{
        id::SiteId,
        quic::{
            CloseCode, Endpoint,
            endpoint::{self, Guest, Keys, Limits, Listener},
            enrol::{
                Desk, EnrolError, Enrolled, Issued, Refusal, RefusalCode, Secret, Token, enrol, renew, serve,
            },
            tls::{self, Protocol, SiteCertificate, SiteKey, WallClock},
        },
        time::Timestamp,
    };
    use tempfile::TempDir;

    use super::{
        ca::Authority,
        certificate::KeyRequest,
        token::{self, TokenRecord, judge},
    };

    const LYON: SiteId = SiteId([7; 16]);
    /// 2026-11-20 at noon.
    const NOON: Timestamp = Timestamp(1_795_176_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    /// The smallest central: an authority, tokens in memory, and a clock that the test moves.
    struct Central {
        authority: Authority,
        tokens: Mutex<BTreeMap<[u8; 32], TokenRecord>>,
        clock: AtomicU64,
        serial: AtomicU64,
    }

    impl Central {
        fn open(folder: &TempDir) -> Arc<Self> {
            Arc::new(Self {
                authority: Authority::open_or_create(folder.path(), [1; 16], NOON).unwrap(),
                tokens: Mutex::default(),
                clock: AtomicU64::new(NOON.as_ms()),
                serial: AtomicU64::new(1),
            })
        }

        fn now(&self) -> Timestamp {
            Timestamp(self.clock.load(Ordering::SeqCst))
        }

        fn wait(&self, duration: Duration) {
            self.clock.store(self.now().after(duration).as_ms(), Ordering::SeqCst);
        }

        fn wall_clock(self: &Arc<Self>) -> WallClock {
            let central = self.clone();
            Arc::new(move || central.now())
        }

        fn invite(&self, entropy: u8) -> Token {
            let fingerprint = self.authority.fingerprint();
            let (token, record) = token::mint([entropy; 32], fingerprint, LYON, "lyon", self.now());
            self.tokens.lock().unwrap().insert(record.hash, record);
            token
        }

        fn next_serial(&self) -> [u8; 16] {
            u128::from(self.serial.fetch_add(1, Ordering::SeqCst)).to_be_bytes()
        }

        fn issue(&self, site: SiteId, request: &KeyRequest) -> Issued {
            let leaf = self.authority.issue_site(site, request, self.next_serial(), self.now()).unwrap();
            let authority = self.authority.certificate().clone();
            Issued { site, chain: vec![leaf], authority, clock: self.now() }
        }

        /// Listens, serves applicants, and ends sessions with [`CloseCode::Done`].
        fn listen(self: &Arc<Self>) -> SocketAddr {
            let identity = self.authority.issue_server(&[], self.next_serial(), self.now()).unwrap();
            let authorities = [self.authority.certificate().clone()];
            let tls = tls::server_config(identity, &authorities, self.wall_clock()).unwrap();
            let keys = Keys::from_entropy([1; 64]);
            let listener = Listener::bind(loopback(), tls, keys, Limits::default()).unwrap();
            let address = listener.local_address().unwrap();
            let central = self.clone();
            tokio::spawn(async move {
                while let Some(newcomer) = listener.accept().await {
                    match newcomer.admit(|| central.now()).await {
                        Ok(Guest::Enrolment(applicant)) => drop(serve(applicant, &*central).await),
                        Ok(Guest::Session { connection, peer }) => {
                            CloseCode::Done.close(&connection, &format!("good day, {}", peer.site));
                        }
                        // The peer was told; nobody else is here to listen.
                        Ok(Guest::Content { .. }) | Err(_) => {}
                    }
                }
            });
            address
        }
    }

    impl Desk for Central {
        async fn redeem(
            &self,
            secret: &Secret,
            _: &str,
            _: Option<SiteId>,
            request: &[u8],
        ) -> Result<Issued, Refusal> {
            let request = parse(request)?;
            let mut tokens = self.tokens.lock().unwrap();
            let record = tokens.get_mut(&token::hash(secret));
            let verdict = judge(record.as_deref(), request.digest(), self.now());
            let (record, refusal) = (record, verdict.refusal());
            if let Some(refusal) = refusal {
                return Err(refusal);
            }
            let record = record.expect("only a token that exists is accepted");
            record.spend(request.digest(), self.now());
            Ok(self.issue(record.site, &request))
        }

        async fn renew(&self, peer: &SiteCertificate, request: &[u8]) -> Result<Issued, Refusal> {
            Ok(self.issue(peer.site, &parse(request)?))
        }
    }

    fn parse(request: &[u8]) -> Result<KeyRequest, Refusal> {
        KeyRequest::parse(request).map_err(|error| Refusal::new(RefusalCode::Malformed, error.to_string()))
    }

    fn loopback() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 0).into()
    }

    /// A site that has nothing but a key.
    struct Site {
        endpoint: Endpoint,
        key: SiteKey,
        clock: WallClock,
    }

    impl Site {
        fn new(central: &Arc<Central>) -> Self {
            let endpoint = endpoint::client(loopback(), &Keys::from_entropy([2; 64])).unwrap();
            Self { endpoint, key: SiteKey::generate().unwrap(), clock: central.wall_clock() }
        }

        async fn enrol(&self, address: SocketAddr, token: &Token) -> Result<Enrolled, EnrolError> {
            enrol(&self.endpoint, address, token, "lyon", None, &self.key, self.clock.clone()).await
        }

        async fn refused(&self, address: SocketAddr, token: &Token, expected: Expect) {
            expected.assert_eq(&self.enrol(address, token).await.unwrap_err().explain());
        }

        /// How central ends the session that this site opens.
        async fn session(&self, address: SocketAddr, enrolled: &Enrolled) -> String {
            let authorities = [enrolled.authority.clone()];
            let identity = self.key.identity(enrolled.chain.clone());
            let config =
                tls::client_config(identity, &authorities, Protocol::Session, self.clock.clone()).unwrap();
            let session = endpoint::dial(&self.endpoint, address, config).await.unwrap();
            match CloseCode::of(&session.closed().await) {
                Some((code, reason)) => format!("{code:?}: {reason}"),
                None => "no word".into(),
            }
        }
    }

    #[tokio::test]
    async fn p3_a_token_makes_one_machine_a_site_even_if_the_answer_is_lost() {
        let folder = TempDir::new().unwrap();
        let central = Central::open(&folder);
        let address = central.listen();
        let token = central.invite(9);
        let lyon = Site::new(&central);
        let first = lyon.enrol(address, &token).await.unwrap();
        assert_eq!(first.site, LYON);
        expect!["Done: good day, 07070707070707070707070707070707"]
            .assert_eq(&lyon.session(address, &first).await);

        central.wait(Duration::from_secs(60));
        let again = lyon.enrol(address, &token).await.unwrap();
        assert_ne!(again.chain, first.chain, "another certificate for the same key");

        Site::new(&central)
            .refused(
                address,
                &token,
                expect![[r#"
                    error: central does not accept the token
                      why: it was used at 2026-11-20T12:00:00.000Z and is good for one machine
                      next: ask central for a new token; if nobody here used this one, say so there"#]],
            )
            .await;
        Site::new(&central)
            .refused(
                address,
                &Token { secret: Secret([8; 32]), ..token },
                expect![[r#"
                    error: central does not accept the token
                      why: central knows no such token
                      next: check that the token was copied whole, or ask central for a new one"#]],
            )
            .await;
        let token = central.invite(10);
        central.wait(DAY + Duration::from_millis(1));
        Site::new(&central)
            .refused(
                address,
                &token,
                expect![[r#"
                    error: central does not accept the token
                      why: it was good until 2026-11-21T12:01:00.000Z, for one day
                      next: ask central for a new token"#]],
            )
            .await;
    }

    #[tokio::test]
    async fn p15_a_site_that_was_away_for_two_years_renews_and_is_back() {
        let folder = TempDir::new().unwrap();
        let central = Central::open(&folder);
        let address = central.listen();
        let lyon = Site::new(&central);
        let enrolled = lyon.enrol(address, &central.invite(9)).await.unwrap();

        // Central is restarted meanwhile, with the authority that it kept.
        central.wait(2 * 365 * DAY);
        let restarted = Central::open(&folder);
        restarted.wait(2 * 365 * DAY);
        assert_eq!(restarted.authority.fingerprint(), central.authority.fingerprint());
        let address = restarted.listen();
        expect!["CertificateExpired: the site certificate expired at 2027-11-20T12:00:00.000Z; renew it"]
            .assert_eq(&lyon.session(address, &enrolled).await);

        let identity = lyon.key.identity(enrolled.chain.clone());
        let authorities = [enrolled.authority.clone()];
        let clock = lyon.clock.clone();
        let renewed = renew(&lyon.endpoint, address, identity, &authorities, &lyon.key, clock).await.unwrap();
        expect!["Done: good day, 07070707070707070707070707070707"]
            .assert_eq(&lyon.session(address, &renewed).await);
    }
}
