//! Which files were read, never what they hold.

use std::path::PathBuf;

use fedprune_mask::Digest;
use fedprune_mask::ballot::{Ballot, Encoding, digest_of_bytes};
use fedprune_model::Windows;
use serde::Serialize;

use crate::commands::mask_file::MappedFile;
use crate::output::{count, tame};

/// Files that are listed one by one.
const MAX_LISTED: usize = 1000;
/// Files that the text lists.
const MAX_SHOWN: usize = 20;

/// Everything that was read.
#[derive(Debug, Serialize)]
pub(super) struct Documents {
    pub count: usize,
    pub bytes: u64,
    /// BLAKE3 over the digests of the files, in the order in which they were read.
    pub digest: Digest,
    /// Files of which at least one window was taken.
    pub used: usize,
    /// Windows, and tokens of each.
    pub windows: usize,
    pub window_tokens: usize,
    pub calibration_tokens: u64,
    /// Of the tokens that the model was run on.
    pub calibration: Option<Digest>,
    /// The first thousand.
    pub listed: Vec<DocumentReport>,
}

/// One file.
#[derive(Debug, Serialize)]
pub(super) struct DocumentReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    pub file: PathBuf,
    pub bytes: u64,
    pub digest: Digest,
    pub windows: u64,
}

impl Documents {
    /// Hashes every file that windows were sought in.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub fn of(windows: &Windows, calibration: Option<Digest>) -> anyhow::Result<Self> {
        let mut listed = Vec::new();
        let mut digests = Vec::with_capacity(32 * windows.documents.len());
        for document in &windows.documents {
            let digest = digest_of_bytes(MappedFile::open(&document.path)?.bytes());
            digests.extend_from_slice(&digest.0);
            if listed.len() < MAX_LISTED {
                let (file, bytes, windows) = (document.path.clone(), document.bytes, document.windows);
                listed.push(DocumentReport { file, bytes, digest, windows });
            }
        }
        Ok(Self {
            count: windows.documents.len(),
            bytes: windows.documents.iter().map(|document| document.bytes).sum(),
            digest: Digest::of(&digests),
            used: windows.used_files().count(),
            windows: windows.windows.len(),
            window_tokens: windows.windows.first().map_or(0, Vec::len),
            calibration_tokens: windows.tokens(),
            calibration,
            listed,
        })
    }

    pub fn text(&self) -> String {
        let mut text = format!(
            "what was read: {}, {} bytes, of which {} gave {} of {} tokens, {} in all\n",
            counted(self.count, "document"),
            count(self.bytes),
            count(self.used as u64),
            counted(self.windows, "window"),
            self.window_tokens,
            count(self.calibration_tokens),
        );
        for document in self.listed.iter().take(MAX_SHOWN) {
            text.push_str(&format!(
                "  {}  {} bytes  {} windows  {}\n",
                document.digest.short(),
                count(document.bytes),
                count(document.windows),
                tame(&document.file.display().to_string())
            ));
        }
        if self.count > MAX_SHOWN {
            text.push_str(&format!("  and {} more\n", count((self.count - MAX_SHOWN) as u64)));
        }
        text
    }
}

/// So many of something.
pub(super) fn counted(number: usize, what: &str) -> String {
    format!("{} {what}{}", count(number as u64), if number == 1 { "" } else { "s" })
}

/// How a ballot's inputs are encoded, each.
pub(in crate::commands) fn all_encodings(ballot: &Ballot<'_>) -> Vec<Encoding> {
    (0..super::taps(ballot.layout())).map(|tap| ballot.encoding(tap)).collect()
}

/// The same, counted.
pub(super) fn encodings(ballot: &Ballot<'_>) -> Vec<(&'static str, usize)> {
    let all = all_encodings(ballot);
    [Encoding::Norms, Encoding::ColumnThresholds, Encoding::Bitmap]
        .into_iter()
        .map(|encoding| (name(encoding), all.iter().filter(|other| **other == encoding).count()))
        .filter(|(_, taps)| *taps > 0)
        .collect()
}

/// As policies and documents write it.
pub(super) fn name(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Norms => "norms",
        Encoding::ColumnThresholds => "column-thresholds",
        Encoding::Bitmap => "bitmap",
    }
}

/// The encoding of that name.
pub(super) fn named(text: &str) -> Option<Encoding> {
    [Encoding::Norms, Encoding::ColumnThresholds, Encoding::Bitmap].into_iter().find(|encoding| name(*encoding) == text)
}
