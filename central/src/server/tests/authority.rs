//! The fleet moves to a new authority while it works.

use super::*;
use crate::client::{Client, authority_text};

const YEAR: Duration = Duration::from_secs(365 * 86_400);

impl Central {
    fn client(&self, folder: &Path) -> Client {
        let token = folder.join("central").join(ADMIN_TOKEN);
        Client::open(&format!("http://{}", self.server.http()), &token).unwrap()
    }

    /// What `authority show` prints, without digests.
    async fn authority_shown(&self, folder: &Path) -> String {
        let client = self.client(folder);
        let shown = off_runtime(move || client.authority().unwrap()).await;
        let text = authority_text(&shown);
        let line = |line: &str| match line.trim().split_once("fingerprint ") {
            Some(_) => "  fingerprint …\n".to_owned(),
            None => match line.split_once("Holdfast fleet ") {
                Some((who, _)) => format!("{who}Holdfast fleet …\n"),
                None => format!("{line}\n"),
            },
        };
        text.lines().map(line).collect()
    }

    async fn retire(&self, force: bool) -> (u16, Value) {
        self.call("POST", "/authority/retire", Some(json!({ "force": force }))).await
    }
}

/// Whether the site noticed at a session that the authority that it has pinned was succeeded, and how the session
/// was let in.
async fn meets(central: &Central, machine: &Machine, enrolled: &Enrolled) -> Result<bool, String> {
    let dialer = machine.dialer(central.server.quic(), enrolled);
    let tls = dialer.tls.borrow().clone();
    let session = endpoint::dial(&dialer.endpoint, central.server.quic(), tls.clone())
        .await
        .map_err(|error| error.to_string())?;
    // Central takes no stream and ends the session, or turns it away: then it says so.
    let _stream = session.open_bi().await;
    let used = async {
        loop {
            let shown = central.get(&format!("/sites/{}", enrolled.site)).await;
            if shown["certificate"]["used_at"] != Value::Null {
                return;
            }
        }
    };
    tokio::select! {
        closed = session.closed() => match CloseCode::of(&closed) {
            Some(turned) => Err(format!("{turned:?}")),
            None => Err(closed.to_string()),
        },
        () = used => Ok(tls.is_succeeded()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l6_p15_a_fleet_moves_to_a_new_authority_and_nobody_is_left_behind() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    let old = central.authority(folder.path()).fingerprint();
    let [lyon, paris, oslo] = [(); 3].map(|()| Machine::new(&clock));
    let mut enrolled = Vec::new();
    for (name, machine) in [("lyon", &lyon), ("paris", &paris)] {
        central.post("/sites", json!({ "name": name })).await;
        enrolled.push(machine.enrol(&central, &central.invite(name).await).await.unwrap());
    }
    let [at_lyon, at_paris] = &enrolled[..] else { unreachable!("two were enrolled") };

    // The old authority nears its end. Lyon renews as ever, Paris was switched off long ago.
    // A program that runs for so long makes its own certificate anew every day; here it is started again.
    clock.wait(19 * YEAR);
    central.server.stop().await;
    let central = Central::start(folder.path(), &clock).await;
    let at_lyon = lyon.renew(&central, at_lyon).await.unwrap();
    central.post("/sites", json!({ "name": "oslo" })).await;
    let token = central.invite("oslo").await;
    let client = central.client(folder.path());
    let made = off_runtime(move || client.renew_authority().unwrap()).await;
    assert_eq!(made["predecessor"]["fingerprint"], json!(old));
    let (status, again) = central.call("POST", "/authority/renew", None).await;
    assert_eq!(status, 409, "{again}");
    expect![[r#"
        authority Holdfast fleet …
          fingerprint …
          good until 2065-11-10T12:00:00.000Z
          sites certified by it: 0
        predecessor Holdfast fleet …
          fingerprint …
          good until 2046-11-15T12:00:00.000Z
          sites that depend on it: lyon, paris
          unused tokens that name it, by site: oslo
    "#]]
    .assert_eq(&central.authority_shown(folder.path()).await);

    // Who has pinned the old authority believes the new one, and notices.
    assert_eq!(meets(&central, &lyon, &at_lyon).await, Ok(true));
    // So does who holds a token that names the old one; what it pins is the new one.
    assert_eq!(token.fingerprint, old);
    let at_oslo = oslo.enrol(&central, &token).await.unwrap();
    assert_eq!(json!(Digest::of(&at_oslo.authority)), made["fingerprint"]);
    assert_eq!(meets(&central, &oslo, &at_oslo).await, Ok(false));
    let token = central.invite("oslo").await;
    assert_eq!(json!(token.fingerprint), made["fingerprint"]);

    // Nobody is locked out by mistake, and a restart changes nothing.
    let (status, refused) = central.retire(false).await;
    let why = refused["why"].as_str().unwrap_or_default().to_owned();
    assert_eq!((status, why.contains("lyon, paris")), (409, true), "{refused}");
    let moved = lyon.renew(&central, &at_lyon).await.unwrap();
    assert_eq!(moved.authority, at_oslo.authority);
    central.server.stop().await;
    let central = Central::start(folder.path(), &clock).await;
    assert_eq!(meets(&central, &lyon, &moved).await, Ok(false));

    // Two years later the old authority has expired, and so has all that Paris holds. Its battery is empty too.
    clock.wait(2 * YEAR);
    central.server.stop().await;
    let central = Central::start(folder.path(), &clock).await;
    let stopped = Clock(Arc::new(AtomicU64::new(0)));
    let paris = Machine { clock: stopped, ..paris };
    expect!["Err(\"(CertificateExpired, \\\"the site certificate expired at 2027-11-20T12:00:00.000Z; renew it\\\")\")"]
        .assert_eq(&format!("{:?}", meets(&central, &paris, at_paris).await));
    let back = paris.renew(&central, at_paris).await.unwrap();
    assert_eq!((&back.authority, back.clock), (&at_oslo.authority, clock.now()));
    let (status, refused) = central.retire(false).await;
    let why = refused["why"].as_str().unwrap_or_default();
    assert_eq!(
        (status, why.contains("not renewed yet: paris")),
        (409, true),
        "it may not have arrived: {refused}"
    );
    assert_eq!(meets(&central, &paris, &back).await, Ok(false));

    let before = at_lyon;
    let (status, left) = central.retire(false).await;
    assert_eq!((status, &left["predecessor"], &left["sites"]), (200, &Value::Null, &json!(3)), "{left}");
    let moved = lyon.renew(&central, &moved).await.unwrap();
    assert_eq!(meets(&central, &lyon, &moved).await, Ok(false));
    let refused = lyon.renew(&central, &before).await.unwrap_err().explain();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    expect![[r#"
        authority_succeeded by admin:
        authority_retired by admin:
    "#]]
    .assert_eq(
        &central
            .journal()
            .await
            .lines()
            .filter(|it| it.starts_with("auth"))
            .map(|it| format!("{it}\n"))
            .collect::<String>(),
    );
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn l6_a_crash_between_the_file_and_the_journal_leaves_a_central_that_starts_and_says_what_happened() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    let machine = Machine::new(&clock);
    let enrolled = machine.enrol(&central, &central.invite("lyon").await).await.unwrap();
    central.server.stop().await;
    // The file was replaced, and half of the next one was written, when the power failed.
    let data = folder.path().join("central");
    let authority = Authority::open_or_create(&data, [0; 16], NOON).unwrap();
    let next = authority.succeed(&data, [[7; 16], [8; 16]], clock.now()).unwrap();
    fs::write(data.join("authority.new"), "half a certific").unwrap();
    let central = Central::start(folder.path(), &clock).await;
    assert_eq!(central.get("/authority").await["fingerprint"], json!(next.fingerprint()));
    assert_eq!(meets(&central, &machine, &enrolled).await, Ok(true));
    central.server.stop().await;

    next.retire(&data).unwrap();
    let central = Central::start(folder.path(), &clock).await;
    let page = central.get("/journal?limit=1000").await;
    let told: Vec<String> = page["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["event"].as_str().unwrap().starts_with("authority"))
        .map(|it| format!("{} by {} {}", it["event"], it["by"], it["locked_out"]))
        .collect();
    expect![[r#"
        "authority_succeeded" by "central" null
        "authority_retired" by "central" ["lyon"]"#]]
    .assert_eq(&told.join("\n"));
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_a_retirement_by_force_ends_the_sessions_of_those_whom_it_locks_out() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    let machine = Machine::new(&clock);
    let enrolled = machine.enrol(&central, &central.invite("lyon").await).await.unwrap();
    assert_eq!(central.call("POST", "/authority/renew", None).await.0, 201);
    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &enrolled);
    let session = site.connection.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(central.retire(false).await.0, 409);
    let (status, left) = central.retire(true).await;
    assert_eq!(status, 200, "{left}");
    tokio::time::timeout(LONG, session.closed()).await.unwrap();
    site.stop().await;
    let refused = machine.renew(&central, &enrolled).await.unwrap_err().explain();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    // A new token brings it back.
    let token = central.invite("lyon").await;
    let back = machine.enrol_again(&central, &token, Some(enrolled.site)).await.unwrap();
    assert_eq!(meets(&central, &machine, &back).await, Ok(false));
    assert_eq!(central.retire(true).await.0, 409, "there is nothing to retire");
    central.server.stop().await;
}
