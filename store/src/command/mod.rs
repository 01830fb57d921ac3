//! What people and machines ask for: read, ask policy, change, all in one transaction.
//!
//! `site`, `enrolment`, `certificate`, `workflow`, `node` and `task` are what people do; `boot` and `report` what machines do; `content`
//! is what a site fetched. Each command writes the documents and the journal entry together. Whether the
//! caller may ask at all is decided before, at the door through which it came.

pub mod site;
pub mod enrolment;
pub mod certificate;
pub mod workflow;
pub mod content;
pub mod node;
pub mod task;
pub mod boot;
pub mod report;

use sync::{document::Kind, id::DocumentId, journal::Event};

use crate::{StoreError, Tx};

fn refused<T>(why: impl Into<String>) -> Result<T, StoreError> {
    Err(StoreError::Refused(sync::policy::Reason::new(why)))
}

/// Peers take no longer text in a register, so none is written.
fn check_text(what: &str, text: &str) -> Result<(), StoreError> {
    let most = sync::document::register::MAX_SCALAR;
    if text.len() > most {
        return refused(format!("{what} of {} bytes is too long: at most {most} are kept", text.len()));
    }
    Ok(())
}

fn unknown(what: &str, id: impl std::fmt::Display) -> StoreError {
    StoreError::Unknown(format!("{what} {id}"))
}

fn register_set(kind: Kind, document: impl Into<DocumentId>, path: &str, value: impl ToString) -> Event {
    Event::RegisterSet {
        kind: kind.to_string(),
        document: document.into(),
        path: path.to_string(),
        value: value.to_string(),
    }
}

impl Tx<'_> {
    fn new_id(&mut self) -> Result<DocumentId, StoreError> {
        Ok(self.author()?.entropy.document_id())
    }
}
