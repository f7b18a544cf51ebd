//! Round documents: pinned, round, refused for each contradiction, and warned about.

use super::*;
use crate::consortium::Ratified;
use crate::ids::{Height, Quorum};
use crate::round::Strategy;
use crate::testing::{consortium_of, layout, named_consortium, terms};
use fedprune_mask::{Layout, Matrix, Tap};
use proptest::prelude::*;

fn text() -> String {
    let digest = |text: &str| Digest::of(text.as_bytes());
    format!(
        r#"
consortium = "{}"
base_model = "{}"
layout = "{}"
tokenizer = "{}"
configuration = "{}"
pruner = "wanda"
local_group = "row"
global_group = "layer"
sparsity = "0.57"
strategy = "iterative"
scaling = "none"
data_free = ["block1.down", "block0.qkv"]
ballots = "auto"
minimum_ballots = 2
tally = "elected"

[tally_weights]
"member 0001" = 3

[calibration]
samples = 8
window_tokens = 64
sampling = "random"
seed = "from-round"
bos = "each-window"
minimum_calibration_tokens = 256

[timers]
contribution_ms = 1000
"#,
        consortium_of(4).id(),
        digest("model"),
        layout().digest(),
        digest("tokenizer"),
        digest("configuration")
    )
}

fn four() -> Ratified {
    consortium_of(4)
}

fn parse(text: &str) -> Result<Round, RoundError> {
    Round::parse(text, four().consortium())
}

#[test]
fn canonical_bytes_and_id_are_pinned() {
    let round = parse(&text()).unwrap();
    assert_eq!(round.id().to_string(), "1706465eaed54dd65b9ce139c71e67d09210d6adc4d35377da08bd6d6c077fa5");
    assert_eq!(round.id().0, Digest::of(&round.encode()));
    let terms = round.terms();
    assert_eq!(terms.tally_weights, [1, 3, 1, 1]);
    assert_eq!(format!("{:?}", terms.data_free), "[block0.qkv, block1.down]");
    assert_eq!(terms.timers, Timers { contribution_ms: 1000, ..Timers::default() });
    assert_eq!(round.heights(&layout()), Ok(2));
    assert_eq!(round.seed(MemberIndex(2)), Some(4151623681100581517));
    assert_ne!(round.seed(MemberIndex(2)), round.seed(MemberIndex(3)));
}

#[test]
fn the_same_terms_in_other_words_have_the_same_id() {
    let (round, consortium) = (parse(&text()).unwrap(), four());
    let written = round.to_toml(consortium.consortium()).unwrap();
    assert_eq!(parse(&written).unwrap(), round, "{written}");
    assert_eq!(Round::decode(&round.encode(), consortium.consortium()).unwrap(), round);
    for (from, to) in [
        ("\"0.57\"", "\"57/100\""),
        ("[\"block1.down\", \"block0.qkv\"]", "[\"block0.qkv\", \"block1.down\"]"),
        ("pruner = \"wanda\"\n", ""),
        ("local_group = \"row\"\n", ""),
        ("global_group = \"layer\"\n", ""),
        ("scaling = \"none\"\n", ""),
        ("ballots = \"auto\"\n", ""),
        ("contribution_ms = 1000", "contribution_ms = 1_000\nvote_ms = 5000"),
    ] {
        assert!(text().contains(from));
        assert_eq!(parse(&text().replace(from, to)).unwrap().id(), round.id(), "{from}");
    }
}

#[test]
fn every_field_is_in_the_id() {
    let id = parse(&text()).unwrap().id();
    let model = Digest::of(b"model").to_string();
    for (from, to) in [
        (model.as_str(), Digest::of(b"x").to_string().as_str()),
        (Digest::of(b"tokenizer").to_string().as_str(), &model),
        (Digest::of(b"configuration").to_string().as_str(), &model),
        (layout().digest().to_string().as_str(), &model),
        ("\"wanda\"", "\"ria\""),
        ("\"row\"", "\"column\""),
        ("\"layer\"", "\"row\""),
        ("0.57", "0.58"),
        ("iterative", "one-shot"),
        ("\"none\"", "\"support\""),
        ("block1.down", "block1.qkv"),
        ("\"auto\"", "\"mask-only\""),
        ("minimum_ballots = 2", "minimum_ballots = 3"),
        ("elected", "every-peer"),
        ("= 3", "= 4"),
        ("samples = 8", "samples = 9"),
        ("window_tokens = 64", "window_tokens = 65"),
        ("\"from-round\"", "17"),
        ("each-window", "each-text"),
        ("= 256", "= 255"),
        ("contribution_ms", "growth_ms"),
    ] {
        let changed = text().replacen(from, to, 1);
        assert_ne!(changed, text(), "{from}");
        assert_ne!(parse(&changed).unwrap().id(), id, "{from}");
    }
}

#[test]
fn defaults_are_the_quorum_all_tokens_and_fixed_sparsities() {
    let bare = text().replace("minimum_ballots = 2\n", "").replace("minimum_calibration_tokens = 256\n", "");
    let round = parse(&bare).unwrap();
    assert_eq!(round.terms().minimum_ballots, 3);
    assert_eq!(round.terms().calibration.unwrap().minimum_calibration_tokens, 512);
    let fixed =
        text().replace("sparsity = \"0.57\"\n", "").replace("\"row\"", "\"2:4\"").replace("\"layer\"", "\"2:4\"");
    assert_eq!(parse(&fixed).unwrap().terms().sparsity, "0.5".parse().unwrap());
    // a global n:m group takes masks of any sparsity, and people are told
    let global = text().replace("\"layer\"", "\"2:4\"");
    let warnings = parse(&global).unwrap().warnings(four().consortium());
    assert!(warnings.iter().any(|warning| matches!(warning, Warning::TwoSparsities { .. })), "{warnings:?}");
}

#[test]
fn every_contradiction_is_named() {
    let refused = |from: &str, to: &str, says: &str| {
        assert!(text().contains(from), "{from}");
        let error = parse(&text().replacen(from, to, 1)).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let message = format!("{error}: {source}");
        assert!(message.contains(says), "{to}: {message}");
    };
    refused("base_model", "base_mode", "unknown field `base_mode`");
    refused("samples = 8", "samples = 8\nbatch = 1", "unknown field `batch`");
    refused("contribution_ms", "contribution", "unknown field `contribution`");
    refused("\"wanda\"", "\"sparsegpt\"", "`sparsegpt` is not a pruner: use one of wanda, magnitude, ria");
    refused("\"row\"", "\"rows\"", "`rows` is not a group");
    refused("\"0.57\"", "0.57", "expected a sparsity in quotes, such as \"0.5\"");
    refused("\"0.57\"", "\"1.0\"", "outside [0, 1)");
    refused("\"0.57\"", "\"0.0\"", "prunes nothing");
    refused("sparsity = \"0.57\"\n", "", "`sparsity` is missing");
    refused("local_group = \"row\"", "local_group = \"2:4\"", "fixes the sparsity at 0.5");
    refused("local_group = \"row\"", "local_group = \"2:4\"", "allows only the global group `2:4`");
    refused("iterative", "twice", "unknown variant `twice`");
    refused("block1.down", "block1.q", "`block1.q` names no matrices");
    refused("block1.down", "block0.qkv", "`data_free` names block0.qkv twice");
    refused("\"wanda\"", "\"magnitude\"", "remove the table `[calibration]`");
    refused("\"wanda\"", "\"magnitude\"", "remove `data_free`");
    refused("minimum_ballots = 2", "minimum_ballots = 0", "use 1 to 4");
    refused("minimum_ballots = 2", "minimum_ballots = 5", "use 1 to 4");
    refused("member 0001", "nobody", "`tally_weights` names `nobody`");
    refused("= 3\n", "= 0\n", "the tally weight of `member 0001` is 0");
    refused("= 3\n", "= 4294967295\n", "sum to 4294967298, more than");
    refused("samples = 8", "samples = 0", "0 windows of 64 tokens");
    refused("window_tokens = 64", "window_tokens = 1048577", "windows of 1048577 tokens");
    refused("= 256", "= 513", "is 513, and samples × window_tokens is 512");
    refused("\"random\"", "\"sequential\"", "remove `seed`");
    refused("seed = \"from-round\"\n", "", "needs `seed`");
    refused("\"from-round\"", "-1", "expected a seed from 0");
    refused("\"from-round\"", "\"local\"", "expected a seed from 0");
    refused("= 1000", "= 0", "`contribution_ms` is 0: use 1 to 2592000000");
    refused("= 1000", "= 2592000001", "`contribution_ms` is 2592000001");
    refused("= 1000", "= 86400000", "not above `contribution_ms`");
    refused(&four().id().to_string(), &Digest::of(b"x").to_string(), "it is a round of consortium");
    let (start, end) = (text().find("[calibration]").unwrap(), text().find("[timers]").unwrap());
    refused(&text()[start..end], "", "add a table `[calibration]`");
}

#[test]
fn all_contradictions_are_listed_at_once() {
    let text = text().replace("= 256", "= 513").replace("minimum_ballots = 2", "minimum_ballots = 9");
    let Err(RoundError::Contradictions(found)) = parse(&text) else { panic!("refused") };
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(parse(&text).unwrap_err().to_string().lines().count(), 3);
}

#[test]
fn terms_from_elsewhere_are_checked_alike() {
    let consortium = four();
    let check = |change: &dyn Fn(&mut Terms)| {
        let mut terms = terms(consortium.consortium());
        change(&mut terms);
        let bytes = wire::encode(Content::Round, &terms);
        let made = Round::new(terms, consortium.consortium());
        let read = Round::decode(&bytes, consortium.consortium());
        assert_eq!(made.is_ok(), read.is_ok() || matches!(read, Err(RoundError::Order)));
        read
    };
    assert!(check(&|_| ()).is_ok());
    let error = check(&|terms| terms.tally_weights.push(1)).unwrap_err();
    assert!(error.to_string().contains("5 tally weights for 4 members"), "{error}");
    let taps: Vec<DataFree> = ["block0.qkv", "block1.qkv"].map(|text| text.parse().unwrap()).to_vec();
    assert!(check(&|terms| terms.data_free = taps.clone()).is_ok());
    let error = check(&|terms| terms.data_free = taps.iter().rev().copied().collect()).unwrap_err();
    assert!(matches!(error, RoundError::Order));
    let error =
        check(&|terms| terms.data_free = (0..=4096).map(|block| DataFree { block, tap: Tap::MlpInput }).collect());
    assert!(error.unwrap_err().to_string().contains("4097 inputs"));
}

#[test]
fn warnings_say_what_may_go_wrong() {
    let consortium = four();
    let warnings = |change: &dyn Fn(&mut Terms), consortium: &Ratified| {
        let mut terms = terms(consortium.consortium());
        change(&mut terms);
        Round::new(terms, consortium.consortium()).unwrap().warnings(consortium.consortium())
    };
    assert_eq!(warnings(&|_| (), &consortium), []);
    let stall = Warning::MayStall { minimum: 4, honest: 3, faults: 1 };
    assert_eq!(warnings(&|terms| terms.minimum_ballots = 4, &consortium), [stall]);
    let faulty = Warning::MayBeFaultyAlone { minimum: 1, faults: 1 };
    assert_eq!(warnings(&|terms| terms.minimum_ballots = 1, &consortium), [faulty, Warning::OneBallot]);
    assert_eq!(warnings(&|terms| terms.scaling = Scaling::Support, &consortium), [Warning::SupportScaling]);
    let column = warnings(&|terms| terms.global_group = "column".parse().unwrap(), &consortium);
    assert_eq!(column, [Warning::ColumnGroup]);
    let decides = Warning::OneDecides { member: "member 0001".into(), weight: 4, total: 7 };
    assert_eq!(warnings(&|terms| terms.tally_weights[1] = 4, &consortium), [decides]);
    let three = warnings(&|_| (), &consortium_of(3));
    assert_eq!(three, [Warning::NoFaults(Quorum::of(3).unwrap().in_words())]);
}

#[test]
fn layouts_that_do_not_fit_are_named() {
    let round = parse(&text()).unwrap();
    let matrix = |name: &str, block, tap| Matrix { name: name.into(), block, tap, rows: 8, columns: 6 };
    let other = Layout::new(vec![matrix("q", 0, Tap::AttentionInput)]).unwrap();
    assert!(matches!(round.heights(&other), Err(LayoutMismatch::OtherLayout { .. })));
    let consortium = four();
    let on = |layout: &Layout, change: &dyn Fn(&mut Terms)| {
        let mut terms = terms(consortium.consortium());
        terms.layout = layout.digest();
        change(&mut terms);
        Round::new(terms, consortium.consortium()).unwrap().heights(layout)
    };
    let skips = Layout::new(vec![matrix("a", 0, Tap::MlpInput), matrix("b", 2, Tap::MlpInput)]).unwrap();
    assert_eq!(on(&skips, &|_| ()), Ok(1));
    assert_eq!(on(&skips, &|terms| terms.strategy = Strategy::Iterative), Err(LayoutMismatch::EmptyBlock(1)));
    let tap: DataFree = "block1.qkv".parse().unwrap();
    assert_eq!(on(&skips, &|terms| terms.data_free = vec![tap]), Err(LayoutMismatch::DataFree(tap)));
    let global = on(&skips, &|terms| terms.global_group = "2:4".parse().unwrap());
    assert!(matches!(global, Err(LayoutMismatch::Group(_))));
    assert_eq!(round.layout_at(&layout(), Height(1)).unwrap().matrices(), &layout().matrices()[3..]);
    let beyond = round.layout_at(&layout(), Height(2));
    assert_eq!(beyond, Err(LayoutMismatch::NoSuchHeight { height: Height(2), heights: 2 }));
}

#[test]
fn a_thousand_members_fit_and_more_bytes_are_refused() {
    let consortium = named_consortium("thousand", 1000);
    let mut terms = terms(consortium.consortium());
    terms.data_free = (0..4096).map(|block| DataFree { block, tap: Tap::MlpInput }).collect();
    terms.tally_weights = vec![4_294_967; 1000];
    let round = Round::new(terms, consortium.consortium()).unwrap();
    assert_eq!(Round::decode(&round.encode(), consortium.consortium()).unwrap(), round);
    let written = round.to_toml(consortium.consortium()).unwrap();
    assert_eq!(Round::parse(&written, consortium.consortium()).unwrap().id(), round.id());
    let huge = wire::encode(Content::Round, &vec![0u8; CANONICAL_LIMIT]);
    assert!(matches!(Round::decode(&huge, consortium.consortium()), Err(RoundError::Wire(_))));
    let padded = text() + &"#".repeat(DOCUMENT_LIMIT);
    assert!(matches!(parse(&padded), Err(RoundError::Document(DocumentError::TooLarge { .. }))));
}

proptest! {
    #[test]
    fn damaged_bytes_are_refused_or_another_round(at in 0usize..10_000, bit in 0u8..8, cut in 0usize..10_000) {
        let consortium = four();
        let round = parse(&text()).unwrap();
        let bytes = round.encode();
        prop_assert!(Round::decode(&bytes[..cut % bytes.len()], consortium.consortium()).is_err());
        let mut flipped = bytes.clone();
        flipped[at % bytes.len()] ^= 1 << bit;
        if let Ok(other) = Round::decode(&flipped, consortium.consortium()) {
            prop_assert_ne!(other.id(), round.id());
            prop_assert_eq!(other.encode(), flipped);
        }
    }

    #[test]
    fn no_text_panics(at in 0usize..2000, insert in "[\\[\\]\"=.\\\\{}0-9\u{0}-\u{1f}a]{0,6}") {
        let mut damaged = text();
        let at = at % damaged.len();
        damaged.insert_str(at, &insert);
        let _ = parse(&damaged);
    }
}
