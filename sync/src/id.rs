//! Identities: who and what, as types.
//!
//! Everything that is authored has 16 random bytes from the edge; everything that is discovered is named
//! by a digest of its natural key, so that two sites that never spoke name the same machine alike.
//! The text form is 32 lower-case hexadecimal digits, in REST paths, logs and kernel command lines.

use std::{fmt, str::FromStr};

use minicbor::{Decode, Encode};

/// Text that is not the identity it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}: expected {expected}")]
pub struct ParseIdError {
    /// What was to be read, in the words of the reader.
    pub what: &'static str,
    /// The form that would have been accepted.
    pub expected: &'static str,
    /// What was given, cut to 64 characters.
    pub text: String,
}

impl ParseIdError {
    fn new(what: &'static str, expected: &'static str, text: &str) -> Self {
        Self { what, expected, text: text.chars().take(64).collect() }
    }
}

/// Writes `bytes` as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    // Peers are named in every other statement of a store, so this is not left to the formatter.
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.extend([byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)])));
    }
    text
}

/// Reads exactly `N` bytes from `2 * N` hexadecimal digits of either case.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(bytes)
}

/// Serialises a type as its text form: ids are text wherever people can see them.
macro_rules! serde_as_text {
    ($name:ty) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_as_text;

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $length:literal, $what:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[cbor(with = "minicbor::bytes")] pub [u8; $length]);

        impl $name {
            /// Returns the raw bytes, as stored and as sent.
            pub fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }

            /// Reads raw bytes of exactly the right length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex(&self.0))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                unhex(text).map(Self).ok_or_else(|| ParseIdError::new($what, $expected, text))
            }
        }

        serde_as_text!($name);
    };
}

id_type!(
    /// A replicated document, of whichever kind.
    DocumentId, 16, "document id", "32 hexadecimal digits"
);
id_type!(
    /// A place with its own network, and the document that describes it.
    SiteId, 16, "site id", "32 hexadecimal digits"
);
id_type!(
    /// A machine that boots, named by its boot MAC address (see [`NodeId::of`]).
    NodeId, 16, "node id", "32 hexadecimal digits"
);
id_type!(
    /// A description of what is booted and installed.
    WorkflowId, 16, "workflow id", "32 hexadecimal digits"
);
id_type!(
    /// A provisioning order for one node at one site.
    TaskId, 16, "task id", "32 hexadecimal digits"
);
id_type!(
    /// What a site may not do itself and asks central for.
    ProposalId, 16, "proposal id", "32 hexadecimal digits"
);
id_type!(
    /// A wish that a machine be at home at another site, named by what it is about (see [`ClaimId::of`]).
    ClaimId, 16, "claim id", "32 hexadecimal digits"
);
id_type!(
    /// A part of the fleet whose settings descend.
    GroupId, 16, "group id", "32 hexadecimal digits"
);
id_type!(
    /// One life of one replica's database: a restore or a fork begins a new one. It is the Automerge
    /// actor of every change that the replica writes, because an actor that is used again after a
    /// roll-back forks its documents for ever.
    Incarnation, 16, "incarnation", "32 hexadecimal digits"
);
id_type!(
    /// One report of a machine: repeated until answered, counted once.
    ReportId, 16, "report id", "32 hexadecimal digits or a UUID"
);
id_type!(
    /// Distinguishes one writing of a register from another with equal content.
    Nonce, 8, "nonce", "16 hexadecimal digits"
);

impl ReportId {
    /// Reads the plain form or a UUID with hyphens, as `/proc/sys/kernel/random/uuid` prints it.
    ///
    /// # Errors
    /// When fewer or more than 32 hexadecimal digits remain without the hyphens.
    pub fn parse_lenient(text: &str) -> Result<Self, ParseIdError> {
        text.replace('-', "").parse()
    }
}

macro_rules! document_id_of {
    ($($name:ident),*) => {$(
        impl From<$name> for DocumentId {
            fn from(id: $name) -> Self {
                DocumentId(id.0)
            }
        }

        impl From<DocumentId> for $name {
            fn from(id: DocumentId) -> Self {
                $name(id.0)
            }
        }
    )*};
}
document_id_of!(SiteId, NodeId, WorkflowId, TaskId, ProposalId, ClaimId, GroupId);

impl NodeId {
    /// Names the machine whose boot interface is `mac`: the first 16 bytes of
    /// `blake3("holdfast/doc/v1", "node", mac as lower-case text)`.
    pub fn of(mac: MacAddr) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("holdfast/doc/v1");
        hasher.update(b"node\0");
        hasher.update(mac.to_string().as_bytes());
        let digest = hasher.finalize();
        NodeId(digest.as_bytes()[..16].try_into().expect("a BLAKE3 digest has 32 bytes"))
    }
}

impl ClaimId {
    /// Names the claim of site `to` on `node`, made while the machine had moved `home_epoch` times: the first 16 bytes
    /// of `blake3("holdfast/doc/v1", "claim", node, site, epoch)`. Whoever opens it, it is one claim.
    pub fn of(node: NodeId, to: SiteId, home_epoch: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("holdfast/doc/v1");
        hasher.update(b"claim\0");
        hasher.update(node.as_bytes());
        hasher.update(to.as_bytes());
        hasher.update(&home_epoch.to_be_bytes());
        let digest = hasher.finalize();
        ClaimId(digest.as_bytes()[..16].try_into().expect("a BLAKE3 digest has 32 bytes"))
    }
}

/// Hardware address of an Ethernet interface, `chaddr` in DHCP (RFC 2131 §2).
///
/// Text form is lower-case with colons; hyphens (PXELINUX, Windows) and upper case are read too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct MacAddr(#[cbor(with = "minicbor::bytes")] pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MacAddr({self})")
    }
}

impl FromStr for MacAddr {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = || {
            ParseIdError::new("MAC address", "six pairs of hexadecimal digits, as in 52:54:00:12:34:56", text)
        };
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut pairs = text.split(separator);
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            *byte = pairs.next().and_then(unhex::<1>).ok_or_else(error)?[0];
        }
        if pairs.next().is_some() {
            return Err(error());
        }
        Ok(MacAddr(bytes))
    }
}

serde_as_text!(MacAddr);

/// Who wrote something: central, or one site.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Origin {
    /// The one central place.
    Central,
    /// The replica of this site.
    Site(SiteId),
}

impl Origin {
    /// Returns the site, or nothing for central.
    pub fn site(self) -> Option<SiteId> {
        match self {
            Origin::Central => None,
            Origin::Site(site) => Some(site),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Central => f.write_str("central"),
            Origin::Site(site) => site.fmt(f),
        }
    }
}

impl FromStr for Origin {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        match text {
            "central" => Ok(Origin::Central),
            site => site.parse().map(Origin::Site),
        }
    }
}

serde_as_text!(Origin);

impl<C> Encode<C> for Origin {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        match self {
            Origin::Central => encoder.null()?.ok(),
            Origin::Site(site) => encoder.bytes(&site.0)?.ok(),
        }
    }
}

impl<'b, C> Decode<'b, C> for Origin {
    fn decode(decoder: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        if decoder.datatype()? == minicbor::data::Type::Null {
            decoder.null()?;
            return Ok(Origin::Central);
        }
        SiteId::from_slice(decoder.bytes()?)
            .map(Origin::Site)
            .ok_or_else(|| minicbor::decode::Error::message("a site id has 16 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sites_name_the_same_machine_alike() {
        let upper: MacAddr = "52-54-00-AB-CD-EF".parse().unwrap();
        let lower: MacAddr = "52:54:00:ab:cd:ef".parse().unwrap();
        assert_eq!(NodeId::of(upper), NodeId::of(lower));
        expect_test::expect!["658f1029"].assert_eq(&NodeId::of(lower).to_string()[..8]);
    }

    #[test]
    fn text_that_is_no_id_says_what_was_expected() {
        let check = |result: Result<(), ParseIdError>, expected: expect_test::Expect| {
            expected.assert_eq(&result.unwrap_err().to_string());
        };
        check(
            "52:54:00".parse::<MacAddr>().map(drop),
            expect_test::expect![
                "`52:54:00` is not a MAC address: expected six pairs of hexadecimal digits, as in 52:54:00:12:34:56"
            ],
        );
        check(
            "lyon".parse::<SiteId>().map(drop),
            expect_test::expect!["`lyon` is not a site id: expected 32 hexadecimal digits"],
        );
        check(
            "é".repeat(16).parse::<SiteId>().map(drop),
            expect_test::expect!["`éééééééééééééééé` is not a site id: expected 32 hexadecimal digits"],
        );
    }

    #[test]
    fn origin_survives_text_and_wire() {
        for origin in [Origin::Central, Origin::Site(SiteId([7; 16]))] {
            assert_eq!(origin.to_string().parse(), Ok(origin));
            let bytes = minicbor::to_vec(origin).unwrap();
            assert_eq!(minicbor::decode::<Origin>(&bytes).unwrap(), origin);
        }
    }
}
