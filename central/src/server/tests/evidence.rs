//! What proves the journal: signed heads in both directions, and archives.

use sync::journal::{Mark, Stream};

use super::*;
use crate::archive;

const DAY: Duration = Duration::from_secs(86_400);

/// Signs the head of the site's journal as its program does, with the key of a machine.
fn sign(site: &Site, key: &SiteKey, serial: Vec<u8>) {
    let given = || site.edge.given("link");
    let (stream, mark): (Stream, Mark) =
        site.store.run(given(), |tx| tx.head_to_sign(Origin::Central)).unwrap().unwrap();
    let signature = key.sign(&mark.statement(stream)).unwrap();
    site.store
        .run(given(), move |tx| tx.tell_head(Origin::Central, &mark.signed(serial, signature)))
        .unwrap();
}

/// Gives the site something to write down: it follows other settings.
pub(super) async fn settle(central: &Central, site: &mut Site, heartbeat_s: u64) {
    let edit = json!({ "heartbeat_s": heartbeat_s });
    let (status, shown) = central.call("PATCH", "/sites/lyon", Some(edit)).await;
    assert_eq!(status, 200, "{shown}");
    let epoch = shown["effective"]["epoch"].as_u64().unwrap();
    site.until("it follows", async |store: Store| {
        store.read(|view| view.journal(&store::view::JournalFilter::default())).unwrap().iter().any(|row| {
            matches!(&row.event, Some(sync::journal::Event::EpochAdopted { epoch: found }) if *found == epoch)
        })
    })
    .await;
}

fn verified(folder: &Path) -> Result<String, Failure> {
    let mut lines = String::new();
    archive::verify(&folder.join("central"), &mut |line: &str| lines += &format!("{line}\n"))?;
    Ok(lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_heads_of_the_journal_are_signed_on_both_sides_and_stay_provable_after_a_renewal() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    let machine = Machine::new(&clock);
    let enrolled = machine.enrol(&central, &central.invite("lyon").await).await.unwrap();
    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &enrolled);

    // Central signs what it tells the site, with the key that the site has pinned.
    site.until("central's head", async |store: Store| {
        !store.read(|view| view.heads_to_verify()).unwrap().is_empty()
    })
    .await;
    let told = site.read(|view| view.heads_to_verify());
    let key = tls::public_key(&enrolled.authority).unwrap();
    for head in &told {
        assert_eq!(head.stream, Stream::Down(enrolled.site));
        assert_eq!(head.mark.signer.as_ref().unwrap().to_vec(), Digest::of(&enrolled.authority).0);
        let signature = head.mark.signature.as_ref().unwrap();
        assert_eq!(tls::verify(&key, &head.mark.statement(head.stream), signature), Ok(()));
        let other = Mark { seq: head.mark.seq + 1, ..head.mark.clone() };
        assert!(tls::verify(&key, &other.statement(head.stream), signature).is_err());
    }

    // The site signs with the key of its certificate; central verifies by what it certified.
    let serial = tls::SiteCertificate::read(&enrolled.chain[0]).unwrap();
    settle(&central, &mut site, 20).await;
    sign(&site, &machine.key, serial.serial.clone());
    let head = async || central.get("/sites/lyon").await["journal_head"].clone();
    site.until("it is verified", async |_| head().await["verified_at"] != Value::Null).await;
    let first = head().await;
    assert_eq!((&first["signer"], &first["seq"]), (&json!(serial.serial_hex()), &json!(2)), "{first}");

    // Somebody else's signature is nobody's evidence, and is told.
    settle(&central, &mut site, 21).await;
    sign(&site, &SiteKey::generate().unwrap(), serial.serial.clone());
    site.until("it is refused", async |_| central.journal().await.contains("head_refused")).await;
    expect!["head_refused by central:  it is not that of the key that it names"]
        .assert_eq(central.journal().await.lines().find(|it| it.starts_with("head_refused")).unwrap());
    assert_eq!(head().await, first);
    // Nor is one by a certificate that this site never showed.
    settle(&central, &mut site, 22).await;
    sign(&site, &machine.key, vec![1, 2, 3]);
    let refused = async || central.journal().await.matches("head_refused").count();
    site.until("it is refused too", async |_| refused().await == 2).await;

    // After a renewal the old key proves what it signed, and the new one what comes.
    let renewed = machine.renew(&central, &enrolled).await.unwrap();
    assert_eq!(head().await, first);
    let text = verified(folder.path()).unwrap();
    let of_site = |text: &str| text.lines().find(|line| line.starts_with("site/")).unwrap().to_owned();
    assert!(of_site(&text).ends_with("; signed up to 2 at 2026-11-20T12:00:00.000Z"), "{text}");
    site.stop().await;
    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &renewed);
    settle(&central, &mut site, 23).await;
    let serial = tls::SiteCertificate::read(&renewed.chain[0]).unwrap();
    sign(&site, &machine.key, serial.serial.clone());
    site.until("it is verified", async |_| head().await["signer"] == json!(serial.serial_hex())).await;
    site.until("it is verified", async |_| head().await["verified_at"] != Value::Null).await;
    let text = verified(folder.path()).unwrap();
    assert!(of_site(&text).contains("5 entries up to 5; signed up to 5"), "{text}");
    site.stop().await;
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_the_old_journal_goes_into_an_archive_that_proves_to_join_what_stays() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    for _ in 0..3 {
        central.invite("lyon").await;
        clock.wait(DAY);
    }
    clock.wait(200 * DAY);
    central.invite("lyon").await;

    let before = |days: u32| json!({ "before": NOON.after(days * DAY) });
    let (status, refused) = central.call("POST", "/journal/archive", Some(before(150))).await;
    assert_eq!(status, 409, "{refused}");
    let (status, made) = central.call("POST", "/journal/archive", Some(before(100))).await;
    assert_eq!((status, &made["entries"]), (201, &json!(3)), "{made}");
    let (status, again) = central.call("POST", "/journal/archive", Some(before(100))).await;
    assert_eq!(status, 409, "there is nothing left: {again}");
    expect![[r#"
        site_created by admin: lyon
        token_issued by admin: lyon
        journal_trimmed by admin:
    "#]]
    .assert_eq(&central.journal().await);

    let data = folder.path().join("central");
    let file = PathBuf::from(made["file"].as_str().unwrap());
    assert!(file.to_str().unwrap().contains(made["digest"].as_str().unwrap()));
    let mut lines = Vec::new();
    archive::verify_file(&data, &file, &mut |line: &str| lines.push(line.to_owned())).unwrap();
    assert!(lines[0].contains("3 entries before 2027-02-28T12:00:00.000Z"), "{lines:?}");
    assert!(lines[1].starts_with("central in life") && lines[1].ends_with(": 1 to 3"), "{lines:?}");
    let text = verified(folder.path()).unwrap();
    assert!(text.contains("2 entries up to 5; 1 to 3 in archive"), "{text}");

    // One bit of it, and it is nothing any more.
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let spoilt = folder.path().join("spoilt");
    fs::write(&spoilt, bytes).unwrap();
    assert!(archive::verify_file(&data, &spoilt, &mut |_| ()).is_err());

    // Central goes on, also after a restart.
    central.server.stop().await;
    let central = Central::start(folder.path(), &clock).await;
    central.invite("lyon").await;
    let text = verified(folder.path()).unwrap();
    assert!(text.contains("3 entries up to 6; 1 to 3 in archive"), "{text}");
    archive::verify_file(&data, &file, &mut |_| ()).unwrap();
    central.server.stop().await;
}
