//! Names of content: a blob is its BLAKE3 digest, so a name can never mean other bytes.

use std::{fmt, str::FromStr};

use minicbor::{Decode, Encode};

use crate::id::{ParseIdError, hex, serde_as_text, unhex};

/// BLAKE3 digest of a whole blob; its name everywhere. Text form: 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Digest(#[cbor(with = "minicbor::bytes")] pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// Reads raw bytes of exactly the right length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Returns the raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({}…)", &hex(&self.0)[..12])
    }
}

impl FromStr for Digest {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        unhex(text).map(Self).ok_or_else(|| ParseIdError {
            what: "blob digest",
            expected: "64 hexadecimal digits (BLAKE3)",
            text: text.chars().take(80).collect(),
        })
    }
}

serde_as_text!(Digest);
