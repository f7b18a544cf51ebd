//! A consortium, a round in it, and statements of its members.

use fedprune_federation::agreement::Repeated;
use fedprune_federation::consortium::Member;
use fedprune_federation::round::{Calibration, Sampling, SeedRule, Strategy, Timers};
use fedprune_federation::statement::Statement;
use fedprune_federation::{
    Consortium, Draft, Height, MemberIndex, Precommit, Prevote, Proposal, Ratified, Rotation, Round, SignatureChecked,
    SigningKey, Terms,
};
use fedprune_mask::{Digest, Pruner};

pub struct World {
    pub consortium: Ratified,
    pub round: Round,
    pub height: Height,
}

pub fn key(member: usize) -> SigningKey {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&(member as u64 + 1).to_le_bytes());
    SigningKey::from_seed(&seed).unwrap()
}

pub fn value(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

impl World {
    pub fn new(members: usize) -> Self {
        let member = |index| Member {
            name: format!("member {index:04}"),
            signing_key: key(index).verifying_key(),
            peer_key: key(index).verifying_key(),
            addresses: Vec::new(),
            attestation_key: None,
        };
        let consortium = Consortium::new(format!("of {members}"), (0..members).map(member).collect()).unwrap();
        let mut draft = Draft::new(consortium);
        for index in 0..members {
            draft.sign(&key(index)).unwrap();
        }
        let consortium = draft.ratify().unwrap();
        let terms = Terms {
            consortium: consortium.id(),
            base_model: value("model"),
            layout: value("layout"),
            tokenizer: value("tokenizer"),
            configuration: value("configuration"),
            pruner: Pruner::WANDA,
            local_group: "row".parse().unwrap(),
            global_group: "layer".parse().unwrap(),
            sparsity: "0.5".parse().unwrap(),
            strategy: Strategy::OneShot,
            scaling: Default::default(),
            tally_weights: vec![1; members],
            data_free: Vec::new(),
            ballots: Default::default(),
            calibration: Some(Calibration {
                samples: 4,
                window_tokens: 64,
                sampling: Sampling::Random { seed: SeedRule::FromRound },
                bos: Default::default(),
                minimum_calibration_tokens: 128,
            }),
            minimum_ballots: consortium.quorum().q() as u16,
            tally: Default::default(),
            timers: Timers::default(),
        };
        let round = Round::new(terms, consortium.consortium()).unwrap();
        Self { consortium, round, height: Height(3) }
    }

    pub fn sign<T: Statement>(&self, member: usize, content: T) -> SignatureChecked<T> {
        SignatureChecked::sign(content, self.height, &key(member), &self.consortium, self.round.id()).unwrap()
    }

    #[allow(dead_code)]
    pub fn proposal(
        &self,
        member: usize,
        view: u32,
        text: &str,
        valid_view: Option<u32>,
    ) -> SignatureChecked<Proposal> {
        self.sign(member, Proposal { view, value: value(text), valid_view })
    }

    #[allow(dead_code)]
    pub fn prevote(&self, member: usize, view: u32, text: Option<&str>) -> Repeated {
        Repeated::Prevote(self.sign(member, Prevote { view, value: text.map(value) }))
    }

    #[allow(dead_code)]
    pub fn precommit(&self, member: usize, view: u32, text: Option<&str>) -> Repeated {
        Repeated::Precommit(self.sign(member, Precommit { view, value: text.map(value) }))
    }

    pub fn rotation(&self) -> Rotation {
        Rotation::new(self.round.id(), self.height, self.consortium.quorum())
    }

    #[allow(dead_code)]
    pub fn aggregator(&self, view: u32) -> usize {
        let MemberIndex(member) = self.rotation().aggregator(view);
        usize::from(member)
    }
}
