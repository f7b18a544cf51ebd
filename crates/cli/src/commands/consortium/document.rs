//! `fedprune consortium new` and `add`: a document that people may go on writing by hand.
//!
//! A member is added as text at the end, so that comments and order stay as people wrote them.

use std::path::PathBuf;

use anyhow::{Context, bail};
use fedprune_federation::consortium::{self, Consortium, Draft, Member};
use fedprune_federation::{SigningKey, VerifyingKey};
use serde::Serialize;

use super::view::ConsortiumReport;
use crate::args::{ConsortiumAddOptions, ConsortiumNewOptions};
use crate::commands::attestation_key;
use crate::commands::home::{add_signatures, lists_members, public_key, read_text, signatures_path};
use crate::commands::peer_id::peer_id;
use crate::files::{check_new, create_document, program, replace_document, shell};
use crate::output::facts;

/// How the table of a member begins.
const TABLE: &str = "\n[[member]]\n";
/// What people read first in a new document.
const PREAMBLE: &str = "\
# Who takes part. Every member signs this document and keeps a copy of it. Its id covers everything below but
# comments, order and spacing: whatever else is changed, all must sign again.
";

/// The answer of `fedprune consortium new`.
#[derive(Debug, Serialize)]
pub struct NewReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    consortium: PathBuf,
    name: String,
}

crate::report!(NewReport);

/// Writes a document without members.
///
/// # Errors
/// A name that cannot be one, or an output path that exists.
pub fn new(options: &ConsortiumNewOptions) -> anyhow::Result<NewReport> {
    check_new(&options.out)?;
    // A consortium has members, so the name is checked and written beside one who is then left out.
    let key = SigningKey::from_seed(&[1; 32])?.verifying_key();
    let nobody = Member {
        name: "nobody".to_owned(),
        signing_key: key,
        peer_key: key,
        addresses: Vec::new(),
        attestation_key: None,
    };
    let text = Consortium::new(options.name.clone(), vec![nobody])?.to_toml()?;
    let head = text.split(TABLE).next().unwrap_or_default().trim_end();
    create_document(&options.out, format!("{PREAMBLE}\n{head}\n").as_bytes())?;
    Ok(NewReport { consortium: options.out.clone(), name: options.name.clone() })
}

impl NewReport {
    fn text(&self) -> String {
        format!(
            "{}\nnext, once for each member: {} consortium add {} --name NAME --key KEY --attestation-key FILE --address /dns4/HOST/tcp/4001",
            facts(&[
                ("consortium", self.name.clone()),
                ("document", format!("{} (without members so far)", self.consortium.display())),
            ]),
            program(),
            shell(&self.consortium),
        )
    }
}

/// Adds a member to a document.
///
/// # Errors
/// A document, name, key or address that cannot be used; the document then stays as it is.
pub fn add(options: &ConsortiumAddOptions) -> anyhow::Result<ConsortiumReport> {
    let path = &options.consortium;
    if let Some(out) = &options.out {
        return super::change::add(path, out, member(options)?);
    }
    let unusable = || format!("`{}` cannot be used", path.display());
    let text = read_text(path, consortium::DOCUMENT_LIMIT)?;
    let before = match Consortium::parse(&text) {
        Ok(consortium) => Some(consortium),
        Err(_) if !lists_members(&text) => None,
        Err(error) => return Err(error).with_context(unusable),
    };
    let member = member(options)?;
    if before.as_ref().is_some_and(|before| before.origin().is_some()) {
        return super::change::add_in_place(path, member);
    }
    let longer = appended(&text, &member)?;
    let refused = || format!("`{}` cannot be added to `{}`", options.name, path.display());
    let (text, after) = match (Consortium::parse(&longer), &before) {
        (Ok(consortium), _) => (longer, consortium),
        // members in another form than tables, which no text can be put behind: written anew
        (Err(_), Some(before)) => {
            let members = before.members().iter().cloned().chain([member]).collect();
            let consortium = Consortium::new(before.name().to_owned(), members).with_context(refused)?;
            (consortium.to_toml()?, consortium)
        }
        (Err(error), None) => return Err(error).with_context(refused),
    };
    let expected = before.as_ref().map_or(0, |before| before.members().len()) + 1;
    if after.members().len() != expected || text.len() > consortium::DOCUMENT_LIMIT {
        bail!("`{}` has no room for `{}`; write it by hand", path.display(), options.name);
    }

    let signatures = signatures_path(path);
    let mut warnings = Vec::new();
    if signatures.exists() {
        let signed = before.map(Draft::new).and_then(|mut draft| {
            add_signatures(&mut draft, &signatures).ok()?;
            Some(draft.signed_by().count())
        });
        let by = signed.map_or_else(String::new, |signed| format!(" by {signed} of its members"));
        let list = shell(&signatures);
        warnings.push(format!(
            "the document as it was is signed{by}: all must sign again; put the old signatures away: mv {list} {list}.old; \
             a change that only two thirds must sign is written with --out"
        ));
    }
    replace_document(path, text.as_bytes())?;
    let next = vec![(
        "with all members in it, each of them".to_owned(),
        format!("consortium sign {} --home HOME", shell(path)),
    )];
    let mut report = ConsortiumReport::of(&Draft::new(after), path, &signatures, warnings, next);
    report.added = Some(options.name.clone());
    Ok(report)
}

fn member(options: &ConsortiumAddOptions) -> anyhow::Result<Member> {
    let signing_key = public_key(&options.key)?;
    let peer_key = peer_keys(options.peer_key.as_deref(), signing_key)?;
    for address in &options.address {
        check_address(address, &peer_key)?;
    }
    let (name, addresses) = (options.name.clone(), options.address.clone());
    let attestation_key = options.attestation_key.as_deref().map(attestation_key::read_public).transpose()?;
    Ok(Member { name, signing_key, peer_key, addresses, attestation_key })
}

/// The key of a member's node as typed, or the member's own.
pub(super) fn peer_keys(given: Option<&str>, signing_key: VerifyingKey) -> anyhow::Result<VerifyingKey> {
    given.map_or(Ok(signing_key), public_key)
}

/// What can be told of an address without interpreting it.
pub(super) fn check_address(address: &str, peer_key: &VerifyingKey) -> anyhow::Result<()> {
    if !address.starts_with('/') {
        bail!(
            "`{address}` is no multiaddress: write /dns4/HOST/tcp/PORT, /ip4/ADDRESS/tcp/PORT or /ip4/ADDRESS/udp/PORT/quic-v1"
        );
    }
    let expected = peer_id(peer_key);
    match address.split_once("/p2p/") {
        Some((_, found)) if found != expected && !found.contains("/p2p-circuit") => {
            bail!(
                "`{address}` is of another peer: the member's is {expected}; correct the address, or leave out /p2p/…"
            )
        }
        _ => Ok(()),
    }
}

/// The document with a table for the member at its end; only text that parses is ever written.
fn appended(text: &str, member: &Member) -> anyhow::Result<String> {
    let refused = || format!("`{}` cannot be a member", member.name);
    let alone = Consortium::new("alone".to_owned(), vec![member.clone()]).with_context(refused)?.to_toml()?;
    let table = alone.find(TABLE).and_then(|at| alone.get(at..)).with_context(refused)?;
    Ok(format!("{}\n{}\n", text.trim_end(), table.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> VerifyingKey {
        SigningKey::from_seed(&[seed; 32]).unwrap().verifying_key()
    }

    fn options(path: &std::path::Path, name: &str, seed: u8) -> ConsortiumAddOptions {
        ConsortiumAddOptions {
            consortium: path.to_owned(),
            name: name.to_owned(),
            key: key(seed).to_string(),
            peer_key: None,
            attestation_key: None,
            address: vec![format!("/ip4/192.0.2.{seed}/tcp/4001")],
            out: None,
        }
    }

    #[test]
    fn people_may_write_between_the_commands() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("consortium.toml");
        let name = "It's \"ours\" \\ [[member]]";
        new(&ConsortiumNewOptions { name: name.to_owned(), out: path.clone() }).unwrap();
        add(&options(&path, "south", 2)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap() + "# the northern one is on vacation in May\r\n";
        std::fs::write(&path, &text).unwrap();
        add(&options(&path, "north", 3)).unwrap();
        let longer = std::fs::read_to_string(&path).unwrap();
        assert!(longer.starts_with(text.trim_end()), "{longer}");
        let consortium = Consortium::parse(&longer).unwrap();
        assert_eq!(consortium.name(), name);
        let names: Vec<&str> = consortium.members().iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["north", "south"]);
        assert_eq!(consortium.members()[0].addresses, ["/ip4/192.0.2.3/tcp/4001"]);
    }

    #[test]
    fn members_in_one_line_are_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("consortium.toml");
        let (first, second) = (key(1), key(2));
        let text = format!("name = \"x\"\nprotocol = 1\nmember = [{{ name = \"a\", signing_key = \"{first}\" }}]\n");
        std::fs::write(&path, text).unwrap();
        add(&options(&path, "b", 2)).unwrap();
        let consortium = Consortium::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(consortium.members().iter().map(|member| member.signing_key).collect::<Vec<_>>(), [first, second]);
    }

    #[test]
    fn what_cannot_be_added_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("consortium.toml");
        new(&ConsortiumNewOptions { name: "x".to_owned(), out: path.clone() }).unwrap();
        add(&options(&path, "north", 1)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let refused = |options: ConsortiumAddOptions, says: &str| {
            let error = format!("{:#}", add(&options).unwrap_err());
            assert!(error.contains(says), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        };
        refused(options(&path, "North", 2), "two members are named");
        refused(options(&path, "south", 1), "share a key");
        refused(options(&path, " south", 2), "cannot be a name");
        let with = |key: &str, address: &str| ConsortiumAddOptions {
            key: key.to_owned(),
            address: vec![address.to_owned()],
            ..options(&path, "south", 2)
        };
        let digits = key(2).to_string();
        refused(with(&digits, "north.example:4001"), "no multiaddress");
        let other = format!("/ip4/192.0.2.1/tcp/4001/p2p/{}", peer_id(&key(1)));
        refused(with(&digits, &other), "of another peer");
        refused(with(&digits.to_uppercase(), "/tcp/1"), "cannot be used");
        refused(with("key.pm", "/tcp/1"), "neither a key");
        refused(with(&("01".to_owned() + &"00".repeat(31)), "/tcp/1"), "weak");
        let own = format!("/ip4/192.0.2.1/tcp/4001/p2p/{}", peer_id(&key(2)));
        add(&with(&digits, &own)).unwrap();
    }
}
