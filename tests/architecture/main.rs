//! Holds the house: what may depend on what, what may be named where, and what may be in the repository.
//!
//! Each rule is a function over plain values that returns its violations, one readable line each. It is used twice: on a
//! made-up input that breaks it, which shows that the rule can fail, and on this repository. `workspace` is the only file
//! that runs programs or reads files; `names` reads the names out of Rust source; the others are the rules:
//!
//! - `arrows`: which package may depend on which, read from the manifests;
//! - `rooms`: which folder may name which crate or function, read from the sources;
//! - `dependencies`: foreign packages, their versions and licences, and the build profiles;
//! - `repository`: the top level, words that must not be committed, the list of requirements, the two clippy.toml.
//!
//! Deliberately absent: anything the compiler or clippy already says.

mod arrows;
mod dependencies;
mod names;
mod repository;
mod rooms;
mod workspace;

/// Fails with one line per violation, and says where the rule stands.
#[track_caller]
fn assert_clean(rule: &str, violations: &[String]) {
    assert!(
        violations.is_empty(),
        "{rule}: {} violation(s)\n  {}\n",
        violations.len(),
        violations.join("\n  ")
    );
}
