//! A consortium as it is shown: its members, who has signed, what it tolerates, and what has changed since the founding.

use std::path::{Path, PathBuf};

use fedprune_attest::AttestationPublicKey;
use fedprune_federation::consortium::succession::difference;
use fedprune_federation::{Consortium, ConsortiumId, Draft, Ratified, VerifyingKey};
use serde::Serialize;

use crate::commands::peer_id::peer_id;
use crate::files::program;
use crate::output::{facts, table, tame};

/// Digits of an attestation key's digest that a table has room for; all of them are in JSON.
const HINT_CHARS: usize = 16;

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
    /// The changes since the founding, the latest first; of a change that is a draft, that one first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<ChangeRow>,
    /// Names of those who have signed.
    signed: Vec<String>,
    /// Names of those who have not, and must.
    missing: Vec<String>,
    /// Whether all have signed that must.
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
    /// Who agreed to the change with this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) agreed_as: Option<String>,
    /// What was done to the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) edited: Option<String>,
    /// The home in which the change took its place.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_path")]
    pub(super) adopted: Option<PathBuf>,
    /// A change that waits for signatures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pending: Option<Box<ConsortiumReport>>,
    /// The files to be sent, as typed.
    #[serde(skip)]
    pub(super) files: Option<String>,
    warnings: Vec<String>,
    /// When to type what.
    #[serde(skip)]
    next: Vec<(String, String)>,
}

/// One change.
#[derive(Debug, Serialize)]
struct ChangeRow {
    /// Counted from the founding.
    change: u32,
    id: ConsortiumId,
    predecessor: ConsortiumId,
    /// In words, a clause each.
    what: Vec<String>,
    /// Names of members before that agreed.
    agreed: Vec<String>,
    /// Names of those who have not.
    undecided: Vec<String>,
    /// How many must.
    must_agree: usize,
    /// How many agree in rounds, and how many may fail, before and after.
    quorum: [(usize, usize); 2],
}

fn some_path<S: serde::Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => crate::output::lossy::path(path, serializer),
        None => serializer.serialize_none(),
    }
}

/// One member.
#[derive(Debug, Serialize)]
struct MemberRow {
    name: String,
    signing_key: VerifyingKey,
    peer_key: VerifyingKey,
    peer_id: String,
    addresses: Vec<String>,
    /// By which it signs pruned models, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    attestation_key: Option<String>,
    /// SHA-256 of that PEM, by which a signature of a pruned model names its key; absent if it is no such key.
    #[serde(skip_serializing_if = "Option::is_none")]
    attestation_key_sha256: Option<String>,
    signed: bool,
    /// Whether it must sign: in a change those that stay as they were need not.
    must_sign: bool,
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
        let entering: Vec<_> = draft.entering().collect();
        Self {
            consortium: consortium.to_owned(),
            signatures: signatures.to_owned(),
            name: draft.consortium().name().to_owned(),
            id: draft.consortium().id(),
            members: draft
                .consortium()
                .members()
                .iter()
                .zip(draft.consortium().indices())
                .map(|(member, index)| MemberRow {
                    name: member.name.clone(),
                    signing_key: member.signing_key,
                    peer_key: member.peer_key,
                    peer_id: peer_id(&member.peer_key),
                    addresses: member.addresses.clone(),
                    attestation_key: member.attestation_key.clone(),
                    attestation_key_sha256: member.attestation_key.as_deref().and_then(hint),
                    signed: signed.contains(&member.name),
                    must_sign: entering.contains(&index),
                })
                .collect(),
            ratified: draft.is_complete(),
            changes: changes(draft),
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
            agreed_as: None,
            edited: None,
            adopted: None,
            pending: None,
            files: None,
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
        for row in &self.changes {
            rows.push(("change", row.in_words()));
        }
        let signatures = match (self.changes.first(), self.missing.as_slice()) {
            (Some(change), missing) => change.signatures(missing, self.ratified, &self.signatures),
            (None, []) => format!("all {}, in {}", self.members.len(), self.signatures.display()),
            (None, missing) if self.signed.is_empty() => format!("none of {}", missing.len()),
            (None, missing) => format!(
                "{} of {}, in {}; missing: {}",
                self.signed.len(),
                self.members.len(),
                self.signatures.display(),
                quoted(missing)
            ),
        };
        rows.push(("signatures", signatures));
        if let Some(name) = &self.added {
            rows.push(("added", name.clone()));
        }
        if let Some(done) = &self.edited {
            rows.push(("changed", done.clone()));
        }
        if let Some(name) = &self.signed_as {
            rows.push(("signed as", name.clone()));
        }
        if let Some(name) = &self.agreed_as {
            rows.push(("agreed as", name.clone()));
        }
        if let Some(files) = &self.files {
            rows.push(("to be sent", files.clone()));
        }
        if let Some(home) = &self.adopted {
            rows.push(("complete", format!("it is the consortium of {} from now on", home.display())));
        }
        if let Some(merged) = self.merged {
            rows.push(("merged", format!("{merged} new signatures of others")));
        }
        let members: Vec<Vec<String>> = self
            .members
            .iter()
            .map(|member| {
                let addresses = if member.addresses.is_empty() { "–".to_owned() } else { member.addresses.join(" ") };
                let signed = match (member.signed, member.must_sign) {
                    (true, _) => "yes",
                    (false, true) => "no",
                    (false, false) => "stays",
                };
                let attests = match (&member.attestation_key, &member.attestation_key_sha256) {
                    (None, _) => "–".to_owned(),
                    (Some(_), None) => "unreadable".to_owned(),
                    (Some(_), Some(hint)) => hint.chars().take(HINT_CHARS).collect(),
                };
                vec![member.name.clone(), signed.to_owned(), member.signing_key.to_string(), attests, addresses]
            })
            .collect();
        let warnings: String = self.warnings.iter().map(|warning| format!("\nwarning: {}", tame(warning))).collect();
        let program = program();
        let next: String =
            self.next.iter().map(|(when, command)| format!("\nnext, {when}: {program} {command}")).collect();
        let pending = self
            .pending
            .as_ref()
            .map_or_else(String::new, |pending| format!("\n\na change waits for signatures:\n\n{}", pending.text()));
        format!(
            "{}\n{}{warnings}{next}{pending}",
            table(&["member", "signed", "key", "attestation key", "dialled at"], &members),
            facts(&rows)
        )
    }
}

impl ChangeRow {
    fn in_words(&self) -> String {
        let [(then, failed), (now, fails)] = self.quorum;
        let quorum = if (then, failed) == (now, fails) {
            String::new()
        } else {
            format!("; {now} must agree instead of {then}, and {fails} may fail instead of {failed}")
        };
        format!("{} since the founding: {}{quorum}", self.change, self.what.join("; "))
    }

    fn signatures(&self, missing: &[String], complete: bool, list: &Path) -> String {
        let agreed = format!("{} of {} needed agree: {}", self.agreed.len(), self.must_agree, quoted(&self.agreed));
        if complete {
            return format!("complete, in {}; {agreed}", list.display());
        }
        let first = if missing.is_empty() { String::new() } else { format!("{} must sign first; ", quoted(missing)) };
        let agreed =
            if self.agreed.is_empty() { format!("none of {} needed agree yet", self.must_agree) } else { agreed };
        format!("{first}{agreed}; undecided: {}", quoted(&self.undecided))
    }
}

/// What a signature calls the key in this PEM; the consortium keeps such keys as they are, whatever they are.
fn hint(pem: &str) -> Option<String> {
    AttestationPublicKey::from_pem(pem).ok()?.hint().ok()
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The draft's own change, if it is one, and those before it.
fn changes(draft: &Draft) -> Vec<ChangeRow> {
    let names = |members: &mut dyn Iterator<Item = &fedprune_federation::consortium::Member>| {
        members.map(|member| member.name.clone()).collect::<Vec<_>>()
    };
    let Some(before) = draft.known_predecessor() else { return Vec::new() };
    let agreed = names(&mut draft.agreed_by());
    let mut rows = vec![row(before, draft.consortium(), agreed, names(&mut draft.undecided()))];
    for link in before.lineage() {
        let Some(before) = link.predecessor() else { break };
        let indices: Vec<_> = link.agreed().collect();
        let (agreed, undecided): (Vec<_>, Vec<_>) =
            before.members().iter().zip(before.consortium().indices()).partition(|(_, index)| indices.contains(index));
        let named = |list: Vec<(&fedprune_federation::consortium::Member, _)>| {
            list.into_iter().map(|(member, _)| member.name.clone()).collect()
        };
        rows.push(row(before, link.consortium(), named(agreed), named(undecided)));
    }
    rows
}

fn row(before: &Ratified, after: &Consortium, agreed: Vec<String>, undecided: Vec<String>) -> ChangeRow {
    let found = difference(before.consortium(), after);
    let (then, now) = found.quorum;
    ChangeRow {
        change: after.change(),
        id: after.id(),
        predecessor: before.id(),
        what: found.in_words(),
        agreed,
        undecided,
        must_agree: then.q(),
        quorum: [(then.q(), then.f()), (now.q(), now.f())],
    }
}
