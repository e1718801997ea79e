//! Kafka's programs, as a JVM runs them: from the jars, with an archive of the classes that a broker loads.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Result;

use super::{
    User,
    broker::{Broker, new_id},
};
use crate::{
    authority::Authority,
    parts::{self, Recipe},
    run_folder::RunFolder,
};

const END_DEADLINE: Duration = Duration::from_secs(120);
const ARCHIVE: &str = "broker.jsa";

/// What Kafka's programs are run with.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    jars: PathBuf,
    /// About the archive; none for the broker that makes it.
    archive: Option<String>,
}

impl Programs {
    pub(super) async fn provide() -> Result<Self> {
        let mut programs = Self { jars: parts::kafka().await?.join("kafka"), archive: None };
        // The JVM complains of an archive, and does without, unless it is of the very same files and of itself.
        let jvm = parts::output(tokio::process::Command::new("java").arg("--version")).await?;
        let files = format!("{} {:?}", programs.jars.display(), fs::metadata(&programs.jars)?.modified()?);
        let ingredients = [files.as_bytes(), jvm.as_bytes(), include_bytes!("programs.rs")];
        let recipe = Recipe::new("kafka-classes", &ingredients);
        let archive = recipe.provide(async |folder: &Path| programs.archive_classes(folder).await).await?;
        // Not every JVM leaves one: brokers then start as slowly as this one did.
        let archive = Some(archive.join(ARCHIVE)).filter(|archive| archive.is_file());
        programs.archive = archive.map(|archive| format!("-XX:SharedArchiveFile={}", archive.display()));
        Ok(programs)
    }

    /// The folder that holds them.
    pub(super) fn jars(&self) -> &Path {
        &self.jars
    }

    /// A third of what a broker's start takes is to find its classes and to check them. A broker that ends writes down what came of it.
    async fn archive_classes(&self, folder: &Path) -> Result<()> {
        let archive = folder.join(ARCHIVE);
        let archiving =
            Self { archive: Some(format!("-XX:ArchiveClassesAtExit={}", archive.display())), ..self.clone() };
        let place = RunFolder::current()?.folder(&format!("kafka-classes-{}", new_id()), 0o700)?;
        let broker = Broker::plan(1, &place, None).await?;
        broker.configure(&broker.as_voter(), &Authority::new()?)?;
        broker.format(self, &new_id(), &User::new()).await?;
        broker.spawn(&archiving)?;
        broker.await_ready(1).await?;
        broker.terminate(END_DEADLINE).await?;
        Ok(fs::remove_dir_all(place)?)
    }

    /// Runs a class of them. Compiled once and lightly: a short life is not worth more.
    pub(super) fn command(&self, heap: &str, log_level: &str, class: &str) -> Command {
        let mut command = Command::new("java");
        command.arg(format!("-Xmx{heap}")).args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        command.arg("-XX:-UsePerfData"); // what jps would read stays behind after kill -9
        command.args(&self.archive);
        command.arg(format!("-Dorg.slf4j.simpleLogger.defaultLogLevel={log_level}"));
        command.args([
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.showShortLogName=true",
        ]);
        command.arg("-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS");
        // It lists all settings at every start.
        command.arg("-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn");
        command.arg("-cp").arg(self.jars.join("*")).arg(class);
        command
    }
}
