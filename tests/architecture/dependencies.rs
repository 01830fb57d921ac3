//! Foreign packages: which are never built in, which may exist only once, what their licences allow; and the profiles.

use crate::workspace::Package;

/// Package and why nothing of ours is built with it.
const BANNED: &[(&str, &str)] = &[
    ("ring", "cryptography is aws-lc-rs: with two providers rustls refuses to choose at run time"),
    ("openssl", "TLS is rustls: one program without system libraries"),
    ("openssl-sys", "TLS is rustls: one program without system libraries"),
    ("native-tls", "TLS is rustls: one program without system libraries"),
    ("chrono", "time is a given instant and a `Duration`"),
    ("autosurgeon", "documents are read and written field by field, so that unknown fields survive"),
];

/// Packages that are slow to build or that hold global state: a second version is a mistake.
const SINGLE: &[&str] = &[
    "automerge",
    "aws-lc-sys",
    "axum",
    "blake3",
    "hyper",
    "libsqlite3-sys",
    "quinn",
    "quinn-proto",
    "rusqlite",
    "rustls",
    "tokio",
];

/// SPDX identifiers that may stand in what we ship.
const LICENSES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BlueOak-1.0.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Zlib",
];

/// Package and a licence that is allowed for it alone.
const LICENSE_EXCEPTIONS: &[(&str, &str)] = &[("aws-lc-sys", "OpenSSL")];

/// Banned packages among what is built, given as (name, version).
fn banned(built: &[(String, String)]) -> Vec<String> {
    built
        .iter()
        .filter_map(|(name, version)| {
            let (_, because) = BANNED.iter().find(|(banned, _)| banned == name)?;
            Some(format!("{name} {version} is built in: {because}"))
        })
        .collect()
}

/// Packages of `SINGLE` that a lock file does not have in exactly one version.
fn not_single(lock: &str) -> Vec<String> {
    let packages: Vec<(&str, &str)> = lock
        .split("[[package]]")
        .filter_map(|package| Some((value(package, "name")?, value(package, "version")?)))
        .collect();
    SINGLE
        .iter()
        .filter_map(|single| {
            let versions: Vec<&str> =
                packages.iter().filter(|(name, _)| name == single).map(|(_, version)| *version).collect();
            match versions[..] {
                [_] => None,
                [] => Some(format!("{single} is gone: take it off the list")),
                _ => Some(format!("{single} has {} versions: {}", versions.len(), versions.join(", "))),
            }
        })
        .collect()
}

/// Packages whose licence does not let us ship them under the allowed ones.
fn unlicensed(packages: &[Package]) -> Vec<String> {
    packages
        .iter()
        .filter_map(|Package { name, version, license, .. }| {
            let Some(license) = license else {
                return Some(format!("{name} {version} names no licence"));
            };
            let is_allowed =
                |id: &str| LICENSES.contains(&id) || LICENSE_EXCEPTIONS.contains(&(name.as_str(), id));
            match Expression::parse(license) {
                Some(expression) if expression.holds(&is_allowed) => None,
                Some(_) => Some(format!("{name} {version}: licence `{license}` is not allowed")),
                None => Some(format!("{name} {version}: licence `{license}` is not an SPDX expression")),
            }
        })
        .collect()
}

/// Profiles of a manifest that would abort where `sync::ingress` must catch the panic of a foreign decoder.
fn aborting_profiles(manifest: &str) -> Vec<String> {
    let sections: Vec<(&str, &str)> = manifest
        .split("\n[")
        .filter_map(|section| section.trim_start_matches('[').split_once("]\n"))
        .filter_map(|(name, body)| Some((name.strip_prefix("profile.")?, body)))
        .collect();
    let mut violations = Vec::new();
    for (profile, body) in &sections {
        let panic = value(body, "panic");
        if panic.is_some_and(|panic| panic != "unwind") {
            violations.push(format!("profile {profile} has panic = {:?}", panic.unwrap_or_default()));
        }
    }
    for needed in ["dev", "release"] {
        let says_so = |(profile, body): &(&str, &str)| *profile == needed && value(body, "panic").is_some();
        if !sections.iter().any(says_so) {
            violations.push(format!("profile {needed} does not say panic = \"unwind\""));
        }
    }
    violations
}

/// The string in the first line `key = "string"` of a piece of TOML.
fn value<'a>(toml: &'a str, key: &str) -> Option<&'a str> {
    toml.lines().find_map(|line| {
        let (name, rest) = line.split_once('=')?;
        let text = rest.trim().strip_prefix('"')?.split('"').next()?;
        (name.trim() == key).then_some(text)
    })
}

/// An SPDX licence expression; `AND` binds more closely than `OR`.
enum Expression {
    License(String),
    All(Vec<Expression>),
    Any(Vec<Expression>),
}

impl Expression {
    /// `None` when the text is not an expression. `/` is the older way to write `OR`.
    fn parse(text: &str) -> Option<Self> {
        let text = text.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let mut words = text.split_whitespace().peekable();
        let expression = any(&mut words)?;
        words.next().is_none().then_some(expression)
    }

    fn holds(&self, is_allowed: &dyn Fn(&str) -> bool) -> bool {
        match self {
            Self::License(id) => is_allowed(id),
            Self::All(parts) => parts.iter().all(|part| part.holds(is_allowed)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(is_allowed)),
        }
    }
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>) -> Option<Expression> {
    let mut parts = vec![all(words)?];
    while words.next_if_eq(&"OR").is_some() {
        parts.push(all(words)?);
    }
    Some(Expression::Any(parts))
}

fn all(words: &mut Words<'_>) -> Option<Expression> {
    let mut parts = vec![one(words)?];
    while words.next_if_eq(&"AND").is_some() {
        parts.push(one(words)?);
    }
    Some(Expression::All(parts))
}

fn one(words: &mut Words<'_>) -> Option<Expression> {
    match words.next()? {
        "(" => {
            let inner = any(words)?;
            (words.next()? == ")").then_some(inner)
        }
        ")" | "AND" | "OR" | "WITH" => None,
        id => match words.next_if_eq(&"WITH") {
            Some(_) => Some(Expression::License(format!("{id} WITH {}", words.next()?))),
            None => Some(Expression::License(id.to_owned())),
        },
    }
}

#[cfg(test)]
mod unit {
    use expect_test::{Expect, expect};

    use super::{aborting_profiles, banned, not_single, unlicensed};
    use crate::{
        assert_clean,
        workspace::{self, Package},
    };

    #[test]
    fn nothing_banned_is_built_in() {
        let built = workspace::built();
        assert!(built.iter().any(|(name, _)| name == "tokio"), "cargo tree lists what is built: {built:?}");
        assert_clean("banned packages", &banned(&built));
    }

    #[test]
    fn heavy_packages_exist_once() {
        assert_clean("single versions", &not_single(&workspace::text("Cargo.lock")));
    }

    #[test]
    fn every_licence_lets_us_ship() {
        let resolved = workspace::resolved();
        assert!(resolved.len() > workspace::members().len(), "foreign packages are among them");
        assert_clean("licences", &unlicensed(&resolved));
    }

    #[test]
    fn every_profile_unwinds() {
        assert_clean("profiles", &aborting_profiles(&workspace::text("Cargo.toml")));
    }

    #[test]
    fn a_banned_package_is_found() {
        let built = [("serde".to_owned(), "1.0.0".to_owned()), ("ring".to_owned(), "0.17.14".to_owned())];
        expect!["ring 0.17.14 is built in: cryptography is aws-lc-rs: with two providers rustls refuses to choose at run time"]
            .assert_eq(&banned(&built).join("\n"));
    }

    #[test]
    fn a_second_and_a_missing_version_are_found() {
        let once = |name: &str| format!("[[package]]\nname = \"{name}\"\nversion = \"1.0.0\"\n\n");
        let lock: String =
            super::SINGLE.iter().filter(|name| **name != "axum").map(|name| once(name)).collect();
        let lock = lock + "[[package]]\nname = \"rustls\"\nversion = \"0.21.0\"\nsource = \"x\"\n";
        expect![[r#"
            axum is gone: take it off the list
            rustls has 2 versions: 1.0.0, 0.21.0"#]]
        .assert_eq(&not_single(&lock).join("\n"));
    }

    #[test]
    fn a_licence_that_does_not_fit_is_found() {
        check_license("good", "MIT OR (GPL-3.0-only AND Zlib)", &expect![""]);
        check_license("old", "MIT/Apache-2.0", &expect![""]);
        check_license("llvm", "Apache-2.0 WITH LLVM-exception", &expect![""]);
        check_license("aws-lc-sys", "ISC AND (Apache-2.0 OR ISC) AND OpenSSL", &expect![""]);
        check_license(
            "other",
            "ISC AND OpenSSL",
            &expect!["other 1.2.3: licence `ISC AND OpenSSL` is not allowed"],
        );
        check_license(
            "copyleft",
            "MIT AND GPL-3.0-only",
            &expect!["copyleft 1.2.3: licence `MIT AND GPL-3.0-only` is not allowed"],
        );
        check_license(
            "exception",
            "Apache-2.0 WITH Classpath-exception-2.0",
            &expect!["exception 1.2.3: licence `Apache-2.0 WITH Classpath-exception-2.0` is not allowed"],
        );
        check_license(
            "broken",
            "MIT OR",
            &expect!["broken 1.2.3: licence `MIT OR` is not an SPDX expression"],
        );
        check_license("silent", "", &expect!["silent 1.2.3 names no licence"]);
    }

    #[test]
    fn a_profile_that_aborts_or_is_silent_is_found() {
        let manifest = "[workspace]\n\n[profile.dev]\nopt-level = 1\n\n[profile.release]\npanic = \"abort\"\n\n[profile.lab]\npanic = \"unwind\"\n";
        expect![[r#"
            profile release has panic = "abort"
            profile dev does not say panic = "unwind""#]]
        .assert_eq(&aborting_profiles(manifest).join("\n"));
    }

    fn check_license(name: &str, license: &str, expected: &Expect) {
        let package = Package {
            name: name.to_owned(),
            version: "1.2.3".to_owned(),
            license: Some(license.to_owned()).filter(|license| !license.is_empty()),
            dependencies: Vec::new(),
        };
        expected.assert_eq(&unlicensed(&[package]).join("\n"));
    }
}
