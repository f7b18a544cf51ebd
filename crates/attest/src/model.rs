//! A pruned folder signed by a member in the form of OpenSSF Model Signing v1: a Sigstore bundle around a DSSE envelope,
//! with every file of the folder in it.
//!
//! `model_signing verify key` of the Python package checks it with the member's public key. One bundle holds one signature,
//! so there is one file a member.

use std::collections::BTreeMap;

use base64ct::{Base64, Encoding};
use fedprune_federation::signing::pre_authentication_encoding;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::envelope::{EnvelopeError, decode};
use crate::files::{FolderFiles, MAX_FILES};
use crate::key::{AttestationKey, AttestationPublicKey, KeyError};
use crate::statement::STATEMENT_TYPE;
use crate::{PAYLOAD_TYPE, hex};

/// What a bundle is.
const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// The predicate of a signed model.
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// Most bytes of a bundle's file: room for [`MAX_FILES`] of usual names.
pub const BUNDLE_LIMIT: usize = 16 << 20;

/// A signature of a folder, as it was read; nothing is known of it until it is verified.
#[derive(Debug)]
pub struct ModelSignature {
    bundle: Bundle,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Material {
    public_key: PublicKeyHint,
    tlog_entries: Vec<serde_json::Value>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicKeyHint {
    hint: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<BundleSignature>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BundleSignature {
    sig: String,
    keyid: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Root>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Root {
    name: String,
    digest: RootDigest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RootDigest {
    sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Serialization {
    method: String,
    hash_type: String,
    allow_symlinks: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

/// Why a signature of a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Larger than any.
    #[error("it has {0} bytes, more than the {BUNDLE_LIMIT} of any signature of a model")]
    TooLarge(usize),
    /// No bundle, or no manifest in it.
    #[error("it is no signature in the form of OpenSSF Model Signing v1")]
    Json(#[from] serde_json::Error),
    /// A field of another value.
    #[error("its `{0}` is not that of OpenSSF Model Signing v1 with SHA-256 of files")]
    Field(&'static str),
    /// Not base64.
    #[error("{0}")]
    Base64(#[from] EnvelopeError),
    /// Of no known key.
    #[error("it names key {0}, which is the attestation key of no member")]
    Stranger(String),
    /// Does not verify.
    #[error("the signature does not verify: the bundle was changed, or another key made it")]
    Signature,
    /// The folder is not what was signed.
    #[error("the folder is not what was signed: {0}")]
    Differs(String),
    /// The key cannot be written.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl ModelSignature {
    /// Signs a folder; returns the bundle's file.
    ///
    /// # Errors
    /// [`ModelError`] never in practice.
    pub fn sign(files: &FolderFiles, key: &AttestationKey) -> Result<Vec<u8>, ModelError> {
        let resource = |file: &crate::files::FileDigest| Resource {
            name: file.name.clone(),
            algorithm: "sha256".to_owned(),
            digest: file.sha256.clone(),
        };
        let manifest = Manifest {
            kind: STATEMENT_TYPE.to_owned(),
            subject: vec![Root { name: files.name.clone(), digest: RootDigest { sha256: files.root.clone() } }],
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                serialization: serialization(),
                resources: files.files.iter().map(resource).collect(),
            },
        };
        let payload = serde_json::to_vec(&manifest)?;
        let signature = key.sign(&pre_authentication_encoding(PAYLOAD_TYPE, &payload));
        let bundle = Bundle {
            media_type: MEDIA_TYPE.to_owned(),
            verification_material: Material {
                public_key: PublicKeyHint { hint: key.public().hint()? },
                tlog_entries: Vec::new(),
            },
            dsse_envelope: Envelope {
                payload: Base64::encode_string(&payload),
                payload_type: PAYLOAD_TYPE.to_owned(),
                signatures: vec![BundleSignature { sig: Base64::encode_string(&signature), keyid: String::new() }],
            },
        };
        let mut json = serde_json::to_vec(&bundle)?;
        json.push(b'\n');
        if json.len() > BUNDLE_LIMIT { Err(ModelError::TooLarge(json.len())) } else { Ok(json) }
    }

    /// Reads a bundle.
    ///
    /// # Errors
    /// [`ModelError`] for anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        if bytes.len() > BUNDLE_LIMIT {
            return Err(ModelError::TooLarge(bytes.len()));
        }
        let bundle: Bundle = serde_json::from_slice(bytes)?;
        if bundle.media_type != MEDIA_TYPE {
            return Err(ModelError::Field("mediaType"));
        }
        if !bundle.verification_material.tlog_entries.is_empty() {
            return Err(ModelError::Field("tlogEntries"));
        }
        let envelope = &bundle.dsse_envelope;
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(ModelError::Field("payloadType"));
        }
        let [signature] = envelope.signatures.as_slice() else { return Err(ModelError::Field("signatures")) };
        if !signature.keyid.is_empty() {
            return Err(ModelError::Field("keyid"));
        }
        let (payload, signature) = (decode(&envelope.payload, "payload")?, decode(&signature.sig, "signature")?);
        Ok(Self { bundle, payload, signature })
    }

    /// By which key it says that it was made.
    pub fn hint(&self) -> &str {
        &self.bundle.verification_material.public_key.hint
    }

    /// Checks that `key` signed exactly the files of a folder.
    ///
    /// # Errors
    /// [`ModelError`] saying what differs.
    pub fn verify(&self, key: &AttestationPublicKey, files: &FolderFiles) -> Result<(), ModelError> {
        if self.hint() != key.hint()? {
            return Err(ModelError::Stranger(self.hint().chars().take(64).collect()));
        }
        if !key.verifies(&pre_authentication_encoding(PAYLOAD_TYPE, &self.payload), &self.signature) {
            return Err(ModelError::Signature);
        }
        // signed from here on, and yet of anybody who holds the key
        let manifest: Manifest = serde_json::from_slice(&self.payload)?;
        for (what, holds) in [
            ("_type", manifest.kind == STATEMENT_TYPE),
            ("predicateType", manifest.predicate_type == PREDICATE_TYPE),
            ("serialization", manifest.predicate.serialization == serialization()),
            ("resources", manifest.predicate.resources.len() <= MAX_FILES),
            ("algorithm", manifest.predicate.resources.iter().all(|resource| resource.algorithm == "sha256")),
        ] {
            if !holds {
                return Err(ModelError::Field(what));
            }
        }
        let [root] = manifest.subject.as_slice() else { return Err(ModelError::Field("subject")) };
        let mut hasher = Sha256::new();
        let mut signed = BTreeMap::new();
        for resource in &manifest.predicate.resources {
            let digest: fedprune_mask::Digest = resource.digest.parse().map_err(|_| ModelError::Field("digest"))?;
            hasher.update(digest.0);
            if signed.insert(resource.name.as_str(), resource.digest.as_str()).is_some() {
                return Err(ModelError::Field("resources"));
            }
        }
        if root.digest.sha256 != hex(&hasher.finalize()) {
            return Err(ModelError::Field("subject"));
        }
        for file in &files.files {
            match signed.remove(file.name.as_str()) {
                None => return Err(ModelError::Differs(format!("`{}` was not signed", file.name))),
                Some(digest) if digest != file.sha256 => {
                    return Err(ModelError::Differs(format!("`{}` is another file", file.name)));
                }
                Some(_) => {}
            }
        }
        match signed.keys().next() {
            Some(name) => Err(ModelError::Differs(format!("`{name}` is missing"))),
            None => Ok(()),
        }
    }
}

fn serialization() -> Serialization {
    Serialization { method: "files".to_owned(), hash_type: "sha256".to_owned(), allow_symlinks: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_signed_verifies_until_anything_changes() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        fs::write(folder.path().join("sub/weights"), "1").unwrap();
        let read = || FolderFiles::read(folder.path(), &|_| ()).unwrap();
        let key = AttestationKey::from_seed(&[7; 32]).unwrap();
        let bundle = ModelSignature::sign(&read(), &key).unwrap();
        assert_eq!(bundle, ModelSignature::sign(&read(), &key).unwrap(), "the same folder, the same signature");
        let signature = ModelSignature::parse(&bundle).unwrap();
        signature.verify(&key.public(), &read()).unwrap();
        let other = AttestationKey::from_seed(&[8; 32]).unwrap();
        assert!(matches!(signature.verify(&other.public(), &read()), Err(ModelError::Stranger(_))));
        let differs = |says: &str| {
            let error = signature.verify(&key.public(), &read()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        fs::write(folder.path().join("sub/weights"), "2").unwrap();
        differs("`sub/weights` is another file");
        fs::remove_file(folder.path().join("sub/weights")).unwrap();
        differs("`sub/weights` is missing");
        fs::write(folder.path().join("sub/weights"), "1").unwrap();
        fs::write(folder.path().join("more"), "1").unwrap();
        differs("`more` was not signed");
    }

    #[test]
    fn a_changed_bundle_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        let files = FolderFiles::read(folder.path(), &|_| ()).unwrap();
        let key = AttestationKey::from_seed(&[7; 32]).unwrap();
        let bundle = ModelSignature::sign(&files, &key).unwrap();
        for at in 0..bundle.len() - 1 {
            let mut changed = bundle.clone();
            changed[at] ^= 1;
            let read = ModelSignature::parse(&changed).and_then(|signature| signature.verify(&key.public(), &files));
            assert!(read.is_err(), "byte {at} changes nothing: {}", String::from_utf8_lossy(&changed));
        }
    }
}
