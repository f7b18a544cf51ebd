//! Signed statements, each compared with the key of the member in whose name it speaks.

use fedprune_federation::proposed::ProposedError;
use fedprune_federation::statement::{Statement, StatementError};
use fedprune_federation::{
    BallotHeader, Decision, Height, Holdings, MaskResult, Proposal, Received, ReceivedEvidence, ReceivedProposed,
    SignatureChecked,
};
use fedprune_mask::Digest;

use super::Context;
use super::equivocation::Said;
use super::ledger::{Ledger, blamed, failed};
use crate::report::{Area, Outcome, chain};
use crate::transcript::{Class, HeightFiles, evidence_name, header_name, member_name, path_of, proposal_name};

/// What was signed at one height and verified.
#[derive(Default)]
pub(super) struct Statements {
    pub headers: Vec<SignatureChecked<BallotHeader>>,
    pub results: Vec<SignatureChecked<MaskResult>>,
    pub proposed: Vec<Proposed>,
}

/// A proposal that its member signed, and what is behind it.
pub(super) struct Proposed {
    pub proposal: SignatureChecked<Proposal>,
    /// Where it lies.
    pub file: String,
    /// What it proposes, if that follows from what it rests on.
    pub grounds: Result<Decision, Unfounded>,
}

/// Why a proposal does not stand up.
pub(super) struct Unfounded {
    pub why: String,
    /// Whether the signer is to blame, and not who passed it on.
    pub blames: bool,
}

/// Most proposals of one height that are looked at: an honest member makes one each view that is its turn.
pub(super) const MAX_PROPOSALS: usize = 4096;

/// Reads and checks everything of one height but its decision.
pub(super) fn read(
    context: &Context<'_>,
    height: Height,
    files: &HeightFiles,
    said: &mut Said,
    ledger: &mut Ledger,
) -> Statements {
    let mut statements = Statements::default();
    for name in files.names(Class::Headers) {
        let named = |header: &SignatureChecked<BallotHeader>| header_name(header.member(), header.content().body);
        let show = |header: &BallotHeader| format!("ballot {} of {} bytes", header.body, header.body_bytes);
        if let Some(header) = statement(context, height, (Class::Headers, Area::Header), name, &named, &show, ledger) {
            said.header(&header, &path_of(height, Class::Headers, name));
            statements.headers.push(header);
        }
    }
    for name in files.names(Class::Holdings) {
        let named = |holdings: &SignatureChecked<Holdings>| member_name(holdings.member());
        let show = |holdings: &Holdings| format!("{} ballots held", holdings.count());
        let read = statement(context, height, (Class::Holdings, Area::Holdings), name, &named, &show, ledger);
        if let Some(holdings) = read {
            said.holdings(&holdings, &path_of(height, Class::Holdings, name));
        }
    }
    for name in files.names(Class::Results) {
        let named = |result: &SignatureChecked<MaskResult>| member_name(result.member());
        let show = |result: &MaskResult| format!("mask root {}", result.mask_root);
        if let Some(result) = statement(context, height, (Class::Results, Area::Result), name, &named, &show, ledger) {
            said.result(&result, &path_of(height, Class::Results, name));
            statements.results.push(result);
        }
    }
    let proposals = files.names(Class::Proposals);
    if proposals.len() > MAX_PROPOSALS {
        let why = format!("there are {}, and {MAX_PROPOSALS} at most are looked at", proposals.len());
        let subject = format!("proposals at height {height}");
        ledger.add(Area::Proposal, Some(height), subject, "their number with what is looked at", failed(why));
    }
    for name in proposals.iter().take(MAX_PROPOSALS) {
        proposal(context, height, name, &mut statements, said, ledger);
    }
    for name in files.names(Class::Evidence) {
        evidence(context, height, name, said, ledger);
    }
    statements
}

/// Reads one signed statement: its bytes, its place, its signature, and its name.
fn statement<T: Statement>(
    context: &Context<'_>,
    height: Height,
    (class, area): (Class, Area),
    name: &str,
    named: &dyn Fn(&SignatureChecked<T>) -> String,
    show: &dyn Fn(&T) -> String,
    ledger: &mut Ledger,
) -> Option<SignatureChecked<T>> {
    let path = path_of(height, class, name);
    let fail = |ledger: &mut Ledger, outcome| {
        let compared = format!("it with a {} of height {height} and its signature", T::KIND);
        ledger.add(area, Some(height), format!("`{path}`"), compared, outcome);
        None
    };
    let bytes = match context.transcript.file(height, class, name) {
        Ok(bytes) => bytes,
        Err(error) => return fail(ledger, failed(chain(&error))),
    };
    let received = match Received::<T>::decode(&bytes) {
        Ok(received) => received,
        Err(error) => return fail(ledger, failed(chain(&error))),
    };
    let claimed = received.claimed_height();
    let checked = match received.check(context.consortium, context.round.id()) {
        Ok(checked) => checked,
        Err(error @ StatementError::Content { .. }) => {
            let StatementError::Content { member, .. } = &error else { return None };
            return fail(ledger, blamed(member.clone(), chain(&error)));
        }
        Err(error) => return fail(ledger, failed(chain(&error))),
    };
    if claimed != height {
        return fail(ledger, failed(format!("it is of height {claimed}, and lies at height {height}")));
    }
    let expected = named(&checked);
    if expected != name {
        return fail(ledger, failed(format!("its content belongs under the name `{expected}`")));
    }
    let (subject, compared) = passed(context, &checked, show(checked.content()));
    ledger.add(area, Some(height), subject, compared, Outcome::Passed);
    Some(checked)
}

/// Subject and comparison of a statement that verified.
pub(super) fn passed<T: Statement>(
    context: &Context<'_>,
    statement: &SignatureChecked<T>,
    shown: String,
) -> (String, String) {
    let member = statement.member();
    let key = context.consortium.member(member).map(|member| member.signing_key.to_string()).unwrap_or_default();
    let subject = format!("{} of `{}` at height {}", T::KIND, context.name(member), statement.height());
    (subject, format!("signature with key {}, over {shown}", key.chars().take(8).collect::<String>()))
}

fn proposal(
    context: &Context<'_>,
    height: Height,
    name: &str,
    statements: &mut Statements,
    said: &mut Said,
    ledger: &mut Ledger,
) {
    let path = path_of(height, Class::Proposals, name);
    let mut fail = |why: String| {
        let compared = format!("it with a proposal of height {height} and its signature");
        ledger.add(Area::Proposal, Some(height), format!("`{path}`"), compared, failed(why));
    };
    let bytes = match context.transcript.file(height, Class::Proposals, name) {
        Ok(bytes) => bytes,
        Err(error) => return fail(chain(&error)),
    };
    let received = match ReceivedProposed::decode(&bytes) {
        Ok(received) => received,
        Err(error) => return fail(chain(&error)),
    };
    let checked = received.check(context.consortium, context.round);
    let signed = match &checked {
        Ok(proposed) => proposed.proposal(),
        Err(ProposedError::Unfounded(unfounded)) => &unfounded.proposal,
        Err(error) => return fail(chain(error)),
    };
    if signed.height() != height {
        return fail(format!("it is of height {}, and lies at height {height}", signed.height()));
    }
    let expected = proposal_name(signed.content().view, signed.member(), Digest::of(&bytes));
    if expected != name {
        return fail(format!("its content belongs under the name `{expected}`"));
    }
    let content = signed.content();
    let (subject, compared) = passed(context, signed, format!("value {} in view {}", content.value, content.view));
    ledger.add(Area::Proposal, Some(height), subject, compared, Outcome::Passed);
    said.proposal(signed, &path);
    let proposal = signed.clone();
    let grounds = match checked {
        Ok(proposed) => {
            for statement in proposed.justified().statements() {
                said.holdings(statement, &path);
            }
            Ok(proposed.justified().decision().clone())
        }
        Err(ProposedError::Unfounded(unfounded)) => {
            Err(Unfounded { why: chain(&unfounded.why), blames: unfounded.blames() })
        }
        Err(_) => return,
    };
    statements.proposed.push(Proposed { proposal, file: path, grounds });
}

fn evidence(context: &Context<'_>, height: Height, name: &str, said: &mut Said, ledger: &mut Ledger) {
    let path = path_of(height, Class::Evidence, name);
    let read = context.transcript.file(height, Class::Evidence, name).map_err(|error| chain(&error));
    let verified = read.and_then(|bytes| {
        let received = ReceivedEvidence::decode(&bytes).map_err(|error| chain(&error))?;
        let evidence = received.verify(context.consortium, context.round.id()).map_err(|error| chain(&error))?;
        let (found, expected) = (evidence.slot().place.height, evidence_name(Digest::of(&bytes)));
        if found != height {
            return Err(format!("it is of height {found}, and lies at height {height}"));
        }
        if expected != name {
            return Err(format!("its content belongs under the name `{expected}`"));
        }
        Ok(evidence)
    });
    let compared = format!("its two statements with each other and with the signer's key, at height {height}");
    let outcome = match verified {
        Ok(evidence) => {
            said.evidence(&evidence, &path);
            Outcome::Passed
        }
        Err(why) => failed(why),
    };
    ledger.add(Area::Evidence, Some(height), format!("evidence `{path}`"), compared, outcome);
}
