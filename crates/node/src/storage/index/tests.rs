//! Indexes that are kept, left by a crash, deleted, and damaged in any byte.

use super::*;
use std::convert::Infallible;

fn key(member: u16) -> StatementKey {
    StatementKey { kind: 3, height: Height(1), member: MemberIndex(member), digest: Digest::of(&member.to_le_bytes()) }
}

fn position(offset_bytes: u64) -> Place {
    Place::Log(Position { height: Height(1), offset_bytes })
}

fn body(member: u16, complete: bool) -> Announced {
    let digest = Digest::of(b"body");
    Announced { digest, member: MemberIndex(member), size_bytes: 7, height: Height(1), complete }
}

/// What every rebuild here puts in.
fn fill(update: &mut Update<'_>) -> Result<(), IndexError> {
    update.put_statement(&key(0), &position(44))?;
    update.put_statement(&key(1), &Place::Bytes(vec![1, 2]))?;
    update.put_body(&body(0, true))?;
    update.put_body(&body(1, true))?;
    update.put_certificate(Height(1), b"certificate")?;
    update.put_evidence(&Digest::of(b"evidence"), b"evidence")
}

fn expected(counters: &[(&str, u64)]) -> Summary {
    Summary {
        statements: 2,
        bodies: 2,
        complete_bodies: 1,
        complete_bytes: 7,
        certificates: 1,
        evidence: 1,
        counters: counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
    }
}

fn no_rebuild(_: &mut Update<'_>) -> Result<(), Infallible> {
    panic!("it was closed properly")
}

#[test]
fn what_was_put_in_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.redb");
    assert_eq!(Index::look(&path).unwrap(), None);
    let (mut index, found) = Index::open(&path, fill).unwrap();
    assert_eq!(found, Found::New);
    assert_eq!(index.statement(&key(0)).unwrap(), Some(position(44)));
    assert_eq!(index.statement(&key(2)).unwrap(), None);
    let statements = index.statements(3, Height(1), 10).unwrap();
    assert_eq!(statements, [(key(0), position(44)), (key(1), Place::Bytes(vec![1, 2]))]);
    assert_eq!(index.statements(3, Height(1), 1).unwrap().len(), 1);
    assert_eq!(index.statements(3, Height(2), 10).unwrap(), []);
    assert_eq!(index.bodies(10).unwrap(), [body(0, true), body(1, true)]);
    assert_eq!(index.certificate(Height(1)).unwrap().unwrap(), b"certificate");
    assert_eq!(index.certificate(Height(0)).unwrap(), None);
    assert_eq!(index.evidence(&Digest::of(b"evidence")).unwrap().unwrap(), b"evidence");
    index.update(|update| update.put_statement(&key(0), &position(45))).unwrap();
    assert_eq!(index.statement(&key(0)).unwrap(), Some(position(45)), "it moved");
    assert_eq!(index.update(|update| update.add_to_counter("sent", 5)).unwrap(), 5);
    assert_eq!(index.update(|update| update.add_to_counter("sent", u64::MAX)).unwrap(), u64::MAX);
    assert_eq!(index.summary().unwrap(), expected(&[("sent", u64::MAX)]));
    index.close().unwrap();
    let (index, found) = Index::open(&path, no_rebuild).unwrap();
    assert_eq!(found, Found::Closed);
    assert_eq!(index.summary().unwrap(), expected(&[("sent", u64::MAX)]));
}

#[test]
fn after_a_crash_all_but_the_counters_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.redb");
    let (mut index, _) = Index::open(&path, |_| Ok::<(), Infallible>(())).unwrap();
    index.update(|update| update.add_to_counter("sent", 5)).unwrap();
    index.update(|update| update.put_certificate(Height(9), b"of a record that the log lost")).unwrap();
    // The process is gone without closing: its file as it was at that moment.
    let crashed = folder.path().join("crashed.redb");
    std::fs::copy(&path, &crashed).unwrap();
    let (mut index, found) = Index::open(&crashed, fill).unwrap();
    assert_eq!(found, Found::LeftOpen);
    assert_eq!(index.summary().unwrap(), expected(&[("sent", 5)]));
    assert_eq!(index.update(|update| update.add_to_counter("sent", 1)).unwrap(), 6);
    drop(index);
    assert_eq!(Index::open(&crashed, fill).unwrap().1, Found::LeftOpen, "dropped, not closed");
}

#[test]
fn a_failed_change_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut index, _) = Index::open(&folder.path().join("index.redb"), fill).unwrap();
    let result = index.update(|update| {
        update.put_certificate(Height(2), b"x")?;
        update.put_certificate(Height(3), &vec![0; MAX_INDEX_VALUE_BYTES + 1])
    });
    assert!(matches!(result, Err(IndexError::TooLarge { .. })));
    let result = index.update(|update| update.add_to_counter(&"x".repeat(MAX_COUNTER_NAME_BYTES + 1), 1));
    assert!(matches!(result, Err(IndexError::TooLarge { .. })));
    assert_eq!(index.summary().unwrap(), expected(&[]));
    let broken = |_: &mut Update<'_>| Err("the log is damaged");
    let error = Index::open(&folder.path().join("other.redb"), broken).unwrap_err();
    assert!(
        matches!(&error, IndexError::Rebuild { source, .. } if source.to_string() == "the log is damaged"),
        "{error}"
    );
    let (_, found) = Index::open(&folder.path().join("other.redb"), fill).unwrap();
    assert_eq!(found, Found::LeftOpen, "a rebuild that failed is not taken for one that succeeded");
}

#[test]
fn others_may_look_but_not_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.redb");
    let (mut index, _) = Index::open(&path, fill).unwrap();
    assert!(matches!(Index::open(&path, fill), Err(IndexError::InUse(_))));
    assert_eq!(Index::look(&path).unwrap().unwrap(), expected(&[]));
    index.update(|update| update.add_to_counter("received", 3)).unwrap();
    assert_eq!(Index::look(&path).unwrap().unwrap(), expected(&[("received", 3)]));
}

#[test]
fn a_damaged_file_is_moved_aside_and_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.redb");
    Index::open(&path, fill).unwrap().0.close().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut damages: Vec<Vec<u8>> = vec![b"notes".to_vec(), whole[..whole.len() / 2].to_vec(), vec![0; whole.len()]];
    damages.extend([1, 63, 64, 4095, 4096, 8192].map(|length| whole[..length].to_vec()));
    // the header, and a sample of the pages
    let places = (0..512).step_by(3).chain((512..whole.len()).step_by(2477).take(150));
    damages.extend(places.map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        bytes
    }));
    let mut damaged = 0;
    for (number, bytes) in damages.iter().enumerate() {
        std::fs::write(&path, bytes).unwrap();
        // an error or what it says, but no panic
        let _ = Index::look(&path);
        let (index, found) = Index::open(&path, fill).unwrap_or_else(|error| panic!("{number}: {error:?}"));
        assert_eq!(index.summary().unwrap(), expected(&[]), "{number}");
        if let Found::Damaged { moved_to, .. } = found {
            damaged += 1;
            assert_eq!(std::fs::read(&moved_to).unwrap().len(), bytes.len(), "{number}");
            std::fs::remove_file(moved_to).unwrap();
        }
        drop(index);
        std::fs::remove_file(&path).unwrap();
    }
    assert!(damaged > 9, "{damaged} of {} were noticed", damages.len());
}
