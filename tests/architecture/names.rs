//! Reads the names out of Rust source: which paths a file mentions, and what its tests are called.
//!
//! `tokens` drops comments, text and numbers; `mentions` follows `use` (groups, renames, `self`, globs) and writes every
//! path in full. This is a reader, not a compiler: it takes all modules of a file as one, and cannot see through a type
//! alias, `<T>::now()`, a name that a macro makes up, or which items a glob brings in (the glob itself is a mention).
//! clippy's bans see those in `sync` and `store`, where it matters most.

/// A path as it would be written without any import.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mention {
    /// Counted from 1.
    pub(crate) line: usize,
    /// Such as `std::time::Instant::now`, or `std::net::*` for a glob.
    pub(crate) path: String,
}

/// Every path that `source` mentions, in order; a single name counts only if an import stands behind it.
pub(crate) fn mentions(source: &str) -> Vec<Mention> {
    let tokens = tokens(source);
    let mut reader = Reader { tokens: &tokens, at: 0, written: Vec::new(), imports: Vec::new() };
    reader.read();
    let Reader { written, imports, .. } = reader;
    let mut mentions = Vec::new();
    for Written { line, path, import } in written {
        if import {
            // As written, so that `use tokio;` counts although it is a single name.
            mentions.push(Mention { line, path: path.clone() });
        }
        for full in in_full(&path, &imports, 8) {
            let is_new = mentions.last().is_none_or(|last| last.path != full || last.line != line);
            if full.contains("::") && is_new {
                mentions.push(Mention { line, path: full });
            }
        }
    }
    mentions
}

/// Names of all functions under `#[test]`, `#[tokio::test]` and the like.
pub(crate) fn tests(source: &str) -> Vec<String> {
    let tokens: Vec<Token> = tokens(source).into_iter().map(|(_, token)| token).collect();
    let mut tests = Vec::new();
    let mut is_test = false;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Sign('#') if tokens.get(at + 1) == Some(&Token::Sign('[')) => {
                let path = tokens[at + 2..]
                    .iter()
                    .take_while(|token| matches!(token, Token::Name(_) | Token::PathSeparator));
                is_test |= path.last() == Some(&Token::Name("test".to_owned()));
            }
            Token::Name(word) if word == "fn" => {
                if let (true, Some(Token::Name(name))) = (is_test, tokens.get(at + 1)) {
                    tests.push(name.clone());
                }
                is_test = false;
            }
            _ => {}
        }
    }
    tests
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Name(String),
    PathSeparator,
    Sign(char),
}

/// A path as it stands in the file.
struct Written {
    line: usize,
    path: String,
    import: bool,
}

struct Reader<'a> {
    tokens: &'a [(usize, Token)],
    at: usize,
    written: Vec<Written>,
    /// Local name and what it stands for, as written.
    imports: Vec<(String, String)>,
}

impl Reader<'_> {
    fn read(&mut self) {
        while let Some((line, token)) = self.tokens.get(self.at) {
            self.at += 1;
            match token {
                // `impl Trait + use<'a>` is not an import.
                Token::Name(word) if word == "use" && self.peek() != Some(&Token::Sign('<')) => {
                    self.eat(&Token::PathSeparator);
                    self.tree("");
                }
                Token::Name(word) if word == "extern" && self.eat_word("crate") => self.tree(""),
                // A field or a method: not a path.
                Token::Sign('.') if matches!(self.peek(), Some(Token::Name(_))) => self.at += 1,
                Token::Name(first) => {
                    let path = self.rest_of_path(first);
                    self.written.push(Written { line: *line, path, import: false });
                }
                Token::PathSeparator | Token::Sign(_) => {}
            }
        }
    }

    /// Reads one tree of a `use`: a name, a glob or a group, below `prefix`.
    fn tree(&mut self, prefix: &str) {
        let Some((line, token)) = self.tokens.get(self.at) else { return };
        self.at += 1;
        match token {
            Token::Name(name) => {
                let path = match (prefix, name.as_str()) {
                    ("", name) => name.to_owned(),
                    (prefix, "self") => prefix.to_owned(),
                    (prefix, name) => format!("{prefix}::{name}"),
                };
                if self.eat(&Token::PathSeparator) {
                    return self.tree(&path);
                }
                let last = path.rsplit("::").next().unwrap_or(&path).to_owned();
                let local = if self.eat_word("as") { self.word().unwrap_or(last) } else { last };
                self.imports.push((local, path.clone()));
                self.written.push(Written { line: *line, path, import: true });
            }
            Token::Sign('*') => {
                let path = format!("{prefix}::*");
                self.written.push(Written { line: *line, path, import: true });
            }
            Token::Sign('{') => {
                while self.at < self.tokens.len() && !self.eat(&Token::Sign('}')) {
                    self.tree(prefix);
                }
            }
            // The comma between two trees of a group.
            Token::Sign(_) | Token::PathSeparator => {}
        }
    }

    fn rest_of_path(&mut self, first: &str) -> String {
        let mut path = first.to_owned();
        while let [(_, Token::PathSeparator), (_, Token::Name(name)), ..] = &self.tokens[self.at..] {
            path = format!("{path}::{name}");
            self.at += 2;
        }
        path
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn eat(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn eat_word(&mut self, word: &str) -> bool {
        self.eat(&Token::Name(word.to_owned()))
    }

    fn word(&mut self) -> Option<String> {
        match self.peek() {
            Some(Token::Name(word)) => {
                let word = word.clone();
                self.at += 1;
                Some(word)
            }
            _ => None,
        }
    }
}

/// Replaces the first name of `path` by what it was imported as, again and again, at most `depth` times.
fn in_full(path: &str, imports: &[(String, String)], depth: usize) -> Vec<String> {
    let (first, rest) = path.split_at(path.find("::").unwrap_or(path.len()));
    let known: Vec<String> = imports
        .iter()
        // `use tokio::{self}` makes a name stand for itself: there is nothing more to learn.
        .filter(|(local, full)| local == first && full.split("::").next() != Some(first))
        .flat_map(|(_, full)| match depth {
            0 => Vec::new(),
            depth => in_full(&format!("{full}{rest}"), imports, depth - 1),
        })
        .collect();
    if known.is_empty() { vec![path.to_owned()] } else { known }
}

fn tokens(source: &str) -> Vec<(usize, Token)> {
    let mut scanner = Scanner { chars: source.chars().collect(), at: 0, line: 1 };
    let mut tokens = Vec::new();
    while let Some(char) = scanner.peek(0) {
        let line = scanner.line;
        if scanner.skip_comment() || scanner.skip_text() {
            continue;
        }
        if char == '_' || char.is_alphanumeric() {
            let word = scanner.word();
            if !char.is_ascii_digit() {
                tokens.push((line, Token::Name(word)));
            }
        } else if scanner.starts_with("::") {
            scanner.skip(2);
            tokens.push((line, Token::PathSeparator));
        } else {
            scanner.skip(1);
            if !char.is_whitespace() {
                tokens.push((line, Token::Sign(char)));
            }
        }
    }
    tokens
}

struct Scanner {
    chars: Vec<char>,
    at: usize,
    line: usize,
}

impl Scanner {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn starts_with(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(ahead, char)| self.peek(ahead) == Some(char))
    }

    fn skip(&mut self, count: usize) {
        let end = (self.at + count).min(self.chars.len());
        self.line += self.chars[self.at..end].iter().filter(|char| **char == '\n').count();
        self.at = end;
    }

    fn skip_until(&mut self, end: &str) {
        while self.at < self.chars.len() && !self.starts_with(end) {
            self.skip(1);
        }
        self.skip(end.chars().count());
    }

    fn word(&mut self) -> String {
        let start = self.at;
        while self.peek(0).is_some_and(|char| char == '_' || char.is_alphanumeric()) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn skip_comment(&mut self) -> bool {
        if self.starts_with("//") {
            self.skip_until("\n");
            return true;
        }
        if !self.starts_with("/*") {
            return false;
        }
        let mut depth = 0_usize;
        while self.at < self.chars.len() {
            if self.starts_with("/*") {
                depth += 1;
                self.skip(2);
            } else if self.starts_with("*/") {
                depth -= 1;
                self.skip(2);
                if depth == 0 {
                    break;
                }
            } else {
                self.skip(1);
            }
        }
        true
    }

    /// Skips a string, raw string, character or lifetime, and the `r#` of a raw name.
    fn skip_text(&mut self) -> bool {
        let prefix =
            ["br", "cr", "r", "b", "c", ""].into_iter().find(|prefix| self.starts_with(prefix)).unwrap_or("");
        let mut after = prefix.len();
        if prefix.ends_with('r') {
            let hashes = (0..).take_while(|more| self.peek(after + more) == Some('#')).count();
            after += hashes;
            if self.peek(after) == Some('"') {
                self.skip(after + 1);
                self.skip_until(&format!("\"{}", "#".repeat(hashes)));
                return true;
            }
            if prefix == "r" && hashes == 1 {
                self.skip(2);
                return true;
            }
            return false;
        }
        match (self.peek(after), prefix) {
            (Some('"'), _) => self.skip_quoted(after, '"'),
            (Some('\''), "b") => self.skip_quoted(after, '\''),
            (Some('\''), "") => match (self.peek(1), self.peek(2)) {
                (Some('\\'), _) | (_, Some('\'')) => self.skip_quoted(0, '\''),
                // A lifetime.
                _ => {
                    self.skip(1);
                    self.word();
                }
            },
            _ => return false,
        }
        true
    }

    fn skip_quoted(&mut self, before: usize, quote: char) {
        self.skip(before + 1);
        while let Some(char) = self.peek(0) {
            self.skip(if char == '\\' { 2 } else { 1 });
            if char == quote {
                break;
            }
        }
    }
}

#[cfg(test)]
mod unit {
    use expect_test::{Expect, expect};

    use super::{mentions, tests};

    fn check(source: &str, expected: &Expect) {
        let mentions: Vec<String> =
            mentions(source).iter().map(|mention| format!("{} {}", mention.line, mention.path)).collect();
        expected.assert_eq(&mentions.join("\n"));
    }

    #[test]
    fn groups_renames_self_and_globs_are_written_in_full() {
        check(
            "use std::{fs::{self, File as Handle}, net::*};\nfn f() { fs::read(p); Handle::open(p); }",
            &expect![[r#"
                1 std::fs
                1 std::fs::File
                1 std::net::*
                2 std::fs::read
                2 std::fs::File::open"#]],
        );
    }

    #[test]
    fn a_chain_of_renames_is_followed_to_its_end() {
        check(
            "use std as s;\nuse s::time as t;\nfn f() { t::Instant::now() }",
            &expect![[r#"
                1 std
                2 s::time
                2 std::time
                3 std::time::Instant::now"#]],
        );
    }

    #[test]
    fn paths_without_an_import_count_also_in_macros_and_attributes() {
        check(
            "#[tokio::test]\nfn f() { tokio::select! { _ = ::std::thread::sleep(d) => {} } }\nextern crate quinn as q;",
            &expect![[r#"
                1 tokio::test
                2 tokio::select
                2 std::thread::sleep
                3 quinn"#]],
        );
    }

    #[test]
    fn comments_text_characters_lifetimes_and_fields_do_not_count() {
        check(
            r###"//! tokio::spawn
            /* std::fs /* nested tokio::x */ std::net::y */
            fn f<'std>(a: &'std str) { let _ = ("tokio::a \" tokio::b", r#"tokio::c " tokio::d"#, b'"', '\'', '"', 1u8); }
            fn g(x: X) -> impl Fn() + use<'_> { x.tokio::<u8>(); x.fs.read; r#mod::r#type() }
            "###,
            &expect!["4 mod::type"],
        );
    }

    #[test]
    fn only_functions_under_a_test_attribute_are_tests() {
        let source = "#[test]\n#[ignore]\nfn a() {}\nfn b() {}\n#[tokio::test(flavor = \"x\")]\nasync fn c() {}\n#[cfg(test)]\nfn d() {}";
        expect![[r#"
            [
                "a",
                "c",
            ]
        "#]]
        .assert_debug_eq(&tests(source));
    }
}
