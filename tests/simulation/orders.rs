//! What must hold of orders: no two for one disk, and none that outlives another installation.

use std::collections::BTreeMap;

use automerge::ReadDoc;
use harness::{eye::Eye, world::World};
use store::view::TaskFilter;
use sync::{
    document::{Document, Kind, contested, node, task},
    id::{DocumentId, NodeId, Origin, ReportId, SiteId, TaskId},
    policy::{Liveness, order},
};

use crate::checks::{read, violated};

/// What is violated where an order counts although the machine was installed since.
pub(crate) const OVERTAKEN: &str = "an order counts only while nothing else was installed";

fn find(eye: &Eye, id: DocumentId, kind: Kind) -> Option<Document> {
    let doc = read(eye.row_of(id))?;
    eye.document(doc, kind, id).ok()
}

/// Which attempt of a task used its order, and by which report.
pub(crate) fn consumed(eye: &Eye, task: TaskId) -> Option<(u64, ReportId)> {
    let used = task::InForce::of(&find(eye, task.into(), Kind::Task)?).consumed?;
    Some((used.attempt, used.report))
}

/// Says so when the machine of a task that has just begun was installed between its order and now.
pub(crate) fn overtaken(eye: &Eye, task: TaskId) -> Option<String> {
    let begun = task::InForce::of(&find(eye, task.into(), Kind::Task)?);
    let (spec, order, consumed) = (begun.spec?, begun.order?, begun.consumed?);
    let machine = find(eye, spec.node.into(), Kind::Node)?;
    let state = contested::read(&machine, &node::state());
    let written =
        state.sides().iter().find(|side| side.value.install_nonce == Some(consumed.install_nonce))?;
    let deps = machine.automerge().get_change_by_hash(&written.change)?.deps().to_vec();
    let before = contested::read_at(&machine, &node::state(), &deps);
    let before = before.of_home(Some(spec.for_site)).and_then(|side| side.value.install_nonce);
    // Told again after the machine had reported: what was before its beginning was looked at then.
    let is_told_again = before == Some(consumed.install_nonce);
    (!is_told_again && before != order.based_on).then(|| {
        format!(
            "task {task} was ordered when the machine had {:?}, and began when it had {before:?}",
            order.based_on
        )
    })
}

/// No two orders would wipe the same disk.
pub(crate) fn one_live_order(world: &World, site: SiteId) {
    let (origin, now) = (Origin::Site(site), world.clock(Origin::Site(site)));
    let live = world.store(origin).read(|view| {
        let mut live: BTreeMap<NodeId, Vec<TaskId>> = BTreeMap::new();
        let here = TaskFilter { site: Some(site), ..TaskFilter::default() };
        for task in view.tasks(&here)?.iter().filter(|task| !task.state.is_final()) {
            let Some(node) = view.node(task.node)? else { continue };
            let it = view.circumstances(task, &node, site, None, now)?;
            if order::liveness(&it) == Liveness::Live {
                live.entry(node.id).or_default().push(task.id);
            }
        }
        Ok(live)
    });
    for (node, tasks) in live.expect("it reads") {
        if tasks.len() > 1 {
            let detail = format!("node {node} at {}: {tasks:?}", world.name(origin));
            violated("a machine has one live order", detail);
        }
    }
}
