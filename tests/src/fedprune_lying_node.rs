//! A member that lies: `fedprune` as it is, with something between the member's machine and the network.
//!
//! `FEDPRUNE_LIE` says how it lies. Everything but `node run` is done as `fedprune` does it, since a node starts itself
//! for what it computes.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use fedprune_cli::args::{Arguments, Command, NodeCommand, NodeRunOptions};
use fedprune_cli::commands::node::run_behind;
use fedprune_cli::output::Report;
use fedprune_federation::{
    BallotHeader, Justified, Proposal, Proposed, Ratified, Received, ReceivedProposed, Round, SignatureChecked,
    SigningKey,
};
use fedprune_mask::Digest;
use fedprune_node::run::Outgoing;
use fedprune_node::storage::home::Home;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Command::Node(NodeCommand::Run(options)) = &arguments.command else { return fedprune_cli::main() };
    fedprune_cli::interrupt::install();
    let ended = liar(options).and_then(|liar| run_behind(options, arguments.global.format, Some(Box::new(liar))));
    match ended {
        Ok(ended) => ExitCode::from(ended.exit_code()),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}"); // nowhere is left to tell
            ExitCode::FAILURE
        }
    }
}

/// How a member lies.
#[derive(Debug, Clone, Copy)]
enum Lie {
    /// It signs a second ballot after its own, which nobody can get.
    SecondBallot,
    /// It signs such a ballot before its own.
    FirstBallot,
    /// As aggregator, it proposes a mask root that is not that of its ballots.
    WrongMask,
}

/// A member with its key.
struct Liar {
    lie: Lie,
    key: SigningKey,
    consortium: Ratified,
    round: Round,
}

fn liar(options: &NodeRunOptions) -> anyhow::Result<Liar> {
    let lie = match std::env::var("FEDPRUNE_LIE").context("FEDPRUNE_LIE is not set")?.as_str() {
        "second-ballot" => Lie::SecondBallot,
        "first-ballot" => Lie::FirstBallot,
        "wrong-mask" => Lie::WrongMask,
        other => anyhow::bail!("`{other}` is no way to lie that this member knows"),
    };
    let home = Home::inspect(&options.home)?;
    let consortium = home.consortium()?;
    let key = home.identity(&consortium)?.signing_key;
    let (round, _) = home.round(&consortium, options.round)?;
    Ok(Liar { lie, key, consortium, round })
}

impl Liar {
    /// The header of a ballot that does not exist, of the same size as this one.
    fn another_ballot(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let header = Received::<BallotHeader>::decode(bytes).ok()?.check(&self.consortium, self.round.id()).ok()?;
        let own = header.member() == self.consortium.index_of(&self.key.verifying_key())?;
        let content = BallotHeader { body: Digest::of(b"no such ballot"), ..*header.content() };
        own.then(|| self.sign(content, &header))
    }

    fn sign(&self, content: BallotHeader, like: &SignatureChecked<BallotHeader>) -> Vec<u8> {
        let signed = SignatureChecked::sign(content, like.height(), &self.key, &self.consortium, self.round.id());
        signed.expect("a member signs what can be signed").encode()
    }

    fn own_proposal(&self, bytes: &[u8]) -> Option<Proposed> {
        let proposed = ReceivedProposed::decode(bytes).ok()?.check(&self.consortium, &self.round).ok()?;
        let me = self.consortium.index_of(&self.key.verifying_key())?;
        (proposed.proposal().member() == me).then_some(proposed)
    }

    /// The same ballots, and a wrong mask.
    fn wrong_mask(&self, proposed: &Proposed) -> Option<Vec<u8>> {
        let (height, view) = (proposed.proposal().height(), proposed.proposal().content().view);
        let (statements, wrong) = (proposed.justified().statements(), Some(Digest::of(b"a wrong mask")));
        let justified = Justified::from_holdings(statements, height, wrong, &self.consortium, &self.round).ok()?;
        let content = Proposal { view, value: justified.decision().value(), valid_view: None };
        let proposal = SignatureChecked::sign(content, height, &self.key, &self.consortium, self.round.id()).ok()?;
        Some(Proposed::new(proposal, justified).ok()?.encode())
    }
}

impl Outgoing for Liar {
    fn publish(&mut self, message: Vec<u8>) -> Vec<Vec<u8>> {
        match self.lie {
            Lie::SecondBallot => match self.another_ballot(&message) {
                Some(other) => vec![message, other],
                None => vec![message],
            },
            Lie::FirstBallot => match self.another_ballot(&message) {
                Some(other) => vec![other, message],
                None => vec![message],
            },
            Lie::WrongMask => match self.own_proposal(&message) {
                Some(proposed) => self.wrong_mask(&proposed).into_iter().collect(),
                None => vec![message],
            },
        }
    }

    fn answer(&mut self, mut messages: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        if let Lie::WrongMask = self.lie {
            // what it should have proposed is not known from its answers either
            messages.retain(|message| self.own_proposal(message).is_none());
        }
        messages
    }
}
