//! The copy of the repository in which mutants are made.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::Command;

use super::{Mutant, Outcome, TEST_TIMEOUT, Test, Verdict};
use crate::settings;

/// A copy of the files that git knows, as they are now.
#[derive(Debug)]
pub struct Workshop {
    source: PathBuf,
    target: PathBuf,
}

impl Workshop {
    /// Brings the copy up to date. Files that are alike are not touched: cargo goes by their times.
    pub async fn open() -> Result<Self> {
        let folder = settings::cache_folder()?.join("mutants");
        let workshop = Self { source: folder.join("source"), target: folder.join("target") };
        let known = known_files().await?;
        for file in &known {
            let text = fs::read(settings::repository().join(file))?;
            let copy = workshop.source.join(file);
            if fs::read(&copy).ok().as_ref() != Some(&text) {
                fs::create_dir_all(copy.parent().context("a file is in a folder")?)?;
                fs::write(&copy, text).with_context(|| format!("failed to write {}", copy.display()))?;
            }
        }
        remove_others(&workshop.source, &workshop.source, &known)?;
        Ok(workshop)
    }

    /// Runs a test as it is: one that fails anyway catches nothing.
    pub async fn expect_passing(&self, test: Test) -> Result<()> {
        ensure!(self.builds(test).await?, "the tests do not compile without any mutant");
        let output = self.run(test).await?.with_context(|| format!("{} does not end", test.name()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        // A name that no test has passes too.
        if !output.status.success() || !said.contains("1 passed") {
            bail!("{} does not pass without any mutant:\n{said}", test.name());
        }
        Ok(())
    }

    /// Makes the mutant, lets its test look at it, and unmakes it.
    pub async fn try_out(&self, mutant: &Mutant) -> Result<Outcome> {
        let started = Instant::now();
        let (before, after) = mutant.apply(&self.source)?;
        let file = self.source.join(mutant.file);
        fs::write(&file, after)?;
        let verdict = self.judge(mutant.caught_by).await;
        fs::write(&file, before)?;
        Ok(Outcome {
            mutant: mutant.name,
            breaks: mutant.breaks,
            test: mutant.caught_by.name(),
            verdict: verdict?,
            seconds: started.elapsed().as_secs_f32(),
        })
    }

    async fn judge(&self, test: Test) -> Result<Verdict> {
        if !self.builds(test).await? {
            return Ok(Verdict::DidNotCompile);
        }
        Ok(match self.run(test).await? {
            None => Verdict::Caught("the test did not end".to_owned()),
            Some(output) if output.status.success() => Verdict::Survived,
            Some(output) => Verdict::Caught(first_words(&String::from_utf8_lossy(&output.stdout))),
        })
    }

    async fn builds(&self, test: Test) -> Result<bool> {
        let output = self.cargo().args(test.binary()).args(["--quiet", "--no-run"]).output().await;
        Ok(output.context("failed to run cargo")?.status.success())
    }

    /// What the test said; nothing if it does not end.
    async fn run(&self, test: Test) -> Result<Option<Output>> {
        let mut command = self.cargo();
        command.args(test.binary()).args(["--", "--exact", &test.name()]);
        match tokio::time::timeout(TEST_TIMEOUT, command.output()).await {
            Ok(output) => Ok(Some(output.context("failed to run cargo")?)),
            Err(_) => Ok(None),
        }
    }

    /// Incremental and without debug information: a mutant changes a line, and is to be built in seconds.
    fn cargo(&self) -> Command {
        let mut command = Command::from(settings::cargo());
        command.current_dir(&self.source).env("CARGO_TARGET_DIR", &self.target);
        command.env("CARGO_INCREMENTAL", "1").env("CARGO_PROFILE_DEV_DEBUG", "0");
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }
}

async fn known_files() -> Result<BTreeSet<PathBuf>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z"]).current_dir(settings::repository());
    let output = git.output().await.context("failed to run git")?;
    ensure!(output.status.success(), "git does not know the files of {}", settings::repository().display());
    let listed = String::from_utf8(output.stdout).context("a file has a strange name")?;
    let files = listed.split('\0').filter(|file| !file.is_empty()).map(PathBuf::from);
    // Deleted, and git has not been told yet.
    Ok(files.filter(|file| settings::repository().join(file).is_file()).collect())
}

/// What was deleted or renamed since the last run must not be built any more.
fn remove_others(root: &Path, folder: &Path, known: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(root, &path, known)?;
        } else if !known.contains(path.strip_prefix(root)?) {
            fs::remove_file(&path).with_context(|| format!("failed to remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Why a test failed: what it panicked with, or its error, in one line.
fn first_words(said: &str) -> String {
    let from = said
        .lines()
        .map(str::trim)
        .skip_while(|line| !line.contains("panicked at") && !line.starts_with("Error:"));
    let told = from.take_while(|line| !line.is_empty() && !line.starts_with("note:"));
    let told: Vec<&str> = told.filter(|line| !line.contains("panicked at")).take(3).collect();
    if told.is_empty() { "the test ended without a word".to_owned() } else { told.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_are_the_panics_or_the_errors() {
        let panicked =
            "running 1 test\n\nthread 'x' (7) panicked at a.rs:1:2:\nassertion failed\n  left: 1\n";
        assert_eq!(first_words(panicked), "assertion failed left: 1");
        assert_eq!(first_words("running 1 test\n"), "the test ended without a word");
        assert_eq!(first_words("running 1 test\nError: no bucket\n\nCaused by:"), "Error: no bucket");
    }
}
