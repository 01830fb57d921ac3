//! Which folder may name which crate, module or function.
//!
//! A rule is a row of `RULES`. Tests inside a room obey it too: what a room may not do, its tests have no need for.

use crate::names;

/// Bans some names in some folders.
struct Rule {
    /// Folders where the ban holds.
    within: &'static [&'static str],
    /// Places inside them where it does not, each with its reason.
    except: &'static [(&'static str, &'static str)],
    /// Banned paths. `a::b` bans itself and all below it; `..::b::c` bans whatever ends so.
    banned: &'static [&'static str],
    because: &'static str,
}

/// Our programs and libraries; `tests` may name anything.
const PRODUCT: &[&str] = &["sync/src/", "store/src/", "site-agent/src/", "central/src/"];

const QUIC: (&str, &str) = ("sync/src/quic/", "the driver: the only I/O in this crate");

const RULES: &[Rule] = &[
    Rule {
        within: &["sync/src/"],
        except: &[QUIC],
        banned: &[
            "tokio",
            "quinn",
            "rustls",
            "socket2",
            "crate::quic",
            "std::net::TcpListener",
            "std::net::TcpStream",
            "std::net::ToSocketAddrs",
            "std::net::UdpSocket",
            "std::os::unix::net",
            "std::fs",
            "std::thread",
            "std::process",
            "std::time::Instant",
            "std::time::SystemTime",
        ],
        because: "the shared half is pure: no sockets, files, threads or clocks outside `quic`",
    },
    Rule {
        within: &["store/src/"],
        except: &[],
        banned: &["tokio", "axum", "dhcproto", "sync::quic"],
        because: "the store knows neither network nor runtime",
    },
    Rule {
        within: &["site-agent/src/boot/"],
        except: &[],
        banned: &[
            "tokio",
            "axum",
            "socket2",
            "store",
            "crate::dhcp",
            "crate::event_loop",
            "crate::http",
            "crate::tftp",
            "std::net::TcpListener",
            "std::net::TcpStream",
            "std::net::ToSocketAddrs",
            "std::net::UdpSocket",
            "std::os::unix::net",
            "std::fs",
            "std::thread",
            "std::process",
        ],
        because: "a boot decision is pure: the same request, view and instant give the same answer",
    },
    Rule {
        within: PRODUCT,
        except: &[("site-agent/src/dhcp/", "the only place that knows dhcproto")],
        banned: &["dhcproto"],
        because: "a DHCP packet is parsed in one place",
    },
    Rule {
        within: PRODUCT,
        except: &[("site-agent/src/tftp/", "the only place that knows the TFTP library")],
        banned: &["async_tftp"],
        because: "the TFTP library can be replaced in one place",
    },
    Rule {
        within: PRODUCT,
        except: &[("store/src/", "the only place that knows SQL")],
        banned: &["rusqlite"],
        because: "everything above the store uses its API, never SQL",
    },
    Rule {
        within: PRODUCT,
        except: &[QUIC],
        banned: &["quinn"],
        because: "the engine is driven over QUIC in one place",
    },
    Rule {
        within: &["sync/", "store/", "site-agent/", "central/", "tests/"],
        except: &[
            ("**/event_loop.rs", "owns a program's time and chance, and hands them on as arguments"),
            ("**/main.rs", "a program starts here, before its event loop"),
            ("sync/src/quic/", "the driver: it turns the engine's instants into timers"),
            ("tests/", "the harness owns the virtual clock, and waits for real processes in the lab"),
        ],
        banned: &["..::SystemTime::now", "..::Instant::now", "getrandom", "rand"],
        because: "instants, randomness and new ids are given",
    },
];

/// Violations of `rules` in the file at `path`.
fn trespasses(rules: &[Rule], path: &str, source: &str) -> Vec<String> {
    let mentions = names::mentions(source);
    let mut violations = Vec::new();
    for rule in rules {
        let holds = rule.within.iter().any(|place| covers(place, path))
            && !rule.except.iter().any(|(place, _)| covers(place, path));
        for mention in mentions.iter().filter(|_| holds) {
            if rule.banned.iter().any(|ban| bans(ban, &mention.path)) {
                violations.push(format!("{path}:{}: `{}`: {}", mention.line, mention.path, rule.because));
            }
        }
    }
    violations
}

/// `place` is a folder with its slash (which also covers the module file beside it), `**/name`, or one file.
fn covers(place: &str, path: &str) -> bool {
    if let Some(name) = place.strip_prefix("**/") {
        return path.rsplit('/').next() == Some(name);
    }
    match place.strip_suffix('/') {
        Some(folder) => path.starts_with(place) || path.strip_suffix(".rs") == Some(folder),
        None => path == place,
    }
}

fn bans(ban: &str, path: &str) -> bool {
    if let Some(end) = ban.strip_prefix("..::") {
        return path == end || path.strip_suffix(end).is_some_and(|before| before.ends_with("::"));
    }
    // A glob may bring in what is banned below it.
    let within_glob = path.strip_suffix('*').is_some_and(|module| ban.starts_with(module));
    let below = path.strip_prefix(ban).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    below || within_glob
}

#[cfg(test)]
mod unit {
    use expect_test::{Expect, expect};

    use super::{PRODUCT, RULES, covers, trespasses};
    use crate::{assert_clean, workspace};

    #[test]
    fn every_name_is_used_in_its_own_room() {
        let sources = workspace::sources();
        for room in PRODUCT {
            assert!(sources.iter().any(|(path, _)| covers(room, path)), "{room} has no source");
        }
        let violations: Vec<String> =
            sources.iter().flat_map(|(path, source)| trespasses(RULES, path, source)).collect();
        assert_clean("rooms", &violations);
    }

    #[test]
    fn sockets_files_threads_and_clocks_are_found_in_the_pure_half() {
        check(
            "sync/src/engine/mod.rs",
            "use std::{fs, net::{Ipv4Addr, UdpSocket}, time::{Duration, Instant}};\nfn f(at: Instant) { std::thread::yield_now(); tokio::spawn(x); }",
            &expect![[r#"
                sync/src/engine/mod.rs:1: `std::fs`: the shared half is pure: no sockets, files, threads or clocks outside `quic`
                sync/src/engine/mod.rs:1: `std::net::UdpSocket`: the shared half is pure: no sockets, files, threads or clocks outside `quic`
                sync/src/engine/mod.rs:1: `std::time::Instant`: the shared half is pure: no sockets, files, threads or clocks outside `quic`
                sync/src/engine/mod.rs:2: `std::time::Instant`: the shared half is pure: no sockets, files, threads or clocks outside `quic`
                sync/src/engine/mod.rs:2: `std::thread::yield_now`: the shared half is pure: no sockets, files, threads or clocks outside `quic`
                sync/src/engine/mod.rs:2: `tokio::spawn`: the shared half is pure: no sockets, files, threads or clocks outside `quic`"#]],
        );
    }

    #[test]
    fn a_glob_is_found_when_something_below_it_is_banned() {
        check(
            "sync/src/wire/mod.rs",
            "use std::net::*;\nuse std::collections::*;",
            &expect![
                "sync/src/wire/mod.rs:1: `std::net::*`: the shared half is pure: no sockets, files, threads or clocks outside `quic`"
            ],
        );
    }

    #[test]
    fn the_driver_may_do_what_the_pure_half_may_not() {
        let driver =
            "use std::{net::UdpSocket, time::Instant}; fn f() { quinn::x(); tokio::y(); Instant::now(); }";
        check("sync/src/quic/driver.rs", driver, &expect![""]);
        check("sync/src/quic.rs", driver, &expect![""]);
        check(
            "sync/src/quicker/driver.rs",
            "use quinn::Endpoint;",
            &expect![[r#"
                sync/src/quicker/driver.rs:1: `quinn::Endpoint`: the shared half is pure: no sockets, files, threads or clocks outside `quic`
                sync/src/quicker/driver.rs:1: `quinn::Endpoint`: the engine is driven over QUIC in one place"#]],
        );
    }

    #[test]
    fn runtime_and_packets_are_found_in_the_store() {
        check(
            "store/src/writer.rs",
            "use tokio::sync::mpsc; fn f() { axum::Router::new(); dhcproto::v4::Message::default(); rusqlite::x() }",
            &expect![[r#"
                store/src/writer.rs:1: `tokio::sync::mpsc`: the store knows neither network nor runtime
                store/src/writer.rs:1: `axum::Router::new`: the store knows neither network nor runtime
                store/src/writer.rs:1: `dhcproto::v4::Message::default`: the store knows neither network nor runtime
                store/src/writer.rs:1: `dhcproto::v4::Message::default`: a DHCP packet is parsed in one place"#]],
        );
    }

    #[test]
    fn the_store_and_sockets_are_found_in_the_boot_decision() {
        check(
            "site-agent/src/boot/decide.rs",
            "use std::net::{IpAddr, TcpStream};\nuse store::view::Nodes;\nuse crate::dhcp::parse;",
            &expect![[r#"
                site-agent/src/boot/decide.rs:1: `std::net::TcpStream`: a boot decision is pure: the same request, view and instant give the same answer
                site-agent/src/boot/decide.rs:2: `store::view::Nodes`: a boot decision is pure: the same request, view and instant give the same answer
                site-agent/src/boot/decide.rs:3: `crate::dhcp::parse`: a boot decision is pure: the same request, view and instant give the same answer"#]],
        );
    }

    #[test]
    fn libraries_are_found_outside_their_one_place() {
        let libraries = "use async_tftp::server; use dhcproto::v4; use rusqlite::Connection;";
        check(
            "central/src/hub.rs",
            libraries,
            &expect![[r#"
                central/src/hub.rs:1: `dhcproto::v4`: a DHCP packet is parsed in one place
                central/src/hub.rs:1: `async_tftp::server`: the TFTP library can be replaced in one place
                central/src/hub.rs:1: `rusqlite::Connection`: everything above the store uses its API, never SQL"#]],
        );
        check("tests/lab/dhcp.rs", libraries, &expect![""]);
        check("site-agent/src/tftp/mod.rs", "use async_tftp::server;", &expect![""]);
        check("site-agent/src/dhcp/parse.rs", "use dhcproto::v4;", &expect![""]);
    }

    #[test]
    fn clocks_and_randomness_are_found_outside_the_event_loops() {
        let source = "use std::time; fn f() { time::SystemTime::now(); tokio::time::Instant::now(); getrandom::fill(b); }";
        check(
            "site-agent/src/link.rs",
            source,
            &expect![[r#"
                site-agent/src/link.rs:1: `std::time::SystemTime::now`: instants, randomness and new ids are given
                site-agent/src/link.rs:1: `tokio::time::Instant::now`: instants, randomness and new ids are given
                site-agent/src/link.rs:1: `getrandom::fill`: instants, randomness and new ids are given"#]],
        );
        check("site-agent/src/event_loop.rs", source, &expect![""]);
        check("site-agent/src/node/main.rs", source, &expect![""]);
    }

    fn check(path: &str, source: &str, expected: &Expect) {
        expected.assert_eq(&trespasses(RULES, path, source).join("\n"));
    }
}
