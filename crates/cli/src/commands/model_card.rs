//! The `README.md` of a pruned folder.

use std::fmt::Write;
use std::path::Path;

use fedprune_checkpoint::Checkpoint;
use fedprune_mask::Digest;

use super::agreement;
use super::recipe::{PICTURE_FILE, RECIPE_FILE};
use crate::output::{count, percent};
use crate::version;

/// What the card says.
pub(crate) struct ModelCard<'a> {
    pub checkpoint: &'a Checkpoint,
    pub base_digest: Digest,
    pub mask_root: Digest,
    /// Names and values of the recipe.
    pub recipe: Vec<(String, String)>,
    pub scaled: bool,
    pub pruned_weights: u64,
    /// (kind, pruned, of how many).
    pub pruned_by_kind: &'a [(String, u64, u64)],
    /// How far the votes agree, and what votes drawn at random would come to.
    pub agreement: Option<(f64, f64)>,
    pub mask_file: &'a str,
    /// The folder that the card goes into.
    pub out: &'a Path,
}

/// The part of a matrix's name that recurs in every block: `self_attn.q_proj`.
pub(crate) fn matrix_kind(name: &str) -> &str {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, kind)| kind)
}

impl ModelCard<'_> {
    /// The card, in Markdown with the front matter that model hubs read.
    pub fn text(&self, pruned_digest: Digest, base_card: Option<&str>) -> String {
        let layout = self.checkpoint.layout();
        let folder = self.checkpoint.dir();
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        // a folder's name comes from outside: only what cannot break Markdown or YAML is repeated
        let plain = |path: &Path| -> String {
            let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            name.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect()
        };
        let (base, name) = (plain(&folder), plain(self.out));
        let share = percent(self.pruned_weights, layout.weights());
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- pruned\n- fedprune\n---\n\n\
             # {name}\n\n`{base}`, pruned. \
             {} of the {} weights of its linear layers ({share}) are zero; embeddings, norms, biases and head are \
             unchanged.{} The files are as large as before, and no faster without kernels for sparse weights.\n\
             Made with {}.\n\n",
            count(self.pruned_weights),
            count(layout.weights()),
            if self.scaled { " Kept weights are scaled by the share of silos that would keep them." } else { "" },
            version::name(),
        );
        let _ = writeln!(text, "| recipe | |\n|---|---|");
        for (name, value) in &self.recipe {
            let _ = writeln!(text, "| {name} | {value} |");
        }
        let _ = write!(
            text,
            "\n| digest (BLAKE3) | |\n|---|---|\n\
             | Base model, content | `{}` |\n| This model, content | `{pruned_digest}` |\n\
             | Layout | `{}` |\n| Mask root | `{}` |\n\n",
            self.base_digest,
            layout.digest(),
            self.mask_root,
        );
        let _ = writeln!(text, "| matrices | pruned | weights | share |\n|---|---:|---:|---:|");
        for (kind, pruned, weights) in self.pruned_by_kind {
            let share = percent(*pruned, *weights);
            let _ = writeln!(text, "| `{kind}` | {} | {} | {share} |", count(*pruned), count(*weights));
        }
        let agreement = self.agreement.map_or_else(String::new, |(votes, chance)| {
            format!(
                "![agreement of the votes by block and matrix]({})\n\nOf weights and pairs of votes, {:.1} % say the same; votes \
                 drawn at random would in {:.1} %.\n\n",
                agreement::PICTURE_FILE,
                votes * 100.0,
                chance * 100.0
            )
        });
        let _ = write!(
            text,
            "\n![share of zeros by block and matrix]({PICTURE_FILE})\n\n{agreement}`{}` holds the mask, `{RECIPE_FILE}` how to make all this \
             again. The folder loads as the base model does:\n\n\
             ```python\nfrom transformers import AutoModelForCausalLM\n\
             model = AutoModelForCausalLM.from_pretrained(\"{name}\")\n```\n\n\
             Whether these are the weights that were written: `fedprune model inspect .` prints the content digest \
             above. Whether the mask was made for a base model: `fedprune mask show {0} --model BASE`.\n",
            self.mask_file,
        );
        if let Some(base_card) = base_card {
            let _ = writeln!(text, "\nThe base model's own card, licence included, is [{base_card}]({base_card}).");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::matrix_kind;

    #[test]
    fn kinds_recur_in_every_block() {
        assert_eq!(matrix_kind("model.layers.12.self_attn.q_proj.weight"), "self_attn.q_proj");
        assert_eq!(matrix_kind("model.layers.0.mlp.down_proj.weight"), "mlp.down_proj");
        assert_eq!(matrix_kind("other"), "other");
    }
}
