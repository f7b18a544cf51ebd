//! `fedprune consortium renew`: a member makes a new key, and a change that puts it in the place of the old one.
//!
//! The key lies in `HOME/next` beside the change until the others have signed; then `sign` puts all three in place. Where
//! the old key is there, it agrees to the change at once; where it is lost, the others do without it.

use std::path::Path;

use anyhow::{Context, bail};
use fedprune_federation::consortium::Draft;
use fedprune_federation::{Ratified, SigningKey};

use super::change::{complete, dialled, find, successor, text_of};
use super::document::check_address;
use super::pending::{self, agree, make_folder};
use super::view::ConsortiumReport;
use crate::args::ConsortiumRenewOptions;
use crate::commands::home::{
    consortium_path, key_path, next_path, read_consortium, read_signing_key, signatures_path, wipe,
};
use crate::files::{create_secret, program, replace_document, shell};

/// Makes key and change in `HOME/next`.
///
/// # Errors
/// A home without a complete consortium, a member that cannot be told, or another change that is under way.
pub fn renew(options: &ConsortiumRenewOptions) -> anyhow::Result<ConsortiumReport> {
    let home = &options.home;
    let before = complete(&consortium_path(home))?;
    let old = key_path(home).exists().then(|| read_signing_key(&key_path(home))).transpose()?;
    let name = whose(options, &before, old.as_ref())?;
    let next = next_path(home);
    let (document, key_file) = (consortium_path(&next), key_path(&next));
    if document.exists() {
        bail!(
            "a change is under way in `{}`; see it: {} consortium show --home {}; to give it up, move it away: mv {1} {1}.old",
            next.display(),
            shell(&next),
            shell(home)
        );
    }
    make_folder(&next)?;
    // one that was made before and came to nothing is as good as another
    let new = if key_file.exists() { read_signing_key(&key_file)? } else { make_key(&key_file)? };

    let mut members = match &options.draft {
        None => before.members().to_vec(),
        Some(draft) => {
            let (draft, _) = read_consortium(draft)?;
            if draft.origin().map(|origin| origin.predecessor) != Some(before.id()) {
                bail!(
                    "`{}` is no change of this home's consortium, {}",
                    shell(&options.draft.clone().unwrap_or_default()),
                    before.id()
                );
            }
            draft.members().to_vec()
        }
    };
    let member = find(&mut members, &name)?;
    let own_node_key = member.peer_key != member.signing_key;
    member.signing_key = new.verifying_key();
    if !own_node_key {
        member.peer_key = new.verifying_key();
        member.addresses = dialled(&member.addresses);
    }
    if !options.address.is_empty() {
        for address in &options.address {
            check_address(address, &member.peer_key)?;
        }
        member.addresses.clone_from(&options.address);
    }
    let mut draft = Draft::succeeding(successor(&before, members)?, before)?;
    draft.sign(&new)?;
    let mut agreed = None;
    if let Some(old) = &old
        && draft.missing().next().is_none()
    {
        agreed = agree(&mut draft, old, &key_path(home), options.yes)?;
    }
    replace_document(&signatures_path(&document), &draft.encode_signatures())?;
    replace_document(&document, text_of(draft.consortium())?.as_bytes())?;
    let mut report = pending::report(&draft, home, true)?;
    report.signed_as = Some(name);
    report.agreed_as = agreed;
    Ok(report)
}

/// Whose key is renewed.
fn whose(options: &ConsortiumRenewOptions, before: &Ratified, old: Option<&SigningKey>) -> anyhow::Result<String> {
    let by_key = old.and_then(|key| before.index_of(&key.verifying_key())).and_then(|index| before.member(index));
    match (&options.name, by_key) {
        (None, Some(member)) => Ok(member.name.clone()),
        (Some(name), Some(member)) if *name != member.name => bail!(
            "the key in `{}` is that of `{}`, not of `{name}`; leave --name out, or give the home of `{name}`",
            key_path(&options.home).display(),
            member.name
        ),
        (Some(name), _) => Ok(name.clone()),
        (None, None) => bail!(
            "`{}` holds the key of no member, so it cannot be told whose is to be renewed; say it: {} consortium renew --home {} --name NAME",
            key_path(&options.home).display(),
            program(),
            shell(&options.home)
        ),
    }
}

/// A key from the system's randomness, written readable by its owner alone.
fn make_key(path: &Path) -> anyhow::Result<SigningKey> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("the system gave no random bytes, without which no key is made")?;
    let key = SigningKey::from_seed(&seed);
    wipe(&mut seed);
    let key = key?;
    create_secret(path, key.to_pkcs8_pem()?.as_bytes())?;
    Ok(key)
}
