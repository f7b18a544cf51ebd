//! `fedprune consortium sign` and `show`: one list of signatures, beside the document.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedprune_federation::consortium::{Draft, RatificationError, SIGNATURES_LIMIT};

use super::view::ConsortiumReport;
use crate::args::{ConsortiumShowOptions, ConsortiumSignOptions};
use crate::commands::home::{
    add_signatures, consortium_path, exposed, key_path, names, read_consortium, read_signing_key, signatures_path,
};
use crate::files::{create_document, folder_of, program, read_small, replace_document, shell};
use crate::usage;

/// Signs a document with the key of a member, merges the lists of others, and writes the list.
///
/// # Errors
/// A key of no member, a signature that does not verify, or one of another document; the list then stays as it is.
pub fn sign(options: &ConsortiumSignOptions) -> anyhow::Result<ConsortiumReport> {
    let (document, key) = match &options.home {
        Some(home) => (consortium_path(home), Some(key_path(home))),
        None => (options.consortium.clone().context("give the consortium's document")?, options.key.clone()),
    };
    let source = options.consortium.as_deref().unwrap_or(&document);
    if let (Some(home), false) = (&options.home, source.exists()) {
        bail!(
            "`{}` is missing; give the document: {} consortium sign consortium.toml --home {}",
            source.display(),
            program(),
            shell(home)
        );
    }
    if let (Some(home), Some(false)) = (&options.home, key.as_ref().map(|key| key.exists())) {
        bail!("`{0}` has no key.pem; make a key: {1} key new --home {0}", shell(home), program());
    }
    let (consortium, text) = read_consortium(source)?;
    // the copy in the home folder is made once, and never of another consortium
    let copy = source != document && !document.exists();
    if source != document && !copy {
        let (kept, _) = read_consortium(&document)?;
        if kept.id() != consortium.id() {
            bail!(
                "`{}` is consortium {}, and `{}` is {}: a home belongs to one consortium; make another, or remove the \
                 document and its signatures from this one",
                document.display(),
                kept.id().0.short(),
                source.display(),
                consortium.id().0.short()
            );
        }
    }
    let signatures = options.signatures.clone().unwrap_or_else(|| signatures_path(&document));
    if !folder_of(&signatures).is_dir() {
        bail!("the folder `{0}` does not exist; create it with: mkdir -p {0}", folder_of(&signatures).display());
    }
    let mut draft = Draft::new(consortium);
    if signatures.exists() {
        add_signatures(&mut draft, &signatures)?;
    }
    let mut merged = 0;
    for list in &options.merge {
        merged += add_signatures(&mut draft, list)?;
    }
    let mut warnings = Vec::new();
    let mut signed_as = None;
    if let Some(path) = &key {
        let key = read_signing_key(path)?;
        let member = draft.sign(&key).with_context(|| {
            format!(
                "`{}` signs for nobody here; the members are {}",
                path.display(),
                names(draft.consortium().members())
            )
        })?;
        signed_as = draft.consortium().member(member).map(|member| member.name.clone());
        warnings.extend(exposed(path));
    }
    if copy {
        create_document(&document, text.as_bytes())?;
    }
    replace_document(&signatures, &draft.encode_signatures())?;

    let next = next(&draft, &document, &signatures, options.home.as_deref(), true);
    let mut report = ConsortiumReport::of(&draft, &document, &signatures, warnings, next);
    report.signed_as = signed_as;
    report.merged = (!options.merge.is_empty()).then_some(merged);
    Ok(report)
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
    let next = next(&draft, &document, &signatures, options.home.as_deref(), false);
    Ok(ConsortiumReport::of(&draft, &document, &signatures, warnings, next))
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
    if draft.missing().next().is_none() {
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
