//! The corpus as it is written from real encodings: `cargo run -p fedprune-fuzz --example seeds`.

use fedprune_federation::evidence::Equivocation;
use fedprune_federation::machine::{Question, Record, encode_answer};
use fedprune_federation::{
    BallotHeader, Certificate, Evidence, Height, Holdings, MaskResult, MemberIndex, Precommit, Prevote, Proposal,
    Proposed, Settled, SigningKey,
};
use fedprune_mask::ballot::Encodings;
use fedprune_mask::tally::{Voter, encode_tally};
use fedprune_mask::{Ballot, DType, Digest, Group, Pruner, Tally};
use fedprune_node::network::decoding::{Wire, read_and_write_again};
use fedprune_testnet::simulator::{Scenario, Shape, World};
use serde_json::{Map, Value, json};

use crate::model::{self, MODEL};
use crate::mutate::Numbers;
use crate::targets::{
    AUDITED, BODIES, BallotKind, CHANGED, WORLDS, ballot_of, bodies, encoded_chunk, holdings, journal_key,
};
use crate::targets::{SEPARATOR, inclusion, justified, segment};

/// Names and inputs.
type Seeds = Vec<(String, Vec<u8>)>;

/// The configuration of the smallest checkpoint.
pub const CONFIG: &str = r#"{"model_type":"llama","hidden_size":4,"intermediate_size":4,"num_hidden_layers":1,
"num_attention_heads":2,"num_key_value_heads":1,"vocab_size":3,"max_position_embeddings":64,"rms_norm_eps":1e-6,
"rope_theta":10000.0,"tie_word_embeddings":false,"hidden_act":"silu","attention_bias":false,"mlp_bias":false}"#;

fn group(text: &str) -> Group {
    text.parse().expect("a group")
}

/// Ballots and masks of every pruner, group and encoding.
pub fn ballots() -> Seeds {
    let mut seeds = Vec::new();
    for (name, kind) in [
        ("auto", BallotKind::Vote(Encodings::Auto)),
        ("mask-only", BallotKind::Vote(Encodings::MaskOnly)),
        ("mask", BallotKind::Mask),
    ] {
        for (pruner, of) in [(Pruner::WANDA, "layer"), (Pruner::RIA, "row"), (Pruner::MAGNITUDE, "2:4")] {
            seeds.push((
                format!("{name}-{pruner}-{}", of.replace(':', "of")),
                ballot_of(kind, DType::BF16, pruner, group(of), "a"),
            ));
        }
        for dtype in [DType::F16, DType::F32] {
            seeds.push((format!("{name}-{dtype}"), ballot_of(kind, dtype, Pruner::WANDA, Group::Layer, "b")));
        }
    }
    seeds
}

/// Tallies of norms, thresholds and bitmaps.
pub fn tallies() -> Seeds {
    let tally = |dtype: DType, local: &str, global: &str, kinds: &[Encodings]| {
        let of = |(number, encodings): (usize, &Encodings)| {
            let text = format!("text {number}");
            ballot_of(BallotKind::Vote(*encodings), dtype, Pruner::WANDA, group(local), &text)
        };
        let ballots: Vec<Vec<u8>> = kinds.iter().enumerate().map(of).collect();
        let mut voters = Vec::new();
        for (number, bytes) in ballots.iter().enumerate() {
            let ballot = Ballot::parse(bytes, &MODEL.layout).expect("a sound ballot");
            voters.push(Voter { name: format!("m{number}"), weight: number as u32 % 2 + 1, ballot });
        }
        let tally = Tally::new(&MODEL.layout, group(global), voters).expect("ballots of one recipe");
        model::collect(|sink| {
            encode_tally(&tally, Digest::of(b"root"), sink).expect("nothing fails");
        })
    };
    let (auto, mask_only) = (Encodings::Auto, Encodings::MaskOnly);
    vec![
        ("layer".to_owned(), tally(DType::BF16, "layer", "layer", &[auto, mask_only, auto])),
        ("layer-f32".to_owned(), tally(DType::F32, "layer", "layer", &[auto, mask_only])),
        ("row".to_owned(), tally(DType::BF16, "row", "layer", &[auto, mask_only])),
        ("n-of-m".to_owned(), tally(DType::F16, "2:4", "2:4", &[auto, mask_only])),
        ("one".to_owned(), tally(DType::BF16, "layer", "column", &[mask_only])),
    ]
}

/// Bytes without structure, from which choices are read.
fn bytes_of(seed: u64, count: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    (0..count).map(|_| numbers.draw() as u8).collect()
}

/// Choices.
pub fn round_trips() -> Seeds {
    (0..9u64).map(|group| (format!("group-{group}"), [&[group as u8], &bytes_of(group, 120)[..]].concat())).collect()
}

/// One message of each kind, in rounds of two kinds.
pub fn messages() -> Seeds {
    let mut seeds = Vec::new();
    for (name, world) in [("one-shot", &WORLDS[0]), ("elected", &WORLDS[3])] {
        seeds.extend(messages_of(world).into_iter().map(|(kind, bytes)| (format!("{kind}-{name}"), bytes)));
    }
    let known = vec![[1; 8], [2; 8]];
    seeds.push(("question-news".to_owned(), Question::News { height: Height(1), known: known.clone() }.encode()));
    seeds.push(("question-mine".to_owned(), Question::Mine.encode()));
    seeds.push(("question-finished".to_owned(), Question::Finished { known }.encode()));
    seeds.push(("answer".to_owned(), encode_answer(&[vec![1, 2, 3], vec![]])));
    seeds
}

fn messages_of(world: &World) -> Vec<(&'static str, Vec<u8>)> {
    let height = Height(0);
    let bodies = bodies(world, height);
    let body = Digest::of(&bodies[1]);
    let header = |body| BallotHeader { body, body_bytes: bodies[1].len() as u64, claimed_unix_ms: 1_700_000_000_000 };
    let justified = justified(world, height);
    let value = justified.decision().value();
    let proposal = world.sign(1, Proposal { view: 0, value, valid_view: None }, height);
    let votes: Vec<_> =
        (0..3).map(|member| world.sign(member, Precommit { view: 0, value: Some(value) }, height)).collect();
    let certificate = Certificate::from_precommits(&votes, &world.consortium).expect("a quorum");
    let one = world.sign(2, header(body), height);
    let two = world.sign(2, header(Digest::of(b"other")), height);
    let few = Holdings::from_digests(vec![Some(body), None, None, None]);
    let evidence = Equivocation::between(&one, &two).map(Evidence::Ballot).expect("two ballots");
    let nil = world.sign(3, Prevote { view: 1, value: None }, height);
    let not_nil = world.sign(3, Prevote { view: 1, value: Some(value) }, height);
    let votes_twice = Equivocation::between(&nil, &not_nil).map(Evidence::Prevote).expect("two votes");
    vec![
        ("header", one.encode()),
        ("holdings", holdings(world, 1, height, &bodies).encode()),
        ("holdings-few", world.sign(1, few, height).encode()),
        ("result", world.sign(1, MaskResult { mask_root: body }, height).encode()),
        ("proposal", proposal.encode()),
        ("prevote", not_nil.encode()),
        ("prevote-nil", nil.encode()),
        ("precommit", votes[0].encode()),
        ("proposed", Proposed::new(proposal, justified.clone()).expect("of one decision").encode()),
        ("settled", Settled::new(certificate.clone(), justified).expect("of one decision").encode()),
        ("certificate", certificate.encode()),
        ("evidence-ballots", evidence.encode()),
        ("evidence-prevotes", votes_twice.encode()),
    ]
}

/// Proofs of inclusion.
pub fn proofs() -> Seeds {
    let proofs = WORLDS.iter().enumerate();
    proofs.map(|(number, world)| (format!("round-{number}"), inclusion(world, 1).encode())).collect()
}

/// Attestations.
pub fn attestations() -> Seeds {
    crate::targets::attestations()
}

/// Documents and records.
pub fn canonicals() -> Seeds {
    let mut seeds = vec![
        ("consortium".to_owned(), WORLDS[0].consortium.consortium().encode()),
        ("signatures".to_owned(), WORLDS[0].consortium.encode_signatures()),
        ("changed".to_owned(), CHANGED.consortium().encode()),
        ("chain".to_owned(), CHANGED.encode_signatures()),
    ];
    for (number, world) in WORLDS.iter().enumerate() {
        seeds.push((format!("round-{number}"), world.round.encode()));
        seeds.push((format!("decision-{number}"), justified(world, Height(0)).decision().encode()));
    }
    let digest = Digest::of(b"body");
    for (number, record) in [
        Record::Said(vec![1, 2]),
        Record::Heard(vec![3]),
        Record::Journal(vec![4]),
        Record::Held(MemberIndex(1), digest),
        Record::Refused(MemberIndex(2), digest),
        Record::Tallied(digest, digest),
        Record::Silent,
        Record::Abstained,
    ]
    .into_iter()
    .enumerate()
    {
        seeds.push((format!("record-{number}"), record.encode()));
    }
    seeds
}

/// Documents that people write.
pub fn documents() -> Seeds {
    let consortium = WORLDS[0].consortium.consortium();
    let text = |which: u8, text: &str| [&[which], text.as_bytes()].concat();
    let mut seeds = vec![("consortium".to_owned(), text(0, &consortium.to_toml().expect("plain text")))];
    seeds.push(("changed".to_owned(), text(0, &CHANGED.consortium().to_toml().expect("plain text"))));
    for (number, world) in WORLDS.iter().enumerate() {
        let round = world.round.to_toml(consortium).expect("plain text");
        seeds.push((format!("round-{number}"), text(1, &round)));
    }
    let key = SigningKey::from_seed(&[7; 32]).expect("a key");
    seeds.push(("secret-key".to_owned(), text(2, &key.to_pkcs8_pem().expect("plain text"))));
    seeds.push(("public-key".to_owned(), text(3, &key.verifying_key().to_public_key_pem().expect("plain text"))));
    seeds
}

/// Whole rounds as choices: see `targets/machine.rs` for what each byte says.
pub fn machines() -> Seeds {
    let all = 0; // of the others
    let here = 0; // the current height
    // answer everything; ballots; what all hold; a decision; it is proposed in its turn; votes; results
    let height = [
        vec![2, 6, here, 0, all, 0, 0, 0, 2, 2, 2, 2, 0, 0, 7, here, all, 1, 1, 1],
        vec![2, 8, here, 0, 1, 0, 2, 9, 0, 0, 1, 0, 2],
        vec![11, 0, 0, 0, all, 2, 12, 0, 0, 0, all, 2, 2],
        vec![13, here, 0, all, 2, 2],
    ]
    .concat();
    let mut seeds = Vec::new();
    for world in 0..WORLDS.len() as u8 {
        seeds.push((format!("round-{world}"), [&[world], &height[..], &height[..]].concat()));
        // a crash after every third choice, and time
        let mut broken = vec![world];
        for part in height.chunks(7) {
            broken.extend(part);
            broken.extend([16, 3, 2, 0, 0]);
        }
        seeds.push((format!("crashes-{world}"), broken));
        seeds.push((
            format!("settled-{world}"),
            [&[world, 2, 8, here, 0, 1, 0, 2, 14, 0, 0, 2, 2, 13, here, 0, all, 2][..]].concat(),
        ));
        // any choices that leave it able to go on
        let any = (0..100).map(|number| [&[world], &bytes_of(u64::from(world) * 100 + number, 400)[..]].concat());
        let any = any.filter(|bytes| (crate::target("machine").run)(bytes)).take(4);
        seeds.extend(any.enumerate().map(|(number, bytes)| (format!("any-{world}-{number}"), bytes)));
    }
    seeds
}

/// Configurations of all architectures.
pub fn configs() -> Seeds {
    let mut seeds = vec![("smallest".to_owned(), CONFIG.as_bytes().to_vec())];
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    for name in ["llama", "llama3-rope-tied", "mistral", "qwen2", "qwen3"] {
        seeds.push((name.to_owned(), std::fs::read(fixtures.join(name).join("config.json")).expect("a fixture")));
    }
    seeds
}

/// A weight file with those tensors of the smallest checkpoint that `wanted` names.
pub fn weight_file(wanted: &dyn Fn(&str) -> bool) -> Vec<u8> {
    let (mut header, mut data) = (Map::<String, Value>::new(), Vec::new());
    let block = "model.layers.0";
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![3, 4]),
        ("model.norm.weight".to_owned(), vec![4]),
        ("lm_head.weight".to_owned(), vec![3, 4]),
        (format!("{block}.self_attn.q_proj.weight"), vec![4, 4]),
        (format!("{block}.self_attn.k_proj.weight"), vec![2, 4]),
        (format!("{block}.self_attn.v_proj.weight"), vec![2, 4]),
        (format!("{block}.self_attn.o_proj.weight"), vec![4, 4]),
        (format!("{block}.mlp.gate_proj.weight"), vec![4, 4]),
        (format!("{block}.mlp.up_proj.weight"), vec![4, 4]),
        (format!("{block}.mlp.down_proj.weight"), vec![4, 4]),
        (format!("{block}.input_layernorm.weight"), vec![4]),
        (format!("{block}.post_attention_layernorm.weight"), vec![4]),
    ];
    for (name, shape) in tensors.into_iter().filter(|(name, _)| wanted(name)) {
        let start = data.len();
        for byte in model::noise(&name, shape.iter().product()) {
            data.extend((0x3f80 | u16::from(byte & 0x7f)).to_le_bytes());
        }
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()] }));
    }
    let header = serde_json::to_vec(&header).expect("JSON is written");
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// A weight file, and an index of two.
pub fn safetensors() -> Seeds {
    let all = weight_file(&|_| true);
    let length = u64::from_le_bytes(*all.first_chunk().expect("a length")) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&all[8..8 + length]).expect("JSON");
    let file = |tensor: &str| if tensor.contains("layers") { "model-2.safetensors" } else { "model-1.safetensors" };
    let map: Map<String, Value> = header.keys().map(|name| (name.clone(), json!(file(name)))).collect();
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map }).to_string();
    vec![("weights".to_owned(), [&[0], &all[..]].concat()), ("index".to_owned(), [&[1], index.as_bytes()].concat())]
}

/// Requests, answers and greetings.
pub fn requests() -> Seeds {
    let bytes = |wire: Wire, bytes: &[u8]| {
        let which = Wire::ALL.iter().position(|known| *known == wire).expect("it is one of all") as u8;
        assert!(read_and_write_again(wire, bytes).is_ok(), "{wire:?}");
        [&[which], bytes].concat()
    };
    let greeting =
        |content: u8, verdict: &[u8]| [b"fedprune\x01\x00", &[content][..], verdict, &[1, 0], &[9; 112]].concat();
    vec![
        ("ask".to_owned(), bytes(Wire::Ask, b"\x03\0\0\0why")),
        ("ask-answer".to_owned(), bytes(Wire::AskAnswer, b"\0\x02\0\0\0so")),
        ("ask-busy".to_owned(), bytes(Wire::AskAnswer, b"\x02")),
        ("chunk".to_owned(), bytes(Wire::Chunk, &[7; 36])),
        ("chunk-here".to_owned(), bytes(Wire::ChunkAnswer, b"\0\x01\0\0\0\x09")),
        ("chunk-not-held".to_owned(), bytes(Wire::ChunkAnswer, b"\x01")),
        ("greeting".to_owned(), bytes(Wire::Greeting, &greeting(64, &[]))),
        ("greeting-answer".to_owned(), bytes(Wire::GreetingAnswer, &greeting(65, &[2]))),
    ]
}

/// The chunk of each body.
pub fn chunks() -> Seeds {
    (0..BODIES.len()).map(|body| (format!("body-{body}"), [&[body as u8], &encoded_chunk(body)[..]].concat())).collect()
}

/// Segments, and lives of a log.
pub fn wals() -> Seeds {
    let payloads: [&[u8]; 3] = [b"first", &[7; 300], b""];
    let mut seeds = vec![
        ("segment".to_owned(), [&[0, 0], &segment(0, &payloads)[..]].concat()),
        ("segment-3".to_owned(), [&[0, 3], &segment(3, &payloads[..1])[..]].concat()),
    ];
    for number in 0..4 {
        seeds.push((format!("life-{number}"), [&[1], &bytes_of(number + 50, 600)[..]].concat()));
    }
    seeds
}

/// Journals of an unfinished run, with one block and with both.
pub fn journals() -> Seeds {
    let record = |payload: &[u8]| [&(payload.len() as u32).to_le_bytes()[..], &Digest::of(payload).0, payload].concat();
    let key = journal_key();
    let mut first = [key.model.0, key.calibration.0].concat();
    for text in [&key.recipe, &key.compute] {
        first.extend((text.len() as u32).to_le_bytes());
        first.extend(text.as_bytes());
    }
    let mut journal = [b"fedprune journal 1\n", &record(&first)[..]].concat();
    let mut seeds = Vec::new();
    let norms = MODEL.norms("a");
    for block in 0..MODEL.layout.blocks() {
        let range = MODEL.layout.block(block);
        let mut payload = (block as u64).to_le_bytes().to_vec();
        for (norms, tap) in norms.iter().zip(MODEL.layout.taps()) {
            if range.contains(&tap.start) {
                payload.extend(norms.bits().iter().flat_map(|bits| bits.to_le_bytes()));
            }
        }
        journal.extend(record(&payload));
        seeds.push((format!("blocks-{}", block + 1), journal.clone()));
    }
    seeds
}

/// One file of each kind as it is; those of one name in three rounds are mutated alike.
pub fn transcripts() -> Seeds {
    let audited = AUDITED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut kinds: Vec<(usize, String)> = Vec::new();
    let mut seeds = Vec::new();
    for (number, (world, name, bytes)) in audited.files.iter().enumerate() {
        let kind: String = name.split(|char: char| !char.is_ascii_lowercase()).filter(|part| part.len() > 3).collect();
        if kinds.contains(&(*world, kind.clone())) {
            continue;
        }
        seeds.push((format!("{world}-{kind}"), [&(number as u16).to_le_bytes()[..], bytes].concat()));
        kinds.push((*world, kind));
    }
    seeds
}

/// The manifests that the project ships, and scenarios that seeds draw.
pub fn manifests() -> Seeds {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testnet/manifests");
    let mut seeds = crate::files(&folder);
    seeds.retain(|(name, _)| name.ends_with(".toml"));
    let scenario = |seed| Scenario::stormy(seed, Shape::of_seed(seed, 4 + seed as usize));
    seeds.extend((0..3).map(|seed| (format!("scenario-{seed}.toml"), scenario(seed).to_toml().into_bytes())));
    seeds
}

/// Lists of a model in one file and of one in two, the latter with its index.
pub fn listings() -> Seeds {
    let (commit, sha256) = ("0123456789abcdef".repeat(3)[..40].to_owned(), "ab".repeat(32));
    let plain = |name: &str, bytes: u64| json!({ "rfilename": name, "size": bytes, "blobId": commit });
    let large = |name: &str, bytes: u64| json!({ "rfilename": name, "size": bytes, "blobId": commit, "lfs": { "sha256": sha256, "size": bytes, "pointerSize": 134 } });
    let list = |weights: Vec<Value>| {
        let common = [plain(".gitattributes", 1519), plain("config.json", 704), plain("tokenizer.json", 2_104_556)];
        let card = json!({ "license": "apache-2.0", "language": ["en"], "tags": [] });
        let files: Vec<Value> = common.into_iter().chain(weights).collect();
        json!({ "_id": "6", "id": "owner/name", "sha": commit, "private": false, "cardData": card, "siblings": files })
            .to_string()
            .into_bytes()
    };
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let index = json!({ "metadata": { "total_size": 30 }, "weight_map": {
        "model.embed_tokens.weight": shards[0], "model.norm.weight": shards[1],
    } });
    let sharded = list(vec![large(shards[0], 10), large(shards[1], 20), plain("model.safetensors.index.json", 155)]);
    vec![
        ("one-file".to_owned(), list(vec![large("model.safetensors", 269_060_552)])),
        ("two-files".to_owned(), [&sharded[..], &[SEPARATOR], index.to_string().as_bytes()].concat()),
    ]
}
