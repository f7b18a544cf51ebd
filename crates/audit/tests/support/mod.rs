//! A small world: four members, a checkpoint of two tiny blocks, and whole rounds carried out in this process.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};

use fedprune_audit::{Limits, Options, Report, Summary, TranscriptWriter, Verdict, verify};
use fedprune_checkpoint::{Checkpoint, write_pruned};
use fedprune_federation::consortium::{Member, Origin};
use fedprune_federation::round::{Calibration, Sampling, Scaling, SeedRule, Strategy, TallyBy, Terms, Timers};
use fedprune_federation::{
    BallotHeader, Certificate, Consortium, Draft, Height, Holdings, Justified, MaskResult, MemberIndex, Precommit,
    Proposal, Proposed, Ratified, Rotation, Round, Settled, SignatureChecked, SigningKey,
};
use fedprune_mask::ballot::{Encodings, VoteHeader};
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::tally::{Tally, Voter, apply_to_stored};
use fedprune_mask::{Ballot, Digest, Layout, MatrixSource, NormVector, Pruner, WeightsView, encode_ballot};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Members, by name: `east`, `north`, `south`, `west`.
pub const MEMBERS: [&str; 4] = ["east", "north", "south", "west"];
/// What the members are called by index.
pub const EAST: MemberIndex = MemberIndex(0);
pub const NORTH: MemberIndex = MemberIndex(1);
pub const SOUTH: MemberIndex = MemberIndex(2);
pub const WEST: MemberIndex = MemberIndex(3);

const HIDDEN: usize = 16;
const INNER: usize = 24;
const HEADS: usize = 2;
const VOCABULARY: usize = 12;
const BLOCKS: usize = 2;

pub fn key(member: MemberIndex) -> SigningKey {
    SigningKey::from_seed(&[member.0 as u8 + 1; 32]).unwrap()
}

pub fn consortium() -> Ratified {
    consortium_with(|_| None)
}

/// The same with attestation keys.
pub fn consortium_with(attestation_key: impl Fn(MemberIndex) -> Option<String>) -> Ratified {
    let member = |(index, name): (usize, &&str)| Member {
        name: (*name).to_owned(),
        signing_key: key(MemberIndex(index as u16)).verifying_key(),
        peer_key: key(MemberIndex(index as u16)).verifying_key(),
        addresses: Vec::new(),
        attestation_key: attestation_key(MemberIndex(index as u16)),
    };
    let consortium = Consortium::new("Four".to_owned(), MEMBERS.iter().enumerate().map(member).collect()).unwrap();
    let mut draft = Draft::new(consortium);
    for member in draft.consortium().indices() {
        draft.sign(&key(member)).unwrap();
    }
    draft.ratify().unwrap()
}

/// [`consortium`] as it came to be by two changes: its last member was another, which left, and then had another key.
/// Returned are the newest and the founding one.
pub fn changed_consortium() -> (Ratified, Ratified) {
    let wanted = consortium();
    let step = |before: &Ratified, members: Vec<Member>, keys: &[SigningKey]| {
        let origin = Origin { predecessor: before.id(), change: before.consortium().change() + 1 };
        let after = Consortium::successor(before.consortium().name().to_owned(), members, origin).unwrap();
        let mut draft = Draft::succeeding(after, before.clone()).unwrap();
        for key in keys {
            let _ = draft.sign(key);
        }
        for key in [key(MemberIndex(0)), key(MemberIndex(1)), key(SOUTH)] {
            draft.agree(&key).unwrap();
        }
        draft.ratify().unwrap()
    };
    let with_last = |name: &str, key: &SigningKey| {
        let mut members = wanted.members().to_vec();
        let last = &mut members[WEST.as_usize()];
        *last = Member {
            name: name.to_owned(),
            signing_key: key.verifying_key(),
            peer_key: key.verifying_key(),
            ..last.clone()
        };
        members
    };
    let former = [91, 92].map(|seed| SigningKey::from_seed(&[seed; 32]).unwrap());
    let mut founding = Draft::new(Consortium::new("Four".to_owned(), with_last("far west", &former[0])).unwrap());
    for key in [key(MemberIndex(0)), key(MemberIndex(1)), key(SOUTH), former[0].clone()] {
        founding.sign(&key).unwrap();
    }
    let founding = founding.ratify().unwrap();
    let first = step(&founding, with_last("west", &former[1]), &former[1..]);
    (step(&first, wanted.members().to_vec(), &[key(WEST)]), founding)
}

/// Bytes that look random and are the same everywhere.
pub fn noise(seed: &str, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Writes a llama of two blocks, bf16, with weights from noise.
pub fn write_model(folder: &Path, seed: &str) {
    fs::create_dir_all(folder).unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS, "num_key_value_heads": 1, "vocab_size": VOCABULARY,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
    ];
    for block in 0..BLOCKS {
        for (name, shape) in [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN / HEADS, HIDDEN]),
            ("self_attn.v_proj", vec![HIDDEN / HEADS, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            tensors.push((format!("model.layers.{block}.{name}.weight"), shape));
        }
    }
    let (mut header, mut data) = (Map::<String, Value>::new(), Vec::<u8>::new());
    for (name, shape) in tensors {
        let start = data.len();
        // magnitudes from 1 to just below 4, either sign
        let bits = |byte: &u8| (0x3f80 | u16::from(byte & 0x7f) | u16::from(byte & 0x80) << 8).to_le_bytes();
        data.extend(noise(&format!("{seed}{name}"), shape.iter().product()).iter().flat_map(bits));
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()] }));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

/// What is particular about a round.
#[derive(Clone, Copy)]
pub struct Kind {
    pub strategy: Strategy,
    pub tally: TallyBy,
    pub scaling: Scaling,
    pub encodings: Encodings,
}

pub const ONE_SHOT: Kind =
    Kind { strategy: Strategy::OneShot, tally: TallyBy::EveryPeer, scaling: Scaling::None, encodings: Encodings::Auto };
pub const ITERATIVE: Kind = Kind { strategy: Strategy::Iterative, encodings: Encodings::MaskOnly, ..ONE_SHOT };
pub const ELECTED: Kind = Kind { tally: TallyBy::Elected, scaling: Scaling::Support, ..ONE_SHOT };

/// A finished round: model, transcript and pruned copy in one folder.
pub struct World {
    pub folder: TempDir,
    pub consortium: Ratified,
    pub round: Round,
    pub layout: Layout,
    pub kind: Kind,
    pub mask_root: Digest,
    /// Of each height.
    pub roots: Vec<Digest>,
    /// Of each height and member.
    pub bodies: Vec<Vec<Vec<u8>>>,
}

/// The matrices of one height.
pub struct Part<'a> {
    checkpoint: &'a Checkpoint,
    first: usize,
}

impl MatrixSource for Part<'_> {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        self.checkpoint.matrix(self.first + index)
    }
}

pub fn terms(consortium: &Ratified, checkpoint: &Checkpoint, kind: Kind) -> Terms {
    Terms {
        consortium: consortium.id(),
        base_model: checkpoint.content_digest(&|_| ()),
        layout: checkpoint.layout().digest(),
        tokenizer: checkpoint.tokenizer_digest().unwrap(),
        configuration: checkpoint.configuration_digest(),
        pruner: Pruner::WANDA,
        local_group: "row".parse().unwrap(),
        global_group: "layer".parse().unwrap(),
        sparsity: "0.5".parse().unwrap(),
        strategy: kind.strategy,
        scaling: kind.scaling,
        tally_weights: vec![1, 2, 1, 1],
        data_free: Vec::new(),
        ballots: Default::default(),
        calibration: Some(Calibration {
            samples: 4,
            window_tokens: 64,
            sampling: Sampling::Random { seed: SeedRule::FromRound },
            bos: Default::default(),
            minimum_calibration_tokens: 128,
        }),
        minimum_ballots: 3,
        tally: kind.tally,
        timers: Timers::default(),
    }
}

/// The ballot of a member for the layout of a height.
pub fn ballot(round: &Round, layout: &Layout, weights: &dyn MatrixSource, seed: &str, encodings: Encodings) -> Vec<u8> {
    let terms = round.terms();
    let header = VoteHeader {
        model: terms.base_model,
        layout: layout.digest(),
        pruner: terms.pruner,
        group: terms.local_group,
        sparsity: terms.sparsity,
        samples: 4,
        sequence_tokens: 64,
    };
    let norms = layout.taps().iter().map(|range| {
        let matrix = &layout.matrices()[range.start];
        let sums = noise(&format!("{seed}{}", matrix.name), matrix.columns as usize);
        NormVector::from_sums(&sums.into_iter().map(|byte| f64::from(byte) + 1.0).collect::<Vec<_>>(), 1).unwrap()
    });
    let norms: Vec<NormVector> = norms.collect();
    let mut bytes = Vec::new();
    encode_ballot::<Infallible>(&header, layout, &norms, encodings, weights, &mut |part| {
        bytes.extend_from_slice(part);
        Ok(())
    })
    .unwrap();
    bytes
}

impl World {
    /// Carries out a round in which everything goes as it should.
    pub fn new(kind: Kind) -> World {
        World::with(kind, |_| ())
    }

    /// The same with changed terms.
    pub fn with(kind: Kind, change: impl FnOnce(&mut Terms)) -> World {
        World::of(consortium(), kind, change)
    }

    /// The same of another consortium of members with the names and keys of [`consortium`].
    pub fn of(consortium: Ratified, kind: Kind, change: impl FnOnce(&mut Terms)) -> World {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        write_model(&model, "base");
        let checkpoint = Checkpoint::open(&model).unwrap();
        let layout = checkpoint.layout().clone();
        let mut terms = terms(&consortium, &checkpoint, kind);
        change(&mut terms);
        let round = Round::new(terms, consortium.consortium()).unwrap();
        let mut world = World {
            folder,
            consortium,
            round,
            layout,
            kind,
            mask_root: Digest([0; 32]),
            roots: Vec::new(),
            bodies: Vec::new(),
        };
        let heights = world.round.heights(&world.layout).unwrap();
        let mut masks = BTreeMap::new();
        for height in (0..heights).map(Height) {
            let layout = world.layout_at(height);
            let first = world.first_of(height);
            let part = Part { checkpoint: &checkpoint, first };
            let seed = |member: &str| format!("{member} {height}");
            let bodies: Vec<Vec<u8>> = MEMBERS
                .iter()
                .map(|member| ballot(&world.round, &layout, &part, &seed(member), kind.encodings))
                .collect();
            world.bodies.push(bodies.clone());
            let tally = world.tally(&layout, &bodies);
            let mut digests = Vec::new();
            for index in 0..layout.matrices().len() {
                let (mask, counts) = tally.matrix(index, part.matrix(index)).unwrap();
                digests.push(mask.digest());
                masks.insert(first + index, (mask, counts));
            }
            world.roots.push(mask_root(layout.digest(), digests));
        }
        let digests = masks.values().map(|(mask, _)| mask.digest());
        world.mask_root = mask_root(world.layout.digest(), digests);
        write_pruned(
            &checkpoint,
            &world.path("pruned"),
            &mut |index, stored| {
                let (mask, counts) = &masks[&index];
                let support = (kind.scaling == Scaling::Support).then_some(counts);
                apply_to_stored(stored, checkpoint.matrix(index).dtype(), mask, support);
                Ok(())
            },
            &[],
            &|_| (),
        )
        .unwrap();
        let mut writer = world.writer();
        for height in (0..heights).map(Height) {
            world.write_height(&mut writer, height);
        }
        writer.summary(&Summary { written_by: "east".to_owned(), ..Summary::default() }).unwrap();
        world
    }

    pub fn tally<'a>(&self, layout: &'a Layout, bodies: &'a [Vec<u8>]) -> Tally<'a> {
        let voter = |(index, body): (usize, &'a Vec<u8>)| Voter {
            name: MEMBERS[index].to_owned(),
            weight: self.round.terms().tally_weights[index],
            ballot: Ballot::parse(body, layout).unwrap(),
        };
        let voters = bodies.iter().enumerate().map(voter).collect();
        Tally::new(layout, self.round.terms().global_group, voters).unwrap()
    }

    /// Writes everything of a height in which nobody lies.
    fn write_height(&self, writer: &mut TranscriptWriter, height: Height) {
        for member in self.consortium.consortium().indices() {
            let body = &self.bodies[height.0 as usize][member.as_usize()];
            writer.header(&self.header(height, member, body)).unwrap();
            let file = self.path("body");
            fs::write(&file, body).unwrap();
            writer.body(Digest::of(body), &file).unwrap();
            fs::remove_file(&file).unwrap();
            writer.holdings(&self.holdings(height, member, 4)).unwrap();
            if self.kind.tally == TallyBy::EveryPeer {
                writer.result(&self.result(height, member, self.roots[height.0 as usize])).unwrap();
            }
        }
        let justified = self.justified(height);
        let proposed = self.proposed(height, 0, justified.clone());
        writer.proposed(proposed.proposal(), &proposed.encode()).unwrap();
        writer.settled(&self.settled(height, 0, justified)).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn transcript(&self) -> PathBuf {
        self.path("transcript")
    }

    pub fn writer(&self) -> TranscriptWriter {
        TranscriptWriter::create(&self.transcript(), &self.consortium, &self.round).unwrap()
    }

    pub fn layout_at(&self, height: Height) -> Layout {
        self.round.layout_at(&self.layout, height).unwrap()
    }

    pub fn first_of(&self, height: Height) -> usize {
        match self.kind.strategy {
            Strategy::OneShot => 0,
            Strategy::Iterative => self.layout.block(height.0 as usize).start,
        }
    }

    pub fn sign<T: fedprune_federation::Statement>(
        &self,
        content: T,
        height: Height,
        member: MemberIndex,
    ) -> SignatureChecked<T> {
        SignatureChecked::sign(content, height, &key(member), &self.consortium, self.round.id()).unwrap()
    }

    pub fn header(&self, height: Height, member: MemberIndex, body: &[u8]) -> SignatureChecked<BallotHeader> {
        let content = BallotHeader { body: Digest::of(body), body_bytes: body.len() as u64, claimed_unix_ms: 1 };
        self.sign(content, height, member)
    }

    /// Holding the ballots of the first `count` members.
    pub fn holdings(&self, height: Height, member: MemberIndex, count: usize) -> SignatureChecked<Holdings> {
        let bodies = &self.bodies[height.0 as usize];
        let digests = bodies.iter().enumerate().map(|(index, body)| (index < count).then(|| Digest::of(body)));
        self.sign(Holdings::from_digests(digests.collect()), height, member)
    }

    pub fn result(&self, height: Height, member: MemberIndex, mask_root: Digest) -> SignatureChecked<MaskResult> {
        self.sign(MaskResult { mask_root }, height, member)
    }

    pub fn justified_with(&self, height: Height, mask_root: Option<Digest>) -> Justified {
        let statements = [EAST, NORTH, SOUTH].map(|member| self.holdings(height, member, 4));
        Justified::from_holdings(&statements, height, mask_root, &self.consortium, &self.round).unwrap()
    }

    pub fn justified(&self, height: Height) -> Justified {
        let elected = self.kind.tally == TallyBy::Elected;
        self.justified_with(height, elected.then(|| self.roots[height.0 as usize]))
    }

    pub fn aggregator(&self, height: Height, view: u32) -> MemberIndex {
        Rotation::new(self.round.id(), height, self.consortium.quorum()).aggregator(view)
    }

    pub fn proposed(&self, height: Height, view: u32, justified: Justified) -> Proposed {
        self.proposed_by(self.aggregator(height, view), height, view, justified)
    }

    pub fn proposed_by(&self, member: MemberIndex, height: Height, view: u32, justified: Justified) -> Proposed {
        let content = Proposal { view, value: justified.decision().value(), valid_view: None };
        Proposed::new(self.sign(content, height, member), justified).unwrap()
    }

    pub fn settled(&self, height: Height, view: u32, justified: Justified) -> Settled {
        let content = Precommit { view, value: Some(justified.decision().value()) };
        let votes = [NORTH, SOUTH, WEST].map(|member| self.sign(content, height, member));
        Settled::new(Certificate::from_precommits(&votes, &self.consortium).unwrap(), justified).unwrap()
    }

    /// Audits with everything that there is.
    pub fn audit(&self) -> Report {
        self.audit_of(&self.transcript())
    }

    /// Audits another transcript with everything that there is.
    pub fn audit_of(&self, transcript: &Path) -> Report {
        self.audit_with(transcript, |_| ())
    }

    /// Audits with changed options.
    pub fn audit_with(&self, transcript: &Path, change: impl FnOnce(&mut Options<'_>)) -> Report {
        let (model, pruned) = (self.path("model"), self.path("pruned"));
        let mut options = Options {
            consortium: Some(self.consortium.id()),
            round: Some(self.round.id()),
            model: Some(&model),
            pruned: Some(&pruned),
            limits: Limits::default(),
        };
        change(&mut options);
        verify(transcript, &options, &|_| ()).unwrap()
    }

    /// A copy of the transcript that may be changed.
    pub fn copy(&self) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("transcript");
        copy_folder(&self.transcript(), &copy);
        (folder, copy)
    }
}

pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file below a folder, as a relative path, sorted.
pub fn files_below(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{name}/"), found);
            } else {
                found.push(name);
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, "", &mut found);
    found.sort();
    found
}

/// Flips one bit in the middle of a file.
pub fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[track_caller]
pub fn assert_verdict(report: &Report, verdict: Verdict, blamed: &[&str]) {
    assert_eq!((report.verdict, report.blamed()), (verdict, blamed.to_vec()), "{}", report.text());
}

/// The first file of a class at height 0.
pub fn first_of_class(transcript: &Path, class: &str) -> PathBuf {
    let folder = transcript.join("heights/0000").join(class);
    let mut names: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names.remove(0)
}
