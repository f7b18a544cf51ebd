//! What members have signed, from transcripts and logs: a member may fill a slot once.

use std::path::Path;

use fedprune_audit::transcript::{Class, Limits, Transcript};
use fedprune_federation::evidence::Equivocation;
use fedprune_federation::machine::Record;
use fedprune_federation::wire::{self, Content};
use fedprune_federation::{
    BallotHeader, Holdings, MaskResult, MemberIndex, Precommit, Prevote, Proposal, Ratified, Received,
    ReceivedProposed, ReceivedSettled, Round, Settled, SignatureChecked, Statement,
};
use fedprune_node::storage::home::Home;
use fedprune_node::storage::wal::Wal;

/// Everything that was found, by kind.
pub struct Slots {
    consortium: Ratified,
    round: Round,
    headers: Vec<SignatureChecked<BallotHeader>>,
    holdings: Vec<SignatureChecked<Holdings>>,
    results: Vec<SignatureChecked<MaskResult>>,
    proposals: Vec<SignatureChecked<Proposal>>,
    prevotes: Vec<SignatureChecked<Prevote>>,
    precommits: Vec<SignatureChecked<Precommit>>,
    settled: Vec<Settled>,
    /// Files of evidence in transcripts.
    evidence: Vec<String>,
    /// Statements in the logs of those who made them.
    said: usize,
}

impl Slots {
    /// Of the round of this home.
    pub fn of(home: &Path, round: fedprune_federation::RoundId) -> Self {
        let home = Home::inspect(home).expect("a home");
        let consortium = home.consortium().expect("a consortium");
        let (round, _) = home.round(&consortium, Some(round)).expect("a round");
        Self {
            consortium,
            round,
            headers: Vec::new(),
            holdings: Vec::new(),
            results: Vec::new(),
            proposals: Vec::new(),
            prevotes: Vec::new(),
            precommits: Vec::new(),
            settled: Vec::new(),
            evidence: Vec::new(),
            said: 0,
        }
    }

    /// Adds what is in a home: its log, and its transcript if there is one.
    pub fn add_home(&mut self, home: &Path) {
        let folder = Home::inspect(home).expect("a home").round_folder(self.round.id());
        let (mut log, _) = Wal::open(&folder.wal()).expect("a log");
        let entries: Vec<_> = log.entries().map(|entry| entry.expect("an entry").payload).collect();
        for entry in entries {
            match Record::decode(&entry).expect("a record") {
                Record::Said(bytes) => {
                    self.said += 1;
                    self.add(&bytes);
                }
                Record::Heard(bytes) => self.add(&bytes),
                _ => {}
            }
        }
        if folder.transcript().exists() {
            self.add_transcript(&folder.transcript());
        }
    }

    fn add_transcript(&mut self, folder: &Path) {
        let transcript = Transcript::open(folder, &Limits::default()).expect("a transcript");
        let heights: Vec<_> = transcript.heights().map(|(height, files)| (height, files.clone())).collect();
        for (height, files) in heights {
            for class in Class::ALL {
                for name in files.names(class) {
                    let bytes = transcript.file(height, class, name).expect("a file");
                    if class == Class::Evidence {
                        self.evidence.push(format!("{}: {name}", folder.display()));
                    } else {
                        self.add(&bytes);
                    }
                }
            }
            if files.settled {
                self.add(&transcript.settled(height).expect("a decision"));
            }
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        let (consortium, round) = (&self.consortium, self.round.id());
        fn read<T: Statement>(
            bytes: &[u8],
            consortium: &Ratified,
            round: fedprune_federation::RoundId,
        ) -> SignatureChecked<T> {
            Received::<T>::decode(bytes).expect("a statement").check(consortium, round).expect("signed")
        }
        match wire::content_of(bytes).expect("a message") {
            Some(Content::BallotHeader) => self.headers.push(read(bytes, consortium, round)),
            Some(Content::Holdings) => self.holdings.push(read(bytes, consortium, round)),
            Some(Content::MaskResult) => self.results.push(read(bytes, consortium, round)),
            Some(Content::Prevote) => self.prevotes.push(read(bytes, consortium, round)),
            Some(Content::Precommit) => self.precommits.push(read(bytes, consortium, round)),
            Some(Content::Proposed) => {
                let received = ReceivedProposed::decode(bytes).expect("a proposal");
                let proposed = received.check(consortium, &self.round).expect("founded");
                self.holdings.extend(proposed.justified().statements().iter().cloned());
                self.proposals.push(proposed.proposal().clone());
            }
            Some(Content::Settled) => {
                let received = ReceivedSettled::decode(bytes).expect("a decision");
                let settled = received.check(consortium, &self.round).expect("certified");
                self.holdings.extend(settled.justified().statements().iter().cloned());
                self.settled.push(settled);
            }
            Some(Content::Evidence) => self.evidence.push("in a log".to_owned()),
            other => panic!("{other:?} in a log"),
        }
    }

    /// What is wrong: slots with two contents, and evidence.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.evidence.clone();
        conflicts(&self.headers, &mut faults);
        conflicts(&self.holdings, &mut faults);
        conflicts(&self.results, &mut faults);
        conflicts(&self.proposals, &mut faults);
        conflicts(&self.prevotes, &mut faults);
        conflicts(&self.precommits, &mut faults);
        for settled in &self.settled {
            let certificate = settled.certificate();
            for precommit in &self.precommits {
                let same = (precommit.height(), precommit.content().view) == (certificate.height(), certificate.view());
                let counted = certificate.members().any(|member| member == precommit.member());
                if same && counted && precommit.content().value != Some(certificate.value()) {
                    faults.push(format!("a certificate has another precommit of member {}", precommit.member()));
                }
            }
        }
        faults
    }

    /// Kinds of statements of a member that were found; and how many statements were in logs of those who made them.
    pub fn kinds(&self, member: MemberIndex) -> Vec<String> {
        fn of<T: Statement>(all: &[SignatureChecked<T>], member: MemberIndex) -> Option<String> {
            let found = all.iter().find(|statement| statement.member() == member);
            found.map(|statement| statement.slot().kind.to_string())
        }
        let kinds = [
            of(&self.headers, member),
            of(&self.holdings, member),
            of(&self.proposals, member),
            of(&self.prevotes, member),
            of(&self.precommits, member),
            of(&self.results, member),
        ];
        kinds.into_iter().flatten().collect()
    }

    /// Statements found in the logs of those who made them.
    pub fn said(&self) -> usize {
        self.said
    }
}

fn conflicts<T: Statement>(all: &[SignatureChecked<T>], faults: &mut Vec<String>) {
    for (position, one) in all.iter().enumerate() {
        for other in &all[position + 1..] {
            if Equivocation::between(one, other).is_some() {
                faults.push(format!("two contents in {:?}: {:?}, {:?}", one.slot(), one.content(), other.content()));
            }
        }
    }
}
