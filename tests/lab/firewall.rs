//! A firewall between the site and central that drops UDP, and one that no longer does.
//!
//! The filter is nftables' in central's namespace, so packets vanish without a word, as they do in real ones.
//! What is believed is what both programs say of the link, and that content arrives.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use serde_json::{Value, json};

    use crate::error::{Doing, Result};
    use crate::network::Namespace;
    use crate::story::{Branch, QUIC_PORT, SOON_S, wait_until};

    /// Drops what comes to central over UDP, and what it says.
    fn block_udp(central: &Namespace) -> Result<()> {
        central.run("nft", &["add", "table", "inet", "firewall"])?;
        for (chain, port) in [("input", "dport"), ("output", "sport")] {
            let hook = format!("{{ type filter hook {chain} priority 0; policy accept; }}");
            central.run("nft", &["add", "chain", "inet", "firewall", chain, &hook])?;
            let rule = format!("udp {port} {QUIC_PORT} drop");
            central.run("nft", &["add", "rule", "inet", "firewall", chain, &rule])?;
        }
        Ok(())
    }

    fn let_udp_through(central: &Namespace) -> Result<()> {
        central.run("nft", &["delete", "table", "inet", "firewall"]).map(drop)
    }

    /// Waits until both sides say that the session runs over `transport` and that they hold the same.
    fn wait_for_link_over(branch: &Branch, transport: &str) -> Result<Value> {
        let begun = Instant::now();
        let seen = wait_until(&format!("session over {transport}"), SOON_S, || {
            let here = branch.site().show("/agent/status")?["link"].take();
            let there = branch.central().show(&branch.of_site(""))?;
            let holds = here["session"] == true
                && [&here, &there].iter().all(|it| it["transport"] == transport && it["agrees"] == true);
            Ok((holds, json!({ "site": here, "central": there })))
        })?;
        println!("seconds until the session runs over {transport}: {:.1}", begun.elapsed().as_secs_f64());
        Ok(seen)
    }

    #[test]
    fn t2_where_a_firewall_drops_udp_tcp_takes_over_until_udp_passes_again() -> Result<()> {
        let mut branch = Branch::open()?;
        wait_for_link_over(&branch, "quic")?;
        block_udp(branch.net.central())?;
        wait_for_link_over(&branch, "tcp")?;

        // Work goes on: an order with content that the site has to fetch.
        let central = branch.central();
        let mut files = serde_json::Map::new();
        for (role, byte) in [("kernel", 1), ("initrd", 2)] {
            let file = branch.net.folder().join(role);
            fs::write(&file, vec![byte; 2_000_000]).doing("write a file")?;
            files.insert(role.into(), central.upload(&file)?["digest"].clone());
        }
        let workflow = json!({ "name": "plain", "os_family": "linux", "arch": "x86_64", "files": files });
        central.say("POST", "/workflows", &workflow, 201)?;
        let mac = "52:54:00:00:00:61";
        central.say("POST", "/nodes", &json!({ "mac": mac, "site": branch.of_site("")[7..] }), 201)?;
        central.say("POST", "/tasks", &json!({ "node": mac, "workflow": "plain" }), 201)?;
        wait_until("order that the site is ready for", SOON_S, || {
            let tasks = branch.site().list("/tasks")?;
            Ok((tasks.len() == 1 && tasks[0]["state"] == "ready", tasks.into()))
        })?;
        wait_for_link_over(&branch, "tcp")?;

        let_udp_through(branch.net.central())?;
        wait_for_link_over(&branch, "quic")?;
        branch.is_well();
        Ok(())
    }
}
