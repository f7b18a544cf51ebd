//! `fedprune consortium sign` and `show`: one list of signatures, beside the document.
//!
//! A change of the consortium that a home has lies in `HOME/next` until enough have signed it.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedprune_federation::consortium::{Consortium, Draft, RatificationError, SIGNATURES_LIMIT};
use fedprune_federation::{MemberIndex, SigningKey};

use super::pending;
use super::view::ConsortiumReport;
use crate::args::{ConsortiumShowOptions, ConsortiumSignOptions};
use crate::commands::home::{
    add_signatures, consortium_path, exposed, key_path, names, next_path, read_consortium, read_signing_key,
    signatures_path,
};
use crate::files::{create_document, folder_of, program, read_small, replace_document, shell};
use crate::usage;

/// Signs a document with the key of a member, merges the lists of others, and writes the list. The last signature of a
/// change puts it in the place of the home's consortium.
///
/// # Errors
/// A key of no member, a signature that does not verify, or one of another document; the list then stays as it is.
pub fn sign(options: &ConsortiumSignOptions) -> anyhow::Result<ConsortiumReport> {
    if let Some(home) = &options.home {
        pending::finish(home)?;
    }
    let (document, key) = match &options.home {
        Some(home) => (consortium_path(home), Some(key_path(home))),
        None => (options.consortium.clone().context("give the consortium's document")?, options.key.clone()),
    };
    let waiting =
        options.home.as_deref().map(next_path).map(|next| consortium_path(&next)).filter(|next| next.exists());
    let source = options.consortium.as_deref().or(waiting.as_deref()).unwrap_or(&document);
    if let (Some(home), false) = (&options.home, source.exists()) {
        bail!(
            "`{}` is missing; give the document: {} consortium sign consortium.toml --home {}",
            source.display(),
            program(),
            shell(home)
        );
    }
    let (consortium, text) = read_consortium(source)?;
    if let Some(home) = &options.home
        && document.exists()
        && consortium.origin().is_some()
    {
        let (kept, _) = read_consortium(&document)?;
        if kept.id() != consortium.id() {
            return sign_change(options, home, source, consortium, &text);
        }
    }
    if let (Some(home), Some(false)) = (&options.home, key.as_ref().map(|key| key.exists())) {
        bail!("`{0}` has no key.pem; make a key: {1} key new --home {0}", shell(home), program());
    }
    // the copy in the home folder is made once, and never of another consortium
    let copy = source != document && !document.exists();
    if source != document && !copy {
        let (kept, _) = read_consortium(&document)?;
        if kept.id() != consortium.id() {
            let (kept_id, source_id) = (kept.id().0.short(), consortium.id().0.short());
            return Err(pending::other_consortium(&document, &kept_id.to_string(), source, &source_id.to_string()));
        }
    }
    let signatures = options.signatures.clone().unwrap_or_else(|| signatures_path(&document));
    if !folder_of(&signatures).is_dir() {
        bail!("the folder `{0}` does not exist; create it with: mkdir -p {0}", folder_of(&signatures).display());
    }
    let is_change = consortium.origin().is_some();
    let mut draft = Draft::new(consortium);
    if signatures.exists() {
        add_signatures(&mut draft, &signatures)?;
    }
    // a change is nothing without its chain, which lies beside the document that was sent
    let beside = signatures_path(source);
    if is_change && beside != signatures && beside.exists() {
        add_signatures(&mut draft, &beside)?;
    }
    let merged = merge(&mut draft, &options.merge)?;
    let mut warnings = Vec::new();
    let (mut signed_as, mut agreed_as) = (None, None);
    if let Some(path) = &key {
        let key = read_signing_key(path)?;
        (signed_as, agreed_as) = sign_with(&mut draft, &key, path, options.yes)?;
        warnings.extend(exposed(path));
    }
    if copy {
        create_document(&document, text.as_bytes())?;
    }
    replace_document(&signatures, &draft.encode_signatures())?;

    let next = next(&draft, &document, &signatures, options.home.as_deref(), true);
    let mut report = ConsortiumReport::of(&draft, &document, &signatures, warnings, next);
    report.signed_as = signed_as;
    report.agreed_as = agreed_as;
    report.merged = (!options.merge.is_empty()).then_some(merged);
    Ok(report)
}

/// Signs a change of a home's consortium.
fn sign_change(
    options: &ConsortiumSignOptions,
    home: &Path,
    source: &Path,
    consortium: Consortium,
    text: &str,
) -> anyhow::Result<ConsortiumReport> {
    let mut draft = pending::draft_of(consortium, source, home)?;
    let merged = merge(&mut draft, &options.merge)?;
    pending::check_only(home, &draft)?;
    let next = next_path(home);
    let (mut signed_as, mut agreed_as) = (None, None);
    let new_key = key_path(&next);
    let mut keys = vec![new_key, key_path(home)];
    keys.retain(|key| key.exists());
    if !draft.is_complete() {
        for path in &keys {
            let key = read_signing_key(path)?;
            if is_of(&draft, &key) {
                let (signed, agreed) = sign_with(&mut draft, &key, path, options.yes)?;
                (signed_as, agreed_as) = (signed.or(signed_as), agreed.or(agreed_as));
            }
        }
        if signed_as.is_none()
            && agreed_as.is_none()
            && merged == 0
            && !keys.iter().any(|path| read_signing_key(path).is_ok_and(|key| is_of(&draft, &key)))
        {
            bail!(
                "the keys in `{}` sign for nobody in this change or before it; merge the lists of others with --merge FILES",
                home.display()
            );
        }
    }
    pending::make_folder(&next)?;
    let document = consortium_path(&next);
    let signatures = signatures_path(&document);
    replace_document(&signatures, &draft.encode_signatures())?;
    replace_document(&document, text.as_bytes())?;
    let complete = draft.is_complete();
    let mut report = if complete {
        pending::finish(home)?;
        let document = consortium_path(home);
        let signatures = signatures_path(&document);
        let mut then = self::next(&draft, &document, &signatures, Some(home), true);
        let mut warnings: Vec<String> = exposed(&key_path(home)).into_iter().collect();
        let key = key_path(home).exists().then(|| read_signing_key(&key_path(home))).transpose()?;
        if key.is_none_or(|key| draft.consortium().index_of(&key.verifying_key()).is_none()) {
            then.clear();
            warnings.push(format!(
                "`{}` is the key of no member any more: this home takes part in no further round; rounds of before can be finished, \
                 node run --round ID, and the key is to be destroyed then",
                key_path(home).display()
            ));
        }
        ConsortiumReport::of(&draft, &document, &signatures, warnings, then)
    } else {
        pending::report(&draft, home, true)?
    };
    report.adopted = complete.then(|| home.to_owned());
    report.signed_as = signed_as;
    report.agreed_as = agreed_as;
    report.merged = (!options.merge.is_empty()).then_some(merged);
    Ok(report)
}

/// Whether a key has something to sign.
fn is_of(draft: &Draft, key: &SigningKey) -> bool {
    let key = key.verifying_key();
    draft.consortium().index_of(&key).is_some()
        || draft.known_predecessor().is_some_and(|before| before.index_of(&key).is_some())
}

fn merge(draft: &mut Draft, lists: &[PathBuf]) -> anyhow::Result<usize> {
    let mut merged = 0;
    for list in lists {
        merged += add_signatures(draft, list)?;
    }
    Ok(merged)
}

/// Signs all that a key has to sign: as the member that it shall be of, and as one that agrees to the change.
/// Returns the names under which it did.
fn sign_with(
    draft: &mut Draft,
    key: &SigningKey,
    path: &Path,
    yes: bool,
) -> anyhow::Result<(Option<String>, Option<String>)> {
    let public = key.verifying_key();
    let stranger = || {
        let members = draft.consortium().members();
        format!("`{}` signs for nobody here; the members are {}", path.display(), names(members))
    };
    if !is_of(draft, key) {
        let error = draft.clone().sign(key).err().context("a key of nobody was let through")?;
        return Err(anyhow::Error::from(error).context(stranger()));
    }
    let mut signed_as = None;
    let enters = |index: &MemberIndex| draft.entering().any(|entering| entering == *index);
    if draft.consortium().index_of(&public).filter(enters).is_some() {
        let member = draft.sign(key)?;
        signed_as = draft.consortium().member(member).map(|member| member.name.clone());
    }
    let agreed_as = pending::agree(draft, key, path, yes)?;
    Ok((signed_as, agreed_as))
}

/// Shows members and signatures.
///
/// # Errors
/// A document that cannot be read, or a signature that does not verify.
pub fn show(options: &ConsortiumShowOptions) -> anyhow::Result<ConsortiumReport> {
    let document: PathBuf = match (&options.consortium, &options.home) {
        (Some(document), _) => document.clone(),
        (None, Some(home)) => consortium_path(home),
        (None, None) => usage!("give the consortium's document, or --home HOME"),
    };
    let signatures = options.signatures.clone().unwrap_or_else(|| signatures_path(&document));
    let (consortium, _) = read_consortium(&document)?;
    let mut draft = Draft::new(consortium);
    let mut warnings = Vec::new();
    if signatures.exists() || options.signatures.is_some() {
        let bytes = read_small(&signatures, SIGNATURES_LIMIT + 64)?;
        match draft.add_encoded(&bytes) {
            Ok(_) => {}
            Err(error @ RatificationError::OtherConsortium { .. }) => {
                warnings.push(format!("`{}` does not count: {error}", signatures.display()));
            }
            Err(error) => return Err(error).with_context(|| format!("`{}` cannot be used", signatures.display())),
        }
    }
    if let (Some(origin), None) = (draft.consortium().origin(), draft.known_predecessor()) {
        warnings.push(format!(
            "it is change {} of a consortium, and what was changed is not known here: `{}`, which carries that, is not there; get it \
             from a member",
            origin.change,
            signatures.display()
        ));
    }
    let next = next(&draft, &document, &signatures, options.home.as_deref(), false);
    let mut report = ConsortiumReport::of(&draft, &document, &signatures, warnings, next);
    if let Some(home) = &options.home
        && let Some(waiting) = pending::pending(home)?
    {
        report.pending = Some(Box::new(pending::report(&waiting, home, false)?));
    }
    Ok(report)
}

/// What to type next: sign, pass on and merge, or begin a round.
fn next(
    draft: &Draft,
    document: &Path,
    signatures: &Path,
    home: Option<&Path>,
    just_signed: bool,
) -> Vec<(String, String)> {
    let document = shell(document);
    if draft.is_complete() {
        let command = format!("round new --consortium {document} --model MODEL --out round.toml");
        return vec![("a round".to_owned(), command)];
    }
    let place = home.map_or_else(|| document.clone(), |home| format!("--home {}", shell(home)));
    let merge = match home {
        Some(_) => format!("consortium sign {place} --merge FILE"),
        None => format!("consortium sign {document} --merge FILE"),
    };
    let mut next = Vec::new();
    if !just_signed {
        let key = if home.is_some() { String::new() } else { " --key KEY".to_owned() };
        next.push(("each that has not signed".to_owned(), format!("consortium sign {place}{key}")));
    }
    let when = format!("send {} to the others, and with their lists", shell(signatures));
    next.push((when, merge));
    next
}
