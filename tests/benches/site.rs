//! What a site with a thousand nodes costs: memory, boot scripts, and a reconnect with nothing changed.
//!
//! `cargo bench -p tests` measures with the release profile, `cargo test -p tests --bench site` with the
//! profile of the tests. The programs are the shipped ones, over loopback; the figures are printed as a
//! table for `docs/performance.md` and never asserted.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use harness::{
    programs::{Central, Site, wait_for},
    wire::Wire,
};
use serde_json::json;
use sync::id::MacAddr;

const NODES: u16 = 1_000;
const CLIENTS: usize = 4;
const REQUESTS: usize = 2_500;

fn main() {
    // The test runner lists and filters; there is only one thing to run here.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let central = Central::start(&folder.path().join("central"));
    let wire = Wire::to(central.quic).expect("a wire");
    let home = folder.path().join("lyon");
    let (code, id, complaint) = Site::enrol(&home, "lyon", wire.address(), &central.token("lyon"));
    assert_eq!(code, 0, "{complaint}");
    let site = Site::start(&home, "lyon", id.trim());
    let empty = resident_kb(site.program.id());

    let begun = Instant::now();
    for number in 0..NODES {
        let body =
            json!({ "mac": mac(number).to_string(), "site": site.id, "hostname": format!("pos-{number}") });
        let answer = central.rest.post("/nodes", &body);
        assert_eq!(answer.status, 201, "{}", answer.body);
    }
    let registered = begun.elapsed();
    wait_for("the site has every node and both agree", Duration::from_secs(120), || {
        let status = site.rest.show("/agent/status");
        let link = status["link"].clone();
        let holds = status["nodes"] == NODES && link["agrees"] == true && link["acknowledged"] == link["end"];
        if holds { Ok(()) } else { Err(status) }
    });
    let replicated = begun.elapsed();
    let full = resident_kb(site.program.id());

    let (rate, mut times) = boot_scripts(site.rest.address());
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 1_000).min(times.len() - 1)].as_secs_f64() * 1e3;

    let reconnect = reconnect(&site, &wire);

    println!("| what | measured |\n|---|---|");
    println!("| {NODES} nodes registered at central over REST | {:.1} s |", registered.as_secs_f64());
    println!("| … and all of them at the site, both sides agree | {:.1} s |", replicated.as_secs_f64());
    println!(
        "| resident memory of the site: empty / with {NODES} nodes | {:.1} / {:.1} MB |",
        mb(empty),
        mb(full)
    );
    println!(
        "| … after {} boot scripts | {:.1} MB |",
        CLIENTS * REQUESTS,
        mb(resident_kb(site.program.id()))
    );
    println!("| boot scripts, {CLIENTS} clients on kept connections | {rate:.0} per second |");
    println!("| … median / p99 / worst | {:.2} / {:.2} / {:.2} ms |", at(500), at(990), at(1_000));
    println!("{reconnect}");
}

fn mac(number: u16) -> MacAddr {
    let [high, low] = number.to_be_bytes();
    MacAddr([0x52, 0x54, 0, 9, high, low])
}

fn mb(kb: u64) -> f64 {
    kb as f64 / 1_000.0
}

fn resident_kb(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Asks for boot scripts of all nodes in turn, as fast as the site answers.
fn boot_scripts(site: SocketAddr) -> (f64, Vec<Duration>) {
    let begun = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            std::thread::spawn(move || {
                let stream = TcpStream::connect(site).expect("the site listens");
                stream.set_nodelay(true).expect("a TCP option");
                let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
                let mut writer = stream;
                (0..REQUESTS)
                    .map(|number| {
                        let node = (client * REQUESTS + number) % usize::from(NODES);
                        let path = format!("/boot/{}", mac(u16::try_from(node).expect("few nodes")));
                        let asked = Instant::now();
                        write!(writer, "GET {path} HTTP/1.1\r\nHost: site\r\n\r\n").expect("the site reads");
                        read_response(&mut reader);
                        asked.elapsed()
                    })
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let times: Vec<Duration> =
        clients.into_iter().flat_map(|client| client.join().expect("a client ends")).collect();
    (times.len() as f64 / begun.elapsed().as_secs_f64(), times)
}

fn read_response(reader: &mut BufReader<TcpStream>) {
    let (mut length, mut first) = (0, true);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("the site answers");
        if first {
            assert!(line.contains(" 200 "), "{line}");
            first = false;
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body is whole");
}

/// Cuts the link until the session has ended, heals it, and counts what crosses until both agree.
fn reconnect(site: &Site, wire: &Wire) -> String {
    wire.cut();
    wait_for("the site has noticed", Duration::from_secs(60), || {
        let link = site.rest.show("/agent/status")["link"].clone();
        if link["session"] == false { Ok(()) } else { Err(link) }
    });
    let compared = site.rest.show("/agent/status")["link"]["compared_at"].clone();
    let carried = wire.carried();
    let read = || {
        [&carried.datagrams_up, &carried.bytes_up, &carried.datagrams_down, &carried.bytes_down]
            .map(|counter| counter.load(Ordering::Relaxed))
    };
    let before = read();
    wire.heal();
    let after = wait_for("both have compared", Duration::from_secs(60), || {
        let link = site.rest.show("/agent/status")["link"].clone();
        let again = link["session"] == true && link["agrees"] == true && link["compared_at"] != compared;
        if again { Ok(read()) } else { Err(link) }
    });
    let [datagrams_up, bytes_up, datagrams_down, bytes_down] =
        std::array::from_fn(|index| after[index] - before[index]);
    format!(
        "| reconnect with nothing changed, {NODES} nodes: on the wire with QUIC and TLS handshake | \
         up {datagrams_up} datagrams, {bytes_up} B; down {datagrams_down} datagrams, {bytes_down} B |"
    )
}
