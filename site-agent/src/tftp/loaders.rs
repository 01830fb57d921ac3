//! The loaders that a site serves, in memory, by name.
//!
//! [`Loaders::load`] reads the known names from a folder once; [`Loaders::get`] is a look-up in a table, so that
//! no request ever reaches a file system and there is no path to climb out of.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use crate::boot::loader::FILES;

/// Loaders by their file name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Loaders(BTreeMap<&'static str, Bytes>);

/// A loader is there and cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read loader {}", path.display())]
pub struct LoadError {
    /// File that could not be read.
    pub path: PathBuf,
    /// Cause.
    #[source]
    pub source: io::Error,
}

impl Loaders {
    /// Reads those of the known loaders that are in `folder`, `/usr/lib/ipxe` on Debian, some hundred KiB
    /// each. One that is not there is no error, since few sites have every kind of machine: see
    /// [`Loaders::missing`].
    ///
    /// # Errors
    /// When a file, or the folder, is there and cannot be read.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        let mut loaders = Self::default();
        for name in FILES {
            let path = folder.join(name);
            match std::fs::read(&path) {
                Ok(content) => loaders.insert(name, content.into()),
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(LoadError { path, source }),
            }
        }
        Ok(loaders)
    }

    /// Puts a loader in, or another in its place: `name` is one of [`FILES`].
    pub fn insert(&mut self, name: &'static str, content: Bytes) {
        self.0.insert(name, content);
    }

    /// The known names that have no content here. Machines that need one of these cannot boot.
    pub fn missing(&self) -> Vec<&'static str> {
        FILES.into_iter().filter(|name| !self.0.contains_key(name)).collect()
    }

    /// Finds a loader by what a client asks for. Leading slashes are taken off, and back-slashes count as
    /// slashes: firmware writes both. What is then no plain name is not found.
    pub fn get(&self, asked: &str) -> Option<&Bytes> {
        self.0.get(asked.trim_start_matches(['/', '\\']))
    }
}

/// Names and sizes; contents help nobody.
impl fmt::Debug for Loaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(name, content)| (name, content.len()))).finish()
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn what_is_in_the_folder_is_served_and_what_is_not_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("snponly.efi"), b"efi").unwrap();
        std::fs::write(folder.path().join("secret.txt"), b"no").unwrap();
        let loaders = Loaders::load(folder.path()).unwrap();
        expect![[r#"{"snponly.efi": 3} without ["undionly.kpxe", "ipxe.efi"]"#]]
            .assert_eq(&format!("{loaders:?} without {:?}", loaders.missing()));
    }

    #[test]
    fn a_loader_that_cannot_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("ipxe.efi")).unwrap();
        let error = Loaders::load(folder.path()).unwrap_err();
        assert!(error.to_string().ends_with("/ipxe.efi"), "{error}");
    }

    #[test]
    fn only_plain_names_are_found() {
        let mut loaders = Loaders::default();
        loaders.insert("snponly.efi", Bytes::from_static(b"efi"));
        for asked in ["snponly.efi", "/snponly.efi", "//snponly.efi", "\\snponly.efi", "/\\snponly.efi"] {
            assert!(loaders.get(asked).is_some(), "{asked}");
        }
        for asked in [
            "",
            "/",
            "SNPONLY.EFI",
            "snponly.efi/",
            "../snponly.efi",
            "x/snponly.efi",
            "undionly.kpxe",
            "/etc/passwd",
        ] {
            assert!(loaders.get(asked).is_none(), "{asked}");
        }
    }
}
