//! A database that a newer program wrote.

use std::{collections::BTreeMap, fs, path::Path};

use expect_test::{Expect, expect};
use harness::{
    damage::{pretend_newer, set_version},
    programs::run,
};
use sync::blob::Digest;

use crate::{
    office::{Office, SOON, mac},
    words::masked,
};

/// Every file below a folder with the digest of what is in it.
fn files(folder: &Path) -> BTreeMap<String, Digest> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below the folder").display().to_string();
                found.insert(name, Digest::of(&fs::read(path).expect("a file")));
            }
        }
    }
    found
}

/// Starts a program on a folder that a newer one used, and compares what a person reads.
fn refuses(
    program: &str,
    command: &str,
    config: &Path,
    data: &Path,
    database: &Path,
    expected: Expect,
) -> i64 {
    let version = pretend_newer(database).expect("a database");
    let before = files(data);
    let (code, out, complaint) = run(program, &[command, "--config", &config.display().to_string()]);
    let data = data.display().to_string();
    expected.assert_eq(&format!("exit {code}\n{out}{}\n", masked(&complaint, &[(&data, "<data>")])));
    assert_eq!(files(Path::new(&data)), before, "nothing was touched");
    version
}

#[test]
fn a_newer_database_is_refused_untouched_and_everything_is_there_for_the_newer_program() {
    let mut office = Office::open();
    let (workflow, _) = office.publish("debian-12", [10_000; 2]);
    for number in 1..=3 {
        office.order(mac(number), &workflow);
    }
    office.wait_for_ready(3, SOON);
    office.settle(SOON);
    let lists = ["/sites", "/nodes", "/tasks", "/workflows", "/journal"];
    let held = |rest: &harness::rest::Rest| lists.map(|path| rest.list(path).len());
    let (at_site, at_central) = (held(&office.site.rest), held(&office.central.rest));
    assert!(at_site.iter().all(|count| *count > 0), "{at_site:?}");

    office.site.program.kill();
    let database = office.site.database();
    let version = refuses(
        "holdfast-site",
        "run",
        office.site.config(),
        &office.site.data(),
        &database,
        expect![[r#"
            exit 1
            error: open the replica of this site
              why: the database has version 4000, this program knows versions up to 1; it was not touched. Next: start the newer program again, or restore a backup that this one made
              next: read the reason; the replica was not changed
        "#]],
    );
    set_version(&database, version).expect("a database");
    office.site.restart();
    assert_eq!(held(&office.site.rest), at_site);

    office.central.program.kill();
    let database = office.central.database();
    let version = refuses(
        "holdfast-central",
        "serve",
        office.central.config(),
        &office.central.data(),
        &database,
        expect![[r#"
            exit 5
            error: the data folder <data> cannot be used
              why: the database has version 4000, this program knows versions up to 1; it was not touched. Next: start the newer program again, or restore a backup that this one made
              next: check the owner and the permissions of the folder, and the room on its volume; restore what is damaged from a backup
        "#]],
    );
    set_version(&database, version).expect("a database");
    office.central.restart();
    assert_eq!(held(&office.central.rest), at_central);
    office.settle(SOON);
}
