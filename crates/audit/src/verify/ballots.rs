//! Bodies of the ballots that count, compared with the headers that were signed.

use std::collections::BTreeMap;

use fedprune_federation::{BallotHeader, Height, Manifest, SignatureChecked};
use fedprune_mask::Digest;
use fedprune_mask::ballot::digest_of_bytes;

use super::Context;
use super::ledger::{Ledger, failed};
use crate::report::{Area, Outcome, chain};
use crate::transcript::{Body, ReadError, body_path};

/// The bodies of a manifest that are there and are what was signed.
pub(super) fn read(
    context: &Context<'_>,
    height: Height,
    manifest: &Manifest,
    headers: &[SignatureChecked<BallotHeader>],
    ledger: &mut Ledger,
) -> BTreeMap<Digest, Body> {
    let mut bodies = BTreeMap::new();
    let mut owners = BTreeMap::new();
    for (member, digest) in manifest.contributors() {
        let name = context.name(member);
        ledger.counted.insert(digest);
        if let Some(other) = owners.insert(digest, name.clone()) {
            ledger.note(format!(
                "`{other}` and `{name}` cast one and the same ballot {} at height {height}",
                digest.short()
            ));
        }
        let subject = format!("ballot of `{name}` at height {height}");
        let header = headers.iter().find(|header| header.member() == member && header.content().body == digest);
        let Some(header) = header else {
            let why = format!("no header of ballot {digest} that `{name}` signed is in the transcript");
            let compared = "the certified ballot with the member's signature";
            ledger.add(Area::Ballot, Some(height), subject, compared, failed(why));
            continue;
        };
        let signed_bytes = header.content().body_bytes;
        let compared = format!(
            "`{}` with {digest} of {signed_bytes} bytes, as `{name}` signed and as is certified",
            body_path(digest)
        );
        let outcome = match context.transcript.body(digest) {
            Err(error @ ReadError::Missing(_)) => Outcome::NotChecked { why: chain(&error) },
            Err(error) => failed(chain(&error)),
            Ok(body) => {
                let found_bytes = body.bytes().len() as u64;
                // a length that differs is told without reading it all
                let found = if found_bytes == signed_bytes { Some(digest_of_bytes(body.bytes())) } else { None };
                match found {
                    Some(found) if found == digest => {
                        bodies.insert(digest, body);
                        Outcome::Passed
                    }
                    Some(found) => failed(format!("its digest is {found}")),
                    None => failed(format!("it has {found_bytes} bytes")),
                }
            }
        };
        ledger.add(Area::Ballot, Some(height), subject, compared, outcome);
    }
    bodies
}
