//! `cargo xtask generate`: the committed files that are made from code.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use e2e::settings;

pub(crate) fn run() -> Result<ExitCode> {
    for (path, text) in generated() {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Generated files that are missing or differ from what would be written.
pub(super) fn old_files() -> Result<Vec<PathBuf>> {
    let differs = |path: &PathBuf, text: &str| fs::read_to_string(path).map_or(true, |found| found != text);
    Ok(generated().into_iter().filter(|(path, text)| differs(path, text)).map(|(path, _)| path).collect())
}

fn generated() -> Vec<(PathBuf, String)> {
    let folder = settings::repository().join("crds/generated");
    longshore_crds::definitions().into_iter().map(|(file, yaml)| (folder.join(file), yaml)).collect()
}
