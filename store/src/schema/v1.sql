-- Version 1. Rowid tables with integer document keys throughout: WITHOUT ROWID tables with wide keys were
-- three times larger and six times slower (docs/performance.md).

-- Single values: origin, incarnation, starts, clock, central_time, known_time, views, suspended, suspended_at,
-- generation, followed (epoch), authority (central's and its predecessor, by their digests), recovering (at a site: the
-- newest change when central told that it is in recovery), chain (a site's: the life in which it was begun, and
-- the chain that its journal goes on in).
CREATE TABLE meta (key TEXT NOT NULL UNIQUE, value BLOB NOT NULL) STRICT;

-- One row per replicated document. `heads` are the sorted hashes, 32 bytes each; `sum` is the sum of the changes'
-- hashes modulo 2^128. `actor` writes this document instead of the incarnation, which has another history of it.
-- `dropped`: central told a site that the document leaves it, and something of the site's is still to be acknowledged.
-- `resets`: how often in a row central did not take what the site wrote. `source`: the peer that brought it into being.
CREATE TABLE documents (
    doc INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, kind INTEGER NOT NULL, heads BLOB NOT NULL,
    changes INTEGER NOT NULL DEFAULT 0, sum BLOB NOT NULL DEFAULT (zeroblob(16)), modified_at INTEGER NOT NULL DEFAULT 0, modified_by TEXT NOT NULL DEFAULT '',
    actor BLOB, dropped INTEGER NOT NULL DEFAULT 0, resets INTEGER NOT NULL DEFAULT 0, source TEXT
) STRICT;
CREATE INDEX documents_by_source ON documents (source) WHERE source IS NOT NULL;
-- Every acknowledgement asks what is to go.
CREATE INDEX documents_dropped ON documents (doc) WHERE dropped = 1;
-- At a site: documents that were here once and left; whoever writes them again needs another actor.
CREATE TABLE evicted (id BLOB NOT NULL UNIQUE) STRICT;
-- State of a document up to and including change `upto`.
CREATE TABLE snapshots (doc INTEGER PRIMARY KEY, upto INTEGER NOT NULL, bytes BLOB NOT NULL) STRICT;
-- Every change but the genesis, in the order of arrival. `bytes` is absent once a snapshot covers it.
-- `source` is the peer that delivered it, absent for our own. `seal` is what central put beside it, at a site.
-- `heard_at`: at central, when it heard of a change whose stamp is later than that.
CREATE TABLE changes (
    change INTEGER PRIMARY KEY, doc INTEGER NOT NULL, hash BLOB NOT NULL UNIQUE, source TEXT, bytes BLOB,
    seal BLOB, heard_at INTEGER
) STRICT;
CREATE INDEX changes_by_document ON changes (doc, change);
-- Changes whose dependencies have not arrived. Never evicted. `epoch` is the one that `source` followed, `known` the
-- position of central's log and `directory` how much of the directory it knew.
CREATE TABLE parked (
    id BLOB NOT NULL, kind INTEGER NOT NULL, hash BLOB NOT NULL UNIQUE, source TEXT NOT NULL, epoch INTEGER NOT NULL,
    known INTEGER NOT NULL, directory INTEGER NOT NULL, bytes BLOB NOT NULL, seal BLOB
) STRICT;
CREATE INDEX parked_by_document ON parked (id);
-- Bytes of a peer that did not pass ingress. `denied`: they are sound, and were not the peer's to write. `kind` is that of
-- the document, -1 of a journal entry, whose `id` is its chain, -2 of an item that is nothing. An item keeps its number for ever.
CREATE TABLE quarantine (
    item INTEGER PRIMARY KEY AUTOINCREMENT, peer TEXT NOT NULL, kind INTEGER NOT NULL, id BLOB NOT NULL, at INTEGER NOT NULL,
    denied INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL, bytes BLOB NOT NULL, hash BLOB
) STRICT;
CREATE INDEX quarantine_by_peer ON quarantine (peer, item);
CREATE INDEX quarantine_by_hash ON quarantine (hash) WHERE hash IS NOT NULL;

-- Registers that writers disagree about, or disagreed. `id` is the document, `home` the site that it is about, `reason` why
-- a person decides, at central.
CREATE TABLE conflicts (
    conflict INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL, id BLOB NOT NULL, path TEXT NOT NULL, home BLOB,
    open INTEGER NOT NULL DEFAULT 1, opened_at INTEGER NOT NULL, reason TEXT, body TEXT NOT NULL
) STRICT;
-- Every change asks whether its document has one.
CREATE INDEX conflicts_open ON conflicts (id) WHERE open = 1;

-- At central: changes of its own that it took back; what follows from them waits in vain.
CREATE TABLE withdrawn (hash BLOB NOT NULL UNIQUE) STRICT;

-- `copied`: the fact was recorded again in a later life, because the peer has another entry of that number.
CREATE TABLE journal (
    entry INTEGER PRIMARY KEY, stream TEXT NOT NULL, incarnation BLOB NOT NULL, seq INTEGER NOT NULL,
    hash BLOB NOT NULL, bytes BLOB NOT NULL, copied INTEGER NOT NULL DEFAULT 0, UNIQUE (stream, incarnation, seq)
) STRICT;
-- Chains of peers that broke: nothing more of them is taken.
CREATE TABLE broken_chains (stream TEXT NOT NULL, incarnation BLOB NOT NULL, UNIQUE (stream, incarnation)) STRICT;

-- Heads of chains as their writers signed them, ours and the peers': the newest of each life that was verified, and those
-- that are still to be. `signer` is the serial number of a site's certificate, or the digest of central's authority.
CREATE TABLE heads (
    head INTEGER PRIMARY KEY, stream TEXT NOT NULL, incarnation BLOB NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL,
    at INTEGER NOT NULL, signer BLOB NOT NULL, signature BLOB NOT NULL, verified_at INTEGER, UNIQUE (stream, incarnation, seq)
) STRICT;
CREATE INDEX heads_to_verify ON heads (head) WHERE verified_at IS NULL;
-- Entries of a chain that are not here any more, or never were: after the entry `after` up to `upto`, which had this hash.
CREATE TABLE checkpoints (
    stream TEXT NOT NULL, incarnation BLOB NOT NULL, after INTEGER NOT NULL, upto INTEGER NOT NULL, hash BLOB NOT NULL,
    at INTEGER NOT NULL, archive BLOB, UNIQUE (stream, incarnation, upto)
) STRICT;
-- At a site: which entries both sides had (`acknowledged`) and which were here (`held`) at a time that central confirmed.
CREATE TABLE journal_days (at INTEGER NOT NULL UNIQUE, acknowledged INTEGER NOT NULL, held INTEGER NOT NULL) STRICT;

-- What a peer is told, in order. Exactly one of `change`, `entry` and `note`, the item itself, is
-- present. `changes` and `sum` are
-- the fingerprint over the changes up to this position.
CREATE TABLE log (
    item INTEGER PRIMARY KEY, peer TEXT NOT NULL, position INTEGER NOT NULL, change INTEGER, entry INTEGER, note BLOB,
    rolling BLOB NOT NULL, changes INTEGER NOT NULL, sum BLOB NOT NULL, UNIQUE (peer, position)
) STRICT;
CREATE INDEX log_by_change ON log (change, peer) WHERE change IS NOT NULL;
CREATE INDEX log_by_entry ON log (entry, peer) WHERE entry IS NOT NULL;
-- `life` is the life of the peer's database that the positions are counted in. `anew`: the logs begin anew and both
-- sides have not yet found out what each lacks; `logs`: how often, as central counts. `common_entry`: up to this entry
-- of our journal the peer has all.
-- `settled`: before this position of our log the peer may lack what both found out. `directory`: how much of the
-- directory was told.
CREATE TABLE peers (
    peer TEXT NOT NULL UNIQUE,
    pulled INTEGER NOT NULL DEFAULT 0, pulled_rolling BLOB NOT NULL DEFAULT (zeroblob(16)),
    acknowledged INTEGER NOT NULL DEFAULT 0, seal BLOB, life BLOB, anew INTEGER NOT NULL DEFAULT 0,
    logs INTEGER NOT NULL DEFAULT 0,
    common_entry INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0, directory INTEGER NOT NULL DEFAULT 0,
    heard_at INTEGER, clock INTEGER, telemetry BLOB, refused TEXT,
    agrees INTEGER, compared_at INTEGER,
    -- At central: the settings epoch that the site follows from this position of its log on.
    epoch INTEGER NOT NULL DEFAULT 0,
    -- At central: the highest settings epoch that the site was seen to know of, whoever told of it.
    seen_epoch INTEGER NOT NULL DEFAULT 0,
    -- At central: both have held the same since our life began, so that the site has given back what it had.
    returned INTEGER NOT NULL DEFAULT 0,
    -- At central: the position of its log that the site knew when it wrote what comes from here on.
    known INTEGER NOT NULL DEFAULT 0,
    -- At central: the position of the newest item of the directory in the site's log, and how much of the directory the
    -- site knew likewise.
    directory_at INTEGER NOT NULL DEFAULT 0, directory_known INTEGER NOT NULL DEFAULT 0,
    -- At central: whether the site's directory is only that of the homes in `domains`; otherwise it is whole, and has been
    -- since the position `whole_from` of the site's log. `domain_due`: a group, a site or a domain changed since that was
    -- looked at. `directory_anew`: its beginning anew was told, and its end was not.
    restricted INTEGER NOT NULL DEFAULT 0, whole_from INTEGER NOT NULL DEFAULT 0,
    domain_due INTEGER NOT NULL DEFAULT 1, directory_anew INTEGER NOT NULL DEFAULT 0,
    -- What is in quarantine, how much was ever put there but for journal entries, and how much went since there was
    -- too much (`trimmed`). `breaks`: chains of its journal that broke in a row.
    aside_items INTEGER NOT NULL DEFAULT 0, aside_bytes INTEGER NOT NULL DEFAULT 0,
    aside_ever INTEGER NOT NULL DEFAULT 0, trimmed INTEGER NOT NULL DEFAULT 0, breaks INTEGER NOT NULL DEFAULT 0
) STRICT;
-- At central: which documents a site is told about (`inside`), or was once: then the site holds what it wrote itself
-- after change `upto`. `gone`: position of our log that says that it is no longer inside, 0 if the site knew that in a
-- former log. `doubt`: it is not inside and the site holds it all the same, or may; it is told once the site has told what it has.
CREATE TABLE scope (
    peer TEXT NOT NULL, doc INTEGER NOT NULL, inside INTEGER NOT NULL DEFAULT 1, upto INTEGER NOT NULL DEFAULT 0,
    gone INTEGER, doubt INTEGER NOT NULL DEFAULT 0, UNIQUE (peer, doc)
) STRICT;
CREATE INDEX scope_in_doubt ON scope (peer) WHERE doubt = 1;
-- Every change asks whom its document concerns.
CREATE INDEX scope_by_document ON scope (doc, peer) WHERE inside = 1;
-- The machines of the fleet and where they belong, at a site those of its domain. `seq` is the order of the last changes
-- and never used again; a site has been told up to `peers.directory`. `since` is the `seq` of the machine's first row. At a
-- site `at` is the time of the news.
CREATE TABLE directory (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, node BLOB NOT NULL UNIQUE, since INTEGER NOT NULL, home BLOB,
    home_epoch INTEGER NOT NULL, retired INTEGER NOT NULL, at INTEGER NOT NULL
) STRICT;
CREATE INDEX directory_by_home ON directory (home, seq);
-- At central: the home that a machine had before the row `seq` of the directory, as long as a site may have been told of it.
CREATE TABLE directory_moves (seq INTEGER NOT NULL UNIQUE, node BLOB NOT NULL, home BLOB) STRICT;
CREATE INDEX directory_moves_by_node ON directory_moves (node, seq);
-- At central: sites that wrote of a machine which was not theirs. They are told of it wherever it is at home.
CREATE TABLE visitors (site BLOB NOT NULL, node BLOB NOT NULL, UNIQUE (site, node)) STRICT;
-- At central: whose machines a site is told of, each from the position `told` of its log on.
CREATE TABLE domains (peer TEXT NOT NULL, home BLOB NOT NULL, told INTEGER NOT NULL, UNIQUE (peer, home)) STRICT;
-- At central: whose incarnation an actor is, by who delivered it first.
CREATE TABLE actors (actor BLOB NOT NULL UNIQUE, peer TEXT NOT NULL) STRICT;
-- At central: what a site may decide by itself under each epoch of its settings. `told`: position of the site's log that says so,
-- 0 if the site knew that in a former log.
CREATE TABLE epochs (
    site BLOB NOT NULL, epoch INTEGER NOT NULL, autonomy TEXT NOT NULL, told INTEGER, UNIQUE (site, epoch)
) STRICT;
-- At central: proposals that the journal of a site tells of, in its order.
CREATE TABLE asked (asked INTEGER PRIMARY KEY, site BLOB NOT NULL, proposal BLOB NOT NULL, UNIQUE (site, proposal)) STRICT;
-- At central: enrolment tokens by the digest of their secret.
CREATE TABLE tokens (
    hash BLOB NOT NULL UNIQUE, site BLOB NOT NULL, name TEXT NOT NULL, created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, spent_at INTEGER, spent_by BLOB
) STRICT;
-- At central: what certified sites. `serial` as in the certificate; `authority` is the digest of the certificate of who
-- signed; `key` is the certified public key; `used_at` is when a session was first opened with it; `revoked_at` never
-- becomes absent again.
CREATE TABLE certificates (
    certificate INTEGER PRIMARY KEY, serial BLOB NOT NULL UNIQUE, site BLOB NOT NULL, authority BLOB NOT NULL,
    key BLOB NOT NULL, issued_at INTEGER NOT NULL, not_after INTEGER NOT NULL, used_at INTEGER, revoked_at INTEGER
) STRICT;
CREATE INDEX certificates_by_site ON certificates (site, certificate);
-- At central: the newest revocation of each site that ever had one.
CREATE TABLE revocations (site BLOB NOT NULL UNIQUE, at INTEGER NOT NULL, by TEXT NOT NULL, reason TEXT NOT NULL) STRICT;

-- At a site: machines' reports that were answered, with the answer, so that a repeated one is answered alike.
CREATE TABLE reports (report BLOB NOT NULL UNIQUE, node BLOB NOT NULL, at INTEGER NOT NULL, status INTEGER NOT NULL, answer TEXT NOT NULL) STRICT;
-- At a site: the newest boot answer per machine, so that repeated ones are counted and not journalled again.
CREATE TABLE boots (
    mac BLOB NOT NULL UNIQUE, answer TEXT NOT NULL, reason TEXT NOT NULL, first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL, count INTEGER NOT NULL
) STRICT;
-- Overwritten, never replicated: how far an attempt has come, and how often its consumed order was taken up again.
CREATE TABLE progress (task BLOB NOT NULL UNIQUE, attempt INTEGER NOT NULL, percent INTEGER NOT NULL, boots INTEGER NOT NULL, at INTEGER NOT NULL) STRICT;

-- Derived from the documents; dropped and made again when `view::VERSION` changes.
CREATE TABLE view_sites (
    doc INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, name TEXT NOT NULL, grp BLOB, domain BLOB, body TEXT NOT NULL
) STRICT;
CREATE INDEX view_sites_by_group ON view_sites (grp) WHERE grp IS NOT NULL;
CREATE TABLE view_groups (
    doc INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, parent BLOB, name TEXT NOT NULL, body TEXT NOT NULL
) STRICT;
CREATE INDEX view_groups_by_parent ON view_groups (parent, name);
CREATE TABLE view_nodes (
    doc INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, home BLOB, body TEXT NOT NULL
) STRICT;
CREATE INDEX view_nodes_by_home ON view_nodes (home);
CREATE TABLE view_macs (mac BLOB NOT NULL UNIQUE, doc INTEGER NOT NULL) STRICT;
CREATE INDEX view_macs_by_document ON view_macs (doc);
-- What no two machines in service should have: a word and a value.
CREATE TABLE view_traits (doc INTEGER NOT NULL, trait TEXT NOT NULL, UNIQUE (doc, trait)) STRICT;
CREATE INDEX view_traits_by_trait ON view_traits (trait, doc);
CREATE TABLE view_tasks (
    doc INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, node BLOB NOT NULL, site BLOB NOT NULL, state TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX view_tasks_by_node ON view_tasks (node);
CREATE INDEX view_tasks_by_site ON view_tasks (site, state);
CREATE TABLE view_proposals (
    doc INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, site BLOB NOT NULL, state TEXT NOT NULL, action TEXT NOT NULL, about BLOB,
    after BLOB, body TEXT NOT NULL
) STRICT;
CREATE INDEX view_proposals_by_site ON view_proposals (site, doc);
CREATE INDEX view_proposals_by_state ON view_proposals (state, doc);
CREATE INDEX view_proposals_by_about ON view_proposals (about) WHERE about IS NOT NULL;
CREATE INDEX view_proposals_by_after ON view_proposals (after) WHERE after IS NOT NULL;
-- `due`: when central looks at it again: the end of an open round, or of the orders that a closed fence waits for.
CREATE TABLE view_claims (
    doc INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, node BLOB NOT NULL, to_site BLOB NOT NULL, from_site BLOB NOT NULL,
    state TEXT NOT NULL, due INTEGER, fence INTEGER NOT NULL, body TEXT NOT NULL
) STRICT;
CREATE INDEX view_claims_by_node ON view_claims (node);
CREATE INDEX view_claims_by_state ON view_claims (state, doc);
CREATE INDEX view_claims_by_due ON view_claims (due) WHERE due IS NOT NULL;
CREATE INDEX view_claims_by_fence ON view_claims (from_site) WHERE fence = 1;
CREATE TABLE view_workflows (
    doc INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, name TEXT NOT NULL, body TEXT NOT NULL
) STRICT;
