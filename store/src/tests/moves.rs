//! What a replica makes of a move of which it has heard a part.

use sync::{
    document::claim::{self, Decision, Fence, Opened},
    id::{ClaimId, NodeId},
    policy::ClaimState,
};

use super::*;

/// A claim of bern's on a machine of lyon's that central has approved, and its id.
fn approved(lyon: SiteId, bern: SiteId, node: NodeId) -> (ClaimId, Opened, Decision) {
    let id = ClaimId::of(node, bern, 1);
    let opened = Opened { node, to_site: bern, from_site: lyon, home_epoch: 1, first_seen: NOW };
    let decision = Decision {
        state: ClaimState::Approved,
        round: 1,
        expires_at: NOW,
        policy_matched: None,
        auto_approve_eligible: false,
        automatic: false,
        was_rejected: false,
        decided_by: Some("ann".into()),
        reason: "it moved".into(),
        to_name: "bern".into(),
        from_name: "lyon".into(),
    };
    (id, opened, decision)
}

#[test]
fn p8_h3_a_move_whose_fence_was_not_heard_of_yet_is_fenced() {
    let folder = tempfile::tempdir().unwrap();
    let (store, lyon, node) = central(folder.path());
    let bern = store.run(given(4), |tx| site::create(tx, "bern", "", "")).unwrap();
    let (id, opened, decision) = approved(lyon, bern, node);
    store
        .run(given(5), move |tx| {
            tx.write(claim::KIND, id.into(), |edit| {
                edit.set(&claim::opened(), &opened, "it boots there");
                edit.set(&claim::decision(), &decision, "it moved");
            })
        })
        .unwrap();
    let why = || store.read(|view| view.fence_closed(node)).unwrap();
    assert_eq!(why().as_deref(), Some("central has not said yet that no other site may install it"));
    for (number, closed, expected) in [(6, true, Some("lyon holds an order")), (7, false, None)] {
        let fence = Fence { closed, until: None, reason: "lyon holds an order".into(), broken_by: None };
        store
            .run(given(number), move |tx| {
                tx.write(claim::KIND, id.into(), |edit| {
                    edit.set(&claim::fence(), &fence, "");
                })
            })
            .unwrap();
        assert_eq!(why().as_deref(), expected);
    }
}
