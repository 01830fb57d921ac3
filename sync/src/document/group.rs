//! A part of the fleet, at any depth, whose settings descend to the sites in it.

use super::register::value;
use super::{Kind, Register, site::Setting};
use crate::id::GroupId;

value! {
    /// What people call the group.
    pub struct Identity {
        /// Name, unique among its siblings.
        pub name: String,
        /// For people.
        pub description: String,
    }
}

value! {
    /// Where in the tree it stands.
    pub struct Parent {
        /// The group above, or none for the root. Cycles are refused by central.
        pub parent: Option<GroupId>,
    }
}

/// The kind of these documents.
pub const KIND: Kind = Kind::Group;

/// Register of the identity.
pub fn identity() -> Register<Identity> {
    Register::at_root("identity")
}

/// Register of the group above.
pub fn parent() -> Register<Parent> {
    Register::at_root("parent")
}

/// Register of one own setting.
pub fn setting(key: &str) -> Register<Setting> {
    Register::within("settings", key)
}
