//! The files of a study that others read; each is there whole or not at all.
//!
//! | file | what |
//! |---|---|
//! | `results.json` | [`Results`] as they are |
//! | `results.csv` | the records, a line each |
//! | `report.md` | tables, and what they say |
//! | `figures/*.svg`, `*.png` | the figures |
//! | `study.toml` | the plan that was run |

use std::io::Write;
use std::path::Path;

use crate::error::StudyError;
use crate::results::Results;
use crate::store::new_file_in;
use crate::{figures, report};

/// Writes `results.json` and `results.csv`.
///
/// # Errors
/// [`StudyError::Io`].
pub fn write_results(folder: &Path, results: &Results) -> Result<(), StudyError> {
    let path = folder.join("results.json");
    let json = serde_json::to_vec_pretty(results).map_err(|error| StudyError::Io {
        action: "write",
        path: path.clone(),
        source: error.into(),
    })?;
    replace(&path, &json)?;
    replace(&folder.join("results.csv"), results.csv().as_bytes())
}

/// Keeps the plan beside what it came to.
///
/// # Errors
/// [`StudyError::Io`].
pub fn write_plan(folder: &Path, text: &str) -> Result<(), StudyError> {
    replace(&folder.join("study.toml"), text.as_bytes())
}

/// Writes results, report and figures; the names of all files.
///
/// # Errors
/// [`StudyError::Io`], [`StudyError::Figure`].
pub fn write_report(folder: &Path, results: &Results) -> Result<Vec<String>, StudyError> {
    write_results(folder, results)?;
    let mut files = vec!["results.json".to_owned(), "results.csv".to_owned()];
    let drawn = figures::draw(results)?;
    let place = folder.join("figures");
    std::fs::create_dir_all(&place).map_err(StudyError::io("create", &place))?;
    for figure in &drawn {
        for (ending, bytes) in [("svg", figure.svg.as_bytes()), ("png", figure.png.as_slice())] {
            let name = format!("{}.{ending}", figure.name);
            replace(&place.join(&name), bytes)?;
            files.push(format!("figures/{name}"));
        }
    }
    let command = "fedprune study run STUDY.toml --out DIR";
    replace(&folder.join("report.md"), report::markdown(results, &drawn, command).as_bytes())?;
    files.push("report.md".to_owned());
    Ok(files)
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), StudyError> {
    let folder = path.parent().unwrap_or(path);
    let mut file = new_file_in(folder)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_data()).map_err(StudyError::io("write", path))?;
    let persisted = file.persist(path);
    persisted.map_err(|error| StudyError::Io { action: "write", path: path.to_owned(), source: error.error })?;
    Ok(())
}
