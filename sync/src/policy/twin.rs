//! Whether two documents describe one machine, which has two boot interfaces or was given the identity of another.
//!
//! Each boot interface that is seen makes a document of its own. A hardware report that lists the address of the other
//! one shows that both are one machine. The same serial number and system UUID show less: vendors and hypervisors copy
//! them, so a person says what it is.

use std::collections::BTreeSet;

use super::Reason;
use crate::id::{MacAddr, SiteId};

/// What is known of a machine that is in service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Where it is at home.
    pub home: Option<SiteId>,
    /// Addresses by which it boots.
    pub macs: BTreeSet<MacAddr>,
    /// Addresses that its hardware report lists.
    pub nics: BTreeSet<MacAddr>,
    /// Serial number and system UUID, where it has both.
    pub hardware: Option<(String, String)>,
    /// It has a task that has not ended.
    pub has_task: bool,
    /// A person said that it is a machine of its own.
    pub is_its_own: bool,
}

/// What two documents are to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Twin {
    /// Two machines.
    Apart,
    /// One machine.
    Same(Reason),
    /// A person says which.
    Ask(Reason),
}

/// Compares two machines; which is given first does not matter.
pub fn compare(a: &Look, b: &Look) -> Twin {
    if a.is_its_own || b.is_its_own {
        return Twin::Apart;
    }
    let lists = |one: &Look, other: &Look| !one.nics.is_disjoint(&other.macs);
    let equal = a.hardware.is_some() && a.hardware == b.hardware;
    let differ = a.hardware.is_some() && b.hardware.is_some() && !equal;
    if !lists(a, b) && !lists(b, a) {
        let copied =
            || Reason::new("serial number and system UUID are the same; vendors and hypervisors copy them");
        return if equal { Twin::Ask(copied()) } else { Twin::Apart };
    }
    if differ {
        return Twin::Ask(Reason::new(
            "one lists the address of the other, but serial number or system UUID differ",
        ));
    }
    if a.home.is_some() && b.home.is_some() && a.home != b.home {
        return Twin::Ask(Reason::new(
            "one lists the address of the other, and they are at home at two sites",
        ));
    }
    if a.has_task && b.has_task {
        return Twin::Ask(Reason::new(
            "one lists the address of the other, and both have a task that has not ended",
        ));
    }
    Twin::Same(Reason::new("the hardware report of one lists the address of the other"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads words like `mac=1 nics=1,2 hw=S/U home=lyon task own`.
    fn look(text: &str) -> Look {
        let macs = |list: &str| {
            list.split(',').map(|last| MacAddr([2, 0, 0, 0, 0, last.parse().unwrap()])).collect()
        };
        let mut look = Look::default();
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some(("mac", list)) => look.macs = macs(list),
                Some(("nics", list)) => look.nics = macs(list),
                Some(("hw", pair)) => {
                    let (serial, uuid) = pair.split_once('/').unwrap();
                    look.hardware = Some((serial.into(), uuid.into()));
                }
                Some(("home", site)) => look.home = Some(SiteId([site.as_bytes()[0]; 16])),
                None if word == "task" => look.has_task = true,
                None if word == "own" => look.is_its_own = true,
                other => panic!("{other:?}"),
            }
        }
        look
    }

    #[test]
    fn p9_every_row_of_the_table_of_twins_holds_both_ways() {
        let table = include_str!("../../../fixtures/policies/twins.txt");
        let rows = table.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let mut found = 0;
        for row in rows.skip(1) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let (a, b) = (look(cells[0]), look(cells[1]));
            for (a, b) in [(&a, &b), (&b, &a)] {
                let word = match compare(a, b) {
                    Twin::Apart => "apart",
                    Twin::Same(_) => "same",
                    Twin::Ask(_) => "ask",
                };
                assert_eq!(word, cells[2], "{row}");
            }
            found += 1;
        }
        assert!(found >= 12, "{found} rows");
    }
}
