//! The commands of `cargo xtask`, a module each.

pub(crate) mod bench;
pub(crate) mod chain;
pub(crate) mod check;
pub(crate) mod demo;
pub(crate) mod faults;
pub(crate) mod generate;
pub(crate) mod images;
pub(crate) mod local;
pub(crate) mod mutants;
pub(crate) mod rights;
pub(crate) mod soak;
pub(crate) mod sweep;
pub(crate) mod test;

use std::{
    ffi::OsStr,
    fmt, fs,
    path::Path,
    process::{ExitCode, ExitStatus},
    time::Instant,
};

use anyhow::{Context as _, Result};
use e2e::{run_folder::RunFolder, settings};
use serde::Serialize;
use tokio::process::Command;

/// One step of a command: a program run at the root of the repository, its output shown as it comes.
struct Step {
    name: String,
    command: Command,
}

impl Step {
    /// A step that runs this cargo.
    fn cargo<Argument: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = Argument>) -> Self {
        let mut command = Command::new(settings::cargo());
        command.args(arguments).current_dir(settings::repository()).kill_on_drop(true);
        Self { name: name.to_owned(), command }
    }

    async fn run(mut self) -> Result<ExitStatus> {
        let program = self.command.as_std().get_program().to_string_lossy().into_owned();
        self.command.status().await.with_context(|| format!("failed to run {program} for {}", self.name))
    }
}

/// Runs all steps, also after one has failed, and says at the end how each went.
async fn run_all(steps: Vec<Step>) -> Result<ExitCode> {
    let mut results = Vec::new();
    for step in steps {
        let name = step.name.clone();
        eprintln!("==> {name}");
        let started = Instant::now();
        let passed = step.run().await?.success();
        results.push((name, passed, started.elapsed()));
    }
    eprintln!();
    for (name, passed, took) in &results {
        eprintln!("{} {name} ({:.1} s)", if *passed { "passed" } else { "FAILED" }, took.as_secs_f32());
    }
    let all_passed = results.iter().all(|(_, passed, _)| *passed);
    Ok(if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows the result of a trial, writes it down if asked, and says what was wrong: then the command fails.
fn conclude(
    report: &(impl fmt::Display + Serialize),
    faults: &[String],
    json: Option<&Path>,
) -> Result<ExitCode> {
    println!("{report}");
    if let Some(file) = json {
        fs::write(file, serde_json::to_string_pretty(report)? + "\n")
            .with_context(|| format!("failed to write {}", file.display()))?;
    }
    if faults.is_empty() {
        println!("Nothing failed, nothing was lost, nothing doubled.");
        return Ok(ExitCode::SUCCESS);
    }
    for fault in faults {
        println!("FAULT: {fault}");
    }
    say_where_logs_are()?;
    Ok(ExitCode::FAILURE)
}

/// Of what failed the logs are kept, and it is said where.
fn keep_logs_of<T>(run: Result<T>) -> Result<T> {
    if run.is_err() {
        say_where_logs_are()?;
    }
    run
}

fn say_where_logs_are() -> Result<()> {
    let logs = RunFolder::current()?.keep_logs()?;
    eprintln!("logs and the history of all requests: {} (until `cargo xtask down`)", logs.display());
    Ok(())
}
