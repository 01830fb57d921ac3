//! Messages of a session, the first of which is a greeting, for an engine of central or of a site whose replica
//! has just opened: one byte says which, then the plain bodies of frames.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sync::{
    engine::{Connection, Engine, Greeting, Input, Moment, Output, Standing},
    id::{Incarnation, SiteId},
    time::Timestamp,
    wire::{Cursor, Fingerprint, Rolling},
};

const SITE: SiteId = SiteId([2; 16]);
const CONNECTION: Connection = Connection(1);

fuzz_target!(init: targets::be_quiet(), |data: &[u8]| targets::hunt(|| {
    let Some((first, rest)) = data.split_first() else { return };
    let is_central = first % 2 == 0;
    let heartbeat = Duration::from_secs(60);
    let (mut engine, begin) = if is_central {
        (Engine::central(heartbeat), Input::Accepted { connection: CONNECTION, site: SITE })
    } else {
        (Engine::site(SITE, heartbeat), Input::Dialed { connection: CONNECTION })
    };
    let now = Moment { elapsed: Duration::from_secs(1), wall: Timestamp(1_795_161_600_000) };
    engine.handle(now, Input::Timeout);
    drive(&mut engine, now);
    engine.handle(now, begin);
    drive(&mut engine, now);
    for body in targets::parts(rest) {
        let bytes = [&[1], body].concat();
        engine.handle(now, Input::Frame { connection: CONNECTION, bytes });
        drive(&mut engine, now);
    }
}));

/// Answers where the replica stands, and nothing else: what it holds is not asked here.
fn drive(engine: &mut Engine, now: Moment) {
    let mut outputs = 0;
    while let Some(output) = engine.poll() {
        outputs += 1;
        assert!(outputs < 10_000, "an engine that is never silent");
        if let Output::Open { connection, .. } = output {
            engine.handle(now, Input::Opened { connection, standing: Box::new(standing()) });
        }
    }
}

fn standing() -> Standing {
    let cursor = |position| Cursor { position, rolling: Rolling([3; 16]) };
    Standing {
        incarnation: Incarnation([1; 16]),
        policy_epoch: 1,
        pulled: cursor(7),
        pushed: Some(cursor(5)),
        end: 9,
        fingerprint: Fingerprint::default(),
        agrees: Some(true),
        central: Some(Incarnation([4; 16])),
        log: Some(0),
        seal: None,
        greeting: Greeting::Continue,
    }
}
