//! Who follows the journal at a site hears every entry once, is counted, and never holds anybody up.

use std::time::Duration;

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::oneshot,
    time::timeout,
};

use super::*;

/// Nothing that these tests wait for takes longer, also on a busy machine.
const LONG: Duration = Duration::from_secs(30);

/// One reader of the stream, over HTTP/1.0: what follows the head is the stream as it is.
struct Follower {
    status: u16,
    stream: BufReader<TcpStream>,
}

impl Follower {
    async fn open(address: SocketAddr, query: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let bearer = format!("Authorization: Bearer {ADMIN}\r\n");
        let request = format!("GET /api/v1/events{query} HTTP/1.0\r\n{bearer}{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut follower = Follower { status: 0, stream: BufReader::new(stream) };
        let first = follower.line().await.expect("a status line");
        follower.status = first.split(' ').nth(1).unwrap().parse().unwrap();
        while follower.line().await.is_some_and(|line| !line.is_empty()) {}
        follower
    }

    /// The next line; none when the stream has ended.
    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(LONG, self.stream.read_line(&mut line)).await.expect("a line in time").unwrap();
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// The lines of the next event but for comments; none when the stream has ended.
    async fn event(&mut self) -> Option<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            match self.line().await? {
                line if line.is_empty() && !lines.is_empty() => return Some(lines),
                line if line.is_empty() || line.starts_with(':') => {}
                line => lines.push(line),
            }
        }
    }

    /// The next entry, past positions that stand alone.
    async fn next(&mut self) -> Option<Value> {
        loop {
            let lines = self.event().await?;
            let [id, event, data] = lines.as_slice() else { continue };
            let row: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(*id, format!("id: {}", row["entry"]));
            assert_eq!(*event, format!("event: {}", row["event"].as_str().unwrap()));
            return Some(row);
        }
    }

    /// All entries up to the first of this kind.
    async fn until(&mut self, kind: &str) -> Vec<Value> {
        let mut told: Vec<Value> = Vec::new();
        while told.last().is_none_or(|row| row["event"] != kind) {
            told.push(self.next().await.expect("the stream goes on"));
        }
        told
    }

    async fn why(mut self) -> String {
        let mut body = String::new();
        self.stream.read_to_string(&mut body).await.unwrap();
        let body: Value = serde_json::from_str(&body).unwrap();
        let kind = body["type"].as_str().unwrap().replace("urn:holdfast:problem:", "");
        format!("{} {kind}: {}", self.status, body["why"].as_str().unwrap())
    }
}

impl World {
    fn newest(&self) -> u64 {
        self.agent.store.read(|view| view.newest_entry()).unwrap()
    }

    async fn listed(&self, after: u64) -> Vec<Value> {
        let page = self.operator(&format!("/api/v1/journal?limit=1000&after={after}")).await.json();
        page["items"].as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn p4_a_follower_at_a_site_that_is_cut_misses_nothing_and_hears_nothing_twice() {
    let world = World::new().await;
    let start = world.newest();
    let mut follower = Follower::open(world.address, "", "").await;
    assert_eq!(follower.event().await, Some(vec![format!("id: {start}")]), "where it begins");

    // What central told, and what this site did.
    world.order();
    world.boot().await;
    let first = follower.until("boot_answered").await;
    assert_eq!(first[..], world.listed(start).await[..first.len()], "as the list shows them");
    let streams = ["central", "site"].map(|whose| format!("{whose}/{}", world.site()));
    for stream in &streams {
        assert!(first.iter().any(|row| row["stream"] == *stream), "{first:?}");
    }
    drop(follower);

    world.deliver();
    world.boot().await;
    let seen = first.last().unwrap()["entry"].as_u64().unwrap();
    let mut again = Follower::open(world.address, "?after=0", &format!("Last-Event-ID: {seen}\r\n")).await;
    let since = again.until("boot_answered").await;
    assert!(since.len() > 1, "{since:?}");
    assert_eq!(since[..], world.listed(seen).await[..since.len()]);

    let mut own = Follower::open(world.address, "?site=lyon&kind=boot_answered&after=0", "").await;
    for told in [&first, &since] {
        assert_eq!(own.next().await.as_ref(), told.last());
    }
}

#[tokio::test]
async fn what_cannot_be_followed_at_a_site_is_refused_with_the_reason() {
    let world = World::new().await;
    let bearer = world.send("GET", "/api/v1/events", "", "").await;
    assert_eq!(bearer.status, 401);
    let mut lines = String::new();
    for (query, headers) in [
        ("?kind=boot_answered,machine_painted", ""),
        ("?after=first", ""),
        ("", "Last-Event-ID: -1\r\n"),
        ("?node=1", ""),
        ("?site=oslo", ""),
        ("?after=900", ""),
    ] {
        let said = Follower::open(world.address, query, headers).await.why().await;
        let said = said.split_once("; the journal knows ").map_or(said.as_str(), |(before, _)| before);
        lines += &format!("{query}{}\n  {said}\n", headers.trim_end());
    }
    expect![[r#"
        ?kind=boot_answered,machine_painted
          400 bad-request: `machine_painted` is no kind of entry
        ?after=first
          400 bad-request: `after` is not the number of an entry: invalid digit found in string
        Last-Event-ID: -1
          400 bad-request: `Last-Event-ID` is not the number of an entry: invalid digit found in string
        ?node=1
          400 bad-request: Failed to deserialize query string: node: unknown field `node`, expected one of `kind`, `site`, `after`
        ?site=oslo
          404 not-found: site oslo is not known here
        ?after=900
          409 refused: there is no entry 900 yet, the newest is 2: this database was restored or is another one
    "#]].assert_eq(&lines);
}

#[tokio::test]
async fn followers_at_a_site_are_counted_and_its_end_is_theirs() {
    let world = World::new().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let served = tokio::spawn(serve(listener, Arc::clone(&world.agent), async move { drop(ended.await) }));
    let mut followers = Vec::new();
    for _ in 0..16 {
        let mut follower = Follower::open(address, "", "").await;
        follower.event().await.expect("a position");
        followers.push(follower);
    }
    let refused = Follower::open(address, "", "").await.why().await;
    expect!["503 too-many-readers: 16 readers follow it already, which is as many as may"]
        .assert_eq(&refused);
    world.boot().await;
    for follower in &mut followers {
        assert_eq!(follower.next().await.unwrap()["event"], "boot_answered");
    }
    drop(followers.pop());
    let place = async {
        while Follower::open(address, "", "").await.status == 503 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, place).await.expect("a place is free");

    drop(end);
    timeout(LONG, served).await.expect("nobody waits for those who follow").unwrap().unwrap();
    for follower in &mut followers {
        assert_eq!(follower.next().await, None, "the stream ends with the program");
    }
}
