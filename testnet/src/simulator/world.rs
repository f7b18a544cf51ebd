//! What all members of a simulated round have in common: documents, a model of two blocks, and tiny ballots.
//!
//! Ballots are real, pass the real validation and are really counted: a mask root is that of the global mask that they
//! come to on these weights. Bodies move whole, from a store in memory that is keyed by digest.

use std::convert::Infallible;
use std::rc::Rc;

use fedprune_federation::ballot::validate;
use fedprune_federation::consortium::Member;
use fedprune_federation::round::{Calibration, Sampling, SeedRule, Strategy, TallyBy, Timers};
use fedprune_federation::statement::Statement;
use fedprune_federation::{
    BallotHeader, Consortium, Draft, Height, MemberIndex, Quorum, Ratified, Rotation, Round, SignatureChecked,
    SigningKey, Terms, Validated,
};
use fedprune_mask::ballot::{Encodings, VoteHeader};
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::tally::{Tally, Voter};
use fedprune_mask::weights::MatrixSource;
use fedprune_mask::{Ballot, DType, Digest, Layout, Matrix, NormVector, Pruner, Tap, WeightsView, encode_ballot};

/// A ballot's body; members of one run share it.
pub type Body = Rc<[u8]>;

/// What a simulated round is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Members of the consortium.
    pub members: usize,
    /// One height, or one for each of the two blocks.
    pub strategy: Strategy,
    /// Who tallies before the agreement is complete.
    pub tally: TallyBy,
    /// After how many milliseconds a height may be abandoned.
    pub abandon_ms: u64,
}

/// Everything that members have in common.
pub struct World {
    /// Who takes part.
    pub consortium: Ratified,
    /// The round.
    pub round: Round,
    /// An earlier round of the same members, from which messages are replayed.
    pub earlier: Round,
    layout: Layout,
    weights: Weights,
    heights: u32,
    keys: Vec<SigningKey>,
}

impl World {
    /// A consortium and a round of this shape.
    ///
    /// # Panics
    /// For shapes that no round has: they are written in tests.
    pub fn new(shape: Shape) -> Self {
        let keys: Vec<SigningKey> = (0..shape.members).map(key).collect();
        let member = |index: usize| Member {
            name: member_name(index),
            signing_key: keys[index].verifying_key(),
            peer_key: keys[index].verifying_key(),
            addresses: Vec::new(),
            attestation_key: None,
        };
        let members = (0..shape.members).map(member).collect();
        let consortium = Consortium::new("simulated".to_owned(), members).expect("a sound consortium");
        let mut draft = Draft::new(consortium);
        for key in &keys {
            draft.sign(key).expect("a member signs");
        }
        let consortium = draft.ratify().expect("all have signed");
        let layout = layout();
        let round = |model: &str| {
            Round::new(terms(&consortium, shape, &layout, model), consortium.consortium()).expect("a sound round")
        };
        let (round, earlier) = (round("model"), round("another model"));
        let heights = round.heights(&layout).expect("the layout is the round's");
        Self { weights: Weights::of(&layout), consortium, round, earlier, layout, heights, keys }
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.consortium.members().len()
    }

    /// How many may fail.
    pub fn quorum(&self) -> Quorum {
        self.consortium.quorum()
    }

    /// How many heights the round has.
    pub fn heights(&self) -> u32 {
        self.heights
    }

    /// The model's layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The name of a member.
    pub fn name(&self, member: usize) -> String {
        member_name(member)
    }

    /// The key of a member.
    pub fn key(&self, member: usize) -> SigningKey {
        self.keys[member].clone()
    }

    /// Whose turn it is at a height.
    pub fn aggregator(&self, height: Height, view: u32) -> usize {
        Rotation::new(self.round.id(), height, self.quorum()).aggregator(view).as_usize()
    }

    /// What a member says in the round.
    ///
    /// # Panics
    /// For content that nobody accepts.
    pub fn sign<T: Statement>(&self, member: usize, content: T, height: Height) -> SignatureChecked<T> {
        SignatureChecked::sign(content, height, &self.keys[member], &self.consortium, self.round.id())
            .expect("content that can be signed")
    }

    /// A valid ballot; its norms are a function of `text`.
    pub fn body(&self, text: &str, height: Height) -> Body {
        self.body_of(height, |matrix| {
            let sums = noise(&format!("{text} {}", matrix.name), matrix.columns as usize);
            sums.into_iter().map(|byte| f64::from(byte) + 1.0).collect()
        })
    }

    /// A valid ballot of somebody who wants the model ruined: of each matrix it keeps what belongs to one channel, and
    /// prunes whatever else it can. `channel` says which, of as many as a matrix has.
    pub fn poisoned_body(&self, channel: usize, height: Height) -> Body {
        self.body_of(height, |matrix| {
            let columns = matrix.columns as usize;
            (0..columns)
                .map(|column| if column == channel % columns { 1e30 } else { 1e-30 * (column + 1) as f64 })
                .collect()
        })
    }

    fn body_of(&self, height: Height, sums: impl Fn(&Matrix) -> Vec<f64>) -> Body {
        let layout = self.round.layout_at(&self.layout, height).expect("a height of the round");
        let terms = self.round.terms();
        let header = VoteHeader {
            model: terms.base_model,
            layout: layout.digest(),
            pruner: terms.pruner,
            group: terms.local_group,
            sparsity: terms.sparsity,
            samples: terms.calibration.map_or(0, |calibration| calibration.samples),
            sequence_tokens: terms.calibration.map_or(0, |calibration| calibration.window_tokens),
        };
        let norms_of = |range: &std::ops::Range<usize>| {
            NormVector::from_sums(&sums(&layout.matrices()[range.start]), 1).expect("sound sums")
        };
        let norms: Vec<NormVector> = layout.taps().iter().map(norms_of).collect();
        let mut bytes = Vec::new();
        let mut sink = |part: &[u8]| {
            bytes.extend_from_slice(part);
            Ok::<(), Infallible>(())
        };
        encode_ballot(&header, &layout, &norms, Encodings::Auto, &self.at(height), &mut sink).expect("a sound ballot");
        bytes.into()
    }

    /// Checks a ballot as nodes do.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn validate(&self, header: SignatureChecked<BallotHeader>, body: &[u8]) -> Result<Validated, String> {
        let height = header.height();
        let layout = self.round.layout_at(&self.layout, height).map_err(|error| error.to_string())?;
        let ballot = Ballot::parse(body, &layout).map_err(|error| error.to_string())?;
        validate(header, &ballot, &self.round, &self.layout, &self.at(height)).map_err(|error| error.to_string())
    }

    /// The root of the mask that ballots come to.
    ///
    /// # Errors
    /// What is wrong with them, in words; of valid ballots nothing is.
    pub fn mask_root(&self, height: Height, ballots: &[(MemberIndex, Body)]) -> Result<Digest, String> {
        let layout = self.round.layout_at(&self.layout, height).map_err(|error| error.to_string())?;
        let mut voters = Vec::with_capacity(ballots.len());
        for (member, body) in ballots {
            let weight = self.round.terms().tally_weights[member.as_usize()];
            let ballot = Ballot::parse(body, &layout).map_err(|error| error.to_string())?;
            voters.push(Voter { name: member_name(member.as_usize()), weight, ballot });
        }
        let tally = Tally::new(&layout, self.round.terms().global_group, voters).map_err(|error| error.to_string())?;
        let weights = self.at(height);
        let digest = |index: usize| tally.mask(index, weights.matrix(index)).map(|mask| mask.digest());
        let digests: Result<Vec<Digest>, _> = (0..layout.matrices().len()).map(digest).collect();
        Ok(mask_root(layout.digest(), digests.map_err(|error| error.to_string())?))
    }

    fn at(&self, height: Height) -> WeightsAt<'_> {
        let first = match self.round.terms().strategy {
            Strategy::OneShot => 0,
            Strategy::Iterative => self.layout.block(height.0 as usize).start,
        };
        WeightsAt { weights: &self.weights, first }
    }
}

fn member_name(member: usize) -> String {
    format!("member {member:04}")
}

fn key(member: usize) -> SigningKey {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&(member as u64 + 1).to_le_bytes());
    SigningKey::from_seed(&seed).expect("a sound key")
}

/// Two blocks of two matrices.
fn layout() -> Layout {
    let block =
        |block| {
            [("q", Tap::AttentionInput, 4, 8), ("down", Tap::MlpOutput, 8, 4)]
                .map(|(name, tap, rows, columns)| Matrix { name: format!("{block}.{name}"), block, tap, rows, columns })
        };
    Layout::new([block(0), block(1)].concat()).expect("a sound layout")
}

fn terms(consortium: &Ratified, shape: Shape, layout: &Layout, model: &str) -> Terms {
    Terms {
        consortium: consortium.id(),
        base_model: Digest::of(model.as_bytes()),
        layout: layout.digest(),
        tokenizer: Digest::of(b"tokenizer"),
        configuration: Digest::of(b"configuration"),
        pruner: Pruner::WANDA,
        local_group: "row".parse().expect("a group"),
        global_group: "layer".parse().expect("a group"),
        sparsity: "0.5".parse().expect("a sparsity"),
        strategy: shape.strategy,
        scaling: Default::default(),
        tally_weights: vec![1; shape.members],
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
        tally: shape.tally,
        timers: Timers {
            contribution_ms: 5_000,
            proposal_ms: 1_000,
            vote_ms: 500,
            growth_ms: 250,
            abandon_ms: shape.abandon_ms,
        },
    }
}

/// Bytes that look random and are the same everywhere.
fn noise(seed: &str, bytes: usize) -> Vec<u8> {
    let blocks = (0..bytes.div_ceil(32)).flat_map(|block| Digest::of(format!("{seed} {block}").as_bytes()).0);
    blocks.take(bytes).collect()
}

/// bf16 weights of a layout.
struct Weights {
    layout: Layout,
    bytes: Vec<Vec<u8>>,
}

impl Weights {
    fn of(layout: &Layout) -> Self {
        let bytes = layout.matrices().iter().map(|matrix| {
            // magnitudes from 1 to just below 4, either sign
            let bits = |byte: &u8| (0x3f80 | u16::from(byte & 0x7f) | u16::from(byte & 0x80) << 8).to_le_bytes();
            noise(&matrix.name, matrix.weights() as usize).iter().flat_map(bits).collect()
        });
        Self { bytes: bytes.collect(), layout: layout.clone() }
    }
}

/// The weights of one height, by index of its own layout.
struct WeightsAt<'a> {
    weights: &'a Weights,
    first: usize,
}

impl MatrixSource for WeightsAt<'_> {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        let index = self.first + index;
        let matrix = &self.weights.layout.matrices()[index];
        let (rows, columns) = (matrix.rows as usize, matrix.columns as usize);
        WeightsView::new(DType::BF16, rows, columns, &self.weights.bytes[index]).expect("as many bytes as weights")
    }
}
