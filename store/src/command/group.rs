//! Groups at central: making, naming and moving them, putting sites into them, and what they say of settings.
//!
//! Deliberately absent: removing one.

use sync::{
    document::{
        group::{self, Identity, Parent},
        register::Edit,
        site,
    },
    id::{GroupId, SiteId},
    journal::Event,
};

use super::{
    check_text, refused, register_set,
    settings::{self, SettingsEdit},
    unknown,
};
use crate::{
    StoreError, Tx,
    view::{GroupRow, SiteRow},
};

/// What is to change of a group; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupEdit {
    /// New name.
    pub name: Option<String>,
    /// New description.
    pub description: Option<String>,
    /// New group above, or the top.
    pub parent: Option<Option<GroupId>>,
}

/// Makes a group below `parent`, or at the top.
///
/// # Errors
/// `Unknown` parent; `Refused` when the name cannot be or is taken there.
pub fn create(
    tx: &mut Tx<'_>,
    name: &str,
    description: &str,
    parent: Option<GroupId>,
) -> Result<GroupRow, StoreError> {
    check_name(name)?;
    check_text("description", description)?;
    check_known(tx, parent)?;
    check_free(tx, parent, name)?;
    let id: GroupId = tx.new_id()?.into();
    let identity = Identity { name: name.to_string(), description: description.to_string() };
    tx.write(group::KIND, id.into(), |edit| {
        edit.set(&group::identity(), &identity, "created");
        edit.set(&group::parent(), &Parent { parent }, "created");
    })?;
    tx.journal(Event::GroupCreated { group: id, name: name.to_string(), parent })?;
    tx.view().group(id)?.ok_or_else(|| unknown("group", id))
}

/// Names or moves a group. What stands below it moves with it.
///
/// # Errors
/// `Unknown` group or parent; `Refused` when the name cannot be or is taken there, or the group would stand
/// below itself.
pub fn edit(tx: &mut Tx<'_>, id: GroupId, new: &GroupEdit, why: &str) -> Result<GroupRow, StoreError> {
    let row = tx.view().group(id)?.ok_or_else(|| unknown("group", id))?;
    check_text("why", why)?;
    let name = new.name.as_ref().unwrap_or(&row.name);
    let description = new.description.as_ref().unwrap_or(&row.description);
    let parent = new.parent.unwrap_or(row.parent);
    check_name(name)?;
    check_text("description", description)?;
    check_known(tx, parent)?;
    if let Some(parent) = parent.filter(|_| new.parent.is_some())
        && tx.view().is_within(parent, id)?
    {
        if parent == id {
            return refused(format!("group `{}` cannot stand below itself; name another", row.name));
        }
        let (here, there) = (tx.view().group_path(id)?, tx.view().group_path(parent)?);
        return refused(format!(
            "group `{here}` cannot stand below `{there}`, which stands below it; move `{there}` elsewhere first"
        ));
    }
    if (name, parent) != (&row.name, row.parent) {
        check_free(tx, parent, name)?;
    }
    let identity = Identity { name: name.clone(), description: description.clone() };
    let renamed = (name, description) != (&row.name, &row.description);
    let moved = parent != row.parent;
    tx.write(group::KIND, id.into(), |edit| {
        if renamed {
            edit.set(&group::identity(), &identity, why);
        }
        if moved {
            edit.set(&group::parent(), &Parent { parent }, why);
        }
    })?;
    if renamed {
        tx.journal(register_set(group::KIND, id, "identity", name))?;
    }
    if moved {
        tx.journal(register_set(group::KIND, id, "parent", word(parent)))?;
        let sites = tx.view().sites_within(id)?;
        settings::descend(tx, sites, why)?;
    }
    tx.view().group(id)?.ok_or_else(|| unknown("group", id))
}

/// Puts a site into a group, or takes it out of all.
///
/// # Errors
/// `Unknown` site or group.
pub fn place(
    tx: &mut Tx<'_>,
    site: SiteId,
    group: Option<GroupId>,
    why: &str,
) -> Result<SiteRow, StoreError> {
    name_group(
        tx,
        site,
        group,
        "group",
        |row| row.group,
        why,
        |edit| {
            edit.set(&site::membership(), &site::Membership { group }, why);
        },
    )?;
    settings::descend(tx, [site], why)?;
    tx.view().site(site)?.ok_or_else(|| unknown("site", site))
}

/// Changes what a group says of settings; it descends to the sites that stand in it or below.
///
/// # Errors
/// `Unknown` group; `Refused` when a value is out of its range.
pub fn set(tx: &mut Tx<'_>, id: GroupId, edit: &SettingsEdit, why: &str) -> Result<GroupRow, StoreError> {
    let row = tx.view().group(id)?.ok_or_else(|| unknown("group", id))?;
    let changes = edit.changes_of(&row.own, why)?;
    if changes.is_empty() {
        return Ok(row);
    }
    tx.write(group::KIND, id.into(), |edit| settings::put(edit, &changes, why))?;
    settings::journal(tx, (group::KIND, id.into()), &changes)?;
    let sites = tx.view().sites_within(id)?;
    settings::descend(tx, sites, why)?;
    tx.view().group(id)?.ok_or_else(|| unknown("group", id))
}

/// Decides of which part of the fleet a site is told where its machines belong: of a group and all below it, or
/// of the whole.
///
/// # Errors
/// `Unknown` site or group.
pub fn set_domain(
    tx: &mut Tx<'_>,
    site: SiteId,
    group: Option<GroupId>,
    why: &str,
) -> Result<SiteRow, StoreError> {
    name_group(
        tx,
        site,
        group,
        "directory_domain",
        |row| row.directory_domain,
        why,
        |edit| {
            edit.set(&site::directory_domain(), &site::DirectoryDomain { group }, why);
        },
    )
}

/// Writes a register of a site that names a group, unless it names that one already.
fn name_group(
    tx: &mut Tx<'_>,
    site: SiteId,
    group: Option<GroupId>,
    register: &str,
    found: fn(&SiteRow) -> Option<GroupId>,
    why: &str,
    edit: impl FnOnce(&mut Edit<'_>),
) -> Result<SiteRow, StoreError> {
    let row = tx.view().site(site)?.ok_or_else(|| unknown("site", site))?;
    check_text("why", why)?;
    check_known(tx, group)?;
    if found(&row) == group {
        return Ok(row);
    }
    tx.write(site::KIND, site.into(), edit)?;
    tx.journal_for(site, register_set(site::KIND, site, register, word(group)))?;
    tx.view().site(site)?.ok_or_else(|| unknown("site", site))
}

fn word(group: Option<GroupId>) -> String {
    group.map_or_else(|| "none".into(), |group| group.to_string())
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
        return refused(format!(
            "`{name}` is no name for a group: use 1 to 63 of the letters a-z, digits and hyphens"
        ));
    }
    Ok(())
}

/// A group that stands below one which is not there would be an orphan.
fn check_known(tx: &Tx<'_>, group: Option<GroupId>) -> Result<(), StoreError> {
    match group {
        Some(id) if tx.view().group(id)?.is_none() => Err(unknown("group", id)),
        Some(_) | None => Ok(()),
    }
}

fn check_free(tx: &Tx<'_>, parent: Option<GroupId>, name: &str) -> Result<(), StoreError> {
    let Some(other) = tx.view().group_below(parent, name)? else { return Ok(()) };
    let path = tx.view().group_path(other.id)?;
    refused(format!("there is a group `{path}` already ({}); choose another name or another place", other.id))
}
