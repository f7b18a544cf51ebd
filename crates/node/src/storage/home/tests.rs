//! Homes that can be used, and what is said of those that cannot.

use super::*;
use fedprune_federation::consortium::Member;

fn key(index: u8) -> SigningKey {
    SigningKey::from_seed(&[index + 1; 32]).unwrap()
}

/// `member 0` of four; its libp2p key is of its own.
fn draft() -> Draft {
    let member = |index: u8| Member {
        name: format!("member {index}"),
        signing_key: key(index).verifying_key(),
        peer_key: key(if index == 0 { 100 } else { index }).verifying_key(),
        addresses: Vec::new(),
        attestation_key: None,
    };
    Draft::new(Consortium::new("four".to_owned(), (0..4).map(member).collect()).unwrap())
}

fn round_text(consortium: &Consortium, base: &str) -> String {
    let digest = |text: &str| fedprune_mask::Digest::of(text.as_bytes());
    let (base, layout) = (digest(base), digest("layout"));
    format!(
        "consortium = \"{}\"\nbase_model = \"{base}\"\nlayout = \"{layout}\"\ntokenizer = \"{layout}\"\n\
         configuration = \"{layout}\"\nsparsity = \"0.5\"\n\
         [calibration]\nsamples = 8\nwindow_tokens = 64\nsampling = \"sequential\"\n",
        consortium.id()
    )
}

fn write_key(path: &Path, key: &SigningKey, mode: u32) {
    std::fs::write(path, key.to_pkcs8_pem().unwrap().as_bytes()).unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

/// The home of `member 0`.
fn home() -> (tempfile::TempDir, Home) {
    let folder = tempfile::tempdir().unwrap();
    let mut draft = draft();
    for index in 0..4 {
        draft.sign(&key(index)).unwrap();
    }
    std::fs::write(folder.path().join("consortium.toml"), draft.consortium().to_toml().unwrap()).unwrap();
    std::fs::write(folder.path().join("consortium.signatures"), draft.encode_signatures()).unwrap();
    write_key(&folder.path().join("key.pem"), &key(0), 0o600);
    write_key(&folder.path().join("peer-key.pem"), &key(100), 0o600);
    let home = Home::open(folder.path()).unwrap();
    (folder, home)
}

/// An approved round of this base model.
fn approve(home: &Home, base: &str) -> RoundFolder {
    let consortium = home.consortium().unwrap();
    let text = round_text(consortium.consortium(), base);
    let round = Round::parse(&text, consortium.consortium()).unwrap();
    let folder = home.create_round_folder(round.id()).unwrap();
    std::fs::write(folder.document(), text).unwrap();
    let approval = format!(r#"{{"round": "{}", "operator": "ada"}}"#, round.id());
    std::fs::write(folder.approval(), approval).unwrap();
    folder
}

#[test]
fn a_member_finds_its_keys_and_its_round() {
    let (_folder, home) = home();
    let consortium = home.consortium().unwrap();
    let identity = home.identity(&consortium).unwrap();
    assert_eq!(identity.member, MemberIndex(0));
    assert_eq!(identity.signing_key.verifying_key(), key(0).verifying_key());
    assert_eq!(identity.peer_key.verifying_key(), key(100).verifying_key());
    assert!(matches!(home.round(&consortium, None), Err(HomeError::NoneApproved(_))));
    let folder = approve(&home, "model");
    let (round, found) = home.round(&consortium, None).unwrap();
    assert_eq!((found.folder(), home.round_folder(round.id())), (folder.folder(), folder.clone()));
    assert!(found.index().starts_with(home.folder()) && found.wal() != found.blobs());
}

#[test]
fn one_node_runs_on_a_home() {
    let (folder, home) = home();
    // a lock of this very process holds against another handle too
    let error = Home::open(folder.path()).unwrap_err();
    let id = std::process::id();
    assert!(matches!(&error, HomeError::InUse { process: Some(process), .. } if *process == id), "{error:?}");
    assert!(error.to_string().contains(&format!("process {id} (`kill {id}`)")), "{error}");
    assert!(Home::inspect(folder.path()).is_ok(), "others may look");
    drop(home);
    std::fs::write(folder.path().join("lock"), "an older and longer text\n").unwrap();
    let home = Home::open(folder.path()).unwrap();
    assert_eq!(std::fs::read_to_string(folder.path().join("lock")).unwrap(), format!("{id}\n"));
    drop(home);
    let error = Home::open(&folder.path().join("none")).unwrap_err();
    assert!(matches!(error, HomeError::NoFolder(_)), "{error}");
}

#[cfg(unix)]
#[test]
fn keys_that_others_can_read_are_refused() {
    let (folder, home) = home();
    let consortium = home.consortium().unwrap();
    for (name, index) in [("key.pem", 0), ("peer-key.pem", 100)] {
        let path = folder.path().join(name);
        for mode in [0o640, 0o604, 0o660, 0o622] {
            write_key(&path, &key(index), mode);
            let error = home.identity(&consortium).unwrap_err();
            assert!(matches!(error, HomeError::KeyMode { mode: found, .. } if found == mode), "{error}");
            assert!(error.to_string().contains(&format!("chmod 600 '{}'", path.display())), "{error}");
        }
        write_key(&path, &key(index), 0o400);
        assert!(home.identity(&consortium).is_ok());
    }
}

#[test]
fn keys_of_others_are_refused() {
    let (folder, home) = home();
    let consortium = home.consortium().unwrap();
    let (path, peer_path) = (folder.path().join("key.pem"), folder.path().join("peer-key.pem"));
    write_key(&peer_path, &key(1), 0o600);
    let error = home.identity(&consortium).unwrap_err();
    assert!(matches!(&error, HomeError::PeerKey { member, .. } if member == "member 0"), "{error}");
    std::fs::remove_file(&peer_path).unwrap();
    assert!(home.identity(&consortium).unwrap_err().to_string().contains("peer-key.pem"));
    write_key(&path, &key(1), 0o600);
    assert_eq!(home.identity(&consortium).unwrap().member, MemberIndex(1), "one key for both");
    write_key(&path, &key(9), 0o600);
    assert!(matches!(home.identity(&consortium), Err(HomeError::NotAMember { .. })));
    for text in ["", "-----BEGIN PRIVATE KEY-----", &"x".repeat(MAX_PEM_BYTES + 1)] {
        std::fs::write(&path, text).unwrap();
        assert!(matches!(home.identity(&consortium), Err(HomeError::Key { .. } | HomeError::File(_))), "{text}");
    }
}

#[test]
fn a_consortium_that_not_all_signed_is_refused() {
    let (folder, home) = home();
    let mut partly = draft();
    partly.sign(&key(2)).unwrap();
    let path = folder.path().join("consortium.signatures");
    std::fs::write(&path, partly.encode_signatures()).unwrap();
    assert!(matches!(home.consortium(), Err(HomeError::NotRatified { .. })));
    std::fs::write(&path, "nonsense").unwrap();
    assert!(matches!(home.consortium(), Err(HomeError::Signatures { .. })));
    std::fs::write(&path, vec![0; consortium::SIGNATURES_LIMIT + 12]).unwrap();
    assert!(matches!(home.consortium(), Err(HomeError::File(FileError::TooLarge { .. }))));
    std::fs::write(folder.path().join("consortium.toml"), "nonsense").unwrap();
    assert!(matches!(home.consortium(), Err(HomeError::Consortium { .. })));
}

#[test]
fn only_the_approved_round_is_run() {
    let (_folder, home) = home();
    let consortium = home.consortium().unwrap();
    let first = approve(&home, "model");
    let id: RoundId = first.folder().file_name().unwrap().to_str().unwrap().parse().unwrap();
    let second = approve(&home, "another model");
    let error = home.round(&consortium, None).unwrap_err();
    assert!(matches!(&error, HomeError::SeveralApproved { rounds, .. } if rounds.len() == 2), "{error}");
    assert!(error.to_string().contains(&id.to_string()), "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    assert_eq!(home.round(&consortium, Some(id)).unwrap().0.id(), id);
    // one that is over does not stand in the way of the next, if that can be told
    let other: RoundId = second.folder().file_name().unwrap().to_str().unwrap().parse().unwrap();
    for status in [
        format!(r#"{{"round": "{id}", "transcript": null}}"#),
        format!(r#"{{"round": "{other}", "transcript": "t"}}"#),
        "{".to_owned(),
    ] {
        std::fs::write(first.status(), status).unwrap();
        assert!(matches!(home.round(&consortium, None), Err(HomeError::SeveralApproved { .. })));
    }
    std::fs::write(first.status(), format!(r#"{{"round": "{id}", "transcript": "t"}}"#)).unwrap();
    assert_eq!(home.round(&consortium, None).unwrap().0.id(), other);
    std::fs::write(second.status(), format!(r#"{{"round": "{other}", "transcript": "t"}}"#)).unwrap();
    assert!(matches!(home.round(&consortium, None), Err(HomeError::SeveralApproved { .. })));
    std::fs::remove_file(second.approval()).unwrap();
    assert_eq!(home.round(&consortium, None).unwrap().0.id(), id);
    assert!(matches!(home.round(&consortium, Some(other)), Err(HomeError::NotApproved { .. })));
    // the approval of another round, or none at all, is no approval
    for text in [format!(r#"{{"round": "{other}"}}"#), "{}".to_owned(), "yes".to_owned()] {
        std::fs::write(first.approval(), text).unwrap();
        assert!(matches!(home.round(&consortium, None), Err(HomeError::Approval { .. })));
    }
    std::fs::write(first.approval(), format!(r#"{{"round_id": "{id}"}}"#)).unwrap();
    assert!(home.round(&consortium, None).is_ok());
    // a document that was changed after it was approved
    std::fs::copy(second.document(), first.document()).unwrap();
    let error = home.round(&consortium, None).unwrap_err();
    assert!(matches!(error, HomeError::RoundChanged { expected, found, .. } if expected == id && found == other));
    std::fs::write(first.document(), "nonsense").unwrap();
    assert!(matches!(home.round(&consortium, None), Err(HomeError::Round { .. })));
}

#[test]
fn strange_entries_among_the_rounds_are_passed_over_within_a_limit() {
    let (folder, home) = home();
    let consortium = home.consortium().unwrap();
    let approved = approve(&home, "model");
    let rounds = folder.path().join("rounds");
    let upper = rounds.join(approved.folder().file_name().unwrap().to_str().unwrap().to_uppercase());
    std::fs::create_dir(&upper).unwrap();
    std::fs::copy(approved.approval(), upper.join("approval.json")).unwrap();
    std::fs::write(rounds.join("notes"), "").unwrap();
    assert!(home.round(&consortium, None).is_ok());
    for number in 0..MAX_ROUNDS {
        std::fs::write(rounds.join(number.to_string()), "").unwrap();
    }
    assert!(matches!(home.round(&consortium, None), Err(HomeError::TooManyRounds(_))));
}

/// The home of `member 0` after it renewed its key, of which the old one was kept, and after another round was approved.
#[test]
fn rounds_of_before_a_change_are_run_with_the_keys_of_then() {
    use fedprune_federation::consortium::Origin;
    let (folder, home) = home();
    let before = home.consortium().unwrap();
    let old = approve(&home, "model");
    let old: RoundId = old.folder().file_name().unwrap().to_str().unwrap().parse().unwrap();

    let mut members = before.members().to_vec();
    (members[0].signing_key, members[0].peer_key) = (key(50).verifying_key(), key(50).verifying_key());
    let origin = Origin { predecessor: before.id(), change: 1 };
    let after = Consortium::successor("four".to_owned(), members, origin).unwrap();
    let mut draft = Draft::succeeding(after, before.clone()).unwrap();
    draft.sign(&key(50)).unwrap();
    for index in 1..4 {
        draft.agree(&key(index)).unwrap();
    }
    std::fs::write(folder.path().join("consortium.toml"), draft.consortium().to_toml().unwrap()).unwrap();
    let signatures = folder.path().join("consortium.signatures");
    std::fs::write(&signatures, draft.encode_signatures()).unwrap();
    let newest = home.consortium().unwrap();

    // the old round is found, of the consortium of then; with the new one approved, that is meant
    assert_eq!(home.round(&newest, None).unwrap().0.id(), old);
    let new = approve(&home, "model");
    let new: RoundId = new.folder().file_name().unwrap().to_str().unwrap().parse().unwrap();
    assert_ne!(new, old);
    assert_eq!(home.round(&newest, None).unwrap().0.id(), new);
    assert_eq!(home.round(&newest, Some(old)).unwrap().0.terms().consortium, before.id());

    // the old key is told what became of it
    let error = home.identity(&newest).unwrap_err();
    assert!(
        matches!(&error, HomeError::FormerKey(former) if former.member == "member 0" && former.change == 1),
        "{error}"
    );
    let said = error.to_string();
    assert!(said.contains("`member 0` has another since") && said.contains("consortium renew --home"), "{said}");
    // with the new key in its place, and the old ones kept, each consortium has its own
    write_key(&folder.path().join("key.pem"), &key(50), 0o600);
    let former = folder.path().join("former-keys");
    std::fs::create_dir(&former).unwrap();
    for index in [0, 100] {
        write_key(&former.join(format!("{}.pem", key(index).verifying_key())), &key(index), 0o600);
    }
    std::fs::remove_file(folder.path().join("peer-key.pem")).unwrap();
    let (now, then) = (home.identity(&newest).unwrap(), home.identity(&before).unwrap());
    assert_eq!((now.member, now.signing_key.verifying_key()), (MemberIndex(0), key(50).verifying_key()));
    assert_eq!((then.member, then.signing_key.verifying_key()), (MemberIndex(0), key(0).verifying_key()));
    assert_eq!(then.peer_key.verifying_key(), key(100).verifying_key());
    // a file of another key than its name says is none
    write_key(&former.join(format!("{}.pem", key(0).verifying_key())), &key(7), 0o600);
    assert!(matches!(home.identity(&before), Err(HomeError::NotAMember { .. })));
    // too few have signed
    let mut few = Draft::succeeding(draft.consortium().clone(), before).unwrap();
    few.sign(&key(50)).unwrap();
    few.agree(&key(1)).unwrap();
    std::fs::write(&signatures, few.encode_signatures()).unwrap();
    assert!(matches!(home.consortium(), Err(HomeError::NotRatified { .. })));
}
