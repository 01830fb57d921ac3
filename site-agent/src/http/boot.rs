//! The boot script of one machine.
//!
//! The answer is decided from a snapshot and noted by a command. What the answer rests on is committed
//! before it leaves; what merely counts is not waited for. When the replica fails, the answer is the
//! local disk: a machine that already works must not depend on this program.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use store::{StoreError, Tx, command::report};
use sync::{
    id::{MacAddr, ReportId, SiteId},
    policy::{LinkState, Reason, order::MAX_ATTEMPT_BOOTS},
};
use tracing::{error, info};

use super::error::Problem;
use crate::{
    agent::Agent,
    boot::{
        decide::{Answer, Decision, Record, decide},
        script::render,
        view::{Site, View},
    },
    error::chain,
    event_loop::entropy,
    sight,
    token::machine_token,
};

/// What a hold page adds to its address when it asks again.
#[derive(serde::Deserialize)]
pub(super) struct Again {
    /// Which question of this boot it is, from 1.
    r#try: Option<u32>,
}

pub(super) async fn script(
    State(agent): State<Arc<Agent>>,
    path: Result<Path<String>, PathRejection>,
    again: Result<Query<Again>, QueryRejection>,
) -> Result<Response, Problem> {
    let Path(mac) = path.map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
    let mac: MacAddr =
        mac.parse().map_err(|error: sync::id::ParseIdError| Problem::bad_request(error.to_string()))?;
    // A query that says nothing to us must not keep a machine from its answer.
    let tries = again.ok().and_then(|Query(again)| again.r#try).unwrap_or(1).max(1);
    agent.boots_seen.fetch_add(1, Ordering::Relaxed);
    let (decision, view) = match agent.sight(mac).await {
        Ok(view) => note(&agent, decide(&view), view).await,
        Err(error) => {
            error!(%mac, error = %chain(&error), "the replica cannot be read, so the machine boots its own disk");
            (own_disk("the replica of this site cannot be read"), blind(&agent, mac))
        }
    };
    info!(%mac, answer = %decision.answer, reason = %decision.reason, tries, "boot script answered");
    let token = match &decision.answer {
        Answer::Workflow { task, attempt, .. } => machine_token(&agent.site_secret, *task, *attempt),
        Answer::LocalDisk | Answer::Hold { .. } | Answer::Refuse | Answer::Silent => String::new(),
    };
    let mut response = render(&decision, &view, agent.server, tries, &token).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Notes an answer, and takes it back where it rests on a change that could not be committed.
async fn note(agent: &Arc<Agent>, decision: Decision, view: View) -> (Decision, View) {
    let answered = sight::noted(view.mac, &decision);
    let (here, exhausted) = (agent.site, decision.record.exhausted);
    let given = agent.edge.given("boot");
    let report = ReportId(entropy());
    let command = move |tx: &mut Tx<'_>| {
        let node = store::command::boot::answered(tx, &answered)?;
        if let (Some(node), Some(attempt)) = (node, exhausted) {
            let error = format!("the attempt was booted {MAX_ATTEMPT_BOOTS} times and did not end");
            report::event(tx, here, report, node, attempt, &report::Report::InstallFailed(error))?;
        }
        Ok(())
    };
    if !decision.record.is_durable() {
        agent.store.submit(given, command, |outcome: Result<(), StoreError>| {
            if let Err(error) = outcome {
                error!(error = %chain(&error), "a boot answer could not be noted");
            }
        });
        return (decision, view);
    }
    let (sender, receiver) = tokio::sync::oneshot::channel();
    agent.store.submit(given, command, move |outcome| drop(sender.send(outcome)));
    match receiver.await.unwrap_or(Err(StoreError::Closed)) {
        Ok(()) => (decision, view),
        Err(error) => {
            error!(error = %chain(&error), "a boot answer could not be noted, so it is not given");
            let reason = Reason::new(format!("this site cannot note what it answers: {error}"));
            let held =
                Decision { answer: Answer::Hold { progress: None }, reason, record: Record::default() };
            (held, view)
        }
    }
}

fn own_disk(reason: &str) -> Decision {
    Decision { answer: Answer::LocalDisk, reason: Reason::new(reason), record: Record::default() }
}

/// A view of nothing, for a script that needs none.
fn blind(agent: &Agent, mac: MacAddr) -> View {
    let site = Site { link: agent.link.borrow().state, ..unknown_site(agent.site) };
    View { mac, site, machine: None, adoption: None, before: None }
}

fn unknown_site(id: SiteId) -> Site {
    let default = sync::document::site::Effective::default();
    Site {
        id,
        name: String::new(),
        autonomy: default.autonomy,
        unknown_machines: default.unknown_machines,
        pxe_enabled: default.pxe_enabled,
        pending_boot: default.pending_boot(),
        link: LinkState::Offline,
        data_as_of: None,
    }
}
