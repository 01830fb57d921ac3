//! Groups: the tree that sites stand in.
//!
//! Two lives of a central that was restored may have moved groups into each other; whatever walks the tree
//! ends all the same, and each group counts once.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use sync::{
    document::{
        Document, contested, group,
        settings::{self, Own, Source},
    },
    id::{GroupId, SiteId},
};

use super::{EffectiveRow, View, bodies};
use crate::StoreError;

/// A group and all below it, as `below`; the group is `?1`.
const BELOW: &str = "WITH RECURSIVE below (id) AS (VALUES (?1) UNION
    SELECT view_groups.id FROM view_groups JOIN below ON view_groups.parent = below.id)";

/// One group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRow {
    /// The group.
    pub id: GroupId,
    /// Name, unique among its siblings.
    pub name: String,
    /// For people.
    pub description: String,
    /// The group above, if there is one.
    pub parent: Option<GroupId>,
    /// What it says itself of the settings of the sites in it.
    pub own: Own,
}

impl View<'_> {
    /// All groups by id.
    pub fn groups(&self) -> Result<Vec<GroupRow>, StoreError> {
        bodies(self.sql.prepare_cached("SELECT body FROM view_groups ORDER BY id")?, [])
    }

    /// One group.
    pub fn group(&self, group: GroupId) -> Result<Option<GroupRow>, StoreError> {
        let statement = self.sql.prepare_cached("SELECT body FROM view_groups WHERE id = ?1")?;
        Ok(bodies(statement, [group.as_bytes()])?.pop())
    }

    /// The group of this name right below `parent`, or at the top.
    pub fn group_below(&self, parent: Option<GroupId>, name: &str) -> Result<Option<GroupRow>, StoreError> {
        let statement =
            self.sql.prepare_cached("SELECT body FROM view_groups WHERE parent IS ?1 AND name = ?2")?;
        Ok(bodies(statement, params![parent.map(|group| group.0), name])?.pop())
    }

    /// The group that a path of names from the top leads to, such as `europe/france`.
    pub fn group_at(&self, path: &str) -> Result<Option<GroupRow>, StoreError> {
        let mut found: Option<GroupRow> = None;
        for name in path.split('/') {
            match self.group_below(found.map(|row| row.id), name)? {
                Some(row) => found = Some(row),
                None => return Ok(None),
            }
        }
        Ok(found)
    }

    /// Names from the top down to a group. What is not known here shows as its id.
    pub fn group_path(&self, group: GroupId) -> Result<String, StoreError> {
        let line = self.line_to(Some(group))?.into_iter();
        let names: Vec<String> =
            line.map(|(id, row)| row.map_or_else(|| id.to_string(), |row| row.name)).collect();
        Ok(names.join("/"))
    }

    /// What the groups from the top down to `group` say of settings.
    pub fn levels(&self, group: Option<GroupId>) -> Result<Vec<(Source, Own)>, StoreError> {
        let line = self.line_to(group)?.into_iter();
        Ok(line.filter_map(|(id, row)| Some((Source::Group(id), row?.own))).collect())
    }

    /// The groups from the top down to `group`, as far as they are known here.
    fn line_to(&self, group: Option<GroupId>) -> Result<Vec<(GroupId, Option<GroupRow>)>, StoreError> {
        let (mut line, mut seen, mut next) = (Vec::new(), BTreeSet::new(), group);
        while let Some(group) = next
            && seen.insert(group)
        {
            let row = self.group(group)?;
            next = row.as_ref().and_then(|row| row.parent);
            line.push((group, row));
        }
        line.reverse();
        Ok(line)
    }

    /// What holds for a site that stands in a group and says nothing itself.
    pub fn settings_of(&self, group: GroupId) -> Result<EffectiveRow, StoreError> {
        Ok(settings::descend(0, &self.levels(Some(group))?).into())
    }

    /// Whether `group` is `above`, or anywhere below it.
    pub fn is_within(&self, group: GroupId, above: GroupId) -> Result<bool, StoreError> {
        Ok(self
            .sql
            .prepare_cached(&format!("{BELOW} SELECT 1 FROM below WHERE id = ?2"))?
            .exists(params![above.as_bytes(), group.as_bytes()])?)
    }

    /// Sites that stand in a group or below it, by id.
    pub fn sites_within(&self, group: GroupId) -> Result<BTreeSet<SiteId>, StoreError> {
        self.site_ids(&format!("{BELOW} SELECT id FROM view_sites WHERE grp IN below"), group)
    }

    /// Sites whose directory has the machines of a group, and of no more.
    pub fn sites_of_domain(&self, group: GroupId) -> Result<BTreeSet<SiteId>, StoreError> {
        self.site_ids("SELECT id FROM view_sites WHERE domain = ?1", group)
    }

    /// Sites whose machines are in the directory of `site`; none: those of the whole fleet.
    pub fn domain_of(&self, site: SiteId) -> Result<Option<BTreeSet<SiteId>>, StoreError> {
        let domain: Option<Option<[u8; 16]>> = self
            .sql
            .prepare_cached("SELECT domain FROM view_sites WHERE id = ?1")?
            .query_row([site.as_bytes()], |row| row.get(0))
            .optional()?;
        domain.flatten().map(|group| self.sites_within(GroupId(group))).transpose()
    }

    /// Sites that a group concerns: it is named by their documents, or one below it is.
    pub(crate) fn sites_naming(&self, group: GroupId) -> Result<BTreeSet<SiteId>, StoreError> {
        let named = "SELECT id FROM view_sites WHERE grp IN below OR domain IN below";
        self.site_ids(&format!("{BELOW} {named}"), group)
    }

    /// Groups that concern a site: those that its document names, and all above them.
    pub(crate) fn groups_of(&self, site: SiteId) -> Result<BTreeSet<GroupId>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "WITH RECURSIVE above (id) AS (
                 SELECT grp FROM view_sites WHERE id = ?1 UNION SELECT domain FROM view_sites WHERE id = ?1
                 UNION SELECT view_groups.parent FROM view_groups JOIN above ON view_groups.id = above.id)
             SELECT id FROM above WHERE id IS NOT NULL",
        )?;
        let rows = statement.query_map([site.as_bytes()], |row| Ok(GroupId(row.get(0)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn site_ids(&self, query: &str, group: GroupId) -> Result<BTreeSet<SiteId>, StoreError> {
        let mut statement = self.sql.prepare_cached(query)?;
        let rows = statement.query_map([group.as_bytes()], |row| Ok(SiteId(row.get(0)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

pub(super) fn refresh(sql: &Connection, doc: i64, document: &Document) -> Result<(), StoreError> {
    let identity = contested::read(document, &group::identity());
    let identity = identity.newest().map(|side| side.value.clone());
    let parent = contested::read(document, &group::parent());
    let row = GroupRow {
        id: document.id().into(),
        name: identity.as_ref().map(|identity| identity.name.clone()).unwrap_or_default(),
        description: identity.map(|identity| identity.description).unwrap_or_default(),
        parent: parent.newest().and_then(|side| side.value.parent),
        own: settings::own(document),
    };
    sql.prepare_cached(
        "INSERT OR REPLACE INTO view_groups (doc, id, parent, name, body) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        doc,
        row.id.as_bytes(),
        row.parent.map(|group| group.0),
        row.name,
        serde_json::to_string(&row)?
    ])?;
    Ok(())
}
