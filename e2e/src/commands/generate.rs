//! `cargo xtask generate`: the committed files that are made from code or from other files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use e2e::{
    charts::{Render, Variant},
    fleet::example,
    settings,
};

/// Where nothing but generated files may be.
const FOLDERS: [&str; 4] =
    ["crds/generated", "charts/longshore/files/crds", "charts/shop/files/migrations", "e2e/golden"];

/// By their paths.
type Files = BTreeMap<PathBuf, String>;

pub(crate) async fn run() -> Result<ExitCode> {
    // What charts render follows from what is copied into them.
    write(&copies()?)?;
    write(&golden(&renders().await?)?)?;
    for file in stray(&all(&renders().await?)?)? {
        fs::remove_file(&file).with_context(|| format!("failed to remove {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(files: &Files) -> Result<()> {
    for (path, text) in files {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Generated files that are missing or differ from what would be written, and files that would not be.
pub(super) fn old_files(renders: &[Render]) -> Result<Vec<PathBuf>> {
    let files = all(renders)?;
    let mut old = stray(&files)?;
    let differs = |path: &PathBuf, text: &str| fs::read_to_string(path).map_or(true, |found| found != text);
    old.extend(files.into_iter().filter(|(path, text)| differs(path, text)).map(|(path, _)| path));
    Ok(old)
}

/// What each chart renders to with each of its values files.
pub(super) async fn renders() -> Result<Vec<Render>> {
    let mut renders = Vec::new();
    for variant in Variant::all()? {
        renders.push(variant.render().await?);
    }
    Ok(renders)
}

fn all(renders: &[Render]) -> Result<Files> {
    let mut files = copies()?;
    files.extend(golden(renders)?);
    Ok(files)
}

/// Custom resource definitions, and what charts need of what lies elsewhere: Helm reads no file outside of a chart.
fn copies() -> Result<Files> {
    let root = settings::repository();
    let mut files = Files::new();
    for (file, yaml) in longshore_crds::definitions() {
        for folder in ["crds/generated", "charts/longshore/files/crds"] {
            files.insert(root.join(folder).join(file), yaml.clone());
        }
    }
    let roles = root.join("operator/sql/roles.sql");
    files.insert(root.join("charts/shop/files/roles.sql"), read(&roles)?);
    for migration in entries(&root.join("services/order/migrations"))? {
        let name = migration.file_name().context("a file has a name")?;
        files.insert(root.join("charts/shop/files/migrations").join(name), read(&migration)?);
    }
    Ok(files)
}

/// Renders, and what a fleet is made into, to be looked at in a review.
fn golden(renders: &[Render]) -> Result<Files> {
    let folder = settings::repository().join("e2e/golden");
    let file = |render: &Render| (folder.join(format!("{}.yaml", render.name)), render.yaml.clone());
    let mut files: Files = renders.iter().map(file).collect();
    files.insert(folder.join(example::GOLDEN), example::golden()?);
    Ok(files)
}

/// Files that stand where only generated ones may, and that nothing generates any more.
fn stray(files: &Files) -> Result<Vec<PathBuf>> {
    let mut stray = Vec::new();
    for folder in FOLDERS {
        stray.extend(entries(&settings::repository().join(folder))?);
    }
    stray.retain(|path| !files.contains_key(path));
    Ok(stray)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(folder).with_context(|| format!("failed to read {}", folder.display()))?;
    read.map(|entry| Ok(entry?.path())).collect()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
}
