//! What programs say, with everything masked that differs from run to run.

/// Puts names in place of the given values, then `<id>` and `<digest>` in place of 32 and 64 hexadecimal
/// digits, and `<time>` in place of instants.
pub(crate) fn masked(text: &str, names: &[(&str, &str)]) -> String {
    let mut text = text.trim_end().to_string();
    for (value, name) in names {
        text = text.replace(value, name);
    }
    without_digits(&without_times(&text))
}

fn without_times(text: &str) -> String {
    // 2026-11-20T12:00:00.000Z
    const SHAPE: &[u8] = b"dddd-dd-ddTdd:dd:dd.dddZ";
    let fits = |at: &str| {
        let bytes = at.as_bytes();
        bytes.len() >= SHAPE.len()
            && SHAPE.iter().zip(bytes).all(|(shape, byte)| match shape {
                b'd' => byte.is_ascii_digit(),
                other => other == byte,
            })
    };
    let (mut rest, mut masked) = (text, String::new());
    while let Some(first) = rest.chars().next() {
        if fits(rest) {
            masked.push_str("<time>");
            rest = &rest[SHAPE.len()..];
        } else {
            masked.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    masked
}

fn without_digits(text: &str) -> String {
    let (mut masked, mut word) = (String::new(), String::new());
    // One character more ends the last word.
    for character in text.chars().chain(['\n']) {
        if character.is_ascii_alphanumeric() {
            word.push(character);
            continue;
        }
        let is_hex = word.bytes().all(|byte| byte.is_ascii_hexdigit());
        match (is_hex, word.len(), character) {
            (true, 64, _) => masked.push_str("<digest>"),
            (true, 32, _) => masked.push_str("<id>"),
            // The first digits of a digest, as the status shows them.
            (true, 12, '…') => masked.push_str("<digest>"),
            _ => masked.push_str(&word),
        }
        word.clear();
        masked.push(character);
    }
    masked.pop();
    masked
}

#[test]
fn what_differs_from_run_to_run_is_masked_and_nothing_else() {
    let text = format!(
        "{} {}… at 2026-11-20T12:00:00.000Z é 127.0.0.1:1 of {}\n",
        "ab".repeat(32),
        "0".repeat(12),
        "c".repeat(32)
    );
    assert_eq!(
        masked(&text, &[("127.0.0.1:1", "<central>")]),
        "<digest> <digest>… at <time> é <central> of <id>"
    );
    assert_eq!(masked("4128768 of 8388608 bytes, 2026-11-20", &[]), "4128768 of 8388608 bytes, 2026-11-20");
}
