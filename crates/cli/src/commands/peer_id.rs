//! The name under which libp2p dials a key: what comes after `/p2p/` in an address.
//!
//! A peer id is the base58 form of a multihash. Of an Ed25519 key it is the identity multihash (code 0, length 36)
//! of the key's protobuf form: field 1, type, 1 for Ed25519; field 2, data, 32 bytes. Those six bytes before the key
//! are the same for every such key, which is why all such ids begin with `12D3KooW`. See the libp2p specification,
//! `peer-ids/peer-ids.md`.

use fedprune_federation::VerifyingKey;

const PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// The peer id of a key.
pub(super) fn peer_id(key: &VerifyingKey) -> String {
    base58(&[&PREFIX, &key.as_bytes()[..]].concat())
}

/// base58btc: the bytes as one big-endian number, and a `1` for each zero byte in front.
fn base58(bytes: &[u8]) -> String {
    // Digits of the number so far, the lowest first.
    let mut digits: Vec<u8> = Vec::with_capacity(bytes.len() * 138 / 100 + 1);
    for &byte in bytes {
        let mut carry = u32::from(byte);
        for digit in &mut digits {
            carry += u32::from(*digit) << 8;
            *digit = (carry % 58) as u8;
            carry /= 58;
        }
        while carry > 0 {
            digits.push((carry % 58) as u8);
            carry /= 58;
        }
    }
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let zeros = std::iter::repeat_n('1', zeros);
    zeros.chain(digits.iter().rev().map(|digit| char::from(ALPHABET[usize::from(*digit)]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base58_has_one_digit_for_each_zero_in_front() {
        assert_eq!(base58(b""), "");
        assert_eq!(base58(b"\0\0"), "11");
        assert_eq!(base58(b"Hello World!"), "2NEpo7TZRRrLZSi2U");
        assert_eq!(base58(&[0, 0, 0x28, 0x7f, 0xb4, 0xcd]), "11233QC4");
    }

    #[test]
    fn ids_are_those_of_libp2p() {
        // the key pair in rust-libp2p's own test of ids that other programs made
        let key = "41275f22797a73b53836ec5726584a711065070f5dd2d8f675f04855fea670f0".parse().unwrap();
        assert_eq!(peer_id(&key), "12D3KooWEChVMMMzV8acJ53mJHrw1pQ27UAGkCxWXLJutbeUMvVu");
        // the first key of RFC 8032, encoded by another implementation of base58
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a".parse().unwrap();
        assert_eq!(peer_id(&key), "12D3KooWQK1wnefoLrcVHbbnf5tLzbopUd3K3bFAoJpA7YJgL5pV");
    }
}
