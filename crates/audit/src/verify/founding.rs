//! Who takes part and in what: consortium, its members' signatures and the changes since its founding, the round, and the
//! ids given out of band.
//!
//! The consortium id that is given may be that of the transcript's consortium or of one whose place it took: then it is the
//! chain that leads from what the auditor knows to what it finds, each link agreed to by a quorum of the one before.

use fedprune_federation::consortium::succession::difference;
use fedprune_federation::{Consortium, ConsortiumId, Draft, Ratified, Round};

use super::Options;
use super::ledger::{Ledger, failed};
use crate::report::{Area, Outcome, chain};
use crate::transcript::{CONSORTIUM, ROUND, SIGNATURES, Transcript};

/// Checks the founding documents; nothing after them means anything without them.
pub(super) fn check(transcript: &Transcript, options: &Options<'_>, ledger: &mut Ledger) -> Option<(Ratified, Round)> {
    let consortium = consortium(transcript, ledger)?;
    let id = consortium.id();
    let ratified = signatures(transcript, consortium, ledger);
    consortium_identity(id, ratified.as_ref(), options.consortium, ledger);
    let ratified = ratified?;
    let round = round(transcript, &ratified, options, ledger)?;
    Some((ratified, round))
}

fn consortium(transcript: &Transcript, ledger: &mut Ledger) -> Option<Consortium> {
    let subject = || format!("`{CONSORTIUM}`");
    let compared = "its bytes with the canonical form of a consortium";
    let read = transcript.consortium().map_err(|error| chain(&error));
    let consortium = read.and_then(|bytes| Consortium::decode(&bytes).map_err(|error| chain(&error)));
    let consortium = match consortium {
        Ok(consortium) => consortium,
        Err(why) => {
            ledger.add(Area::Consortium, None, subject(), compared, failed(why));
            return None;
        }
    };
    let members = consortium.members().len();
    let quorum = consortium.quorum();
    let compared = format!(
        "its bytes with the canonical form of a consortium: `{}`, {members} members, {} decide, {} may fail",
        consortium.name(),
        quorum.q(),
        quorum.f()
    );
    ledger.add(Area::Consortium, None, subject(), compared, Outcome::Passed);
    Some(consortium)
}

/// The id of the consortium, or one before it, with the one given.
fn consortium_identity(
    found: ConsortiumId,
    ratified: Option<&Ratified>,
    given: Option<ConsortiumId>,
    ledger: &mut Ledger,
) {
    let earlier = given.filter(|given| *given != found).and_then(|given| ratified?.in_lineage(given));
    let (Some(earlier), Some(ratified)) = (earlier, ratified) else {
        return identity("consortium id", "--consortium-id", found, given, ledger);
    };
    let changes = ratified.consortium().change().saturating_sub(earlier.consortium().change());
    let compared = format!(
        "{found} of the transcript with {} as given: it is that consortium after {changes} change{}, each agreed to by a quorum of the \
         members before it",
        earlier.id(),
        if changes == 1 { "" } else { "s" }
    );
    ledger.add(Area::Identity, None, "consortium id".to_owned(), compared, Outcome::Passed);
    ledger.note(
        "the consortium id given is of an earlier consortium: that its members did not also agree to another successor cannot be \
         told from this transcript; it would take more than may fail of them, who are named if both are ever seen"
            .to_owned(),
    );
}

fn signatures(transcript: &Transcript, consortium: Consortium, ledger: &mut Ledger) -> Option<Ratified> {
    let compared = match consortium.origin() {
        None => format!(
            "the signatures of all {} members with their keys, over consortium id {}",
            consortium.members().len(),
            consortium.id()
        ),
        Some(origin) => format!(
            "the signatures of {} change{} since the founding with the keys of a quorum of the members before each, and of those that \
             enter, up to consortium id {}",
            origin.change,
            if origin.change == 1 { "" } else { "s" },
            consortium.id()
        ),
    };
    let mut draft = Draft::new(consortium);
    let read = transcript.signatures().map_err(|error| chain(&error));
    let added = read.and_then(|bytes| draft.add_encoded(&bytes).map_err(|error| chain(&error)));
    let ratified = added.and_then(|_| draft.ratify().map_err(|error| chain(&error)));
    let subject = format!("`{SIGNATURES}`");
    match ratified {
        Ok(ratified) => {
            ledger.add(Area::Consortium, None, subject, compared, Outcome::Passed);
            changes(&ratified, ledger);
            Some(ratified)
        }
        Err(why) => {
            ledger.add(Area::Consortium, None, subject, compared, failed(why));
            None
        }
    }
}

/// Each change since the founding, in order, with who agreed to it.
fn changes(ratified: &Ratified, ledger: &mut Ledger) {
    let mut links: Vec<(&Ratified, &Ratified)> =
        ratified.lineage().filter_map(|link| Some((link.predecessor()?, link))).collect();
    links.reverse();
    for (before, link) in links {
        let agreed: Vec<String> = link
            .agreed()
            .filter_map(|member| before.member(member))
            .map(|member| format!("`{}`", member.name))
            .collect();
        let what = difference(before.consortium(), link.consortium()).in_words();
        let compared = format!(
            "{}: the agreement of {}, {} of {} members of consortium {}, with the {} needed",
            what.join("; "),
            agreed.join(", "),
            agreed.len(),
            before.members().len(),
            before.id(),
            before.quorum().q()
        );
        let subject = format!("change {} of the consortium", link.consortium().change());
        ledger.add(Area::Consortium, None, subject, compared, Outcome::Passed);
    }
}

fn round(transcript: &Transcript, consortium: &Ratified, options: &Options<'_>, ledger: &mut Ledger) -> Option<Round> {
    let compared = format!(
        "its bytes with the canonical form of a round of consortium {}, and its terms with each other",
        consortium.id()
    );
    let read = transcript.round().map_err(|error| chain(&error));
    let round = read.and_then(|bytes| Round::decode(&bytes, consortium.consortium()).map_err(|error| chain(&error)));
    let subject = format!("`{ROUND}`");
    match round {
        Ok(round) => {
            ledger.add(Area::Round, None, subject, compared, Outcome::Passed);
            identity("round id", "--round-id", round.id(), options.round, ledger);
            for warning in round.warnings(consortium.consortium()) {
                ledger.note(format!("about the round's terms: {warning}"));
            }
            Some(round)
        }
        Err(why) => {
            ledger.add(Area::Round, None, subject, compared, failed(why));
            None
        }
    }
}

fn identity<T: PartialEq + std::fmt::Display>(
    what: &str,
    option: &str,
    found: T,
    given: Option<T>,
    ledger: &mut Ledger,
) {
    let (compared, outcome) = match given {
        Some(given) => {
            let outcome = if found == given {
                Outcome::Passed
            } else {
                failed("this transcript is of something else".to_owned())
            };
            (format!("{found} of the transcript with {given} as given"), outcome)
        }
        None => {
            let why = format!("none was given; ask somebody you trust for it, and pass it as {option}");
            (format!("{found} of the transcript with nothing"), Outcome::NotChecked { why })
        }
    };
    ledger.add(Area::Identity, None, what.to_owned(), compared, outcome);
}
