//! Who reads along at central and at a branch sees what a machine does while it does it, and after a cut exactly
//! what was missed.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::PathBuf,
};

use harness::{
    programs::{Central, Doors, Site},
    rest::Rest,
};
use serde_json::{Value, json};
use sync::id::NodeId;

use crate::office::{Office, SOON, mac, machine};

/// A program whose journal is read along.
struct Source {
    rest: Rest,
    token: PathBuf,
}

impl Source {
    fn central(central: &Central) -> Self {
        Source { rest: central.rest.clone(), token: central.data().join("admin-token") }
    }

    fn site(site: &Site) -> Self {
        Source { rest: site.rest.clone(), token: site.data().join("admin-token") }
    }
}

/// One who reads along.
struct Reader {
    stream: BufReader<TcpStream>,
    /// The last position that he was told.
    last: u64,
}

impl Reader {
    /// Begins with what comes next, or where he was.
    fn open(source: &Source, last: Option<u64>) -> Self {
        let token = std::fs::read_to_string(&source.token).expect("the operator's token");
        let last = last.map(|last| format!("Last-Event-ID: {last}\r\n")).unwrap_or_default();
        let mut stream = TcpStream::connect(source.rest.address()).expect("it listens");
        stream.set_read_timeout(Some(SOON)).expect("a time-out");
        // Without chunks: what follows the head is the stream as it is.
        let head =
            format!("GET /api/v1/events HTTP/1.0\r\nAuthorization: Bearer {}\r\n{last}\r\n", token.trim());
        stream.write_all(head.as_bytes()).expect("it reads");
        let mut reader = Reader { stream: BufReader::new(stream), last: 0 };
        assert!(reader.line().contains("200 OK"));
        while !reader.line().is_empty() {}
        assert_eq!(reader.event(), None, "first of all he is told where it begins");
        reader
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).expect("a line in time");
        assert!(read > 0, "the stream goes on");
        line.trim_end().to_string()
    }

    /// The entry of the next event; none where it only has a position.
    fn event(&mut self) -> Option<Value> {
        let mut entry = None;
        loop {
            let line = self.line();
            match line.split_once(": ") {
                Some(("id", position)) => self.last = position.parse().expect("a number"),
                Some(("data", data)) => entry = serde_json::from_str(data).expect("an object on one line"),
                Some(_) => {}
                None => return entry,
            }
        }
    }

    /// All entries up to the first that is as wanted.
    fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut entries: Vec<Value> = Vec::new();
        while !entries.last().is_some_and(&wanted) {
            entries.extend(self.event());
        }
        entries
    }
}

#[test]
fn p4_p15_a_machine_is_seen_at_both_programs_while_it_is_adopted_and_a_cut_reader_misses_nothing() {
    let mut office = Office::open();
    let answer = office
        .central
        .rest
        .patch(&format!("/sites/{}", office.site.id), &json!({ "unknown_machines": "adopt" }));
    assert_eq!(answer.status, 200, "{}", answer.body);
    office.settle(SOON);
    let sources = [Source::central(&office.central), Source::site(&office.site)];
    let [mut above, mut here] = sources.each_ref().map(|source| Reader::open(source, None));
    let starts = [above.last, here.last];
    let discovered = |number: u16| {
        let node = NodeId::of(mac(number)).to_string();
        move |row: &Value| row["event"] == "node_discovered" && row["node"] == node
    };

    machine(9).power_on(Doors::from(&office.site));
    let mut told = [above.until(discovered(9)), here.until(discovered(9))];

    // Both are cut; what happens meanwhile happens without them, at central also a new start of the program.
    let lasts = [above.last, here.last];
    drop((above, here));
    machine(10).power_on(Doors::from(&office.site));
    office.central.restart();
    machine(11).power_on(Doors::from(&office.site));
    office.settle(SOON);
    machine(12).power_on(Doors::from(&office.site));
    office.settle(SOON);
    for ((source, told), last) in sources.iter().zip(&mut told).zip(lasts) {
        let mut again = Reader::open(source, Some(last));
        assert_eq!(again.last, last);
        told.extend(again.until(discovered(12)));
        let newest = told.last().expect("an entry")["entry"].as_u64().expect("a number");
        assert_eq!(again.last, newest);
    }
    for ((source, told), start) in sources.iter().zip(&told).zip(starts) {
        let listed = source.rest.list(&format!("/journal?after={start}"));
        assert_eq!(told[..], listed[..told.len()], "everything after {start}, once, as the list shows it");
        for number in 9..=12 {
            assert_eq!(told.iter().filter(|row| discovered(number)(row)).count(), 1, "machine {number}");
        }
    }

    // Where nothing happens a comment is heard, so that both ends know of each other.
    let mut idle = Reader::open(&sources[1], None);
    while idle.line() != ":" {}
}
