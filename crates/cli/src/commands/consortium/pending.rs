//! A change that a home waits for, and how it takes the place of what was there.
//!
//! ```text
//! HOME/next/consortium.toml  consortium.signatures   the change, and who has signed it so far
//! HOME/next/key.pem                                  the key that this member renews its own with, if it does
//! HOME/former-keys/<public key>.pem                  what was renewed: rounds of before are finished with it
//! ```
//!
//! Putting a complete change in place is a row of writes, each of which may be done again: what was interrupted
//! goes on with the same command, since `HOME/next` goes last.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, bail};
use fedprune_federation::consortium::succession::{difference, fork};
use fedprune_federation::consortium::{Consortium, Draft};
use fedprune_federation::{Ratified, SigningKey};

use super::change::complete;
use super::view::ConsortiumReport;
use crate::commands::home::{
    add_signatures, consortium_path, exposed, key_path, next_path, read_consortium, read_signing_key, signatures_path,
};
use crate::files::{create_secret, program, replace_document, shell, sync_folder};

/// Most bytes of an answer; more is no answer.
const MAX_ANSWER_BYTES: u64 = 64;

/// A folder for one member alone.
pub(super) fn make_folder(folder: &Path) -> anyhow::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).with_context(|| format!("cannot make the folder `{}`", folder.display()))
}

/// The change that a home waits for.
pub(super) fn pending(home: &Path) -> anyhow::Result<Option<Draft>> {
    let document = consortium_path(&next_path(home));
    if !document.exists() {
        return Ok(None);
    }
    let (consortium, _) = read_consortium(&document)?;
    let mut draft = Draft::new(consortium);
    let signatures = signatures_path(&document);
    if signatures.exists() {
        add_signatures(&mut draft, &signatures)?;
    }
    Ok(Some(draft))
}

/// A draft of what `source` says, with the chain from this home or from the list beside the document.
pub(super) fn draft_of(consortium: Consortium, source: &Path, home: &Path) -> anyhow::Result<Draft> {
    let kept = complete(&consortium_path(home))?;
    let origin = consortium.origin().context("the document is of no change")?;
    let succeeds = origin.predecessor == kept.id();
    let mut draft = if succeeds { Draft::succeeding(consortium, kept.clone())? } else { Draft::new(consortium) };
    let beside = signatures_path(source);
    let own = signatures_path(&consortium_path(&next_path(home)));
    if beside.exists() {
        add_signatures(&mut draft, &beside)?;
    }
    if own != beside && pending(home)?.is_some_and(|own| own.consortium().id() == draft.consortium().id()) {
        add_signatures(&mut draft, &own)?;
    }
    match draft.known_predecessor() {
        _ if succeeds => {}
        None => bail!(
            "`{}` is change {} of a consortium, and this home is at change {}; the list of signatures beside it, which carries the \
             changes between, is missing: get it, and put it at {}",
            source.display(),
            draft.consortium().change(),
            kept.consortium().change(),
            shell(&beside)
        ),
        Some(before) if before.in_lineage(kept.id()).is_some() => {}
        Some(before) => {
            if let Ok(other) = draft.clone().ratify()
                && let Some(fork) = fork(&kept, &other)
            {
                bail!("`{}` cannot take the place of this home's consortium: {fork}", source.display());
            }
            bail!(
                "`{}` is a change of consortium {}, and this home's is {}, which is not among those before it: it was made from \
                 another, and its signatures do not count here",
                source.display(),
                before.id().0.short(),
                kept.id().0.short()
            );
        }
    }
    Ok(draft)
}

/// Refuses a second change of one consortium while another is under way here.
pub(super) fn check_only(home: &Path, draft: &Draft) -> anyhow::Result<()> {
    let Some(other) = pending(home)? else { return Ok(()) };
    if other.consortium().id() == draft.consortium().id() || draft.is_complete() {
        return Ok(());
    }
    let key = key_path(home).exists().then(|| read_signing_key(&key_path(home))).transpose()?;
    let agreed = key.is_some_and(|key| other.agreed_by().any(|member| member.signing_key == key.verifying_key()));
    let next = shell(&next_path(home));
    let why = if agreed {
        "and you agreed to it: who agrees to two changes of one consortium is found to have done so once both are complete. Complete \
         that one, and change what is wrong with it by another; only if all agree that it is given up"
    } else {
        "which you have not agreed to; to give it up"
    };
    bail!(
        "another change, {}, is under way in `{}`, {why}: mv {next} {next}.{}",
        other.consortium().id().0.short(),
        next_path(home).display(),
        other.consortium().id().0.short()
    );
}

/// Agrees to a change with the key of a member before it, once everyone has signed that enters. Returns its name,
/// or nothing if the key is of none or has agreed already.
pub(super) fn agree(draft: &mut Draft, key: &SigningKey, path: &Path, yes: bool) -> anyhow::Result<Option<String>> {
    let Some(before) = draft.known_predecessor() else { return Ok(None) };
    let Some(member) = before.index_of(&key.verifying_key()).and_then(|index| before.member(index)) else {
        return Ok(None);
    };
    let name = member.name.clone();
    if draft.agreed_by().any(|member| member.name == name) {
        return Ok(None);
    }
    let entering: Vec<String> = draft.missing().map(|member| format!("`{}`", member.name)).collect();
    if !entering.is_empty() {
        bail!(
            "{} must sign the change before `{name}` agrees to it, since an agreement cannot be taken back and a mistyped key would \
             make a seat that nobody sits in; get that list, and give it with --merge FILE",
            entering.join(", ")
        );
    }
    if !yes {
        let words = question(draft, before, &name);
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            bail!(
                "nobody is there to be asked, since this is no terminal; the change is: {words}; agree to it with --yes"
            );
        }
        if !ask(&words, &mut std::io::stdin().lock(), &mut std::io::stderr())? {
            bail!("`{name}` did not agree, and nothing was written");
        }
    }
    draft.agree(key).with_context(|| format!("`{}` cannot sign", path.display()))?;
    Ok(Some(name))
}

fn question(draft: &Draft, before: &Ratified, name: &str) -> String {
    let found = difference(before.consortium(), draft.consortium());
    let (then, now) = found.quorum;
    let quorum = if (then.q(), then.f()) == (now.q(), now.f()) {
        String::new()
    } else {
        let (before, after) = (format!("{} of {}", then.q(), then.n()), format!("{} of {}", now.q(), now.n()));
        format!("; {after} must agree in rounds instead of {before}, and {} may fail instead of {}", now.f(), then.f())
    };
    format!("{}{quorum}; `{name}` cannot take its agreement back", found.in_words().join("; "))
}

/// Shows `text` and asks; only y and yes are a yes.
fn ask(text: &str, input: &mut dyn BufRead, output: &mut dyn Write) -> anyhow::Result<bool> {
    write!(output, "{text}\nagree to this change? Type yes or no [no]: ")
        .and_then(|()| output.flush())
        .context("the question cannot be shown")?;
    let mut answer = String::new();
    std::io::Read::take(input, MAX_ANSWER_BYTES).read_line(&mut answer).context("the answer cannot be read")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Puts a complete change in the place of the home's consortium.
pub(super) fn adopt(home: &Path, consortium: &Ratified, text: &str) -> anyhow::Result<()> {
    let next = next_path(home);
    for file in ["key.pem", "peer-key.pem"] {
        let (new, current) = (next.join(file), home.join(file));
        if !new.exists() {
            continue;
        }
        let key = read_signing_key(&new)?;
        let public = key.verifying_key();
        // a key that was made for a change that came to nothing stays where it is
        if !consortium.members().iter().any(|member| member.signing_key == public || member.peer_key == public) {
            continue;
        }
        if current.exists() {
            let old = read_signing_key(&current)?;
            if old.verifying_key() != public {
                let former = home.join("former-keys");
                make_folder(&former)?;
                let kept = former.join(format!("{}.pem", old.verifying_key()));
                if !kept.exists() {
                    create_secret(&kept, old.to_pkcs8_pem()?.as_bytes())?;
                }
                replace_document(&current, key.to_pkcs8_pem()?.as_bytes())?;
            }
        } else {
            create_secret(&current, key.to_pkcs8_pem()?.as_bytes())?;
        }
    }
    let document = consortium_path(home);
    replace_document(&signatures_path(&document), &consortium.encode_signatures())?;
    replace_document(&document, text.as_bytes())?;
    if next.exists() {
        std::fs::remove_dir_all(&next).with_context(|| format!("cannot remove `{}`", next.display()))?;
        sync_folder(home);
    }
    Ok(())
}

/// Goes on with what was interrupted: a complete change in `HOME/next` is put in place.
pub(super) fn finish(home: &Path) -> anyhow::Result<bool> {
    let document = consortium_path(&next_path(home));
    let Some(ratified) = pending(home)?.and_then(|draft| draft.ratify().ok()) else { return Ok(false) };
    let (_, text) = read_consortium(&document)?;
    adopt(home, &ratified, &text)?;
    Ok(true)
}

/// The change that a home waits for, as it is shown.
pub(super) fn report(draft: &Draft, home: &Path, just_signed: bool) -> anyhow::Result<ConsortiumReport> {
    let document = consortium_path(&next_path(home));
    let signatures = signatures_path(&document);
    let (document_shown, signatures_shown, home_shown) = (shell(&document), shell(&signatures), shell(home));
    let mut next = Vec::new();
    if !just_signed {
        next.push(("if you have not signed".to_owned(), format!("consortium sign --home {home_shown}")));
    }
    let entering: Vec<String> = draft.missing().map(|member| format!("`{}`", member.name)).collect();
    let who = if entering.is_empty() {
        let undecided: Vec<String> = draft.undecided().map(|member| format!("`{}`", member.name)).collect();
        format!("send both files to {}, of whom {} must agree; each", undecided.join(", "), draft.agreements_wanting())
    } else {
        format!("send both files to {}, who must sign first", entering.join(", "))
    };
    next.push((who, format!("consortium sign {} --home HOME", file_name(&document))));
    next.push(("with what they send back".to_owned(), format!("consortium sign --home {home_shown} --merge FILES")));
    let warnings = exposed(&key_path(&next_path(home))).into_iter().collect();
    let mut report = ConsortiumReport::of(draft, &document, &signatures, warnings, next);
    report.files = Some(format!("{document_shown} {signatures_shown}"));
    Ok(report)
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| shell(path), |name| shell(Path::new(name)))
}

/// What is said of a document that no home of another consortium takes.
pub(super) fn other_consortium(kept: &Path, kept_id: &str, source: &Path, source_id: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "`{}` is consortium {kept_id}, and `{}` is {source_id}: a home belongs to one consortium; make another, or remove the \
         document and its signatures from this one; a change of the consortium is made with: {} consortium --help",
        kept.display(),
        source.display(),
        program()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        let answered = |answer: &str| ask("the change", &mut answer.as_bytes(), &mut Vec::new()).unwrap();
        assert!(answered("yes\n") && answered(" Y \r\n") && answered("y"));
        for no in ["", "\n", "no\n", "yess\n", "yes no\n"] {
            assert!(!answered(no), "{no:?}");
        }
    }
}
