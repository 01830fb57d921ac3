//! A machine that boots over the network: real DHCP, TFTP and HTTP packets, played firmware.
//!
//! Its DHCP packets are those that real firmware sent (`fixtures/packets`), with this machine's address in
//! them. What it does with the boot script is what iPXE and the booted system would do: fetch every file
//! and compare its digest with its name, ask for the go-ahead, report, and repeat each report under the
//! same id until it is answered.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sync::{blob::Digest, id::MacAddr};

use crate::{
    programs::Doors,
    random::Random,
    rest::{self, Answer},
};

/// Which firmware is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS with an iPXE ROM: it takes the script from the first offer.
    Bios,
    /// EDK2's own PXE stack: it asks on 4011, loads `snponly.efi` by TFTP, and iPXE asks again.
    Uefi,
}

/// One report with what it was answered.
#[derive(Clone, Debug)]
pub struct Reported {
    /// The machine's own id.
    pub id: String,
    /// Kind of report.
    pub kind: String,
    /// HTTP status.
    pub status: u16,
    /// Body of the answer.
    pub body: Value,
}

/// What a machine was told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Boot its own disk.
    LocalDisk,
    /// Wait, with what the screen shows.
    Hold(String),
    /// Boot a workflow.
    Workflow(Vec<(String, String)>),
    /// Nobody answered.
    Silence,
}

/// A machine in the branch office.
pub struct Machine {
    /// Its boot interface.
    pub mac: MacAddr,
    firmware: Firmware,
    random: Random,
    /// Everything it reported, in order; what a person would find in its memory.
    pub log: Vec<Reported>,
    /// Boot script of the last boot.
    pub script: String,
    /// What went wrong with content, in words.
    pub damaged: Vec<String>,
    /// How long it waits for an answer to DHCP and TFTP before it asks again.
    pub patience: Duration,
    /// Questions that it has asked, for those who watch it from outside; may be shared among machines.
    pub asked: Arc<AtomicU64>,
}

const IPXE_ROM: &[u8] = include_bytes!("../../fixtures/packets/seabios-ipxerom-discover.bin");
const EDK2: &[u8] = include_bytes!("../../fixtures/packets/ovmf-pxe-discover.bin");
const EDK2_4011: &[u8] = include_bytes!("../../fixtures/packets/ovmf-pxe-request-4011.bin");
const SNPONLY: &[u8] = include_bytes!("../../fixtures/packets/snponly-discover.bin");

/// PXE firmware gives up on an offer after a few seconds; the machines of a story ask again once.
const FIRMWARE_PATIENCE: Duration = Duration::from_secs(4);

impl Machine {
    /// A machine that is off.
    pub fn new(mac: MacAddr, firmware: Firmware, seed: u64) -> Self {
        Machine {
            mac,
            firmware,
            random: Random::new(seed),
            log: Vec::new(),
            script: String::new(),
            damaged: Vec::new(),
            patience: FIRMWARE_PATIENCE,
            asked: Arc::default(),
        }
    }

    /// Powers on in the office of a site, and follows the firmware up to the boot script.
    pub fn power_on(&mut self, office: impl Into<Doors>) -> Told {
        let doors = office.into();
        let url = match self.firmware {
            Firmware::Bios => self.ask(IPXE_ROM, doors.dhcp),
            Firmware::Uefi => self.boot_edk2(doors),
        };
        let Some(url) = url else { return Told::Silence };
        match self.fetch(&url) {
            Ok((200, bytes)) => {
                self.script = String::from_utf8_lossy(&bytes).into_owned();
                read_script(&self.script)
            }
            Ok((status, _)) => Told::Hold(format!("the script answers {status}")),
            Err(error) => Told::Hold(error),
        }
    }

    /// Asks for a boot file as iPXE in a ROM does, and loads nothing.
    pub fn discover(&mut self, office: impl Into<Doors>) -> Option<String> {
        self.ask(IPXE_ROM, office.into().dhcp)
    }

    fn boot_edk2(&mut self, doors: Doors) -> Option<String> {
        // The first offer names no file; the boot server on 4011 does.
        self.ask(EDK2, doors.dhcp)?;
        let file = self.ask(EDK2_4011, doors.pxe)?;
        self.asked.fetch_add(1, Ordering::SeqCst);
        let loader = tftp(doors.tftp, &file, self.patience).ok()?;
        if loader != crate::programs::loader(&file) {
            self.damaged.push(format!("{file} came as {} other bytes", loader.len()));
            return None;
        }
        self.ask(SNPONLY, doors.dhcp)
    }

    fn fetch(&self, url: &str) -> Result<(u16, Vec<u8>), String> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        rest::fetch(url)
    }

    /// Sends one DHCP packet of real firmware as this machine and returns the boot file of the answer.
    fn ask(&mut self, packet: &[u8], server: SocketAddr) -> Option<String> {
        let mut packet = packet.to_vec();
        let xid: [u8; 4] = self.random.bytes();
        packet[4..8].copy_from_slice(&xid);
        packet[28..34].copy_from_slice(&self.mac.0);
        let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
        socket.set_read_timeout(Some(self.patience)).ok()?;
        let mut buffer = [0; 2048];
        for _ in 0..2 {
            self.asked.fetch_add(1, Ordering::SeqCst);
            socket.send_to(&packet, server).ok()?;
            if let Ok((length, _)) = socket.recv_from(&mut buffer)
                && buffer[4..8] == xid
            {
                return boot_file(&buffer[..length]);
            }
        }
        None
    }

    /// Fetches every file of the workflow and compares it with its name.
    pub fn load(&mut self, told: &Told) -> bool {
        let mut urls: Vec<String> = self
            .script
            .split_whitespace()
            .filter(|word| word.contains("/blobs/"))
            .map(str::to_string)
            .collect();
        if let Told::Workflow(arguments) = told {
            let of =
                |name: &str| arguments.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            if let (Some(site), Some(image)) = (of("holdfast.site"), of("holdfast.image")) {
                urls.push(format!("{site}/blobs/{image}"));
            }
        }
        let before = self.damaged.len();
        for url in urls {
            let name = url.rsplit('/').next().unwrap_or_default().to_string();
            match self.fetch(&url) {
                Ok((200, bytes)) if Digest::of(&bytes).to_string() == name => {}
                Ok((200, bytes)) => {
                    self.damaged.push(format!("{} bytes that are not {name}", bytes.len()));
                }
                Ok((status, _)) => self.damaged.push(format!("{status} for {name}")),
                Err(error) => self.damaged.push(format!("{error} for {name}")),
            }
        }
        self.damaged.len() == before
    }

    /// Introduces itself.
    pub fn register(&mut self, told: &Told) -> Answer {
        let body = json!({
            "mac": self.mac.to_string(), "arch": "x86_64",
            "firmware": match self.firmware { Firmware::Bios => "bios", Firmware::Uefi => "uefi" },
            "serial": format!("SN-{}", self.mac.to_string().replace(':', "")), "vendor": "Harness", "model": "Played",
            "hardware": {
                "cpus": 2, "memory_bytes": 1_073_741_824_u64,
                "disks": [{ "name": "vda", "size_bytes": 67_108_864 }],
                "nics": [{ "name": "eth0", "mac": self.mac.to_string() }],
            },
        });
        self.say(told, "register", "/api/v1/nodes/register", body)
    }

    /// Reports something about the attempt under a new id.
    pub fn report(&mut self, told: &Told, kind: &str, more: &Value) -> Answer {
        let mut body = json!({
            "kind": kind, "task": argument(told, "task"),
            "attempt": argument(told, "attempt").parse::<u64>().unwrap_or(0),
        });
        if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
            body.extend(more.clone());
        }
        let path = format!("/api/v1/nodes/{}/event", argument(told, "node"));
        self.say(told, kind, &path, body)
    }

    /// Says something under a new id, and again under the same one until somebody answers. That something
    /// is wrong with the server is no answer.
    fn say(&mut self, told: &Told, kind: &str, path: &str, mut body: Value) -> Answer {
        let id = sync::id::hex(&self.random.bytes::<16>());
        body["report"] = json!(id);
        let url = format!("{}{path}", argument(told, "site"));
        let end = Instant::now() + Duration::from_secs(60);
        let answer = loop {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let answer = rest::post(&url, &argument(told, "token"), &body);
            if (1..500).contains(&answer.status) || Instant::now() > end {
                break answer;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        };
        let reported =
            Reported { id, kind: kind.to_string(), status: answer.status, body: answer.body.clone() };
        self.log.push(reported);
        answer
    }

    /// Boots and installs: everything from the go-ahead to the completion. Returns whether it got there.
    pub fn install(&mut self, told: &Told) -> bool {
        if !self.load(told) {
            return false;
        }
        self.register(told);
        let answer = self.report(told, "go_ahead", &json!({}));
        if answer.status != 200 {
            return false;
        }
        self.report(told, "install_started", &json!({}));
        for percent in [25, 50, 75] {
            self.report(told, "progress", &json!({ "percent": percent }));
        }
        self.report(told, "install_complete", &json!({})).status == 200
    }

    /// Answers that allowed the first write to the disk.
    pub fn go_aheads(&self) -> usize {
        self.log.iter().filter(|reported| reported.body["answer"] == "go").count()
    }
}

/// Value of `holdfast.NAME` on the kernel command line.
pub fn argument(told: &Told, name: &str) -> String {
    let Told::Workflow(arguments) = told else { return String::new() };
    let wanted = format!("holdfast.{name}");
    arguments.iter().find(|(key, _)| *key == wanted).map(|(_, value)| value.clone()).unwrap_or_default()
}

fn read_script(script: &str) -> Told {
    let kernel = script.lines().map(str::trim).find(|line| line.starts_with("kernel "));
    if let Some(line) = kernel {
        let arguments = line
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        return Told::Workflow(arguments);
    }
    let screen: Vec<&str> =
        script.lines().filter_map(|line| line.trim().strip_prefix("echo")).map(str::trim).collect();
    if script.lines().any(|line| line.trim().starts_with("chain") || line.trim().starts_with("sleep")) {
        Told::Hold(screen.join(" / "))
    } else {
        Told::LocalDisk
    }
}

/// The file field of a reply, or option 67.
fn boot_file(reply: &[u8]) -> Option<String> {
    let field = reply.get(108..236)?;
    let name: Vec<u8> = field.iter().copied().take_while(|byte| *byte != 0).collect();
    let mut options = reply.get(240..)?;
    let mut found = name;
    while let [code, rest @ ..] = options {
        match (*code, rest) {
            (0, _) => options = rest,
            (255, _) => break,
            (code, [length, rest @ ..]) => {
                let (value, rest) = rest.split_at_checked(usize::from(*length))?;
                if code == 67 {
                    found = value.iter().copied().take_while(|byte| *byte != 0).collect();
                }
                options = rest;
            }
            (_, []) => break,
        }
    }
    String::from_utf8(found).ok()
}

/// Fetches a file by TFTP (RFC 1350) with a block size (RFC 2348), as firmware does.
///
/// # Errors
/// In words: what the server said, or that it said nothing for as long as `patience`.
pub fn tftp(server: SocketAddr, file: &str, patience: Duration) -> Result<Vec<u8>, String> {
    let text = |error: std::io::Error| error.to_string();
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(text)?;
    socket.set_read_timeout(Some(patience)).map_err(text)?;
    let mut request = vec![0, 1];
    for word in [file, "octet", "blksize", "1468"] {
        request.extend(word.as_bytes());
        request.push(0);
    }
    socket.send_to(&request, server).map_err(text)?;
    let (mut bytes, mut expected, mut block_size) = (Vec::new(), 1_u16, 512);
    let mut buffer = [0; 2048];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).map_err(text)?;
        match &buffer[..length] {
            [0, 6, ..] => {
                block_size = 1468;
                socket.send_to(&[0, 4, 0, 0], peer).map_err(text)?;
            }
            [0, 3, high, low, data @ ..] => {
                if u16::from_be_bytes([*high, *low]) == expected {
                    bytes.extend(data);
                    expected = expected.wrapping_add(1);
                }
                socket.send_to(&[0, 4, *high, *low], peer).map_err(text)?;
                if data.len() < block_size {
                    return Ok(bytes);
                }
            }
            [0, 5, _, code, message @ ..] => {
                return Err(format!("error {code}: {}", String::from_utf8_lossy(message)));
            }
            other => return Err(format!("a packet that is no answer: {other:?}")),
        }
    }
}
