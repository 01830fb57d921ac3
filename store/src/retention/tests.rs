//! What stays provable of a journal when its beginning leaves, between real stores.

use expect_test::expect;
use sync::{
    engine::{Connection, Input, Output},
    id::{Origin, SiteId},
    wire::{Holdings, StreamHead},
};

use super::*;
use crate::{Given, Opening, Store, life, view::JournalFilter};

const SITE: SiteId = SiteId([7; 16]);
const NOON: Timestamp = Timestamp(1_795_176_000_000);
const DAY: Duration = Duration::from_secs(86_400);

fn at(day: u32) -> Timestamp {
    NOON.after(DAY * day)
}

fn given(day: u32) -> Given {
    Given { now: at(day), by: "ann".into(), entropy: [day.to_le_bytes()[0]; 32] }
}

/// Two replicas whose logs are carried by hand.
struct Pair {
    site: Store,
    central: Store,
    _folder: tempfile::TempDir,
}

fn open(folder: &std::path::Path, name: &str, origin: Origin) -> Store {
    let given = Given { entropy: [name.as_bytes()[0]; 32], ..given(0) };
    Store::open(&Opening { folder: folder.join(name), origin, given }).unwrap()
}

impl Pair {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let site = open(folder.path(), "site", Origin::Site(SITE));
        let central = open(folder.path(), "central", Origin::Central);
        Pair { site, central, _folder: folder }
    }

    /// Brings each what the other has for it, and the acknowledgements.
    fn exchange(&self, day: u32) {
        for (from, to) in [(&self.site, &self.central), (&self.central, &self.site)] {
            carry(from, to, day);
        }
    }

    /// Facts at the site.
    fn happen(&self, day: u32, facts: u64) {
        self.site
            .run(given(day), move |tx| {
                (0..facts).try_for_each(|epoch| tx.journal(Event::EpochAdopted { epoch }))
            })
            .unwrap();
    }

    /// Central confirms the time, and the site looks what it may let go of.
    fn trim(&self, day: u32) -> u64 {
        self.site
            .run(given(day), move |tx| {
                tx.confirm_central_time(at(day))?;
                tx.trim_journal(SHORTEST)
            })
            .unwrap()
    }
}

fn carry(from: &Store, to: &Store, day: u32) {
    let (source, target, connection) = (from.origin(), to.origin(), Connection(1));
    let pulled = to.read(|view| Ok(view.peer(source)?.pulled)).unwrap();
    let read = Output::Read { connection, peer: target, from: pulled + 1, max_bytes: 1 << 20 };
    let Some(Input::Read { items, seal, .. }) = from.answer_now(read, given(day)).unwrap() else {
        panic!("a replica reads its log");
    };
    if items.is_empty() {
        return;
    }
    let ingest = Output::Ingest { connection, peer: source, from: pulled + 1, items, seal };
    let Some(Input::Ingested { cursor, .. }) = to.answer_now(ingest, given(day)).unwrap() else {
        panic!("a replica takes what the other says");
    };
    let acknowledged = Output::Acknowledged { peer: target, position: cursor.position };
    from.answer_now(acknowledged, given(day)).unwrap();
}

/// Every chain, as a person reads it, with every signature good.
fn audited(store: &Store) -> String {
    let chains = store.read(|view| view.audit(&|_, _, _| Ok(()))).unwrap();
    let line = |it: &crate::audit::Chain| {
        let missing: Vec<String> = it
            .missing
            .iter()
            .map(|(after, upto, archive)| {
                format!(
                    ", without {} to {upto}{}",
                    after + 1,
                    if archive.is_some() { " (archived)" } else { "" }
                )
            })
            .collect();
        let signed = it.signed.map_or_else(String::new, |(seq, _)| format!(", signed up to {seq}"));
        let fault = it.fault.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        let stream = it.stream.replace(&SITE.to_string(), "lyon");
        format!("{stream}: {} up to {}{}{signed}{fault}\n", it.entries, it.last, missing.concat())
    };
    chains.iter().map(line).collect()
}

fn events(store: &Store, wanted: &str) -> Vec<String> {
    let rows = store.read(|view| view.journal(&JournalFilter::default())).unwrap();
    rows.iter()
        .filter_map(|row| serde_json::to_value(row.event.as_ref()?).ok())
        .filter(|event| event["event"] == wanted)
        .map(|event| {
            let text = |field: &str| event[field].to_string();
            match wanted {
                "head_refused" => format!("{}: {}", text("seq"), text("reason")),
                _ => format!("{} to {}", text("after"), text("upto")),
            }
        })
        .collect()
}

#[test]
fn p15_a_site_lets_go_of_what_both_have_had_for_ninety_days_and_the_rest_still_proves_to_continue_it() {
    let pair = Pair::new();
    pair.happen(0, 5);
    pair.exchange(0);
    assert_eq!(pair.trim(0), 0);
    // What central does not have yet is kept, however old.
    pair.happen(1, 3);
    assert_eq!([pair.trim(1), pair.trim(89)], [0, 0]);
    assert_eq!(pair.trim(90), 5);
    expect![[r#"
        site/lyon: 4 up to 9, without 1 to 5
    "#]]
    .assert_eq(&audited(&pair.site));
    assert_eq!([pair.trim(90), pair.trim(400)], [0, 0]);
    // Paging goes on from whatever number a reader has.
    let page =
        pair.site.read(|view| view.journal(&JournalFilter { after: 2, limit: 2, ..Default::default() }));
    assert_eq!(page.unwrap().iter().map(|row| row.seq).collect::<Vec<_>>(), [6, 7]);

    // Another program starts: nothing is computed anew from what is not here.
    pair.exchange(400);
    assert_eq!(events(&pair.central, "journal_trimmed"), ["0 to 5"]);
    expect![[r#"
        site/lyon: 9 up to 9
    "#]]
    .assert_eq(&audited(&pair.central));
    assert_eq!([pair.trim(401), pair.trim(490)], [0, 0]);
    pair.happen(491, 1);
    // The newest entry never leaves: the next one is bound to it.
    assert_eq!(pair.trim(500), 4);
    pair.exchange(501);
    expect![[r#"
        site/lyon: 2 up to 11, without 1 to 5, without 6 to 9
    "#]]
    .assert_eq(&audited(&pair.site));
    expect![[r#"
        site/lyon: 11 up to 11
    "#]]
    .assert_eq(&audited(&pair.central));
}

#[test]
fn p15_the_time_that_counts_is_the_one_that_central_confirmed() {
    let pair = Pair::new();
    pair.happen(0, 5);
    pair.exchange(0);
    assert_eq!(pair.trim(0), 0);
    // The site's own clock runs ten years ahead.
    let trimmed = pair.site.run(given(3_650), |tx| tx.trim_journal(SHORTEST)).unwrap();
    assert_eq!(trimmed, 0);
    expect![[r#"
        site/lyon: 5 up to 5
    "#]]
    .assert_eq(&audited(&pair.site));
}

#[test]
#[should_panic(expected = "90 days at least")]
fn a_shorter_retention_is_a_mistake_of_the_program() {
    let pair = Pair::new();
    let shorter = pair.site.run(given(0), |tx| tx.trim_journal(SHORTEST - DAY));
    // The panic is the writer's; whoever waits hears that the store is closed.
    panic!("90 days at least: {}", shorter.unwrap_err());
}

#[test]
fn p15_a_central_that_lost_what_the_site_keeps_no_more_goes_on_from_the_checkpoint_and_says_so() {
    let pair = Pair::new();
    pair.happen(0, 5);
    pair.exchange(0);
    pair.trim(0);
    pair.happen(1, 2);
    pair.trim(90);
    let second = pair.central.read(|view| {
        let rows = view.journal(&JournalFilter { site: Some(SITE), ..Default::default() })?;
        Ok((rows[1].incarnation, rows[1].seq))
    });
    let (incarnation, seq) = second.unwrap();

    // A central that holds nothing, and one that was restored to the second entry.
    for kept in [0, seq] {
        let folder = tempfile::tempdir().unwrap();
        let central = open(folder.path(), "central", Origin::Central);
        let theirs = match kept {
            0 => Holdings::default(),
            _ => {
                let hash = pair
                    .central
                    .run(given(91), move |tx| tx.hash_at(Stream::Site(SITE), incarnation, seq))
                    .unwrap()
                    .unwrap();
                for number in 1..=seq {
                    let bytes = pair
                        .central
                        .run(given(91), move |tx| {
                            let of = params![signed(number), Stream::Site(SITE).to_string()];
                            let query = "SELECT bytes FROM journal WHERE seq = ?1 AND stream = ?2";
                            Ok(tx.sql.query_row(query, of, |row| row.get::<_, Vec<u8>>(0))?)
                        })
                        .unwrap();
                    central
                        .run(given(91), move |tx| {
                            tx.take_entry(Origin::Site(SITE), Stream::Site(SITE), &bytes, &mut None)
                        })
                        .unwrap();
                }
                Holdings { streams: vec![StreamHead { incarnation, seq, hash }], ..Holdings::default() }
            }
        };
        let life = central.incarnation();
        pair.site
            .run(given(91), move |tx| {
                life::begin_logs(tx.sql, Origin::Central)?;
                tx.join(Origin::Central, life, &theirs).map(drop)
            })
            .unwrap();
        carry(&pair.site, &central, 91);
        assert_eq!(events(&central, "journal_gap"), [format!("{kept} to 5")]);
        let audited = audited(&central);
        let of_site = audited.lines().find(|line| line.starts_with("site/lyon")).unwrap().to_owned();
        assert!(of_site.ends_with(&format!("without {} to 5", kept + 1)), "{of_site}");
        // It goes on from here like any other chain.
        pair.happen(92, 2);
        carry(&pair.site, &central, 92);
        assert!(!self::audited(&central).contains(": entry"), "{}", self::audited(&central));
    }
}

/// Central's own facts, one a day.
fn history(days: u32) -> Pair {
    let pair = Pair::new();
    for day in 0..days {
        let epoch = u64::from(day);
        pair.central.run(given(day), move |tx| tx.journal(Event::EpochAdopted { epoch })).unwrap();
    }
    pair.happen(0, 4);
    pair.exchange(0);
    pair
}

/// Archives and lets go, as central does; returns the bytes of the file.
fn archive(pair: &Pair, before: u32, limit: u64) -> Vec<u8> {
    let parts = pair.central.read(|view| view.archivable(at(before), limit)).unwrap();
    let head = ArchiveHead::new(at(before), at(200), parts);
    let mut bytes = Vec::new();
    let written = pair.central.read(|view| view.write_archive(&head, &mut bytes)).unwrap();
    let digest = Digest::of(&bytes);
    let taken = pair.central.run(given(200), move |tx| tx.trim_archived(&head, digest)).unwrap();
    assert_eq!(taken, written);
    bytes
}

fn joins(pair: &Pair, bytes: &[u8]) -> Result<usize, String> {
    let (head, entries) = ArchiveHead::read(bytes)?;
    let digest = Digest::of(bytes);
    for part in &head.parts {
        pair.central.read(|view| view.joins(part, digest)).unwrap()?;
    }
    Ok(entries.len())
}

#[test]
fn p15_an_archive_proves_to_be_what_was_taken_out_and_the_rest_continues_it() {
    let pair = history(10);
    let first = archive(&pair, 4, 100);
    let second = archive(&pair, 8, 3);
    expect![[r#"
        central: 6 up to 13, without 1 to 4 (archived), without 5 to 7 (archived)
        site/lyon: 1 up to 4, without 1 to 3 (archived)
    "#]]
    .assert_eq(&audited(&pair.central));
    assert_eq!([joins(&pair, &first), joins(&pair, &second)], [Ok(7), Ok(3)]);
    // A day that is not over yet, and a chain that has one entry only, stay.
    assert_eq!(pair.central.read(|view| view.archivable(at(0), 100)).unwrap(), []);
    // The site knows nothing of it, and goes on.
    pair.happen(11, 2);
    pair.exchange(11);
    assert!(audited(&pair.central).contains("site/lyon: 3 up to 6, without 1 to 3 (archived)"));

    // Whatever is changed in the file is noticed, and where.
    let mut silent = Vec::new();
    for position in 0..first.len() {
        let mut bytes = first.clone();
        bytes[position] ^= 0x04;
        if joins(&pair, &bytes).is_ok() {
            silent.push(position);
        }
    }
    assert_eq!(silent, Vec::<usize>::new());
    assert!(joins(&pair, &first[..first.len() - 1]).is_err());
    // It is no archive of another database.
    let why = joins(&history(10), &first).unwrap_err();
    assert!(why.contains("has no checkpoint"), "{why}");
}

#[test]
fn p15_an_entry_that_was_changed_or_taken_away_in_the_database_is_named() {
    let tamper = |sql: &'static str| {
        let pair = history(10);
        let stream = Stream::Central;
        pair.central
            .run(given(10), |tx| {
                let head = head_of(tx.sql, Stream::Central, tx.state.incarnation)?.unwrap();
                let mark = Mark::of(&head, tx.now()).signed(vec![1], vec![2]);
                let row = tx.keep_head(Stream::Central, &mark)?;
                tx.verified(row)
            })
            .unwrap();
        pair.central.run(given(11), move |tx| Ok(tx.sql.execute_batch(sql)?)).unwrap();
        let audited = audited(&pair.central);
        let line = audited.lines().find(|line| line.starts_with(&format!("{stream}:"))).unwrap();
        line.split_once(": ").unwrap().1.to_owned()
    };
    expect!["10 up to 10, signed up to 10"].assert_eq(&tamper(""));
    expect!["2 up to 2: entry 3: journal entry 4 does not follow 2"]
        .assert_eq(&tamper("DELETE FROM journal WHERE stream = 'central' AND seq = 3"));
    expect!["8 up to 8: entry 9: it is missing, the chain ends before it, and its writer signed up to 10 at 2026-11-30T12:00:00.000Z"]
        .assert_eq(&tamper("DELETE FROM journal WHERE stream = 'central' AND seq > 8"));
    // Exchanged entries, with the hashes that belong to them.
    expect!["3 up to 3: entry 4: journal entry 5 does not follow 3"].assert_eq(&tamper(
        "UPDATE journal SET seq = 100 WHERE stream = 'central' AND seq = 4;
         UPDATE journal SET seq = 4 WHERE stream = 'central' AND seq = 5",
    ));
    expect!["9 up to 9: entry 10: it has another hash than when it was stored"]
        .assert_eq(&tamper("UPDATE journal SET hash = zeroblob(32) WHERE stream = 'central' AND seq = 10"));
    expect!["10 up to 10: entry 10: its writer signed another one, at 2026-11-30T12:00:00.000Z"]
        .assert_eq(&tamper("UPDATE heads SET hash = zeroblob(32)"));
}

#[test]
fn p15_a_signed_head_is_kept_as_evidence_and_one_that_does_not_fit_is_told() {
    let pair = Pair::new();
    let stream = Stream::Site(SITE);
    let sign = |day: u32, signature: u8| {
        pair.site
            .run(given(day), move |tx| {
                let Some((_, mark)) = tx.head_to_sign(Origin::Central)? else { return Ok(false) };
                tx.tell_head(Origin::Central, &mark.signed(vec![0x41], vec![signature])).map(|()| true)
            })
            .unwrap()
    };
    let verify = |day: u32| {
        let waiting = pair.central.read(|view| view.heads_to_verify()).unwrap();
        let keys: Vec<bool> = waiting.iter().map(|head| head.key.is_some()).collect();
        pair.central
            .run(given(day), move |tx| {
                waiting.iter().try_for_each(|head| {
                    let signature = head.mark.signature.as_ref().unwrap();
                    let verdict = if signature[0] == 1 { Ok(()) } else { Err("it is forged".to_owned()) };
                    tx.judge_head(head, &verdict)
                })
            })
            .unwrap();
        keys
    };
    let kept = || {
        let heads = pair.central.read(|view| view.heads(stream)).unwrap();
        heads.iter().map(|head| (head.seq, head.verified_at)).collect::<Vec<_>>()
    };
    assert!(!sign(0, 1), "there is nothing to sign");
    pair.happen(0, 3);
    assert!(sign(0, 1));
    assert!(!sign(0, 1), "it was signed already");
    pair.exchange(0);
    assert_eq!(kept(), [(3, None)]);
    assert_eq!(verify(1), [false], "no certificate is on record");
    assert_eq!(kept(), [(3, Some(at(1)))]);
    // Only the newest stays, and a forged one takes nobody's place.
    pair.happen(2, 2);
    assert!(sign(2, 1));
    pair.happen(3, 1);
    assert!(sign(3, 9));
    pair.exchange(3);
    verify(4);
    assert_eq!(kept(), [(5, Some(at(4)))]);
    // A head that names an entry which is not here, or another one, is refused at once; the log goes on.
    pair.site
        .run(given(5), |tx| {
            let (_, mark) = tx.head_to_sign(Origin::Central)?.unwrap_or_else(|| {
                let head = Head { incarnation: tx.state.incarnation, seq: 6, hash: [6; 32] };
                (Stream::Site(SITE), Mark::of(&head, at(5)))
            });
            let forged = Mark { hash: [6; 32], ..mark.clone() }.signed(vec![0x41], vec![1]);
            let beyond = Mark { seq: 60, ..mark }.signed(vec![0x41], vec![1]);
            for mark in [forged, beyond] {
                tx.tell(Origin::Central, crate::log::Row::Note(sync::wire::Item::mark(mark).to_bytes()))?;
            }
            tx.journal(Event::EpochAdopted { epoch: 7 })
        })
        .unwrap();
    pair.exchange(5);
    assert_eq!(
        events(&pair.central, "head_refused"),
        [
            "6: \"it is forged\"",
            "6: \"another entry of that number is here\"",
            "60: \"the entry that it names is not here\""
        ]
    );
    expect![[r#"
        central: 3 up to 3
        site/lyon: 7 up to 7, signed up to 5
    "#]]
    .assert_eq(&audited(&pair.central));
}
