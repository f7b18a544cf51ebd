//! `fedprune consortium replace` and `remove`, and `add` with `--out`: drafts of a changed consortium.
//!
//! From a complete consortium they make the document of its successor and, beside it, the signatures file that carries the
//! chain, signed by nobody yet. On a draft, of a founding or of a change, they work in place.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedprune_federation::Ratified;
use fedprune_federation::consortium::succession::difference;
use fedprune_federation::consortium::{Consortium, Draft, Member, Origin};

use super::document::{check_address, peer_keys};
use super::view::ConsortiumReport;
use crate::args::{ConsortiumRemoveOptions, ConsortiumReplaceOptions};
use crate::commands::home::{add_signatures, names, public_key, read_consortium, signatures_path};
use crate::files::{check_new, create_document, program, replace_document, shell};

/// What people read first in the document of a change.
const PREAMBLE: &str = "\
# Who takes part after a change of the consortium that `predecessor` names. It counts when more than two thirds of the
# members before have signed it, and everyone who is new in it or has another key or address. Whatever is changed below,
# all of these must sign again.
";

/// Puts a member in another's place, or another key in a member's.
///
/// # Errors
/// Nobody of that name, a key or address that cannot be used, or a document that is signed where no `--out` is given.
pub fn replace(options: &ConsortiumReplaceOptions) -> anyhow::Result<ConsortiumReport> {
    let signing_key = public_key(&options.key)?;
    let peer_key = peer_keys(options.peer_key.as_deref(), signing_key)?;
    for address in &options.address {
        check_address(address, &peer_key)?;
    }
    edit(&options.consortium, options.out.as_deref(), |members| {
        let member = find(members, &options.old)?;
        let addresses = if options.address.is_empty() { dialled(&member.addresses) } else { options.address.clone() };
        let attestation_key = member.attestation_key.take().filter(|_| options.old == options.new);
        *member = Member { name: options.new.clone(), signing_key, peer_key, addresses, attestation_key };
        Ok(format!("`{}` in the place of `{}`", options.new, options.old))
    })
}

/// Takes a member out.
///
/// # Errors
/// Nobody of that name, or a document that is signed where no `--out` is given.
pub fn remove(options: &ConsortiumRemoveOptions) -> anyhow::Result<ConsortiumReport> {
    edit(&options.consortium, options.out.as_deref(), |members| {
        find(members, &options.name)?;
        members.retain(|member| member.name != options.name);
        Ok(format!("`{}` taken out", options.name))
    })
}

/// Adds a member to a complete consortium.
///
/// # Errors
/// As [`replace`].
pub(super) fn add(consortium: &Path, out: &Path, member: Member) -> anyhow::Result<ConsortiumReport> {
    edit(consortium, Some(out), |members| Ok(added(members, member)))
}

/// Adds a member to a draft of a change.
///
/// # Errors
/// As [`replace`].
pub(super) fn add_in_place(consortium: &Path, member: Member) -> anyhow::Result<ConsortiumReport> {
    edit(consortium, None, |members| Ok(added(members, member)))
}

fn added(members: &mut Vec<Member>, member: Member) -> String {
    let done = format!("`{}` added", member.name);
    members.push(member);
    done
}

/// Addresses that end in a peer id are of the key that is going.
pub(super) fn dialled(addresses: &[String]) -> Vec<String> {
    addresses.iter().map(|address| address.split("/p2p/").next().unwrap_or_default().to_owned()).collect()
}

/// The member of this name.
pub(super) fn find<'m>(members: &'m mut [Member], name: &str) -> anyhow::Result<&'m mut Member> {
    match members.iter().position(|member| member.name == name) {
        Some(index) => Ok(&mut members[index]),
        None => bail!("there is no member `{name}`; the members are {}", names(members)),
    }
}

/// The successor of `before` with these members.
pub(super) fn successor(before: &Ratified, members: Vec<Member>) -> anyhow::Result<Consortium> {
    let change = before.consortium().change().saturating_add(1);
    let origin = Origin { predecessor: before.id(), change };
    let after = Consortium::successor(before.consortium().name().to_owned(), members, origin)?;
    if difference(before.consortium(), &after).is_empty() {
        bail!("nothing would be changed by that");
    }
    Ok(after)
}

/// The text of a change's document.
pub(super) fn text_of(consortium: &Consortium) -> anyhow::Result<String> {
    Ok(format!("{PREAMBLE}\n{}", consortium.to_toml()?))
}

/// A complete consortium from its document and the signatures beside it.
pub(super) fn complete(path: &Path) -> anyhow::Result<Ratified> {
    let (consortium, _) = read_consortium(path)?;
    let mut draft = Draft::new(consortium);
    let signatures = signatures_path(path);
    if signatures.exists() {
        add_signatures(&mut draft, &signatures)?;
    }
    draft.ratify().with_context(|| {
        format!(
            "`{0}` is not complete, and only a complete consortium is changed; without --out the draft itself is edited; what it \
             lacks: {1} consortium show {0}",
            shell(path),
            program()
        )
    })
}

/// Changes the members of a document: of a complete consortium into a draft of its successor, or of a draft in place.
fn edit(
    path: &Path,
    out: Option<&Path>,
    change: impl FnOnce(&mut Vec<Member>) -> anyhow::Result<String>,
) -> anyhow::Result<ConsortiumReport> {
    let (draft, document, done) = match out {
        Some(out) => {
            check_new(out)?;
            check_new(&signatures_path(out))?;
            let before = complete(path)?;
            let mut members = before.members().to_vec();
            let done = change(&mut members)?;
            let draft = Draft::succeeding(successor(&before, members)?, before)?;
            create_document(&signatures_path(out), &draft.encode_signatures())?;
            create_document(out, text_of(draft.consortium())?.as_bytes())?;
            (draft, out.to_owned(), done)
        }
        None => in_place(path, change)?,
    };
    let signatures = signatures_path(&document);
    let next = next(&draft, &document);
    let mut report = ConsortiumReport::of(&draft, &document, &signatures, Vec::new(), next);
    report.edited = Some(done);
    Ok(report)
}

fn in_place(
    path: &Path,
    change: impl FnOnce(&mut Vec<Member>) -> anyhow::Result<String>,
) -> anyhow::Result<(Draft, PathBuf, String)> {
    let (consortium, _) = read_consortium(path)?;
    let mut draft = Draft::new(consortium.clone());
    let signatures = signatures_path(path);
    if signatures.exists() {
        add_signatures(&mut draft, &signatures)?;
    }
    if draft.signed_by().next().is_some() || draft.agreed_by().next().is_some() {
        let advice = if draft.is_complete() {
            "write a change of it with --out next.toml".to_owned()
        } else {
            format!(
                "whoever signed would have to sign anew; begin again from the consortium before, or put the signatures away: mv {0} {0}.old",
                shell(&signatures)
            )
        };
        bail!("`{}` is signed by some; {advice}", path.display());
    }
    let mut members = consortium.members().to_vec();
    let done = change(&mut members)?;
    let draft = match (draft.known_predecessor(), consortium.origin()) {
        (Some(before), _) => {
            let draft = Draft::succeeding(successor(before, members)?, before.clone())?;
            // the chain goes first: a document without it cannot be signed, and says so
            replace_document(&signatures, &draft.encode_signatures())?;
            replace_document(path, text_of(draft.consortium())?.as_bytes())?;
            draft
        }
        (None, Some(_)) => bail!(
            "`{}` is a change, and `{}`, which says of what, is not there; put both files beside each other",
            path.display(),
            signatures.display()
        ),
        (None, None) => {
            let draft = Draft::new(Consortium::new(consortium.name().to_owned(), members)?);
            replace_document(path, draft.consortium().to_toml()?.as_bytes())?;
            draft
        }
    };
    Ok((draft, path.to_owned(), done))
}

/// Who signs a change first, and who then.
fn next(draft: &Draft, document: &Path) -> Vec<(String, String)> {
    let document = shell(document);
    let sign = format!("consortium sign {document} --home HOME");
    if draft.known_predecessor().is_none() {
        return vec![("with all members in it, each of them".to_owned(), sign)];
    }
    let entering: Vec<String> = draft.missing().map(|member| format!("`{}`", member.name)).collect();
    let mut next = Vec::new();
    if !entering.is_empty() {
        next.push((format!("with both files, first {}", entering.join(", ")), sign.clone()));
    }
    next.push((
        format!("then {} of the members before", draft.agreements_wanting()),
        format!("{sign} --merge LISTS_OF_OTHERS"),
    ));
    next
}
