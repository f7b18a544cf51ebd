//! What stands between a silo's ballot and its signature: the site's policy and the approval of its operator.
//!
//! The policy is asked when a node starts, about the round and the approval, before anybody is spoken to; and again about
//! the very bytes of each ballot before it is signed, since text may have changed since it was looked at.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use fedprune_federation::policy::{BallotFacts, PolicyRefusal, Refused};
use fedprune_federation::{Approval, Height, RoundId};
use fedprune_mask::Digest;
use fedprune_mask::ballot::{Ballot, BallotHeader, digest_of_bytes};
use fedprune_node::run::{Gate, OwnBallot};
use fedprune_node::storage::home::{Home, Part};

use super::approvals::ApprovalFile;
use super::mask_file::MappedFile;
use super::round::{Record, all_encodings, previewed, refused};
use super::site_policy::SitePolicy;
use crate::args::NodeRunOptions;
use crate::files::{program, shell};

/// What a ballot is asked about.
struct Asked {
    site: Option<SitePolicy>,
    approval: Option<Approval>,
    /// Where the approval lies.
    file: PathBuf,
    /// Where the preview lies.
    folder: PathBuf,
}

/// Asks what can be asked before a node starts; returns what is to be asked about each ballot.
///
/// # Errors
/// [`PolicyRefusal`]; an approval that was changed; whatever keeps a home from being used.
pub(super) fn gate(options: &NodeRunOptions) -> anyhow::Result<Gate> {
    let gate = asked(&options.home, options.round, options.policy.as_deref(), options.ballot.as_deref(), true)?;
    Ok(Gate(Arc::new(move |ballot: &OwnBallot<'_>| gate.ask(ballot))))
}

/// The same, of a home in which no node is started yet.
///
/// # Errors
/// As [`gate`].
pub(super) fn ask_before(
    folder: &Path,
    round: Option<RoundId>,
    policy: Option<&Path>,
    ballot: Option<&Path>,
) -> anyhow::Result<()> {
    asked(folder, round, policy, ballot, false).map(|_| ())
}

/// [`ask_before`]; whether a ballot that lies there and is not the approved one is discarded, so that it is made anew.
fn asked(
    folder: &Path,
    round: Option<RoundId>,
    policy: Option<&Path>,
    ballot: Option<&Path>,
    discards: bool,
) -> anyhow::Result<Asked> {
    let home = Home::inspect(folder)?;
    let Part { consortium, round, folder, identity } = home.part(round)?;
    let file = folder.approval();
    let approval = match ApprovalFile::read(folder.folder())? {
        Some(file) => file.checked(round.id(), &identity.signing_key.verifying_key()).map(|found| found.cloned()),
        None => Ok(None),
    };
    let approval = approval.with_context(|| format!("`{}` does not count", file.display()))?;
    let site = SitePolicy::find(home.folder(), policy)?;
    if let Some(site) = &site {
        let mut found = site.policy.check_round(round.terms(), consortium.consortium());
        found.extend(site.policy.check_approval(approval.as_ref(), None));
        let preview = if site.policy.requires_preview() { previewed_unless_begun(&folder)? } else { None };
        match &preview {
            Some(record) => found.extend(refused(&site.policy, record)),
            None if site.policy.requires_preview() && !folder.wal().exists() => {
                found.extend(site.policy.missing_preview());
            }
            None => {}
        }
        found.dedup_by(|a, b| a.rule == b.rule);
        site.heed(found).with_context(|| {
            let (program, home) = (program(), shell(home.folder()));
            let document = shell(&folder.document());
            format!(
                "the node was not started; see what would leave: {program} round preview {document} --home {home} \
                 --model DIR --data PATH; approve it: {program} round approve {document} --home {home}"
            )
        })?;
    }
    let asked = Asked { site, approval, file, folder: folder.folder().to_owned() };
    // a ballot that lies there already need not wait for the network to be refused
    let known = ballot.map_or_else(|| asked.computed(), Path::to_owned);
    if known.is_file() && !folder.wal().exists() {
        let digest = digest_of_bytes(MappedFile::open(&known)?.bytes());
        if let Err(refusal) = asked.approved(Height(0), digest, None) {
            if ballot.is_some() || asked.is_previewed(digest) {
                return Err(refusal.into());
            }
            // of a text of before: today's may be the approved one, whose ballot is then computed again
            if discards {
                asked.discard(digest);
            }
        }
    }
    Ok(asked)
}

/// The record of the preview; of a round that a node has begun, none, since its ballot may be signed already: if it is not,
/// it is asked about before it is.
fn previewed_unless_begun(folder: &fedprune_node::storage::home::RoundFolder) -> anyhow::Result<Option<Record>> {
    if folder.wal().exists() {
        return Ok(None);
    }
    Ok(previewed(folder.folder())?.map(|(record, _)| record))
}

impl Asked {
    /// Whether this is the ballot that was approved, where one was. Later ballots of an iterative round depend on what
    /// is agreed on before them, so that nobody saw them: of those, what was approved is the text.
    fn approved(&self, height: Height, digest: Digest, calibration: Option<Digest>) -> Result<(), PolicyRefusal> {
        let Some(Approval { ballot: Some(named), calibration: text, .. }) = &self.approval else { return Ok(()) };
        let short = |text: &Option<Digest>| text.map_or_else(|| "no text".to_owned(), |text| text.short().to_string());
        let (allowed, found) = if height == Height(0) && *named != digest {
            (
                format!("names ballot {}", named.short()),
                if self.is_previewed(digest) {
                    format!(
                        "ballot {} would be sent, which the newest preview showed and nobody approved: approve it, or \
                         make another preview, of the text that was approved",
                        digest.short()
                    )
                } else {
                    format!(
                        "ballot {} would be sent: text, model or settings are not those of the preview; put those back, \
                         and the same command goes on, or make another preview and approve it",
                        digest.short()
                    )
                },
            )
        } else if height != Height(0) && *text != calibration {
            (
                format!("names the text (token windows {})", short(text)),
                format!(
                    "the ballot of height {height} is made from another ({}): give the text of the preview with --data; it \
                     was not signed, and the same command goes on",
                    short(&calibration)
                ),
            )
        } else {
            return Ok(());
        };
        let refused = vec![Refused { rule: "approval", line: 0, allowed, found }];
        Err(PolicyRefusal { file: self.file.clone(), refused })
    }

    /// Whether this is the preview that was approved, where one was.
    fn shows(&self, preview: Digest) -> bool {
        self.approval.as_ref().and_then(|approval| approval.preview).is_none_or(|named| named == preview)
    }

    /// Where the ballot of height 0 is computed.
    fn computed(&self) -> PathBuf {
        self.folder.join("contribution/height-0000.ballot")
    }

    /// Whether this is the ballot of the newest preview, which an operator may still approve.
    fn is_previewed(&self, ballot: Digest) -> bool {
        matches!(Record::read(&self.folder), Ok(Some((record, _))) if record.ballot == ballot)
    }

    /// Takes away a computed ballot that is refused: were it there still, it would be refused whatever became of the text.
    fn discard(&self, refused: Digest) {
        let path = self.computed();
        if MappedFile::open(&path).is_ok_and(|file| digest_of_bytes(file.bytes()) == refused) {
            // one that stays is refused again, and does not leave
            let _ = std::fs::remove_file(&path);
        }
    }

    fn ask(&self, own: &OwnBallot<'_>) -> Result<(), PolicyRefusal> {
        if let Err(refusal) = self.approved(own.height, own.digest, own.calibration) {
            if own.height == Height(0) && !self.is_previewed(own.digest) {
                self.discard(own.digest);
            }
            return Err(refusal);
        }
        let Some(site) = &self.site else { return Ok(()) };
        let ballot = match Ballot::parse(own.bytes, own.layout) {
            Ok(ballot) => ballot,
            Err(error) => {
                let (allowed, found) = ("lets nothing leave but ballots".to_owned(), format!("this is none: {error}"));
                return site.heed(vec![Refused { rule: "ballot", line: 0, allowed, found }]);
            }
        };
        let encodings = all_encodings(&ballot);
        let calibration_tokens = match ballot.header() {
            BallotHeader::Vote(vote) if vote.samples > 0 => {
                Some(u64::from(vote.samples) * u64::from(vote.sequence_tokens))
            }
            _ => None,
        };
        let facts = BallotFacts { bytes: own.bytes.len() as u64, encodings: &encodings, calibration_tokens };
        let mut found = site.policy.check_ballot(facts);
        if own.height == Height(0) {
            found.extend(site.policy.check_approval(self.approval.as_ref(), Some(own.digest)));
            if site.policy.requires_preview() {
                // when the node started, the preview may have been of another ballot, or the policy another
                found.extend(match Record::read(&self.folder) {
                    Ok(Some((record, digest))) if record.ballot == own.digest && self.shows(digest) => {
                        refused(&site.policy, &record)
                    }
                    _ => site.policy.missing_preview(),
                });
            }
        }
        found.dedup_by(|a, b| a.rule == b.rule);
        site.heed(found)
    }
}
