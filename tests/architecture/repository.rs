//! The repository as a whole: its top level, words that must not be in it, and two lists that must agree with the code.

use std::collections::BTreeSet;

use crate::{names, workspace::File};

/// What lies at the top, beside dotfiles.
const TOP_LEVEL: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "central",
    "docs",
    "fixtures",
    "site-agent",
    "store",
    "sync",
    "tests",
];

/// Words that tie a file to one machine or one mirror, and why. Split, so that this file does not contain them.
const FOREIGN_WORDS: &[(&str, &str)] = &[
    (concat!("/wo", "rk/"), "an absolute path exists on one machine only"),
    (concat!("crates", ".io"), "cargo decides where packages come from"),
    (concat!("pypi", ".org"), "nothing here is installed from there"),
    (concat!("deb.debian", ".org"), "apt decides where packages come from"),
    (concat!("registry.npmjs", ".org"), "nothing here is installed from there"),
];

/// Entries too many and entries missing at the top level.
fn top_level(paths: &[&str]) -> Vec<String> {
    let entries: BTreeSet<&str> = paths.iter().filter_map(|path| path.split('/').next()).collect();
    let unknown = entries
        .iter()
        .filter(|entry| !entry.starts_with('.') && !TOP_LEVEL.contains(entry))
        .map(|entry| format!("{entry} has no place at the top level"));
    let missing = TOP_LEVEL
        .iter()
        .filter(|entry| !entries.contains(*entry))
        .map(|entry| format!("{entry} is missing at the top level"));
    unknown.chain(missing).collect()
}

/// Foreign words in one file, text or not.
fn foreign_words(File { path, content }: &File) -> Vec<String> {
    let mut violations = Vec::new();
    for (at, line) in content.split(|byte| *byte == b'\n').enumerate() {
        for (word, because) in FOREIGN_WORDS {
            // The `source` lines of lock files are cargo's own.
            if contains(line, word) && !(path.ends_with("Cargo.lock") && line.starts_with(b"source = ")) {
                violations.push(format!("{path}:{}: `{word}`: {because}", at + 1));
            }
        }
    }
    violations
}

/// Whether `word` occurs, and an absolute path not as the middle of a longer one.
fn contains(line: &[u8], word: &str) -> bool {
    line.windows(word.len()).enumerate().any(|(at, window)| {
        let before = at.checked_sub(1).map(|before| line[before]);
        let continues_a_path =
            before.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        window == word.as_bytes() && !(word.starts_with('/') && continues_a_path)
    })
}

/// Requirement ids that test names claim but `requirements` (lines `ID<TAB>title`) does not list, and malformed lines.
fn unknown_requirements(requirements: &str, tests: &[String]) -> Vec<String> {
    let mut violations = Vec::new();
    let mut known = BTreeSet::new();
    for line in requirements.lines() {
        match line.split_once('\t') {
            Some((id, title)) if is_id(&id.to_lowercase()) && !title.trim().is_empty() => {
                if !known.insert(id.to_lowercase()) {
                    violations.push(format!("{id} is listed twice"));
                }
            }
            _ => violations.push(format!("`{line}` is not `ID<TAB>title`")),
        }
    }
    let letters: BTreeSet<char> = known.iter().filter_map(|id| id.chars().next()).collect();
    for test in tests {
        // Other words look alike (`e2e_…`, `x86_…`): only the letters of the list count.
        let ids = test.split('_').take_while(|word| is_id(word));
        for id in ids.filter(|id| id.starts_with(|letter| letters.contains(&letter))) {
            if !known.contains(id) {
                violations.push(format!("test {test} names requirement {id}, which is not listed"));
            }
        }
    }
    violations
}

fn is_id(word: &str) -> bool {
    let mut chars = word.chars();
    let letter = chars.next().is_some_and(|char| char.is_ascii_lowercase());
    letter && !chars.as_str().is_empty() && chars.all(|char| char.is_ascii_digit())
}

/// Paths that one of the two clippy.toml bans and the other does not; clippy reads only the nearest one.
fn different_bans(sync: &str, store: &str) -> Vec<String> {
    let (sync, store) = (banned_paths(sync), banned_paths(store));
    let mut violations = Vec::new();
    if sync.is_empty() {
        violations.push("sync/clippy.toml bans nothing".to_owned());
    }
    // The store has no runtime at all, which the arrows see to.
    for path in sync.difference(&store).filter(|path| !path.starts_with("tokio::")) {
        violations.push(format!("store/clippy.toml does not ban {path}"));
    }
    for path in store.difference(&sync) {
        violations.push(format!("sync/clippy.toml does not ban {path}"));
    }
    violations
}

fn banned_paths(clippy: &str) -> BTreeSet<&str> {
    clippy.lines().filter_map(|line| line.trim().strip_prefix("{ path = \"")?.split('"').next()).collect()
}

/// Names of all tests in the given sources.
fn test_names(sources: &[(String, String)]) -> Vec<String> {
    sources.iter().flat_map(|(_, source)| names::tests(source)).collect()
}

#[cfg(test)]
mod unit {
    use expect_test::{Expect, expect};

    use super::{
        FOREIGN_WORDS, TOP_LEVEL, different_bans, foreign_words, test_names, top_level, unknown_requirements,
    };
    use crate::{
        assert_clean,
        workspace::{self, File},
    };

    #[test]
    fn the_top_level_is_the_house() {
        let files = workspace::files();
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_clean("top level", &top_level(&paths));
    }

    #[test]
    fn no_file_names_a_machine_or_a_mirror() {
        let violations: Vec<String> = workspace::files().iter().flat_map(foreign_words).collect();
        assert_clean("foreign words", &violations);
    }

    #[test]
    fn every_requirement_that_a_test_names_is_listed() {
        let tests = test_names(&workspace::sources());
        assert!(tests.len() > 20, "the sources have tests, this one among them: {tests:?}");
        let violations = unknown_requirements(&workspace::text("tests/requirements.txt"), &tests);
        assert_clean("requirements", &violations);
    }

    #[test]
    fn both_clippy_files_ban_the_same() {
        let [sync, store] = ["sync/clippy.toml", "store/clippy.toml"].map(workspace::text);
        assert_clean("clippy.toml", &different_bans(&sync, &store));
    }

    #[test]
    fn an_unknown_and_a_missing_entry_are_found() {
        let mut paths: Vec<&str> = TOP_LEVEL.iter().copied().filter(|entry| *entry != "LICENSE").collect();
        paths.extend(["scripts/run", ".gitignore", "sync/src/lib.rs"]);
        expect![[r#"
            scripts has no place at the top level
            LICENSE is missing at the top level"#]]
        .assert_eq(&top_level(&paths).join("\n"));
    }

    #[test]
    fn foreign_words_are_found_in_any_file() {
        let [path, host] = [FOREIGN_WORDS[0].0, FOREIGN_WORDS[1].0];
        check_words("docs/a.md", &format!("fine\nsee {path}x"), &["docs/a.md:2"]);
        check_words("fixtures/a.pcap", &format!("\0\u{1}{host}"), &["fixtures/a.pcap:1"]);
        check_words("docs/a.md", &format!("target{path}x is relative"), &[]);
        check_words("Cargo.lock", &format!("source = \"{host}\"\nname = \"{host}\""), &["Cargo.lock:2"]);
        for (word, _) in FOREIGN_WORDS {
            check_words("README.md", word, &["README.md:1"]);
        }
    }

    #[test]
    fn unlisted_requirements_are_found() {
        check_requirements(
            "P1\tgroups\nP4\tboot\nH3\tno wipe\n",
            "p4_offers p4_h3_both plain x86_firmware e2e_run p44_unlisted p1_h9_second_unlisted sha256_known",
            &expect![[r#"
                test p44_unlisted names requirement p44, which is not listed
                test p1_h9_second_unlisted names requirement h9, which is not listed"#]],
        );
        check_requirements(
            "P1\tgroups\nP1\tagain\nP2 no tab\nseven\tx\n",
            "",
            &expect![[r#"
                P1 is listed twice
                `P2 no tab` is not `ID<TAB>title`
                `seven	x` is not `ID<TAB>title`"#]],
        );
    }

    #[test]
    fn a_ban_in_one_clippy_file_only_is_found() {
        let line = |path: &str| format!("    {{ path = \"{path}\", reason = \"x\" }},\n");
        let sync = line("std::fs::read") + &line("std::fs::write") + &line("tokio::time::sleep");
        let store = line("std::fs::read") + &line("std::fs::copy");
        expect![[r#"
            store/clippy.toml does not ban std::fs::write
            sync/clippy.toml does not ban std::fs::copy"#]]
        .assert_eq(&different_bans(&sync, &store).join("\n"));
        expect!["sync/clippy.toml bans nothing"].assert_eq(&different_bans("", "").join("\n"));
    }

    fn check_words(path: &str, content: &str, expected: &[&str]) {
        let file = File { path: path.to_owned(), content: content.as_bytes().to_vec() };
        let found = foreign_words(&file);
        let places: Vec<String> = found
            .iter()
            .map(|violation| violation.split(": ").next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(places, expected, "{found:?}");
    }

    fn check_requirements(requirements: &str, tests: &str, expected: &Expect) {
        let tests: Vec<String> = tests.split_whitespace().map(str::to_owned).collect();
        expected.assert_eq(&unknown_requirements(requirements, &tests).join("\n"));
    }
}
