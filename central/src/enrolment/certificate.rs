//! What a machine asks to have certified.
//!
//! A signing request (PKCS#10, RFC 2986) may ask for any name, any purpose and for being an authority.
//! [`KeyRequest`] takes only the public key from it, and that only with the proof that the sender holds the
//! private half. What certificates say of sites is read by [`sync::quic::tls::SiteCertificate`].

use rcgen::{CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256, PublicKeyData};

/// BLAKE3 digest of a public key; tells keys apart in records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyDigest(pub [u8; 32]);

/// A public key whose holder proved to have the private half.
#[derive(Debug, Clone)]
pub struct KeyRequest {
    pub(super) key: rcgen::PublicKey,
}

/// Bytes that are not a signing request we certify.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Not PKCS#10, or its signature does not verify.
    #[error("the signing request cannot be read: {0}")]
    Unreadable(#[source] rcgen::Error),
    /// A key of another kind.
    #[error("the signing request is for a key of another kind than ECDSA on P-256")]
    Algorithm,
}

impl KeyRequest {
    /// Reads a request in DER and checks its signature.
    ///
    /// # Errors
    /// When it is malformed, not signed by its own key, or for a key that is not on P-256.
    pub fn parse(der: &[u8]) -> Result<Self, RequestError> {
        let request =
            CertificateSigningRequestParams::from_der(&der.into()).map_err(RequestError::Unreadable)?;
        let key = request.public_key;
        // The algorithm is that of the signature; an uncompressed point of 65 bytes makes it P-256.
        let is_point = matches!(key.der_bytes(), [0x04, point @ ..] if point.len() == 64);
        if *key.algorithm() != PKCS_ECDSA_P256_SHA256 || !is_point {
            return Err(RequestError::Algorithm);
        }
        Ok(Self { key })
    }

    /// Returns the digest of the public key.
    pub fn digest(&self) -> KeyDigest {
        KeyDigest(*blake3::hash(self.key.der_bytes()).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
    use sync::quic::tls::SiteKey;

    use super::*;

    #[test]
    fn a_request_proves_possession_of_its_key() {
        let key = SiteKey::generate().unwrap();
        let request = key.request("lyon").unwrap();
        let again = key.request("paris").unwrap();
        assert_eq!(
            KeyRequest::parse(&request).unwrap().digest(),
            KeyRequest::parse(&again).unwrap().digest()
        );
        let other = SiteKey::generate().unwrap().request("lyon").unwrap();
        assert_ne!(
            KeyRequest::parse(&request).unwrap().digest(),
            KeyRequest::parse(&other).unwrap().digest()
        );

        let mut forged = request.clone();
        let at = forged.windows(4).position(|it| it == b"lyon").unwrap();
        forged[at..at + 4].copy_from_slice(b"oslo");
        expect!["the signing request cannot be read: Invalid CSR signature"]
            .assert_eq(&KeyRequest::parse(&forged).unwrap_err().to_string());
    }

    #[test]
    fn other_keys_and_other_bytes_are_refused() {
        for algorithm in [&PKCS_ED25519, &PKCS_ECDSA_P384_SHA384] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let request = CertificateParams::default().serialize_request(&key).unwrap();
            expect!["the signing request is for a key of another kind than ECDSA on P-256"]
                .assert_eq(&KeyRequest::parse(request.der()).unwrap_err().to_string());
        }
        let good = SiteKey::generate().unwrap().request("lyon").unwrap();
        for cut in 0..good.len() {
            assert!(KeyRequest::parse(&good[..cut]).is_err());
        }
        let digest = KeyRequest::parse(&good).unwrap().digest();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            // The tag of the signature algorithm's name is neither signed nor checked. A request that is
            // read in spite of a change must at least be the same request.
            if let Ok(request) = KeyRequest::parse(&bad) {
                assert_eq!(request.digest(), digest, "byte {at}");
            }
        }
    }
}
