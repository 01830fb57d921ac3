//! Who follows the journal hears every entry once, is counted, and never holds anybody up.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::*;

/// One reader of the stream, over HTTP/1.0: what follows the head is the stream as it is.
struct Follower {
    status: u16,
    kind: String,
    stream: BufReader<TcpStream>,
}

/// One event: its position, its kind and its object.
type Told = (u64, String, Value);

impl Follower {
    async fn open(central: &Central, query: &str, headers: &str) -> Self {
        let bearer = format!("Authorization: {}\r\n", central.bearer());
        Follower::open_as(central, query, &(bearer + headers)).await
    }

    async fn open_as(central: &Central, query: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(central.server.http()).await.unwrap();
        let request = format!("GET /api/v1/events{query} HTTP/1.0\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut follower = Follower { status: 0, kind: String::new(), stream: BufReader::new(stream) };
        let first = follower.line().await.expect("a status line");
        follower.status = first.split(' ').nth(1).unwrap().parse().unwrap();
        while let Some(line) = follower.line().await.filter(|line| !line.is_empty()) {
            if let Some(kind) = line.to_lowercase().strip_prefix("content-type: ") {
                follower.kind = kind.to_string();
            }
        }
        follower
    }

    /// The next line; none when the stream has ended.
    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = tokio::time::timeout(LONG, self.stream.read_line(&mut line)).await;
        (read.expect("a line in time").unwrap() > 0).then(|| line.trim_end().to_string())
    }

    /// The position that stands alone in the next event, as it does at the beginning.
    async fn position(&mut self) -> u64 {
        let line = self.line().await.expect("an event");
        assert_eq!(self.line().await.as_deref(), Some(""), "{line}");
        line.strip_prefix("id: ").expect("a position").parse().unwrap()
    }

    /// The next entry, past positions that stand alone.
    async fn next(&mut self) -> Option<Told> {
        let (mut position, mut kind, mut data) = (0, String::new(), None);
        loop {
            let line = self.line().await?;
            match (line.split_once(": "), data.take()) {
                (Some(("id", text)), kept) => (position, data) = (text.parse().unwrap(), kept),
                (Some(("event", text)), kept) => (kind, data) = (text.to_string(), kept),
                (Some(("data", text)), None) => data = Some(serde_json::from_str(text).unwrap()),
                (None, kept) if line.starts_with(':') => data = kept,
                (None, Some(found)) if line.is_empty() => return Some((position, kind, found)),
                (None, None) if line.is_empty() => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// So many entries.
    async fn take(&mut self, many: usize) -> Vec<Told> {
        let mut told = Vec::new();
        while told.len() < many {
            told.push(self.next().await.expect("the stream goes on"));
        }
        told
    }

    async fn problem(mut self) -> String {
        let mut body = String::new();
        self.stream.read_to_string(&mut body).await.unwrap();
        let body: Value = serde_json::from_str(&body).unwrap();
        let kind = body["type"].as_str().unwrap().replace("urn:holdfast:problem:", "");
        format!(
            "{} {kind}: {}, {}",
            self.status,
            body["detail"].as_str().unwrap(),
            body["why"].as_str().unwrap()
        )
    }
}

async fn make_sites(central: &Central, names: &[&str]) {
    for name in names {
        central.post("/sites", json!({ "name": name })).await;
    }
}

/// What the list of the journal shows after an entry, in the form of the stream.
async fn listed(central: &Central, after: u64) -> Vec<Told> {
    let page = central.get(&format!("/journal?limit=1000&after={after}")).await;
    let told = |row: &Value| {
        (row["entry"].as_u64().unwrap(), row["event"].as_str().unwrap().to_string(), row.clone())
    };
    page["items"].as_array().unwrap().iter().map(told).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_who_is_cut_and_follows_again_misses_nothing_and_hears_nothing_twice() {
    let folder = folder();
    let central = Central::start(folder.path(), &Clock::at_noon()).await;
    make_sites(&central, &["lyon"]).await;
    let before = listed(&central, 0).await.last().unwrap().0;

    let mut follower = Follower::open(&central, "", "").await;
    assert_eq!((follower.status, follower.kind.as_str()), (200, "text/event-stream"));
    assert_eq!(follower.position().await, before, "it begins with what comes next");
    make_sites(&central, &["bern", "oslo"]).await;
    let first = listed(&central, before).await;
    assert!(first.iter().any(|(_, kind, row)| kind == "site_created" && row["name"] == "oslo"), "{first:?}");
    assert_eq!(follower.take(first.len()).await, first, "as the list shows them");

    // Cut in the middle: of what it was told it has seen one less.
    drop(follower);
    let seen = first[first.len() - 2].0;
    make_sites(&central, &["rome", "bonn"]).await;
    let since = listed(&central, seen).await;
    let last = format!("Last-Event-ID: {seen}\r\n");
    for (name, query, headers) in [
        ("header", "", last.as_str()),
        ("query", &*format!("?after={seen}"), ""),
        ("both", "?after=0", &last),
    ] {
        let mut again = Follower::open(&central, query, headers).await;
        assert_eq!(again.position().await, seen, "{query} {headers}");
        assert_eq!(again.take(since.len()).await, since, "{query} {headers}");
        make_sites(&central, &[name]).await;
        let (next, kind, row) = again.next().await.unwrap();
        assert!(next > since.last().unwrap().0, "the past ends where the present begins: {kind} {row}");
    }

    // Cut before it was told anything, it has a position all the same; and the past can be had from its beginning.
    let all = listed(&central, 0).await;
    let mut whole = Follower::open(&central, "?after=0", "").await;
    assert_eq!(whole.take(all.len()).await, all);
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_a_follower_hears_the_kinds_and_the_site_that_it_asked_for_also_what_sites_bring() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    make_sites(&central, &["lyon"]).await;
    let mut tokens = Follower::open(&central, "?kind=token_issued,site_enrolled", "").await;
    let mut lyon = Follower::open(&central, "?site=lyon&kind=epoch_adopted", "").await;
    let (start, _) = (tokens.position().await, lyon.position().await);

    make_sites(&central, &["bern"]).await;
    assert!(tokens.position().await > start, "what is not wanted moves the position on");
    let machine = Machine::new(&clock);
    let enrolled = machine.enrol(&central, &central.invite("lyon").await).await.unwrap();
    let heard: Vec<String> = tokens.take(2).await.into_iter().map(|(_, kind, _)| kind).collect();
    assert_eq!(heard, ["token_issued", "site_enrolled"]);

    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &enrolled);
    evidence::settle(&central, &mut site, 7).await;
    let (entry, _, row) = lyon.next().await.unwrap();
    assert_eq!(row["stream"], format!("site/{}", enrolled.site));
    let of_site = central.get("/journal?site=lyon").await;
    let same = of_site["items"].as_array().unwrap().iter().find(|it| it["entry"] == entry).unwrap();
    assert_eq!(same, &row);
    site.stop().await;
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_cannot_be_is_refused_with_the_reason() {
    let folder = folder();
    let central = Central::start(folder.path(), &Clock::at_noon()).await;
    make_sites(&central, &["lyon"]).await;
    let mut lines = String::new();
    for (query, headers) in [
        ("?kind=site_created,site_painted", ""),
        ("?kind=", ""),
        ("?after=first", ""),
        ("", "Last-Event-ID: 1.5\r\n"),
        ("?node=1", ""),
        ("?site=oslo", ""),
        ("?after=900", ""),
    ] {
        let said = Follower::open(&central, query, headers).await.problem().await;
        // The list of kinds grows.
        let said = said.split_once(" the journal knows ").map_or(said.as_str(), |(before, _)| before);
        lines += &format!("{query}{headers}\n  {said}\n").replace("\r\n\n", "\n");
    }
    for token in ["", "Authorization: Bearer 0123\r\n"] {
        lines += &format!("{}\n", Follower::open_as(&central, "", token).await.problem().await);
    }
    expect![[r#"
        ?kind=site_created,site_painted
          400 bad-request: `kind` is not what is taken here, `site_painted` is no kind of entry;
        ?kind=
          400 bad-request: `kind` is not what is taken here, `` is no kind of entry;
        ?after=first
          400 bad-request: `after` is not the number of an entry, invalid digit found in string
        Last-Event-ID: 1.5
          400 bad-request: `Last-Event-ID` is not the number of an entry, invalid digit found in string
        ?node=1
          400 bad-request: the query is not what is taken here, node: unknown field `node`, expected one of `kind`, `site`, `after`
        ?site=oslo
          404 not-found: site oslo is not known here, no such thing is known here, or the address is misspelt
        ?after=900
          409 refused: this cannot be done as asked; nothing was changed, there is no entry 900 yet, the newest is 1: this database was restored or is another one; begin without a position
        401 unauthorized: this is for operators, the request carries no token
        401 unauthorized: this is for operators, the token is wrong
    "#]].assert_eq(&lines);
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_are_counted_and_the_end_of_the_program_is_theirs() {
    let folder = folder();
    let central = Central::start(folder.path(), &Clock::at_noon()).await;
    let mut followers = Vec::new();
    for _ in 0..64 {
        let mut follower = Follower::open(&central, "", "").await;
        follower.position().await;
        followers.push(follower);
    }
    let refused = Follower::open(&central, "", "").await.problem().await;
    expect!["503 too-many-readers: the stream of events was not opened, 64 readers follow it already, which is as many as may"].assert_eq(&refused);
    // All of them hear what happens, and a place that one leaves is free again.
    make_sites(&central, &["lyon"]).await;
    for follower in &mut followers {
        assert_eq!(follower.next().await.unwrap().1, "site_created");
    }
    drop(followers.pop());
    let place = async {
        while Follower::open(&central, "", "").await.status == 503 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, place).await.expect("a place is free");

    let stopped = tokio::time::timeout(PATIENCE / 2, central.server.stop()).await;
    assert!(stopped.is_ok(), "nobody waits for those who follow");
    for follower in &mut followers {
        assert_eq!(follower.next().await, None, "the stream ends with the program");
    }
}
