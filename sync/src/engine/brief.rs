//! A change without what its reader can find out: the header of its chunk, the actor of the document's genesis,
//! and most of each hash that it depends on.
//!
//! Hashes do not pack, and a change names two as a rule: the one before it, and the one that its writer wrote
//! before. Whoever is told a change has both, so a few bytes name them among the changes of the document.
//! [`shorten`] makes the short form. Only the replica can take it apart, because only it knows its changes;
//! [`lengthen`] does it, asks for them, and gives back the very items before anybody counts a quota, hashes or judges
//! them. What it cannot find, or finds twice, ends the session, and the next one asks for changes as they are.
//!
//! Only central sends it, as it does with snapshots: `engine::pack` says why.

use std::collections::BTreeMap;

use crate::{
    document::{Kind, genesis},
    id::DocumentId,
    ingress::{MAX_DEPS, lint},
    wire::{Brief, Item},
};

/// First bytes of the short form: a map with one key.
const BRIEF: [u8; 2] = [0xa1, 14];

/// Bytes of an actor.
const ACTOR: usize = 16;

/// The first bytes of a change's hash.
pub type Name = [u8; Brief::NAME];

/// A short form that does not come apart.
#[derive(Debug, thiserror::Error)]
pub enum BriefError {
    /// Not what the format says.
    #[error("change in short form cannot be read: {0}")]
    Malformed(String),
    /// No change that is here has that name, or several have.
    #[error("change of document {document} follows one that begins with {name}, and {found} such are here")]
    Unknown {
        /// The document.
        document: DocumentId,
        /// The name, in hexadecimal digits.
        name: String,
        /// How many changes have it.
        found: usize,
    },
}

/// Whether an item is in this form.
pub fn is_brief(item: &[u8]) -> bool {
    item.starts_with(&BRIEF)
}

/// The short form of a change, where it has one that comes apart into the same bytes.
pub(super) fn shorten(item: &Item, bytes: &[u8]) -> Option<Vec<u8>> {
    let (number, document, change) = (item.kind?, item.document?, item.change.as_ref()?);
    let (deps, rest) = lint::split(change)?;
    let actor = genesis::actor(Kind::from_number(number)?, document);
    let at = rest.windows(ACTOR).position(|window| window == actor.to_bytes());
    let rest = match at {
        Some(at) => [&rest[..at], &rest[at + ACTOR..]].concat(),
        None => rest.to_vec(),
    };
    let brief = Brief {
        kind: number,
        document,
        seal: item.seal,
        deps: deps.iter().flat_map(|dep| dep[..Brief::NAME].to_vec()).collect(),
        rest,
        genesis_at: at.map(|at| at as u64),
    };
    let (again, _) = whole(&brief, &deps).ok()?;
    (again == bytes).then(|| Item { brief: Some(brief), ..Item::default() }.to_bytes())
}

/// Checks what can be checked without the replica, and tells how long the item is at most once it is whole.
pub(super) fn length(bytes: &[u8]) -> Result<usize, BriefError> {
    let brief = decode(bytes)?;
    Ok(bytes.len() + brief.deps.len() / Brief::NAME * 32 + 2 * ACTOR)
}

fn decode(bytes: &[u8]) -> Result<Brief, BriefError> {
    let malformed = |why: &str| BriefError::Malformed(why.into());
    let item: Item = minicbor::decode(bytes).map_err(|error| BriefError::Malformed(error.to_string()))?;
    let brief = item.brief.ok_or_else(|| malformed("it is empty"))?;
    if brief.deps.len() % Brief::NAME != 0 {
        return Err(malformed("its dependencies do not have names of the right length"));
    }
    if (brief.deps.len() / Brief::NAME) as u64 > MAX_DEPS {
        return Err(malformed("it depends on too many changes"));
    }
    Ok(brief)
}

/// The item, given its dependencies in full, and the hash of its change.
fn whole(brief: &Brief, deps: &[[u8; 32]]) -> Result<(Vec<u8>, [u8; 32]), BriefError> {
    let malformed = |why: &str| BriefError::Malformed(why.into());
    let kind = Kind::from_number(brief.kind).ok_or_else(|| malformed("its kind is not known"))?;
    let rest = match brief.genesis_at {
        None => brief.rest.clone(),
        Some(at) => {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let (head, tail) = brief
                .rest
                .split_at_checked(at)
                .ok_or_else(|| malformed("it leaves out what is behind its end"))?;
            [head, genesis::actor(kind, brief.document).to_bytes(), tail].concat()
        }
    };
    let (change, hash) = lint::joined(deps, &rest);
    let item = Item { seal: brief.seal, ..Item::change(brief.kind, brief.document, change) };
    Ok((item.to_bytes(), hash))
}

/// Makes items whole that follow each other. `known` gives the hashes of the changes of a document that are here, or
/// wait here, and begin with a name.
///
/// # Errors
/// What `known` says; and inside, why an item does not come apart: then none of them counts.
pub fn lengthen<E>(
    items: Vec<Vec<u8>>,
    mut known: impl FnMut(DocumentId, Name) -> Result<Vec<[u8; 32]>, E>,
) -> Result<Result<Vec<Vec<u8>>, BriefError>, E> {
    if !items.iter().any(|item| is_brief(item)) {
        return Ok(Ok(items));
    }
    // Changes of the same batch are not with the replica yet.
    let mut fresh: BTreeMap<(DocumentId, Name), Vec<[u8; 32]>> = BTreeMap::new();
    let mut made = Vec::with_capacity(items.len());
    for bytes in items {
        let (document, hash, bytes) = if is_brief(&bytes) {
            let brief = match decode(&bytes) {
                Ok(brief) => brief,
                Err(error) => return Ok(Err(error)),
            };
            let mut deps = Vec::with_capacity(brief.deps.len() / Brief::NAME);
            for name in brief.deps.as_chunks().0 {
                let mut found = fresh.get(&(brief.document, *name)).cloned().unwrap_or_default();
                found.extend(known(brief.document, *name)?);
                if found.is_empty()
                    && let Some(kind) = Kind::from_number(brief.kind)
                {
                    found.push(genesis::hash(kind, brief.document).0);
                }
                found.retain(|hash| hash.starts_with(name));
                found.sort_unstable();
                found.dedup();
                let [dep] = found[..] else {
                    let (document, name) = (brief.document, crate::id::hex(name));
                    return Ok(Err(BriefError::Unknown { document, name, found: found.len() }));
                };
                deps.push(dep);
            }
            match whole(&brief, &deps) {
                Ok((bytes, hash)) => (brief.document, hash, bytes),
                Err(error) => return Ok(Err(error)),
            }
        } else {
            match minicbor::decode::<Item>(&bytes) {
                Ok(Item { document: Some(document), change: Some(change), .. }) => {
                    (document, lint::hash(&change), bytes)
                }
                Ok(_) | Err(_) => {
                    made.push(bytes);
                    continue;
                }
            }
        };
        let name: Name = *hash.first_chunk().expect("a hash is longer than a name");
        fresh.entry((document, name)).or_default().push(hash);
        made.push(bytes);
    }
    Ok(Ok(made))
}
