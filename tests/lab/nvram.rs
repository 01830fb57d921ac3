//! A UEFI machine's boot order, changed from outside as a person does in the firmware's setup.
//!
//! OVMF tries HTTP boot over IPv4 and IPv6 after PXE and before the disk, and waits 63 s for each: an installed
//! machine that is sent to its own disk would spend two minutes on the way. Here the variables file is read
//! and its boot order rewritten in place. Layout: `MdeModulePkg/Include/Guid/VariableFormat.h` of edk2 (the
//! authenticated variant) and, for load options, UEFI 2.10 §3.1.3. Deliberately absent: adding variables.

use std::ops::Range;

/// The firmware volume's header and the store's, before the first variable.
const FIRST: usize = 0x48 + 28;
const HEADER: usize = 60;
const START: [u8; 2] = [0xaa, 0x55];
/// State of a variable that was written completely and not replaced since.
const LIVE: u8 = 0x3f;
/// Attributes and length of the device path, before a load option's description.
const DESCRIPTION: usize = 6;

/// Moves the entries for HTTP boot behind all others; these keep their order. Returns whether there was an order
/// to change: the firmware makes it when it first starts.
pub(crate) fn put_http_boot_last(variables: &mut [u8]) -> bool {
    let all = live(variables);
    let Some((_, order)) = all.iter().find(|(name, _)| name == "BootOrder") else {
        return false;
    };
    let entries: Vec<[u8; 2]> =
        variables[order.clone()].chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect();
    let is_http = |entry: &[u8; 2]| {
        let wanted = format!("Boot{:04X}", u16::from_le_bytes(*entry));
        let option = all.iter().find(|(name, _)| *name == wanted);
        option.is_some_and(|(_, data)| description(&variables[data.clone()]).starts_with("UEFI HTTP"))
    };
    let (http, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_http);
    let sorted: Vec<u8> = others.into_iter().chain(http).flatten().collect();
    // The same entries in another order have the same length.
    variables[order.start..order.start + sorted.len()].copy_from_slice(&sorted);
    true
}

/// Returns name and place of the data of every live variable, in the order of the store.
fn live(variables: &[u8]) -> Vec<(String, Range<usize>)> {
    let mut found = Vec::new();
    let mut at = FIRST;
    while let Some(header) = variables.get(at..at + HEADER) {
        if header[..2] != START {
            break;
        }
        let length = |field: usize| {
            u32::from_le_bytes([header[field], header[field + 1], header[field + 2], header[field + 3]])
                as usize
        };
        let name = at + HEADER..at + HEADER + length(36);
        let data = name.end..name.end + length(40);
        let Some(name) = variables.get(name) else { break };
        if data.end > variables.len() {
            break;
        }
        if header[2] == LIVE {
            found.push((utf16(name), data.clone()));
        }
        at = data.end.next_multiple_of(4);
    }
    found
}

fn description(option: &[u8]) -> String {
    utf16(option.get(DESCRIPTION..).unwrap_or_default())
}

/// Reads UTF-16 up to its end mark.
fn utf16(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|char| char.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends a variable as the firmware lays it out.
    fn append(store: &mut Vec<u8>, state: u8, name: &str, data: &[u8]) {
        let name: Vec<u8> = (name.to_string() + "\0").encode_utf16().flat_map(u16::to_le_bytes).collect();
        store.extend(START);
        store.extend([state, 0]);
        store.extend([0; 32]);
        store.extend(u32::try_from(name.len()).expect("short").to_le_bytes());
        store.extend(u32::try_from(data.len()).expect("short").to_le_bytes());
        store.extend([0; 16]);
        store.extend(name);
        store.extend(data);
        store.resize(store.len().next_multiple_of(4), 0xff);
    }

    fn option(description: &str) -> Vec<u8> {
        let text = description.to_string() + "\0";
        let units = text.encode_utf16().flat_map(u16::to_le_bytes);
        [1, 0, 0, 0, 0, 0].into_iter().chain(units).collect()
    }

    #[test]
    fn http_boot_goes_last_and_the_rest_keeps_its_order() {
        let mut store = vec![0; FIRST];
        append(&mut store, LIVE, "Boot0001", &option("UEFI Misc Device"));
        append(&mut store, LIVE, "Boot0002", &option("UEFI PXEv4 (MAC:525400000001)"));
        append(&mut store, LIVE, "Boot0003", &option("UEFI HTTPv4 (MAC:525400000001)"));
        append(&mut store, LIVE, "Boot0004", &option("UEFI HTTPv6 (MAC:525400000001)"));
        append(&mut store, 0x3c, "BootOrder", &[3, 0, 1, 0]);
        append(&mut store, LIVE, "BootOrder", &[2, 0, 3, 0, 4, 0, 1, 0]);
        store.extend([0xff; 64]);

        assert!(put_http_boot_last(&mut store));
        let order = |store: &[u8]| {
            let (_, data) = live(store).into_iter().find(|(name, _)| name == "BootOrder").expect("one");
            store[data].to_vec()
        };
        assert_eq!(order(&store), [2, 0, 1, 0, 3, 0, 4, 0]);
    }

    #[test]
    fn new_or_broken_variables_are_left_alone() {
        for mut store in
            [Vec::new(), vec![0xff; 4096], [vec![0; FIRST], START.to_vec(), vec![0xfe; 80]].concat()]
        {
            let before = store.clone();
            assert!(!put_http_boot_last(&mut store));
            assert_eq!(store, before);
        }
    }
}
