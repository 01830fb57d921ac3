//! The first change of every document, computed and never accepted from a peer.
//!
//! Two sites that adopt the same machine while both are cut off must create the same document. So the
//! genesis depends on nothing but kind, id and genesis version: an actor derived from them, sequence
//! number 1, time 0, the kind as a scalar, and the containers of the kind in the order of the schema. Its
//! bytes are frozen by a test; a later container is a second genesis change on top, equally fixed.

use std::sync::OnceLock;

use automerge::{
    ActorId, Automerge, Change, ChangeHash, ObjType, ROOT,
    transaction::{CommitOptions, Transactable},
};
use sha2::{Digest, Sha256};

use super::Kind;
use crate::id::DocumentId;

/// Key of the scalar that names the kind.
pub const KIND_KEY: &str = "kind";

/// The document that consists of its genesis.
pub fn document(kind: Kind, id: DocumentId) -> Automerge {
    let mut automerge = Automerge::new().with_actor(actor(kind, id));
    let mut transaction = automerge.transaction();
    let write = "writing into an empty document of our own cannot fail";
    transaction.put(ROOT, KIND_KEY, kind.as_str()).expect(write);
    for container in kind.schema().containers {
        transaction.put_object(ROOT, container.key, ObjType::Map).expect(write);
    }
    transaction.commit_with(CommitOptions::default().with_time(0));
    automerge
}

/// The genesis change itself, computed without making the document.
pub fn change(kind: Kind, id: DocumentId) -> Change {
    let (mut bytes, hash) = filled(kind, id);
    bytes[CHECKSUM..TYPE].copy_from_slice(&hash.0[..4]);
    Change::try_from(&bytes[..]).expect("a genesis that differs in its actor alone is a change")
}

/// Hash of the genesis change, computed without making the document.
pub fn hash(kind: Kind, id: DocumentId) -> ChangeHash {
    filled(kind, id).1
}

/// Where the checksum of a chunk stands: after the magic number. It is the beginning of the digest of what follows,
/// and that digest is the name of a change.
const CHECKSUM: usize = 4;

/// Where the type of a chunk stands: after the checksum.
const TYPE: usize = 8;

/// Bytes of the genesis, still without its own checksum, and its name.
fn filled(kind: Kind, id: DocumentId) -> (Vec<u8>, ChangeHash) {
    let Template { bytes, actor_at } = template(kind);
    let mut bytes = bytes.clone();
    bytes[*actor_at..][..16].copy_from_slice(actor(kind, id).to_bytes());
    let hash = ChangeHash(Sha256::digest(&bytes[TYPE..]).into());
    (bytes, hash)
}

/// The genesis of some document of a kind; that of every other one differs in the actor alone.
struct Template {
    bytes: Vec<u8>,
    actor_at: usize,
}

fn template(kind: Kind) -> &'static Template {
    const KINDS: usize = Kind::ALL.len();
    static TEMPLATES: [OnceLock<Template>; KINDS] = [const { OnceLock::new() }; KINDS];
    let place = Kind::ALL.iter().position(|known| *known == kind).expect("every kind is listed");
    TEMPLATES[place].get_or_init(|| {
        let id = DocumentId([0; 16]);
        let made = document(kind, id).get_changes(&[]).pop().expect("a genesis writes at least the kind");
        let (bytes, actor) = (made.raw_bytes().to_vec(), actor(kind, id));
        let actor_at = bytes.windows(16).position(|window| window == actor.to_bytes());
        Template { bytes, actor_at: actor_at.expect("a change names its actor") }
    })
}

/// The actor that writes the genesis of this document and nothing else.
pub fn actor(kind: Kind, id: DocumentId) -> ActorId {
    let mut hasher = blake3::Hasher::new_derive_key("holdfast/genesis/v1");
    hasher.update(kind.as_str().as_bytes());
    hasher.update(b"\0");
    hasher.update(id.as_bytes());
    ActorId::from(&hasher.finalize().as_bytes()[..16])
}

#[cfg(test)]
mod tests {
    use automerge::legacy::OpId;

    use super::*;
    use crate::{document::register::Containers, id::hex};

    #[test]
    fn genesis_is_the_same_everywhere_and_for_ever() {
        let id = DocumentId([7; 16]);
        let mut lines = String::new();
        for kind in Kind::ALL {
            assert_eq!(document(*kind, id).save(), document(*kind, id).save());
            let mut bytes = change(*kind, id);
            assert_eq!(vec![hash(*kind, id)], document(*kind, id).get_heads());
            assert_eq!(hash(*kind, id), bytes.hash());
            lines += &format!("{kind} {} {}\n", hash(*kind, id), hex(&bytes.bytes()));
        }
        // Changing a single byte here forks every document in the field: add a second genesis instead.
        expect_test::expect_file!["../../../fixtures/documents/genesis.txt"].assert_eq(&lines);
    }

    #[test]
    fn the_ids_of_containers_follow_from_the_genesis() {
        use automerge::{ReadDoc, Value};

        let id = DocumentId([7; 16]);
        for kind in Kind::ALL {
            let containers = Containers::of(*kind, id);
            for container in kind.schema().containers {
                let made = document(*kind, id);
                let (value, found) = made.get(ROOT, container.key).unwrap().expect("it is there");
                assert_eq!(value, Value::Object(ObjType::Map));
                assert_eq!(containers.object(Some(container.key)), Some(found.clone()));
                let automerge::ObjId::Id(counter, actor, _) = found else { panic!("it is the root") };
                let made = containers.made_by(&OpId(counter, actor));
                assert_eq!(made.map(|schema| schema.key), Some(container.key));
            }
            let last = kind.schema().containers.len() as u64;
            assert!(containers.made_by(&OpId(last + 2, actor(*kind, id))).is_none());
            assert!(containers.made_by(&OpId(1, actor(*kind, id))).is_none());
            assert!(containers.made_by(&OpId(2, actor(*kind, DocumentId([8; 16])))).is_none());
        }
    }

    #[test]
    fn another_kind_with_the_same_id_is_another_document() {
        let id = DocumentId([7; 16]);
        assert_ne!(hash(Kind::Node, id), hash(Kind::Task, id));
        assert_ne!(actor(Kind::Node, id), actor(Kind::Task, id));
    }
}
