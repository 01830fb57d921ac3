//! The boot answer: one flat list of rules, the first that fits wins, the default is the local disk.
//!
//! [`decide`] walks the rows of the *Boot answer* table; `fixtures/policies/boot_answers.txt` has them once
//! more by hand. DHCP and the script ask the same function, so that a firmware is not offered a loader for an
//! answer that its script then takes back: [`offer`] turns the decision into what DHCP says.
//!
//! A machine that belongs to another site is claimed and told so; until that is decided it is given what the
//! setting `pending_boot` says. Deliberately absent: an environment in memory that takes its inventory meanwhile. Where
//! the setting asks for it, the hold page stands in its place.

use std::fmt;

use sync::{
    document::site::UnknownMachines,
    id::TaskId,
    policy::{
        Action, ClaimState, Liveness, NodeState, PendingBoot, Reason, TaskState, Verdict, Wanted, autonomy,
        migration, order::MAX_ATTEMPT_BOOTS,
    },
};

use super::{
    loader::{self, BootServer},
    request::{self, BootFile, ClientClass, Request},
    script,
    view::{Adoption, BootFiles, Claim, Files, Home, Machine, Task, View},
};

/// What a machine is told, why, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The answer.
    pub answer: Answer,
    /// Why, for people. The same as long as the same holds, so that repeated answers can be counted.
    pub reason: Reason,
    /// What is to be noted.
    pub record: Record,
}

/// What a machine is told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Boot your own disk.
    LocalDisk,
    /// Boot these files for this attempt.
    Workflow {
        /// The task.
        task: TaskId,
        /// The attempt.
        attempt: u64,
        /// What is booted.
        files: BootFiles,
    },
    /// Show the reason, ask again, and boot your own disk when nothing has changed after some tries.
    Hold {
        /// Bytes here and in all, where content is what is waited for.
        progress: Option<(u64, u64)>,
    },
    /// Show the reason and ask again for ever: this site does not boot the machine.
    Refuse,
    /// Nothing at all.
    Silent,
}

/// What follows from an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The machine becomes a node of this site, or central is asked to make it one.
    pub adopt: bool,
    /// The script of this task was given, and the task stands before that step.
    pub booting: Option<TaskId>,
    /// How often this was answered limits how often it will be.
    pub counted: bool,
    /// The machine was sent to its own disk.
    pub local_disk: bool,
    /// The machine is at home elsewhere, and this site claims it.
    pub claims: bool,
    /// This attempt was booted as often as it may be and has failed.
    pub exhausted: Option<(TaskId, u64)>,
}

impl Record {
    /// Whether the answer rests on a change that has to be on disk before it leaves.
    pub fn is_durable(&self) -> bool {
        self.adopt || self.booting.is_some() || self.counted || self.claims || self.exhausted.is_some()
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Answer::LocalDisk => "local disk",
            Answer::Workflow { .. } => "workflow",
            Answer::Hold { .. } => "hold page",
            Answer::Refuse => "refusal",
            Answer::Silent => "silence",
        })
    }
}

/// Decides what a machine is told. The first row that fits is the answer.
pub fn decide(view: &View) -> Decision {
    if !view.site.pxe_enabled {
        return silent("boot services are switched off for this site");
    }
    let Some(machine) = &view.machine else { return unknown(view) };
    match machine.wanted {
        Wanted::Retired | Wanted::Ignored => {
            return local_disk(format!("the machine is wanted `{}`", machine.wanted));
        }
        Wanted::Keep | Wanted::Reprovision | Wanted::Deprovision => {}
    }
    if let Some(task) = &machine.task
        && task.order == Liveness::UnderWay
    {
        return under_way(view, task);
    }
    if let Home::Elsewhere(site, claim) = &machine.home {
        return visitor(view, site, claim);
    }
    match &machine.task {
        Some(task) => by_order(task),
        None => without_task(machine),
    }
}

/// Turns a decision into what DHCP says. A firmware that has no loader here is left to itself.
pub fn offer(decision: &Decision, request: &Request, server: BootServer) -> request::Answer {
    match &decision.answer {
        Answer::Silent => return request::Answer::Silent(decision.reason.to_string()),
        // UEFI's HTTP boot waits 63 s where nobody answers, but goes on at once after a 404.
        Answer::LocalDisk if request.class == ClientClass::HttpClient && !request.ipxe => {
            let file = server.loader_url(loader::NO_LOADER);
            return request::Answer::BootFile(BootFile { next_server: server.address, file });
        }
        Answer::LocalDisk | Answer::Workflow { .. } | Answer::Hold { .. } | Answer::Refuse => {}
    }
    match loader::choose(request, server) {
        Ok(file) => request::Answer::BootFile(file),
        Err(reason) => request::Answer::Silent(reason.to_string()),
    }
}

fn unknown(view: &View) -> Decision {
    match view.site.unknown_machines {
        UnknownMachines::Ignore => silent("the machine is unknown, and this site ignores unknown machines"),
        UnknownMachines::Hold => {
            hold("the machine is unknown here; register it at central or let this site adopt")
        }
        UnknownMachines::Adopt => match autonomy::permits(view.site.autonomy, Action::Adopt) {
            Verdict::Allow => Decision {
                record: Record { adopt: true, ..Record::default() },
                ..hold("the machine was unknown and is adopted by this site")
            },
            Verdict::Queue(reason) => match &view.adoption {
                Some(Adoption::Refused(why)) => {
                    hold(format!("the machine is unknown here, and central does not adopt it: {why}"))
                }
                asked @ (Some(Adoption::Asked) | None) => Decision {
                    // Once is enough.
                    record: Record { adopt: asked.is_none(), ..Record::default() },
                    ..hold(format!("the machine is unknown here, and central is asked to adopt it: {reason}"))
                },
            },
            Verdict::Refuse(reason) => hold(format!("the machine is unknown here, and {reason}")),
        },
    }
}

/// A machine that is at home elsewhere.
fn visitor(view: &View, home: &str, claim: &Claim) -> Decision {
    let Claim { id, state } = claim;
    let home = format!("this machine is at home at site {home}");
    let reason = match state {
        ClaimState::Open => format!("{home}; claim {id} asks to move it here and waits for a decision"),
        ClaimState::Approved => {
            format!("{home}; claim {id} to move it here is approved, and this site hears of it soon")
        }
        ClaimState::Rejected => {
            format!("{home} and claim {id} to move it here was rejected: return it to its home site")
        }
        ClaimState::Expired => format!("{home}; claim {id} to move it here was not decided in time"),
        ClaimState::Withdrawn => format!("{home}; claim {id} to move it here was withdrawn"),
    };
    let decision = match migration::pending_boot(view.site.pending_boot, view.site.autonomy) {
        // Who may not stay is not given its disk as if it might.
        PendingBoot::Normal if *state != ClaimState::Rejected => local_disk(reason),
        PendingBoot::Normal | PendingBoot::Minimal => hold(reason),
        PendingBoot::Refuse => Decision { answer: Answer::Refuse, ..hold(reason) },
    };
    Decision { record: Record { claims: true, ..decision.record }, ..decision }
}

/// The order was consumed: the same attempt again, because half a system is worse than a whole one.
fn under_way(view: &View, task: &Task) -> Decision {
    let reason = format!("attempt {} of task {} is under way and goes on", task.attempt, task.id);
    let served = match &view.before {
        Some(before) if before.reason == reason => before.count,
        Some(_) | None => 0,
    };
    // Boots that reached the go-ahead again are counted there; a machine that never gets so far, here.
    if served >= MAX_ATTEMPT_BOOTS || task.boots >= MAX_ATTEMPT_BOOTS {
        let reason = format!("the attempt was booted {MAX_ATTEMPT_BOOTS} times and did not end");
        let record = Record { exhausted: Some((task.id, task.attempt)), ..Record::default() };
        return Decision { record, ..hold(reason) };
    }
    let again = workflow(task, reason, false);
    let counted = matches!(again.answer, Answer::Workflow { .. });
    Decision { record: Record { counted, ..again.record }, ..again }
}

fn by_order(task: &Task) -> Decision {
    match &task.order {
        Liveness::Live => {
            let reason = format!("attempt {} of task {} is ordered", task.attempt, task.id);
            // A task that is already under this step is served again without another entry.
            let is_new = matches!(task.state, TaskState::Ready | TaskState::Approved);
            workflow(task, reason, is_new)
        }
        Liveness::AwaitsApproval => {
            let reason = format!("attempt {} of task {} waits for approval", task.attempt, task.id);
            workflow(task, reason, task.state == TaskState::Ready)
        }
        Liveness::Held(reason) => hold(format!("the order is held: {reason}")),
        Liveness::Stale(reason) => hold(format!("the order is stale: {reason}")),
        // Asked without a report, so nobody consumed it by this very question; `UnderWay` went before.
        Liveness::Consumed | Liveness::UnderWay => hold("the order was used"),
    }
}

fn workflow(task: &Task, reason: String, is_new: bool) -> Decision {
    match &task.files {
        Files::Here(files) => match script::check_kernel_args(&files.kernel_args) {
            Ok(()) => Decision {
                answer: Answer::Workflow { task: task.id, attempt: task.attempt, files: files.clone() },
                reason: Reason::new(reason),
                record: Record { booting: is_new.then_some(task.id), ..Record::default() },
            },
            Err(why) => hold(format!("the kernel arguments of the workflow cannot be used: {why}")),
        },
        Files::Missing { have, of } => Decision {
            answer: Answer::Hold { progress: Some((*have, *of)) },
            ..hold("the boot files are not all here yet")
        },
        Files::Unknown => hold("this site has not heard of the workflow yet"),
    }
}

fn without_task(machine: &Machine) -> Decision {
    match machine.state {
        NodeState::InstallFailed => {
            let error = machine.error.as_deref().unwrap_or("no reason was reported");
            hold(format!("the last installation failed: {error}"))
        }
        NodeState::Discovered | NodeState::Installing | NodeState::Installed | NodeState::Active => {
            local_disk("nothing is ordered for this machine".into())
        }
    }
}

fn local_disk(reason: String) -> Decision {
    let record = Record { local_disk: true, ..Record::default() };
    Decision { answer: Answer::LocalDisk, reason: Reason::new(reason), record }
}

fn hold(reason: impl Into<String>) -> Decision {
    Decision {
        answer: Answer::Hold { progress: None },
        reason: Reason::new(reason),
        record: Record::default(),
    }
}

fn silent(reason: &str) -> Decision {
    Decision { answer: Answer::Silent, reason: Reason::new(reason), record: Record::default() }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use expect_test::expect;
    use sync::{
        blob::Digest,
        id::{ClaimId, MacAddr, NodeId, SiteId},
        policy::{Autonomy, LinkState},
        time::Timestamp,
    };

    use super::*;
    use crate::boot::{
        request::{ClientArch, Step},
        view::{Before, Site},
    };

    const TASK: TaskId = TaskId([7; 16]);
    const CLAIM: ClaimId = ClaimId([9; 16]);
    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0x31]);

    /// Makes a view of words like those in the fixture.
    pub(in crate::boot) fn view(known: &str) -> View {
        let mut machine = Machine {
            node: NodeId::of(MAC),
            home: Home::Here,
            state: NodeState::Active,
            wanted: Wanted::Keep,
            error: Some("disk not found".into()),
            task: None,
        };
        let mut view = View {
            mac: MAC,
            site: Site {
                id: SiteId([1; 16]),
                name: "lyon".into(),
                autonomy: Autonomy::Limited,
                unknown_machines: UnknownMachines::Hold,
                pxe_enabled: true,
                pending_boot: PendingBoot::Minimal,
                link: LinkState::Offline,
                data_as_of: Some(Timestamp(1_795_176_000_000)),
            },
            machine: None,
            adoption: None,
            before: None,
        };
        let mut is_known = true;
        for word in known.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let task = machine.task.get_or_insert(Task {
                id: TASK,
                attempt: 1,
                state: TaskState::Pending,
                order: Liveness::Live,
                boots: 0,
                files: Files::Unknown,
            });
            match key {
                "unknown" => is_known = false,
                "adoption" => {
                    view.adoption = Some(match value {
                        "asked" => Adoption::Asked,
                        _ => Adoption::Refused("not one of ours".into()),
                    })
                }
                "pxe" => view.site.pxe_enabled = value == "on",
                "autonomy" => view.site.autonomy = value.parse().unwrap(),
                "unknown_machines" => view.site.unknown_machines = value.parse().unwrap(),
                "home" => {
                    machine.home = match value {
                        "here" => Home::Here,
                        "nowhere" => Home::Nowhere,
                        _ => Home::Elsewhere("paris".into(), Claim { id: CLAIM, state: ClaimState::Open }),
                    }
                }
                "claim" => {
                    let state = value.parse().unwrap();
                    machine.home = Home::Elsewhere("paris".into(), Claim { id: CLAIM, state });
                }
                "pending_boot" => view.site.pending_boot = value.parse().unwrap(),
                "state" => machine.state = value.parse().unwrap(),
                "wanted" => machine.wanted = value.parse().unwrap(),
                "task" => task.state = value.parse().unwrap(),
                "boots" => task.boots = value.parse().unwrap(),
                "served" => {
                    view.before = Some(Before {
                        answer: "workflow".into(),
                        reason: format!("attempt 1 of task {TASK} is under way and goes on"),
                        count: value.parse().unwrap(),
                    })
                }
                "order" => {
                    task.order = match value {
                        "live" => Liveness::Live,
                        "under_way" => Liveness::UnderWay,
                        "unapproved" => Liveness::AwaitsApproval,
                        "held" => Liveness::Held(Reason::new("central and site disagree about wanted")),
                        "stale" => Liveness::Stale(Reason::new("the order has ended")),
                        other => panic!("no order is {other}"),
                    }
                }
                "files" => {
                    task.files = match value {
                        "here" => Files::Here(files("console=ttyS0")),
                        "bad_args" => Files::Here(files("a=${b}")),
                        "missing" => Files::Missing { have: 3, of: 10 },
                        "unknown" => Files::Unknown,
                        other => panic!("no files are {other}"),
                    }
                }
                other => panic!("nothing is called {other}"),
            }
        }
        if !known.contains("task=") {
            machine.task = None;
        }
        view.machine = is_known.then_some(machine);
        view
    }

    fn files(kernel_args: &str) -> BootFiles {
        BootFiles {
            kernel: Digest([0xaa; 32]),
            initrd: Digest([0xbb; 32]),
            image: Some(Digest([0xcc; 32])),
            kernel_args: kernel_args.into(),
        }
    }

    fn written(decision: &Decision) -> String {
        let mut text = decision.answer.to_string();
        if let Answer::Hold { progress: Some((have, of)) } = decision.answer {
            text += &format!(", {have} of {of} bytes");
        }
        let Record { adopt, booting, counted, local_disk, claims, exhausted } = &decision.record;
        if *adopt {
            text += ", adopt";
        }
        if *booting == Some(TASK) {
            text += ", booting";
        }
        if *counted {
            text += ", counted";
        }
        if *local_disk {
            text += ", sent to disk";
        }
        if *claims {
            text += ", claim";
        }
        if let Some((_, attempt)) = exhausted {
            text += &format!(", fail attempt {attempt}");
        }
        text
    }

    #[test]
    fn p5_every_row_of_the_boot_answer_table_holds() {
        let text = include_str!("../../../fixtures/policies/boot_answers.txt");
        let rows = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).skip(1);
        let mut count = 0;
        for row in rows {
            let cells: Vec<&str> = row.split(" | ").map(str::trim).collect();
            let [known, answer, reason] = cells[..] else { panic!("three cells: {row}") };
            let decision = decide(&view(known));
            assert_eq!(written(&decision), answer, "{known}");
            let told =
                decision.reason.as_str().replace(&TASK.to_string(), "T").replace(&CLAIM.to_string(), "C");
            assert_eq!(told, reason, "{known}");
            count += 1;
        }
        assert!(count > 40, "{count} rows were read");
    }

    #[test]
    fn h3_an_answer_that_installs_rests_on_a_live_or_a_used_order_and_nothing_else() {
        for state in NodeState::ALL {
            for wanted in Wanted::ALL {
                for order in ["held", "stale", "none"] {
                    let task = if order == "none" { "" } else { "task=ready files=here" };
                    let order = if order == "none" { String::new() } else { format!("order={order}") };
                    let known = format!("state={state} wanted={wanted} {task} {order}");
                    let decision = decide(&view(&known));
                    assert!(!matches!(decision.answer, Answer::Workflow { .. }), "{known}");
                }
            }
        }
    }

    #[test]
    fn t4_dhcp_says_what_the_decision_means_for_the_firmware_that_asks() {
        let server = BootServer { address: Ipv4Addr::new(10, 78, 0, 2), http_port: 8080 };
        let mut text = String::new();
        for known in
            ["task=ready order=live files=here", "state=active", "unknown", "unknown unknown_machines=ignore"]
        {
            let decision = decide(&view(known));
            text += &format!("{} ({known})\n", decision.answer);
            for (class, number, ipxe) in [
                (ClientClass::PxeClient, 0, false),
                (ClientClass::PxeClient, 7, false),
                (ClientClass::HttpClient, 16, false),
                (ClientClass::PxeClient, 7, true),
                (ClientClass::PxeClient, 11, false),
            ] {
                let arch = ClientArch::from_number(number);
                let request = Request {
                    mac: MAC,
                    step: Step::Discover,
                    class,
                    arch,
                    ipxe,
                    user_class: None,
                    system_uuid: None,
                    address: None,
                    relay: None,
                };
                let said = match offer(&decision, &request, server) {
                    request::Answer::BootFile(file) => file.to_string(),
                    request::Answer::Silent(reason) => format!("nothing: {reason}"),
                };
                let ipxe = if ipxe { " iPXE" } else { "" };
                text += &format!("  {class} {arch}{ipxe}: {said}\n");
            }
        }
        expect![[r#"
            workflow (task=ready order=live files=here)
              PXEClient x86 BIOS: undionly.kpxe from 10.78.0.2
              PXEClient x64 UEFI: snponly.efi from 10.78.0.2
              HTTPClient x64 UEFI HTTP: http://10.78.0.2:8080/loaders/snponly.efi
              PXEClient x64 UEFI iPXE: http://10.78.0.2:8080/boot/52:54:00:00:00:31
              PXEClient arm64 UEFI: nothing: no loader for arm64 UEFI (option 93 = 11)
            local disk (state=active)
              PXEClient x86 BIOS: undionly.kpxe from 10.78.0.2
              PXEClient x64 UEFI: snponly.efi from 10.78.0.2
              HTTPClient x64 UEFI HTTP: http://10.78.0.2:8080/loaders/none.efi
              PXEClient x64 UEFI iPXE: http://10.78.0.2:8080/boot/52:54:00:00:00:31
              PXEClient arm64 UEFI: nothing: no loader for arm64 UEFI (option 93 = 11)
            hold page (unknown)
              PXEClient x86 BIOS: undionly.kpxe from 10.78.0.2
              PXEClient x64 UEFI: snponly.efi from 10.78.0.2
              HTTPClient x64 UEFI HTTP: http://10.78.0.2:8080/loaders/snponly.efi
              PXEClient x64 UEFI iPXE: http://10.78.0.2:8080/boot/52:54:00:00:00:31
              PXEClient arm64 UEFI: nothing: no loader for arm64 UEFI (option 93 = 11)
            silence (unknown unknown_machines=ignore)
              PXEClient x86 BIOS: nothing: the machine is unknown, and this site ignores unknown machines
              PXEClient x64 UEFI: nothing: the machine is unknown, and this site ignores unknown machines
              HTTPClient x64 UEFI HTTP: nothing: the machine is unknown, and this site ignores unknown machines
              PXEClient x64 UEFI iPXE: nothing: the machine is unknown, and this site ignores unknown machines
              PXEClient arm64 UEFI: nothing: the machine is unknown, and this site ignores unknown machines
        "#]].assert_eq(&text);
    }
}
