//! Who claims a machine that boots elsewhere, and who decides.

use harness::world::World;
use serde_json::json;
use store::{
    StoreError, Tx,
    command::{
        ask::{self, Ask, Done, What},
        claim,
        node::{self, NodeEdit},
        report::{self, Registration},
        site::SettingsEdit,
    },
    view::{ClaimFilter, ProposalState},
};
use sync::{
    id::{ClaimId, MacAddr, NodeId, Origin, ReportId, SiteId},
    journal::Event,
    policy::{Autonomy, ClaimState, MigrationConsent, MigrationPolicy, Wanted},
};

use crate::place::{DAY, HOUR, MAC, MINUTE, Place, boots, events, read};

#[test]
fn p8_a_boot_elsewhere_is_claimed_once_and_offline_too_and_both_sites_hear_of_it() {
    let mut place = Place::new(40);
    let (lyon, bern) = (place.lyon, place.bern);
    place.world.set_link(bern, false);
    place.boots(bern);
    let here = place.claims(Origin::Site(bern));
    let id = ClaimId::of(place.node, bern, 1);
    assert_eq!(here.len(), 1);
    assert_eq!((here[0].id, here[0].state, here[0].known_at_central), (id, ClaimState::Open, false));
    place.world.pass(HOUR);
    place.boots(bern);
    place.boots(bern);
    let opened = |world: &World, origin| {
        let entries = events(world, origin);
        entries.iter().filter(|event| matches!(event, Event::ClaimOpened { .. })).count()
    };
    assert_eq!(opened(&place.world, Origin::Site(bern)), 1, "repeated boots change nothing");

    place.world.set_link(bern, true);
    let row = place.reach("central has the claim", &[ClaimState::Open]);
    assert_eq!((row.from, row.to, row.opened_by), (lyon, bern, Origin::Site(bern)));
    assert_eq!(row.evidence.macs, [MAC.to_string()]);
    assert_eq!(row.reason, "neither bern nor lyon has consented, so a person at central decides");
    place.agree();
    for site in [lyon, bern] {
        let rows = place.claims(Origin::Site(site));
        assert_eq!((rows.len(), rows[0].from_name.as_str(), rows[0].to_name.as_str()), (1, "lyon", "bern"));
        let told = events(&place.world, Origin::Site(site));
        assert!(
            told.iter().any(|event| matches!(event, Event::ClaimDecided { state, .. } if state == "open"))
        );
    }
    assert_eq!(place.home(Origin::Central), Some((Some(lyon), 1)), "a claim moves nothing");
}

#[test]
fn p8_each_policy_decides_alone_or_leaves_it_to_a_person() {
    use MigrationPolicy::{AutoAccept, AutoRelease, Bidirectional, Manual};
    let mut told = String::new();
    for (seed, lyon_says, bern_says, consent) in [
        (50, Manual, Manual, MigrationConsent::Either),
        (51, Manual, AutoAccept, MigrationConsent::Either),
        (52, AutoRelease, Manual, MigrationConsent::Either),
        (53, Bidirectional, Bidirectional, MigrationConsent::Both),
        (54, Manual, AutoAccept, MigrationConsent::Both),
    ] {
        let mut place = Place::new(seed);
        let (lyon, bern) = (place.lyon, place.bern);
        place.policy(lyon, lyon_says);
        place.policy(bern, bern_says);
        place.set(lyon, SettingsEdit { migration_consent: Some(consent), ..SettingsEdit::default() });
        place.agree();
        place.boots(bern);
        place.world.until("central has the claim", MINUTE * 20, |world| {
            !read(world, Origin::Central, |view| view.claims(&ClaimFilter::default())).is_empty()
        });
        let row = place.claims(Origin::Central).remove(0);
        let moved = place.home(Origin::Central) == Some((Some(bern), 2));
        assert_eq!(moved, row.state == ClaimState::Approved);
        told += &format!(
            "{lyon_says} {bern_says} {consent}: {}, {}, {}\n",
            row.state,
            row.policy_matched.as_deref().unwrap_or("-"),
            if row.auto_approve_eligible { "eligible" } else { "not eligible" },
        );
        place.agree();
        assert_eq!(place.states(Origin::Site(bern)), [row.state]);
    }
    expect_test::expect![[r#"
        manual manual either: open, -, not eligible
        manual auto_accept either: approved, auto_accept@bern, eligible
        auto_release manual either: approved, auto_release@lyon, eligible
        bidirectional bidirectional both: approved, bidirectional@bern, bidirectional@lyon, eligible
        manual auto_accept both: open, auto_accept@bern, not eligible
    "#]]
    .assert_eq(&told);
}

#[test]
fn p8_a_machine_that_moves_twice_in_a_week_without_a_person_waits_for_one() {
    let mut place = Place::new(42);
    let (lyon, bern) = (place.lyon, place.bern);
    place.policy(lyon, MigrationPolicy::Bidirectional);
    place.policy(bern, MigrationPolicy::Bidirectional);
    place.agree();
    place.boots(bern);
    place.reach("it is bern's", &[ClaimState::Approved]);
    let node = place.node;
    place.world.until("lyon knows", MINUTE * 20, |world| {
        read(world, Origin::Site(lyon), |view| view.away(MAC, lyon)).is_some()
            && read(world, Origin::Site(lyon), |view| view.node(node)).is_none()
    });
    place.boots(lyon);
    let row = place.reach("lyon claims it back", &[ClaimState::Approved, ClaimState::Open]);
    let why = "the machine was moved without a person within the last 7 days, so a person at central decides";
    assert_eq!((row.reason.as_str(), row.auto_approve_eligible), (why, true));
    assert_eq!(place.home(Origin::Central), Some((Some(bern), 2)));
}

#[test]
fn p8_a_claim_expires_by_centrals_clock_and_is_asked_for_again_but_not_for_ever() {
    let mut place = Place::new(44);
    let bern = place.bern;
    place.set(bern, SettingsEdit { claim_ttl_s: Some(2 * 86_400), ..SettingsEdit::default() });
    place.agree();
    // Bern's clock is a day ahead; that changes nothing.
    place.world.set_clock(Origin::Site(bern), 86_400_000);
    place.boots(bern);
    place.reach("it is open", &[ClaimState::Open]);
    place.world.pass(DAY * 2 - HOUR);
    assert_eq!(place.states(Origin::Central), [ClaimState::Open]);
    place.world.pass(HOUR * 2);
    let row = place.reach("nobody decided", &[ClaimState::Expired]);
    assert_eq!((row.reason.as_str(), row.decided_by), ("nobody decided in time", None));
    place.agree();
    place.world.set_clock(Origin::Site(bern), 0);
    place.boots(bern);
    place.agree();
    assert_eq!(place.states(Origin::Central), [ClaimState::Expired], "a boot at once asks for nothing");
    for round in 2..=8 {
        place.world.pass(DAY * 2);
        place.boots(bern);
        place.boots(bern);
        let row = place.reach("it is open again", &[ClaimState::Open]);
        assert_eq!(row.round, round);
        place.world.pass(DAY * 2 + HOUR);
        place.reach("it ends again", &[ClaimState::Expired]);
        place.agree();
    }
    place.world.pass(DAY * 2);
    place.boots(bern);
    place.agree();
    let row = place.claims(Origin::Central).remove(0);
    assert_eq!((row.state, row.round), (ClaimState::Expired, 8), "eight rounds are enough");
    // A person may still decide it.
    let id = row.id;
    place.world.run(Origin::Central, "ann", move |tx| claim::approve(tx, id, "late")).unwrap();
    assert_eq!(place.home(Origin::Central), Some((Some(bern), 2)));
}

#[test]
fn p8_what_a_person_rejected_no_policy_approves() {
    let mut place = Place::new(45);
    let bern = place.bern;
    place.boots(bern);
    let id = place.reach("it is open", &[ClaimState::Open]).id;
    place.world.run(Origin::Central, "ann", move |tx| claim::reject(tx, id, "it was stolen")).unwrap();
    place.agree();
    let there = place.claims(Origin::Site(bern)).remove(0);
    assert_eq!((there.state, there.decided_by.as_deref()), (ClaimState::Rejected, Some("ann")));
    let again = place.world.run(Origin::Central, "ann", move |tx| claim::reject(tx, id, "again"));
    let said = format!("claim {id} is rejected, so there is nothing to reject");
    assert_eq!(again.unwrap_err().to_string(), said);
    place.policy(bern, MigrationPolicy::AutoAccept);
    place.world.pass(DAY * 2);
    place.boots(bern);
    let row = place.reach("it is asked for again", &[ClaimState::Open]);
    assert_eq!(row.reason, "a person had rejected it before, so a person at central decides");
    assert_eq!((row.round, row.was_rejected), (2, true));
}

#[test]
fn p8_p9_a_visitor_that_registers_is_claimed_with_what_it_says_and_nothing_overwrites_that() {
    let mut place = Place::new(61);
    let (lyon, bern) = (place.lyon, place.bern);
    place.world.set_link(bern, false);
    let registers = |place: &mut Place, serial: &str, nic: &str| {
        let report = ReportId(place.world.random.bytes());
        let said = [("serial", serial), ("vendor", "Default string"), ("model", "NUC7")];
        let it = Registration {
            evidence: said.map(|(name, value)| (name.to_string(), value.to_string())).into(),
            nics: [("eth0".to_string(), nic.to_string())].into(),
            ..Registration::default()
        };
        let registers = move |tx: &mut Tx<'_>| report::register(tx, report, MAC, true, &it);
        place.world.run(Origin::Site(bern), "machine", registers).unwrap()
    };
    let answer = registers(&mut place, "4711", "52:54:00:00:03:01");
    let id = ClaimId::of(place.node, bern, 1);
    assert_eq!((answer.status, &answer.body["task"]), (200, &serde_json::Value::Null));
    assert_eq!(answer.body["claim"], json!({ "id": id, "state": "open", "home": lyon }));
    registers(&mut place, "0815", "52:54:00:00:03:02");
    place.world.set_link(bern, true);
    place.reach("central has heard of it", &[ClaimState::Open]);
    place.agree();
    for origin in [Origin::Central, Origin::Site(lyon), Origin::Site(bern)] {
        let evidence = place.claims(origin)[0].evidence.clone();
        assert_eq!(
            serde_json::to_value(evidence).unwrap(),
            json!({
                "macs": ["52:54:00:00:03:01", "52:54:00:00:03:02"], "serial": "4711", "system_uuid": null,
                "vendor": null, "model": "NUC7", "address": null,
            })
        );
    }
    let row = read(&place.world, Origin::Central, |view| view.node(place.node)).unwrap();
    assert_eq!((row.evidence.get("serial"), row.home), (None, Some(lyon)));
}

/// A person at a site says yes or no for it.
fn consent(world: &mut World, site: SiteId, claim: ClaimId, consents: bool) -> Result<Done, StoreError> {
    let ask = Ask { what: What::ConsentToClaim { claim, consents }, why: "we gave it away".into() };
    world.run(Origin::Site(site), "bob", move |tx| ask::perform(tx, &ask))
}

#[test]
fn p8_a_full_site_consents_offline() {
    let mut place = Place::new(46);
    let (lyon, bern) = (place.lyon, place.bern);
    place.boots(bern);
    let id = place.reach("it is open", &[ClaimState::Open]).id;
    place.set(lyon, SettingsEdit { autonomy: Some(Autonomy::Full), ..SettingsEdit::default() });
    place.agree();
    place.world.set_link(lyon, false);
    let done = consent(&mut place.world, lyon, id, true).unwrap();
    assert!(matches!(done, Done::Claim(row) if row.from_said == Some(true)));
    assert_eq!(place.states(Origin::Central), [ClaimState::Open]);
    place.world.set_link(lyon, true);
    let row = place.reach("it is approved", &[ClaimState::Approved]);
    assert_eq!((row.policy_matched.as_deref(), row.automatic), (Some("consent@lyon"), false));
    place.agree();
    assert_eq!(place.home(Origin::Site(bern)), Some((Some(bern), 2)));
    assert_eq!(place.home(Origin::Site(lyon)), None);
}

#[test]
fn p5_p8_the_consent_of_a_site_that_is_not_full_waits_for_central_and_counts_in_the_name_of_who_gave_it() {
    for (seed, level) in [(58, Autonomy::ReadOnly), (60, Autonomy::Limited)] {
        consent_is_asked_for(seed, level);
    }
}

fn consent_is_asked_for(seed: u64, level: Autonomy) {
    let mut place = Place::new(seed);
    let (lyon, bern) = (place.lyon, place.bern);
    place.set(lyon, SettingsEdit { autonomy: Some(level), ..SettingsEdit::default() });
    place.boots(bern);
    let id = place.reach("it is open", &[ClaimState::Open]).id;
    place.agree();
    place.world.set_link(lyon, false);
    let Done::Queued(first) = consent(&mut place.world, lyon, id, false).unwrap() else {
        panic!("it waits for central")
    };
    let Done::Queued(second) = consent(&mut place.world, lyon, id, true).unwrap() else {
        panic!("it waits for central")
    };
    assert_eq!(place.claims(Origin::Site(lyon))[0].from_said, None);
    place.world.set_link(lyon, true);
    // In the order in which they were asked: the second word is the last.
    let row = place.reach("it is approved", &[ClaimState::Approved]);
    assert_eq!((row.policy_matched.as_deref(), row.automatic), (Some("consent@lyon"), false));
    place.agree();
    let ended = [first.id, second.id].map(|id| {
        let row = read(&place.world, Origin::Site(lyon), |view| view.proposal(id)).expect("it is kept");
        format!("{:?}: {}", row.state, row.outcome.expect("it has ended").reason)
    });
    assert_eq!(
        ended,
        ["Applied: it is noted; the claim is open", "Applied: it is noted; the claim is approved"]
    );
    let said = events(&place.world, Origin::Site(bern)).into_iter().filter_map(|event| match event {
        Event::ClaimConsented { side, consents, reason, .. } => Some((side, consents, reason)),
        _ => None,
    });
    let why = "we gave it away; asked for at lyon".to_string();
    assert_eq!(said.collect::<Vec<_>>(), [(lyon, false, why.clone()), (lyon, true, why)]);
    let again = consent(&mut place.world, lyon, id, true);
    let said = format!("claim {id} is approved, so there is nothing to consent to");
    assert_eq!(again.unwrap_err().to_string(), said);
}

#[test]
fn p8_a_queued_consent_comes_too_late_for_a_claim_that_central_rejected() {
    let mut place = Place::new(59);
    let (lyon, bern) = (place.lyon, place.bern);
    place.boots(bern);
    let id = place.reach("it is open", &[ClaimState::Open]).id;
    place.agree();
    place.world.set_link(lyon, false);
    let Done::Queued(asked) = consent(&mut place.world, lyon, id, true).unwrap() else {
        panic!("it waits for central")
    };
    place.world.run(Origin::Central, "ann", move |tx| claim::reject(tx, id, "it was stolen")).unwrap();
    place.world.set_link(lyon, true);
    place.agree();
    let row = read(&place.world, Origin::Site(lyon), |view| view.proposal(asked.id)).expect("it is kept");
    let outcome = row.outcome.expect("it has ended");
    let said = format!("claim {id} is rejected, so there is nothing to consent to");
    assert_eq!((row.state, outcome.reason), (ProposalState::Refused, said));
    assert_eq!(place.states(Origin::Site(lyon)), [ClaimState::Rejected]);
}

#[test]
fn p8_many_claims_are_decided_at_once_after_a_look_at_them() {
    let mut place = Place::new(58);
    let (lyon, bern) = (place.lyon, place.bern);
    let macs: Vec<MacAddr> = (10..16).map(|last| MacAddr([0x52, 0x54, 0, 0, 3, last])).collect();
    for mac in macs.clone() {
        place.world.run(Origin::Central, "ann", move |tx| node::create(tx, mac, lyon, "")).unwrap();
    }
    let nodes: Vec<NodeId> = macs.iter().map(|mac| NodeId::of(*mac)).collect();
    place.world.until("bern knows of all", MINUTE * 20, |world| {
        let known = |node: &NodeId| read(world, Origin::Site(bern), |view| view.directory(*node)).is_some();
        nodes.iter().all(known)
    });
    for mac in &macs {
        boots(&mut place.world, bern, *mac);
    }
    place.reach("all are open", &[ClaimState::Open; 6]);
    let retired = nodes[2];
    let edit = NodeEdit { wanted: Some(Wanted::Retired), ..NodeEdit::default() };
    place.world.run(Origin::Central, "ann", move |tx| node::edit(tx, retired, &edit)).unwrap();
    let before = place.states(Origin::Central);
    let filter = ClaimFilter { to: Some(bern), ..ClaimFilter::default() };
    let asked = filter.clone();
    let preview = place
        .world
        .run(Origin::Central, "ann", move |tx| claim::decide(tx, &asked, true, "the office moves", true));
    let preview = preview.unwrap();
    let no: Vec<&str> = preview.iter().filter_map(|told| told.why_not.as_deref()).collect();
    assert_eq!(no.len(), 1);
    assert!(no[0].ends_with("cannot be approved: the machine is retired"), "{no:?}");
    assert_eq!(place.states(Origin::Central), before, "a look changes nothing");
    let done = place
        .world
        .run(Origin::Central, "ann", move |tx| claim::decide(tx, &filter, true, "the office moves", false));
    assert_eq!(done.unwrap().iter().filter(|told| told.decided).count(), 5);
    place.agree();
    let at_home = read(&place.world, Origin::Site(bern), |view| view.count_nodes(Some(bern)));
    assert_eq!(at_home, 5);
}

#[test]
fn p8_a_claim_on_a_machine_that_is_retired_is_withdrawn_whoever_retires_it() {
    for (seed, by_site) in [(65, false), (66, true)] {
        let mut place = Place::new(seed);
        let (lyon, bern, node) = (place.lyon, place.bern, place.node);
        place.set(lyon, SettingsEdit { autonomy: Some(Autonomy::Full), ..SettingsEdit::default() });
        place.agree();
        place.boots(bern);
        place.reach("it is open", &[ClaimState::Open]);
        let origin = if by_site { Origin::Site(lyon) } else { Origin::Central };
        let edit = NodeEdit { wanted: Some(Wanted::Retired), ..NodeEdit::default() };
        place.world.run(origin, "ann", move |tx| node::edit(tx, node, &edit)).unwrap();
        let row = place.reach("it is withdrawn", &[ClaimState::Withdrawn]);
        assert_eq!(row.reason, "the machine is retired");
    }
}
