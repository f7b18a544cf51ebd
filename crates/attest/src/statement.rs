//! What is attested, as in-toto Statement v1: a ballot, with a predicate of ours; and the result of a round, as SLSA
//! provenance v1 of the pruned model's files.
//!
//! Both are functions of what the members agreed on and of the files, so that every member who attests the same writes the
//! same bytes. Who committed, when, and over which views is in no statement: transcripts differ in that.

use std::collections::BTreeMap;

use fedprune_federation::{Consortium, ConsortiumId, Height, Round, RoundId};
use fedprune_mask::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::files::FileDigest;

/// What a statement is, to whoever reads it.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// The predicate of a ballot.
pub const BALLOT_TYPE: &str = "https://github.com/fedprune/fedprune/attestation/ballot/v1";
/// The predicate of a result.
pub const RESULT_TYPE: &str = "https://slsa.dev/provenance/v1";
/// What a round is, as a build.
pub const BUILD_TYPE: &str = "https://github.com/fedprune/fedprune/build/round/v1";
/// Most bytes of a statement.
pub const STATEMENT_LIMIT: usize = 4 << 20;

/// A statement that was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    kind: String,
    /// What it is about.
    pub subject: Vec<Subject>,
    /// What the predicate is.
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    /// What is said.
    pub predicate: Value,
}

/// Something that a statement is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Its name.
    pub name: String,
    /// Its digests, in hexadecimal, by algorithm.
    pub digest: BTreeMap<String, String>,
}

/// What is said of a ballot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BallotPredicate {
    /// The consortium.
    pub consortium: ConsortiumId,
    /// The round.
    pub round: RoundId,
    /// The height.
    pub height: Height,
    /// Name of the member.
    pub member: String,
    /// Bytes of the ballot.
    pub ballot_bytes: u64,
}

/// What is said of a result, as far as it can be held against anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultClaim {
    /// The consortium.
    pub consortium: ConsortiumId,
    /// The round.
    pub round: RoundId,
    /// The mask root of the whole model.
    pub mask_root: Digest,
}

/// A ballot that counts: height, name of the member, digest.
pub type Counted = (Height, String, Digest);

/// Why there is no such statement.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// Larger than any.
    #[error("the statement has {0} bytes, more than the {STATEMENT_LIMIT} of any")]
    TooLarge(usize),
    /// No statement.
    #[error("it is no in-toto statement")]
    Json(#[from] serde_json::Error),
    /// Of another version or kind.
    #[error("it is a `{0}`, and `{STATEMENT_TYPE}` is expected")]
    Type(String),
    /// A predicate that is not known here.
    #[error("its predicate is `{0}`, which is neither of a ballot nor of a result")]
    Predicate(String),
    /// A predicate that does not say what it should.
    #[error("its predicate has no `{0}`, or not as this program writes it")]
    Lacks(&'static str),
    /// The round cannot be written as parameters.
    #[error("the round cannot be written down: {0}")]
    Round(String),
}

impl Statement {
    /// That a member cast a ballot; `sha256` is that of its bytes, for programs that know no BLAKE3.
    ///
    /// # Errors
    /// [`StatementError::Json`] never in practice.
    pub fn ballot(predicate: &BallotPredicate, ballot: Digest, sha256: &str) -> Result<Self, StatementError> {
        let name = format!("ballot of {} at height {}", predicate.member, predicate.height);
        let digest = [("blake3", ballot.to_string()), ("sha256", sha256.to_owned())];
        let digest = digest.map(|(algorithm, digest)| (algorithm.to_owned(), digest)).into();
        Ok(Self {
            kind: STATEMENT_TYPE.to_owned(),
            subject: vec![Subject { name, digest }],
            predicate_type: BALLOT_TYPE.to_owned(),
            predicate: serde_json::to_value(predicate)?,
        })
    }

    /// That a round came to these files.
    ///
    /// # Errors
    /// [`StatementError::Round`] for a round that has no document.
    pub fn result(
        consortium: &Consortium,
        round: &Round,
        ballots: &[Counted],
        mask_root: Digest,
        files: &[FileDigest],
    ) -> Result<Self, StatementError> {
        let terms = round.terms();
        let named = |name: &str, algorithm: &str, digest: String| {
            let mut digests = Map::new();
            digests.insert(algorithm.to_owned(), Value::String(digest));
            json!({ "name": name, "digest": digests })
        };
        let mut dependencies = vec![
            named("base model, content", "fedpruneContentV1", terms.base_model.to_string()),
            named("base model, layout", "fedpruneLayoutV1", terms.layout.to_string()),
            named("base model, configuration", "fedpruneConfigurationV1", terms.configuration.to_string()),
            named("base model, tokenizer", "fedpruneTokenizerV1", terms.tokenizer.to_string()),
            named("consortium.bin", "blake3", consortium.id().to_string()),
            named("round.bin", "blake3", round.id().to_string()),
        ];
        let mut contributors: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (height, member, ballot) in ballots {
            let name = format!("ballot of {member} at height {height}");
            dependencies.push(named(&name, "blake3", ballot.to_string()));
            contributors.entry(format!("height {:04}", height.0)).or_default().push(member);
        }
        let first = ballots.first().map_or(0, |(height, ..)| height.0);
        let last = ballots.last().map_or(0, |(height, ..)| height.0);
        let heights = if first == last { format!("height:{first}") } else { format!("heights:{first}-{last}") };
        let subject = |file: &FileDigest| Subject {
            name: file.name.clone(),
            digest: [("sha256".to_owned(), file.sha256.clone())].into(),
        };
        Ok(Self {
            kind: STATEMENT_TYPE.to_owned(),
            subject: files.iter().filter(|file| is_subject(&file.name)).map(subject).collect(),
            predicate_type: RESULT_TYPE.to_owned(),
            predicate: json!({
                "buildDefinition": {
                    "buildType": BUILD_TYPE,
                    "externalParameters": parameters(consortium, round)?,
                    "internalParameters": { "contributors": contributors, "maskRoot": mask_root.to_string() },
                    "resolvedDependencies": dependencies,
                },
                "runDetails": {
                    "builder": { "id": format!("urn:fedprune:consortium:{}", consortium.id()) },
                    "metadata": { "invocationId": format!("urn:fedprune:round:{}:{heights}", round.id()) },
                },
            }),
        })
    }

    /// Reads a statement.
    ///
    /// # Errors
    /// [`StatementError`] for anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, StatementError> {
        if bytes.len() > STATEMENT_LIMIT {
            return Err(StatementError::TooLarge(bytes.len()));
        }
        let statement: Self = serde_json::from_slice(bytes)?;
        if statement.kind != STATEMENT_TYPE {
            return Err(StatementError::Type(statement.kind.chars().take(100).collect()));
        }
        Ok(statement)
    }

    /// Its bytes, to be signed.
    ///
    /// # Errors
    /// [`StatementError::Json`] never in practice.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StatementError> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() > STATEMENT_LIMIT { Err(StatementError::TooLarge(bytes.len())) } else { Ok(bytes) }
    }

    /// What it says of a ballot, if it is of one.
    ///
    /// # Errors
    /// [`StatementError::Json`] for a predicate that says something else.
    pub fn as_ballot(&self) -> Result<Option<BallotPredicate>, StatementError> {
        if self.predicate_type != BALLOT_TYPE {
            return Ok(None);
        }
        Ok(Some(BallotPredicate::deserialize(&self.predicate)?))
    }

    /// What it says of a result.
    ///
    /// # Errors
    /// [`StatementError`] for another predicate, or one without what this program writes.
    pub fn as_result(&self) -> Result<ResultClaim, StatementError> {
        if self.predicate_type != RESULT_TYPE {
            return Err(StatementError::Predicate(self.predicate_type.chars().take(100).collect()));
        }
        let text = |path: &str, what: &'static str| {
            self.predicate.pointer(path).and_then(Value::as_str).ok_or(StatementError::Lacks(what))
        };
        if text("/buildDefinition/buildType", "buildType")? != BUILD_TYPE {
            return Err(StatementError::Lacks("buildType"));
        }
        let builder = text("/runDetails/builder/id", "builder.id")?;
        let invocation = text("/runDetails/metadata/invocationId", "invocationId")?;
        let mask_root = text("/buildDefinition/internalParameters/maskRoot", "maskRoot")?;
        let consortium = builder.strip_prefix("urn:fedprune:consortium:").and_then(|id| id.parse().ok());
        let round = invocation.strip_prefix("urn:fedprune:round:").and_then(|rest| rest.split(':').next());
        Ok(ResultClaim {
            consortium: consortium.ok_or(StatementError::Lacks("builder.id"))?,
            round: round.and_then(|id| id.parse().ok()).ok_or(StatementError::Lacks("invocationId"))?,
            mask_root: mask_root.parse().map_err(|_| StatementError::Lacks("maskRoot"))?,
        })
    }

    /// What differs between its subjects and the files of a folder, if anything does.
    pub fn differs_from(&self, files: &[FileDigest]) -> Option<String> {
        let mut expected: BTreeMap<&str, Option<&str>> = BTreeMap::new();
        for subject in &self.subject {
            let sha256 = subject.digest.get("sha256").map(String::as_str);
            if expected.insert(&subject.name, sha256).is_some() {
                return Some(format!("`{}` is attested twice", subject.name));
            }
        }
        for file in files.iter().filter(|file| is_subject(&file.name)) {
            match expected.remove(file.name.as_str()) {
                None => return Some(format!("`{}` is not among the files that are attested", file.name)),
                Some(sha256) if sha256 != Some(file.sha256.as_str()) => {
                    return Some(format!("`{}` is another file than the one that is attested", file.name));
                }
                Some(_) => {}
            }
        }
        expected.keys().next().map(|name| format!("`{name}` is attested and is not there"))
    }
}

/// Whether a result is about a file: cards for people repeat the names of folders and differ between members.
fn is_subject(name: &str) -> bool {
    !name.to_ascii_lowercase().ends_with(".md")
}

/// The terms of a round, as `round.toml` has them.
fn parameters(consortium: &Consortium, round: &Round) -> Result<Value, StatementError> {
    let failed = |error: &dyn std::fmt::Display| StatementError::Round(error.to_string());
    let text = round.to_toml(consortium).map_err(|error| failed(&error))?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| failed(&error))?;
    serde_json::to_value(table).map_err(StatementError::Json)
}
