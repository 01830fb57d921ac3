//! What must hold of directories.

use harness::world::World;
use store::view::NodeFilter;
use sync::{
    id::{GroupId, Origin, SiteId},
    policy::Wanted,
    wire::Stub,
};

use crate::checks::{read, violated};

/// A site's directory has the machines of its domain, as central's documents say, and no others but those that
/// the site has seen.
pub(crate) fn directory_of_domain(world: &mut World, site: SiteId) {
    let name = world.name(Origin::Site(site));
    let known = read(world.eye(Origin::Site(site)).directory());
    let (nodes, sites, groups) = world
        .store(Origin::Central)
        .read(|view| Ok((view.nodes(&NodeFilter::default())?, view.sites()?, view.groups()?)))
        .expect("it reads");
    let above = |group: GroupId| groups.iter().find(|row| row.id == group).and_then(|row| row.parent);
    let domain = sites.iter().find(|row| row.id == site).and_then(|row| row.directory_domain);
    let is_inside = |home: SiteId| {
        let Some(domain) = domain else { return true };
        let stands = sites.iter().find(|row| row.id == home).and_then(|row| row.group);
        // Two lives of central may have moved groups into each other.
        std::iter::successors(stands, |group| above(*group)).take(groups.len() + 1).any(|it| it == domain)
    };
    for node in &nodes {
        let retired = node.wanted == Wanted::Retired;
        let is = Stub { node: node.id, home: node.home, home_epoch: node.home_epoch, retired };
        let must = node.home != Some(site) && node.home.is_none_or(is_inside);
        let may = must || node.home != Some(site) && node.observed_by.contains(&site);
        let wrong = match known.get(&node.id) {
            None => must,
            Some(told) => !may || *told != is,
        };
        if wrong {
            let told = known.get(&node.id);
            let detail = format!("{name}: it is {is:?}, and the directory says {told:?}");
            violated("a directory is that of its domain", detail);
        }
    }
    if let Some(stranger) = known.keys().find(|id| nodes.iter().all(|row| row.id != **id)) {
        violated("a directory is that of its domain", format!("{name} knows {stranger}, which is nowhere"));
    }
}
