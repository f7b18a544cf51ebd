//! `fedprune model fetch`: a model from the Hugging Face Hub.

#[cfg(not(feature = "fetch"))]
pub use absent::run;
#[cfg(feature = "fetch")]
pub use present::run;

/// What a program without this command says.
#[cfg_attr(feature = "fetch", allow(dead_code, reason = "for programs without it"))]
fn not_built(name: &str) -> String {
    format!(
        "this program was built without `model fetch`; build it with: cargo install --path crates/cli --features fetch. Or put the \
         files of https://huggingface.co/{name} into one folder by hand: config.json, tokenizer.json, and model.safetensors or \
         model.safetensors.index.json with the files that it names"
    )
}

#[cfg(not(feature = "fetch"))]
mod absent {
    use crate::args::FetchOptions;
    use crate::output::tame;
    use crate::progress::Meter;

    /// No answer.
    #[derive(Debug, serde::Serialize)]
    pub enum FetchReport {}

    crate::report!(FetchReport);

    impl FetchReport {
        fn text(&self) -> String {
            match *self {}
        }
    }

    /// Says what to do instead.
    ///
    /// # Errors
    /// Always.
    pub fn run(options: &FetchOptions, _meter: &Meter) -> anyhow::Result<FetchReport> {
        anyhow::bail!(super::not_built(&tame(&options.name)))
    }
}

#[cfg(feature = "fetch")]
mod present {
    use std::path::{Path, PathBuf};
    use std::time::Instant;

    use anyhow::{Context, bail};
    use fedprune_checkpoint::{Checkpoint, ModelConfig, PROVENANCE_FILE, available_bytes};
    use fedprune_hub::{DEFAULT_ENDPOINT, Hub, Observer, Provenance, RepositoryName, Request, Revision, Settings};
    use serde::Serialize;

    use crate::args::FetchOptions;
    use crate::commands::content_digest;
    use crate::files::{absolute, check_new, program, shell};
    use crate::interrupt;
    use crate::output::{bytes, facts};
    use crate::progress::{Meter, Task};
    use crate::version;

    /// The answer of `fedprune model fetch`.
    #[derive(Debug, Serialize)]
    pub struct FetchReport {
        #[serde(serialize_with = "crate::output::lossy::path")]
        out: PathBuf,
        #[serde(flatten)]
        provenance: Provenance,
        /// Of all files.
        bytes: u64,
        /// Of those, how many were there from an earlier run.
        resumed_bytes: u64,
        seconds: f64,
    }

    crate::report!(FetchReport);

    /// Who is shown how far it is.
    struct Watch {
        task: Task,
    }

    impl Observer for Watch {
        fn planned(&mut self, bytes: u64) {
            self.task.of(bytes);
        }

        fn advanced(&mut self, bytes: u64) {
            self.task.advance(bytes);
        }
    }

    /// Fetches a model.
    ///
    /// # Errors
    /// Who or what is in the way, and what to do.
    pub fn run(options: &FetchOptions, meter: &Meter) -> anyhow::Result<FetchReport> {
        let started = Instant::now();
        let name: RepositoryName = options.name.parse()?;
        let revision: Revision = options.revision.parse()?;
        let out = match &options.out {
            Some(out) => out.clone(),
            None => PathBuf::from(name.model()),
        };
        // without a slash at its end, beside which something else grows
        let out: PathBuf = absolute(&out)?.components().collect();
        check_new(&out)?;
        let hub = Hub::new(&Settings {
            endpoint: endpoint(options)?,
            token: variable("HF_TOKEN")?,
            program: format!("fedprune/{}", version::number()),
        })?;
        interrupt::set_hint("what came is kept, and the same command goes on");
        let request = Request {
            name: &name,
            revision: &revision,
            out: &out,
            provenance: PROVENANCE_FILE,
            program: &version::name(),
            room: &available_bytes,
            suits: &|config: &Path| ModelConfig::read(config).map(|_| ()).map_err(Into::into),
        };
        let mut watch = Watch { task: meter.task(format!("fetching {name}"), 0, true) };
        let ready = hub.fetch(&request, &mut watch)?;
        drop(watch);
        let unusable = || {
            let kept = shell(ready.folder());
            format!(
                "`{name}` at commit {} came as the hub lists it, and is no model that can be used here; it is in {kept}",
                ready.commit()
            )
        };
        let checkpoint = Checkpoint::open(ready.folder()).with_context(unusable)?;
        let digest = content_digest(&checkpoint, meter);
        drop(checkpoint);
        let resumed_bytes = ready.resumed_bytes();
        let provenance = ready.finish(digest.to_string())?;
        let bytes = provenance.files.iter().map(|file| file.bytes).sum();
        Ok(FetchReport { out, provenance, bytes, resumed_bytes, seconds: started.elapsed().as_secs_f64() })
    }

    /// As typed, or from the environment.
    fn endpoint(options: &FetchOptions) -> anyhow::Result<String> {
        match &options.endpoint {
            Some(endpoint) => Ok(endpoint.clone()),
            None => Ok(variable("HF_ENDPOINT")?.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned())),
        }
    }

    /// A variable of the environment that says something.
    fn variable(name: &str) -> anyhow::Result<Option<String>> {
        match std::env::var(name) {
            Ok(value) if value.trim().is_empty() => Ok(None),
            Ok(value) => Ok(Some(value.trim().to_owned())),
            Err(std::env::VarError::NotPresent) => Ok(None),
            // a token is not repeated
            Err(std::env::VarError::NotUnicode(_)) => bail!("the variable {name} of the environment is no text"),
        }
    }

    impl FetchReport {
        fn text(&self) -> String {
            let from = &self.provenance;
            let licence = from.licence.as_deref().unwrap_or("its card names none; see there");
            let mut rows = vec![
                ("model", self.out.display().to_string()),
                ("from", format!("{}/{}", from.hub, from.repository)),
                ("revision", from.revision.clone()),
                ("commit", from.commit.clone()),
                ("licence", licence.to_owned()),
                ("content", from.content_digest.clone().unwrap_or_default()),
                ("files", format!("{}, {}", from.files.len(), bytes(self.bytes))),
            ];
            if self.resumed_bytes > 0 {
                rows.push(("of an earlier run", bytes(self.resumed_bytes)));
            }
            rows.push(("time", format!("{:.1} s", self.seconds)));
            format!(
                "{}the same again: {program} model fetch {} --revision {}\nnext: {program} model inspect {}",
                facts(&rows),
                from.repository,
                from.commit,
                shell(&self.out),
                program = program(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_program_without_it_says_what_to_do() {
        let said = super::not_built("a/b");
        for part in ["--features fetch", "https://huggingface.co/a/b", "model.safetensors.index.json"] {
            assert!(said.contains(part), "{said}");
        }
    }
}
