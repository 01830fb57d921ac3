//! When the new home of a machine may install it: never together with the former one.

use store::{
    Tx,
    command::{
        ask::{self, Ask, Done, What},
        claim, fence,
        node::{self, NodeEdit},
        report::{self, Report},
        site::SettingsEdit,
        task::{self},
    },
};
use sync::{
    id::{ClaimId, Origin, ReportId},
    journal::Event,
    policy::{Autonomy, ClaimState, NodeState, Phase, TaskState},
};

use crate::place::{DAY, HOUR, MAC, MINUTE, Place, events, order_at, publish, read};

#[test]
fn p8_h3_a_move_waits_for_the_orders_of_a_home_that_is_away_and_they_never_meet() {
    let mut place = Place::new(47);
    let (lyon, bern) = (place.lyon, place.bern);
    place.set(lyon, SettingsEdit { autonomy: Some(Autonomy::ReadOnly), ..SettingsEdit::default() });
    let workflow = publish(&mut place.world);
    let old = place.order(workflow).unwrap();
    place.world.until("lyon holds the order", MINUTE * 20, |world| {
        read(world, Origin::Site(lyon), |view| view.task(old.id)).is_some()
    });
    place.agree();
    place.world.set_link(lyon, false);
    place.boots(bern);
    let id = place.reach("it is open", &[ClaimState::Open]).id;
    place.world.run(Origin::Central, "ann", move |tx| claim::approve(tx, id, "it stands there")).unwrap();
    assert_eq!(place.home(Origin::Central), Some((Some(bern), 2)));
    let cancelled = read(&place.world, Origin::Central, |view| view.task(old.id)).unwrap();
    assert_eq!((cancelled.state, cancelled.cancelled), (TaskState::Cancelled, true));

    let until = old.order.as_ref().map(|order| order.not_after).unwrap();
    let why =
        format!("lyon may hold an order until {until}, and has not acknowledged that the machine moved");
    assert_eq!(place.fenced().as_deref(), Some(why.as_str()));
    let said = format!("node {} has moved and its former site may still install it: {why}", place.node);
    assert_eq!(place.order(workflow).unwrap_err().to_string(), said);
    let node = read(&place.world, Origin::Central, |view| view.node(place.node)).unwrap();
    let phase = |place: &Place| read(&place.world, Origin::Central, |view| view.phase(&node));
    assert_eq!(phase(&place), Phase::Migrating);
    place.agree();
    assert_eq!(place.home(Origin::Site(bern)), Some((Some(bern), 2)));

    // Lyon still holds its order, and may follow it as long as it lives.
    place.world.pass(DAY);
    assert!(place.fenced().is_some());
    place.world.pass(DAY * 2 + HOUR);
    assert_eq!(place.fenced(), None, "every order has expired");
    assert_eq!(phase(&place), Phase::Discovered);
    let new = place.order(workflow).unwrap();
    assert_eq!(new.site, bern);
    place.world.until("bern holds the order", MINUTE * 20, |world| {
        read(world, Origin::Site(bern), |view| view.task(new.id)).is_some()
    });
    assert_eq!(place.go_ahead(bern, &new), r#"200 {"answer":"go"}"#);
    let stale = place.go_ahead(lyon, &old);
    assert!(stale.starts_with("409 ") && stale.contains("the order ends at"), "{stale}");
    place.world.set_link(lyon, true);
    place.world.until("lyon gives it up", MINUTE * 20, |world| {
        read(world, Origin::Site(lyon), |view| view.away(MAC, lyon)).is_some()
    });
    place.agree();
    let gone = place.go_ahead(lyon, &old);
    assert!(!gone.contains("go\""), "{gone}");
    assert_eq!(place.home(Origin::Site(lyon)), None);
    let row = read(&place.world, Origin::Central, |view| view.node(place.node)).unwrap();
    assert_eq!((row.home, row.state), (Some(bern), NodeState::Installing));
}

#[test]
fn p8_h3_a_move_is_free_as_soon_as_the_former_home_has_acknowledged_it() {
    let mut place = Place::new(48);
    let (lyon, bern) = (place.lyon, place.bern);
    place.set(lyon, SettingsEdit { autonomy: Some(Autonomy::Full), ..SettingsEdit::default() });
    let workflow = publish(&mut place.world);
    let old = place.order(workflow).unwrap();
    place.agree();
    place.world.set_link(lyon, false);
    place.boots(bern);
    let id = place.reach("it is open", &[ClaimState::Open]).id;
    place.world.run(Origin::Central, "ann", move |tx| claim::approve(tx, id, "")).unwrap();
    place.world.pass(DAY * 30);
    let why = "lyon gives itself orders, and has not acknowledged that the machine moved";
    assert_eq!(place.fenced().as_deref(), Some(why), "no time is long enough for a site that is full");
    place.world.set_link(lyon, true);
    let node = place.node;
    place.world.until("the fence opens", MINUTE * 20, |world| {
        read(world, Origin::Central, |view| view.fence_closed(node)).is_none()
    });
    place.agree();
    assert_eq!(place.home(Origin::Site(lyon)), None);
    assert!(place.order(workflow).is_ok());
    let told = place.go_ahead(lyon, &old);
    assert!(!told.starts_with("200"), "{told}");
    let row = place.claims(Origin::Site(bern)).remove(0);
    let fence = row.fence.expect("it was approved");
    let how = "lyon has acknowledged that the machine is not its own";
    assert_eq!((fence.closed, fence.reason.as_str()), (false, how));
}

#[test]
fn p8_h3_an_attempt_past_its_first_write_ends_first() {
    let mut place = Place::new(49);
    let (lyon, bern) = (place.lyon, place.bern);
    let workflow = publish(&mut place.world);
    let old = place.order(workflow).unwrap();
    place.world.until("lyon holds the order", MINUTE * 20, |world| {
        read(world, Origin::Site(lyon), |view| view.task(old.id)).is_some()
    });
    place.agree();
    place.world.set_link(lyon, false);
    assert_eq!(place.go_ahead(lyon, &old), r#"200 {"answer":"go"}"#);
    place.boots(bern);
    let id = place.reach("it is open", &[ClaimState::Open]).id;
    place.world.run(Origin::Central, "ann", move |tx| claim::approve(tx, id, "")).unwrap();
    place.world.set_link(lyon, true);
    let node = place.node;
    place.world.until("central hears of the attempt", MINUTE * 20, |world| {
        let row = read(world, Origin::Central, |view| view.task(old.id)).unwrap();
        row.state == TaskState::Installing && row.consumed_by.is_some()
    });
    place.world.until("lyon hears of the move", MINUTE * 20, |world| {
        read(world, Origin::Site(lyon), |view| view.away(MAC, lyon)).is_some()
    });
    place.world.pass(MINUTE * 15);
    assert_eq!(place.fenced().as_deref(), Some("an attempt at lyon is past its first write"));
    // Lyon still has the machine before it, and decides nothing about it any more.
    let edit = NodeEdit { hostname: Some("till-1".into()), ..NodeEdit::default() };
    let late = place.world.run(Origin::Site(lyon), "bob", move |tx| node::edit(tx, node, &edit));
    let said = format!("node {node} is at home at site {bern}, and is decided about there");
    assert_eq!(late.map(drop).map_err(|error| error.to_string()), Err(said));
    let report = ReportId(place.world.random.bytes());
    let done = place.world.run(Origin::Site(lyon), "machine", move |tx| {
        report::event(tx, lyon, report, node, (old.id, 1), &Report::InstallComplete)
    });
    assert_eq!(done.unwrap().status, 200, "its facts are still accepted");
    place.world.until("the fence opens", MINUTE * 20, |world| {
        read(world, Origin::Central, |view| view.fence_closed(node)).is_none()
    });
    let ended = read(&place.world, Origin::Central, |view| view.task(old.id)).unwrap();
    assert_eq!(ended.state, TaskState::Completed);
    place.world.until("lyon lets go of it", MINUTE * 20, |world| {
        read(world, Origin::Site(lyon), |view| view.node(node)).is_none()
    });
    place.agree();
    assert_eq!(read(&place.world, Origin::Central, |view| view.quarantine()), []);
}

#[test]
fn p8_h3_a_limited_home_that_tries_again_while_it_is_cut_off_meets_no_open_fence() {
    let mut place = Place::new(60);
    let (lyon, bern, node) = (place.lyon, place.bern, place.node);
    let workflow = publish(&mut place.world);
    let (order_max_s, attempts) = (Some(72 * 3_600), Some(5));
    place.set(lyon, SettingsEdit { order_max_s, max_install_attempts: attempts, ..Default::default() });
    let old = place.order(workflow).unwrap();
    place.world.until("lyon holds the order", MINUTE * 20, |world| {
        read(world, Origin::Site(lyon), |view| view.task(old.id)).is_some()
    });
    place.agree();
    place.world.set_link(lyon, false);
    // What central sets now lyon does not follow yet.
    let (order_max_s, attempts) = (Some(7_200), Some(1));
    place.set(lyon, SettingsEdit { order_max_s, max_install_attempts: attempts, ..Default::default() });
    place.boots(bern);
    let id = place.reach("it is open", &[ClaimState::Open]).id;
    place.world.run(Origin::Central, "ann", move |tx| claim::approve(tx, id, "it stands there")).unwrap();
    let retry = move |tx: &mut Tx<'_>| task::retry(tx, old.id, "once more");
    for attempt in 1..=5 {
        if attempt > 1 {
            place.world.run(Origin::Site(lyon), "bob", retry).unwrap();
        }
        for it in [Report::GoAhead, Report::InstallFailed("the disk is broken".into())] {
            let report = ReportId(place.world.random.bytes());
            let said = move |tx: &mut Tx<'_>| report::event(tx, lyon, report, node, (old.id, attempt), &it);
            assert_eq!(place.world.run(Origin::Site(lyon), "machine", said).unwrap().status, 200);
        }
        assert!(place.fenced().is_some(), "lyon has just begun attempt {attempt}");
        place.world.pass(DAY * 2);
    }
    assert!(place.world.run(Origin::Site(lyon), "bob", retry).is_err(), "five are all");
    place.world.pass(DAY * 6);
    assert_eq!(place.fenced(), None, "by now it can begin nothing any more");
}

#[test]
fn p8_h3_after_the_end_of_an_order_that_failed_a_limited_site_asks_before_it_tries_again() {
    let mut place = Place::new(62);
    let (lyon, node) = (place.lyon, place.node);
    let workflow = publish(&mut place.world);
    let old = place.order(workflow).unwrap();
    place.world.until("lyon holds the order", MINUTE * 20, |world| {
        read(world, Origin::Site(lyon), |view| view.task(old.id)).is_some()
    });
    place.agree();
    place.world.set_link(lyon, false);
    for it in [Report::GoAhead, Report::InstallFailed("the disk is broken".into())] {
        let report = ReportId(place.world.random.bytes());
        let said = move |tx: &mut Tx<'_>| report::event(tx, lyon, report, node, (old.id, 1), &it);
        assert_eq!(place.world.run(Origin::Site(lyon), "machine", said).unwrap().status, 200);
    }
    place.world.pass(DAY * 4);
    let asked = Ask { what: What::RetryTask { task: old.id }, why: "once more".into() };
    let done = place.world.run(Origin::Site(lyon), "bob", move |tx| ask::perform(tx, &asked)).unwrap();
    assert!(matches!(&done, Done::Queued(_)), "{done:?}");
    place.world.set_link(lyon, true);
    place.world.until("central has given it another", MINUTE * 20, |world| {
        let row = read(world, Origin::Site(lyon), |view| view.task(old.id));
        row.and_then(|row| row.order).is_some_and(|order| order.attempt == 2)
    });
}

#[test]
fn p8_h3_a_machine_that_moves_on_waits_for_every_home_that_may_still_install_it() {
    let mut place = Place::new(61);
    let (lyon, bern, node) = (place.lyon, place.bern, place.node);
    let oslo = place.world.add_site("oslo");
    let workflow = publish(&mut place.world);
    for site in [lyon, oslo] {
        place.set(site, SettingsEdit { autonomy: Some(Autonomy::Full), ..SettingsEdit::default() });
    }
    place.agree();
    place.world.set_link(lyon, false);
    for (site, epoch) in [(bern, 1), (oslo, 2)] {
        place.world.until("it is known where the machine belongs", MINUTE * 20, |world| {
            let told = read(world, Origin::Site(site), |view| view.directory(node));
            told.is_some_and(|row| row.stub.home_epoch == epoch)
        });
        place.boots(site);
        let id = ClaimId::of(node, site, epoch);
        place.world.until("central has the claim", MINUTE * 20, |world| {
            read(world, Origin::Central, |view| view.claim(id)).is_some()
        });
        place.world.run(Origin::Central, "ann", move |tx| claim::approve(tx, id, "it goes on")).unwrap();
        place.world.until("it has moved", MINUTE * 20, |world| {
            read(world, Origin::Site(site), |view| view.node(node)).is_some_and(|row| row.home == Some(site))
        });
    }
    let why = "lyon gives itself orders, and has not acknowledged that the machine moved";
    assert_eq!(place.fenced().as_deref(), Some(why));
    place.world.pass(MINUTE * 15);
    let refused = order_at(&mut place.world, Origin::Site(oslo), node, workflow).unwrap_err().to_string();
    assert!(refused.ends_with(why), "{refused}");
    // Whoever breaks fences begins with the first.
    let second = ClaimId::of(node, oslo, 2);
    let broken =
        place.world.run(Origin::Central, "ann", move |tx| fence::break_fence(tx, second, "pos-1", ""));
    let first = ClaimId::of(node, bern, 1);
    assert_eq!(
        broken.unwrap_err().to_string(),
        format!("the fence of claim {first} on the same machine is closed: break that one first")
    );
    place.world.set_link(lyon, true);
    place.world.until("oslo may install it", MINUTE * 20, |world| {
        read(world, Origin::Site(oslo), |view| view.fence_closed(node)).is_none()
    });
    assert_eq!(place.fenced(), None);
    assert_eq!(place.order(workflow).unwrap().site, oslo);
}

#[test]
fn p8_h3_a_person_who_types_its_name_breaks_the_fence_of_a_home_that_burned_down() {
    let mut place = Place::new(57);
    let (lyon, bern) = (place.lyon, place.bern);
    place.set(lyon, SettingsEdit { autonomy: Some(Autonomy::Full), ..SettingsEdit::default() });
    let workflow = publish(&mut place.world);
    place.agree();
    place.world.set_link(lyon, false);
    place.boots(bern);
    let id = place.reach("it is open", &[ClaimState::Open]).id;
    place.world.run(Origin::Central, "ann", move |tx| claim::approve(tx, id, "lyon burned down")).unwrap();
    assert!(place.order(workflow).is_err());
    let wrong = place.world.run(Origin::Central, "ann", move |tx| fence::break_fence(tx, id, "pos-2", ""));
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "the machine is `pos-1`, not `pos-2`: type its name to break its fence"
    );
    let broken = place
        .world
        .run(Origin::Central, "ann", move |tx| fence::break_fence(tx, id, "pos-1", "lyon burned down"));
    assert_eq!(broken.unwrap().fence.and_then(|fence| fence.broken_by).as_deref(), Some("ann"));
    let again = place.world.run(Origin::Central, "ann", move |tx| fence::break_fence(tx, id, "pos-1", ""));
    assert_eq!(
        again.unwrap_err().to_string(),
        format!("claim {id} is approved and no fence of it is closed")
    );
    assert!(place.order(workflow).is_ok());
    place.agree();
    let told = events(&place.world, Origin::Site(bern));
    let broke =
        |event: &Event| matches!(event, Event::FenceOpened { broken_by: Some(by), .. } if by == "ann");
    assert!(told.iter().any(broke), "the site knows who broke it");
}
