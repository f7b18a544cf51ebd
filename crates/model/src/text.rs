//! From paths to text to tokens.
//!
//! Every file is one stream of text: a `.txt` file as it is; of a `.jsonl` file one field of each record,
//! joined by a blank line, as Wanda's data loader joins documents. A stream is tokenised in one piece, with
//! the special tokens that `tokenizer.json` prescribes, so that tokens are those of transformers' `tok(text)`.
//! When only its first tokens are needed, no more than the first part is tokenised.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Read;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;

use crate::ModelError;

/// Most bytes of all text files together.
pub const MAX_TEXT_BYTES: u64 = 1 << 30;
/// Most bytes of one text that is tokenised whole: the tokenizer takes about 100 times as much memory.
pub const MAX_WHOLE_BYTES: u64 = 32 << 20;
/// Tokens beyond those needed that must follow a cut; far more than a tokenizer looks ahead.
const GUARD_TOKENS: usize = 512;
/// Bytes per token first guessed when a text is cut.
const GUESSED_TOKEN_BYTES: usize = 6;
/// Most entries of all folders together.
pub const MAX_ENTRIES: usize = 1 << 20;
/// Deepest nesting of folders.
pub const MAX_DEPTH: usize = 64;
/// Largest `tokenizer.json`; that of Llama 3 has 17 MB.
pub const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// What separates the records of a `.jsonl` file.
const RECORD_SEPARATOR: &str = "\n\n";

/// The model's own tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model folder.
    ///
    /// # Errors
    /// [`ModelError::TokenizerMissing`], [`ModelError::TokenizerTooLarge`], [`ModelError::Tokenizer`].
    pub fn open(model: &Path) -> Result<Self, ModelError> {
        let path = model.join("tokenizer.json");
        if !path.is_file() {
            return Err(ModelError::TokenizerMissing { path });
        }
        let (bytes, more) = read_at_most(&path, MAX_TOKENIZER_BYTES)?;
        if more {
            let (bytes, limit) = (file_bytes(&path)?, MAX_TOKENIZER_BYTES);
            return Err(ModelError::TokenizerTooLarge { path, bytes, limit });
        }
        let problem = "is no tokenizer that can be read; take it anew from the model's page";
        match guarded(|| tokenizers::Tokenizer::from_bytes(&bytes)) {
            Ok(mut inner) => {
                if let tokenizers::ModelWrapper::BPE(bpe) = inner.get_model()
                    && bpe.dropout.is_some_and(|dropout| dropout != 0.0)
                {
                    let problem = "drops merges at random (`dropout`), so that no two runs read the same tokens; \
                                   set its `dropout` to null";
                    return Err(ModelError::Tokenizer { path, problem, source: "model.dropout is not 0".into() });
                }
                // settings for batches of short texts, which `tok(text)` ignores as well
                inner.with_padding(None);
                if let Err(source) = inner.with_truncation(None) {
                    return Err(ModelError::Tokenizer { path, problem, source });
                }
                Ok(Self { inner, path })
            }
            Err(source) => Err(ModelError::Tokenizer { path, problem, source }),
        }
    }

    /// The token ids of `text`, special tokens included.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.encode_special(text, true)
    }

    /// The text that one token stands for by itself, white space included; none of an id that there is not, or of bytes
    /// that are no text by themselves.
    pub fn text_of(&self, token: u32) -> Option<String> {
        self.inner.id_to_token(token)?;
        let text = guarded(|| self.inner.decode(&[token], false)).ok()?;
        (!text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER)).then_some(text)
    }

    fn encode_special(&self, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
        match guarded(|| self.inner.encode_fast(text, special)) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(source) => {
                let problem = "failed to tokenise the text";
                Err(ModelError::Tokenizer { path: self.path.clone(), problem, source })
            }
        }
    }

    /// The first `needed` token ids of `text`, or all when there are fewer; with the `special` tokens that the
    /// tokenizer adds to a text, or without.
    ///
    /// The text is cut where at least [`GUARD_TOKENS`] more tokens follow those needed: a tokenizer decides by
    /// the rest of a word and one or two words ahead, so the cut changes only tokens that are thrown away.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`].
    pub fn encode_first(&self, text: &str, needed: usize, special: bool) -> Result<Vec<u32>, ModelError> {
        let guarded = needed.saturating_add(GUARD_TOKENS);
        let mut bytes = guarded.saturating_mul(GUESSED_TOKEN_BYTES);
        while bytes < text.len() {
            let mut tokens = self.encode_special(&text[..text.floor_char_boundary(bytes)], special)?;
            if tokens.len() >= guarded {
                tokens.truncate(needed);
                return Ok(tokens);
            }
            bytes = bytes.saturating_mul(2);
        }
        let mut tokens = self.encode_special(text, special)?;
        tokens.truncate(needed);
        Ok(tokens)
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs code of the tokenizer library, which panics on some damaged files, and turns a panic into an error.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    survived(call)
        .unwrap_or_else(|| Err("the file is damaged in a way that the tokenizer library does not survive".into()))
}

/// Runs code of a library that panics on some damaged files; nothing if it did. The panic is not reported.
pub(crate) fn survived<T>(call: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                report(info);
            }
        }));
    });
    let before = GUARDED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(before);
    result.ok()
}

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Plain,
    JsonLines,
}

/// A text file that was found, not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    path: PathBuf,
    format: Format,
    bytes: u64,
}

impl TextFile {
    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size when it was found.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads its text; `field` is the one taken from each record of a `.jsonl` file.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::NotUtf8`], [`ModelError::Record`], and [`ModelError::TooMuchText`]
    /// when the file is larger than it was when found.
    pub fn read(&self, field: &str) -> Result<String, ModelError> {
        let (bytes, more) = read_at_most(&self.path, self.bytes)?;
        if more {
            return Err(ModelError::TooMuchText {
                path: self.path.clone(),
                bytes: file_bytes(&self.path)?,
                limit: self.bytes,
                scope: "it had a moment ago",
                remedy: "pass text that nobody is writing to",
            });
        }
        let text = String::from_utf8(bytes).map_err(|error| ModelError::NotUtf8 {
            path: self.path.clone(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        match self.format {
            Format::Plain => Ok(text),
            Format::JsonLines => self.records(&text, field),
        }
    }

    /// The field of every record; lines of white space are skipped.
    fn records(&self, lines: &str, field: &str) -> Result<String, ModelError> {
        let mut text = String::new();
        let mut first = true;
        for (index, line) in lines.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let refuse = |problem| Err(ModelError::Record { path: self.path.clone(), line: index + 1, problem });
            let record: serde_json::Value = match serde_json::from_str(line) {
                Ok(record) => record,
                Err(error) => return refuse(format!("is no JSON record: {error}")),
            };
            let Some(record) = record.as_object() else {
                return refuse("is no JSON object, such as {\"text\": \"…\"}".to_owned());
            };
            let Some(value) = record.get(field) else {
                let fields: Vec<String> = record.keys().take(8).map(|key| format!("`{}`", shorten(key))).collect();
                return refuse(format!("has no field `{field}`, only {}; name one with --field", fields.join(", ")));
            };
            let Some(value) = value.as_str() else {
                return refuse(format!("field `{field}` is no string; use --field to name the one with text"));
            };
            if !first {
                text.push_str(RECORD_SEPARATOR);
            }
            first = false;
            text.push_str(value);
        }
        Ok(text)
    }
}

/// The text files among `paths`: files as given, folders searched through all their subfolders and sorted by path.
///
/// Other files in folders are ignored; a file given by name must be `.txt` or `.jsonl`. Links to files are
/// followed, links to folders are not.
///
/// # Errors
/// [`ModelError::Read`], [`ModelError::NotText`], [`ModelError::NoFiles`], [`ModelError::FolderTooLarge`].
pub fn find_text_files(paths: &[PathBuf]) -> Result<Vec<TextFile>, ModelError> {
    let mut files = Vec::new();
    let mut entries = 0;
    for path in paths {
        let metadata = fs::metadata(path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
        if metadata.is_dir() {
            let mut found = Vec::new();
            walk(path, 0, &mut entries, &mut found)?;
            found.sort_by(|a, b| a.path.cmp(&b.path));
            files.extend(found);
        } else {
            let Some(format) = format_of(path) else {
                return Err(ModelError::NotText { path: path.clone() });
            };
            if !metadata.is_file() {
                return Err(ModelError::NotAFile { path: path.clone() });
            }
            files.push(TextFile { path: path.clone(), format, bytes: metadata.len() });
        }
    }
    if files.is_empty() {
        let listed: Vec<String> = paths.iter().take(8).map(|path| format!("`{}`", path.display())).collect();
        return Err(ModelError::NoFiles(listed.join(", ")));
    }
    Ok(files)
}

fn walk(folder: &Path, depth: usize, entries: &mut usize, found: &mut Vec<TextFile>) -> Result<(), ModelError> {
    let failed = |source| ModelError::Read { path: folder.to_owned(), source };
    let too_large = |problem| ModelError::FolderTooLarge { path: folder.to_owned(), problem };
    if depth > MAX_DEPTH {
        return Err(too_large(format!("is nested more than {MAX_DEPTH} folders deep")));
    }
    for entry in fs::read_dir(folder).map_err(failed)? {
        *entries += 1;
        if *entries > MAX_ENTRIES {
            return Err(too_large(format!("brings the folders to more than {MAX_ENTRIES} entries")));
        }
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let failed = |source| ModelError::Read { path: path.clone(), source };
        if entry.file_type().map_err(failed)?.is_dir() {
            walk(&path, depth + 1, entries, found)?;
        } else if let Some(format) = format_of(&path) {
            let metadata = fs::metadata(&path).map_err(failed)?;
            if metadata.is_file() {
                found.push(TextFile { path, format, bytes: metadata.len() });
            }
        }
    }
    Ok(())
}

fn format_of(path: &Path) -> Option<Format> {
    let extension = path.extension()?;
    if extension.eq_ignore_ascii_case("txt") {
        Some(Format::Plain)
    } else if extension.eq_ignore_ascii_case("jsonl") {
        Some(Format::JsonLines)
    } else {
        None
    }
}

/// Keeps the size of all text that is read within [`MAX_TEXT_BYTES`].
#[derive(Debug, Default)]
pub(crate) struct TextBudget {
    bytes: u64,
}

impl TextBudget {
    /// Accounts for a file before it is read.
    pub(crate) fn take(&mut self, file: &TextFile) -> Result<(), ModelError> {
        self.bytes = self.bytes.saturating_add(file.bytes);
        if self.bytes > MAX_TEXT_BYTES {
            return Err(ModelError::TooMuchText {
                path: file.path.clone(),
                bytes: self.bytes,
                limit: MAX_TEXT_BYTES,
                scope: "that are read for one command",
                remedy: "pass fewer or smaller files; sequential sampling stops reading at the last window",
            });
        }
        Ok(())
    }

    /// Refuses to tokenise more than [`MAX_WHOLE_BYTES`] in one piece.
    pub(crate) fn check_whole(path: &Path, text: &str) -> Result<(), ModelError> {
        let bytes = text.len() as u64;
        if bytes <= MAX_WHOLE_BYTES {
            return Ok(());
        }
        Err(ModelError::TooMuchText {
            path: path.to_owned(),
            bytes,
            limit: MAX_WHOLE_BYTES,
            scope: "that are tokenised in one piece",
            remedy: "split it, for instance with `split -C 16m --additional-suffix=.txt`, or use \
                     --sampling sequential or --max-windows, which tokenise only what they need",
        })
    }
}

/// At most `limit` bytes of a file, and whether there are more.
fn read_at_most(path: &Path, limit: u64) -> Result<(Vec<u8>, bool), ModelError> {
    let failed = |source| ModelError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    let more = bytes.len() as u64 > limit;
    Ok((bytes, more))
}

fn file_bytes(path: &Path) -> Result<u64, ModelError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(source) => Err(ModelError::Read { path: path.to_owned(), source }),
    }
}

fn shorten(name: &str) -> String {
    name.escape_debug().take(40).collect()
}
