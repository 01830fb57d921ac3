//! What people and machines ask for: read, ask policy, change, all in one transaction.
//!
//! `site`, `workflow`, `node` and `task` are what people do; `boot` and `report` what machines do. Each
//! command writes the documents and the journal entry together. Whether the caller may ask at all is
//! decided before, at the door through which it came.

pub mod site;
pub mod workflow;
pub mod node;
pub mod task;
pub mod boot;
pub mod report;

use sync::{document::Kind, id::DocumentId, journal::Event};

use crate::{StoreError, Tx};

fn refused<T>(why: impl Into<String>) -> Result<T, StoreError> {
    Err(StoreError::Refused(sync::policy::Reason::new(why)))
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
