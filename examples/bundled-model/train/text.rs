//! The public-domain sources and how each is cut into training, held-out and silo text.
//!
//! Every source is divided into equal strata; one contiguous held-out passage and one contiguous
//! silo passage are taken from the inside of each stratum, on sentence boundaries. What is left is
//! the training text. The three never overlap, so neither the held-out text nor the silos were seen
//! by the weights or by the vocabulary.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// One stretch of the public-domain text with a character of its own.
pub struct Source {
    /// The name of its silo: `silos/NAME.txt`.
    pub name: &'static str,
    /// File within the text folder.
    pub file: &'static str,
    /// Which of the file's blocks, separated by blank lines, belong to the source; all when `None`.
    pub blocks: Option<&'static [usize]>,
    /// Whether the file's paragraphs are wrapped at a fixed width and must be joined to lines.
    pub wrapped: bool,
    /// Number of strata, hence of held-out passages and of silo passages.
    pub passages: usize,
    /// Bytes of held-out text to take, all passages together.
    pub held_out_bytes: usize,
    /// Bytes of silo text to take, all passages together.
    pub silo_bytes: usize,
}

/// The sources of the bundled model.
///
/// `speeches_sotu.txt` holds fifteen messages on the state of the Union, one to a block: Roosevelt
/// 1945, Truman 1946–1953 (the last out of order, at 9), Eisenhower 1953–1958.
pub const SOURCES: [Source; 4] = [
    Source {
        name: "austen_emma",
        file: "novels_austen.txt",
        blocks: None,
        wrapped: false,
        passages: 4,
        held_out_bytes: 26_000,
        silo_bytes: 62_000,
    },
    Source {
        name: "melville_moby_dick",
        file: "novel_moby_dick.txt",
        blocks: None,
        wrapped: true,
        passages: 4,
        held_out_bytes: 26_000,
        silo_bytes: 62_000,
    },
    Source {
        name: "speeches_1945_1953",
        file: "speeches_sotu.txt",
        blocks: Some(&[0, 1, 2, 3, 4, 5, 6, 7, 9]),
        wrapped: false,
        passages: 3,
        held_out_bytes: 16_000,
        silo_bytes: 62_000,
    },
    Source {
        name: "speeches_1953_1958",
        file: "speeches_sotu.txt",
        blocks: Some(&[8, 10, 11, 12, 13, 14]),
        wrapped: false,
        passages: 2,
        held_out_bytes: 14_000,
        silo_bytes: 62_000,
    },
];

/// The text of all sources, cut.
pub struct Corpus {
    /// Contiguous stretches to train on.
    pub training: Vec<String>,
    /// Held-out passages of all sources, a blank line between them.
    pub held_out: String,
    /// Silo name and text.
    pub silos: Vec<(&'static str, String)>,
}

/// One source's text, cut into contiguous pieces that together are the whole text.
#[derive(Debug, Default, PartialEq)]
pub struct Pieces<'a> {
    /// What is neither held out nor in a silo.
    pub training: Vec<&'a str>,
    /// One passage per stratum.
    pub held_out: Vec<&'a str>,
    /// One passage per stratum, after the stratum's held-out passage.
    pub silo: Vec<&'a str>,
}

/// Reads and cuts all of [`SOURCES`] from `text_dir`.
///
/// Errors: a file that is missing or not UTF-8; a source with fewer blocks or less text than its
/// entry asks for.
pub fn load(text_dir: &Path) -> Result<Corpus> {
    let mut corpus = Corpus { training: Vec::new(), held_out: String::new(), silos: Vec::new() };
    let mut held_out = Vec::new();
    for source in &SOURCES {
        let path = text_dir.join(source.file);
        let file = std::fs::read_to_string(&path).with_context(|| format!("reading the text `{}`", path.display()))?;
        let text = select_blocks(&file, source.blocks)
            .with_context(|| format!("`{}` is not the file expected", path.display()))?;
        let text = if source.wrapped { join_wrapped_lines(&text) } else { text };
        let pieces = cut(&text, source.passages, source.held_out_bytes, source.silo_bytes)
            .with_context(|| format!("cutting `{}` for `{}`", path.display(), source.name))?;
        corpus.training.extend(pieces.training.iter().map(|piece| tidy(piece)));
        held_out.extend(pieces.held_out.iter().map(|piece| tidy(piece)));
        let silo: Vec<String> = pieces.silo.iter().map(|piece| tidy(piece)).collect();
        corpus.silos.push((source.name, silo.join("\n\n") + "\n"));
    }
    corpus.training.retain(|piece| !piece.is_empty());
    corpus.held_out = held_out.join("\n\n") + "\n";
    Ok(corpus)
}

fn tidy(piece: &str) -> String {
    piece.trim().to_owned()
}

/// The blocks numbered `blocks` (from 0, in file order) of a file whose blocks are separated by
/// blank lines, with a blank line between them.
///
/// Errors: a block the file does not have.
pub fn select_blocks(file: &str, blocks: Option<&[usize]>) -> Result<String> {
    let Some(blocks) = blocks else { return Ok(file.to_owned()) };
    let found: Vec<&str> = file.split("\n\n").collect();
    let mut selected = Vec::with_capacity(blocks.len());
    for &block in blocks {
        let text =
            found.get(block).with_context(|| format!("it has {} blocks, but block {block} is wanted", found.len()))?;
        selected.push(text.trim());
    }
    Ok(selected.join("\n\n"))
}

/// Joins the lines of each paragraph with spaces. Indented lines (verse, inscriptions) stay lines
/// of their own.
pub fn join_wrapped_lines(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    for line in text.lines() {
        let continues =
            !line.is_empty() && !line.starts_with(char::is_whitespace) && !joined.is_empty() && !joined.ends_with('\n');
        if continues {
            joined.push(' ');
        } else if !joined.is_empty() {
            joined.push('\n');
        }
        joined.push_str(line.trim());
        if line.is_empty() {
            joined.push('\n');
        }
    }
    // A blank line between paragraphs, however many the file had.
    let mut collapsed = String::with_capacity(joined.len());
    let mut breaks = 0;
    for character in joined.chars() {
        breaks = if character == '\n' { breaks + 1 } else { 0 };
        if breaks <= 2 {
            collapsed.push(character);
        }
    }
    collapsed
}

/// Cuts `text` into `passages` strata with one held-out and one silo passage in each; sizes are
/// bytes over all passages, reached or exceeded by the rest of a sentence.
///
/// Errors: the passages would take more than half of the text.
pub fn cut(text: &str, passages: usize, held_out_bytes: usize, silo_bytes: usize) -> Result<Pieces<'_>> {
    ensure!(
        2 * (held_out_bytes + silo_bytes) <= text.len(),
        "{held_out_bytes} held-out and {silo_bytes} silo bytes are more than half of {} bytes",
        text.len()
    );
    let mut pieces = Pieces::default();
    let mut done = 0;
    for passage in 0..passages {
        let stratum_start = text.len() * passage / passages;
        let stratum_bytes = text.len() / passages;
        let gap_bytes = (stratum_bytes - (held_out_bytes + silo_bytes) / passages) / 3;

        let held_out_start = sentence_boundary(text, (stratum_start + gap_bytes).max(done));
        let held_out_end = sentence_boundary(text, held_out_start + held_out_bytes / passages);
        let silo_start = sentence_boundary(text, held_out_end + gap_bytes);
        let silo_end = sentence_boundary(text, silo_start + silo_bytes / passages);

        pieces.training.push(&text[done..held_out_start]);
        pieces.held_out.push(&text[held_out_start..held_out_end]);
        pieces.training.push(&text[held_out_end..silo_start]);
        pieces.silo.push(&text[silo_start..silo_end]);
        done = silo_end;
    }
    pieces.training.push(&text[done..]);
    Ok(pieces)
}

/// The first byte offset at or after `at` that begins a sentence: the one after white space that
/// follows a full stop, question or exclamation mark, or a quotation mark after one of these. The
/// end of the text when no sentence begins there.
fn sentence_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at += 1;
    }
    let mut ended = false;
    let mut crossed_space = false;
    for (offset, character) in text[at..].char_indices() {
        match character {
            '.' | '!' | '?' => (ended, crossed_space) = (true, false),
            '"' | '”' | '’' | '\'' if ended && !crossed_space => {}
            space if space.is_whitespace() && ended => crossed_space = true,
            _ if ended && crossed_space => return at + offset,
            _ => ended = false,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(count: usize) -> String {
        (0..count).map(|i| format!("This is sentence number {i}, said “thus.” ")).collect()
    }

    #[test]
    fn the_pieces_are_the_text_and_do_not_overlap() {
        let text = sentences(400);
        let pieces = cut(&text, 3, 1500, 3000).unwrap();
        assert_eq!((pieces.held_out.len(), pieces.silo.len()), (3, 3));
        let mut all: Vec<&str> =
            [&pieces.training, &pieces.held_out, &pieces.silo].into_iter().flatten().copied().collect();
        all.sort_by_key(|piece| piece.as_ptr());
        assert_eq!(all.concat(), text);
        let held_out: usize = pieces.held_out.iter().map(|piece| piece.len()).sum();
        assert!((1500..1500 + 3 * 60).contains(&held_out), "{held_out}");
    }

    #[test]
    fn passages_begin_with_a_sentence() {
        let text = sentences(400);
        let pieces = cut(&text, 4, 2000, 2000).unwrap();
        for piece in pieces.held_out.iter().chain(&pieces.silo) {
            assert!(piece.starts_with("This is"), "{piece:?}");
        }
    }

    #[test]
    fn asking_for_more_than_half_is_refused() {
        assert!(cut("Too short. Far too short.", 1, 10, 10).is_err());
    }

    #[test]
    fn wrapped_paragraphs_become_lines_and_verse_stays() {
        let text = "CHAPTER 1.\n\nCall me\nIshmael. Some\nyears ago.\n\n\n  The ribs\n  and terrors\n";
        let joined = join_wrapped_lines(text);
        assert_eq!(joined, "CHAPTER 1.\n\nCall me Ishmael. Some years ago.\n\nThe ribs\nand terrors");
    }

    #[test]
    fn blocks_are_chosen_by_number() {
        let file = "zero\n\none\n\ntwo\n\n";
        assert_eq!(select_blocks(file, Some(&[2, 0])).unwrap(), "two\n\nzero");
        assert_eq!(select_blocks(file, None).unwrap(), file);
        assert!(select_blocks(file, Some(&[9])).is_err());
    }

    #[test]
    fn a_boundary_is_found_inside_multibyte_text() {
        let text = "“Aye,” said he—“Aye!” Then silence.";
        assert_eq!(&text[sentence_boundary(text, 1)..], "Then silence.");
        assert_eq!(sentence_boundary(text, text.len() + 5), text.len());
    }
}
