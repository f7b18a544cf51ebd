//! What lies beside the weights of a pruned folder, file by file.
//!
//! Every file is one of these, or the folder is no copy of the base model:
//!
//! * weights of the checkpoint, which `pruned` compares;
//! * a file of the base model under its own name, byte for byte; its `README.md` may be called `README.base.md`;
//! * what whoever pruned it makes anew: the mask, which is compared with the agreed one, and what tells of it
//!   ([`MADE`]), which is listed and not compared, since it is no part of the model;
//! * what a download leaves ([`PROVENANCE_FILE`], an empty `.lock`), listed too.
//!
//! Links are followed as by who makes such copies: within the folder, or to the `blobs` of a Hugging Face cache.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use fedprune_checkpoint::{AGREEMENT_PICTURE_FILE, Checkpoint, PROVENANCE_FILE, is_weight_file};
use fedprune_federation::ballot::MAX_BODY_BYTES;
use fedprune_mask::ballot::BallotHeader;
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::{Ballot, Digest, MatrixSource};
use memmap2::Mmap;

use super::ledger::{Ledger, failed};
use crate::report::{Area, Outcome, chain, harmless};

/// The mask beside pruned weights, as `fedprune apply` names it.
pub const MASK_FILE: &str = "pruning-mask.fedprune";
/// What `fedprune apply` writes anew and what is no part of the model.
pub const MADE: [&str; 4] = [CARD, "pruning-recipe.toml", "pruning-sparsity.svg", AGREEMENT_PICTURE_FILE];

const CARD: &str = "README.md";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// What a download holds while it runs, and leaves behind empty.
const LOCK: &str = ".lock";
/// Most files of a folder.
const MAX_FILES: usize = 1 << 16;
/// Files that are named in a report, of each kind.
const MAX_NAMED: usize = 20;
/// Bytes compared at a time.
const PART: usize = 1 << 18;
/// The largest file that is carried along into a copy.
const MAX_CARRIED_BYTES: u64 = fedprune_checkpoint::write::MAX_CARRIED_BYTES;

/// What was found.
#[derive(Default)]
struct Found {
    same: Vec<String>,
    made: Vec<String>,
    wrong: Vec<String>,
    mask: Option<PathBuf>,
}

/// Compares every file of the copy that is no weights; returns the mask file, if it has one.
pub(super) fn compare(base: &Checkpoint, copy: &Checkpoint, ledger: &mut Ledger) -> Option<PathBuf> {
    let (mut found, missing) = match (list(copy.dir()), list(base.dir())) {
        (Ok(names), Ok(of_base)) => (look(base, copy, &names), missing(base, &names, &of_base)),
        (Err(why), _) | (_, Err(why)) => (Found { wrong: vec![why], ..Found::default() }, Vec::new()),
    };
    let mut compared = format!("{} with those of the base model, byte for byte", named(&found.same));
    if !found.made.is_empty() {
        compared.push_str("; not compared, since whoever pruned or fetched it made them: ");
        compared.push_str(&named(&found.made));
    }
    if !missing.is_empty() {
        compared.push_str("; of the base model's, it does not have ");
        compared.push_str(&named(&missing));
    }
    let more = found.wrong.len().saturating_sub(MAX_NAMED);
    found.wrong.truncate(MAX_NAMED);
    let outcome = match found.wrong.as_slice() {
        [] => Outcome::Passed,
        some if more > 0 => failed(format!("{}; and {more} more", some.join("; "))),
        some => failed(some.join("; ")),
    };
    ledger.add(Area::Pruned, None, "other files of the pruned folder".to_owned(), compared, outcome);
    found.mask
}

/// The first names, and how many more there are.
fn named(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(MAX_NAMED).map(String::as_str).collect();
    let more = names.len().saturating_sub(shown.len());
    match (shown.as_slice(), more) {
        ([], _) => "nothing".to_owned(),
        (some, 0) => some.join(", "),
        (some, more) => format!("{} and {more} more", some.join(", ")),
    }
}

/// Names in a folder, sorted.
fn list(folder: &Path) -> Result<BTreeSet<OsString>, String> {
    let failed = |error: io::Error| format!("`{}` cannot be listed: {error}", folder.display());
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.insert(entry.map_err(failed)?.file_name());
        if names.len() > MAX_FILES {
            return Err(format!("`{}` has more than {MAX_FILES} files", folder.display()));
        }
    }
    Ok(names)
}

/// The names of a checkpoint's own weight files, and of the index that it is read by.
fn own_weights(checkpoint: &Checkpoint) -> BTreeSet<&OsStr> {
    let mut names: BTreeSet<&OsStr> = checkpoint.shards().filter_map(Path::file_name).collect();
    if !names.contains(OsStr::new(SINGLE)) {
        names.insert(OsStr::new(INDEX));
    }
    names
}

/// Looks at each file of the copy.
fn look(base: &Checkpoint, copy: &Checkpoint, names: &BTreeSet<OsString>) -> Found {
    let mut found = Found::default();
    let weights = own_weights(copy);
    for name in names.iter().filter(|name| !weights.contains(name.as_os_str())) {
        let shown = format!("`{}`", harmless(&name.to_string_lossy()));
        let text = name.to_str().unwrap_or_default();
        let path = copy.dir().join(name);
        // that a file cannot be looked at matters only after what must not be there at all
        let opened = open_within(copy.dir(), &path);
        let is_empty = |file: &File| file.metadata().is_ok_and(|metadata| metadata.len() == 0);
        let downloaded = text == PROVENANCE_FILE || (text == LOCK && opened.as_ref().is_ok_and(is_empty));
        if text.starts_with('.') && !downloaded {
            found.wrong.push(format!("{shown} is hidden, and a pruned copy has no such files"));
            continue;
        }
        let theirs = counterpart(base.dir(), text);
        let file = match opened {
            Ok(file) => file,
            Err(why) => {
                found.wrong.push(format!("{shown} {why}"));
                continue;
            }
        };
        if text == MASK_FILE {
            found.mask = Some(path);
        } else if downloaded || MADE.contains(&text) {
            found.made.push(shown);
        } else if let Some(theirs) = theirs {
            if is_weight_file(text) {
                found.wrong.push(format!("{shown} is unpruned weights of the base model, which no pruned copy has"));
                continue;
            }
            match open_regular(&theirs).and_then(|theirs| same(file, theirs)) {
                Ok(true) => found.same.push(shown),
                Ok(false) => found.wrong.push(format!("{shown} is not that of the base model")),
                Err(error) => found.wrong.push(format!("{shown} cannot be compared: {error}")),
            }
        } else {
            found.wrong.push(format!("{shown} is not in the base model"));
        }
    }
    found
}

/// What a file of the copy is a copy of: the file of that name, or the card, which is kept as `README.base.md`, or with a
/// number where the base model has that already.
fn counterpart(base: &Path, name: &str) -> Option<PathBuf> {
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    let path = base.join(name);
    if !name.is_empty() && is_there(&path) {
        return Some(path);
    }
    let number = name.strip_prefix("README.base").and_then(|rest| rest.strip_suffix(".md"))?;
    let digits = number.strip_prefix('-').unwrap_or_default();
    let kept = number.is_empty() || (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
    let card = base.join(CARD);
    (kept && is_there(&card)).then_some(card)
}

/// What a copy of the base model would have and this has not. It is told, and no failure: a base model that was fetched
/// otherwise has other files beside it.
fn missing(base: &Checkpoint, names: &BTreeSet<OsString>, of_base: &BTreeSet<OsString>) -> Vec<String> {
    let weights = own_weights(base);
    let carried = |name: &&OsString| {
        let Some(text) = name.to_str() else { return false };
        let left_out = text.starts_with('.') || text == PROVENANCE_FILE || text == MASK_FILE || MADE.contains(&text);
        let file = || fs::metadata(base.dir().join(name)).ok().filter(fs::Metadata::is_file);
        !left_out
            && !weights.contains(name.as_os_str())
            && !is_weight_file(text)
            && file().is_some_and(|file| file.len() <= MAX_CARRIED_BYTES)
    };
    let lacking = of_base.iter().filter(|name| !names.contains(*name)).filter(carried);
    lacking.map(|name| format!("`{}`", harmless(&name.to_string_lossy()))).collect()
}

/// Opens a regular file that links do not lead out of `folder`; why not, else.
fn open_within(folder: &Path, path: &Path) -> Result<File, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let own = folder.canonicalize().map_err(unreadable)?;
    // the cache: `models--…/snapshots/REVISION/config.json` is a link to `models--…/blobs/HASH`
    let blobs = own.parent().filter(|parent| parent.ends_with("snapshots")).and_then(Path::parent);
    let blobs = blobs.map(|repository| repository.join("blobs"));
    let target = path.canonicalize().map_err(unreadable)?;
    if !target.starts_with(&own) && !blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Err("is a link out of the folder".to_owned());
    }
    // asked before it is opened: opening a pipe waits for a writer
    if !fs::metadata(&target).map_err(unreadable)?.is_file() {
        return Err("is no regular file, and a pruned copy has nothing else".to_owned());
    }
    File::open(&target).map_err(unreadable)
}

fn open_regular(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file in the base model"));
    }
    File::open(path)
}

/// Compares two files, part by part, up to the first difference.
fn same(a: File, b: File) -> io::Result<bool> {
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (BufReader::with_capacity(PART, a), BufReader::with_capacity(PART, b));
    loop {
        let (left, right) = (a.fill_buf()?, b.fill_buf()?);
        let both = left.len().min(right.len());
        if both == 0 {
            return Ok(left.is_empty() && right.is_empty());
        }
        if left.get(..both) != right.get(..both) {
            return Ok(false);
        }
        a.consume(both);
        b.consume(both);
    }
}

/// Compares the mask file of a copy with the mask that the ballots come to, if that is known.
pub(super) fn compare_mask(path: &Path, base: &Checkpoint, model: Digest, root: Option<Digest>, ledger: &mut Ledger) {
    let subject = format!("`{MASK_FILE}` of the pruned folder");
    let Some(root) = root else {
        let why = "not all masks could be recomputed".to_owned();
        ledger.add(Area::Pruned, None, subject, "its mask with that of the round", Outcome::NotChecked { why });
        return;
    };
    let compared = format!("its mask root with {root}, which the ballots come to");
    let outcome = match root_of(path, base, model) {
        Ok(found) if found == root => Outcome::Passed,
        Ok(found) => failed(format!("it is another mask, of root {found}")),
        Err(why) => failed(why),
    };
    ledger.add(Area::Pruned, None, subject, compared, outcome);
}

/// The root of an explicit mask for the base model.
fn root_of(path: &Path, base: &Checkpoint, model: Digest) -> Result<Digest, String> {
    let file = open_within(base_of(path), path).map_err(|why| format!("it {why}"))?;
    let unreadable = |error: io::Error| format!("it cannot be read: {error}");
    let bytes = file.metadata().map_err(unreadable)?.len();
    if bytes == 0 || bytes > MAX_BODY_BYTES {
        return Err(format!("it has {bytes} bytes, as no mask has"));
    }
    // SAFETY: the map is read-only and of a regular file. It is sound as long as nobody truncates or rewrites the file
    // meanwhile, which no reader of mapped files can enforce, and which holds for the weights beside it as well.
    let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
    let mask = Ballot::parse(&map, base.layout())
        .map_err(|error| format!("it is no mask of this model: {}", chain(&error)))?;
    if !matches!(mask.header(), BallotHeader::Mask(_)) {
        return Err("it is the ballot of one member, and no mask".to_owned());
    }
    if mask.model() != model {
        return Err(format!(
            "it says that it is of a model with content digest {}, and {model} is the round's",
            mask.model()
        ));
    }
    let mut digests = Vec::with_capacity(base.layout().matrices().len());
    for index in 0..base.layout().matrices().len() {
        let bits = mask.mask(index, base.matrix(index)).map_err(|error| format!("it is damaged: {}", chain(&error)))?;
        base.done_with(index);
        digests.push(bits.digest());
    }
    Ok(mask_root(base.layout().digest(), digests))
}

/// The folder of a file in it.
fn base_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_compared_to_the_last_byte() {
        let folder = tempfile::tempdir().unwrap();
        let equal = |a: &[u8], b: &[u8]| {
            let (left, right) = (folder.path().join("a"), folder.path().join("b"));
            fs::write(&left, a).unwrap();
            fs::write(&right, b).unwrap();
            same(File::open(left).unwrap(), File::open(right).unwrap()).unwrap()
        };
        let long = vec![7; 2 * PART + 1];
        let mut other = long.clone();
        *other.last_mut().unwrap() ^= 1;
        assert!(equal(b"", b"") && equal(&long, &long));
        assert!(!equal(&long, &other) && !equal(b"", b"1") && !equal(&long, &long[1..]));
    }

    #[test]
    fn a_card_is_kept_under_some_names_only() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| counterpart(folder.path(), name);
        assert_eq!(of("README.base.md"), None);
        fs::write(folder.path().join("README.md"), "x").unwrap();
        for name in ["README.base.md", "README.base-2.md"] {
            assert_eq!(of(name), Some(folder.path().join("README.md")), "{name}");
        }
        for name in ["README.base-.md", "README.base-x.md", "README.base2.md", "README.based.md", "other.md", ""] {
            assert_eq!(of(name), None, "{name}");
        }
        fs::write(folder.path().join("README.base.md"), "y").unwrap();
        assert_eq!(of("README.base.md"), Some(folder.path().join("README.base.md")));
    }
}
