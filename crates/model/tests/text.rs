//! Text to windows: pinned on a small vocabulary, and every bad input with its message.

use std::fs;
use std::path::{Path, PathBuf};
use std::slice;

use fedprune_checkpoint::{Checkpoint, ModelConfig};
use fedprune_model::text::find_text_files;
use fedprune_model::{
    Bos, ModelError, Sampling, Tokenizer, WindowRequest, Windows, calibration_windows, evaluation_windows,
};
use tempfile::TempDir;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama");

/// Words `w0` … `w99` to ids 0 … 99, `<s>` (id 100) at the start as `tokenizer.json` prescribes.
fn tokenizer_json() -> String {
    let vocabulary: Vec<String> = (0..100).map(|word| format!("\"w{word}\": {word}")).collect();
    format!(
        r#"{{"version": "1.0", "truncation": {{"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}},
        "padding": null, "added_tokens": [{{"id": 100, "content": "<s>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true}}],
        "normalizer": null, "pre_tokenizer": {{"type": "WhitespaceSplit"}},
        "post_processor": {{"type": "TemplateProcessing", "single": [{{"SpecialToken": {{"id": "<s>", "type_id": 0}}}},
        {{"Sequence": {{"id": "A", "type_id": 0}}}}], "pair": [{{"Sequence": {{"id": "A", "type_id": 0}}}}],
        "special_tokens": {{"<s>": {{"id": "<s>", "ids": [100], "tokens": ["<s>"]}}}}}},
        "decoder": null, "model": {{"type": "WordLevel", "vocab": {{{}, "<s>": 100}}, "unk_token": "w0"}}}}"#,
        vocabulary.join(", ")
    )
}

struct Setting {
    folder: TempDir,
    tokenizer: Tokenizer,
    config: ModelConfig,
}

impl Setting {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer.json"), tokenizer_json()).unwrap();
        let tokenizer = Tokenizer::open(folder.path()).unwrap();
        let config = Checkpoint::open(Path::new(FIXTURE)).unwrap().config().clone();
        Self { folder, tokenizer, config }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join("text").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// A file of `count` words from `w{first}` on, wrapping at 100.
    fn words(&self, name: &str, first: usize, count: usize) -> PathBuf {
        let words: Vec<String> = (first..first + count).map(|word| format!("w{}", word % 100)).collect();
        self.write(name, words.join(" "))
    }

    fn windows(
        &self,
        paths: &[PathBuf],
        samples: usize,
        sequence_tokens: usize,
        sampling: Sampling,
    ) -> Result<Windows, ModelError> {
        let request = WindowRequest {
            samples,
            minimum_samples: samples,
            bos: Bos::EachText,
            sequence_tokens,
            sampling,
            field: "text".to_owned(),
        };
        calibration_windows(&self.config, &self.tokenizer, paths, &request)
    }

    fn text(&self) -> PathBuf {
        self.folder.path().join("text")
    }
}

fn message<T>(result: Result<T, ModelError>) -> String {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is missing from: {message}");
    }
}

#[test]
fn sequential_windows_are_those_of_each_file_in_turn() {
    let setting = Setting::new();
    setting.words("b/later.txt", 50, 8);
    setting.words("a.txt", 1, 7); // 8 tokens with <s>: two windows of 3, two tokens dropped
    setting.write("notes.md", "ignored");
    let windows = setting.windows(&[setting.text()], 3, 3, Sampling::Sequential).unwrap();
    assert_eq!(windows.windows, [[100, 1, 2], [3, 4, 5], [100, 50, 51]]);
    let (a, b) = (&windows.documents[0], &windows.documents[1]);
    assert!(a.path.ends_with("text/a.txt") && b.path.ends_with("b/later.txt"));
    assert_eq!((a.tokens, a.windows, a.bytes), (8, 2, 20));
    assert_eq!((b.tokens, b.windows), (3, 1), "no more is tokenised than the last window needs");
    assert_eq!(windows.tokens(), 9);
}

#[test]
fn sequential_sampling_stops_before_files_that_it_does_not_need() {
    let setting = Setting::new();
    let first = setting.words("a.txt", 1, 7);
    let broken = setting.write("b.txt", [0xff]);
    let windows = setting.windows(&[first, broken.clone()], 2, 3, Sampling::Sequential).unwrap();
    assert_eq!(windows.documents.len(), 1);
    assert_says(&message(setting.windows(&[broken], 2, 3, Sampling::Sequential)), &["b.txt", "UTF-8"]);
}

#[test]
fn a_long_text_is_cut_without_a_trace() {
    let setting = Setting::new();
    let path = setting.words("long.txt", 0, 20_000);
    let all =
        evaluation_windows(&setting.config, &setting.tokenizer, slice::from_ref(&path), "text", 128, None).unwrap();
    assert_eq!(all.windows.len(), 20_001 / 128);
    assert_eq!(all.documents[0].tokens, 20_001);
    for count in [1, 7, 120] {
        let first =
            evaluation_windows(&setting.config, &setting.tokenizer, slice::from_ref(&path), "text", 128, Some(count))
                .unwrap();
        assert_eq!(first.windows, all.windows[..count]);
        assert_eq!(first.documents[0].tokens, count as u64 * 128);
    }
}

#[test]
fn random_windows_are_pinned() {
    let setting = Setting::new();
    setting.words("a.txt", 1, 30);
    setting.words("b.txt", 60, 20);
    setting.words("c.txt", 90, 2); // too short for any window
    let sampling = Sampling::Random { seed: 0 };
    let windows = setting.windows(&[setting.text()], 8, 4, sampling).unwrap();
    let starts: Vec<u32> = windows.windows.iter().map(|window| window[0]).collect();
    assert_eq!(starts, RANDOM_STARTS);
    for window in &windows.windows {
        assert!(window.windows(2).all(|pair| pair[1] == pair[0] + 1 || pair[0] == 100), "{window:?}");
    }
    assert_eq!(windows, setting.windows(&[setting.text()], 8, 4, sampling).unwrap());
    assert_ne!(windows, setting.windows(&[setting.text()], 8, 4, Sampling::Random { seed: 1 }).unwrap());
    let taken: Vec<u64> = windows.documents.iter().map(|document| document.windows).collect();
    assert_eq!(taken.iter().sum::<u64>(), 8);
    assert_eq!(taken[2], 0);
}

/// First tokens of the windows above; computed as well by an independent program.
const RANDOM_STARTS: [u32; 8] = [70, 73, 27, 67, 64, 8, 3, 10];

#[test]
fn every_position_is_drawn_about_as_often() {
    let setting = Setting::new();
    let a = setting.words("a.txt", 0, 11); // 12 tokens: 9 positions of 4
    let b = setting.words("b.txt", 50, 6); // 7 tokens: 4 positions
    // 12 + 7 tokens allow 4 windows a time
    let mut counts = std::collections::BTreeMap::new();
    for seed in 0..2_600 {
        for window in setting.windows(&[a.clone(), b.clone()], 4, 4, Sampling::Random { seed }).unwrap().windows {
            *counts.entry(window).or_insert(0) += 1;
        }
    }
    assert_eq!(counts.len(), 13);
    assert!(counts.values().all(|count| (690..910).contains(count)), "{counts:?}");
}

#[test]
fn records_are_joined_by_a_blank_line() {
    let setting = Setting::new();
    let path = setting.write(
        "records.jsonl",
        "{\"text\": \"w1 w2\", \"body\": \"w9\"}\n\n  \n{\"text\": \"w3\", \"body\": \"w8\"}\r\n",
    );
    let files = find_text_files(slice::from_ref(&path)).unwrap();
    assert_eq!(files[0].read("text").unwrap(), "w1 w2\n\nw3");
    assert_eq!(files[0].read("body").unwrap(), "w9\n\nw8");
    let windows = setting.windows(&[path], 1, 4, Sampling::Sequential).unwrap();
    assert_eq!(windows.windows, [[100, 1, 2, 3]]);
}

#[test]
fn records_that_cannot_be_read_are_named_by_line() {
    let setting = Setting::new();
    for (line, parts) in [
        ("{\"text\": ", ["is no JSON record", "line 3"]),
        ("[1, 2]", ["is no JSON object", "line 3"]),
        ("{\"body\": \"w1\"}", ["has no field `text`, only `body`", "--field"]),
        ("{\"text\": 7}", ["field `text` is no string", "--field"]),
    ] {
        let path = setting.write("bad.jsonl", format!("{{\"text\": \"w1\"}}\n\n{line}\n"));
        let said = message(find_text_files(&[path]).unwrap()[0].read("text"));
        assert_says(&said, &parts);
        assert_says(&said, &["bad.jsonl"]);
    }
}

#[test]
fn text_that_is_no_text_is_refused() {
    let setting = Setting::new();
    let path = setting.write("latin.txt", b"caf\xe9 au lait");
    assert_says(&message(setting.windows(&[path], 1, 2, Sampling::Sequential)), &["latin.txt", "byte 3", "iconv"]);
    let path = setting.write("paper.pdf", "w1 w2");
    assert_says(&message(setting.windows(&[path], 1, 2, Sampling::Sequential)), &["paper.pdf", ".jsonl"]);
    let missing = setting.text().join("missing.txt");
    assert_says(&message(setting.windows(&[missing], 1, 2, Sampling::Sequential)), &["missing.txt", "cannot be read"]);
    let empty = setting.text().join("empty");
    fs::create_dir_all(&empty).unwrap();
    assert_says(
        &message(setting.windows(&[empty], 1, 2, Sampling::Sequential)),
        &["no `.txt` or `.jsonl` file", "empty"],
    );
}

#[test]
fn too_little_text_is_refused_with_what_there_is() {
    let setting = Setting::new();
    let blank = setting.write("blank.txt", " \n\t\n");
    let random = Sampling::Random { seed: 0 };
    for sampling in [Sampling::Sequential, random] {
        assert_says(
            &message(setting.windows(slice::from_ref(&blank), 1, 2, sampling)),
            &["blank.txt", "is empty", "pass text"],
        );
        let a = setting.words("a.txt", 0, 9);
        let b = setting.words("b.txt", 0, 5);
        let said = message(setting.windows(&[a.clone(), b.clone()], 5, 4, sampling));
        assert_says(&said, &["a.txt", "b.txt", "5 windows of 4 tokens need 20 tokens", "16 tokens", "--nsamples"]);
        let said = message(setting.windows(&[a, b], 1, 11, sampling));
        assert_says(&said, &["0 tokens", "the longest file has 10", "longer files"]);
    }
    let path = setting.words("c.txt", 0, 9);
    let said = message(evaluation_windows(&setting.config, &setting.tokenizer, &[path], "text", 64, None));
    assert_says(&said, &["1 windows of 64", "longer files"]);
}

#[test]
fn requests_that_no_text_can_meet_are_refused() {
    let setting = Setting::new();
    let path = setting.words("a.txt", 0, 9);
    let ask = |samples, tokens| message(setting.windows(slice::from_ref(&path), samples, tokens, Sampling::Sequential));
    assert_says(&ask(0, 4), &["`--nsamples` must be at least 1"]);
    assert_says(&ask(1, 0), &["`--seqlen` must be at least 1"]);
    assert_says(&ask(1, 257), &["257", "max_position_embeddings", "256"]);
    let said =
        message(evaluation_windows(&setting.config, &setting.tokenizer, slice::from_ref(&path), "text", 4, Some(0)));
    assert_says(&said, &["--max-windows"]);
}

#[test]
fn a_tokenizer_that_is_missing_or_damaged_is_named() {
    let folder = tempfile::tempdir().unwrap();
    assert_says(&message(Tokenizer::open(folder.path())), &["tokenizer.json", "is missing", "copy"]);
    // what the library panics on must come out as an error too: every truncation of a real file, and more
    let whole =
        fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/bundled-model/model/tokenizer.json")).unwrap();
    for cut in (700..900).chain((0..whole.len()).step_by(4099)) {
        fs::write(folder.path().join("tokenizer.json"), &whole[..cut]).unwrap();
        assert_says(&message(Tokenizer::open(folder.path())), &["tokenizer.json", "no tokenizer"]);
    }
    let whole = String::from_utf8(whole).unwrap();
    let random =
        whole.replacen("\"dropout\": null", "\"dropout\": 0.5", 1).replacen("\"dropout\":null", "\"dropout\":0.5", 1);
    assert_ne!(random, whole);
    fs::write(folder.path().join("tokenizer.json"), random).unwrap();
    assert_says(&message(Tokenizer::open(folder.path())), &["tokenizer.json", "dropout"]);
    fs::write(folder.path().join("tokenizer.json"), "{\"model\": 3}").unwrap();
    assert_says(&message(Tokenizer::open(folder.path())), &["tokenizer.json", "no tokenizer"]);
}

#[cfg(unix)]
#[test]
fn links_to_folders_are_not_followed() {
    let setting = Setting::new();
    setting.words("a.txt", 0, 3);
    std::os::unix::fs::symlink(setting.text(), setting.text().join("loop")).unwrap();
    assert_eq!(find_text_files(&[setting.text()]).unwrap().len(), 1);
}
