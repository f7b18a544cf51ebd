//! Every rule refuses what it forbids, by name and line, and allows the rest.

use super::*;
use crate::round::Round;
use crate::testing::{consortium_of, terms};
use crate::{MemberIndex, Ratified, RoundId};

fn round_with(consortium: &Ratified, change: impl FnOnce(&mut Terms)) -> Round {
    let mut terms = terms(consortium.consortium());
    change(&mut terms);
    Round::new(terms, consortium.consortium()).unwrap()
}

fn policy(text: &str) -> Policy {
    Policy::parse(text).unwrap()
}

/// What a policy of one rule, on line 3, says of a round.
fn asked(rule: &str, round: &Round) -> Vec<Refused> {
    policy(&format!("# ours\n\n{rule}\n")).check_round(round.terms(), consortium_of(4).consortium())
}

#[test]
fn rules_about_rounds_refuse_by_name_and_line() {
    let consortium = consortium_of(4);
    let round = round_with(&consortium, |_| {});
    let this = consortium.id();
    for (allows, refuses, value) in [
        (
            format!("allowed_consortiums = [\"{this}\"]"),
            format!("allowed_consortiums = [\"{}\"]", "0".repeat(64)),
            this.to_string(),
        ),
        ("allowed_pruners = [\"ria\", \"wanda\"]".into(), "allowed_pruners = [\"magnitude\"]".into(), "wanda".into()),
        (
            "allowed_strategies = [\"one-shot\"]".into(),
            "allowed_strategies = [\"iterative\"]".into(),
            "one-shot".into(),
        ),
        ("allowed_scalings = [\"none\"]".into(), "allowed_scalings = []".into(), "none".into()),
        ("allowed_ballots = [\"auto\"]".into(), "allowed_ballots = [\"mask-only\"]".into(), "auto".into()),
        ("required_data_free = []".into(), "required_data_free = [\"block0.qkv\"]".into(), "lacks block0.qkv".into()),
        ("minimum_calibration_tokens = 128".into(), "minimum_calibration_tokens = 129".into(), "is 128".into()),
        ("minimum_members = 4".into(), "minimum_members = 5".into(), "4 members".into()),
        ("minimum_ballots = 1".into(), "minimum_ballots = 1000".into(), "`minimum_ballots`".into()),
        (
            format!("allowed_local_groups = [\"{}\"]", round.terms().local_group),
            "allowed_local_groups = [\"3:4\"]".into(),
            "local_group".into(),
        ),
        (
            format!("allowed_global_groups = [\"{}\"]", round.terms().global_group),
            "allowed_global_groups = [\"3:4\"]".into(),
            "global_group".into(),
        ),
    ] {
        assert_eq!(asked(&allows, &round), [], "{allows}");
        let refused = asked(&refuses, &round);
        let [only] = refused.as_slice() else { panic!("{refuses}: {refused:?}") };
        assert!(refuses.starts_with(only.rule) && only.line == 3 && only.found.contains(&value), "{only:?}");
    }
    let unequal = round_with(&consortium, |terms| terms.tally_weights[1] = 2);
    assert_eq!(asked("forbid_unequal_weights = true", &round), []);
    assert_eq!(asked("forbid_unequal_weights = false", &unequal), []);
    assert_eq!(asked("forbid_unequal_weights = true", &unequal)[0].found, "the round's weights are 1, 2, 1, 1");
    let free = round_with(&consortium, |terms| terms.data_free = vec!["block0.qkv".parse().unwrap()]);
    assert_eq!(asked("required_data_free = [\"block0.qkv\"]", &free), []);
}

#[test]
fn rules_about_ballots_and_previews() {
    let text = "allowed_encodings = [\"column-thresholds\", \"bitmap\"]\nmaximum_ballot_bytes = 1000\n\
                minimum_calibration_tokens = 4096\nmaximum_recovered_percent = 25\n";
    let policy = policy(text);
    let fine = BallotFacts {
        bytes: 1000,
        encodings: &[Encoding::Bitmap, Encoding::ColumnThresholds],
        calibration_tokens: Some(4096),
    };
    assert_eq!(policy.check_ballot(fine), []);
    let encodings = [Encoding::Bitmap, Encoding::Norms];
    let refused =
        policy.check_ballot(BallotFacts { bytes: 1001, encodings: &encodings, calibration_tokens: Some(4095) });
    let said: Vec<_> = refused.iter().map(|refused| (refused.rule, refused.line)).collect();
    assert_eq!(said, [("allowed_encodings", 1), ("maximum_ballot_bytes", 2), ("minimum_calibration_tokens", 3)]);
    let message = PolicyRefusal { file: "policy.toml".into(), refused }.to_string();
    assert_eq!(
        message,
        "refused by policy `policy.toml`: `allowed_encodings` (line 1) allows column-thresholds, bitmap, and the ballot \
         holds norms; `maximum_ballot_bytes` (line 2) allows 1000, and the ballot has 1001; `minimum_calibration_tokens` \
         (line 3) requires 4096, and the ballot was made from 4095"
    );
    assert_eq!(policy.check_recovered(25, 100), []);
    assert_eq!(policy.check_recovered(26, 100)[0].rule, "maximum_recovered_percent");
    assert_eq!(policy.check_recovered(0, 0), []);
}

#[test]
fn approvals_name_the_ballot_and_the_person() {
    let policy = policy("require_approval = true\nrequire_person = true\n");
    assert!(policy.requires_approval() && policy.requires_preview());
    let mut approval = Approval {
        round: RoundId(Digest([1; 32])),
        consortium: ConsortiumId(Digest([2; 32])),
        member: MemberIndex(0),
        ballot: Some(Digest([3; 32])),
        calibration: None,
        preview: None,
        policy: None,
        approved_unix_ms: 0,
        person: "Ada".to_owned(),
        role: "officer".to_owned(),
        program: String::new(),
        previous: None,
    };
    let rules = |approval: Option<&Approval>, ballot| {
        policy.check_approval(approval, ballot).into_iter().map(|refused| refused.rule).collect::<Vec<_>>()
    };
    let (this, other) = (Some(Digest([3; 32])), Some(Digest([4; 32])));
    assert_eq!(rules(Some(&approval), this), [""; 0]);
    assert_eq!(rules(Some(&approval), other), ["require_approval"]);
    assert_eq!(rules(None, this), ["require_approval", "require_person"]);
    approval.ballot = None;
    approval.role = " ".to_owned();
    assert_eq!(rules(Some(&approval), None), ["require_approval", "require_person"]);
    let none = Policy::parse("").unwrap();
    assert!(!none.requires_approval() && !none.requires_preview());
    assert_eq!(none.check_approval(None, this), []);
}

#[test]
fn what_is_no_policy_is_refused_by_line() {
    for (text, expected) in [
        ("require_approval = true\nrequire_aproval = true\n", "line 2: unknown field `require_aproval`"),
        ("\n\nminimum_members = -1\n", "line 3"),
        ("allowed_pruners = [\"sparsegpt\"]", "is not a pruner"),
        ("maximum_recovered_percent = 300", "line 1"),
        ("required_data_free = [\"block0\"]", "names no matrices"),
    ] {
        let error = Policy::parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let long = format!("# {}\n", "x".repeat(DOCUMENT_LIMIT));
    assert!(matches!(Policy::parse(&long), Err(DocumentError::TooLarge { .. })));
}
