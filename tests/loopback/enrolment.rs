//! A token that is wrong, used, too old or cut off, and a central that is not there.

use std::{net::UdpSocket, path::Path};

use expect_test::{Expect, expect};
use harness::programs::{Central, Site, wait_for};
use serde_json::Value;
use sync::id::hex;

use crate::{office::SOON, words::masked};

/// Tries to make the machine with this folder a site, and compares what a person reads.
fn refused(home: &Path, central: &Central, token: &str, expected: Expect) {
    let (code, out, complaint) = Site::enrol(home, "lyon", central.quic, token);
    let central = central.quic.to_string();
    let shown = masked(&complaint, &[(&central, "<central>")]);
    expected.assert_eq(&format!("exit {code}\n{out}{shown}\n"));
}

/// The token with another digit at the end of its first or its second part.
fn altered(token: &str, part: usize) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_string).collect();
    let last = parts[part].pop().expect("a digit");
    parts[part].push(if last == '0' { '1' } else { '0' });
    parts.join(".")
}

#[test]
fn p3_t1_a_refused_enrolment_says_why_is_in_centrals_journal_and_spoils_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = |name: &str| folder.path().join(name);
    let mut central = Central::start(&home("central"));
    let token = central.token("lyon");

    refused(
        &home("lyon"),
        &central,
        &altered(&token, 2),
        expect![[r#"
        exit 1
        error: central does not accept the token
          why: central knows no such token
          next: check that the token was copied whole, or ask central for a new one
    "#]],
    );
    // Another authority: the machine hangs up before it shows the secret, so central hears nothing.
    let of_another_fleet = altered(&token, 1);
    refused(
        &home("lyon"),
        &central,
        &of_another_fleet,
        expect![[r#"
        exit 1
        error: <central> is not the central that made the token
          why: its authority has fingerprint <digest>, the token says <digest>
          next: check the address; if it is right, somebody may be in between: ask for the fingerprint over another way
    "#]],
    );
    refused(
        &home("lyon"),
        &central,
        &token[..token.len() - 9],
        expect![[r#"
        exit 1
        error: this is no token
          why: the secret in the token has 55 digits instead of 64; was it copied whole?
          next: copy the token that central printed, whole
    "#]],
    );
    refused(
        &home("lyon"),
        &central,
        "lyon",
        expect![[r#"
        exit 1
        error: this is no token
          why: the token does not begin with `hf1.`; it looks like hf1.<64 digits>.<64 digits>
          next: copy the token that central printed, whole
    "#]],
    );

    let (code, id, complaint) = Site::enrol(&home("lyon"), "lyon", central.quic, &token);
    assert_eq!(code, 0, "the token is as good as before: {complaint}");
    refused(
        &home("thief"),
        &central,
        &token,
        expect![[r#"
        exit 1
        error: central does not accept the token
          why: it was used at <time> and is good for one machine
          next: ask central for a new token; if nobody here used this one, say so there
    "#]],
    );
    refused(
        &home("lyon"),
        &central,
        &central.token("lyon"),
        expect![[r#"
        exit 1
        error: this machine is site <id> already
          next: nothing is to be done; if central revoked it, enrol with `--again` and a new token; to become another site, give another --data-dir
    "#]],
    );

    let late = central.token("oslo");
    central.program.kill();
    // The token for oslo, and the second one for lyon.
    assert_eq!(harness::damage::age_tokens(&central.database()).expect("central's database"), 2);
    central.restart();
    refused(
        &home("oslo"),
        &central,
        &late,
        expect![[r#"
        exit 1
        error: central does not accept the token
          why: it was good until <time>, for one day
          next: ask central for a new token
    "#]],
    );

    let (code, second, complaint) = Site::enrol(&home("oslo"), "oslo", central.quic, &central.token("oslo"));
    assert_eq!(code, 0, "another token makes it a site: {complaint}");
    for (name, id) in [("lyon", id.trim()), ("oslo", second.trim())] {
        let site = Site::start(&home(name), name, id);
        wait_for(&format!("central sees {name} online"), SOON, || {
            let seen = central.rest.show(&format!("/sites/{}", site.id));
            if seen["status"] == "online" { Ok(()) } else { Err(seen) }
        });
    }

    let journal: String = central
        .rest
        .list("/journal")
        .iter()
        .filter_map(|row| {
            let what = row["event"].as_str()?;
            let text = |field: &str| row[field].as_str().unwrap_or_default().to_string();
            match what {
                "enrolment_refused" => Some(format!("{} refused: {}\n", text("name"), text("reason"))),
                "token_issued" | "site_enrolled" => Some(format!("{} {what}\n", text("name"))),
                _ => None,
            }
        })
        .collect();
    expect![[r#"
        lyon token_issued
        lyon refused: central knows no such token
        lyon site_enrolled
        lyon refused: it was used at <time> and is good for one machine
        lyon token_issued
        oslo token_issued
        lyon refused: it was good until <time>, for one day
        oslo token_issued
        oslo site_enrolled
    "#]]
    .assert_eq(&format!("{}\n", masked(&journal, &[])));
}

#[test]
fn t1_a_central_that_is_not_there_is_named_and_the_same_token_works_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path().join("lyon");
    let central = Central::start(&folder.path().join("central"));
    let token = central.token("lyon");
    // A port that is somebody's, who does not answer.
    let nobody = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let wrong = nobody.local_addr().expect("an address");

    let (code, out, complaint) = Site::enrol(&home, "lyon", wrong, &token);
    let shown = masked(&complaint, &[(&wrong.to_string(), "<wrong>")]);
    expect![[r#"
        exit 1
        error: central at <wrong> could not be reached
          why: nobody answers: no answer within 10 s over UDP, Connection refused (os error 111) over TCP
          next: check address and port, that central runs, and that no firewall drops both UDP and TCP between here and there
    "#]].assert_eq(&format!("exit {code}\n{out}{shown}\n"));

    let (code, id, complaint) = Site::enrol(&home, "lyon", central.quic, &token);
    assert_eq!(code, 0, "{complaint}");
    let sites = central.rest.list("/sites");
    assert_eq!(sites.iter().map(|site| &site["id"]).collect::<Vec<_>>(), [&Value::from(id.trim())]);
    // Whoever listened at the wrong port saw no secret: TLS was never agreed on.
    nobody.set_nonblocking(true).expect("a socket");
    let secret = token.rsplit('.').next().expect("three parts");
    let mut buffer = [0; 2048];
    let mut heard = 0;
    while let Ok((length, _)) = nobody.recv_from(&mut buffer) {
        heard += 1;
        assert!(!hex(&buffer[..length]).contains(secret));
    }
    assert!(heard > 0, "it was tried");
}
