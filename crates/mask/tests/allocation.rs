//! Files come from strangers: whatever they claim, reading them allocates about what the layout implies.
//!
//! One test in one process, since the counting allocator is global.

use std::alloc::{GlobalAlloc, Layout as Block, System};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use fedprune_mask::ballot::{Encodings, MaskHeader, VoteHeader};
use fedprune_mask::layout::Matrix;
use fedprune_mask::tally::{Voter, encode_tally};
use fedprune_mask::{
    Ballot, DType, Digest, Group, Layout, MatrixSource, NormVector, Pruner, Tally, Tap, WeightsView, encode_ballot,
    encode_mask, peek_header,
};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system allocator unchanged; counting touches only atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, block: Block) -> *mut u8 {
        let live = LIVE.fetch_add(block.size(), Relaxed) + block.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(block) }
    }

    unsafe fn dealloc(&self, at: *mut u8, block: Block) {
        LIVE.fetch_sub(block.size(), Relaxed);
        // SAFETY: `at` came from `System.alloc` with this block, as the caller promises.
        unsafe { System.dealloc(at, block) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `f` held at once, over what was held before it.
fn peak_of<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = f();
    (result, PEAK.load(Relaxed) - before)
}

/// Decoding holds a header, its re-encoding, norms, one matrix's bits twice, and rayon's queues at most.
const ALLOWED_BYTES: usize = 512 << 10;

struct Weights(Layout, Vec<u8>);

impl MatrixSource for Weights {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        let matrix = &self.0.matrices()[index];
        let bytes = &self.1[..matrix.weights() as usize * 2];
        WeightsView::new(DType::BF16, matrix.rows as usize, matrix.columns as usize, bytes).unwrap()
    }
}

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 33
}

fn collect(write: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Infallible>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut |part| {
        bytes.extend_from_slice(part);
        Ok(())
    });
    bytes
}

fn read_everything(bytes: &[u8], weights: &Weights) -> usize {
    let mut masks = 0;
    let _ = peek_header(bytes);
    if let Ok(ballot) = Ballot::parse(bytes, &weights.0) {
        masks += (0..2).filter(|&index| ballot.mask(index, weights.matrix(index)).is_ok()).count();
    }
    if let Ok(tally) = Tally::parse(bytes, &weights.0) {
        masks += (0..2).filter(|&index| tally.matrix(index, weights.matrix(index)).is_ok()).count();
    }
    masks
}

#[test]
fn hostile_files_allocate_no_more_than_honest_ones() {
    let matrix = |name: &str, tap, rows| Matrix { name: name.to_owned(), block: 0, tap, rows, columns: 64 };
    let layout = Layout::new(vec![matrix("gate", Tap::MlpInput, 64), matrix("down", Tap::MlpOutput, 40)]).unwrap();
    let mut state = 9;
    let weights = Weights(layout, (0..64 * 64 * 2).map(|_| next(&mut state) as u8 & 0x3f).collect());
    let header = VoteHeader {
        model: Digest::of(b"model"),
        layout: weights.0.digest(),
        pruner: Pruner::WANDA,
        group: Group::Layer,
        sparsity: "0.5".parse().unwrap(),
        samples: 1,
        sequence_tokens: 8,
    };
    let sums: Vec<f64> = (0..64).map(|_| (next(&mut state) % 1000 + 1) as f64).collect();
    let norms = vec![NormVector::from_sums(&sums, 1).unwrap(); 2];
    let ballots: Vec<Vec<u8>> = [Encodings::Auto, Encodings::MaskOnly]
        .map(|encodings| {
            collect(|sink| {
                encode_ballot(&header, &weights.0, &norms, encodings, &weights, sink).unwrap();
            })
        })
        .into();
    let voters = ["a", "b"].into_iter().zip(&ballots).map(|(name, bytes)| Voter {
        name: name.to_owned(),
        weight: 1,
        ballot: Ballot::parse(bytes, &weights.0).unwrap(),
    });
    let tally = Tally::new(&weights.0, Group::Layer, voters.collect()).unwrap();
    let tally = collect(|sink| {
        encode_tally(&tally, Digest::of(b"root"), sink).unwrap();
    });
    let mask_header = MaskHeader {
        model: header.model,
        layout: header.layout,
        group: Group::Layer,
        sparsity: header.sparsity,
        votes: 1,
    };
    let mask = collect(|sink| {
        let ballot = Ballot::parse(&ballots[0], &weights.0).unwrap();
        let mut masks = |index| Ok(ballot.mask(index, weights.matrix(index)).unwrap());
        encode_mask(&mask_header, &weights.0, &mut masks, sink).unwrap();
    });
    let honest = [ballots[0].clone(), ballots[1].clone(), tally.clone(), mask.clone()];

    // Lazily made pools and tables must not be charged to a hostile file.
    for bytes in &honest {
        assert_eq!(read_everything(bytes, &weights), 2);
        let (_, peak) = peak_of(|| read_everything(bytes, &weights));
        assert!(peak < ALLOWED_BYTES, "an honest file takes {peak} bytes");
    }

    let check = |what: &str, bytes: &[u8]| {
        let (masks, peak) = peak_of(|| read_everything(bytes, &weights));
        assert!(peak < ALLOWED_BYTES, "{what} takes {peak} bytes");
        masks
    };

    // Lengths that are not there: of the header, of the member list, of a name, of a ballot, of a bitmap.
    let claimed = |bytes: &[u8], at: usize, length: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[at..at + length.len()].copy_from_slice(length);
        bytes
    };
    for huge in [(64 << 10) + 1, 256 << 10, u32::MAX] {
        assert_eq!(check("a header length", &claimed(&mask, 11, &huge.to_le_bytes())), 0);
        assert_eq!(check("a header length", &claimed(&tally, 11, &huge.to_le_bytes())), 0);
    }
    let members_at = 15 + 32 + 32 + 4 + 8;
    for huge in [1u64 << 17, 1 << 32, 1 << 60, u64::MAX] {
        let length = huge.to_le_bytes();
        assert_eq!(check("a member count", &claimed(&tally, members_at, &length)), 0);
        assert_eq!(check("a name", &claimed(&tally, members_at + 8, &length)), 0);
        assert_eq!(check("a ballot", &claimed(&tally, members_at + 8 + 8 + 1 + 4 + 32, &length)), 0);
        assert_eq!(check("a bitmap", &claimed(&mask, 15 + 80 + 2 + 1, &length)), 0);
    }

    // A frame of a few kilobytes that would expand to 64 MiB, where 512 bytes belong.
    let mut compressor = zstd::bulk::Compressor::new(19).unwrap();
    compressor.include_contentsize(false).unwrap();
    compressor.include_checksum(false).unwrap();
    let bomb = compressor.compress(&vec![0u8; 64 << 20]).unwrap();
    for length in [bomb.len(), 500] {
        let mut file = mask[..15 + 80 + 2].to_vec();
        file.push(1);
        file.extend((length as u64).to_le_bytes());
        file.extend(&bomb[..length.min(bomb.len())]);
        assert_eq!(check("a decompression bomb", &file), 0);
    }

    // Random damage, several bytes at a time.
    for round in 0..4000 {
        let mut bytes = honest[round % honest.len()].clone();
        for _ in 0..=next(&mut state) % 4 {
            let at = next(&mut state) as usize % bytes.len();
            bytes[at] = match next(&mut state) % 3 {
                0 => 0xff,
                1 => 0,
                _ => next(&mut state) as u8,
            };
        }
        check("damage", &bytes);
    }
}
