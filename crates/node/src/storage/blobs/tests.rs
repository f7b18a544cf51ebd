//! Bodies that travel whole, torn, corrupted, announced falsely, and damaged on the disk.

use super::*;
use crate::storage::limits::{CHUNK_BYTES, MAX_ENCODED_CHUNK_BYTES};
use proptest::prelude::*;

const QUOTA_BYTES: u64 = 1 << 32;

/// Bytes without pattern.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut content);
    content
}

fn store() -> (tempfile::TempDir, BlobStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = BlobStore::open(&folder.path().join("blobs"), QUOTA_BYTES).unwrap();
    (folder, store)
}

/// A store with one body.
fn source(content: &[u8]) -> (tempfile::TempDir, BlobStore, Digest) {
    let (folder, store) = store();
    let (digest, size_bytes) = store.import(content).unwrap();
    assert_eq!((digest, size_bytes), (Digest::of(content), content.len() as u64));
    (folder, store, digest)
}

fn begin(store: &BlobStore, digest: Digest, size_bytes: u64) -> Partial {
    store.begin(digest, size_bytes, u64::MAX).unwrap()
}

fn files(folder: &tempfile::TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path().join("blobs")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()[64..].to_owned()).collect();
    names.sort();
    names
}

/// Sizes at which the tree has another shape.
const SIZES: [usize; 14] = [
    0,
    1,
    1024,
    1025,
    16 << 10,
    (16 << 10) + 1,
    (1 << 20) - 1,
    1 << 20,
    (1 << 20) + 1,
    (1 << 20) + (16 << 10),
    (1 << 20) + (16 << 10) + 1,
    3 << 20,
    (3 << 20) + 700_001,
    (4 << 20) + 1,
];

#[test]
fn bodies_of_all_shapes_travel() {
    for size in SIZES {
        let content = noise(size as u64, size);
        let (_folder, source, digest) = source(&content);
        let (folder, target) = store();
        let mut partial = begin(&target, digest, size as u64);
        let chunks = chunk_count(size as u64).unwrap();
        assert_eq!(partial.missing().collect::<Vec<_>>(), (0..chunks).collect::<Vec<_>>(), "{size}");
        for chunk in (0..chunks).rev() {
            // nothing is needed to serve the empty body
            assert!(target.encode_chunk(&digest, chunk).unwrap().is_none() || size == 0);
            let encoded = source.encode_chunk(&digest, chunk).unwrap().unwrap();
            assert_eq!(Some(encoded.len()), encoded_chunk_bytes(size as u64, chunk));
            assert!(encoded.len() <= MAX_ENCODED_CHUNK_BYTES);
            assert_eq!(partial.accept(chunk, &encoded).unwrap(), Accepted::New, "{size}");
            assert_eq!(partial.accept(chunk, &encoded).unwrap(), Accepted::Already);
            assert_eq!(target.encode_chunk(&digest, chunk).unwrap().unwrap(), encoded, "served before it is whole");
        }
        assert_eq!(source.encode_chunk(&digest, chunks).unwrap(), None);
        assert!(partial.is_complete() && !target.contains(&digest));
        assert_eq!(partial.finish().unwrap(), size as u64);
        assert_eq!(&*target.open_mapped(&digest).unwrap(), &content);
        assert_eq!(target.bodies(), [(digest, size as u64)]);
        assert_eq!(files(&folder), ["", ".obao"]);
        for chunk in 0..chunks {
            assert_eq!(
                target.encode_chunk(&digest, chunk).unwrap(),
                source.encode_chunk(&digest, chunk).unwrap(),
                "{size}"
            );
        }
        target.verify(&digest).unwrap();
    }
}

#[test]
fn corrupt_chunks_are_never_counted() {
    let content = noise(1, (2 << 20) + 50_000);
    let (_folder, source, digest) = source(&content);
    let (_folder, target) = store();
    let mut partial = begin(&target, digest, content.len() as u64);
    let good = source.encode_chunk(&digest, 1).unwrap().unwrap();
    let refused = |partial: &mut Partial, chunk: u32, bytes: &[u8]| {
        let error = partial.accept(chunk, bytes).unwrap_err();
        assert!(matches!(error, AcceptError::Corrupt { .. }), "{error}");
    };
    for at in (0..good.len()).step_by(good.len() / 50) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        refused(&mut partial, 1, &bad);
    }
    refused(&mut partial, 1, &[]);
    refused(&mut partial, 1, &good[..good.len() - 1]);
    refused(&mut partial, 1, &[good.as_slice(), &[0]].concat());
    refused(&mut partial, 0, &good);
    refused(&mut partial, 2, &good);
    refused(&mut partial, 1, &vec![0; 4 << 20]);
    assert!(matches!(partial.accept(3, &good), Err(AcceptError::NoSuchChunk { .. })));
    assert!(matches!(partial.accept(u32::MAX, &good), Err(AcceptError::NoSuchChunk { .. })));
    assert_eq!(partial.missing().count(), 3);
    assert_eq!(partial.accept(1, &good).unwrap(), Accepted::New);
    assert!(matches!(partial.finish(), Err(BlobError::Incomplete { missing: 2, .. })));
    let partial = begin(&target, digest, content.len() as u64);
    assert_eq!(partial.held().collect::<Vec<_>>(), [1], "what was right has stayed");
}

/// Someone announces another's body under a false size: the last chunk never fits, and the right one is not hindered.
#[test]
fn a_false_size_is_found_out_by_the_last_chunk_and_is_in_nobodys_way() {
    let content = noise(2, (2 << 20) + 5);
    let (_folder, source, digest) = source(&content);
    for false_size in [1u64 << 20, 2 << 20, (2 << 20) + 4, (2 << 20) + 6, 3 << 20, 5 << 20] {
        let (_folder, target) = store();
        let mut lied_to = begin(&target, digest, false_size);
        let mut partial = begin(&target, digest, content.len() as u64);
        let last = chunk_count(false_size).unwrap() - 1;
        for chunk in 0..3 {
            let encoded = source.encode_chunk(&digest, chunk).unwrap().unwrap();
            let taken = lied_to.accept(chunk, &encoded);
            assert!(taken.is_err() || chunk != last, "{false_size}: {chunk}");
            partial.accept(chunk, &encoded).unwrap();
        }
        assert!(!lied_to.is_complete());
        partial.finish().unwrap();
        lied_to.abandon().unwrap();
        assert_eq!(target.partials(), []);
        assert!(matches!(target.begin(digest, false_size, u64::MAX), Err(BlobError::Held(_))));
    }
}

/// The root of the empty body is known, so nobody makes a node hold another one "complete" without a byte.
#[test]
fn an_empty_body_under_a_false_root_never_completes() {
    let (_folder, target) = store();
    let mut partial = begin(&target, Digest::of(b"x"), 0);
    assert!(matches!(partial.accept(0, &[]), Err(AcceptError::Corrupt { .. })));
    assert!(matches!(partial.finish(), Err(BlobError::Incomplete { .. })));
}

#[test]
fn a_transfer_goes_on_where_it_stopped_and_trusts_no_byte_on_the_disk() {
    let content = noise(3, (5 << 20) + 123);
    let size_bytes = content.len() as u64;
    let (_folder, source, digest) = source(&content);
    let (folder, target) = store();
    let mut partial = begin(&target, digest, size_bytes);
    for chunk in [0, 2, 4, 5] {
        partial.accept(chunk, &source.encode_chunk(&digest, chunk).unwrap().unwrap()).unwrap();
    }
    assert!(matches!(target.begin(digest, size_bytes, u64::MAX), Err(BlobError::Arriving(_))));
    drop(partial);
    drop(target);
    let path = folder.path().join("blobs");
    let target = BlobStore::open(&path, QUOTA_BYTES).unwrap();
    assert_eq!(target.partials(), [(digest, size_bytes)]);
    assert_eq!(begin(&target, digest, size_bytes).held().collect::<Vec<_>>(), [0, 2, 4, 5]);
    // the power failed, and a page of chunk 2 and one of the tree never reached the disk
    let body = target.shared.path(Name::Partial(digest, size_bytes));
    let file = File::options().write(true).open(&body).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 2 * CHUNK_BYTES + 8192).unwrap();
    assert_eq!(begin(&target, digest, size_bytes).held().collect::<Vec<_>>(), [0, 4, 5]);
    let tree = target.shared.path(Name::PartialTree(digest, size_bytes));
    let tree_bytes = std::fs::read(&tree).unwrap();
    std::fs::write(&tree, &tree_bytes[..tree_bytes.len() - 64]).unwrap();
    assert_eq!(begin(&target, digest, size_bytes).held().collect::<Vec<_>>(), [0, 5], "the last pair is of chunk 4");
    std::fs::remove_file(&tree).unwrap();
    assert_eq!(begin(&target, digest, size_bytes).held().count(), 0);
    std::fs::write(&tree, &tree_bytes).unwrap();
    let mut partial = begin(&target, digest, size_bytes);
    let missing: Vec<u32> = partial.missing().collect();
    assert_eq!(missing, [1, 2, 3]);
    for chunk in missing {
        partial.accept(chunk, &source.encode_chunk(&digest, chunk).unwrap().unwrap()).unwrap();
    }
    partial.finish().unwrap();
    assert_eq!(&*target.open_mapped(&digest).unwrap(), &content);
}

#[test]
fn a_partial_file_of_another_length_or_name_starts_afresh() {
    let content = noise(4, 3 << 20);
    let (_folder, source, digest) = source(&content);
    let (folder, target) = store();
    let mut partial = begin(&target, digest, 3 << 20);
    partial.accept(0, &source.encode_chunk(&digest, 0).unwrap().unwrap()).unwrap();
    drop(partial);
    let body = target.shared.path(Name::Partial(digest, 3 << 20));
    File::options().write(true).open(&body).unwrap().set_len(1 << 20).unwrap();
    std::fs::write(folder.path().join("blobs/.fedprune-123"), "left by a crash").unwrap();
    let foreign = folder.path().join("blobs/README");
    std::fs::write(&foreign, "not ours").unwrap();
    let target = BlobStore::open(&folder.path().join("blobs"), QUOTA_BYTES).unwrap();
    assert_eq!((target.partials(), target.used_bytes()), (Vec::new(), 0));
    assert!(foreign.is_file());
    std::fs::remove_file(foreign).unwrap();
    assert_eq!(files(&folder), [""; 0]);
    assert_eq!(begin(&target, digest, 3 << 20).held().count(), 0);
}

#[test]
fn a_body_that_the_disk_changed_is_noticed_and_fetched_again() {
    let content = noise(5, (2 << 20) + 77);
    let size_bytes = content.len() as u64;
    let (folder, store, digest) = source(&content);
    let good: Vec<_> = (0..3).map(|chunk| store.encode_chunk(&digest, chunk).unwrap().unwrap()).collect();
    // its tree can be made again
    let tree = store.shared.path(Name::Tree(digest));
    for damage in [
        |bytes: &mut Vec<u8>| bytes[0] ^= 1,
        |bytes: &mut Vec<u8>| bytes.truncate(10),
        |bytes: &mut Vec<u8>| bytes.clear(),
    ] {
        let mut bytes = std::fs::read(&tree).unwrap();
        damage(&mut bytes);
        std::fs::remove_file(&tree).unwrap();
        std::fs::write(&tree, bytes).unwrap();
        assert_eq!(store.encode_chunk(&digest, 1).unwrap().as_ref(), Some(&good[1]));
    }
    std::fs::remove_file(&tree).unwrap();
    assert_eq!(store.encode_chunk(&digest, 2).unwrap().as_ref(), Some(&good[2]));
    // the body cannot
    let body = store.path(&digest).unwrap();
    let mut bytes = content.clone();
    bytes[1_500_000] ^= 1;
    std::fs::remove_file(&body).unwrap();
    std::fs::write(&body, &bytes).unwrap();
    assert_eq!(store.encode_chunk(&digest, 0).unwrap().as_ref(), Some(&good[0]), "the chunk itself is right");
    let error = store.encode_chunk(&digest, 1).unwrap_err();
    assert!(matches!(&error, BlobError::Damaged { path, .. } if path.is_file()), "{error}");
    assert!(!store.contains(&digest) && store.encode_chunk(&digest, 0).unwrap().is_none());
    assert!(matches!(store.open_mapped(&digest), Err(BlobError::NotHeld(_))));
    assert!(store.used_bytes() > size_bytes, "it takes its space until it is replaced");
    let store = BlobStore::open(&folder.path().join("blobs"), QUOTA_BYTES).unwrap();
    assert_eq!(files(&folder), [".damaged"]);
    let mut partial = begin(&store, digest, size_bytes);
    for (chunk, encoded) in (0..).zip(&good) {
        partial.accept(chunk, encoded).unwrap();
    }
    partial.finish().unwrap();
    assert_eq!(files(&folder), ["", ".obao"]);
    store.verify(&digest).unwrap();
    // cut short
    std::fs::remove_file(&body).unwrap();
    std::fs::write(&body, &content[..100]).unwrap();
    assert!(matches!(store.encode_chunk(&digest, 1), Err(BlobError::Damaged { .. })));
}

#[test]
fn a_crash_between_the_two_renames_costs_nothing() {
    let content = noise(7, 3 << 20);
    let (folder, store, digest) = source(&content);
    let (body, tree) = (store.path(&digest).unwrap(), store.shared.path(Name::Tree(digest)));
    let partial_tree = store.shared.path(Name::PartialTree(digest, 3 << 20));
    std::fs::rename(&tree, &partial_tree).unwrap();
    let store = BlobStore::open(&folder.path().join("blobs"), QUOTA_BYTES).unwrap();
    assert!(store.contains(&digest) && !partial_tree.exists());
    assert!(store.encode_chunk(&digest, 2).unwrap().is_some());
    assert!(tree.is_file(), "made again");
    // a crash before them, after everything was synced
    std::fs::rename(&body, store.shared.path(Name::Partial(digest, 3 << 20))).unwrap();
    std::fs::rename(&tree, &partial_tree).unwrap();
    std::fs::create_dir(&body).unwrap();
    let store = BlobStore::open(&folder.path().join("blobs"), QUOTA_BYTES).unwrap();
    assert!(!store.contains(&digest), "a folder is no body");
    std::fs::remove_dir(&body).unwrap();
    let partial = begin(&store, digest, 3 << 20);
    assert!(partial.is_complete());
    partial.finish().unwrap();
    store.verify(&digest).unwrap();
}

#[test]
fn a_damaged_copy_makes_room_for_a_good_one() {
    let content = noise(8, 2 << 20);
    let folder = tempfile::tempdir().unwrap();
    let store = BlobStore::open(&folder.path().join("blobs"), 3 << 20).unwrap();
    let (digest, size_bytes) = store.import(&content[..]).unwrap();
    let body = store.path(&digest).unwrap();
    std::fs::remove_file(&body).unwrap();
    std::fs::write(&body, noise(9, 2 << 20)).unwrap();
    assert!(matches!(store.verify(&digest), Err(BlobError::Damaged { .. })));
    assert!(matches!(store.begin(Digest::of(b"x"), 2 << 20, u64::MAX), Err(BlobError::Quota { .. })));
    drop(begin(&store, digest, size_bytes));
    assert_eq!(store.partials(), [(digest, size_bytes)]);
}

/// Chunks are served from one thread while they arrive on another: always right, or not at all.
#[test]
fn a_body_is_served_while_it_arrives() {
    let content = noise(10, (24 << 20) + 3);
    let size_bytes = content.len() as u64;
    let (_folder, source, digest) = source(&content);
    let (_folder, target) = store();
    let mut partial = begin(&target, digest, size_bytes);
    let chunks = chunk_count(size_bytes).unwrap();
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(std::sync::atomic::Ordering::Acquire) {
                for chunk in 0..chunks {
                    if let Some(bytes) = target.encode_chunk(&digest, chunk).unwrap() {
                        assert_eq!(Some(bytes), source.encode_chunk(&digest, chunk).unwrap());
                    }
                }
            }
        });
        for chunk in 0..chunks {
            partial.accept(chunk, &source.encode_chunk(&digest, chunk).unwrap().unwrap()).unwrap();
        }
        partial.finish().unwrap();
        assert!(target.encode_chunk(&digest, 0).unwrap().is_some());
        // let the other thread see the complete body too
        std::thread::yield_now();
        ended.store(true, std::sync::atomic::Ordering::Release);
    });
}

#[test]
fn bodies_stay_within_the_quota() {
    let folder = tempfile::tempdir().unwrap();
    let store = BlobStore::open(&folder.path().join("blobs"), 3 << 20).unwrap();
    let digest = Digest::of(b"x");
    assert!(matches!(store.begin(digest, 1000, 999), Err(BlobError::TooLarge { limit_bytes: 999, .. })));
    assert!(matches!(store.begin(digest, 3 << 20, u64::MAX), Err(BlobError::Quota { .. })), "the tree counts too");
    assert!(matches!(store.begin(digest, u64::MAX, u64::MAX), Err(BlobError::TooLarge { .. })));
    assert_eq!(files(&folder), [""; 0]);
    let partial = begin(&store, digest, 2 << 20);
    assert!(matches!(store.begin(Digest::of(b"y"), 1 << 20, u64::MAX), Err(BlobError::Quota { .. })));
    let endless = std::io::repeat(7);
    assert!(matches!(store.import(endless), Err(BlobError::Quota { .. })));
    assert!(matches!(store.import(&noise(6, 1 << 20)[..]), Err(BlobError::Quota { .. })));
    partial.abandon().unwrap();
    assert_eq!((store.used_bytes(), files(&folder)), (0, Vec::new()));
    store.import(&noise(6, 1 << 20)[..]).unwrap();
    let used = store.used_bytes();
    store.import(&noise(6, 1 << 20)[..]).unwrap();
    assert_eq!(store.used_bytes(), used, "the same body again");
    let large = BlobStore::open(&folder.path().join("other"), u64::MAX).unwrap();
    let error = large.begin(digest, super::MAX_BODY_BYTES, u64::MAX).unwrap_err();
    assert!(matches!(error, BlobError::NoSpace { .. }), "no disk of a test machine has 128 GiB free: {error}");
    assert_eq!(large.partials(), []);
}

#[test]
fn a_failed_import_leaves_nothing() {
    struct Broken(u32);
    impl io::Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0 += 1;
            if self.0 < 3 { Ok(buffer.len()) } else { Err(io::Error::other("unplugged")) }
        }
    }
    let (folder, store) = store();
    assert!(matches!(store.import(Broken(0)), Err(BlobError::Source(_))));
    assert_eq!((store.used_bytes(), files(&folder)), (0, Vec::new()));
    assert!(store.import_file(&folder.path().join("none")).is_err());
}

#[cfg(unix)]
#[test]
fn bodies_are_their_owners_and_not_written_to() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, store, digest) = source(b"ballot");
    for name in [Name::Body(digest), Name::Tree(digest)] {
        assert_eq!(std::fs::metadata(store.shared.path(name)).unwrap().permissions().mode() & 0o777, 0o400);
    }
    let partial = begin(&store, Digest::of(b"x"), 5);
    let path = store.shared.path(Name::Partial(partial.digest(), 5));
    assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn names_are_read_as_they_are_written() {
    let digest = Digest::of(b"x");
    let names = [
        Name::Body(digest),
        Name::Tree(digest),
        Name::Partial(digest, 0),
        Name::PartialTree(digest, u64::MAX),
        Name::Damaged(digest),
    ];
    for name in names {
        assert_eq!(Name::parse(&name.to_string()), Some(name));
    }
    for text in ["", "x", &format!("{digest}-01.partial"), &format!("{digest}-+1.tree"), &format!("{digest}.tmp")] {
        assert_eq!(Name::parse(text), None, "{text}");
    }
    assert_eq!(Name::parse(&digest.to_string().to_uppercase()), None);
}

#[test]
fn chunks_are_counted() {
    assert_eq!([0, 1, CHUNK_BYTES, CHUNK_BYTES + 1].map(chunk_count), [Some(1), Some(1), Some(1), Some(2)]);
    assert_eq!(chunk_count(super::MAX_BODY_BYTES), Some(1 << 17));
    assert_eq!(chunk_count(super::MAX_BODY_BYTES + 1), None);
    assert_eq!(chunk_bytes(CHUNK_BYTES + 5, 1), Some(5));
    assert_eq!(chunk_bytes(CHUNK_BYTES, 1), None);
    for chunk in [0, 1 << 16, (1 << 17) - 1] {
        assert!(encoded_chunk_bytes(super::MAX_BODY_BYTES, chunk).unwrap() <= MAX_ENCODED_CHUNK_BYTES);
    }
    assert_eq!(encoded_chunk_bytes(super::MAX_BODY_BYTES, 0), Some(MAX_ENCODED_CHUNK_BYTES), "the limit is not slack");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Chunks in any order from any sender, some corrupt, with restarts in between: the body arrives as it was sent.
    #[test]
    fn any_order_with_corruption_and_restarts(
        size in 1usize..(5 << 20),
        acts in prop::collection::vec((any::<prop::sample::Index>(), 0..10u8, any::<prop::sample::Index>()), 0..30),
    ) {
        let content = noise(size as u64, size);
        let (_folder, source, digest) = source(&content);
        let (_folder, target) = store();
        let chunks = chunk_count(size as u64).unwrap();
        let mut partial = begin(&target, digest, size as u64);
        let mut held = vec![false; chunks as usize];
        for (chunk, act, at) in acts {
            let chunk = chunk.index(chunks as usize) as u32;
            let mut encoded = source.encode_chunk(&digest, chunk).unwrap().unwrap();
            match act {
                0..3 => {
                    let at = at.index(encoded.len());
                    encoded[at] ^= 0x10;
                    prop_assert_eq!(partial.accept(chunk, &encoded).is_ok(), held[chunk as usize]);
                }
                3 => {
                    drop(partial);
                    partial = begin(&target, digest, size as u64);
                }
                _ => {
                    partial.accept(chunk, &encoded).unwrap();
                    held[chunk as usize] = true;
                }
            }
            // a corrupt chunk may leave right groups behind, but never completes a chunk unseen
            for (chunk, held) in partial.held().zip((0..chunks).filter(|chunk| held[*chunk as usize])) {
                prop_assert_eq!(chunk, held);
            }
        }
        for chunk in partial.missing().collect::<Vec<_>>() {
            partial.accept(chunk, &source.encode_chunk(&digest, chunk).unwrap().unwrap()).unwrap();
        }
        partial.finish().unwrap();
        prop_assert_eq!(&*target.open_mapped(&digest).unwrap(), &content);
    }
}

/// Bytes of memory that this process used at most (VmHWM), where the system tells.
fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

/// In a process of its own, for other tests use memory too.
#[cfg(target_os = "linux")]
#[test]
fn a_large_body_needs_little_memory() {
    const NAME: &str = "storage::blobs::tests::a_large_body_needs_little_memory";
    const INSIDE: &str = "FEDPRUNE_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
        assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"));
        return;
    }
    const SIZE_BYTES: u64 = 192 << 20;
    let before = peak_memory_bytes();
    let (_folder, source) = store();
    let (digest, _) = source.import(io::Read::take(io::repeat(7), SIZE_BYTES)).unwrap();
    let (_folder, target) = store();
    let mut partial = begin(&target, digest, SIZE_BYTES);
    for chunk in 0..chunk_count(SIZE_BYTES).unwrap() {
        partial.accept(chunk, &source.encode_chunk(&digest, chunk).unwrap().unwrap()).unwrap();
    }
    drop(partial);
    begin(&target, digest, SIZE_BYTES).finish().unwrap();
    let used = peak_memory_bytes() - before;
    assert!(used < 32 << 20, "{used} bytes for a body of {SIZE_BYTES}");
}
