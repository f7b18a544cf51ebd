//! A member that lies: `fedprune` as it is, with something between the member's machine and the network.
//!
//! `FEDPRUNE_LIE` says how it lies. Everything but `node run` is done as `fedprune` does it, since a node starts itself
//! for what it computes.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use fedprune_cli::args::{Arguments, Command, NodeCommand, NodeRunOptions};
use fedprune_cli::commands::node::run_behind;
use fedprune_cli::output::Report;
use fedprune_federation::machine::Question;
use fedprune_federation::{
    BallotHeader, Height, Justified, MaskResult, MemberIndex, Proposal, Proposed, Ratified, Received, ReceivedProposed,
    Round, SignatureChecked, SigningKey, Statement,
};
use fedprune_mask::Digest;
use fedprune_node::network::{Greeting, Network};
use fedprune_node::run::Outgoing;
use fedprune_node::storage::home::Home;

/// What a flood comes to unless `FEDPRUNE_FLOOD_BYTES` says otherwise.
const FLOOD_BYTES: u64 = 8 << 20;
/// Bytes of one message of a flood.
const FLOOD_MESSAGE_BYTES: usize = 1 << 20;
/// Bytes of one question of a flood.
const FLOOD_QUESTION_BYTES: usize = 256 << 10;
/// How much of a flood may wait to leave.
const FLOOD_AHEAD_BYTES: u64 = 64 << 20;

/// How often a member is looked for before it is flooded.
const MOST_TRIES: usize = 100;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Command::Node(NodeCommand::Run(options)) = &arguments.command else {
        return fedprune_cli::main(env!("CARGO_PKG_VERSION"));
    };
    fedprune_cli::interrupt::install();
    let ended = liar(options).and_then(|liar| run_behind(options, arguments.global.format, Some(Box::new(liar))));
    match ended {
        Ok(ended) => ExitCode::from(ended.exit_code()),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}"); // nowhere is left to tell
            ExitCode::from(fedprune_cli::exit::code(&error))
        }
    }
}

/// How a member lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// It signs a second ballot after its own, which nobody can get.
    SecondBallot,
    /// It signs such a ballot before its own.
    FirstBallot,
    /// As aggregator, it proposes a mask root that is not that of its ballots.
    WrongMask,
    /// It signs a second mask after its own.
    TwoResults,
    /// As aggregator, it proposes nothing.
    SilentAggregator,
    /// It says nothing, answers with nothing, and gives nothing to anybody.
    Mute,
    /// It gives its ballot to nobody.
    WithheldBody,
    /// Beside each message it sends one that is damaged.
    Forged,
    /// It sends garbage, as much as leaves and as fast as it leaves.
    Flood,
    /// It greets as a program of a later protocol.
    AnotherProtocol,
}

impl Lie {
    const ALL: [(Lie, &'static str); 10] = [
        (Lie::SecondBallot, "second-ballot"),
        (Lie::FirstBallot, "first-ballot"),
        (Lie::WrongMask, "wrong-mask"),
        (Lie::TwoResults, "two-results"),
        (Lie::SilentAggregator, "silent-aggregator"),
        (Lie::Mute, "mute"),
        (Lie::WithheldBody, "withheld-body"),
        (Lie::Forged, "forged"),
        (Lie::Flood, "flood"),
        (Lie::AnotherProtocol, "another-protocol"),
    ];

    fn named(name: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.iter().find(|(_, known)| *known == name).map(|(lie, _)| *lie);
        let names = Self::ALL.map(|(_, name)| name).join(", ");
        found.with_context(|| format!("`{name}` is no way to lie that this member knows; it knows {names}"))
    }
}

/// A member with its key.
struct Liar {
    lie: Lie,
    key: SigningKey,
    consortium: Ratified,
    round: Round,
    /// Its ballots.
    bodies: Vec<Digest>,
    flood_bytes: u64,
}

fn liar(options: &NodeRunOptions) -> anyhow::Result<Liar> {
    let lie = Lie::named(&std::env::var("FEDPRUNE_LIE").context("FEDPRUNE_LIE is not set")?)?;
    let flood_bytes = match std::env::var("FEDPRUNE_FLOOD_BYTES") {
        Ok(bytes) => bytes.parse().context("FEDPRUNE_FLOOD_BYTES is no number")?,
        Err(_) => FLOOD_BYTES,
    };
    let home = Home::inspect(&options.home)?;
    let consortium = home.consortium()?;
    let key = home.identity(&consortium)?.signing_key;
    let (round, _) = home.round(&consortium, options.round)?;
    Ok(Liar { lie, key, consortium, round, bodies: Vec::new(), flood_bytes })
}

impl Liar {
    fn me(&self) -> Option<MemberIndex> {
        self.consortium.index_of(&self.key.verifying_key())
    }

    /// Its own statement in these bytes, if that is what they are.
    fn own<T: Statement>(&self, bytes: &[u8]) -> Option<SignatureChecked<T>> {
        let said = Received::<T>::decode(bytes).ok()?.check(&self.consortium, self.round.id()).ok()?;
        (Some(said.member()) == self.me()).then_some(said)
    }

    /// The header of a ballot that does not exist, of the same size as this one.
    fn another_ballot(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let header = self.own::<BallotHeader>(bytes)?;
        let content = BallotHeader { body: Digest::of(b"no such ballot"), ..*header.content() };
        Some(self.sign(content, header.height()))
    }

    /// Another result than this one.
    fn another_result(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let result = self.own::<MaskResult>(bytes)?;
        Some(self.sign(MaskResult { mask_root: Digest::of(b"a wrong mask") }, result.height()))
    }

    fn sign<T: Statement>(&self, content: T, height: Height) -> Vec<u8> {
        let signed = SignatureChecked::sign(content, height, &self.key, &self.consortium, self.round.id());
        signed.expect("a member signs what can be signed").encode()
    }

    fn own_proposal(&self, bytes: &[u8]) -> Option<Proposed> {
        let proposed = ReceivedProposed::decode(bytes).ok()?.check(&self.consortium, &self.round).ok()?;
        (Some(proposed.proposal().member()) == self.me()).then_some(proposed)
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

/// A message with one bit that is not as it was signed.
fn damaged(message: &[u8]) -> Vec<u8> {
    let mut damaged = message.to_vec();
    if let Some(last) = damaged.last_mut() {
        *last ^= 1;
    }
    damaged
}

impl Outgoing for Liar {
    fn introduce(&mut self, greeting: Greeting) -> Greeting {
        match self.lie {
            Lie::AnotherProtocol => Greeting { protocol: greeting.protocol + 1, ..greeting },
            _ => greeting,
        }
    }

    fn begin(&mut self, network: &Network) {
        if self.lie == Lie::Flood {
            let members = self.consortium.consortium().indices().filter(|member| Some(*member) != self.me());
            let (members, network, bytes) = (members.collect(), network.clone(), self.flood_bytes);
            std::thread::spawn(move || futures::executor::block_on(flood(&network, members, bytes)));
        }
    }

    fn publish(&mut self, message: Vec<u8>) -> Vec<Vec<u8>> {
        if let Some(header) = self.own::<BallotHeader>(&message) {
            self.bodies.push(header.content().body);
        }
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
            Lie::TwoResults => match self.another_result(&message) {
                Some(other) => vec![message, other],
                None => vec![message],
            },
            Lie::SilentAggregator => match self.own_proposal(&message) {
                Some(_) => Vec::new(),
                None => vec![message],
            },
            Lie::Mute => Vec::new(),
            Lie::Forged => vec![damaged(&message), message],
            Lie::WithheldBody | Lie::Flood | Lie::AnotherProtocol => vec![message],
        }
    }

    fn answer(&mut self, mut messages: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        match self.lie {
            // what it should have proposed is not known from its answers either
            Lie::WrongMask | Lie::SilentAggregator => messages.retain(|message| self.own_proposal(message).is_none()),
            Lie::Mute => messages.clear(),
            Lie::Forged => messages = messages.iter().map(|message| damaged(message)).collect(),
            Lie::SecondBallot | Lie::FirstBallot | Lie::TwoResults | Lie::WithheldBody | Lie::Flood => {}
            Lie::AnotherProtocol => {}
        }
        messages
    }

    fn serves(&mut self, body: &Digest) -> bool {
        match self.lie {
            Lie::Mute => false,
            Lie::WithheldBody => !self.bodies.contains(body),
            _ => true,
        }
    }
}

/// Bytes that nobody has seen before, and that nothing compresses.
struct Garbage(u64);

impl Garbage {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.extend(self.0.to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// Sends so many bytes of garbage to all, as messages and as questions, as fast as they leave.
async fn flood(network: &Network, members: Vec<MemberIndex>, bytes: u64) {
    let mut garbage = Garbage(0x5eed ^ u64::from(std::process::id()));
    let mut begun: u64 = 0;
    // nobody is flooded before all can be
    for member in &members {
        for _ in 0..MOST_TRIES {
            if network.ask(*member, Question::Mine.encode()).await.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    while network.traffic().sent.total() < bytes {
        if network.publish(garbage.bytes(FLOOD_MESSAGE_BYTES)).await.is_err() {
            return; // the node has stopped
        }
        begun = begun.saturating_add(FLOOD_MESSAGE_BYTES as u64 * members.len() as u64);
        let mut asked = 0;
        for member in &members {
            let question = garbage.bytes(FLOOD_QUESTION_BYTES);
            asked += usize::from(!matches!(
                network.ask(*member, question).await,
                Err(fedprune_node::network::AskError::NotConnected(_))
            ));
        }
        let sent = network.traffic().sent.total();
        if asked == 0 || begun.saturating_sub(sent) > FLOOD_AHEAD_BYTES {
            std::thread::sleep(Duration::from_millis(20)); // a thread of its own
            begun = begun.min(sent.saturating_add(FLOOD_AHEAD_BYTES / 2));
        }
    }
}
