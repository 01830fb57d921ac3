//! Which of our packages may depend on which, and what keeps the pure half of `sync` pure.
//!
//! Read from the manifests, all three kinds of dependencies alike: an arrow that only tests need is an arrow too.

use crate::workspace::Package;

/// Package and the ones of ours that it may depend on. `tests` may depend on anything and nothing on `tests`.
const ARROWS: &[(&str, &[&str])] = &[
    ("sync", &[]),
    ("store", &["sync"]),
    ("site-agent", &["store", "sync"]),
    ("central", &["store", "sync"]),
    ("tests", &["central", "site-agent", "store", "sync"]),
];

/// What `sync` may use only behind its feature `quic`.
const ONLY_WITH_QUIC: &[&str] = &["quinn", "rustls", "socket2", "tokio"];

/// Violations of the drawn arrows: an undrawn one, an unknown package, a missing package.
fn wrong_arrows(packages: &[Package]) -> Vec<String> {
    let mut violations = Vec::new();
    for (name, _) in ARROWS {
        if !packages.iter().any(|package| package.name == *name) {
            violations.push(format!("package {name} is missing"));
        }
    }
    for Package { name, dependencies, .. } in packages {
        let Some((_, allowed)) = ARROWS.iter().find(|(package, _)| package == name) else {
            violations.push(format!("package {name} has no place in the house"));
            continue;
        };
        for dependency in dependencies {
            let ours = ARROWS.iter().any(|(package, _)| *package == dependency.name);
            if ours && !allowed.contains(&dependency.name.as_str()) {
                violations.push(format!("{name} must not depend on {}", dependency.name));
            }
        }
    }
    violations
}

/// Violations of the rule that `sync` without `quic` has no I/O, and that `store` takes it that way.
fn impure_dependencies(packages: &[Package]) -> Vec<String> {
    let mut violations = Vec::new();
    for Package { name, dependencies, .. } in packages {
        for dependency in dependencies {
            let on = dependency.name.as_str();
            if name == "sync" && ONLY_WITH_QUIC.contains(&on) && !dependency.optional {
                violations.push(format!("sync uses {on} without its feature `quic`"));
            }
            if name == "store" && on == "sync" && dependency.features.iter().any(|it| it == "quic") {
                violations.push("store takes sync with its feature `quic`".to_owned());
            }
            if name == "store" && ["tokio", "axum", "dhcproto"].contains(&on) {
                violations.push(format!("store must not depend on {on}"));
            }
        }
    }
    violations
}

#[cfg(test)]
mod unit {
    use expect_test::{Expect, expect};

    use super::{impure_dependencies, wrong_arrows};
    use crate::{
        assert_clean,
        workspace::{self, Dependency, Package},
    };

    #[test]
    fn the_packages_depend_on_each_other_as_drawn() {
        assert_clean("arrows", &wrong_arrows(&workspace::members()));
    }

    #[test]
    fn the_pure_half_of_sync_has_no_input_or_output() {
        assert_clean("pure half", &impure_dependencies(&workspace::members()));
    }

    #[test]
    fn an_undrawn_arrow_is_found() {
        check(
            wrong_arrows,
            "sync: blake3; store: sync; site-agent: store sync central; central: site-agent tests; tests: sync",
            &expect![[r#"
                site-agent must not depend on central
                central must not depend on site-agent
                central must not depend on tests"#]],
        );
    }

    #[test]
    fn a_missing_and_an_unknown_package_are_found() {
        check(
            wrong_arrows,
            "sync:; store: sync; central: store; tests:; common: sync",
            &expect![[r#"
                package site-agent is missing
                package common has no place in the house"#]],
        );
    }

    #[test]
    fn input_and_output_in_the_pure_half_is_found() {
        check(
            impure_dependencies,
            "sync: tokio quinn? bytes?; store: sync+quic tokio rusqlite; central: tokio sync+quic",
            &expect![[r#"
                sync uses tokio without its feature `quic`
                store takes sync with its feature `quic`
                store must not depend on tokio"#]],
        );
    }

    /// `packages` is `name: dependency …; …`, where `?` marks an optional dependency and `+feature` a feature of it.
    fn check(rule: fn(&[Package]) -> Vec<String>, packages: &str, expected: &Expect) {
        let packages: Vec<Package> = packages
            .split(';')
            .filter_map(|package| package.trim().split_once(':'))
            .map(|(name, dependencies)| Package {
                name: name.to_owned(),
                version: "0.1.0".to_owned(),
                license: None,
                dependencies: dependencies.split_whitespace().map(dependency).collect(),
            })
            .collect();
        expected.assert_eq(&rule(&packages).join("\n"));
    }

    fn dependency(text: &str) -> Dependency {
        let (name, features) = text.split_once('+').unwrap_or((text, ""));
        Dependency {
            name: name.trim_end_matches('?').to_owned(),
            optional: name.ends_with('?'),
            features: features.split('+').map(str::to_owned).collect(),
        }
    }
}
