//! Damaged and forged files: no panic, and no memory for what a file merely claims.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;

use fedprune_checkpoint::Checkpoint;
use support::{Copied, copied, write_raw};

/// The system's allocator, counting what this thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(more: usize, less: usize) {
    let held = HELD.get().wrapping_add(more).wrapping_sub(less);
    HELD.set(held);
    // Memory that another thread allocated and this one frees would count below zero.
    if held < isize::MAX as usize {
        PEAK.set(PEAK.get().max(held));
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's guarantees, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's guarantees, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size, layout.size());
        // SAFETY: the caller's guarantees, passed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Peak bytes that `work` holds on this thread beyond what was held before.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get() - before)
}

/// Opens what may be anything; what opens must be readable throughout.
fn open_and_read(model: &Copied) -> bool {
    let Ok(checkpoint) = Checkpoint::open(&model.folder) else { return false };
    for index in 0..checkpoint.layout().matrices().len() {
        checkpoint.matrix(index).magnitude_bits(0, 0);
    }
    checkpoint.release_block(0);
    checkpoint.content_digest(&|_| {});
    true
}

/// A small, fast generator: xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Replaces a file by a new one: file systems flush what is overwritten in place, thousands of times here.
fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// What an honest file of this size may take, with a wide margin; far below what headers can claim.
const SMALL: usize = 1 << 20;

#[test]
fn flipped_bits_and_truncations_never_panic() {
    let model = copied("mistral");
    let (_, honest) = peak_of(|| assert!(open_and_read(&model)));
    assert!(honest < SMALL, "{honest} bytes");
    let mut random = Random(7);
    for file in ["model-00002-of-00004.safetensors", "model-00004-of-00004.safetensors"] {
        let path = model.path(file);
        let original = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(original[..8].try_into().unwrap()) as usize;
        for round in 0..1500 {
            let mut bytes = original.clone();
            for _ in 0..=random.below(3) {
                bytes[random.below(header)] ^= 1 << random.below(8);
            }
            if round % 5 == 0 {
                bytes.truncate(random.below(original.len()));
            }
            replace(&path, &bytes);
            let (_, peak) = peak_of(|| open_and_read(&model));
            assert!(peak < SMALL, "{file}, round {round}: {peak} bytes");
        }
        for length in 0..header + 2 {
            replace(&path, &original[..length]);
            assert!(!open_and_read(&model), "{file} cut to {length} bytes");
        }
        replace(&path, &original);
        assert!(open_and_read(&model));
    }
}

#[test]
fn flipped_bits_in_json_never_panic() {
    let model = copied("mistral");
    let mut random = Random(11);
    for file in ["config.json", "model.safetensors.index.json"] {
        let path = model.path(file);
        let original = fs::read(&path).unwrap();
        for round in 0..1500 {
            let mut bytes = original.clone();
            match round % 3 {
                // digits to digits: numbers that are valid and wrong
                0 => {
                    let digits: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at].is_ascii_digit()).collect();
                    bytes[digits[random.below(digits.len())]] = b'0' + random.below(10) as u8;
                }
                1 => bytes[random.below(original.len())] ^= 1 << random.below(8),
                _ => bytes.truncate(random.below(original.len())),
            }
            replace(&path, &bytes);
            let (_, peak) = peak_of(|| open_and_read(&model));
            assert!(peak < SMALL, "{file}, round {round}: {peak} bytes");
        }
        replace(&path, &original);
    }
}

#[test]
fn headers_get_no_memory_for_what_they_claim() {
    let model = copied("llama");
    let original = fs::read(model.weights()).unwrap();
    let entry = |shape: &str, end: &str| {
        format!(r#"{{"model.norm.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    let mut forged: Vec<Vec<u8>> = Vec::new();
    // lengths
    for length in [u64::MAX, 100_000_000, 99_999_999, 1 << 32] {
        forged.push([&length.to_le_bytes(), &original[8..]].concat());
    }
    // shapes and offsets
    for header in [
        entry("[4294967296,4294967296]", "18446744073709551615"),
        entry("[1152921504606846976]", "4611686018427387904"),
        entry("[1000000000000]", "4000000000000"),
    ] {
        forged.push([&(header.len() as u64).to_le_bytes(), header.as_bytes(), b"1234"].concat());
    }
    for bytes in forged {
        fs::write(model.weights(), &bytes).unwrap();
        let (opened, peak) = peak_of(|| open_and_read(&model));
        assert!(!opened && peak < SMALL, "{peak} bytes");
    }
}

/// Long headers that are really there, built so that a general JSON parser would need many times their size.
#[test]
fn long_headers_are_not_amplified() {
    const LONG: usize = 8 << 20;
    let model = copied("llama");
    let entry =
        |field: &str, value: String| format!(r#"{{"a":{{"dtype":"F32","{field}":{value},"data_offsets":[0,0]}}}}"#);
    let numbers = format!("[{}0]", "0,".repeat(LONG / 2));
    let pairs: String = (0..LONG / 12).map(|number| format!(r#""{number:06}":"","#)).collect();
    let tensor = r#""dtype":"U8","shape":[0],"data_offsets":[0,0]"#;
    let headers = [
        ("shape", entry("shape", numbers.clone())),
        ("unknown field", entry("x", numbers.clone())),
        ("offsets", format!(r#"{{"a":{{"dtype":"F32","shape":[],"data_offsets":{numbers}}}}}"#)),
        ("metadata", format!(r#"{{"__metadata__":{{{pairs}"x":""}}}}"#)),
        ("metadata values", format!(r#"{{"__metadata__":{{"x":{numbers}}}}}"#)),
        ("name", format!(r#"{{"{}":{{{tensor}}}}}"#, "n".repeat(LONG))),
        ("nesting", format!(r#"{{"a":{}"#, "[".repeat(LONG))),
    ];
    for (kind, header) in headers {
        write_raw(&model.weights(), header.as_bytes(), b"");
        let (opened, peak) = peak_of(|| open_and_read(&model));
        // A name is one string that is really there; buffers double while they grow.
        assert!(!opened && peak < 3 * header.len(), "{kind}: {peak} bytes for a header of {}", header.len());
    }
    // Entries are kept, a bounded number of bytes for each that is really there, up to a bounded number.
    let most = 1 << 16;
    for (count, entries) in [(most, "most"), (most + 1, "too many"), (4 * most, "far too many")] {
        let entry = |number: usize| format!(r#""{number}":{{{tensor}}}"#);
        let header = format!("{{{}}}", (0..count).map(entry).collect::<Vec<_>>().join(","));
        write_raw(&model.weights(), header.as_bytes(), b"");
        let (opened, peak) = peak_of(|| open_and_read(&model));
        assert!(!opened && peak < 1024 * most, "{entries}: {peak} bytes");
        let parts: &[&str] =
            if count > most { &["damaged"] } else { &["tensor `model.embed_tokens.weight` is missing"] };
        model.refused_with(parts);
    }
}

/// A configuration that claims the most it may, over files that are small.
#[test]
fn configurations_get_no_memory_for_what_they_claim() {
    let model = copied("llama");
    for (field, value) in [
        ("num_hidden_layers", 1u64 << 12),
        ("vocab_size", 1 << 24),
        ("hidden_size", 1 << 20),
        ("intermediate_size", 1 << 20),
        ("num_attention_heads", 1 << 14),
    ] {
        let original = fs::read(model.path("config.json")).unwrap();
        model.edit_config(|config| drop(config.insert(field.into(), value.into())));
        let (opened, peak) = peak_of(|| open_and_read(&model));
        assert!(!opened && peak < SMALL, "{field}: {peak} bytes");
        fs::write(model.path("config.json"), original).unwrap();
    }
}
