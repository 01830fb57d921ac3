//! What somebody asks for, as a proposal has it, and back.
//!
//! An edit of a node is written as the registers that it would write, so that every console shows it like a change.
//! What else is asked for has one argument of a type of its own, or none: the action and the document say it all.

use sync::{
    document::{
        Document, FieldError, Fields, Kind, Value, contested,
        node::{GroupRef, Tag, Text, Wish, WorkflowRef},
        proposal::{self, Act, Consent, Machine, Ordered, Switch},
    },
    id::{ClaimId, DocumentId, NodeId, SiteId, TaskId},
};

use super::{
    ask::{Ask, What},
    node::NodeEdit,
    task::NewTask,
};

/// What a proposal says.
pub(super) struct Paper {
    pub(super) act: Act,
    pub(super) about: Kind,
    pub(super) document: DocumentId,
    pub(super) arguments: Vec<(String, Fields)>,
}

impl Paper {
    /// Writes down what is asked for at a site.
    pub(super) fn of(what: &What, site: SiteId) -> Self {
        let of_task = |act, task: &TaskId| (act, Kind::Task, DocumentId::from(*task), vec![]);
        let (act, about, document, arguments) = match what {
            What::EditNode { node, edit } => (Act::EditNode, Kind::Node, (*node).into(), registers(edit)),
            What::CreateTask(new) => {
                let ordered = Ordered {
                    workflow: new.workflow,
                    version: new.version,
                    parameters: new.parameters.clone(),
                    tags: new.tags.clone(),
                };
                let argument = (proposal::ordered().key().to_string(), ordered.to_fields());
                (Act::CreateTask, Kind::Node, new.node.into(), vec![argument])
            }
            What::JudgeTask { task, approved: true } => of_task(Act::ApproveTask, task),
            What::JudgeTask { task, approved: false } => of_task(Act::RejectTask, task),
            What::CancelTask { task } => of_task(Act::CancelTask, task),
            What::RetryTask { task } => of_task(Act::RetryTask, task),
            What::AbortTask { task } => of_task(Act::AbortTask, task),
            What::AdoptMachine { mac } => {
                let argument = (proposal::machine().key().to_string(), Machine { mac: *mac }.to_fields());
                (Act::AdoptMachine, Kind::Node, NodeId::of(*mac).into(), vec![argument])
            }
            What::SwitchPxe { enabled } => {
                let argument =
                    (proposal::switch().key().to_string(), Switch { enabled: *enabled }.to_fields());
                (Act::SwitchPxe, Kind::Site, site.into(), vec![argument])
            }
            What::ConsentToClaim { claim, consents } => {
                let argument =
                    (proposal::consent().key().to_string(), Consent { consents: *consents }.to_fields());
                (Act::ConsentToClaim, Kind::Claim, (*claim).into(), vec![argument])
            }
        };
        Paper { act, about, document, arguments }
    }
}

/// The registers that an edit of a node writes, by their paths.
fn registers(edit: &NodeEdit) -> Vec<(String, Fields)> {
    let NodeEdit { hostname, address, notes, tags, wanted, workflow, group, why: _ } = edit;
    let mut registers = Vec::new();
    for (path, value) in [("hostname", hostname), ("address", address), ("notes", notes)] {
        if let Some(value) = value {
            registers.push((path.to_string(), Text { value: value.clone() }.to_fields()));
        }
    }
    for (key, value) in tags {
        let tag = Tag { value: value.clone(), removed: value.is_none().then_some(true) };
        registers.push((format!("tags/{key}"), tag.to_fields()));
    }
    if let Some(wanted) = wanted {
        registers.push(("wanted".into(), Wish { wanted: *wanted }.to_fields()));
    }
    if let Some(workflow) = workflow {
        registers.push(("workflow".into(), WorkflowRef { workflow: *workflow }.to_fields()));
    }
    if let Some(group) = group {
        registers.push(("group".into(), GroupRef { group: *group }.to_fields()));
    }
    registers
}

/// Reads what a proposal asks for. Those of the action `write` ask for nothing that could be read so.
///
/// # Errors
/// What is missing, or of another type, or known to no one here.
pub(super) fn read(document: &Document) -> Result<Ask, String> {
    let wish = contested::read(document, &proposal::wish());
    let Some(wish) = wish.newest() else { return Err("it says nothing".into()) };
    let action = wish.value.action.as_str();
    let act: Act =
        action.parse().map_err(|_| format!("the action `{action}` is not known to this program"))?;
    let Some(about) = wish.value.document else { return Err("it is about no document".into()) };
    let task = || TaskId::from(about);
    let what = match act {
        Act::Write => return Err("what central refused is decided by people".into()),
        Act::EditNode => What::EditNode { node: about.into(), edit: edit(document)? },
        Act::CreateTask => {
            let Ordered { workflow, version, parameters, tags } = argument(document, &proposal::ordered())?;
            What::CreateTask(NewTask { node: about.into(), workflow, version, parameters, tags })
        }
        Act::ApproveTask => What::JudgeTask { task: task(), approved: true },
        Act::RejectTask => What::JudgeTask { task: task(), approved: false },
        Act::CancelTask => What::CancelTask { task: task() },
        Act::RetryTask => What::RetryTask { task: task() },
        Act::AbortTask => What::AbortTask { task: task() },
        Act::AdoptMachine => {
            let Machine { mac } = argument(document, &proposal::machine())?;
            if DocumentId::from(NodeId::of(mac)) != about {
                return Err(format!("{mac} is not the machine that it is about"));
            }
            What::AdoptMachine { mac }
        }
        Act::SwitchPxe => What::SwitchPxe { enabled: argument(document, &proposal::switch())?.enabled },
        Act::ConsentToClaim => What::ConsentToClaim {
            claim: ClaimId::from(about),
            consents: argument(document, &proposal::consent())?.consents,
        },
    };
    Ok(Ask { what, why: wish.written.why.clone() })
}

fn argument<V: Value + Clone>(
    document: &Document,
    register: &sync::document::Register<V>,
) -> Result<V, String> {
    let read = contested::read(document, register);
    let side = read.newest().map(|side| side.value.clone());
    side.ok_or_else(|| format!("its argument `{}` is missing or cannot be read", register.key()))
}

/// Puts the registers of an edit together again.
fn edit(document: &Document) -> Result<NodeEdit, String> {
    let mut edit = NodeEdit::default();
    for path in contested::keys(document, proposal::ARGUMENTS) {
        let fields = argument(document, &proposal::argument(&path))?.0;
        let unreadable = |error: FieldError| format!("its argument `{path}` cannot be read: {error}");
        let text = || Text::from_fields(&fields).map(|text| text.value).map_err(unreadable);
        match path.as_str() {
            "hostname" => edit.hostname = Some(text()?),
            "address" => edit.address = Some(text()?),
            "notes" => edit.notes = Some(text()?),
            "wanted" => edit.wanted = Some(Wish::from_fields(&fields).map_err(unreadable)?.wanted),
            "workflow" => {
                edit.workflow = Some(WorkflowRef::from_fields(&fields).map_err(unreadable)?.workflow)
            }
            "group" => edit.group = Some(GroupRef::from_fields(&fields).map_err(unreadable)?.group),
            other => {
                let Some(key) = other.strip_prefix("tags/") else {
                    return Err(format!("`{path}` of a node is not known to this program"));
                };
                let value = Tag::from_fields(&fields).map_err(unreadable)?.value;
                edit.tags.insert(key.to_string(), value);
            }
        }
    }
    Ok(edit)
}
