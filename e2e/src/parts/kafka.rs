//! Apache Kafka from Maven Central: the jars that `e2e/kafka/pom.xml` names, and what they depend on.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use tokio::process::Command;

use super::{Recipe, output, run_with_progress};
use crate::settings;

/// Named with its version, so that no newer plugin changes what its options mean.
const COPY_GOAL: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";
const FETCH_EXPECTED: Duration = Duration::from_secs(15);

/// A folder with `kafka/*.jar`, and the same as `kafka.tar` for an image.
pub async fn kafka() -> Result<PathBuf> {
    let pom = settings::repository().join("e2e/kafka/pom.xml");
    let ingredients = [&fs::read(&pom)?, COPY_GOAL.as_bytes(), include_bytes!("kafka.rs").as_slice()];
    let recipe = Recipe::new("kafka", &ingredients);
    recipe.provide(async |folder: &Path| fetch(&pom, folder).await).await
}

async fn fetch(pom: &Path, folder: &Path) -> Result<()> {
    // Maven starts as a script that complains in its own words where there is no Java.
    output(Command::new("java").arg("-version")).await?;
    let mut maven = Command::new("mvn");
    maven.args(["-q", "-B", COPY_GOAL, "-DincludeScope=runtime", "-f"]).arg(pom);
    maven.arg(format!("-DoutputDirectory={}", folder.join("kafka").display()));
    run_with_progress("fetching Kafka", FETCH_EXPECTED, &mut maven).await?;
    let mut tar = Command::new("tar");
    // The same archive of the same jars: an image's tag is a hash of its content.
    tar.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-cf"]);
    output(tar.arg(folder.join("kafka.tar")).arg("-C").arg(folder).arg("kafka")).await?;
    Ok(())
}
