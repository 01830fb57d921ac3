//! Disagreements at central: what the policy settles at once, and what people decide, many at a time if they like, and
//! take back again.
//!
//! What the policy settles is neutral: it repeats one side, and whoever had seen all sides and writes beside it has the
//! last word. What a person decides is a decision like any other.

use std::cell::RefCell;

use automerge::ChangeHash;
use rusqlite::{OptionalExtension, params};
use serde::Serialize;
use serde_json::Value as Json;
use sync::{
    document::{
        Author, Disputed, Field, Fields, Kind, Side, Value, contested,
        node::Text,
        register::Untyped,
        schema::RegisterSchema,
        settlement::{self, Settlement, settlements},
    },
    id::{DocumentId, Nonce, Origin, SiteId},
    journal::Event,
    policy::{
        Accepted, Strategy,
        conflict::{Resolution, Rule},
    },
    time::{Hlc, Timestamp},
};

use super::{check_text, claim, node::check_hostname, refused, register_set, unknown};
use crate::{
    StoreError, Tx,
    log::signed,
    view::{self, ConflictFilter, ConflictRow},
};

/// Who acts where the policy settles.
pub const POLICY: &str = "policy";

/// Disagreements that one command settles at most.
const MANY: u64 = 1_000;

/// What a person decides about a disagreement.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// Whose word shall count.
    pub resolution: Option<Accepted>,
    /// Names the side, where one has several.
    pub side: Option<Nonce>,
    /// The fields of the register, where nobody's value counts as it is.
    pub value: Option<Json>,
    /// Names of the sides that the person has seen: where there are others by now, nothing is decided.
    #[serde(default)]
    pub seen: Vec<Nonce>,
    /// Why, for the journal and the other side.
    #[serde(default)]
    pub why: String,
    /// Only says what would become of it.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a person decides about many at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManyDecision {
    /// Only those about this site.
    pub site: Option<SiteId>,
    /// Only those of this path, as `hostname` or `tags/rack`.
    pub path: Option<String>,
    /// Only those in this document.
    pub document: Option<DocumentId>,
    /// How they shall be settled.
    pub strategy: Option<Strategy>,
    /// Also those that the safety floor leaves to a person.
    #[serde(default)]
    pub destructive: bool,
    /// Why, for the journal and the other side.
    #[serde(default)]
    pub why: String,
    /// Only says what would become of them.
    #[serde(default)]
    pub dry_run: bool,
}

/// What became of a disagreement, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decided {
    /// Its number.
    pub conflict: u64,
    /// Kind of the document.
    pub kind: String,
    /// The document.
    pub document: DocumentId,
    /// Path of the register.
    pub path: String,
    /// Whose word counts; absent where it stays open.
    pub resolution: Option<Accepted>,
    /// The value from here on.
    pub value: Option<Json>,
    /// Why it stays open.
    pub left: Option<String>,
}

/// At central: settles in a document what policy may, neutrally and in one change, and says of the rest why a person
/// decides. In recovery it waits: a side may still come back.
pub(crate) fn settle(tx: &mut Tx<'_>, kind: Kind, id: DocumentId) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central || !is_open(tx, id)? || tx.view().suspended()?.is_some() {
        return Ok(());
    }
    let (found, strategy) = weigh(tx, kind, id, None)?;
    let settled: Vec<&Settlement> =
        found.iter().filter(|one| matches!(one.resolution, Resolution::Winner(_))).collect();
    if !settled.is_empty() {
        let present = tx.author()?.clone();
        tx.author = Some(Author { by: POLICY.to_string(), ..present.clone() });
        let done = tx.write(kind, id, |edit| {
            for one in &settled {
                if let Some((side, said)) = one.winner() {
                    let why = why(kind, one, strategy);
                    edit.settle(one.of.container, &one.of.key, side.value.0.clone(), &said, &why);
                }
            }
        });
        let entropy = tx.author()?.entropy.clone();
        tx.author = Some(Author { entropy, ..present });
        done?;
        if kind == Kind::Node {
            claim::settle_about(tx, id.into())?;
        }
    }
    for one in &found {
        if let Resolution::Open(reason) = &one.resolution {
            leave_open(tx, id, &one.of.path(), reason.as_str())?;
        }
    }
    Ok(())
}

/// At central: settles everything that is open, of all documents or of those about one site, as policy has it by now.
pub(crate) fn settle_all(tx: &mut Tx<'_>, home: Option<SiteId>) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central {
        return Ok(());
    }
    let open =
        tx.view().conflicts(&ConflictFilter { home, open: Some(true), ..ConflictFilter::default() })?;
    let mut last = None;
    for row in open {
        if last.replace(row.document) != Some(row.document)
            && let Ok(kind) = row.kind.parse()
        {
            settle(tx, kind, row.document)?;
        }
    }
    Ok(())
}

/// At central: a person settles one disagreement.
///
/// # Errors
/// `Unknown` conflict; `Refused` when it has ended, has other sides than the person has seen, or the decision names
/// none of them; `Recovering` while central is in recovery.
pub fn resolve(tx: &mut Tx<'_>, conflict: u64, decision: &Decision) -> Result<Decided, StoreError> {
    let row = open_one(tx, conflict, &decision.why)?;
    let kind = kind_of(&row)?;
    let document = tx.shared(kind, row.document)?;
    let all = document.map(|document| contested::disputed(&document)).unwrap_or_default();
    let Some(disputed) = all.into_iter().find(|one| one.path() == row.path) else {
        return Err(unknown("conflict", conflict));
    };
    let sides = disputed.read.sides();
    if !decision.seen.is_empty() && sides.iter().any(|side| !decision.seen.contains(&side.nonce())) {
        return refused(format!("conflict {conflict} has another side by now; look at it again"));
    }
    let fields = chosen(&disputed, decision)?;
    let taken = sides.iter().find(|side| side.value.0 == fields).map(|side| side.written.site);
    let resolution = match taken {
        Some(Origin::Central) => Accepted::Central,
        Some(Origin::Site(_)) => Accepted::Site,
        None => Accepted::Merged,
    };
    let decided = Decided {
        conflict,
        kind: row.kind.clone(),
        document: row.document,
        path: row.path.clone(),
        resolution: Some(resolution),
        value: Some(view::shown(&fields)),
        left: None,
    };
    if !decision.dry_run {
        write(tx, kind, &row, (disputed.container, &disputed.key, disputed.schema), &fields, &decision.why)?;
    }
    Ok(decided)
}

/// At central: a person settles many disagreements by one strategy.
///
/// # Errors
/// `Refused` without a strategy, or with one that settles nothing; `Recovering` while central is in recovery.
pub fn resolve_many(tx: &mut Tx<'_>, decision: &ManyDecision) -> Result<Vec<Decided>, StoreError> {
    check_text("why", &decision.why)?;
    at_central(tx)?;
    let Some(strategy) = decision.strategy.filter(|strategy| *strategy != Strategy::Manual) else {
        return refused("say how they shall be settled: `central_wins`, `site_wins` or `last_write`");
    };
    let filter = ConflictFilter {
        home: decision.site,
        path: decision.path.clone(),
        document: decision.document,
        open: Some(true),
        after: 0,
        limit: MANY,
    };
    let mut all = Vec::new();
    for row in tx.view().conflicts(&filter)? {
        let kind = kind_of(&row)?;
        let (found, _) = weigh(tx, kind, row.document, Some((strategy, decision.destructive)))?;
        let Some(one) = found.iter().find(|one| one.of.path() == row.path) else { continue };
        let mut decided = Decided {
            conflict: row.conflict,
            kind: row.kind.clone(),
            document: row.document,
            path: row.path.clone(),
            resolution: None,
            value: None,
            left: None,
        };
        match (&one.resolution, one.winner()) {
            (_, Some((side, _))) => {
                decided.value = Some(view::shown(&side.value.0));
                decided.resolution = Some(match side.written.site {
                    Origin::Central => Accepted::Central,
                    Origin::Site(_) => Accepted::Site,
                });
                if !decision.dry_run {
                    let at = (one.of.container, one.of.key.as_str(), one.of.schema);
                    write(tx, kind, &row, at, &side.value.0, &decision.why)?;
                }
            }
            (Resolution::Open(reason), None) => decided.left = Some(reason.to_string()),
            (Resolution::Winner(_), None) => {}
        }
        all.push(decided);
    }
    Ok(all)
}

/// At central: a person takes back how a disagreement ended, in favour of another side: `to` names it where there are
/// more than two.
///
/// # Errors
/// `Unknown` conflict; `Refused` when it is open, was taken back, when the register was written again since, or when
/// it is not clear which side shall count.
pub fn revert(tx: &mut Tx<'_>, conflict: u64, to: Option<Nonce>, why: &str) -> Result<Decided, StoreError> {
    check_text("why", why)?;
    at_central(tx)?;
    let row = tx.view().conflict(conflict)?.ok_or_else(|| unknown("conflict", conflict))?;
    let Some(ended) = row.ended.clone() else {
        return refused(format!("conflict {conflict} is open, so there is nothing to take back"));
    };
    if let Some(by) = &ended.reverted_by {
        return refused(format!("{by} took that back already"));
    }
    let kind = kind_of(&row)?;
    let (container, key, schema) = place(kind, &row.path)?;
    let now = tx.with_document(kind, row.document, |document| {
        contested::read_path(document, &row.path).and_then(|read| read.settled().map(Side::nonce))
    })?;
    if now.flatten().is_none() || now.flatten() != ended.nonce {
        return refused(format!("`{}` was written again since; change it like any other value", row.path));
    }
    let others: Vec<_> = row.sides.iter().filter(|side| side.value != ended.value).collect();
    let side = match (to, others.as_slice()) {
        (Some(to), _) => row.sides.iter().find(|side| side.nonce == to),
        (None, [other]) => Some(*other),
        (None, _) => None,
    };
    let Some(side) = side else {
        return refused("say which side shall count, by its nonce");
    };
    let template: Vec<Fields> = tx
        .with_document(kind, row.document, |document| {
            let read = contested::read_path(document, &row.path);
            read.iter().flat_map(|read| read.sides()).map(|side| side.value.0.clone()).collect()
        })?
        .unwrap_or_default();
    let fields = parsed(&side.value, template.first(), schema)?;
    write(tx, kind, &row, (container, key, schema), &fields, why)?;
    tx.journal_about(
        row.home,
        Event::ConflictReverted {
            kind: row.kind.clone(),
            document: row.document,
            path: row.path.clone(),
            from: ended.value.to_string(),
            to: side.value.to_string(),
            why: why.to_string(),
        },
    )?;
    let by = tx.by().to_string();
    let body = view::Body {
        sides: row.sides.clone(),
        agreed: row.agreed.clone(),
        ended: Some(view::EndedRow { reverted_by: Some(by), ..ended }),
    };
    tx.sql
        .prepare_cached("UPDATE conflicts SET body = ?2 WHERE conflict = ?1")?
        .execute(params![signed(conflict), serde_json::to_string(&body)?])?;
    Ok(Decided {
        conflict,
        kind: row.kind,
        document: row.document,
        path: row.path,
        resolution: Some(match side.site {
            Origin::Central => Accepted::Central,
            Origin::Site(_) => Accepted::Site,
        }),
        value: Some(side.value.clone()),
        left: None,
    })
}

fn is_open(tx: &Tx<'_>, id: DocumentId) -> Result<bool, StoreError> {
    let query = "SELECT 1 FROM conflicts WHERE id = ?1 AND open = 1";
    Ok(tx.sql.prepare_cached(query)?.exists([id.as_bytes()])?)
}

fn at_central(tx: &Tx<'_>) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central {
        return refused("central settles disagreements; write the value here, and central hears of it");
    }
    super::gives_orders(tx)
}

fn open_one(tx: &Tx<'_>, conflict: u64, why: &str) -> Result<ConflictRow, StoreError> {
    check_text("why", why)?;
    at_central(tx)?;
    let row = tx.view().conflict(conflict)?.ok_or_else(|| unknown("conflict", conflict))?;
    match &row.ended {
        None => Ok(row),
        Some(ended) => refused(format!("conflict {conflict} ended at {}: {}", ended.at, ended.why)),
    }
}

fn kind_of(row: &ConflictRow) -> Result<Kind, StoreError> {
    row.kind.parse().map_err(|_| StoreError::Unknown(format!("kind {}", row.kind)))
}

/// Where a path of such a document leads.
fn place(
    kind: Kind,
    path: &str,
) -> Result<(Option<&'static str>, &str, &'static RegisterSchema), StoreError> {
    contested::place(kind, path).ok_or_else(|| unknown("register", path))
}

/// How each disagreement of a document ends, under the strategy of the site that it is about, or under another one and
/// with or without the safety floor.
fn weigh(
    tx: &mut Tx<'_>,
    kind: Kind,
    id: DocumentId,
    chosen: Option<(Strategy, bool)>,
) -> Result<(Vec<Settlement>, Strategy), StoreError> {
    let Some(document) = tx.shared(kind, id)? else { return Ok((vec![], Strategy::default())) };
    let own = match settlement::home(&document) {
        Some(home) => tx.view().site(home)?.map(|row| row.effective.conflict_resolution),
        None => None,
    };
    let (strategy, is_destructive) = chosen.unwrap_or((own.unwrap_or_default(), false));
    let failure = RefCell::new(None);
    let effective = |change: &ChangeHash, at: Hlc| match heard_at(tx, change) {
        Ok(heard) => heard.map_or(at, |heard| at.min(Hlc::at(heard))),
        Err(error) => {
            failure.replace(Some(error));
            at
        }
    };
    let found = settlements(&document, strategy, !is_destructive, effective);
    failure.into_inner().map_or(Ok((found, strategy)), Err)
}

/// When central heard of a change whose stamp is later than that.
fn heard_at(tx: &Tx<'_>, change: &ChangeHash) -> Result<Option<Timestamp>, StoreError> {
    let heard: Option<Option<i64>> = tx
        .sql
        .prepare_cached("SELECT heard_at FROM changes WHERE hash = ?1")?
        .query_row([change.0], |row| row.get(0))
        .optional()?;
    Ok(heard.flatten().map(|ms| Timestamp(ms.unsigned_abs())))
}

/// Why the policy settled so, for people.
fn why(kind: Kind, one: &Settlement, strategy: Strategy) -> String {
    let sides = one.of.read.sides();
    match settlement::rule(kind, &one.of) {
        _ if sides.windows(2).all(|pair| pair[0].value == pair[1].value) => "all sides say the same".into(),
        Rule::Fact => "whoever sees the machine knows".into(),
        Rule::Caution => "what stops wins".into(),
        Rule::Choice => format!("`conflict_resolution` is `{strategy}`"),
    }
}

/// Keeps why a person decides; what is new is journalled.
fn leave_open(tx: &mut Tx<'_>, id: DocumentId, path: &str, reason: &str) -> Result<(), StoreError> {
    let open = tx.view().open_conflicts(id)?;
    let Some(row) = open.into_iter().find(|row| row.path == path) else { return Ok(()) };
    if row.reason.as_deref() == Some(reason) {
        return Ok(());
    }
    tx.sql
        .prepare_cached("UPDATE conflicts SET reason = ?2 WHERE conflict = ?1")?
        .execute(params![signed(row.conflict), reason])?;
    let event = Event::ConflictFound {
        kind: row.kind,
        document: id,
        path: row.path,
        reason: reason.to_string(),
        sides: serde_json::to_string(&row.sides)?,
    };
    tx.journal_about(row.home, event)
}

/// The value that a person chose.
fn chosen(of: &Disputed, decision: &Decision) -> Result<Fields, StoreError> {
    let sides = of.read.sides();
    let last = |is_meant: &dyn Fn(&Side<Untyped>) -> bool| {
        let meant = sides.iter().filter(|side| is_meant(side));
        meant.max_by_key(|side| (side.written.at, side.op()))
    };
    if let Some(value) = &decision.value {
        return match decision.resolution {
            Some(Accepted::Merged) | None => {
                parsed(value, sides.first().map(|side| &side.value.0), of.schema)
            }
            Some(other) => {
                refused(format!("`{other}` takes a side as it is; a value of one's own is `merged`"))
            }
        };
    }
    let side = match (decision.side, decision.resolution) {
        (Some(nonce), _) => sides.iter().find(|side| side.nonce() == nonce),
        (None, Some(Accepted::Central)) => last(&|side| side.written.site == Origin::Central),
        (None, Some(Accepted::Site)) => {
            let of_sites = |side: &Side<Untyped>| side.written.site != Origin::Central;
            if sides.iter().filter(|side| of_sites(side)).count() > 1 {
                return refused("several sites wrote; name the side by its nonce");
            }
            last(&of_sites)
        }
        (None, Some(Accepted::Merged)) => return refused("`merged` needs the value that shall count"),
        (None, None) => {
            return refused("say whose word counts: `accepted_central`, `accepted_site` or `merged`");
        }
    };
    match side {
        Some(side) => Ok(side.value.0.clone()),
        None => refused("there is no such side"),
    }
}

/// Reads the fields of a register as people write them, of the types that they have in `like`.
fn parsed(value: &Json, like: Option<&Fields>, schema: &RegisterSchema) -> Result<Fields, StoreError> {
    let Json::Object(entries) = value else {
        return refused("a value is an object with the fields of the register");
    };
    let mut fields = Fields::new();
    for (name, value) in entries.iter().filter(|(_, value)| !value.is_null()) {
        let like = like.and_then(|like| like.get(name));
        let Some(field) = field(value, like) else {
            return refused(format!("`{name}` is not of the type that this register has there"));
        };
        fields.insert(name.clone(), field);
    }
    (schema.typed)(&fields).or_else(|error| refused(error.to_string()))
}

fn field(value: &Json, like: Option<&Field>) -> Option<Field> {
    Some(match (value, like) {
        (Json::String(text), Some(Field::Bytes(_))) => Field::Bytes(unhex_any(text)?),
        (Json::String(text), _) => Field::Str(text.clone()),
        (Json::Bool(truth), _) => Field::Bool(*truth),
        (Json::Number(number), Some(Field::Int(_))) => Field::Int(number.as_i64()?),
        (Json::Number(number), _) => Field::Uint(number.as_u64()?),
        (Json::Object(inner), like) => {
            let like = like.and_then(|like| if let Field::Map(map) = like { Some(map) } else { None });
            let fields = inner.iter().map(|(name, value)| {
                Some((name.clone(), field(value, like.and_then(|like| like.get(name)))?))
            });
            Field::Map(fields.collect::<Option<Fields>>()?)
        }
        (Json::Null | Json::Array(_), _) => return None,
    })
}

fn unhex_any(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// Writes what a person decided, as his own decision.
fn write(
    tx: &mut Tx<'_>,
    kind: Kind,
    row: &ConflictRow,
    (container, key, schema): (Option<&'static str>, &str, &RegisterSchema),
    fields: &Fields,
    why: &str,
) -> Result<(), StoreError> {
    if kind == Kind::Node && (container, key) == (None, "hostname") {
        let text = Text::from_fields(fields).or_else(|error| refused(error.to_string()))?;
        check_hostname(&text.value)?;
    }
    let mut failed = None;
    tx.write(kind, row.document, |edit| {
        failed = edit.restate(container, key, schema, fields, why).err();
    })?;
    if let Some(error) = failed {
        return refused(error.to_string());
    }
    tx.journal_about(row.home, register_set(kind, row.document, &row.path, view::shown(fields)))?;
    if kind == Kind::Node { claim::settle_about(tx, row.document.into()) } else { Ok(()) }
}
