//! Remembers where the sites are, so that a central that was killed finds them when it is back.
//!
//! [`run`] knocks at the addresses that the life before wrote down, and writes down those of this one, in [`FILE`] of
//! the data folder: a line `SITE REMOTE LOCAL` for each site whose session runs over QUIC. Losing the file costs
//! seconds: sites then notice the restart at their next packet. So it is in no database and no backup, and is written
//! a second after something has changed, without waiting for the disk.
//!
//! Deliberately absent: sites over TCP, whose sockets are reset when central dies, and what a knock is, which
//! `sync::quic::knock` says.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sync::{
    id::SiteId,
    quic::{
        UdpPath,
        endpoint::{IDLE, KNOCK_INTERVAL, Listener},
    },
};

use crate::{content::off_runtime, sessions::Sessions};

/// Name of the file in the data folder.
pub(crate) const FILE: &str = "addresses";

/// Sites that are written down and knocked at, at most.
const MOST: usize = 10_000;

/// Bytes of a file of so many lines, with addresses as long as they get.
const MOST_BYTES: u64 = 200 * MOST as u64;

/// Time between a change and the file: a herd that comes back is written once.
const THINLY: Duration = Duration::from_secs(1);

/// How often addresses are looked at that a NAT may have changed while the session went on.
const LOOK: Duration = Duration::from_secs(60);

/// Each site is knocked at twice, because datagrams get lost, and so long apart that it answers both.
const AGAIN: Duration = Duration::from_secs(1);

/// Where each site is.
type Addresses = BTreeMap<SiteId, UdpPath>;

/// Knocks at the sites of the life before, then keeps the file of this one until it is cancelled.
pub(crate) async fn run(data: PathBuf, listener: Arc<Listener>, sessions: Sessions) {
    let file = data.join(FILE);
    let path = file.clone();
    let before = off_runtime(move || read(&path)).await.unwrap_or_else(|error| {
        tracing::warn!(%error, file = FILE, "idle sites notice the restart by themselves");
        Addresses::new()
    });
    tokio::join!(knock(&listener, &before, &sessions), keep(&file, before.clone(), &sessions));
}

async fn knock(listener: &Listener, addresses: &Addresses, sessions: &Sessions) {
    if addresses.is_empty() {
        return;
    }
    tracing::info!(sites = addresses.len(), "knocking where the sites were");
    for pause in [AGAIN, Duration::ZERO] {
        let mut steps = tokio::time::interval(KNOCK_INTERVAL);
        for (site, at) in addresses {
            steps.tick().await;
            // Who is back needs no second one.
            if sessions.carried_by(*site).is_none()
                && let Err(error) = listener.knock(at).await
            {
                tracing::debug!(%site, address = %at.remote, %error, "not knocked at");
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Writes where the sites are whenever that has changed.
async fn keep(file: &Path, mut before: Addresses, sessions: &Sessions) {
    let mut written = before.clone();
    // After this no site can have a session of the life before.
    let mut outdated = std::pin::pin!(tokio::time::sleep(IDLE));
    loop {
        tokio::select! {
            () = &mut outdated, if !before.is_empty() => before.clear(),
            () = sessions.changed() => tokio::time::sleep(THINLY).await,
            () = tokio::time::sleep(LOOK) => {}
        }
        before.retain(|site, _| sessions.carried_by(*site).is_none());
        let mut wanted = before.clone();
        wanted.extend(sessions.udp_paths());
        if wanted == written {
            continue;
        }
        let (path, text) = (file.to_path_buf(), print(&wanted));
        match off_runtime(move || write(&path, &text)).await {
            Ok(()) => written = wanted,
            Err(error) => tracing::warn!(%error, file = FILE, "the addresses of the sites are not kept"),
        }
    }
}

fn print(addresses: &Addresses) -> String {
    let line = |(site, at): (&SiteId, &UdpPath)| {
        let local = at.local.map_or("-".into(), |local| local.to_string());
        format!("{site} {} {local}\n", at.remote)
    };
    addresses.iter().take(MOST).map(line).collect()
}

/// What was printed. Lines that are none are passed over: the file is no more than a hint.
fn parse(text: &str) -> Addresses {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let (site, remote, local) = (words.next()?, words.next()?, words.next()?);
        let local = if local == "-" { None } else { Some(local.parse().ok()?) };
        Some((site.parse().ok()?, UdpPath { local, remote: remote.parse().ok()? }))
    };
    text.lines().filter_map(line).take(MOST).collect()
}

fn read(file: &Path) -> io::Result<Addresses> {
    let mut bytes = Vec::new();
    match File::open(file) {
        Ok(open) => open.take(MOST_BYTES).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Addresses::new()),
        Err(error) => return Err(error),
    };
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    let draft = file.with_extension("new");
    fs::write(&draft, text)?;
    fs::rename(&draft, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(number: u16) -> SiteId {
        SiteId(std::array::from_fn(|at| number.to_be_bytes()[at % 2]))
    }

    #[test]
    fn addresses_survive_their_file_and_garbage_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        assert_eq!(read(&file).unwrap(), Addresses::new(), "a first start");
        let paths = [
            (Some("192.0.2.1"), "198.51.100.7:40123"),
            (None, "[2001:db8::7]:1"),
            (Some("::ffff:192.0.2.1"), "[::ffff:198.51.100.7]:65535"),
            (Some("fe80::1"), "[fe80::7%3]:7"),
        ];
        let path = |(local, remote): &(Option<&str>, &str)| UdpPath {
            local: local.map(|local| local.parse().unwrap()),
            remote: remote.parse().unwrap(),
        };
        let addresses: Addresses = (1..).map(site).zip(paths.iter().map(path)).collect();
        write(&file, &print(&addresses)).unwrap();
        assert_eq!(read(&file).unwrap(), addresses);
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(names, [FILE]);

        let torn = print(&addresses);
        fs::write(&file, format!("\n \nlyon 192.0.2.7:1 -\n{} nowhere -\n{torn}", site(9))).unwrap();
        assert_eq!(read(&file).unwrap(), addresses);
        fs::write(&file, [torn.as_bytes(), &[0xff, 0, b'\n', 7]].concat()).unwrap();
        assert_eq!(read(&file).unwrap(), addresses);
        let whole = torn.lines().take(3).map(|line| format!("{line}\n")).collect::<String>();
        fs::write(&file, &torn[..whole.len() + 20]).unwrap();
        assert_eq!(read(&file).unwrap().len(), 3, "a line that breaks off is none");
    }

    #[test]
    fn no_more_sites_are_kept_than_are_knocked_at() {
        let at = UdpPath { local: None, remote: "192.0.2.7:7".parse().unwrap() };
        let number = u16::try_from(MOST + 5).unwrap();
        let many: Addresses = (0..number).map(|number| (site(number), at)).collect();
        assert_eq!(print(&many).lines().count(), MOST);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535";
        let line = format!("{} {longest} {}\n", site(1), &longest[1..40]);
        assert!(line.len() < 200, "{}", line.len());
        fs::write(&file, print(&many).repeat(3)).unwrap();
        assert_eq!(read(&file).unwrap().len(), MOST);
        fs::write(&file, vec![b'x'; 5 << 20]).unwrap();
        assert_eq!(read(&file).unwrap(), Addresses::new());
    }
}
