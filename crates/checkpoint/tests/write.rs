//! The pruned copy: what is in it, what is not, and that failures leave nothing behind.

mod support;

use std::borrow::Cow;
use std::cell::RefCell;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use fedprune_checkpoint::error::BoxError;
use fedprune_checkpoint::{Checkpoint, CheckpointError, Extra, ExtraFile, Written, check_out, write_pruned};
use support::{Copied, FIXTURES, assert_says, copied, fixture, listing, read_file, write_file};

fn unchanged(_: usize, _: &mut [u8]) -> Result<(), BoxError> {
    Ok(())
}

fn bytes_of(name: &str, bytes: &'static [u8]) -> ExtraFile<'static> {
    ExtraFile { name: name.to_owned(), contents: Extra::Bytes(Cow::Borrowed(bytes)) }
}

fn write(model: &Copied, extra: &[ExtraFile<'_>]) -> Result<Written, CheckpointError> {
    write_pruned(&model.open(), &model.temporary.path().join("out"), &mut unchanged, extra, &|_| {})
}

/// After a failure: the original, and nothing else.
#[track_caller]
fn assert_nothing_left(model: &Copied) {
    assert_eq!(listing(model.temporary.path()), ["model"]);
}

#[test]
fn an_unedited_copy_is_the_original_byte_for_byte() {
    for name in FIXTURES {
        let model = copied(name);
        let checkpoint = model.open();
        let out = model.temporary.path().join("out");
        let progress = AtomicU64::new(0);
        let written = write_pruned(&checkpoint, &out, &mut unchanged, &[], &|bytes| {
            progress.fetch_add(bytes, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(listing(&out), listing(&model.folder));
        let mut bytes = 0;
        for file in listing(&out) {
            let copy = fs::read(out.join(&file)).unwrap();
            assert!(copy == fs::read(model.path(&file)).unwrap(), "{name}/{file}");
            bytes += copy.len() as u64;
        }
        assert_eq!((written.folder.as_path(), written.bytes), (out.as_path(), bytes));
        assert_eq!(written.content_digest, checkpoint.content_digest(&|_| {}));
        assert_eq!(written.base_digest, written.content_digest);
        assert_eq!(progress.into_inner(), checkpoint.file_bytes());
        assert_eq!(listing(model.temporary.path()), ["model", "out"]);
    }
}

#[test]
fn only_prunable_matrices_pass_through_the_edit() {
    for name in ["mistral", "qwen2"] {
        let model = copied(name);
        let checkpoint = model.open();
        let out = model.temporary.path().join("out");
        let mut seen = Vec::new();
        let mut edit = |index: usize, bytes: &mut [u8]| -> Result<(), BoxError> {
            assert!(bytes == checkpoint.matrix(index).bytes());
            seen.push(index);
            bytes.fill(0);
            bytes[0] = index as u8;
            Ok(())
        };
        let written = write_pruned(&checkpoint, &out, &mut edit, &[], &|_| {}).unwrap();
        seen.sort();
        assert!(seen.into_iter().eq(0..21));

        let pruned = Checkpoint::open(&out).unwrap();
        assert_eq!(pruned.layout(), checkpoint.layout());
        assert_eq!(pruned.config(), checkpoint.config());
        assert_eq!(pruned.content_digest(&|_| {}), written.content_digest);
        assert_ne!(written.content_digest, checkpoint.content_digest(&|_| {}));
        assert_eq!(written.base_digest, checkpoint.content_digest(&|_| {}));
        for (original, copy) in checkpoint.shards().zip(pruned.shards()) {
            assert_eq!(original.file_name(), copy.file_name());
            for (before, after) in read_file(original).into_iter().zip(read_file(copy)) {
                assert_eq!((&before.0, &before.1, &before.2), (&after.0, &after.1, &after.2));
                match pruned.layout().matrices().iter().position(|matrix| matrix.name == before.0) {
                    None => assert!(before.3 == after.3, "{}", before.0),
                    Some(index) => assert!(after.3[0] == index as u8 && after.3[1..].iter().all(|&byte| byte == 0)),
                }
            }
        }
    }
}

#[test]
fn headers_stay_byte_for_byte_and_unused_tensors_go_along() {
    let model = copied("llama3-rope-tied");
    let mut tensors = read_file(&model.weights());
    tensors.insert(3, ("model.layers.0.self_attn.rotary_emb.inv_freq".into(), "F64".into(), vec![8], vec![2; 64]));
    tensors.insert(9, ("lm_head.weight".into(), "F32".into(), vec![256, 64], vec![1; 256 * 64 * 4]));
    tensors.insert(12, ("empty".into(), "U8".into(), vec![0, 5], vec![]));
    write_file(&model.weights(), &tensors);
    // unusual but valid: spaces, metadata, and an order of entries that is not that of the data
    model.edit_header("model.safetensors", |header| {
        let mut entries: Vec<_> = std::mem::take(header).into_iter().collect();
        entries.reverse();
        header.insert("__metadata__".into(), serde_json::json!({ "format": "pt", "note": "\u{e9}" }));
        header.extend(entries);
    });
    let written = write(&model, &[]).unwrap();
    assert!(fs::read(written.folder.join("model.safetensors")).unwrap() == fs::read(model.weights()).unwrap());
    assert_eq!(written.content_digest, Checkpoint::open(&fixture("llama3-rope-tied")).unwrap().content_digest(&|_| {}));
}

#[test]
fn other_files_go_along_but_not_other_weights() {
    let model = copied("mistral");
    let carried = [
        "LICENSE",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
    ];
    let left = [
        ".gitattributes",
        "consolidated.safetensors",
        "model-00001-of-00002.safetensors",
        "model.Q4_0.gguf",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
    ];
    for name in carried.iter().chain(&left) {
        fs::write(model.path(name), name).unwrap();
    }
    for folder in ["onnx", ".cache"] {
        fs::create_dir(model.path(folder)).unwrap();
        fs::write(model.path(folder).join("x.json"), "{}").unwrap();
    }
    let large = fs::File::create(model.path("zz-large.txt")).unwrap();
    large.set_len((256 << 20) + 1).unwrap(); // sparse
    let written = write(&model, &[]).unwrap();
    for name in carried {
        assert_eq!(fs::read(written.folder.join(name)).unwrap(), name.as_bytes());
        assert!(written.carried.iter().any(|carried| carried == name));
    }
    let skipped: Vec<_> = written.skipped.iter().map(|skipped| (skipped.name.as_str(), skipped.reason)).collect();
    for (name, reason) in [
        (".cache", "hidden"),
        (".gitattributes", "hidden"),
        ("onnx", "not a regular file"),
        ("pytorch_model.bin.index.json", "weights that are not part of the checkpoint"),
        ("model-00001-of-00002.safetensors", "weights that are not part of the checkpoint"),
        ("zz-large.txt", "larger than 256 MiB"),
    ] {
        assert!(skipped.contains(&(name, reason)), "{name} in {skipped:?}");
    }
    for name in left {
        assert!(!written.folder.join(name).exists(), "{name}");
    }
    let own: Vec<String> = listing(&fixture("mistral")).into_iter().filter(|name| !name.starts_with("exp")).collect();
    let mut expected: Vec<String> = carried.into_iter().map(str::to_owned).chain(own).collect();
    expected.sort();
    assert_eq!(listing(&written.folder), expected);
}

/// A stale index beside a single file would send readers to shards that are not there.
#[test]
fn a_stale_index_does_not_go_along() {
    let model = copied("llama");
    fs::write(model.path("model.safetensors.index.json"), "{}").unwrap();
    let written = write(&model, &[]).unwrap();
    assert_eq!(listing(&written.folder), ["config.json", "model.safetensors"]);
}

#[test]
fn added_files_take_the_place_of_carried_ones() {
    let model = copied("llama");
    fs::write(model.path("README.md"), "the base model's card").unwrap();
    fs::write(model.path("mask.fedprune"), "an older mask").unwrap();
    let source = model.temporary.path().join("model").join("config.json");
    let told = RefCell::new(None);
    let card = |pruned: &fedprune_checkpoint::Pruned, file: &mut dyn std::io::Write| -> Result<(), BoxError> {
        *told.borrow_mut() = Some(pruned.clone());
        Ok(write!(file, "weights {}", pruned.content_digest)?)
    };
    let written = write(
        &model,
        &[
            bytes_of("mask.fedprune", b"the mask"),
            ExtraFile { name: "README.md".into(), contents: Extra::Write { bytes: 100, write: Box::new(card) } },
            ExtraFile { name: "base_config.json".into(), contents: Extra::Copy(source.clone()) },
        ],
    )
    .unwrap();
    let read = |name: &str| fs::read_to_string(written.folder.join(name)).unwrap();
    assert_eq!(read("mask.fedprune"), "the mask");
    assert_eq!(read("README.md"), format!("weights {}", written.content_digest));
    assert_eq!(read("README.base.md"), "the base model's card");
    assert_eq!(read("base_config.json"), fs::read_to_string(&source).unwrap());
    assert_eq!(written.base_card.as_deref(), Some("README.base.md"));
    assert_eq!(told.borrow().as_ref().unwrap().base_card.as_deref(), Some("README.base.md"));

    // The copy of a copy keeps both.
    let again = Copied { folder: written.folder, temporary: model.temporary };
    let out = again.temporary.path().join("again");
    let written = write_pruned(&again.open(), &out, &mut unchanged, &[bytes_of("README.md", b"new")], &|_| {}).unwrap();
    assert_eq!(written.base_card.as_deref(), Some("README.base-2.md"));
    assert_eq!(fs::read_to_string(out.join("README.base.md")).unwrap(), "the base model's card");
    assert!(fs::read_to_string(out.join("README.base-2.md")).unwrap().starts_with("weights"));
}

#[test]
fn names_of_added_files_are_checked() {
    for (name, problem) in [
        ("../card.md", "leads out of the folder"),
        ("/etc/passwd", "leads out of the folder"),
        ("sub/card.md", "leads out of the folder"),
        ("", "leads out of the folder"),
        ("..", "leads out of the folder"),
        (".hidden", "hidden"),
        ("model.safetensors", "replace the weights"),
        ("model.safetensors.index.json", "replace the weights"),
    ] {
        let model = copied("llama");
        assert_says(&write(&model, &[bytes_of(name, b"x")]).unwrap_err(), &[name, problem, "choose another name"]);
        assert_nothing_left(&model);
    }
    let model = copied("llama");
    let error = write(&model, &[bytes_of("a", b"1"), bytes_of("a", b"2")]).unwrap_err();
    assert_says(&error, &["`a`", "given twice"]);
}

#[test]
fn a_path_that_exists_is_refused_before_anything_is_read() {
    let model = copied("llama");
    let out = model.temporary.path().join("out");
    let mut never = |_: usize, _: &mut [u8]| -> Result<(), BoxError> { panic!("nothing may be read") };
    let checkpoint = model.open();
    let mut refused = |parts: &[&str]| {
        assert_says(&check_out(&out).unwrap_err(), parts);
        assert_says(&write_pruned(&checkpoint, &out, &mut never, &[], &|_| {}).unwrap_err(), parts);
    };
    let parts = ["out` exists already", "choose another path", "remove it first"];
    fs::create_dir(&out).unwrap();
    refused(&parts);
    fs::remove_dir(&out).unwrap();
    fs::write(&out, "precious").unwrap();
    refused(&parts);
    assert_eq!(fs::read_to_string(&out).unwrap(), "precious");
    fs::remove_file(&out).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", &out).unwrap();
        refused(&parts);
        fs::remove_file(&out).unwrap();
    }
    assert_nothing_left(&model);

    let inside = out.join("deeper");
    assert_says(&check_out(&inside).unwrap_err(), &["deeper", "does not exist", "create that folder first"]);
    assert_says(&check_out(&model.weights().join("x")).unwrap_err(), &["model.safetensors"]);
    assert_says(&check_out(&out.join("..")).unwrap_err(), &[".."]);
    check_out(&out).unwrap();
}

#[test]
fn a_failing_edit_leaves_nothing_behind() {
    for last in [0, 20] {
        let model = copied("mistral");
        let mut edit = |index: usize, _: &mut [u8]| -> Result<(), BoxError> {
            if index == last { Err("NaN at row 3, column 5".into()) } else { Ok(()) }
        };
        let error =
            write_pruned(&model.open(), &model.temporary.path().join("out"), &mut edit, &[], &|_| {}).unwrap_err();
        let name = model.open().layout().matrices()[last].name.clone();
        assert_says(&error, &[&format!("tensor `{name}`"), ".safetensors", "nothing was left behind"]);
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "NaN at row 3, column 5");
        assert_nothing_left(&model);
    }
}

#[test]
fn a_panicking_edit_leaves_nothing_behind() {
    let model = copied("mistral");
    let checkpoint = model.open();
    let out = model.temporary.path().join("out");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut edit = |_: usize, _: &mut [u8]| -> Result<(), BoxError> { panic!("a defect in the caller") };
        write_pruned(&checkpoint, &out, &mut edit, &[], &|_| {})
    }));
    assert!(outcome.is_err());
    assert_nothing_left(&model);
}

#[test]
fn a_failing_added_file_leaves_nothing_behind() {
    let model = copied("llama");
    let fails = |_: &fedprune_checkpoint::Pruned, file: &mut dyn std::io::Write| -> Result<(), BoxError> {
        file.write_all(b"half a card")?;
        Err("no recipe".into())
    };
    let card = ExtraFile { name: "README.md".into(), contents: Extra::Write { bytes: 9, write: Box::new(fails) } };
    let error = write(&model, &[card]).unwrap_err();
    assert_says(&error, &["`README.md`", "nothing was left behind"]);
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no recipe");
    assert_nothing_left(&model);

    let missing = model.temporary.path().join("no-mask");
    let error = write(&model, &[ExtraFile { name: "mask".into(), contents: Extra::Copy(missing) }]).unwrap_err();
    assert_says(&error, &["no-mask", "cannot read"]);
    assert_nothing_left(&model);
}

#[test]
fn too_little_space_is_refused_before_writing() {
    let model = copied("llama");
    let mut never = |_: usize, _: &mut [u8]| -> Result<(), BoxError> { panic!("nothing may be read") };
    let huge = Extra::Write { bytes: u64::MAX / 2, write: Box::new(|_, _| panic!("nothing may be written")) };
    let extra = [ExtraFile { name: "mask".into(), contents: huge }];
    let out = model.temporary.path().join("out");
    let checkpoint = model.open();
    let error = write_pruned(&checkpoint, &out, &mut never, &extra, &|_| {}).unwrap_err();
    let config = fs::metadata(model.path("config.json")).unwrap().len();
    let needed = u64::MAX / 2 + checkpoint.file_bytes() + config;
    let CheckpointError::NoSpace { needed_bytes, available_bytes, source: None, .. } = error else { panic!("{error}") };
    assert_eq!(needed_bytes, needed);
    assert!(available_bytes > 0 && available_bytes < needed);
    let numbers = [format!("{needed} bytes are needed"), format!("{available_bytes} are available")];
    assert_says(&error, &["out", &numbers[0], &numbers[1], "nothing was left behind", "free some space"]);
    assert_nothing_left(&model);
}

#[cfg(unix)]
mod links {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// The cache of the Hugging Face hub: everything in a snapshot is a link into `blobs`.
    #[test]
    fn snapshots_of_the_cache_are_followed() {
        let model = copied("mistral");
        fs::write(model.path("tokenizer.json"), "{}").unwrap();
        let repository = model.temporary.path().join("models--x--y");
        let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots").join("0a1b2c"));
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        for (number, name) in listing(&model.folder).into_iter().enumerate() {
            fs::rename(model.path(&name), blobs.join(number.to_string())).unwrap();
            symlink(format!("../../blobs/{number}"), snapshot.join(name)).unwrap();
        }
        let checkpoint = Checkpoint::open(&snapshot).unwrap();
        let out = model.temporary.path().join("out");
        write_pruned(&checkpoint, &out, &mut unchanged, &[], &|_| {}).unwrap();
        assert_eq!(listing(&out), listing(&snapshot));
        for name in listing(&out) {
            assert!(fs::symlink_metadata(out.join(&name)).unwrap().is_file(), "{name}");
            assert!(fs::read(out.join(&name)).unwrap() == fs::read(snapshot.join(&name)).unwrap(), "{name}");
        }
    }

    /// A downloaded folder must not publish a private file of this machine with the copy.
    #[test]
    fn links_out_of_the_folder_are_refused() {
        let model = copied("llama");
        let secret = model.temporary.path().join("id_ed25519");
        fs::write(&secret, "private").unwrap();
        symlink(&secret, model.path("NOTICE")).unwrap();
        let error = write(&model, &[]).unwrap_err();
        assert_says(&error, &["NOTICE", "id_ed25519", "outside the checkpoint", "replace it by the file"]);
        assert_eq!(listing(model.temporary.path()), ["id_ed25519", "model"]);

        // Replaced by an added file, it is not read at all; links inside the folder are followed.
        symlink("config.json", model.path("inside.json")).unwrap();
        symlink("nothing", model.path("dangling.json")).unwrap();
        let written = write(&model, &[bytes_of("NOTICE", b"ours")]).unwrap();
        assert_eq!(listing(&written.folder), ["NOTICE", "config.json", "inside.json", "model.safetensors"]);
        assert_eq!(fs::read_to_string(written.folder.join("NOTICE")).unwrap(), "ours");
    }

    /// The temporary folder is private in libraries of this kind; the copy must not stay so.
    #[test]
    fn the_copy_has_ordinary_permissions() {
        let model = copied("llama");
        let written = write(&model, &[]).unwrap();
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let ordinary = model.temporary.path().join("ordinary");
        fs::create_dir(&ordinary).unwrap();
        assert_eq!(mode(&written.folder), mode(&ordinary));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let model = copied("llama");
        let out = std::path::Path::new("/proc/fedprune-copy");
        let error = write_pruned(&model.open(), out, &mut unchanged, &[], &|_| {}).unwrap_err();
        assert_says(&error, &["/proc"]);
    }
}
