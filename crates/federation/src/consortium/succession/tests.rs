//! Successors of consortiums: which signatures make one, which do not, and what is said of two.

use proptest::prelude::*;

use super::*;
use crate::consortium::RatificationError;
use crate::signing::Kind;
use crate::testing::{consortium_of, key, named_consortium};
use fedprune_mask::Digest;

fn member(name: &str, key_index: usize) -> Member {
    let key = key(key_index).verifying_key();
    Member { name: name.to_owned(), signing_key: key, peer_key: key, addresses: Vec::new(), attestation_key: None }
}

/// The members of `before` after some edit, as its successor.
fn edited(before: &Ratified, edit: impl FnOnce(&mut Vec<Member>)) -> Consortium {
    let mut members = before.members().to_vec();
    edit(&mut members);
    let origin = Origin { predecessor: before.id(), change: before.consortium().change() + 1 };
    Consortium::successor(before.consortium().name().to_owned(), members, origin).unwrap()
}

/// Four members of which the last renews its key: it has key 10 then.
fn renewed(before: &Ratified) -> Consortium {
    edited(before, |members| {
        members[3].signing_key = key(10).verifying_key();
        members[3].peer_key = key(10).verifying_key();
    })
}

/// Signed by these old members and by all that enter, with these keys.
fn signed(consortium: Consortium, before: &Ratified, entering: &[usize], agreeing: &[usize]) -> Draft {
    let mut draft = Draft::succeeding(consortium, before.clone()).unwrap();
    for index in entering {
        draft.sign(&key(*index)).unwrap();
    }
    for index in agreeing {
        draft.agree(&key(*index)).unwrap();
    }
    draft
}

#[test]
fn bytes_and_id_are_pinned() {
    let before = consortium_of(4);
    let successor = renewed(&before);
    assert_eq!(successor.origin(), Some(Origin { predecessor: before.id(), change: 1 }));
    assert_eq!(&successor.encode()[..11], b"fedprune\x01\x00\x1b");
    assert_eq!(successor.id().0, Digest::of(&successor.encode()));
    assert_eq!(successor.id().to_string(), "1f13fc7b70da3bca9ce0111e0e2e8ef84135d286664ba147b9a4d8c02a0dede0");
    let draft = signed(successor, &before, &[10], &[0, 1, 2]);
    assert_eq!(
        Digest::of(&draft.encode_signatures()).to_string(),
        "ec2e65a499d729766c38bfe6c1bb35679f1cf3f677d83ddf480a7c784ee51c6d"
    );
}

#[test]
fn a_document_is_read_back_and_half_an_origin_is_refused() {
    let before = consortium_of(4);
    let successor = renewed(&before);
    let text = successor.to_toml().unwrap();
    assert!(text.contains(&format!("predecessor = \"{}\"\nchange = 1\n", before.id())), "{text}");
    assert_eq!(Consortium::parse(&text).unwrap(), successor);
    assert_eq!(Consortium::decode(&successor.encode()).unwrap(), successor);
    let error = Consortium::parse(&text.replace("change = 1\n", "")).unwrap_err().to_string();
    assert!(error.contains("belong together"), "{error}");
    for change in [0, MAX_CHANGES + 1] {
        let error = Consortium::parse(&text.replace("change = 1\n", &format!("change = {change}\n"))).unwrap_err();
        assert!(matches!(error, ConsortiumError::Change(found) if found == change), "{error}");
    }
    // the same members and name without a predecessor are another consortium
    let founded = Consortium::new(successor.name().to_owned(), successor.members().to_vec()).unwrap();
    assert_ne!(founded.id(), successor.id());
}

#[test]
fn every_subset_of_signers_counts_as_the_rule_says() {
    for members in 1..=7usize {
        let before = consortium_of(members);
        let quorum = before.quorum().q();
        // the last one renews its key, and another joins
        let consortium = edited(&before, |all| {
            let last = all.last_mut().unwrap();
            (last.signing_key, last.peer_key) = (key(20).verifying_key(), key(20).verifying_key());
            all.push(member("new", 21));
        });
        for old in 0..1u32 << members {
            for entering in 0..4u32 {
                let chosen = |mask: u32, of: usize| (0..of).filter(move |index| mask & 1 << index != 0);
                let new: Vec<usize> = chosen(entering, 2).map(|index| 20 + index).collect();
                let agreeing: Vec<usize> = chosen(old, members).collect();
                let draft = signed(consortium.clone(), &before, &new, &agreeing);
                let expected = agreeing.len() >= quorum && new.len() == 2;
                assert_eq!(draft.is_complete(), expected, "{members} members, {old:b}, {entering:b}");
                // as it travels, too
                let mut received = Draft::new(consortium.clone());
                assert_eq!(received.add_encoded(&draft.encode_signatures()).unwrap(), new.len() + agreeing.len());
                assert_eq!(received.encode_signatures(), draft.encode_signatures());
                match received.ratify() {
                    Ok(ratified) => {
                        assert!(expected);
                        assert_eq!(ratified.predecessor().unwrap().id(), before.id());
                    }
                    Err(NotRatified::Change { entering, agreed, quorum: needed, undecided }) => {
                        assert!(!expected);
                        assert_eq!((entering.len(), agreed), (2 - new.len(), agreeing.len()));
                        assert_eq!((needed, undecided.len()), (quorum, members - agreeing.len()));
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
}

#[test]
fn a_lost_key_is_replaced_by_the_others_from_four_members_on() {
    for members in 2..=10usize {
        let before = consortium_of(members);
        let lost = members - 1;
        let consortium = edited(&before, |all| {
            (all[lost].signing_key, all[lost].peer_key) = (key(20).verifying_key(), key(20).verifying_key());
        });
        let others: Vec<usize> = (0..lost).collect();
        let draft = signed(consortium, &before, &[20], &others);
        assert_eq!(draft.is_complete(), members >= 4, "{members}");
    }
}

#[test]
fn who_stays_as_it_was_need_not_sign_and_who_changes_anything_must() {
    let before = consortium_of(4);
    let names = |draft: &Draft| draft.missing().map(|member| member.name.clone()).collect::<Vec<_>>();
    let moved = edited(&before, |all| all[2].addresses = vec!["/dns4/new.example/tcp/4001".to_owned()]);
    let draft = signed(moved.clone(), &before, &[], &[0, 1, 3]);
    assert_eq!(names(&draft), ["member 0002"]);
    let error = draft.ratify().unwrap_err().to_string();
    assert_eq!(error, "the change is not signed by enough: `member 0002` must sign as it shall be");
    assert!(signed(moved, &before, &[2], &[0, 1, 3]).is_complete());
    // one that leaves has no say, and the others none of their own
    let fewer = edited(&before, |all| drop(all.remove(0)));
    let draft = signed(fewer, &before, &[], &[1, 2]);
    assert_eq!(names(&draft), Vec::<String>::new());
    let error = draft.ratify().unwrap_err().to_string();
    assert_eq!(
        error,
        "the change is not signed by enough: 1 more of the 3 needed of the members before, of `member 0000`, `member 0003`"
    );
}

#[test]
fn a_chain_is_checked_link_by_link() {
    let founded = consortium_of(4);
    let first = signed(renewed(&founded), &founded, &[10], &[0, 1, 2]).ratify().unwrap();
    // the renewed key agrees to the second change, the old one no longer can
    let joined = edited(&first, |all| all.push(member("new", 30)));
    let mut draft = signed(joined, &first, &[30], &[0, 10, 2]);
    assert!(draft.agree(&key(3)).is_err());
    let bytes = draft.encode_signatures();
    let second = draft.ratify().unwrap();
    assert_eq!(second.lineage().map(Ratified::id).collect::<Vec<_>>(), [second.id(), first.id(), founded.id()]);
    assert_eq!(second.in_lineage(founded.id()).unwrap().members(), founded.members());
    let mut again = Draft::new(second.consortium().clone());
    again.add_encoded(&bytes).unwrap();
    assert_eq!(again.ratify().unwrap(), second);
    let whose = |of: &Ratified, index| match of.whose(&key(index).verifying_key()) {
        Whose::Member(member) => format!("member {member}"),
        Whose::Former(former) => {
            assert_eq!(former.left.id(), first.id());
            format!("{} until change {}, replaced: {}", former.member.name, former.change(), former.replaced)
        }
        Whose::Nobody => "nobody".to_owned(),
    };
    assert_eq!((whose(&first, 3), whose(&founded, 3)), (whose(&second, 3), "member 3".to_owned()));
    assert_eq!(whose(&second, 3), "member 0003 until change 1, replaced: true");
    assert_eq!((whose(&second, 10), whose(&second, 99)), ("member 3".to_owned(), "nobody".to_owned()));
    // whoever is gone by now has no other key either
    let without = edited(&second, |all| all.retain(|member| member.name != "member 0003"));
    let without = signed(without, &second, &[], &[0, 1, 2, 30]).ratify().unwrap();
    assert_eq!(whose(&without, 3), "member 0003 until change 1, replaced: false");

    // with a link left out, doubled, exchanged, or without its quorum it is no chain
    let refused = |change: &dyn Fn(&mut Chain), says: &str| {
        let mut chain = Chain::decode(&bytes).unwrap();
        change(&mut chain);
        let mut fresh = Draft::new(second.consortium().clone());
        let error = fresh.add_encoded(&chain.encode()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!((fresh.signed_by().count(), fresh.known_predecessor()), (0, None));
    };
    refused(&|chain| drop(chain.predecessors.remove(0)), "does not count");
    refused(&|chain| drop(chain.predecessors.pop()), "is a change of");
    refused(&|chain| chain.predecessors.clear(), "there is none");
    refused(&|chain| chain.predecessors.swap(0, 1), "does not count");
    refused(&|chain| chain.predecessors[1].successions.truncate(2), "1 more of the 3 needed");
    refused(&|chain| chain.predecessors[1].memberships.clear(), "`member 0003` must sign");
    refused(&|chain| chain.predecessors[0].memberships.truncate(3), "1 of 4 members have not signed");
    refused(&|chain| chain.predecessors[1].document.push(0), "change 1 of the chain does not count");
    refused(&|chain| chain.predecessors[0].document.clear(), "change 0 of the chain does not count");
    refused(&|chain| chain.successions.reverse(), "not in order");
    refused(&|chain| chain.consortium = first.id(), "every member must sign the same");
    refused(&|chain| chain.successions.push((MemberIndex(4), chain.successions[0].1)), "no such member");
}

#[test]
fn a_key_that_is_given_up_goes_to_nobody_in_the_same_change() {
    let founded = consortium_of(4);
    for (new, with) in [("mallory", 40), ("member 0000", 0)] {
        // the fourth renews its key, and somebody else comes with the one that it had, for signing or for its node
        let stolen = key(3).verifying_key();
        let thief = edited(&founded, |all| {
            all[3].signing_key = key(10).verifying_key();
            all[3].peer_key = key(10).verifying_key();
            match all.iter_mut().find(|member| member.name == new) {
                Some(member) => member.peer_key = stolen,
                None => {
                    all.push(member(new, with));
                    all.last_mut().unwrap().peer_key = stolen;
                }
            }
        });
        let error = Draft::succeeding(thief, founded.clone()).unwrap_err();
        assert!(
            matches!(&error, SuccessionError::RetiredKey { member, owner } if member == new && owner == "member 0003"),
            "{error}"
        );
    }
}

#[test]
fn a_key_that_left_does_not_return() {
    let founded = consortium_of(4);
    let first = signed(renewed(&founded), &founded, &[10], &[0, 1, 2]).ratify().unwrap();
    let back = edited(&first, |all| all.push(member("other", 3)));
    let error = Draft::succeeding(back, first.clone()).unwrap_err();
    assert!(
        matches!(&error, SuccessionError::RetiredKey { member, owner } if member == "other" && owner == "member 0003")
    );
    // a key that is there moves to another name
    let called = edited(&first, |all| all[0].name = "another name".to_owned());
    assert!(Draft::succeeding(called, first).is_ok());
}

#[test]
fn signatures_count_in_one_place_only() {
    let before = consortium_of(4);
    let draft = signed(renewed(&before), &before, &[10], &[0, 1, 2]);
    let successor = draft.consortium().id();
    let other = edited(&before, |all| drop(all.pop()));
    let mut elsewhere = Draft::succeeding(other, before.clone()).unwrap();
    for (member, signature) in &draft.successions {
        // another successor of the same, another member, a membership in either, and the other way round
        assert!(elsewhere.add_agreement(*member, *signature).is_err());
        assert!(draft.clone().add_agreement(MemberIndex((member.0 + 1) % 4), *signature).is_err());
        assert!(draft.clone().add(*member, *signature).is_err());
        assert!(Draft::new(before.consortium().clone()).add(*member, *signature).is_err());
    }
    let entered = draft.signatures[&MemberIndex(3)];
    assert!(draft.clone().add_agreement(MemberIndex(3), entered).is_err());
    // the founding's signatures of those who stay do not enter them
    for (member, signature) in &before.draft().signatures {
        assert!(draft.clone().add(*member, *signature).is_err());
    }
    // the change at another place of the chain, and a copy in another consortium with the same members
    let place = succession(before.id(), 2, MemberIndex(3));
    let late = key(3).sign(Kind::Succession, place, &successor.0.0);
    assert!(draft.clone().add_agreement(MemberIndex(3), late).is_err());
    let twin = named_consortium("twin", 4);
    let place = succession(twin.id(), 1, MemberIndex(3));
    let foreign = key(3).sign(Kind::Succession, place, &successor.0.0);
    assert!(draft.clone().add_agreement(MemberIndex(3), foreign).is_err());
}

#[test]
fn a_draft_without_its_chain_says_so() {
    let before = consortium_of(4);
    let mut draft = Draft::new(renewed(&before));
    assert!(!draft.is_complete());
    assert_eq!(draft.clone().ratify().unwrap_err(), NotRatified::UnknownPredecessor);
    assert!(draft.agree(&key(0)).is_err());
    let founding = before.encode_signatures();
    assert!(matches!(draft.add_encoded(&founding), Err(RatificationError::OtherConsortium { .. })));
    let mut list = Draft::new(draft.consortium().clone());
    list.sign(&key(10)).unwrap();
    let error = draft.add_encoded(&list.encode_signatures()).unwrap_err();
    assert!(matches!(error, RatificationError::UnknownPredecessor), "{error}");
    let mut founded = Draft::new(before.consortium().clone());
    let chain = signed(renewed(&before), &before, &[10], &[]).encode_signatures();
    assert!(matches!(founded.add_encoded(&chain), Err(RatificationError::OtherConsortium { .. })));
    let error = Draft::succeeding(before.consortium().clone(), before.clone()).unwrap_err();
    assert_eq!(error, SuccessionError::NotASuccessor);
}

#[test]
fn two_successors_name_those_who_signed_both() {
    let before = consortium_of(4);
    let one = signed(renewed(&before), &before, &[10], &[0, 1, 2]).ratify().unwrap();
    let fewer = edited(&before, |all| drop(all.remove(0)));
    let other = signed(fewer, &before, &[], &[1, 2, 3]).ratify().unwrap();
    let found = fork(&one, &other).unwrap();
    assert_eq!((found.predecessor, found.change), (before.id(), 1));
    assert_eq!(found.signed_both, ["member 0001", "member 0002"]);
    assert!(found.to_string().contains("`member 0001`, `member 0002` signed both"), "{found}");
    // further on, too, and not within one chain
    let later = edited(&one, |all| all.push(member("new", 30)));
    let later = signed(later, &one, &[30], &[0, 1, 2]).ratify().unwrap();
    assert_eq!(fork(&later, &other).unwrap().change, 1);
    assert_eq!(fork(&later, &one), None);
    assert_eq!(fork(&before, &one), None);
    assert_eq!(fork(&one, &consortium_of(5)), None);
}

#[test]
fn differences_are_told_in_words() {
    let before = consortium_of(4);
    let after = edited(&before, |all| {
        all[0].signing_key = key(11).verifying_key();
        all[1].addresses = vec!["/ip4/192.0.2.1/tcp/1".to_owned()];
        all[2] = member("west", 12);
        (all[3].signing_key, all[3].peer_key) = (key(13).verifying_key(), key(13).verifying_key());
        all[3].attestation_key = Some("AA".to_owned());
    });
    let found = difference(before.consortium(), &after);
    assert_eq!(
        found.in_words(),
        [
            "`member 0002` leaves",
            "`west` joins",
            "`member 0000` renews its key",
            "`member 0001` changes its addresses",
            "`member 0003` renews its key and changes its attestation key",
        ]
    );
    assert!(difference(before.consortium(), before.consortium()).is_empty());
    assert_eq!((found.quorum.0.q(), found.quorum.1.q()), (3, 3));
}

#[test]
fn the_longest_chain_is_read_and_a_longer_one_cannot_be_written() {
    let mut last = consortium_of(4);
    for change in 1..=MAX_CHANGES as usize {
        let consortium = edited(&last, |all| all[3].addresses = vec![format!("/tcp/{change}")]);
        last = signed(consortium, &last, &[3], &[0, 1, 2]).ratify().unwrap();
    }
    let mut fresh = Draft::new(last.consortium().clone());
    fresh.add_encoded(&last.encode_signatures()).unwrap();
    assert_eq!(fresh.ratify().unwrap().lineage().count(), MAX_CHANGES as usize + 1);
    let origin = Origin { predecessor: last.id(), change: MAX_CHANGES + 1 };
    assert!(Consortium::successor("x".to_owned(), last.members().to_vec(), origin).is_err());
}

proptest! {
    /// Whatever two sets sign two successors: both are complete only if more than f signed both.
    #[test]
    fn a_fork_takes_more_than_f_liars(members in 1usize..13, one: u16, other: u16) {
        let before = consortium_of(members);
        let signers = |mask: u16| (0..members).filter(move |index| mask & 1 << index != 0).collect::<Vec<_>>();
        let first = edited(&before, |all| all.push(member("new a", 30)));
        let second = edited(&before, |all| all.push(member("new b", 31)));
        let first = signed(first, &before, &[30], &signers(one));
        let second = signed(second, &before, &[31], &signers(other));
        let both = signers(one & other).len();
        if first.is_complete() && second.is_complete() {
            prop_assert!(both > before.quorum().f());
            let found = fork(&first.ratify().unwrap(), &second.ratify().unwrap()).unwrap();
            prop_assert_eq!(found.signed_both.len(), both);
        }
    }

    #[test]
    fn damaged_chains_are_refused(at in 0usize..10_000, bit in 0u8..8, cut in 0usize..10_000) {
        let founded = consortium_of(4);
        let first = signed(renewed(&founded), &founded, &[10], &[0, 1, 2]).ratify().unwrap();
        let draft = signed(edited(&first, |all| all.push(member("new", 30))), &first, &[30], &[0, 10, 2]);
        let bytes = draft.encode_signatures();
        let mut fresh = Draft::new(draft.consortium().clone());
        prop_assert!(fresh.add_encoded(&bytes[..cut % bytes.len()]).is_err());
        let mut flipped = bytes.clone();
        flipped[at % bytes.len()] ^= 1 << bit;
        prop_assert!(fresh.add_encoded(&flipped).is_err());
        prop_assert_eq!(fresh.signed_by().count(), 0);
    }

    #[test]
    fn damaged_documents_are_refused_or_another_consortium(at in 0usize..10_000, bit in 0u8..8) {
        let successor = renewed(&consortium_of(4));
        let mut flipped = successor.encode();
        let length = flipped.len();
        flipped[at % length] ^= 1 << bit;
        if let Ok(other) = Consortium::decode(&flipped) {
            prop_assert_ne!(other.id(), successor.id());
            prop_assert_eq!(other.encode(), flipped);
        }
    }
}
