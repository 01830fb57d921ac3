//! Both sides decide about one machine while the link is down, and meet again: who wins, what waits for a person, and
//! what people do then.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use expect_test::expect;
use harness::world::World;
use store::{
    StoreError, Tx,
    command::{
        boot::{self, Answered},
        conflict::{self, Decision, ManyDecision},
        node::{self, NodeEdit},
        site::{self, SettingsEdit},
    },
    view::{ConflictFilter, ConflictRow, JournalFilter},
};
use sync::{
    id::{MacAddr, NodeId, Origin, SiteId},
    journal::Event,
    policy::{Accepted, Autonomy, Strategy, Wanted},
};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// Central, a `full` site that settles by `strategy`, and machines at home there that it knows.
struct Office {
    world: World,
    site: SiteId,
    nodes: Vec<NodeId>,
}

impl Office {
    fn new(seed: u64, strategy: Strategy, machines: u8) -> Self {
        let mut world = World::new(seed);
        let site = world.add_site("lyon");
        let mut office = Office { world, site, nodes: vec![] };
        office.settings(SettingsEdit {
            autonomy: Some(Autonomy::Full),
            conflict_resolution: Some(strategy),
            ..SettingsEdit::default()
        });
        for number in 1..=machines {
            let mac = MacAddr([0x52, 0x54, 0, 0, 0, number]);
            let name = format!("pos-{number}");
            let made = office.at(Origin::Central, move |tx| node::create(tx, mac, site, &name));
            office.nodes.push(made.unwrap());
        }
        office.meet();
        office
    }

    fn at<T: Send + 'static>(
        &mut self,
        origin: Origin,
        command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let by = if origin == Origin::Central { "ann" } else { "bob" };
        self.world.run(origin, by, command)
    }

    fn settings(&mut self, edit: SettingsEdit) {
        let site = self.site;
        self.at(Origin::Central, move |tx| site::set(tx, site, &edit, "")).unwrap();
    }

    fn edit(&mut self, origin: Origin, place: usize, edit: NodeEdit) {
        let node = self.nodes[place];
        self.at(origin, move |tx| node::edit(tx, node, &edit)).unwrap();
    }

    fn name(&mut self, origin: Origin, place: usize, name: &str) {
        self.edit(origin, place, NodeEdit { hostname: Some(name.into()), ..NodeEdit::default() });
    }

    fn want(&mut self, origin: Origin, place: usize, wanted: Wanted) {
        self.edit(origin, place, NodeEdit { wanted: Some(wanted), ..NodeEdit::default() });
    }

    fn here(&self) -> Origin {
        Origin::Site(self.site)
    }

    /// Connects both, and waits until they have the same.
    fn meet(&mut self) {
        let site = self.site;
        self.world.set_link(site, true);
        self.world.until("both agree", 10 * MINUTE, |world| {
            let nodes = |origin| world.store(origin).read(|view| view.count_nodes(None)).unwrap();
            nodes(Origin::Site(site)) == nodes(Origin::Central) && world.in_agreement(site)
        });
    }

    fn cut(&mut self) {
        self.world.set_link(self.site, false);
    }

    /// A machine in the words of both replicas, which must be the same.
    fn machine(&self, place: usize) -> String {
        let told = |origin: Origin| {
            let row = self.world.store(origin).read(|view| view.node(self.nodes[place])).unwrap().unwrap();
            let tags: Vec<String> = row.tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!(
                "{} {} [{}] contested: {}",
                row.hostname,
                row.wanted,
                tags.join(" "),
                row.contested.join(" ")
            )
        };
        let (central, site) = (told(Origin::Central), told(self.here()));
        assert_eq!(central, site, "both have the same in force");
        central.trim_end().to_string()
    }

    fn conflicts(&self, origin: Origin) -> Vec<ConflictRow> {
        self.world.store(origin).read(|view| view.conflicts(&ConflictFilter::default())).unwrap()
    }

    /// Every disagreement as a replica keeps it.
    fn desk(&self, origin: Origin) -> String {
        let mut told = String::new();
        for row in self.conflicts(origin) {
            let sides: Vec<String> = row
                .sides
                .iter()
                .map(|side| format!("{} {} by {}", self.name_of(side.site), side.value, side.by))
                .collect();
            let end = match (&row.ended, &row.reason) {
                (Some(ended), _) => {
                    let word = ended.resolution.map_or("withdrawn", Accepted::as_str);
                    let back = ended
                        .reverted_by
                        .as_ref()
                        .map(|by| format!(", taken back by {by}"))
                        .unwrap_or_default();
                    format!("{word} by {}: {} ({}){back}", ended.by, ended.value, ended.why)
                }
                (None, Some(reason)) => format!("open: {reason}"),
                (None, None) => "open".to_string(),
            };
            writeln!(told, "{} {}: {}\n  {end}", row.kind, row.path, sides.join(" | ")).unwrap();
        }
        told
    }

    fn name_of(&self, origin: Origin) -> String {
        self.world.name(origin)
    }

    fn open(&self) -> Vec<ConflictRow> {
        let mut all = self.conflicts(Origin::Central);
        all.retain(|row| row.ended.is_none());
        all
    }

    fn resolve(&mut self, conflict: u64, decision: Decision) -> Result<conflict::Decided, StoreError> {
        self.at(Origin::Central, move |tx| conflict::resolve(tx, conflict, &decision))
    }

    /// Both name the machine, tag it and wish something for three days.
    fn three_days_apart(&mut self) {
        self.cut();
        for day in 1..=3 {
            for (origin, name) in [(Origin::Central, "till"), (self.here(), "kasse")] {
                let tags = BTreeMap::from([
                    ("rack".to_string(), Some(format!("{name}-{day}"))),
                    (name.to_string(), Some(day.to_string())),
                ]);
                let edit = NodeEdit { hostname: Some(format!("{name}-{day}")), tags, ..NodeEdit::default() };
                self.edit(origin, 0, edit);
                self.world.pass(DAY / 4);
            }
            self.world.pass(DAY / 2);
        }
        self.meet();
    }
}

#[test]
fn p7_h2_both_sides_edit_one_machine_for_three_days_under_each_strategy() {
    let mut told = String::new();
    for strategy in Strategy::ALL {
        let mut office = Office::new(1, *strategy, 1);
        office.three_days_apart();
        writeln!(told, "{strategy}: {}", office.machine(0)).unwrap();
        told += &office.desk(Origin::Central);
        let open = office.open().len();
        assert_eq!(office.conflicts(office.here()).len(), open, "the site has what is open");
    }
    expect![[r#"
        central_wins: till-3 keep [kasse=3 rack=till-3 till=3] contested:
        node hostname: central {"value":"till-3"} by ann | lyon {"value":"kasse-3"} by bob
          accepted_central by policy: {"value":"till-3"} (`conflict_resolution` is `central_wins`)
        node tags/rack: central {"value":"till-3"} by ann | lyon {"value":"kasse-3"} by bob
          accepted_central by policy: {"value":"till-3"} (`conflict_resolution` is `central_wins`)
        last_write: kasse-3 keep [kasse=3 rack=kasse-3 till=3] contested:
        node hostname: central {"value":"till-3"} by ann | lyon {"value":"kasse-3"} by bob
          accepted_site by policy: {"value":"kasse-3"} (`conflict_resolution` is `last_write`)
        node tags/rack: central {"value":"till-3"} by ann | lyon {"value":"kasse-3"} by bob
          accepted_site by policy: {"value":"kasse-3"} (`conflict_resolution` is `last_write`)
        site_wins: kasse-3 keep [kasse=3 rack=kasse-3 till=3] contested:
        node hostname: central {"value":"till-3"} by ann | lyon {"value":"kasse-3"} by bob
          accepted_site by policy: {"value":"kasse-3"} (`conflict_resolution` is `site_wins`)
        node tags/rack: central {"value":"till-3"} by ann | lyon {"value":"kasse-3"} by bob
          accepted_site by policy: {"value":"kasse-3"} (`conflict_resolution` is `site_wins`)
        manual: kasse-3 keep [kasse=3 rack=kasse-3 till=3] contested: hostname tags/rack
        node hostname: central {"value":"till-3"} by ann | lyon {"value":"kasse-3"} by bob
          open: `conflict_resolution` is `manual`, so a person decides
        node tags/rack: central {"value":"till-3"} by ann | lyon {"value":"kasse-3"} by bob
          open: `conflict_resolution` is `manual`, so a person decides
    "#]]
    .assert_eq(&told);
}

#[test]
fn p7_what_the_policy_settled_is_journalled_with_both_sides_and_the_site_is_told() {
    let mut office = Office::new(2, Strategy::LastWrite, 1);
    office.three_days_apart();
    let settled = |origin: Origin| -> Vec<Event> {
        let rows = office.world.store(origin).read(|view| view.journal(&JournalFilter::default())).unwrap();
        rows.into_iter()
            .filter_map(|row| row.event)
            .filter(|event| matches!(event, Event::ConflictSettled { .. }))
            .collect()
    };
    let (central, site) = (settled(Origin::Central), settled(office.here()));
    assert_eq!(central, site);
    let Event::ConflictSettled { path, resolution, value, sides, why, .. } = &central[0] else {
        panic!("settled")
    };
    expect![[r#"
        hostname accepted_site {"value":"kasse-3"} because `conflict_resolution` is `last_write`
    "#]]
    .assert_eq(&format!("{path} {resolution} {value} because {why}\n"));
    let sides: Vec<serde_json::Value> = serde_json::from_str(sides).unwrap();
    let by: Vec<_> = sides
        .iter()
        .map(|side| (side["by"].as_str().unwrap(), side["value"]["value"].as_str().unwrap()))
        .collect();
    assert_eq!(by, [("ann", "till-3"), ("bob", "kasse-3")]);
}

#[test]
fn h3_p7_the_safety_floor_keeps_open_what_would_newly_wipe_or_retire() {
    let mut office = Office::new(3, Strategy::CentralWins, 3);
    office.cut();
    office.want(Origin::Central, 0, Wanted::Reprovision);
    office.want(office.here(), 0, Wanted::Keep);
    office.want(Origin::Central, 1, Wanted::Keep);
    office.want(office.here(), 1, Wanted::Deprovision);
    office.want(Origin::Central, 2, Wanted::Retired);
    office.want(office.here(), 2, Wanted::Retired);
    office.meet();
    let machines: Vec<String> = (0..3).map(|place| office.machine(place)).collect();
    expect![[r#"
        pos-1 keep [] contested: wanted
        pos-2 keep [] contested:
        pos-3 retired [] contested:"#]]
    .assert_eq(&machines.join("\n"));
    expect![[r#"
        node wanted: lyon {"wanted":"keep"} by bob | central {"wanted":"reprovision"} by ann
          open: held open by the safety floor: the machine would newly be wanted `reprovision`
        node wanted: lyon {"wanted":"deprovision"} by bob | central {"wanted":"keep"} by ann
          accepted_central by policy: {"wanted":"keep"} (`conflict_resolution` is `central_wins`)
        node wanted: lyon {"wanted":"retired"} by bob | central {"wanted":"retired"} by ann
          accepted_central by policy: {"wanted":"retired"} (all sides say the same)
    "#]]
    .assert_eq(&office.desk(Origin::Central));

    // A person decides, and only one who has seen all sides.
    let open = office.open();
    let (conflict, seen) = (open[0].conflict, vec![open[0].sides[0].nonce]);
    let decision =
        Decision { resolution: Some(Accepted::Central), why: "new image".into(), ..Decision::default() };
    let error = office.resolve(conflict, Decision { seen, ..decision.clone() }).unwrap_err();
    assert_eq!(error.to_string(), format!("conflict {conflict} has another side by now; look at it again"));
    let dry = office.resolve(conflict, Decision { dry_run: true, ..decision.clone() }).unwrap();
    assert_eq!(dry.value.unwrap()["wanted"], "reprovision");
    assert_eq!(office.open().len(), 1, "nothing was decided yet");
    office.resolve(conflict, decision.clone()).unwrap();
    office.meet();
    expect!["pos-1 reprovision [] contested:"].assert_eq(&office.machine(0));
    let again = office.resolve(conflict, decision).unwrap_err().to_string();
    assert!(again.starts_with(&format!("conflict {conflict} ended at ")), "{again}");
}

#[test]
fn p7_h2_people_take_a_side_or_put_a_value_together_and_take_it_back_again() {
    let mut office = Office::new(4, Strategy::Manual, 3);
    office.cut();
    for place in 0..3 {
        office.name(Origin::Central, place, &format!("till-{place}"));
        office.name(office.here(), place, &format!("kasse-{place}"));
    }
    office.meet();
    let open: Vec<u64> = office.open().iter().map(|row| row.conflict).collect();
    let take = |resolution| Decision {
        resolution: Some(resolution),
        why: "asked them".into(),
        ..Decision::default()
    };
    let merged =
        |value| Decision { value: Some(serde_json::json!({ "value": value })), ..take(Accepted::Merged) };
    let mut refused = String::new();
    for (conflict, wrong) in [
        (open[0], Decision::default()),
        (open[0], take(Accepted::Merged)),
        (open[0], merged("not a name")),
        (open[0], Decision { value: Some(serde_json::json!({ "value": 7 })), ..take(Accepted::Merged) }),
        (open[0], Decision { value: Some(serde_json::json!("till")), ..take(Accepted::Merged) }),
        (open[0], Decision { resolution: Some(Accepted::Site), ..merged("till-9") }),
        (99, take(Accepted::Central)),
    ] {
        let error = office.resolve(conflict, wrong).unwrap_err();
        writeln!(refused, "{error}").unwrap();
        assert_eq!(office.open().len(), 3, "{error}");
    }
    expect![[r#"
        say whose word counts: `accepted_central`, `accepted_site` or `merged`
        `merged` needs the value that shall count
        `not a name` is no host name (RFC 1123 §2.1)
        field `value` is not text
        a value is an object with the fields of the register
        `accepted_site` takes a side as it is; a value of one's own is `merged`
        conflict 99 is not known here
    "#]]
    .assert_eq(&refused);
    office.resolve(open[0], take(Accepted::Central)).unwrap();
    office.resolve(open[1], take(Accepted::Site)).unwrap();
    office.resolve(open[2], merged("checkout-2")).unwrap();
    office.meet();
    expect![[r#"
        node hostname: lyon {"value":"kasse-0"} by bob | central {"value":"till-0"} by ann
          accepted_central by ann: {"value":"till-0"} (asked them)
        node hostname: lyon {"value":"kasse-1"} by bob | central {"value":"till-1"} by ann
          accepted_site by ann: {"value":"kasse-1"} (asked them)
        node hostname: lyon {"value":"kasse-2"} by bob | central {"value":"till-2"} by ann
          merged by ann: {"value":"checkout-2"} (asked them)
    "#]]
    .assert_eq(&office.desk(Origin::Central));
    assert!(office.conflicts(office.here()).is_empty());

    // One is taken back; one was written again since; one that was put together goes back to a side that is named.
    let revert = |office: &mut Office, conflict, to| {
        office.at(Origin::Central, move |tx| conflict::revert(tx, conflict, to, "it was wrong"))
    };
    revert(&mut office, open[0], None).unwrap();
    let twice = revert(&mut office, open[0], None).unwrap_err().to_string();
    assert_eq!(twice, "ann took that back already");
    office.name(office.here(), 1, "kasse-9");
    office.meet();
    let late = revert(&mut office, open[1], None).unwrap_err().to_string();
    assert_eq!(late, "`hostname` was written again since; change it like any other value");
    let unclear = revert(&mut office, open[2], None).unwrap_err().to_string();
    assert_eq!(unclear, "say which side shall count, by its nonce");
    let side = office.conflicts(Origin::Central)[2].sides[0].nonce;
    revert(&mut office, open[2], Some(side)).unwrap();
    office.meet();
    let machines: Vec<String> = (0..3).map(|place| office.machine(place)).collect();
    expect![[r#"
        kasse-0 keep [] contested:
        kasse-9 keep [] contested:
        kasse-2 keep [] contested:"#]]
    .assert_eq(&machines.join("\n"));
}

#[test]
fn p7_many_are_settled_at_once_after_a_preview() {
    let mut office = Office::new(5, Strategy::Manual, 4);
    office.cut();
    for place in 0..3 {
        office.name(Origin::Central, place, &format!("till-{place}"));
        office.name(office.here(), place, &format!("kasse-{place}"));
    }
    office.want(Origin::Central, 3, Wanted::Retired);
    office.want(office.here(), 3, Wanted::Keep);
    office.meet();
    let many = |office: &mut Office, decision: ManyDecision| {
        let told = office.at(Origin::Central, move |tx| conflict::resolve_many(tx, &decision));
        let told: Vec<String> = told
            .unwrap()
            .into_iter()
            .map(|one| match (one.resolution, one.left) {
                (Some(word), _) => format!("{} {word} {}", one.path, one.value.unwrap_or_default()),
                (None, left) => format!("{} left: {}", one.path, left.unwrap_or_default()),
            })
            .collect();
        told.join("\n")
    };
    let by_central = ManyDecision { strategy: Some(Strategy::CentralWins), ..ManyDecision::default() };
    let preview = many(&mut office, ManyDecision { dry_run: true, ..by_central.clone() });
    expect![[r#"
        hostname accepted_central {"value":"till-0"}
        hostname accepted_central {"value":"till-1"}
        hostname accepted_central {"value":"till-2"}
        wanted left: held open by the safety floor: the machine would newly be wanted `retired`"#]]
    .assert_eq(&preview);
    assert_eq!(office.open().len(), 4, "a preview settles nothing");
    let names = ManyDecision { path: Some("hostname".into()), site: Some(office.site), ..by_central.clone() };
    many(&mut office, names);
    assert_eq!(office.open().len(), 1);
    assert_eq!(
        many(
            &mut office,
            ManyDecision { strategy: Some(Strategy::SiteWins), dry_run: true, ..by_central.clone() }
        ),
        "wanted accepted_site {\"wanted\":\"keep\"}"
    );
    let done = many(&mut office, ManyDecision { destructive: true, ..by_central });
    expect![[r#"wanted accepted_central {"wanted":"retired"}"#]].assert_eq(&done);
    office.meet();
    let machines: Vec<String> = (0..4).map(|place| office.machine(place)).collect();
    expect![[r#"
        till-0 keep [] contested:
        till-1 keep [] contested:
        till-2 keep [] contested:
        pos-4 retired [] contested:"#]]
    .assert_eq(&machines.join("\n"));
    let manual = ManyDecision { strategy: Some(Strategy::Manual), ..ManyDecision::default() };
    let refused = office.at(Origin::Central, move |tx| conflict::resolve_many(tx, &manual)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "say how they shall be settled: `central_wins`, `site_wins` or `last_write`"
    );
    let here = office.here();
    let at_site = office.at(here, |tx| conflict::resolve_many(tx, &ManyDecision::default())).unwrap_err();
    assert_eq!(
        at_site.to_string(),
        "central settles disagreements; write the value here, and central hears of it"
    );
}

#[test]
fn h2_an_admin_settles_by_hand_what_central_settles_neutrally_at_the_same_time() {
    let mut office = Office::new(6, Strategy::Manual, 1);
    office.cut();
    office.name(Origin::Central, 0, "till-1");
    office.name(office.here(), 0, "kasse-1");
    office.meet();
    assert_eq!(office.machine(0), "pos-1 keep [] contested: hostname");
    // Cut off once more, the site has both sides before it; central changes its mind about who decides.
    office.cut();
    office.name(office.here(), 0, "checkout-1");
    office.settings(SettingsEdit {
        conflict_resolution: Some(Strategy::CentralWins),
        ..SettingsEdit::default()
    });
    let at_central =
        office.world.store(Origin::Central).read(|view| view.node(office.nodes[0])).unwrap().unwrap();
    assert_eq!((at_central.hostname.as_str(), at_central.contested.len()), ("till-1", 0), "settled at once");
    office.meet();
    assert_eq!(office.machine(0), "checkout-1 keep [] contested:");
}

/// Two sites that are cut off see one machine and name it: lyon first, then bern, with this much between bern's clock and
/// lyon's and the true time. Gives the name that is left when both are heard, lyon before bern writes.
fn named_by(seed: u64, lyon_ahead_ms: i64, bern_ahead_ms: i64) -> String {
    let mut world = World::new(seed);
    let sites = ["lyon", "bern"].map(|name| world.add_site(name));
    for site in sites {
        let edit = SettingsEdit { conflict_resolution: Some(Strategy::LastWrite), ..SettingsEdit::default() };
        world.run(Origin::Central, "ann", move |tx| site::set(tx, site, &edit, "")).unwrap();
        world.until("both agree", MINUTE, |world| world.in_agreement(site));
        world.set_link(site, false);
    }
    let mac = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
    let node = NodeId::of(mac);
    for (site, ahead_ms) in sites.into_iter().zip([lyon_ahead_ms, bern_ahead_ms]) {
        world.set_clock(Origin::Site(site), ahead_ms);
        let seen = Answered {
            mac,
            answer: "local disk".into(),
            reason: "nothing is planned".into(),
            adopt: true,
            booting: None,
            local_disk: true,
            claims: false,
        };
        world.run(Origin::Site(site), "boot", move |tx| boot::answered(tx, &seen)).unwrap();
    }
    for (site, name) in sites.into_iter().zip(["kasse-1", "caisse-1"]) {
        let edit = NodeEdit { hostname: Some(name.into()), ..NodeEdit::default() };
        world.run(Origin::Site(site), "bob", move |tx| node::edit(tx, node, &edit)).unwrap();
        world.pass(60 * MINUTE);
        world.set_link(site, true);
        world.until("both agree", 10 * MINUTE, |world| world.in_agreement(site));
    }
    let row = world.store(Origin::Central).read(|view| view.node(node)).unwrap().unwrap();
    assert!(row.contested.is_empty(), "{:?}", row.contested);
    row.hostname
}

#[test]
fn p15_p7_a_clock_that_is_ahead_wins_nothing_by_it_and_one_that_is_behind_loses_by_its_own_word() {
    let (day, year) = (86_400_000, 31_536_000_000);
    assert_eq!(named_by(71, 0, 0), "caisse-1", "the last one wins");
    assert_eq!(named_by(72, day, 0), "caisse-1", "central heard of the other before");
    assert_eq!(named_by(73, 0, -year), "kasse-1", "whoever says that it was long ago is believed");
}

#[test]
fn p7_policy_changes_in_the_middle_of_a_partition_and_the_one_that_holds_at_the_end_settles() {
    let mut office = Office::new(8, Strategy::CentralWins, 1);
    office.cut();
    office.name(Origin::Central, 0, "till-1");
    office.name(office.here(), 0, "kasse-1");
    office.world.pass(DAY);
    office
        .settings(SettingsEdit { conflict_resolution: Some(Strategy::SiteWins), ..SettingsEdit::default() });
    office.meet();
    assert_eq!(office.machine(0), "kasse-1 keep [] contested:");
}

#[test]
fn h5_what_central_settled_comes_back_after_it_was_restored() {
    let mut office = Office::new(9, Strategy::SiteWins, 1);
    let here = office.here();
    office.three_days_apart();
    let before = office.machine(0);
    office.world.crash(here);
    office.world.start(here);
    office.world.crash(Origin::Central);
    office.world.start(Origin::Central);
    office.meet();
    assert_eq!(office.machine(0), before);
    assert!(office.open().is_empty());
}

#[test]
fn p7_h2_ten_thousand_machines_half_of_them_in_conflict_reconnect_and_only_what_policy_may_not_settle_is_left()
 {
    const MACHINES: u16 = 10_000;
    const BATCH: usize = 500;
    let mac = |number: u16| MacAddr([0x52, 0x54, 0, 1, number.to_be_bytes()[0], number.to_be_bytes()[1]]);
    let mut office = Office::new(77, Strategy::LastWrite, 0);
    let (site, numbers) = (office.site, (0..MACHINES).collect::<Vec<_>>());
    for batch in numbers.chunks(BATCH) {
        let macs: Vec<MacAddr> = batch.iter().map(|number| mac(*number)).collect();
        let made = office.at(Origin::Central, move |tx| {
            macs.into_iter().map(|mac| node::create(tx, mac, site, "")).collect::<Result<Vec<_>, _>>()
        });
        office.nodes.extend(made.unwrap());
    }
    office.meet();
    office.cut();
    // Every second machine gets two names; of each hundredth one, central wants the disk written and the site wants it retired.
    for (origin, word, wanted) in
        [(Origin::Central, "till", Wanted::Reprovision), (Origin::Site(site), "kasse", Wanted::Retired)]
    {
        office.world.pass(MINUTE);
        let edited: Vec<(usize, NodeId)> = office.nodes.iter().copied().enumerate().step_by(2).collect();
        for batch in edited.chunks(BATCH) {
            let batch = batch.to_vec();
            let edits = move |tx: &mut Tx<'_>| {
                batch.into_iter().try_for_each(|(number, node)| {
                    let edit = NodeEdit {
                        hostname: Some(format!("{word}-{number}")),
                        wanted: number.is_multiple_of(100).then_some(wanted),
                        ..NodeEdit::default()
                    };
                    node::edit(tx, node, &edit).map(drop)
                })
            };
            office.at(origin, edits).unwrap();
        }
    }
    office.meet();
    let conflicts = office.conflicts(Origin::Central);
    let (open, ended): (Vec<_>, Vec<_>) = conflicts.iter().partition(|row| row.ended.is_none());
    assert_eq!((open.len(), ended.len()), (100, 5_000));
    assert!(open.iter().all(|row| row.path == "wanted" && row.reason.is_some()));
    assert!(ended.iter().all(|row| row.path == "hostname"));
    assert_eq!(office.machine(0), "kasse-0 reprovision [] contested: wanted");
    assert_eq!(office.machine(2), "kasse-2 keep [] contested:");
    assert_eq!(office.machine(9_998), "kasse-9998 keep [] contested:");
    assert_eq!(office.machine(1), " keep [] contested:");
}
