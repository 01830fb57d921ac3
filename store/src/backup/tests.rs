//! Backups of stores that run, and what comes of putting them back, or of trying to.

use std::{
    collections::BTreeMap,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    time::Duration,
};

use expect_test::{Expect, expect};
use sync::{
    document::workflow::Identity,
    id::{MacAddr, SiteId},
};

use super::*;
use crate::{
    Given, Opening, Store,
    command::{
        node, site,
        workflow::{self, NewVersion},
    },
    view::NodeFilter,
};

const NOW: Timestamp = Timestamp(1_795_161_600_000);
const KEYS: [&str; 2] = ["authority.pem", "seal"];

fn given(number: u64) -> Given {
    let now = NOW.after(Duration::from_secs(number));
    Given { now, by: "ann".into(), entropy: *blake3::hash(&number.to_be_bytes()).as_bytes() }
}

fn open(folder: &Path, number: u64) -> Result<Store, StoreError> {
    let opening = Opening { folder: folder.to_path_buf(), origin: Origin::Central, given: given(number) };
    Store::open(&opening)
}

/// A central with a site, whose file `authority.pem` says `keys`.
fn central(folder: &Path, keys: &str) -> (Store, SiteId) {
    let store = open(folder, 1).unwrap();
    fs::write(folder.join("authority.pem"), keys).unwrap();
    (store.clone(), store.run(given(2), |tx| site::create(tx, "lyon", "", "")).unwrap())
}

fn add(store: &Store, site: SiteId, last: u8) {
    let mac = MacAddr([0x52, 0x54, 0, 0, 0, last]);
    store.run(given(u64::from(last) + 10), move |tx| node::create(tx, mac, site, "")).unwrap();
}

fn nodes(store: &Store) -> usize {
    store.read(|view| view.nodes(&NodeFilter::default())).unwrap().len()
}

fn place(folder: &Path) -> Place<'_> {
    Place { replica: folder, home: folder, keys: &KEYS }
}

fn save(folder: &Path, to: &Path) -> Result<Backup, BackupError> {
    backup(&place(folder), to, NOW, &mut |_| {})
}

fn put_back(folder: &Path, from: &Path) -> Result<Restored, BackupError> {
    restore(&place(folder), Origin::Central, from, NOW, &mut |_| {})
}

/// Files of a folder by name, with their bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    files.map(|it| (it.file_name().into_string().unwrap(), fs::read(it.path()).unwrap())).collect()
}

/// The copy that a power cut leaves: files as they are while the store is open.
fn cut_power(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for (name, bytes) in files(from) {
        fs::write(to.join(name), bytes).unwrap();
    }
}

#[test]
fn l13_a_backup_of_a_running_store_is_whole_private_and_says_what_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let (data, to) = (folder.path().join("data"), folder.path().join("backup"));
    let (store, lyon) = central(&data, "one");
    let identity = Identity {
        name: "debian".into(),
        os_family: "debian".into(),
        arch: "x86_64".into(),
        boot_method: "kernel".into(),
    };
    let files_of = ["kernel", "initrd"].map(|role| (role.into(), (Digest::of(role.as_bytes()), 6))).into();
    let version = NewVersion { files: files_of, kernel_args: String::new(), needs_approval: false };
    store.run(given(3), move |tx| workflow::create(tx, &identity, &version)).unwrap();
    let writer = {
        let store = store.clone();
        #[expect(clippy::disallowed_methods, reason = "somebody writes while the backup is made")]
        std::thread::spawn(move || (1..=60).for_each(|last| add(&store, lyon, last)))
    };
    let mut said = String::new();
    let made = backup(&place(&data), &to, NOW, &mut |line| said += &format!("{line}\n")).unwrap();
    writer.join().unwrap();
    expect![[r#"
        copying the database
        checking the copy
        copying keys
    "#]]
    .assert_eq(&said);
    assert_eq!((made.keys, made.absent.len()), (KEYS.map(String::from).to_vec(), 0));
    assert_eq!(made.blobs.iter().map(|blob| blob.size).collect::<Vec<_>>(), [6, 6]);
    for name in ["holdfast.db", "backup.json", "authority.pem", "seal"] {
        let mode = fs::metadata(to.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(files(&to).len(), 4, "nothing else: {:?}", files(&to).keys());
    let text = String::from_utf8(files(&to)["backup.json"].clone()).unwrap();
    assert!(text.contains(&Digest::of(b"kernel").to_string()), "{text}");

    // What was committed when it began is there, in order and without a gap.
    let elsewhere = folder.path().join("elsewhere");
    put_back(&elsewhere, &to).unwrap();
    let restored = open(&elsewhere, 900).unwrap();
    let macs: Vec<u8> = {
        let rows = restored.read(|view| view.nodes(&NodeFilter::default())).unwrap();
        let mut lasts: Vec<u8> = rows.iter().map(|row| row.macs[0].0[5]).collect();
        lasts.sort_unstable();
        lasts
    };
    assert!(macs.iter().copied().eq(1..=u8::try_from(macs.len()).unwrap()), "{macs:?}");
    assert_eq!(restored.read(|view| view.documents()).unwrap().values().sum::<u64>(), made.documents);

    let again = save(&data, &to).unwrap_err();
    assert_eq!(again.to_string(), format!("{} is there already and is not empty", to.display()));
    assert_eq!(files(&to)["backup.json"], text.as_bytes(), "and stays as it is");
}

#[test]
fn l13_a_backup_that_fails_leaves_nothing_that_looks_like_one() {
    let folder = tempfile::tempdir().unwrap();
    let (data, to) = (folder.path().join("data"), folder.path().join("backup"));
    assert!(matches!(save(&data, &to), Err(BackupError::NoDatabase { .. })));
    drop(central(&data, "one"));
    let file = File::options().write(true).open(data.join("holdfast.db")).unwrap();
    file.write_all_at(&[0xff; 4096], 8192).unwrap();
    let error = save(&data, &to).unwrap_err();
    assert!(matches!(error, BackupError::Damaged { .. }), "{error}");
    assert!(!to.exists());
    fs::create_dir(&to).unwrap();
    save(&data, &to).unwrap_err();
    assert_eq!(files(&to).len(), 0, "a folder that was there stays, empty");
}

#[test]
fn l13_h3_a_restored_database_begins_another_life_and_the_old_one_is_kept_with_its_last_commit() {
    let folder = tempfile::tempdir().unwrap();
    let (data, to) = (folder.path().join("data"), folder.path().join("backup"));
    let (store, lyon) = central(&data, "one");
    add(&store, lyon, 1);
    let first = store.incarnation();
    save(&data, &to).unwrap();
    add(&store, lyon, 2);
    // Killed: the newest commit is in the write-ahead log only.
    let killed = folder.path().join("killed");
    cut_power(&data, &killed);
    assert!(!files(&killed)["holdfast.db-wal"].is_empty());
    let beside = files(&killed)["incarnation"].clone();

    let restored = put_back(&killed, &to).unwrap();
    let aside = restored.aside.unwrap();
    assert_eq!(aside, killed.join("holdfast.db.before-2026-11-20T08-00-00.000Z"));
    let names: Vec<String> = files(&killed).into_keys().collect();
    expect![[
        r#"["authority.pem", "holdfast.db", "holdfast.db.before-2026-11-20T08-00-00.000Z", "lock", "seal"]"#
    ]]
    .assert_eq(&format!("{names:?}").replace("\"seal\"", "\"lock\", \"seal\""));
    // As after a crash between the last two steps: what lies beside it says that it ran here last.
    fs::write(killed.join("incarnation"), beside).unwrap();
    let store = open(&killed, 100).unwrap();
    assert_ne!(store.incarnation(), first);
    assert_eq!(nodes(&store), 1);
    let why = store.read(|view| view.suspended()).unwrap();
    expect![
        "the database was restored at 2026-11-20T08:00:00.000Z from a backup of 2026-11-20T08:00:00.000Z"
    ]
    .assert_eq(&why.unwrap());
    drop(store);
    let second = open(&killed, 101).unwrap();
    assert_eq!(second.incarnation(), open_incarnation(&killed), "one restore is one new life");
    drop(second);

    let kept = folder.path().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::copy(aside, kept.join("holdfast.db")).unwrap();
    assert_eq!(nodes(&open(&kept, 102).unwrap()), 2, "the old one has its last commit");
}

fn open_incarnation(folder: &Path) -> Incarnation {
    let text = fs::read_to_string(folder.join("incarnation")).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn l13_a_damaged_database_is_refused_at_the_start_and_replaced_by_a_backup() {
    let folder = tempfile::tempdir().unwrap();
    let (data, to) = (folder.path().join("data"), folder.path().join("backup"));
    let (store, lyon) = central(&data, "one");
    add(&store, lyon, 1);
    save(&data, &to).unwrap();
    drop(store);
    let database = data.join("holdfast.db");
    let garbage = vec![0x5a; 20_000];
    fs::write(&database, &garbage).unwrap();
    let error = open(&data, 5).err().expect("refused");
    expect!["the database is damaged; keep the folder. Next: put a backup in its place with `restore --from FOLDER`, which keeps the damaged one beside it"]
        .assert_eq(&error.to_string());
    assert_eq!(fs::read(&database).unwrap(), garbage, "and not touched");
    let restored = put_back(&data, &to).unwrap();
    assert_eq!(fs::read(restored.aside.unwrap()).unwrap(), garbage);
    assert_eq!(nodes(&open(&data, 6).unwrap()), 1);
}

#[test]
fn l13_what_is_no_backup_of_this_replica_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (data, good) = (folder.path().join("data"), folder.path().join("good"));
    let (store, lyon) = central(&data, "one");
    add(&store, lyon, 1);
    save(&data, &good).unwrap();
    drop(store);
    let before = files(&data);
    let check = |name: &str, spoil: &dyn Fn(&Path), expected: Expect| {
        let from = folder.path().join(name);
        cut_power(&good, &from);
        spoil(&from.join("holdfast.db"));
        let error = put_back(&data, &from).unwrap_err();
        let text = error.to_string().replace(&folder.path().display().to_string(), "");
        expected.assert_eq(&format!("{text}; next: {}", error.next()));
        assert_eq!(files(&data), before, "{name}");
    };
    let sql =
        |text: &'static str| move |path: &Path| Connection::open(path).unwrap().execute_batch(text).unwrap();
    check(
        "none",
        &|path| fs::remove_file(path).unwrap(),
        expect![
            "/none is no backup of Holdfast: there is no holdfast.db in it; next: name the folder that `backup --to` made; nothing was changed"
        ],
    );
    check(
        "text",
        &|path| {
            fs::write(path, "not a database, but long enough to have a header of a hundred bytes".repeat(9))
                .unwrap()
        },
        expect![
            "/text is no backup of Holdfast: its holdfast.db is not a database; next: name the folder that `backup --to` made; nothing was changed"
        ],
    );
    check(
        "empty",
        &|path| fs::write(path, "").unwrap(),
        expect![
            "/empty is no backup of Holdfast: its holdfast.db is another program's, or empty; next: name the folder that `backup --to` made; nothing was changed"
        ],
    );
    check(
        "foreign",
        &sql("UPDATE meta SET value = CAST('01010101010101010101010101010101' AS BLOB) WHERE key = 'origin'"),
        expect![
            "the backup belongs to 01010101010101010101010101010101, not to central; next: name the backup of this one; nothing was changed"
        ],
    );
    check(
        "newer",
        &sql("PRAGMA user_version = 99"),
        expect![
            "the backup has database version 99, this program knows versions up to 1; next: restore it with the program that made it, or a newer one; nothing was changed"
        ],
    );
    let from = folder.path().join("half");
    cut_power(&good, &from);
    let whole = fs::read(from.join("holdfast.db")).unwrap();
    fs::write(from.join("holdfast.db"), &whole[..whole.len() / 2]).unwrap();
    let error = put_back(&data, &from).unwrap_err();
    assert!(matches!(error, BackupError::Damaged { .. }), "{error}");
    assert_eq!(files(&data), before, "half");
    let rotten = folder.path().join("rotten");
    cut_power(&good, &rotten);
    let mut bytes = whole;
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xee);
    fs::write(rotten.join("holdfast.db"), bytes).unwrap();
    let error = put_back(&data, &rotten).unwrap_err();
    assert!(matches!(error, BackupError::Damaged { .. }), "{error}");
    assert_eq!(files(&data), before, "rotten");
}

#[test]
fn l13_a_folder_that_was_copied_by_hand_is_restored_with_what_its_log_holds() {
    let folder = tempfile::tempdir().unwrap();
    let (data, copy) = (folder.path().join("data"), folder.path().join("copy"));
    let (store, lyon) = central(&data, "one");
    add(&store, lyon, 1);
    cut_power(&data, &copy);
    assert!(!files(&copy)["holdfast.db-wal"].is_empty());
    let before = files(&copy);
    let elsewhere = folder.path().join("elsewhere");
    let restored = put_back(&elsewhere, &copy).unwrap();
    assert_eq!((restored.made_at, restored.aside), (None, None));
    assert_eq!(nodes(&open(&elsewhere, 100).unwrap()), 1);
    assert_eq!(files(&copy), before, "the copy is only read");
}

#[test]
fn l13_keys_come_from_the_backup_only_where_there_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let (data, to) = (folder.path().join("data"), folder.path().join("backup"));
    drop(central(&data, "one"));
    save(&data, &to).unwrap();
    let replaced = folder.path().join("replaced");
    let restored = put_back(&replaced, &to).unwrap();
    assert_eq!((restored.placed, restored.kept.len()), (KEYS.map(String::from).to_vec(), 0));
    assert_eq!(fs::read_to_string(replaced.join("authority.pem")).unwrap(), "one");
    let mode = fs::metadata(replaced.join("authority.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    fs::write(data.join("authority.pem"), "renewed").unwrap();
    let restored = put_back(&data, &to).unwrap();
    assert_eq!((restored.placed.len(), restored.kept), (0, vec!["authority.pem".into()]));
    assert_eq!(fs::read_to_string(data.join("authority.pem")).unwrap(), "renewed");
}

#[test]
fn l13_a_restore_that_was_broken_off_leaves_the_old_database_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let (data, to) = (folder.path().join("data"), folder.path().join("backup"));
    let (store, lyon) = central(&data, "one");
    add(&store, lyon, 1);
    save(&data, &to).unwrap();
    add(&store, lyon, 2);
    let life = store.incarnation();
    drop(store);
    // Cut off while it copied, and after it had put the old one aside.
    let staged = data.join("holdfast.db.restoring");
    let whole = fs::read(to.join("holdfast.db")).unwrap();
    for length in [whole.len() / 3, whole.len()] {
        fs::write(&staged, &whole[..length]).unwrap();
        drop(fs::hard_link(data.join("holdfast.db"), data.join("holdfast.db.before-then")));
        let store = open(&data, 50).unwrap();
        assert_eq!((nodes(&store), store.incarnation()), (2, life));
    }
    put_back(&data, &to).unwrap();
    assert_eq!(nodes(&open(&data, 60).unwrap()), 1, "done again, it is done");

    let replaced = folder.path().join("replaced");
    fs::create_dir(&replaced).unwrap();
    fs::write(replaced.join("holdfast.db.restoring"), &whole[..100]).unwrap();
    let error = open(&replaced, 70).err().expect("not an empty fleet");
    assert!(error.to_string().starts_with("a restore was broken off and left "), "{error}");
    put_back(&replaced, &to).unwrap();
    assert_eq!(nodes(&open(&replaced, 71).unwrap()), 1);
}

#[test]
fn l13_a_database_that_is_being_read_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (data, to) = (folder.path().join("data"), folder.path().join("backup"));
    let (store, lyon) = central(&data, "one");
    save(&data, &to).unwrap();
    // The program that must not run is still there, and the log has what it wrote.
    let before = store.incarnation();
    let outcome = store.read(|view| {
        assert_eq!(view.count_nodes(None)?, 0);
        add(&store, lyon, 1);
        assert_eq!(view.count_nodes(None)?, 0, "it reads what was there when it began");
        Ok(put_back(&data, &to))
    });
    assert!(matches!(outcome.unwrap(), Err(BackupError::InUse { .. })));
    assert!(files(&data).keys().all(|name| !name.contains("before") && !name.contains("restoring")));
    assert_eq!((nodes(&store), store.incarnation()), (1, before));
}
