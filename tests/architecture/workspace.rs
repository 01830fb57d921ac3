//! Reads this repository: its manifests and resolved packages through cargo, its files through git.
//!
//! Every answer is asked for anew and offline, so a test sees the tree as it is. Nothing is written.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// One package as its manifest declares it.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// SPDX expression, as written by its author.
    pub(crate) license: Option<String>,
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a `[dependencies]`, `[dev-dependencies]` or `[build-dependencies]` table.
#[derive(Debug)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) optional: bool,
    pub(crate) features: Vec<String>,
}

/// A file of the repository: tracked, or not yet tracked and not ignored.
pub(crate) struct File {
    /// Relative to the root, with `/`.
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
}

/// Folder of the workspace's `Cargo.toml`.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests package lies one below the root")
        .to_owned()
}

/// The five packages of the workspace.
pub(crate) fn members() -> Vec<Package> {
    packages(&["--no-deps"])
}

/// Every package that the lock file selects for this machine's platform, ours included.
pub(crate) fn resolved() -> Vec<Package> {
    packages(&["--filter-platform", &platform()])
}

/// Name and version of every package that is compiled on this platform, with features taken into account.
///
/// Narrower than `resolved`: the lock file also lists what only a weak feature (`name?/feature`) could pull in.
pub(crate) fn built() -> Vec<(String, String)> {
    let tree =
        cargo(&["tree", "--workspace", "--edges", "normal,build,dev", "--prefix", "none", "--format", "{p}"]);
    let mut built: Vec<(String, String)> = tree
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(' ')?;
            let version = rest.split_whitespace().next()?;
            Some((name.to_owned(), version.trim_start_matches('v').to_owned()))
        })
        .collect();
    built.sort();
    built.dedup();
    built
}

/// All files that are, or with the next `git add --all` would be, part of the repository.
pub(crate) fn files() -> Vec<File> {
    let root = root();
    // A clone made by another user is still this repository: git would refuse to read it without being told.
    let listing = run(Command::new("git").current_dir(&root).args([
        "-c",
        &format!("safe.directory={}", root.display()),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]));
    listing
        .split('\0')
        .filter(|path| !path.is_empty())
        // Listed but gone: deleted, and the deletion not yet staged.
        .filter(|path| root.join(path).is_file())
        .map(|path| File {
            path: path.to_owned(),
            content: fs::read(root.join(path)).unwrap_or_else(|error| panic!("read {path}: {error}")),
        })
        .collect()
}

/// Every Rust source of the repository with its text.
pub(crate) fn sources() -> Vec<(String, String)> {
    files()
        .into_iter()
        .filter(|file| file.path.ends_with(".rs"))
        .map(|file| {
            let text =
                String::from_utf8(file.content).unwrap_or_else(|_| panic!("{} is not UTF-8", file.path));
            (file.path, text)
        })
        .collect()
}

/// Text of one file of the repository.
pub(crate) fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

fn packages(selection: &[&str]) -> Vec<Package> {
    let mut arguments = vec!["metadata", "--format-version", "1"];
    arguments.extend(selection);
    let metadata: Value = serde_json::from_str(&cargo(&arguments)).expect("cargo metadata prints JSON");
    list(&metadata["packages"])
        .iter()
        .map(|package| Package {
            name: word(&package["name"]),
            version: word(&package["version"]),
            license: package["license"].as_str().map(str::to_owned),
            dependencies: list(&package["dependencies"])
                .iter()
                .map(|dependency| Dependency {
                    name: word(&dependency["name"]),
                    optional: dependency["optional"] == Value::Bool(true),
                    features: list(&dependency["features"]).iter().map(word).collect(),
                })
                .collect(),
        })
        .collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("cargo metadata has a list here")
}

fn word(value: &Value) -> String {
    value.as_str().expect("cargo metadata has a string here").to_owned()
}

/// Target triple of this machine, such as `x86_64-unknown-linux-gnu`.
fn platform() -> String {
    let version = run(Command::new(cargo_program()).arg("-vV"));
    version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("`cargo -vV` names its host")
        .to_owned()
}

// The suite must not depend on the network: whatever it needs was fetched to build it. `cargo fetch` is the way out
// on a machine that built only a part of the workspace.
fn cargo(arguments: &[&str]) -> String {
    run(Command::new(cargo_program()).current_dir(root()).args(arguments).args(["--offline", "--locked"]))
}

/// The cargo that runs this test, so that both agree on the toolchain.
fn cargo_program() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed ({}); if a package is missing, run `cargo fetch --locked`\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}
