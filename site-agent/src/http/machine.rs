//! What machines report while they are installed.
//!
//! A report has an id of the machine's own making and is repeated until it is answered; the store keeps the
//! answer, so that a repeated report changes nothing. An answer leaves only after its commit: the one to
//! `go_ahead` is what lets the machine write its disk.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::{
        Path, State,
        rejection::{BytesRejection, PathRejection},
    },
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use store::command::report::{self, Answer, Registration, Report};
use sync::{
    document::site::{Effective, UnknownMachines},
    id::{MacAddr, ReportId, TaskId},
};

use super::{
    error::{Problem, parse},
    operator::{bearer, find_node},
};
use crate::{agent::Agent, token::is_machine_token};

/// Longest text that a machine may say of itself, in bytes; longer evidence is not kept by the store.
const MAX_TEXT: usize = 256;

/// Disks and network interfaces of a machine that are taken down, of each.
const MAX_PARTS: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Register {
    mac: MacAddr,
    report: String,
    arch: Option<String>,
    firmware: Option<String>,
    serial: Option<String>,
    system_uuid: Option<String>,
    vendor: Option<String>,
    model: Option<String>,
    #[serde(default)]
    hardware: Hardware,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hardware {
    cpus: Option<u64>,
    memory_bytes: Option<u64>,
    #[serde(default)]
    disks: Vec<Disk>,
    #[serde(default)]
    nics: Vec<Nic>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Disk {
    name: String,
    size_bytes: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nic {
    name: Option<String>,
    mac: MacAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    report: String,
    task: TaskId,
    attempt: u64,
    kind: Kind,
    percent: Option<u64>,
    error: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    GoAhead,
    InstallStarted,
    Progress,
    InstallComplete,
    InstallFailed,
}

pub(super) async fn register(
    State(agent): State<Arc<Agent>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let register: Register = parse(body)?;
    let report = report_id(&register.report)?;
    let (mac, registration) = (register.mac, registration(register)?);
    let here = agent.site;
    let answer = agent.submit("machine", move |tx| {
        let settings = tx.view().site(here)?.map(|row| row.effective);
        let unknown =
            settings.map_or_else(|| Effective::default().unknown_machines, |it| it.unknown_machines);
        let adopt = unknown == UnknownMachines::Adopt;
        report::register(tx, report, mac, adopt, &registration)
    });
    Ok(respond(answer.await?))
}

pub(super) async fn event(
    State(agent): State<Arc<Agent>>,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Path(id) = path.map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
    let event: Event = parse(body)?;
    let shown = bearer(&headers).unwrap_or_default();
    if !is_machine_token(&agent.site_secret, event.task, event.attempt, shown) {
        return Err(Problem::wrong_machine_token());
    }
    let report = report_id(&event.report)?;
    let about = (event.task, event.attempt);
    let what = kind(event)?;
    let here = agent.site;
    let answer = agent.submit("machine", move |tx| {
        let node = find_node(&tx.view(), &id)?;
        report::event(tx, here, report, node.id, about, &what)
    });
    Ok(respond(answer.await?))
}

fn report_id(text: &str) -> Result<ReportId, Problem> {
    ReportId::parse_lenient(text).map_err(|error| Problem::bad_request(error.to_string()))
}

fn kind(event: Event) -> Result<Report, Problem> {
    Ok(match event.kind {
        Kind::GoAhead => Report::GoAhead,
        Kind::InstallStarted => Report::InstallStarted,
        Kind::Progress => match event.percent {
            Some(percent) => Report::Progress(percent.min(100)),
            None => return Err(Problem::bad_request("`progress` needs `percent`")),
        },
        Kind::InstallComplete => Report::InstallComplete,
        Kind::InstallFailed => {
            let error = event.error.unwrap_or_default();
            let error: String = error.chars().filter(|it| !it.is_control()).take(MAX_TEXT).collect();
            Report::InstallFailed(if error.is_empty() { "the machine gave no reason".into() } else { error })
        }
    })
}

fn registration(it: Register) -> Result<Registration, Problem> {
    let mut evidence = BTreeMap::new();
    for (name, value) in [
        ("arch", it.arch),
        ("firmware", it.firmware),
        ("serial", it.serial),
        ("system_uuid", it.system_uuid),
        ("vendor", it.vendor),
        ("model", it.model),
    ] {
        let Some(value) = value else { continue };
        if value.len() > MAX_TEXT {
            // Cut, it would be other evidence.
            return Err(Problem::bad_request(format!("`{name}` is longer than {MAX_TEXT} bytes")));
        }
        evidence.insert(name.to_owned(), value);
    }
    let Hardware { cpus, memory_bytes, disks, nics } = it.hardware;
    let long = |name: &str| name.is_empty() || name.len() > 64;
    if disks.len() > MAX_PARTS || nics.len() > MAX_PARTS {
        return Err(Problem::bad_request(format!("at most {MAX_PARTS} disks and interfaces are taken down")));
    }
    if disks.iter().any(|disk| long(&disk.name))
        || nics.iter().filter_map(|nic| nic.name.as_deref()).any(long)
    {
        return Err(Problem::bad_request("the name of a disk or interface has 1 to 64 bytes"));
    }
    let nics = nics
        .into_iter()
        .enumerate()
        .map(|(number, nic)| (nic.name.unwrap_or_else(|| format!("nic{number}")), nic.mac.to_string()));
    Ok(Registration {
        evidence,
        cpus,
        memory_bytes,
        disks: disks.into_iter().map(|disk| (disk.name, disk.size_bytes)).collect(),
        nics: nics.collect(),
    })
}

fn respond(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match status.is_success() {
        true => (status, Json(answer.body)).into_response(),
        false => Problem::refused(status, &answer.body).into_response(),
    }
}
