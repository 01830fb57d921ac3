//! When an order may still wipe a disk.
//!
//! An order is live only while everything that was known when it was given still holds here. The check
//! runs when a boot answer is made and again, in the same transaction, when the order is consumed.

use std::time::Duration;

use super::{NodeState, Reason, TaskState, Wanted};
use crate::{
    id::{Nonce, ReportId, SiteId},
    time::Timestamp,
};

/// How long before its end an order is no longer used, because the clocks of two machines differ.
pub const EXPIRY_MARGIN: Duration = Duration::from_secs(3_600);

/// The longest life of an order, also of one that a site gives itself: `order_max`.
pub const ORDER_MAX: Duration = Duration::from_secs(72 * 3_600);

/// Attempts that a task has before a person looks at it, unless the setting `max_install_attempts` says otherwise.
pub const MAX_INSTALL_ATTEMPTS: u64 = 3;

/// Attempts that it can say at most. Central takes no further one from a site, whatever its settings are by now.
pub const ATTEMPTS_CEILING: u64 = 10;

/// How long an attempt may be silent before it counts as failed, unless the setting `install_timeout_s` says otherwise:
/// an image of 100 GB over 100 Mbit/s, and an hour.
pub const INSTALL_TIMEOUT: Duration = Duration::from_secs(4 * 3_600);

/// Network boots that a consumed attempt is served before it counts as failed.
pub const MAX_ATTEMPT_BOOTS: u64 = 3;

/// An order as the replica that asks has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// End of its life.
    pub not_after: Timestamp,
    /// The node's install nonce that the giver saw: nothing else may have been installed since.
    pub based_on: Option<Nonce>,
}

/// Everything that [`liveness`] looks at, as plain values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circumstances {
    /// The site that asks.
    pub here: SiteId,
    /// The site that the task names.
    pub task_site: SiteId,
    /// State of the task.
    pub task_state: TaskState,
    /// The order, if one was issued.
    pub order: Option<Order>,
    /// The report that consumed the order, if any.
    pub consumed_by: Option<ReportId>,
    /// The report that asks now; `None` while a boot answer is made.
    pub asking: Option<ReportId>,
    /// Whether the task was cancelled.
    pub cancelled: bool,
    /// Whether approval was given or is not needed.
    pub approved: bool,
    /// What is wanted of the node, in force.
    pub wanted: Wanted,
    /// What the node is doing.
    pub node_state: NodeState,
    /// The node's current install nonce.
    pub install_nonce: Option<Nonce>,
    /// Another task of this node at this site that has not ended, by its id as text.
    pub other_task: Option<String>,
    /// Names of registers among wanted, workflow, cancel and approval that are contested.
    pub contested: Vec<&'static str>,
    /// Why the former home of the machine may still hold an order for its disk, if it may.
    pub fence_closed: Option<String>,
    /// The site where the machine is at home by now, if it is another one.
    pub moved_to: Option<String>,
    /// Why this replica follows no order at all at the moment (restored, forked, clock went back).
    pub suspended: Option<String>,
    /// Own clock.
    pub now: Timestamp,
    /// The latest instant that is known to have been, by central's clock or our own.
    pub known_time: Timestamp,
}

/// What an order is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It may be served, and consumed once.
    Live,
    /// It was consumed by this very report: the answer is repeated.
    Consumed,
    /// It was consumed by an earlier boot of the same attempt.
    UnderWay,
    /// Only the approval is missing: the machine may boot and report its hardware, and write nothing.
    AwaitsApproval,
    /// Not now; it may be live again when a person or central acts.
    Held(Reason),
    /// Never again.
    Stale(Reason),
}

/// What the site that sees a machine knows of an attempt under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// When the machine was last heard: its go-ahead, a report, a boot. Own clock.
    pub heard: Timestamp,
    /// Own clock.
    pub now: Timestamp,
    /// How long the site has listened without a break, by a clock that nobody sets.
    pub listened: Duration,
    /// How long an attempt may be silent.
    pub timeout: Duration,
}

/// Says why an attempt has failed by its silence, if it has. The link to central does not matter. A clock that was set
/// forward fails nothing by itself: the site must have listened for as long.
pub fn silent(it: &Silence) -> Option<Reason> {
    let silence = it.now.since(it.heard);
    (silence >= it.timeout && it.listened >= it.timeout)
        .then(|| Reason::new(format!("nothing was heard of the machine since {}", it.heard)))
}

/// Judges an order. The first reason that applies is the one that is shown.
pub fn liveness(it: &Circumstances) -> Liveness {
    let held = |text: String| Liveness::Held(Reason::new(text));
    let stale = |text: String| Liveness::Stale(Reason::new(text));

    if it.task_site != it.here {
        return stale(format!("the task is for site {}", it.task_site));
    }
    if let Some(report) = it.consumed_by {
        if it.task_state.is_final() {
            return stale(format!("the task is {}", it.task_state));
        }
        return if it.asking == Some(report) { Liveness::Consumed } else { Liveness::UnderWay };
    }
    if let Some(site) = &it.moved_to {
        return stale(format!("the machine has moved to site {site}"));
    }
    if it.cancelled {
        return stale("the task was cancelled".into());
    }
    if it.task_state.is_final() {
        return stale(format!("the task is {}", it.task_state));
    }
    let Some(order) = &it.order else {
        return held("no order was issued for the task".into());
    };
    if order.based_on != it.install_nonce {
        return stale("the machine was installed since the order was given".into());
    }
    // A site that starts in 1970 must not revive what has ended.
    let now = it.now.max(it.known_time);
    if now.after(EXPIRY_MARGIN) > order.not_after {
        return stale(format!("the order ends at {}, within one hour or already", order.not_after));
    }
    match it.wanted {
        Wanted::Keep | Wanted::Reprovision => {}
        Wanted::Ignored | Wanted::Deprovision | Wanted::Retired => {
            return held(format!("the machine is wanted `{}`", it.wanted));
        }
    }
    if it.node_state == NodeState::Installing {
        return held("another attempt of the machine is under way".into());
    }
    if !it.contested.is_empty() {
        return held(format!("central and site disagree about {}", it.contested.join(", ")));
    }
    if let Some(other) = &it.other_task {
        return held(format!(
            "task {other} of the same machine has not ended; one of them must be cancelled"
        ));
    }
    if let Some(why) = &it.fence_closed {
        return held(format!("the machine has moved here and its former site may still install it: {why}"));
    }
    if let Some(why) = &it.suspended {
        return held(format!("this site follows no orders at the moment: {why}"));
    }
    if !it.approved {
        return Liveness::AwaitsApproval;
    }
    Liveness::Live
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SiteId = SiteId([1; 16]);
    const NOW: Timestamp = Timestamp(1_795_000_000_000);

    fn live() -> Circumstances {
        Circumstances {
            here: HERE,
            task_site: HERE,
            task_state: TaskState::Ready,
            order: Some(Order { not_after: NOW.after(ORDER_MAX), based_on: None }),
            consumed_by: None,
            asking: None,
            cancelled: false,
            approved: true,
            wanted: Wanted::Keep,
            node_state: NodeState::Discovered,
            install_nonce: None,
            other_task: None,
            contested: vec![],
            fence_closed: None,
            moved_to: None,
            suspended: None,
            now: NOW,
            known_time: NOW,
        }
    }

    fn check(change: impl FnOnce(&mut Circumstances), expected: &str) {
        let mut it = live();
        change(&mut it);
        let found = match liveness(&it) {
            Liveness::Live => "live".to_string(),
            Liveness::Consumed => "consumed".to_string(),
            Liveness::UnderWay => "under way".to_string(),
            Liveness::AwaitsApproval => "awaits approval".to_string(),
            Liveness::Held(reason) => format!("held: {reason}"),
            Liveness::Stale(reason) => format!("stale: {reason}"),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn h3_an_order_is_live_only_while_every_condition_holds() {
        let report = ReportId([9; 16]);
        check(|_| {}, "live");
        check(
            |it| it.task_site = SiteId([2; 16]),
            "stale: the task is for site 02020202020202020202020202020202",
        );
        check(|it| it.order = None, "held: no order was issued for the task");
        check(|it| it.cancelled = true, "stale: the task was cancelled");
        check(|it| it.task_state = TaskState::Failed, "stale: the task is failed");
        check(
            |it| it.install_nonce = Some(Nonce([1; 8])),
            "stale: the machine was installed since the order was given",
        );
        check(|it| it.wanted = Wanted::Retired, "held: the machine is wanted `retired`");
        check(
            |it| it.node_state = NodeState::Installing,
            "held: another attempt of the machine is under way",
        );
        check(|it| it.contested = vec!["wanted"], "held: central and site disagree about wanted");
        check(
            |it| it.other_task = Some("t-2".into()),
            "held: task t-2 of the same machine has not ended; one of them must be cancelled",
        );
        check(
            |it| it.fence_closed = Some("lyon may hold an order".into()),
            "held: the machine has moved here and its former site may still install it: lyon may hold an order",
        );
        check(|it| it.moved_to = Some("bern".into()), "stale: the machine has moved to site bern");
        check(|it| it.approved = false, "awaits approval");
        check(
            |it| it.suspended = Some("restored from a backup".into()),
            "held: this site follows no orders at the moment: restored from a backup",
        );
        check(
            |it| {
                it.consumed_by = Some(report);
                it.asking = Some(report);
            },
            "consumed",
        );
        check(
            |it| {
                it.consumed_by = Some(report);
                it.asking = Some(ReportId([8; 16]));
            },
            "under way",
        );
    }

    #[test]
    fn h3_an_attempt_fails_by_silence_only_where_somebody_has_listened_for_so_long() {
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        let cases = [
            ("heard just now", hours(0), hours(9), false),
            ("almost", hours(4) - Duration::from_millis(1), hours(9), false),
            ("silent", hours(4), hours(4), true),
            ("long ago, and the site has just started", hours(40), hours(1), false),
        ];
        for (name, silence, listened, fails) in cases {
            let it = Silence { heard: NOW, now: NOW.after(silence), listened, timeout: INSTALL_TIMEOUT };
            assert_eq!(silent(&it).is_some(), fails, "{name}");
        }
        // A clock that went back says nothing.
        let back = Silence { heard: NOW, now: Timestamp(0), listened: hours(9), timeout: INSTALL_TIMEOUT };
        assert_eq!(silent(&back), None);
    }

    #[test]
    fn h3_an_order_ends_an_hour_early_by_the_later_clock() {
        let end = NOW.after(ORDER_MAX);
        let late = |now: Timestamp, known_time: Timestamp| {
            move |it: &mut Circumstances| {
                it.now = now;
                it.known_time = known_time;
            }
        };
        let just = Timestamp(end.0 - 3_600_000);
        check(late(just, NOW), "live");
        let message = format!("stale: the order ends at {end}, within one hour or already");
        check(late(Timestamp(just.0 + 1), NOW), &message);
        check(late(Timestamp(0), end), &message);
    }
}
