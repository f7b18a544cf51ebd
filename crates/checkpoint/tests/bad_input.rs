//! Checkpoints that must be refused, each with the file, the tensor and the remedy.

mod support;

use std::fs;

use fedprune_checkpoint::Checkpoint;
use serde_json::{Value, json};
use support::{Copied, Stored, assert_says, copied, edit_json, read_file, write_file, write_raw};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const UP: &str = "model.layers.1.mlp.up_proj.weight";

fn truncate(model: &Copied, file: &str, bytes: u64) {
    fs::OpenOptions::new().write(true).open(model.path(file)).unwrap().set_len(bytes).unwrap();
}

#[test]
fn no_folder_no_config_no_weights() {
    let model = copied("llama");
    let error = Checkpoint::open(&model.path("nowhere")).unwrap_err();
    assert_says(&error, &["nowhere", "is not a folder", "give the folder"]);
    assert_says(&Checkpoint::open(&model.weights()).unwrap_err(), &[WEIGHTS, "is not a folder"]);

    fs::remove_file(model.weights()).unwrap();
    model.refused_with(&["model", "neither `model.safetensors` nor", "download the weights"]);
    fs::write(model.path("pytorch_model.bin"), "PK").unwrap();
    model.refused_with(&["`pytorch_model.bin`", "convert it with", "save_pretrained"]);
    fs::remove_file(model.path("config.json")).unwrap();
    model.refused_with(&["cannot read", "config.json", "check that it exists"]);
}

#[test]
fn config_of_another_kind() {
    let model = copied("llama");
    model.edit_config(|config| drop(config.insert("model_type".into(), json!("gpt_neox"))));
    model.refused_with(&["config.json", "`gpt_neox`", "supported are `llama`, `mistral`, `qwen2`, `qwen3`"]);
    fs::write(model.path("config.json"), "{ not json").unwrap();
    model.refused_with(&["config.json", "not valid JSON", "download it again"]);
    fs::write(model.path("config.json"), vec![b' '; (1 << 20) + 1]).unwrap();
    model.refused_with(&["config.json", "1048577 bytes", "1048576 allowed"]);
    fs::remove_file(model.path("config.json")).unwrap();
    fs::create_dir(model.path("config.json")).unwrap();
    model.refused_with(&["cannot read", "config.json"]);
}

#[test]
fn truncated_files() {
    let again = "download it again";
    for bytes in [0, 7] {
        let model = copied("llama");
        truncate(&model, WEIGHTS, bytes);
        model.refused_with(&[WEIGHTS, &format!("{bytes} bytes, too few"), again]);
    }
    let model = copied("llama");
    truncate(&model, WEIGHTS, 1000);
    model.refused_with(&[WEIGHTS, "claims 3072 bytes, but only 992 follow", again]);
    let model = copied("llama");
    truncate(&model, WEIGHTS, 300_000);
    model.refused_with(&[WEIGHTS, "tensor `model.layers.1.", "the file has only 296920", again]);
    let model = copied("llama");
    truncate(&model, WEIGHTS, 596_743);
    model.refused_with(&[WEIGHTS, "tensor `model.norm.weight`", "truncated", again]);
}

#[test]
fn headers_that_lie_about_their_length() {
    let model = copied("llama");
    let bytes = fs::read(model.weights()).unwrap();
    for length in [100_000_001, u64::MAX, u64::from_le_bytes(*b"<!DOCTYP")] {
        fs::write(model.weights(), [&length.to_le_bytes(), &bytes[8..]].concat()).unwrap();
        model.refused_with(&[WEIGHTS, &length.to_string(), "100000000 allowed", "download it again"]);
    }
    for length in [99_999_999, bytes.len() as u64 - 7] {
        fs::write(model.weights(), [&length.to_le_bytes(), &bytes[8..]].concat()).unwrap();
        model.refused_with(&[WEIGHTS, &length.to_string(), "follow in the file", "download it again"]);
    }
    for length in [0u64, 1, 3071, 3073] {
        fs::write(model.weights(), [&length.to_le_bytes(), &bytes[8..]].concat()).unwrap();
        model.refused_with(&[WEIGHTS, "damaged"]);
    }
}

/// Changes one field of one tensor's entry and returns the refusal.
fn lying(field: &str, value: Value) -> Copied {
    let model = copied("llama");
    model.edit_header(WEIGHTS, |header| header[UP][field] = value);
    model
}

#[test]
fn entries_that_lie() {
    let model = copied("llama");
    let mut entry = Value::Null;
    model.edit_header(WEIGHTS, |header| entry = header[UP].clone());
    let offsets: [usize; 2] = serde_json::from_value(entry["data_offsets"].clone()).unwrap();
    let [start, end] = offsets;
    let refused = |offsets: [usize; 2], parts: &[&str]| {
        let model = lying("data_offsets", json!(offsets));
        model.refused_with(&[&[WEIGHTS], parts].concat());
    };
    let damaged = "damaged or forged: download";
    refused([end, start], &[&format!("`{UP}`"), "end before", damaged]);
    refused([start - 4, end - 4], &["inside another tensor", damaged]);
    refused([start + 4, end + 4], &[&format!("`{UP}`"), "4 bytes before its data belong to no tensor", damaged]);
    refused([start, 1 << 40], &[&format!("`{UP}`"), "the file has only", "download it again"]);
    refused([0, end - start], &["inside another tensor", damaged]);
    refused([start, end - 4], &[&format!("`{UP}`"), "34812 bytes are not what F32 of shape (136, 64) needs", damaged]);
    refused([usize::MAX, usize::MAX], &[&format!("`{UP}`"), "the file has only"]);

    for shape in [json!([136, 65]), json!([]), json!([u64::MAX, u64::MAX]), json!([1u64 << 62, 2]), json!([0, 64])] {
        lying("shape", shape).refused_with(&[WEIGHTS, &format!("`{UP}`"), "bytes are not what F32 of shape", damaged]);
    }
    lying("dtype", json!("F16")).refused_with(&[WEIGHTS, &format!("`{UP}`"), "not what F16 of shape (136, 64) needs"]);
    let nonsense = [
        ("dtype", json!("F33")),
        ("dtype", json!(4)),
        ("shape", json!([-1, 64])),
        ("shape", json!(vec![1; 17])),
        ("shape", json!("136x64")),
        ("data_offsets", json!([1])),
        ("data_offsets", json!([0, 1, 2])),
        ("data_offsets", json!([0.5, 1])),
        ("surprise", json!({})),
    ];
    for (field, value) in nonsense {
        let model = lying(field, value.clone());
        model.refused_with(&[WEIGHTS, &format!("`{UP}`"), "its entry in the header is not valid", damaged]);
        assert!(std::error::Error::source(&model.refused()).is_some(), "{field} {value}");
    }
}

#[test]
fn headers_that_are_not_what_they_should_be() {
    let model = copied("llama");
    let bytes = fs::read(model.weights()).unwrap();
    let (header, data) = bytes[8..].split_at(3072);
    let text = std::str::from_utf8(header).unwrap().trim_end();
    let refused = |header: &str, parts: &[&str]| {
        write_raw(&model.weights(), header.as_bytes(), data);
        model.refused_with(&[&[WEIGHTS], parts].concat());
    };
    refused(&text[..text.len() - 1], &["damaged"]);
    refused(&format!("{text}{text}"), &["damaged"]);
    refused("[]", &["not valid JSON of a safetensors file", "damaged"]);
    refused("{}", &["of the file's 593664 data bytes belong to no tensor", "damaged"]);
    refused(r#"{"__metadata__":{"format":7}}"#, &["damaged"]);
    refused(&"[".repeat(5000), &["damaged"]);

    // The same name twice: readers would disagree about which entry counts.
    let name = r#""model.norm.weight":"#;
    let at = text.find(name).unwrap();
    let entry = text[at..].split_inclusive('}').next().unwrap();
    refused(&format!("{{{entry},{}", &text[1..]), &["`model.norm.weight`", "describes it twice", "damaged"]);

    let mut invalid = header.to_vec();
    invalid[10] = 0xff;
    write_raw(&model.weights(), &invalid, data);
    model.refused_with(&[WEIGHTS, "damaged"]);

    write_raw(&model.weights(), header, &[data, b"12345678"].concat());
    model.refused_with(&[WEIGHTS, "8 of the file's 593672 data bytes belong to no tensor"]);
}

#[test]
fn missing_shards() {
    let model = copied("mistral");
    fs::remove_file(model.path("model-00003-of-00004.safetensors")).unwrap();
    let first = "`model.layers.2.input_layernorm.weight`";
    model.refused_with(&["model-00003-of-00004.safetensors", INDEX, first, "is missing", "download that file"]);
    // A folder where the file should be, which a partial download leaves behind.
    fs::create_dir(model.path("model-00003-of-00004.safetensors")).unwrap();
    model.refused_with(&["cannot read", "model-00003-of-00004.safetensors"]);
}

#[test]
fn damaged_shards_are_named() {
    let model = copied("mistral");
    truncate(&model, "model-00002-of-00004.safetensors", 50_000);
    model.refused_with(&["model-00002-of-00004.safetensors", "tensor `model.layers.", "download it again"]);
}

#[test]
fn indices_that_lead_elsewhere() {
    let absolute = tempfile::NamedTempFile::with_suffix(".safetensors").unwrap();
    let absolute = absolute.path().to_str().unwrap();
    let names = [
        "../model.safetensors",
        absolute,
        "sub/model.safetensors",
        "..",
        ".",
        "",
        "a\\b.safetensors",
        "./model-00001-of-00004.safetensors",
        "C:model.safetensors",
        ".hidden.safetensors",
        "nul\0.safetensors",
        "model.bin",
        "config.json",
    ];
    for name in names {
        let model = copied("mistral");
        edit_json(&model.path(INDEX), |index| index["weight_map"][UP] = json!(name));
        model.refused_with(&[INDEX, "download the index again"]);
    }
}

#[test]
fn indices_that_lie() {
    let refused = |edit: &dyn Fn(&mut serde_json::Map<String, Value>), parts: &[&str]| {
        let model = copied("mistral");
        edit_json(&model.path(INDEX), edit);
        model.refused_with(&[&[INDEX, "download"], parts].concat());
    };
    let elsewhere = "model-00004-of-00004.safetensors";
    refused(&|index| index["weight_map"][UP] = json!(elsewhere), &[UP, "`model-00002-of-00004.safetensors` holds it"]);
    refused(&|index| index["weight_map"]["phantom"] = json!(elsewhere), &["`phantom`", elsewhere, "does not hold it"]);
    refused(&|index| index["weight_map"] = json!({}), &["lists no tensors"]);
    refused(&|index| index["weight_map"] = json!([]), &["not valid JSON"]);
    refused(&|index| index["weight_map"][UP] = json!(4), &["not valid JSON"]);
    refused(&|index| drop(index.remove("weight_map")), &["not valid JSON"]);

    let many: serde_json::Map<_, _> = (0..5000).map(|n| (format!("t{n}"), json!(format!("{n}.safetensors")))).collect();
    refused(&move |index| index["weight_map"] = json!(many), &["5000 files", "4096 allowed"]);

    let model = copied("mistral");
    fs::write(model.path(INDEX), format!(r#"{{"weight_map":{{"a":"x.safetensors","a":"{elsewhere}"}}}}"#)).unwrap();
    model.refused_with(&[INDEX, "not valid JSON"]);
}

#[test]
fn a_tensor_in_two_shards() {
    let model = copied("mistral");
    let (from, to) = ("model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors");
    let mut tensors = read_file(&model.path(to));
    tensors.extend(read_file(&model.path(from)).into_iter().filter(|tensor| tensor.0 == "model.norm.weight"));
    write_file(&model.path(to), &tensors);
    model.refused_with(&["`model.norm.weight`", from, to, "remove the stale file"]);
}

/// The fixture with its tensors changed.
fn changed(name: &str, change: impl FnOnce(&mut Vec<Stored>)) -> Copied {
    let model = copied(name);
    let mut tensors = read_file(&model.weights());
    change(&mut tensors);
    write_file(&model.weights(), &tensors);
    model
}

#[test]
fn missing_tensors() {
    let without = |name: &str| changed("qwen2", |tensors| tensors.retain(|tensor| tensor.0 != name));
    for name in [UP, "model.layers.0.self_attn.k_proj.bias", "model.embed_tokens.weight", "model.norm.weight"] {
        without(name).refused_with(&[WEIGHTS, &format!("tensor `{name}` is missing"), "download the folder again"]);
    }
    let model = changed("qwen3", |tensors| tensors.retain(|tensor| !tensor.0.contains("k_norm")));
    model.refused_with(&[WEIGHTS, "`model.layers.0.self_attn.k_norm.weight`", "download"]);

    let model = changed("llama", |tensors| tensors.retain(|tensor| tensor.0 != "lm_head.weight"));
    model.refused_with(&[WEIGHTS, "`lm_head.weight`", "set `tie_word_embeddings` to true"]);

    let model = changed("llama", |tensors| tensors.retain(|tensor| !tensor.0.contains("layers.2.")));
    model.refused_with(&[WEIGHTS, "`model.layers.2.", "nothing of block 2", "says 3 blocks"]);

    let model = changed("llama", |tensors| {
        for tensor in tensors {
            tensor.0 = tensor.0.trim_start_matches("model.").to_owned();
        }
    });
    model.refused_with(&[
        WEIGHTS,
        "`model.embed_tokens.weight`",
        "without the prefix `model.`",
        "AutoModelForCausalLM",
    ]);

    let model = changed("llama", |tensors| {
        for tensor in tensors.iter_mut().filter(|tensor| tensor.0.contains("_proj.")) {
            tensor.0 = tensor.0.replace(".weight", ".qweight");
        }
    });
    model.refused_with(&[WEIGHTS, "`model.layers.0.self_attn.q_proj.weight`", "unquantised checkpoint"]);

    let model = copied("mistral");
    model.edit_config(|config| drop(config.insert("num_hidden_layers".into(), json!(4))));
    model.refused_with(&["model", "`model.layers.3.self_attn.q_proj.weight`", "nothing of block 3", "says 4 blocks"]);
}

#[test]
fn shapes_that_contradict_the_config() {
    let refused = |field: &str, value: Value, tensor: &str, stored: &str, expected: &str| {
        let model = copied("llama");
        model.edit_config(|config| drop(config.insert(field.into(), value)));
        let shapes = [format!("tensor `{tensor}` has shape {stored}"), format!("`config.json` implies {expected}")];
        model.refused_with(&[WEIGHTS, &shapes[0], &shapes[1], "restore the `config.json`"]);
    };
    let attention = |name: &str| format!("model.layers.0.self_attn.{name}_proj.weight");
    refused("vocab_size", json!(257), "model.embed_tokens.weight", "(256, 64)", "(257, 64)");
    refused("hidden_size", json!(128), "model.embed_tokens.weight", "(256, 64)", "(256, 128)");
    refused("num_key_value_heads", json!(1), &attention("k"), "(32, 64)", "(16, 64)");
    refused("head_dim", json!(32), &attention("q"), "(64, 64)", "(128, 64)");
    refused("intermediate_size", json!(137), "model.layers.0.mlp.gate_proj.weight", "(136, 64)", "(137, 64)");

    let model = changed("llama", |tensors| {
        let norm = tensors.iter_mut().find(|tensor| tensor.0 == "model.norm.weight").unwrap();
        norm.2 = vec![64, 1];
    });
    model.refused_with(&[WEIGHTS, "`model.norm.weight` has shape (64, 1)", "implies (64)"]);
}

#[test]
fn formats_that_are_not_read() {
    for dtype in ["F8_E4M3", "I8", "U8", "BOOL"] {
        let model = changed("llama", |tensors| {
            let tensor = tensors.iter_mut().find(|tensor| tensor.0 == UP).unwrap();
            (tensor.1, tensor.3) = (dtype.to_owned(), vec![0; 136 * 64]);
        });
        model.refused_with(&[WEIGHTS, &format!("tensor `{UP}` is stored as {dtype}"), "BF16, F16 and F32", "convert"]);
    }
}

#[test]
fn text_from_files_cannot_forge_the_terminal() {
    let model = copied("llama");
    model.edit_config(|config| {
        drop(config.insert("model_type".into(), json!(format!("\u{1b}[2J{}", "x".repeat(9999)))))
    });
    let message = model.refused().to_string();
    assert!(!message.contains('\u{1b}') && message.len() < 600, "{message}");
}

#[cfg(unix)]
#[test]
fn pipes_are_not_opened() {
    // Opening one for reading would block for ever.
    for name in ["config.json", WEIGHTS] {
        let model = copied("llama");
        fs::remove_file(model.path(name)).unwrap();
        let path = std::ffi::CString::new(model.path(name).to_str().unwrap()).unwrap();
        // SAFETY: a valid C string, which outlives the call.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        let message = model.refused().to_string();
        assert!(message.contains(name), "{message}");
    }
}
