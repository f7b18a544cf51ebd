//! Inputs made to cost more than they are: bombs, sizes and counts that are not there, nesting without end. Each is refused,
//! and for less memory than its target's limits say.
//!
//! One test in one process, since the counting allocator is global.

use std::fs::{self, File};
use std::path::Path;

use fedprune_audit::{Limits, Transcript};
use fedprune_checkpoint::Checkpoint;
use fedprune_fuzz::memory::peak_of;
use fedprune_fuzz::seeds::CONFIG;
use fedprune_fuzz::{Counting, target};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What few bytes may cost at most, whatever reads them.
const LITTLE: usize = 512 << 10;

#[track_caller]
fn refused(name: &str, what: &str, bytes: &[u8]) -> usize {
    let (taken, peak) = target(name).measured(bytes);
    assert!(!taken, "`{name}` takes {what}");
    peak
}

/// As [`refused`], for next to nothing: what reads a file may hold all of it, and it grows as it is read.
#[track_caller]
fn refused_for_little(name: &str, what: &str, bytes: &[u8]) {
    let peak = refused(name, what, bytes);
    assert!(peak < LITTLE + 4 * bytes.len(), "`{name}`: {what} of {} bytes takes {peak}", bytes.len());
}

fn seed(name: &str, seed: &str) -> Vec<u8> {
    let seeds = (target(name).seeds)();
    seeds.into_iter().find(|(known, _)| known == seed).unwrap_or_else(|| panic!("no seed {seed}")).1
}

#[test]
fn what_claims_much_costs_little() {
    for name in ["ballot", "tally", "message", "canonical", "document", "config", "safetensors", "request", "chunk"] {
        target(name).warm_up();
    }
    for name in ["wal", "journal", "transcript", "manifest"] {
        target(name).warm_up();
    }
    bombs();
    sizes_everywhere();
    counts();
    nesting();
    files_of_a_terabyte();
}

/// A frame of a few kilobytes that would be 64 MiB, where some bytes belong.
fn bombs() {
    let mut compressor = zstd::bulk::Compressor::new(19).unwrap();
    compressor.include_contentsize(false).unwrap();
    compressor.include_checksum(false).unwrap();
    let bomb = compressor.compress(&vec![0u8; 64 << 20]).unwrap();
    let mask = seed("ballot", "mask-ria-row");
    // header, then an encoding for each of eight taps, all bitmaps
    let body = 15 + 80 + 8;
    for length in [1, 8, 40, 500, bomb.len()] {
        for claimed in [length as u64, 8, u64::MAX] {
            let mut bytes = mask[..body].to_vec();
            bytes.push(1);
            bytes.extend(claimed.to_le_bytes());
            bytes.extend(&bomb[..length.min(bomb.len())]);
            refused_for_little("ballot", "a decompression bomb", &bytes);
        }
    }
}

/// Every number of every seed, replaced by one that is too large: whatever it counts, nothing is allocated for it. Some are
/// claims that anybody may make, such as times, and are taken.
fn sizes_everywhere() {
    for name in ["ballot", "tally", "message", "canonical", "request", "safetensors", "journal", "wal"] {
        for (seed, original) in (target(name).seeds)() {
            // choices have no sizes, and the rest of a long one is as its beginning
            if seed.starts_with("life") {
                continue;
            }
            // where a file is written for each input, the numbers of its beginning
            let many = if ["safetensors", "journal"].contains(&name) { 64 } else { 120 };
            for at in 0..original.len().min(many) {
                for huge in [(1u64 << 16) + 1, 1 << 20, 1 << 22, u64::from(u32::MAX), 1 << 60, u64::MAX] {
                    for width in [4, 8] {
                        let mut bytes = original.clone();
                        let end = bytes.len().min(at + width);
                        bytes[at..end].copy_from_slice(&huge.to_le_bytes()[..end - at]);
                        let (_, peak) = target(name).measured(&bytes);
                        assert!(peak < 2 << 20, "`{name}`, {seed}: {huge} at {at} takes {peak}");
                        if ["message", "canonical", "request"].contains(&name) {
                            assert!(peak < LITTLE, "`{name}`, {seed}: {huge} at {at} takes {peak}");
                        }
                    }
                }
            }
        }
    }
    // a list that is as long as its limit allows, said to be longer
    for (content, limit) in [(26u8, 8usize << 20), (24, 4 << 20), (22, 4 << 20), (16, 4 << 20)] {
        for claimed in [limit as u64 / 8, limit as u64, u64::MAX / 24] {
            let bytes = [b"fedprune\x01\x00", &[content][..], &claimed.to_le_bytes(), &[0; 64]].concat();
            let name = if [16, 24].contains(&content) { "canonical" } else { "message" };
            refused_for_little(name, "a list that is not there", &bytes);
        }
    }
    // an answer of 8 MiB of which a byte came
    refused_for_little("request", "an answer cut off", &[1, 0, 0, 0, 0x80, 0, 7]);
    // headers of weights that are not there
    for claimed in [64u64, 100_000_000, 100_000_001, u64::MAX] {
        let bytes = [&[0][..], &claimed.to_le_bytes(), b"{\"a\":"].concat();
        refused_for_little("safetensors", "a header that is not there", &bytes);
    }
    for lie in 1..4 {
        let mut chunk = seed("chunk", "body-1");
        chunk[0] += 3 * lie;
        refused_for_little("chunk", "a body of another size", &chunk);
    }
}

/// More of everything than there may be, all of it really there.
fn counts() {
    let weights = |entry: &dyn Fn(usize) -> String, count: usize| {
        let entries: Vec<String> = (0..count).map(entry).collect();
        let header = format!("{{{}}}", entries.join(","));
        [&[0][..], &(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()
    };
    let tensor = |at: usize| format!("\"{at}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    refused("safetensors", "a hundred thousand tensors", &weights(&tensor, 100_000));
    let metadata: Vec<String> = (0..100_000).map(|at| format!("\"{at}\":\"\"")).collect();
    let metadata = format!("\"__metadata__\":{{{}}}", metadata.join(","));
    refused("safetensors", "a hundred thousand notes", &weights(&|_| metadata.clone(), 1));
    let shape = vec!["1"; 200_000].join(",");
    let dimensions = |_: usize| format!("\"a\":{{\"dtype\":\"F32\",\"shape\":[{shape}],\"data_offsets\":[0,4]}}");
    refused_for_little("safetensors", "two hundred thousand dimensions", &weights(&dimensions, 1));
    let name =
        |_: usize| format!("\"{}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}", "n".repeat(300_000));
    refused("safetensors", "a name of 300,000 bytes", &weights(&name, 1));

    let files: Vec<String> = (0..70_000).map(|at| format!("\"{at}\":\"model-1.safetensors\"")).collect();
    let index = format!("{{\"weight_map\":{{{}}}}}", files.join(","));
    refused("safetensors", "an index of 70,000 tensors", &[&[1], index.as_bytes()].concat());

    let tokens = format!("{},\"eos_token_id\":[{}]}}", CONFIG.trim_end_matches('}'), vec!["1"; 100_000].join(","));
    refused("config", "a hundred thousand tokens", tokens.as_bytes());
    let layers = format!("{},\"layer_types\":[{}]}}", CONFIG.trim_end_matches('}'), vec!["0"; 100_000].join(","));
    // this architecture does not read them, and may take it
    target("config").measured(layers.as_bytes());

    for (name, limit) in [("document", 1usize << 20), ("manifest", 256 << 10)] {
        let prefix: &[u8] = if name == "document" { &[0] } else { &[] };
        for line in ["a=1\n", "[[member]]\n", "[[silo]]\n", "a.b.c.d.e.f=1\n", "#\n"] {
            let text = line.repeat(limit / line.len());
            refused(name, line, &[prefix, text.as_bytes()].concat());
            // beyond the limit nothing is read at all
            let text = line.repeat(limit / line.len() + 1);
            let peak = refused(name, line, &[prefix, text.as_bytes()].concat());
            assert!(text.len() <= limit || peak < LITTLE, "`{name}`: {line:?} beyond the limit takes {peak}");
        }
        let numbers = format!("a = [{}]", vec!["1"; limit / 2 - 8].join(","));
        refused(name, "a long list", &[prefix, numbers.as_bytes()].concat());
    }
    let rounds = "[[data_free]]\nblock = 1\n".repeat(10_000);
    refused("document", "ten thousand taps", &[&[1], rounds.as_bytes()].concat());
}

/// Nesting without end is an error, neither memory nor stack.
fn nesting() {
    const DEEP: usize = 50_000;
    for open in ["[", "{\"a\":", "[{\"a\":"] {
        let json = open.repeat(DEEP);
        refused_for_little("config", "deep JSON", json.as_bytes());
        refused_for_little("config", "deep JSON", format!("{{\"model_type\":{json}").as_bytes());
        let header = format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":{json}");
        let weights = [&[0][..], &(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        refused_for_little("safetensors", "a deep header", &weights);
        let metadata = format!("{{\"__metadata__\":{{\"a\":{json}");
        let weights = [&[0][..], &(metadata.len() as u64).to_le_bytes(), metadata.as_bytes()].concat();
        refused_for_little("safetensors", "deep metadata", &weights);
        let index = format!("{{\"weight_map\":{json}");
        refused_for_little("safetensors", "a deep index", &[&[1], index.as_bytes()].concat());
    }
    for (name, prefix) in [("document", &[0u8][..]), ("document", &[1]), ("manifest", &[])] {
        for text in [
            format!("a = {}", "[".repeat(DEEP)),
            format!("a = {}", "{a=".repeat(DEEP)),
            format!("a = {}1{}", "{a=".repeat(DEEP), "}".repeat(DEEP)),
            format!("[{}a]", "a.".repeat(DEEP)),
            format!("{}a = 1", "a.".repeat(DEEP)),
        ] {
            refused_for_little(name, "deep TOML", &[prefix, text.as_bytes()].concat());
        }
        // as many as are read at all, and one more: each opens tables, for two bytes
        let keys = |parts: usize| format!("{}=1\n", "a.".repeat(78)).repeat(parts / 79);
        let peak =
            refused(name, "dotted keys", &[prefix, keys(fedprune_federation::document::MAX_PARTS).as_bytes()].concat());
        assert!(peak < 64 << 20, "`{name}`: dotted keys take {peak}");
        refused_for_little(
            name,
            "more of them",
            &[prefix, keys(2 * fedprune_federation::document::MAX_PARTS).as_bytes()].concat(),
        );
    }
}

/// Files that have a size and nothing in them.
fn files_of_a_terabyte() {
    let folder = tempfile::tempdir().unwrap();
    let sparse = |path: &Path| File::create(path).and_then(|file| file.set_len(1 << 40)).unwrap();
    let transcript = folder.path().join("transcript");
    fs::create_dir_all(transcript.join("heights/0000/results")).unwrap();
    for name in ["consortium.bin", "consortium.signatures", "round.bin", "heights/0000/settled.bin", "summary.json"] {
        sparse(&transcript.join(name));
    }
    let limits = Limits::default();
    let (refusals, peak) = peak_of(|| {
        let transcript = Transcript::open(&transcript, &limits).unwrap();
        let height = fedprune_federation::Height(0);
        [
            transcript.consortium().is_err(),
            transcript.signatures().is_err(),
            transcript.round().is_err(),
            transcript.settled(height).is_err(),
            transcript.summary().is_err(),
        ]
    });
    assert_eq!(refusals, [true; 5]);
    assert!(peak < LITTLE, "a transcript of sparse files takes {peak}");

    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    sparse(&model.join("config.json"));
    let (refusal, peak) = peak_of(|| Checkpoint::open(&model).is_err());
    assert!(refusal && peak < LITTLE, "a sparse configuration takes {peak}");
    fs::write(model.join("config.json"), CONFIG).unwrap();
    sparse(&model.join("model.safetensors.index.json"));
    let (refusal, peak) = peak_of(|| Checkpoint::open(&model).is_err());
    assert!(refusal && peak < LITTLE, "a sparse index takes {peak}");
    sparse(&model.join("model.safetensors"));
    let (refusal, peak) = peak_of(|| Checkpoint::open(&model).is_err());
    assert!(refusal && peak < LITTLE, "a sparse weight file takes {peak}");
}
