//! Documents, ids and signatures of consortiums: pinned, round, and refused.

use super::*;
use crate::SigningKey;
use crate::testing::{key, named_draft};
use proptest::prelude::*;

fn hex(index: usize) -> String {
    key(index).verifying_key().to_string()
}

fn text() -> String {
    let (b, a, peer) = (hex(1), hex(0), hex(7));
    format!(
        r#"
name = "Two hospitals"
protocol = 1

[[member]]
name = "south"
signing_key = "{b}"
attestation_key = """
-----BEGIN PUBLIC KEY-----
AAAA
-----END PUBLIC KEY-----
"""

[[member]] # written second, numbered first
name = "north"
signing_key = "{a}"
peer_key = "{peer}"
addresses = ["/dns4/north.example/tcp/4001", "/ip4/192.0.2.1/udp/4001/quic-v1"]
"#
    )
}

#[test]
fn canonical_bytes_and_id_are_pinned() {
    let consortium = Consortium::parse(&text()).unwrap();
    assert_eq!(consortium.id().to_string(), "1df6552372d3b26bfb9589b0b661e76a069ebb9af48b4e7ffdb914c4595f84de");
    assert_eq!(consortium.id().0, Digest::of(&consortium.encode()));
    assert_eq!(consortium.member(MemberIndex(0)).unwrap().name, "north");
    assert_eq!(consortium.index_by_name("south"), Some(MemberIndex(1)));
    assert_eq!(consortium.index_of(&key(1).verifying_key()), Some(MemberIndex(1)));
    assert_eq!(consortium.index_of(&key(7).verifying_key()), None, "a peer key signs no statements");
    let south = consortium.member(MemberIndex(1)).unwrap();
    assert_eq!(south.peer_key, south.signing_key);
}

#[test]
fn the_same_content_in_other_words_has_the_same_id() {
    let consortium = Consortium::parse(&text()).unwrap();
    let again = Consortium::parse(&consortium.to_toml().unwrap()).unwrap();
    assert_eq!(again, consortium);
    assert_eq!(Consortium::decode(&consortium.encode()).unwrap(), consortium);
    for (from, to) in [("north", "nord"), ("tcp/4001", "tcp/4002"), ("AAAA", "AAAB"), ("Two", "2")] {
        assert_ne!(Consortium::parse(&text().replace(from, to)).unwrap().id(), consortium.id(), "{from}");
    }
}

#[test]
fn refusals_name_what_is_in_the_way() {
    let refused = |from: &str, to: &str, says: &str| {
        assert!(text().contains(from), "{from}");
        let error = Consortium::parse(&text().replace(from, to)).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{error}: {source}").contains(says), "{to}: {error}: {source}");
    };
    refused("protocol = 1", "protocol = 2", "speaks protocol 2");
    refused("protocol = 1", "protocol = 1\ncolour = \"red\"", "line 4: unknown field `colour`");
    refused("addresses", "adresses", "unknown field `adresses`");
    refused("name = \"Two hospitals\"", "", "missing field `name`");
    refused("\"north\"", "\"South\"", "two members are named `South` and `south`");
    refused("\"north\"", "\"\"", "`` cannot be a name");
    refused("\"north\"", "\" north\"", "cannot be a name");
    refused("\"north\"", "\"n\\u0007orth\"", "`n orth` cannot be a name");
    refused("\"north\"", "\"n\u{43e}rth\"", "cannot be a name");
    refused("\"north\"", &format!("\"{}\"", "n".repeat(65)), "cannot be a name");
    refused("Two hospitals", "Two\\u001b[2J", "cannot be a name");
    refused(&hex(0), &hex(1), "`north` and `south` share a key");
    refused(&hex(7), &hex(1), "`north` and `south` share a key");
    refused(&hex(0), &("01".to_owned() + &"00".repeat(31)), "it is weak");
    refused(&hex(0), "abc", "expected 64 lowercase hexadecimal digits");
    refused("/ip4/192.0.2.1/udp/4001/quic-v1", "/dns4/north.example/tcp/4001", "addresses of `north`");
    refused("/dns4/north.example/tcp/4001", "/dns4/north example", "addresses of `north`");
    refused("/dns4/north.example/tcp/4001", &"x".repeat(257), "addresses of `north`");
    let many: Vec<String> = (0..17).map(|port| format!("\"/tcp/{port}\"")).collect();
    refused("\"/dns4/north.example/tcp/4001\"", &many.join(","), "addresses of `north`");
    refused("AAAA", &"A".repeat(1025), "attestation key of `south`");
    refused("AAAA", "A\u{e9}", "attestation key of `south`");
}

#[test]
fn sizes_are_bounded() {
    let padded = text() + &"#".repeat(DOCUMENT_LIMIT);
    assert!(matches!(Consortium::parse(&padded), Err(ConsortiumError::Document(DocumentError::TooLarge { .. }))));
    let none = Consortium::parse("name = \"x\"\nprotocol = 1\nmember = []\n");
    assert!(matches!(none, Err(ConsortiumError::Members(MemberCountError(0)))));
    let too_many = vec![named_draft("x", 1).consortium().members()[0].clone(); 1001];
    assert!(matches!(Consortium::new("x".into(), too_many), Err(ConsortiumError::Members(MemberCountError(1001)))));
    let huge = wire::encode(Content::Consortium, &vec![0u8; CANONICAL_LIMIT]);
    assert!(matches!(Consortium::decode(&huge), Err(ConsortiumError::Wire(WireError::Value { .. }))));
}

#[test]
fn a_thousand_members_fit_every_limit() {
    let draft = named_draft("thousand", 1000);
    let consortium = draft.consortium();
    assert_eq!(Consortium::decode(&consortium.encode()).unwrap().id(), consortium.id());
    assert_eq!(Consortium::parse(&consortium.to_toml().unwrap()).unwrap().id(), consortium.id());
    let mut other = Draft::new(consortium.clone());
    assert_eq!(other.add_encoded(&draft.encode_signatures()).unwrap(), 1000);
    assert!(other.ratify().is_ok());
}

#[test]
fn canonical_bytes_have_one_order() {
    let consortium = Consortium::parse(&text()).unwrap();
    let mut content = consortium.content.clone();
    content.members.reverse();
    let error = Consortium::decode(&wire::encode(Content::Consortium, &content)).unwrap_err();
    assert!(matches!(&error, ConsortiumError::Order(name) if name == "north"), "{error}");
}

#[test]
fn a_draft_is_ratified_by_all_and_says_who_is_missing() {
    let consortium = Consortium::parse(&text()).unwrap();
    let mut draft = Draft::new(consortium.clone());
    assert_eq!(draft.sign(&key(1)), Ok(MemberIndex(1)));
    assert_eq!(draft.signed_by().map(|member| member.name.as_str()).collect::<Vec<_>>(), ["south"]);
    assert_eq!(draft.missing().map(|member| member.name.as_str()).collect::<Vec<_>>(), ["north"]);
    let error = draft.clone().ratify().unwrap_err();
    assert_eq!(error.to_string(), "1 of 2 members have not signed the consortium: `north`");
    let mut other = Draft::new(consortium.clone());
    other.sign(&key(0)).unwrap();
    assert_eq!(draft.add_encoded(&other.encode_signatures()).unwrap(), 1);
    assert_eq!(draft.add_encoded(&other.encode_signatures()).unwrap(), 0);
    let signatures = draft.encode_signatures();
    assert_eq!(Digest::of(&signatures).to_string(), "9712b762232292bf014698bf7a3bdcfebf451caebab20c01cd6d19c822a48c18");
    assert_eq!(draft.ratify().unwrap().id(), consortium.id());
    assert!(Draft::new(consortium).sign(&SigningKey::from_seed(&[99; 32]).unwrap()).is_err());
}

#[test]
fn signatures_of_others_and_of_other_documents_are_refused() {
    let consortium = Consortium::parse(&text()).unwrap();
    let changed = Consortium::parse(&text().replace("tcp/4001", "tcp/4002")).unwrap();
    let mut theirs = Draft::new(changed);
    theirs.sign(&key(0)).unwrap();
    let mut draft = Draft::new(consortium.clone());
    let error = draft.add_encoded(&theirs.encode_signatures()).unwrap_err();
    assert!(matches!(error, RatificationError::OtherConsortium { .. }), "{error}");
    let signature = theirs.signatures[&MemberIndex(0)];
    assert!(matches!(draft.add(MemberIndex(0), signature), Err(RatificationError::Signature(name)) if name == "north"));
    draft.sign(&key(0)).unwrap();
    let mine = draft.signatures[&MemberIndex(0)];
    assert!(matches!(draft.add(MemberIndex(1), mine), Err(RatificationError::Signature(_))));
    assert!(matches!(draft.add(MemberIndex(2), mine), Err(RatificationError::NoSuchMember(_))));
    // a member twice
    let twice = (consortium.id(), vec![(MemberIndex(0), mine); 2]);
    let twice = wire::encode(Content::ConsortiumSignatures, &twice);
    assert!(matches!(draft.add_encoded(&twice), Err(RatificationError::Order(MemberIndex(0)))));
    // a list that is half good adds nothing
    let mut fresh = Draft::new(consortium);
    draft.signatures.insert(MemberIndex(1), mine);
    assert!(fresh.add_encoded(&draft.encode_signatures()).is_err());
    assert_eq!(fresh.signed_by().count(), 0);
}

proptest! {
    #[test]
    fn damaged_bytes_are_refused_or_another_consortium(at in 0usize..10_000, bit in 0u8..8, cut in 0usize..10_000) {
        let consortium = Consortium::parse(&text()).unwrap();
        let bytes = consortium.encode();
        prop_assert!(Consortium::decode(&bytes[..cut % bytes.len()]).is_err());
        let mut flipped = bytes.clone();
        flipped[at % bytes.len()] ^= 1 << bit;
        if let Ok(other) = Consortium::decode(&flipped) {
            prop_assert_ne!(other.id(), consortium.id());
            prop_assert_eq!(other.encode(), flipped);
        }
    }

    #[test]
    fn damaged_signatures_are_refused(at in 0usize..10_000, bit in 0u8..8, cut in 0usize..10_000) {
        let draft = named_draft("x", 3);
        let bytes = draft.encode_signatures();
        let mut fresh = Draft::new(draft.consortium().clone());
        prop_assert!(fresh.add_encoded(&bytes[..cut % bytes.len()]).is_err());
        let mut flipped = bytes.clone();
        flipped[at % bytes.len()] ^= 1 << bit;
        prop_assert!(fresh.add_encoded(&flipped).is_err());
        prop_assert_eq!(fresh.signed_by().count(), 0);
    }

    #[test]
    fn no_text_panics(text in "(?s).{0,200}", at in 0usize..1000, insert in "[\\[\\]\"=.\\\\{}\u{0}-\u{1f}a]{0,5}") {
        let _ = Consortium::parse(&text);
        let mut damaged = self::text();
        let at = at % damaged.len();
        damaged.insert_str(at, &insert);
        let _ = Consortium::parse(&damaged);
    }
}
