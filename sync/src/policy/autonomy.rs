//! What a site may do by itself.
//!
//! The level is the site's own, set by central; whether the link is up does not matter here, because a
//! proposal on a site that is connected merely waits a shorter time for its outcome.

use super::{Reason, Verdict, words};

words! {
    /// How much a site may decide without central.
    pub enum Autonomy {
        /// Serves what is planned and records what happens.
        ReadOnly = "readonly",
        /// Also looks after its own machines in ways that can be undone.
        Limited = "limited",
        /// Also plans and installs.
        Full = "full",
    }
}

words! {
    /// What somebody at a site wants to do.
    pub enum Action {
        /// Serve a known node its current boot answer.
        ServeKnown = "serve_known",
        /// Record a boot, a report, the consumption of a held order, a transition of an attempt.
        RecordFact = "record_fact",
        /// Cancel a task of this site.
        CancelTask = "cancel_task",
        /// Adopt an unknown machine.
        Adopt = "adopt",
        /// Make a machine pending from an order that exists; retry within `max_install_attempts`.
        MakePending = "make_pending",
        /// Edit hostname, tags, notes, or an address within the site's pools.
        EditNodeDetails = "edit_node_details",
        /// Edit the workflow or group of a node.
        EditWorkflow = "edit_workflow",
        /// Want a node reprovisioned, deprovisioned, retired or ignored.
        SetWanted = "set_wanted",
        /// Create a task and issue its order.
        CreateTask = "create_task",
        /// Approve or reject a task.
        ApproveTask = "approve_task",
        /// Abort an attempt that has consumed its order.
        AbortAttempt = "abort_attempt",
        /// Consent to a claim for this site's side.
        ConsentToClaim = "consent_to_claim",
        /// Change local DHCP pools, reservations or the PXE switch.
        LocalDhcp = "local_dhcp",
    }
}

/// Says whether a site with `autonomy` may do `action` now.
pub fn permits(autonomy: Autonomy, action: Action) -> Verdict {
    let queue = || {
        Verdict::Queue(Reason::new(format!(
            "autonomy is `{autonomy}`, so `{action}` waits for central as a proposal"
        )))
    };
    match (action, autonomy) {
        // Facts are never refused: what happened happened, whatever the site may decide.
        (Action::ServeKnown | Action::RecordFact | Action::CancelTask, _) => Verdict::Allow,
        (
            Action::Adopt | Action::MakePending | Action::EditNodeDetails,
            Autonomy::Limited | Autonomy::Full,
        ) => Verdict::Allow,
        (Action::Adopt | Action::MakePending | Action::EditNodeDetails, Autonomy::ReadOnly) => queue(),
        (
            Action::EditWorkflow
            | Action::SetWanted
            | Action::CreateTask
            | Action::ApproveTask
            | Action::AbortAttempt
            | Action::ConsentToClaim
            | Action::LocalDhcp,
            Autonomy::Full,
        ) => Verdict::Allow,
        (
            Action::EditWorkflow
            | Action::SetWanted
            | Action::CreateTask
            | Action::ApproveTask
            | Action::AbortAttempt
            | Action::ConsentToClaim
            | Action::LocalDhcp,
            Autonomy::ReadOnly | Autonomy::Limited,
        ) => queue(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p5_every_cell_of_the_autonomy_table_holds() {
        let text = include_str!("../../../fixtures/policies/autonomy.txt");
        let mut rows = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        let levels: Vec<Autonomy> =
            rows.next().expect("a header")[1..].iter().map(|word| word.parse().unwrap()).collect();
        let mut cells = 0;
        for row in rows {
            for (level, cell) in levels.iter().zip(&row[1..]) {
                let found = match permits(*level, row[0].parse().unwrap()) {
                    Verdict::Allow => "allow",
                    Verdict::Queue(_) => "queue",
                    Verdict::Refuse(_) => "refuse",
                };
                assert_eq!(found, *cell, "{} at {level}", row[0]);
                cells += 1;
            }
        }
        assert_eq!(cells, Action::ALL.len() * Autonomy::ALL.len());
    }
}
