//! A site that central revokes: turned away at once, told why, still of use to its machines, and brought back.

use expect_test::expect;
use harness::programs::{run, wait_for};
use serde_json::{Value, json};

use crate::{
    office::{self, Office, SOON, machine},
    words::masked,
};

/// The lines of `holdfast-site status` that speak of central and of the certificate.
fn status(office: &Office) -> String {
    let (code, out, complaint) = office.site.status();
    assert_eq!(code, 0, "{complaint}");
    let lines: Vec<&str> = out.lines().skip(1).take_while(|line| !line.starts_with("autonomy")).collect();
    masked(&lines.join("\n"), &[(&office.wire.address().to_string(), "<central>")])
}

#[test]
fn p15_a_revoked_site_is_turned_away_told_why_boots_its_machines_and_comes_back_with_a_new_token() {
    let office = Office::open();
    let (workflow, _) = office.publish("debian-12", [20_000; 2]);
    let mut machine = machine(1);
    office.order(machine.mac, &workflow);
    office.wait_for_ready(1, SOON);
    office.settle(SOON);
    expect![[r#"
        link        connected, session up over quic since <time>, central <central>
        data as of  <time>
        certificate until <time>, renewed from <time> on"#]]
    .assert_eq(&status(&office));

    let path = format!("/sites/{}", office.site.id);
    let answer = office
        .central
        .rest
        .post(&format!("{path}/revoke"), &json!({ "reason": "the machine is missing since Friday" }));
    assert_eq!(answer.status, 200, "{}", answer.body);
    wait_for("the site is told", SOON, || {
        let link = office.site.rest.show("/agent/status")["link"].clone();
        let told = link["session"] == false && link["refused"].is_string();
        if told { Ok(()) } else { Err(link) }
    });
    let turned_away = status(&office);
    expect![[r#"
        link        connected, no session, central <central>
        data as of  <time>
                    central revoked this site at <time>: the machine is missing since Friday
        certificate until <time>, renewed from <time> on"#]]
    .assert_eq(&turned_away.replace("degraded", "connected"));
    assert!(office.site.program.log().contains("central does not let this site in"));
    // Its machines never wait for central.
    office::install(&mut machine, (&office.site).into()).expect("the site works on");

    // While the agent runs, a person enrols it again; a token for another site is refused and stays good.
    let config = office.site.config().display().to_string();
    let central = office.wire.address().to_string();
    let enrol = |token: &str| {
        let words = ["enroll", "--again", "--config", &config, "--central", &central, "--token", token];
        run("holdfast-site", &[&words[..], &["--name", "lyon"]].concat())
    };
    let (code, _, complaint) = enrol(&office.central.token("oslo"));
    expect![[r#"
        exit 1
        error: central does not accept the token
          why: it is for site oslo, this machine is site <id>
          next: ask central for a token for this site; to become the other one, give another --data-dir"#]]
    .assert_eq(&format!("exit {code}\n{}", masked(&complaint, &[])));
    let (code, id, complaint) = enrol(&office.central.token("lyon"));
    assert_eq!((code, id.trim()), (0, office.site.id.as_str()), "{complaint}");
    office.settle(3 * SOON);
    office::assert_nothing_lost(&office.central, &office.site, &[machine]);
    let seen = office.central.rest.show(&path);
    assert_eq!((&seen["revoked"], seen["certificate"]["serial"].is_string()), (&Value::Null, true));
}
