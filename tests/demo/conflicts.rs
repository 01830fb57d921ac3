//! Both sides name one machine while the link is cut, once under each strategy.

use std::time::Duration;

use harness::{
    programs::{Central, Site},
    wire::Wire,
};
use serde_json::{Value, json};
use sync::id::MacAddr;

use crate::narrator::{Failed, Narrator};

const SOON: Duration = Duration::from_secs(20);

/// Who wins under each strategy: what the site calls the machine is written last.
const ENDS: [(&str, Option<&str>); 4] = [
    ("central_wins", Some("till")),
    ("site_wins", Some("kasse")),
    ("last_write", Some("kasse")),
    ("manual", None),
];

pub(crate) fn tell(
    narrator: &mut Narrator,
    central: &Central,
    site: &Site,
    wire: &Wire,
    machine: MacAddr,
) -> Result<(), Failed> {
    let path = format!("/nodes/{machine}");
    for (number, (strategy, winner)) in (1..).zip(ENDS) {
        let settings = json!({ "conflict_resolution": strategy });
        let answer = central.rest.patch(&format!("/sites/{}", site.id), &settings);
        narrator.check(
            &format!("{} settles by {strategy}", site.name),
            answer.status == 200,
            &answer.body,
        )?;
        wire.cut();
        let name =
            |word: &str| json!({ "hostname": format!("{word}-{number}"), "why": "the sticker says so" });
        let answer = central.rest.patch(&path, &name("till"));
        narrator.check(
            &format!("cut off, central calls the machine till-{number}"),
            answer.status == 200,
            &answer.body,
        )?;
        let answer = site.rest.patch(&path, &name("kasse"));
        narrator.check(
            &format!("and {} calls it kasse-{number}", site.name),
            answer.status == 200,
            &answer.body,
        )?;
        wire.heal();
        match winner {
            Some(word) => {
                let expected = json!([format!("{word}-{number}"), []]);
                both_show(
                    narrator,
                    &format!("on return both call it {word}-{number}"),
                    central,
                    site,
                    &path,
                    &expected,
                )?;
            }
            None => {
                let open = json!(["hostname"]);
                narrator.wait(
                    "on return nobody wins: it waits for a person, and both say so",
                    SOON,
                    || {
                        let seen = [central.rest.show(&path), site.rest.show(&path)]
                            .map(|row| row["contested"].clone());
                        (seen.iter().all(|contested| *contested == open), json!(seen))
                    },
                )?;
            }
        }
    }
    let open = central.rest.list("/sync/conflicts?open=true");
    narrator.check("the review desk has the one that is open", open.len() == 1, json!(open))?;
    let conflict = open[0]["conflict"].clone();
    let both: Vec<&Value> =
        open[0]["sides"].as_array().into_iter().flatten().map(|side| &side["value"]["value"]).collect();
    narrator.check("with both sides", json!(both) == json!(["till-4", "kasse-4"]), json!(both))?;
    let decision = json!({ "resolution": "accepted_site", "why": "they know the machine" });
    let answer = central.rest.post(&format!("/sync/conflicts/{conflict}/resolve"), &decision);
    narrator.check("an operator takes what the site says", answer.status == 200, &answer.body)?;
    both_show(narrator, "and both call it kasse-4", central, site, &path, &json!(["kasse-4", []]))?;
    let settled =
        site.rest.list("/journal").into_iter().filter(|row| row["event"] == "conflict_settled").count();
    narrator.check("the site's journal tells how all four ended", settled == 4, settled)
}

fn both_show(
    narrator: &mut Narrator,
    what: &str,
    central: &Central,
    site: &Site,
    path: &str,
    expected: &Value,
) -> Result<(), Failed> {
    narrator.wait(what, SOON, || {
        let seen = [central.rest.show(path), site.rest.show(path)]
            .map(|row| json!([row["hostname"], row["contested"]]));
        (seen.iter().all(|shown| shown == expected), json!(seen))
    })
}
