//! What a hub says of a repository: its commit, and each file with size and digest.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{HubError, shorten};
use crate::name::Commit;

/// Largest list read, in bytes; one of a thousand files has some 300 kB.
pub(crate) const LIST_BYTES: u64 = 16 << 20;
/// Most files of a repository.
const MAX_FILES: usize = 100_000;
/// Longest text of a card that is kept, in bytes.
const MAX_LICENCE_BYTES: usize = 200;

/// A repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Which commit.
    pub commit: Commit,
    /// What its card calls its licence.
    pub licence: Option<String>,
    /// In the order of the list.
    pub files: Vec<RemoteFile>,
}

/// One file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// As listed: anything.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// By what its contents are known.
    pub identity: Identity,
}

/// What a file's contents must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// SHA-256 of what is stored outside of git, as weights are; in lower-case hexadecimal.
    Sha256(String),
    /// SHA-1 of what git stores, as small files are: `blob`, the size, and the contents.
    GitBlob(String),
}

#[derive(Deserialize)]
struct Document {
    sha: String,
    #[serde(default, rename = "cardData")]
    card: Card,
    #[serde(deserialize_with = "few")]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Stored>,
}

#[derive(Deserialize)]
struct Stored {
    sha256: Option<String>,
    size: Option<u64>,
}

/// What a card says of its licence. It may say anything, of any kind, none of which is kept.
#[derive(Default)]
struct Card {
    licence: Option<String>,
}

impl<'de> Deserialize<'de> for Card {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut licence = None;
        deserializer.deserialize_any(Anything(&mut licence, "license")).map(|()| Self { licence })
    }
}

/// Text that is printable and short, or what the field of this name says if it is that; anything else is passed over.
struct Anything<'a>(&'a mut Option<String>, &'static str);

impl<'de> Visitor<'de> for Anything<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("anything")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        if self.1.is_empty() && text.len() <= MAX_LICENCE_BYTES && text.bytes().all(is_printable) {
            *self.0 = Some(text.to_owned());
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(name) = fields.next_key::<String>()? {
            if !self.1.is_empty() && name == self.1 {
                fields.next_value_seed(Within(self.0))?;
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// The value of a field.
struct Within<'a>(&'a mut Option<String>);

impl<'de> serde::de::DeserializeSeed<'de> for Within<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(Anything(self.0, ""))
    }
}

/// No more than [`MAX_FILES`]: what follows is not read.
fn few<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Sibling>, D::Error> {
    struct Few;

    impl<'de> Visitor<'de> for Few {
        type Value = Vec<Sibling>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of files")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut files = Vec::new();
            while let Some(file) = items.next_element()? {
                if files.len() == MAX_FILES {
                    return Err(A::Error::custom(format!("it has more than the {MAX_FILES} files allowed")));
                }
                files.push(file);
            }
            Ok(files)
        }
    }
    deserializer.deserialize_seq(Few)
}

impl Listing {
    /// Reads the hub's answer, of which no more is kept than [`Listing`] has.
    ///
    /// # Errors
    /// [`HubError::Listing`] for what is no such list.
    pub fn parse(bytes: &[u8]) -> Result<Self, HubError> {
        let bad = |why: String| HubError::Listing(why);
        let document: Document = serde_json::from_slice(bytes).map_err(|error| bad(shorten(&error.to_string())))?;
        Ok(Self {
            commit: document.sha.parse()?,
            licence: document.card.licence,
            files: document.siblings.into_iter().filter_map(file).collect(),
        })
    }

    /// The file of this name.
    pub fn file(&self, name: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.name == name)
    }
}

fn is_printable(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte)
}

/// A file that can be checked; one without size or digest is as if it were not there.
fn file(sibling: Sibling) -> Option<RemoteFile> {
    let Sibling { rfilename: name, size, blob, lfs } = sibling;
    let (bytes, identity) = match lfs {
        Some(Stored { sha256, size: stored }) => {
            let bytes = stored.or(size)?;
            // both are said of the same contents
            if size.is_some_and(|size| size != bytes) {
                return None;
            }
            (bytes, Identity::Sha256(hexadecimal(sha256?, 64)?))
        }
        None => (size?, Identity::GitBlob(hexadecimal(blob?, 40)?)),
    };
    Some(RemoteFile { name, bytes, identity })
}

fn hexadecimal(text: String, digits: usize) -> Option<String> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (text.len() == digits && text.bytes().all(hex)).then_some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn parse(document: &Value) -> Result<Listing, HubError> {
        Listing::parse(document.to_string().as_bytes())
    }

    #[test]
    fn files_are_known_by_size_and_digest_or_not_at_all() {
        let sha = "ab".repeat(32);
        let listing = parse(&json!({ "sha": COMMIT, "cardData": { "license": "apache-2.0" }, "more": [1], "siblings": [
            { "rfilename": "config.json", "size": 7, "blobId": COMMIT },
            { "rfilename": "model.safetensors", "size": 9, "blobId": COMMIT, "lfs": { "sha256": sha, "size": 9, "pointerSize": 135 } },
            { "rfilename": "no-size.json", "blobId": COMMIT },
            { "rfilename": "no-digest.json", "size": 7 },
            { "rfilename": "two-sizes.bin", "size": 7, "blobId": COMMIT, "lfs": { "sha256": sha, "size": 9 } },
            { "rfilename": "bad-digest.bin", "size": 9, "blobId": COMMIT, "lfs": { "sha256": "../x", "size": 9 } },
        ] }))
        .unwrap();
        let names: Vec<&str> = listing.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["config.json", "model.safetensors"]);
        assert_eq!(listing.file("config.json").unwrap().identity, Identity::GitBlob(COMMIT.to_owned()));
        assert_eq!(listing.file("model.safetensors").unwrap().identity, Identity::Sha256(sha));
        assert_eq!(listing.licence.as_deref(), Some("apache-2.0"));
    }

    #[test]
    fn anything_else_is_refused_and_odd_cards_are_ignored() {
        let many = json!([[1, -1, 1.5, true, null, "a", { "license": "b" }], { "license": { "license": "c" } }]);
        for card in [
            many,
            json!("text"),
            json!(7),
            json!({ "license": { "license": "d" } }),
            json!({ "license": "x".repeat(201) }),
            json!({ "license": ["a"] }),
            json!({ "license": "\u{1b}[2J" }),
            json!(null),
        ] {
            let listing = parse(&json!({ "sha": COMMIT, "cardData": card, "siblings": [] })).unwrap();
            assert_eq!(listing.licence, None, "{card}");
        }
        for bad in
            [json!({}), json!([]), json!({ "sha": "main", "siblings": [] }), json!({ "sha": COMMIT, "siblings": {} })]
        {
            assert!(matches!(parse(&bad), Err(HubError::Listing(_))), "{bad}");
        }
        let negative = json!({ "sha": COMMIT, "siblings": [{ "rfilename": "x", "size": -1, "blobId": COMMIT }] });
        assert!(parse(&negative).is_err());
        assert!(Listing::parse(b"<html>").is_err());
        let files = vec![json!({ "rfilename": "x" }); MAX_FILES + 1];
        let error = parse(&json!({ "sha": COMMIT, "siblings": files })).unwrap_err().to_string();
        assert!(error.contains("more than the 100000 files"), "{error}");
        assert!(parse(&json!({ "sha": COMMIT, "siblings": files[1..] })).unwrap().files.is_empty());
    }
}
