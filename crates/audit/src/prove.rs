//! Proof that a member's ballots count, taken out of a transcript: a small file in place of the folder.

use std::path::Path;

use fedprune_federation::inclusion::{IncludedBallot, InclusionError};
use fedprune_federation::{
    BallotHeader, Height, Inclusion, MaskResult, MemberIndex, Ratified, Received, ReceivedSettled, Round,
    SignatureChecked,
};
use fedprune_mask::Digest;

use crate::report::chain;
use crate::transcript::{Class, HeightFiles, Limits, Transcript, TranscriptError, member_name};
use crate::verify::founded;

/// What a transcript proves of a member.
#[derive(Debug, Clone)]
pub struct Proven {
    /// The proof; none where no ballot of the member counts.
    pub proof: Option<Inclusion>,
    /// Heights at which another set of ballots was decided on, without one of the member.
    pub not_counted: Vec<Height>,
}

/// Why nothing can be proven.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// No transcript.
    #[error(transparent)]
    Transcript(#[from] TranscriptError),
    /// Consortium or round do not hold.
    #[error("nothing of the transcript can be proven: {0}")]
    Founding(String),
    /// Nobody of that name.
    #[error("`{name}` is no member of the consortium; its members are {members}")]
    NoSuchMember {
        /// The name.
        name: String,
        /// Names of the members.
        members: String,
    },
    /// No decision that holds.
    #[error("height {height} cannot be proven: {why}; `fedprune audit verify` says more")]
    Height {
        /// The height.
        height: Height,
        /// Why.
        why: String,
    },
    /// The transcript has no such height, or none at all.
    #[error("the transcript has no height {0}")]
    NoHeight(Height),
    /// The parts are there and prove nothing.
    #[error("the transcript does not prove it")]
    Inclusion(#[from] InclusionError),
}

/// Takes out of a transcript what proves that the ballots of `name` count: at `height`, or wherever they do.
///
/// # Errors
/// [`ProveError`] when the transcript does not hold in what is taken from it.
pub fn prove(folder: &Path, name: &str, height: Option<Height>, limits: Limits) -> Result<Proven, ProveError> {
    let transcript = Transcript::open(folder, &limits)?;
    let (consortium, round) = founded(&transcript).map_err(ProveError::Founding)?;
    let member = consortium.consortium().index_by_name(name).ok_or_else(|| {
        let names: Vec<String> =
            consortium.members().iter().take(20).map(|member| format!("`{}`", member.name)).collect();
        let more = if consortium.members().len() > names.len() { ", …" } else { "" };
        ProveError::NoSuchMember { name: crate::report::harmless(name), members: names.join(", ") + more }
    })?;
    let heights: Vec<Height> = match height {
        Some(height) => vec![height],
        None => transcript.heights().filter(|(_, files)| files.settled).map(|(height, _)| height).collect(),
    };
    let mut included = Vec::new();
    let mut not_counted = Vec::new();
    for height in &heights {
        let files = transcript.height(*height).filter(|files| files.settled).ok_or(ProveError::NoHeight(*height))?;
        match one(&transcript, &consortium, &round, member, (*height, files))? {
            Some(ballot) => included.push(ballot),
            None => not_counted.push(*height),
        }
    }
    if heights.is_empty() {
        return Err(ProveError::NoHeight(Height(0)));
    }
    let proof = if included.is_empty() { None } else { Some(Inclusion::new(&consortium, &round, included)?) };
    Ok(Proven { proof, not_counted })
}

/// The proof of one height; none where the member has no ballot in it.
fn one(
    transcript: &Transcript,
    consortium: &Ratified,
    round: &Round,
    member: MemberIndex,
    (height, files): (Height, &HeightFiles),
) -> Result<Option<IncludedBallot>, ProveError> {
    let fail = |why: String| ProveError::Height { height, why };
    let bytes = transcript.settled(height).map_err(|error| fail(chain(&error)))?;
    let received = ReceivedSettled::decode(&bytes).map_err(|error| fail(chain(&error)))?;
    let settled = received.check(consortium, round).map_err(|error| fail(chain(&error)))?;
    if settled.decision().height() != height {
        return Err(fail(format!("its decision is of height {}", settled.decision().height())));
    }
    let counted = settled.decision().ballots();
    let counted = counted.and_then(|manifest| manifest.ballots().get(member.as_usize()).copied().flatten());
    let Some(body) = counted else { return Ok(None) };
    let header = header(transcript, consortium, round, member, body, (height, files))
        .ok_or_else(|| fail(format!("no signed header of ballot {body} is in it")))?;
    let results = files.names(Class::Results).iter().filter_map(|name| {
        let bytes = transcript.file(height, Class::Results, name).ok()?;
        let result = Received::<MaskResult>::decode(&bytes).ok()?.check(consortium, round.id()).ok()?;
        (member_name(result.member()) == *name && result.height() == height).then_some(result)
    });
    let results: Vec<SignatureChecked<MaskResult>> = results.collect();
    let (decision, certificate) = (settled.decision().clone(), settled.certificate().clone());
    Ok(Some(IncludedBallot::new(header, decision, certificate, &results, consortium, round)?))
}

/// The header that the member signed of a ballot.
fn header(
    transcript: &Transcript,
    consortium: &Ratified,
    round: &Round,
    member: MemberIndex,
    body: Digest,
    (height, files): (Height, &HeightFiles),
) -> Option<SignatureChecked<BallotHeader>> {
    files.names(Class::Headers).iter().find_map(|name| {
        let bytes = transcript.file(height, Class::Headers, name).ok()?;
        let received = Received::<BallotHeader>::decode(&bytes).ok()?;
        if received.claimed_member() != member || received.claimed().body != body {
            return None;
        }
        let header = received.check(consortium, round.id()).ok()?;
        (header.height() == height).then_some(header)
    })
}
