//! What somebody wanted to write, written by central in his stead.
//!
//! What was refused of a site comes back as intents only, register by register, and never as the bytes that
//! were refused: central writes each register under its own actor, as it would at an operator's word. Facts
//! are not intents: what a machine reported and what a site saw, nobody else can know. What central alone
//! writes has commands of its own, with rules of their own.

use sync::{
    document::{
        Class, Document, Fields, Kind, Writers, contested, register::MAX_SCALAR, schema::RegisterSchema,
    },
    id::{DocumentId, SiteId},
};

use crate::{
    StoreError, Tx,
    command::{claim, gives_orders, refused, register_set},
    view,
};

/// One register that somebody wanted to write.
pub(crate) struct Intent {
    pub(crate) container: Option<&'static str>,
    pub(crate) key: String,
    pub(crate) schema: &'static RegisterSchema,
    pub(crate) fields: Fields,
}

impl Intent {
    /// Path of the register.
    pub(crate) fn path(&self) -> String {
        self.container.map_or_else(|| self.key.clone(), |container| format!("{container}/{}", self.key))
    }

    /// The intent to write `fields` at a path of such a document.
    pub(crate) fn at(kind: Kind, path: &str, fields: Fields) -> Option<Self> {
        let (container, key, schema) = contested::place(kind, path)?;
        Some(Intent { container, key: key.to_string(), schema, fields })
    }
}

/// Whether a register says what somebody wants, and central may say it for him.
pub(crate) fn is_intent(schema: &RegisterSchema) -> bool {
    match schema.writers {
        Writers::CentralAndSite | Writers::CentralAndOwnKey => true,
        Writers::Central | Writers::Site | Writers::OwnKey => false,
    }
}

impl Tx<'_> {
    /// At central: writes what somebody at `site` wanted, all of it or nothing. `by` stands in the registers.
    ///
    /// # Errors
    /// `Refused` with the first register that central does not write for anybody; `Recovering` for a task while
    /// central is in recovery.
    pub(crate) fn write_intents(
        &mut self,
        site: SiteId,
        (kind, id): (Kind, DocumentId),
        intents: &[Intent],
        by: &str,
        why: &str,
    ) -> Result<(), StoreError> {
        if intents.is_empty() {
            return refused("it writes nothing that somebody else could write");
        }
        if kind == Kind::Task {
            gives_orders(self)?;
        }
        if let Some(doc) = self.find(id)?
            && self.kind_of(doc)? != kind
        {
            return refused(format!("{id} is no {kind}"));
        }
        for intent in intents {
            self.check_intent(site, (kind, id), intent)?;
        }
        let why = cut(why);
        let acts = std::mem::replace(&mut self.author()?.by, by.to_string());
        let mut unreadable = None;
        let written = self.write(kind, id, |edit| {
            for intent in intents {
                let Intent { container, key, schema, fields } = intent;
                if let Err(error) = edit.restate(*container, key, schema, fields, why) {
                    unreadable.get_or_insert((intent.path(), error));
                }
            }
        });
        self.author()?.by = acts;
        written?;
        if let Some((path, error)) = unreadable {
            return refused(format!("`{path}` cannot be read: {error}"));
        }
        for intent in intents {
            let value = view::shown(&intent.fields).to_string();
            self.journal_for(site, register_set(kind, id, &intent.path(), value))?;
        }
        if kind == Kind::Claim {
            claim::settle(self, id.into())?;
        }
        Ok(())
    }

    fn check_intent(
        &mut self,
        site: SiteId,
        (kind, id): (Kind, DocumentId),
        intent: &Intent,
    ) -> Result<(), StoreError> {
        let path = intent.path();
        if intent.schema.writers == Writers::CentralAndOwnKey && intent.key != site.to_string() {
            return refused(format!("`{path}` is another site's to say"));
        }
        if intent.schema.writers == Writers::Central {
            return refused(format!(
                "`{path}` is central's own to decide: use the command that is made for it"
            ));
        }
        if !is_intent(intent.schema) {
            return refused(format!("`{path}` is a fact: whoever saw it writes it, and nobody in his stead"));
        }
        let is_there = self.with_document(kind, id, |document| is_written_once(document, intent))?;
        if is_there == Some(true) {
            return refused(format!("`{path}` of {kind} {id} is there already and never written again"));
        }
        Ok(())
    }
}

/// Whether the register is there and immutable.
fn is_written_once(document: &Document, intent: &Intent) -> bool {
    intent.schema.class == Class::Immutable
        && contested::read_path(document, &intent.path()).is_some_and(|read| !read.sides().is_empty())
}

/// A reason that fits a register.
pub(crate) fn cut(why: &str) -> &str {
    let mut end = why.len().min(MAX_SCALAR);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    &why[..end]
}
