//! Who takes part and in what: consortium, its members' signatures, the round, and the ids given out of band.

use fedprune_federation::{Consortium, Draft, Ratified, Round};

use super::Options;
use super::ledger::{Ledger, failed};
use crate::report::{Area, Outcome, chain};
use crate::transcript::{CONSORTIUM, ROUND, SIGNATURES, Transcript};

/// Checks the founding documents; nothing after them means anything without them.
pub(super) fn check(transcript: &Transcript, options: &Options<'_>, ledger: &mut Ledger) -> Option<(Ratified, Round)> {
    let consortium = consortium(transcript, options, ledger)?;
    let ratified = signatures(transcript, consortium, ledger)?;
    let round = round(transcript, &ratified, options, ledger)?;
    Some((ratified, round))
}

fn consortium(transcript: &Transcript, options: &Options<'_>, ledger: &mut Ledger) -> Option<Consortium> {
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
    identity("consortium id", "--consortium-id", consortium.id(), options.consortium, ledger);
    Some(consortium)
}

fn signatures(transcript: &Transcript, consortium: Consortium, ledger: &mut Ledger) -> Option<Ratified> {
    let compared = format!(
        "the signatures of all {} members with their keys, over consortium id {}",
        consortium.members().len(),
        consortium.id()
    );
    let mut draft = Draft::new(consortium);
    let read = transcript.signatures().map_err(|error| chain(&error));
    let added = read.and_then(|bytes| draft.add_encoded(&bytes).map_err(|error| chain(&error)));
    let ratified = added.and_then(|_| draft.ratify().map_err(|error| chain(&error)));
    let subject = format!("`{SIGNATURES}`");
    match ratified {
        Ok(ratified) => {
            ledger.add(Area::Consortium, None, subject, compared, Outcome::Passed);
            Some(ratified)
        }
        Err(why) => {
            ledger.add(Area::Consortium, None, subject, compared, failed(why));
            None
        }
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
