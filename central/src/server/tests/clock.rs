//! A site whose machine has no battery clock.

use super::{evidence::settle, *};

#[tokio::test(flavor = "multi_thread")]
async fn p15_a_site_that_starts_in_1970_enrols_renews_and_goes_on_in_order_when_its_clock_is_set() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    let machine = Machine::new(&Clock(Arc::new(AtomicU64::new(0))));
    let first = machine.enrol(&central, &central.invite("lyon").await).await.unwrap();
    assert_eq!(first.clock, NOON, "it learns what time it is");
    let enrolled = machine.renew(&central, &first).await.unwrap();
    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &enrolled);
    settle(&central, &mut site, 20).await;

    // Somebody sets the clock; the day is another one now.
    let day = Duration::from_secs(86_400);
    machine.clock.wait(Duration::from_millis(NOON.as_ms()) + day);
    clock.wait(day);
    settle(&central, &mut site, 21).await;
    site.until("both agree", async |_| central.get("/sites/lyon").await["agrees"] == json!(true)).await;

    let page = central.get("/journal?site=lyon&limit=100").await;
    let entries = page["items"].as_array().unwrap();
    let seqs: Vec<u64> = entries.iter().map(|it| it["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=entries.len() as u64).collect::<Vec<_>>());
    let times: Vec<Timestamp> =
        entries.iter().map(|it| serde_json::from_value(it["at"].clone()).unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    // Set forwards is no going back in time: it is one life, and the last entry is of today.
    assert!(times.last().is_some_and(|last| *last >= NOON.after(day)), "{times:?}");
    let lives: std::collections::BTreeSet<&str> =
        entries.iter().map(|it| it["incarnation"].as_str().unwrap()).collect();
    assert_eq!(lives.len(), 1, "{page}");
    site.stop().await;
    central.server.stop().await;
}
