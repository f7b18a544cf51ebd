//! A consortium as it is shown: its members, who has signed, and what it tolerates.

use std::path::{Path, PathBuf};

use fedprune_federation::{ConsortiumId, Draft, VerifyingKey};
use serde::Serialize;

use crate::commands::peer_id::peer_id;
use crate::files::program;
use crate::output::{facts, table, tame};

/// The answer of `fedprune consortium add`, `sign` and `show`.
#[derive(Debug, Serialize)]
pub struct ConsortiumReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    consortium: PathBuf,
    #[serde(serialize_with = "crate::output::lossy::path")]
    signatures: PathBuf,
    name: String,
    id: ConsortiumId,
    members: Vec<MemberRow>,
    /// Names of those who have signed.
    signed: Vec<String>,
    /// Names of those who have not.
    missing: Vec<String>,
    /// Whether all have signed.
    ratified: bool,
    quorum: QuorumRow,
    /// Who was added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) added: Option<String>,
    /// Whose key signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) signed_as: Option<String>,
    /// How many signatures of others are new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) merged: Option<usize>,
    warnings: Vec<String>,
    /// When to type what.
    #[serde(skip)]
    next: Vec<(String, String)>,
}

/// One member.
#[derive(Debug, Serialize)]
struct MemberRow {
    name: String,
    signing_key: VerifyingKey,
    peer_key: VerifyingKey,
    peer_id: String,
    addresses: Vec<String>,
    signed: bool,
}

/// What the number of members means.
#[derive(Debug, Serialize)]
struct QuorumRow {
    members: usize,
    may_fail: usize,
    must_agree: usize,
    in_words: String,
}

crate::report!(ConsortiumReport);

impl ConsortiumReport {
    pub(super) fn of(
        draft: &Draft,
        consortium: &Path,
        signatures: &Path,
        warnings: Vec<String>,
        next: Vec<(String, String)>,
    ) -> Self {
        let signed: Vec<String> = draft.signed_by().map(|member| member.name.clone()).collect();
        let missing: Vec<String> = draft.missing().map(|member| member.name.clone()).collect();
        let quorum = draft.consortium().quorum();
        Self {
            consortium: consortium.to_owned(),
            signatures: signatures.to_owned(),
            name: draft.consortium().name().to_owned(),
            id: draft.consortium().id(),
            members: draft
                .consortium()
                .members()
                .iter()
                .map(|member| MemberRow {
                    name: member.name.clone(),
                    signing_key: member.signing_key,
                    peer_key: member.peer_key,
                    peer_id: peer_id(&member.peer_key),
                    addresses: member.addresses.clone(),
                    signed: signed.contains(&member.name),
                })
                .collect(),
            ratified: missing.is_empty(),
            signed,
            missing,
            quorum: QuorumRow {
                members: quorum.n(),
                may_fail: quorum.f(),
                must_agree: quorum.q(),
                in_words: quorum.in_words(),
            },
            added: None,
            signed_as: None,
            merged: None,
            warnings,
            next,
        }
    }

    fn text(&self) -> String {
        let mut rows = vec![
            ("consortium", self.name.clone()),
            ("id", self.id.to_string()),
            ("document", self.consortium.display().to_string()),
            ("tolerates", self.quorum.in_words.clone()),
        ];
        let signatures = match self.missing.as_slice() {
            [] => format!("all {}, in {}", self.members.len(), self.signatures.display()),
            missing if self.signed.is_empty() => format!("none of {}", missing.len()),
            missing => {
                let missing: Vec<String> = missing.iter().map(|name| format!("`{name}`")).collect();
                format!(
                    "{} of {}, in {}; missing: {}",
                    self.signed.len(),
                    self.members.len(),
                    self.signatures.display(),
                    missing.join(", ")
                )
            }
        };
        rows.push(("signatures", signatures));
        if let Some(name) = &self.added {
            rows.push(("added", name.clone()));
        }
        if let Some(name) = &self.signed_as {
            rows.push(("signed as", name.clone()));
        }
        if let Some(merged) = self.merged {
            rows.push(("merged", format!("{merged} new signatures of others")));
        }
        let members: Vec<Vec<String>> = self
            .members
            .iter()
            .map(|member| {
                let addresses = if member.addresses.is_empty() { "–".to_owned() } else { member.addresses.join(" ") };
                let signed = if member.signed { "yes" } else { "no" };
                vec![member.name.clone(), signed.to_owned(), member.signing_key.to_string(), addresses]
            })
            .collect();
        let warnings: String = self.warnings.iter().map(|warning| format!("\nwarning: {}", tame(warning))).collect();
        let program = program();
        let next: String =
            self.next.iter().map(|(when, command)| format!("\nnext, {when}: {program} {command}")).collect();
        format!("{}\n{}{warnings}{next}", table(&["member", "signed", "key", "dialled at"], &members), facts(&rows))
    }
}
