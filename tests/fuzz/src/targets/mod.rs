//! The targets, one file a room.
//!
//! | file | reads |
//! |---|---|
//! | `attest` | proofs that a ballot counts, attestations |
//! | `ballots` | ballots, masks and tallies; ballots written and read back |
//! | `federation` | messages, canonical documents, documents that people write |
//! | `machine` | what happens to one member's state machine |
//! | `checkpoint` | `config.json`, safetensors headers and their index |
//! | `node` | requests and answers, chunks of bodies, the log |
//! | `transcript` | a transcript in which one file is another |
//! | `testnet` | manifests and scenarios |
//! | `hub` | the list of files of a model on a hub |
//! | `prune` | the journal of an unfinished run |

mod attest;
mod ballots;
mod checkpoint;
mod federation;
mod hub;
mod machine;
mod node;
mod prune;
mod testnet;
mod transcript;

pub(crate) use attest::{attestations, inclusion};
pub(crate) use ballots::{Kind as BallotKind, ballot_of};
pub(crate) use federation::{CHANGED, WORLDS, bodies, holdings, justified};
pub(crate) use hub::SEPARATOR;
pub(crate) use node::{BODIES, encoded_chunk, segment};
pub(crate) use prune::key as journal_key;
pub(crate) use transcript::AUDITED;

use tempfile::TempDir;

use crate::memory::peak_of;
use crate::seeds;

/// Something that reads bytes from outside.
pub struct Target {
    /// Its name, that of its fuzzer and of its corpus.
    pub name: &'static str,
    /// What it reads.
    pub reads: &'static str,
    /// Reads an input. Returns whether it was taken as what it should be; panics if something is not as it must be.
    pub run: fn(&[u8]) -> bool,
    /// Its seeds: real encodings, all of which it takes.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
    /// Most bytes that an input may cost, whatever it is.
    pub fixed_bytes: usize,
    /// What each byte of it may cost besides.
    pub bytes_a_byte: usize,
}

/// What a byte of TOML may cost: a dot in a key opens a table, and the parser makes room for eleven entries in each.
const TABLE_BYTES: usize = 1280;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "ballot",
        reads: "ballots and masks, every section, with the masks that they say",
        run: ballots::ballot,
        seeds: seeds::ballots,
        fixed_bytes: 512 << 10,
        bytes_a_byte: 16,
    },
    Target {
        name: "tally",
        reads: "tally files, with counts and masks by two ways and one by one",
        run: ballots::tally,
        seeds: seeds::tallies,
        fixed_bytes: 2 << 20,
        bytes_a_byte: 16,
    },
    Target {
        name: "ballot_round_trip",
        reads: "choices: a layout, weights and norms, written as ballots and a tally and read back, beside a slow reference",
        run: ballots::round_trip,
        seeds: seeds::round_trips,
        fixed_bytes: 2 << 20,
        bytes_a_byte: 16,
    },
    Target {
        name: "message",
        reads: "statements, proposals, certificates, settled decisions, evidence, questions and answers",
        run: federation::message,
        seeds: seeds::messages,
        fixed_bytes: 64 << 10,
        bytes_a_byte: 512,
    },
    Target {
        name: "canonical",
        reads: "consortiums, their signatures, rounds, decisions and log records in canonical form",
        run: federation::canonical,
        seeds: seeds::canonicals,
        fixed_bytes: 64 << 10,
        bytes_a_byte: 512,
    },
    Target {
        name: "document",
        reads: "`consortium.toml`, `round.toml` and keys in PEM",
        run: federation::document,
        seeds: seeds::documents,
        fixed_bytes: 64 << 10,
        bytes_a_byte: TABLE_BYTES,
    },
    Target {
        name: "machine",
        reads: "choices: what others send, answers to effects, time, crashes; one member's state machine with its engine",
        run: machine::machine,
        seeds: seeds::machines,
        fixed_bytes: 2 << 20,
        bytes_a_byte: 4 << 10,
    },
    Target {
        name: "config",
        reads: "`config.json`",
        run: checkpoint::config,
        seeds: seeds::configs,
        fixed_bytes: 64 << 10,
        bytes_a_byte: 256,
    },
    Target {
        name: "safetensors",
        reads: "a weight file, or the index of several, of a checkpoint that is opened",
        run: checkpoint::safetensors,
        seeds: seeds::safetensors,
        fixed_bytes: 64 << 10,
        bytes_a_byte: 256,
    },
    Target {
        name: "request",
        reads: "requests and answers of the transfer protocol, greetings",
        run: node::request,
        seeds: seeds::requests,
        fixed_bytes: 128 << 10,
        bytes_a_byte: 16,
    },
    Target {
        name: "chunk",
        reads: "a chunk of a body with its proof, stored by whoever fetches it",
        run: node::chunk,
        seeds: seeds::chunks,
        fixed_bytes: 128 << 10,
        bytes_a_byte: 16,
    },
    Target {
        name: "wal",
        reads: "segments of a node's log, and choices: appends, crashes and damage",
        run: node::wal,
        seeds: seeds::wals,
        fixed_bytes: 128 << 10,
        bytes_a_byte: 64,
    },
    Target {
        name: "journal",
        reads: "the journal of an unfinished run",
        run: prune::journal,
        seeds: seeds::journals,
        fixed_bytes: 64 << 10,
        bytes_a_byte: 16,
    },
    Target {
        name: "transcript",
        reads: "a transcript of a sound round in which one file is another, audited",
        run: transcript::transcript,
        seeds: seeds::transcripts,
        fixed_bytes: 4 << 20,
        bytes_a_byte: 64,
    },
    Target {
        name: "manifest",
        reads: "testnet manifests, and scenarios of simulated rounds",
        run: testnet::manifest,
        seeds: seeds::manifests,
        fixed_bytes: 64 << 10,
        bytes_a_byte: TABLE_BYTES,
    },
    Target {
        name: "proof",
        reads: "proofs that a member's ballots count",
        run: attest::proof,
        seeds: seeds::proofs,
        fixed_bytes: 128 << 10,
        bytes_a_byte: 512,
    },
    Target {
        name: "attestation",
        reads: "statements in DSSE envelopes, and signatures of folders",
        run: attest::attestation,
        seeds: seeds::attestations,
        fixed_bytes: 128 << 10,
        bytes_a_byte: 512,
    },
    Target {
        name: "hub",
        reads: "a hub's list of the files of a model, and the index of its weights",
        run: hub::listing,
        seeds: seeds::listings,
        fixed_bytes: 64 << 10,
        bytes_a_byte: 256,
    },
];

impl Target {
    /// Runs an input and holds what it cost against the limits. Returns whether it was taken.
    ///
    /// # Panics
    /// When something is not as it must be.
    pub fn check(&self, bytes: &[u8]) -> bool {
        self.measured(bytes).0
    }

    /// As [`Target::check`], with the bytes that were allocated at once.
    ///
    /// # Panics
    /// As [`Target::check`].
    pub fn measured(&self, bytes: &[u8]) -> (bool, usize) {
        let (taken, peak) = peak_of(|| (self.run)(bytes));
        let most = self.fixed_bytes + self.bytes_a_byte * bytes.len();
        assert!(peak <= most, "`{}`: {} bytes make it allocate {peak}, and {most} are allowed", self.name, bytes.len());
        (taken, peak)
    }

    /// Runs the seeds, so that what is made once is not charged to the first input.
    ///
    /// # Panics
    /// When a seed fails.
    pub fn warm_up(&self) {
        for (_, seed) in (self.seeds)() {
            (self.run)(&seed);
        }
    }
}

/// A folder for files that are written over and over: in memory where the system has such a place.
fn scratch() -> TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.expect("a folder for scratch files")
}
