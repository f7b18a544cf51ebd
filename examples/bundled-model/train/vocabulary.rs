//! The vocabulary: byte-level BPE, trained on the training text alone, in the `tokenizers` format.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

/// The token that begins a stretch of text; id 0.
pub const BEGIN: &str = "<|bos|>";
/// The token that ends a stretch of text; id 1.
pub const END: &str = "<|eos|>";
/// Id of [`BEGIN`].
pub const BEGIN_ID: u32 = 0;
/// Id of [`END`].
pub const END_ID: u32 = 1;

/// Trains a vocabulary of exactly `size` tokens on `texts` and saves it at `path`
/// (`tokenizer.json`). Encoding adds no special tokens.
///
/// Errors: too little text for `size` tokens; `path` cannot be written.
pub fn train(texts: &[String], size: usize, path: &Path) -> Result<Tokenizer> {
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(size)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(BEGIN, true), AddedToken::from(END, true)])
        .build();
    // No space is put before the first word: decoding an encoding gives the text back.
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<NormalizerWrapper>)
        .with_pre_tokenizer(Some(byte_level))
        .with_post_processor(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(|error| anyhow!(error))?;
    tokenizer
        .train(&mut trainer, texts.iter())
        .and_then(|trained| trained.save(path, true))
        .map_err(|error| anyhow!(error))
        .with_context(|| format!("training the vocabulary `{}`", path.display()))?;
    load(path, size)
}

/// Loads a vocabulary that [`train`] saved and checks its size and special tokens.
///
/// Errors: `path` is unreadable or holds another vocabulary.
pub fn load(path: &Path, size: usize) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::from_file(path)
        .map_err(|error| anyhow!(error))
        .with_context(|| format!("loading the vocabulary `{}`", path.display()))?;
    let found = tokenizer.get_vocab_size(true);
    ensure!(found == size, "the vocabulary has {found} tokens instead of {size}: too little text?");
    ensure!(
        tokenizer.token_to_id(BEGIN) == Some(BEGIN_ID) && tokenizer.token_to_id(END) == Some(END_ID),
        "`{BEGIN}` and `{END}` must be the tokens {BEGIN_ID} and {END_ID}"
    );
    Ok(tokenizer)
}

/// The tokens of `text`, no special tokens added.
///
/// Errors: those of the `tokenizers` crate.
pub fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode(text, false).map_err(|error| anyhow!(error))?;
    Ok(encoding.get_ids().to_vec())
}

/// One stream of tokens: each text between [`BEGIN_ID`] and [`END_ID`].
///
/// Errors: those of [`encode`].
pub fn encode_stream(tokenizer: &Tokenizer, texts: &[String]) -> Result<Vec<u32>> {
    let mut stream = Vec::new();
    for text in texts {
        stream.push(BEGIN_ID);
        stream.extend(encode(tokenizer, text)?);
        stream.push(END_ID);
    }
    Ok(stream)
}
