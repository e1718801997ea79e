//! The commands of `cargo xtask`, a module each.

pub(crate) mod bench;
pub(crate) mod chain;
pub(crate) mod check;
pub(crate) mod demo;
pub(crate) mod faults;
pub(crate) mod fleet;
pub(crate) mod generate;
pub(crate) mod images;
pub(crate) mod kafka;
pub(crate) mod local;
pub(crate) mod mutants;
pub(crate) mod rights;
pub(crate) mod soak;
pub(crate) mod sweep;
pub(crate) mod test;

use std::{
    ffi::OsStr,
    fmt, fs, io,
    path::Path,
    process::{ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use e2e::{run_folder::RunFolder, settings};
use futures::{StreamExt as _, stream::FuturesUnordered};
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::Command,
};

/// One step of a command: a program run at the root of the repository, its output shown as it comes.
struct Step {
    name: String,
    command: Command,
}

impl Step {
    /// A step that runs this cargo.
    fn cargo<Argument: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = Argument>) -> Self {
        let mut command = Command::from(settings::cargo());
        command.args(arguments).current_dir(settings::repository()).kill_on_drop(true);
        Self { name: name.to_owned(), command }
    }

    async fn run(mut self) -> Result<ExitStatus> {
        self.command.status().await.with_context(|| self.failure())
    }

    /// As above, with its name before each line that it prints; what it prints of failed tests is also returned.
    async fn run_marked(mut self) -> Result<(ExitStatus, Vec<String>)> {
        let mut process = self
            .command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| self.failure())?;
        let mark = |line: String| format!("{} | {line}", self.name);
        let (out, err) = (process.stdout.take(), process.stderr.take());
        let mut failures = Failures::default();
        let (_, _, status) = tokio::try_join!(
            copy_lines(out, |line| {
                failures.read(&line);
                println!("{}", mark(line));
            }),
            copy_lines(err, |line| eprintln!("{}", mark(line))),
            process.wait(),
        )?;
        Ok((status, failures.lines))
    }

    fn failure(&self) -> String {
        format!("failed to run {} for {}", self.command.as_std().get_program().display(), self.name)
    }
}

async fn copy_lines(from: Option<impl AsyncRead + Unpin>, mut to: impl FnMut(String)) -> io::Result<()> {
    let Some(from) = from else { return Ok(()) };
    let mut lines = BufReader::new(from).lines();
    while let Some(line) = lines.next_line().await? {
        to(line);
    }
    Ok(())
}

/// What libtest prints of failed tests, between "failures:" and the list of their names, but for backtraces: among other steps'
/// output it is far from the end, where one looks.
#[derive(Default)]
struct Failures {
    within: bool,
    in_backtrace: bool,
    lines: Vec<String>,
}

impl Failures {
    fn read(&mut self, line: &str) {
        if line == "failures:" {
            // It comes twice: before what they printed and before their names.
            (self.within, self.in_backtrace) = (!self.within, false);
            return;
        }
        if line.starts_with("---- ") {
            self.in_backtrace = false;
        } else if line.eq_ignore_ascii_case("stack backtrace:") {
            self.in_backtrace = true;
        }
        if self.within && !self.in_backtrace && !line.is_empty() {
            self.lines.push(line.to_owned());
        }
    }
}

/// How each step of a command went, and how long it took.
#[derive(Default)]
struct Results(Vec<(String, bool, Duration)>);

impl Results {
    fn add(&mut self, name: String, status: ExitStatus, started: Instant) {
        self.0.push((name, status.success(), started.elapsed()));
    }

    fn conclude(&self) -> ExitCode {
        eprintln!();
        for (name, passed, took) in &self.0 {
            eprintln!("{} {name} ({:.1} s)", if *passed { "passed" } else { "FAILED" }, took.as_secs_f32());
        }
        if self.0.iter().all(|(_, passed, _)| *passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Runs all steps, also after one has failed, and says at the end how each went.
async fn run_all(steps: Vec<Step>) -> Result<ExitCode> {
    let mut results = Results::default();
    for step in steps {
        let (name, started) = (step.name.clone(), Instant::now());
        eprintln!("==> {name}");
        results.add(name, step.run().await?, started);
    }
    Ok(results.conclude())
}

/// Runs all steps at the same time, and says at the end how each went, and what failed tests said.
async fn run_side_by_side(steps: Vec<Step>) -> Result<ExitCode> {
    let started = Instant::now();
    let mut running: FuturesUnordered<_> =
        steps.into_iter().map(async |step| (step.name.clone(), step.run_marked().await)).collect();
    let mut results = Results::default();
    let mut failures = Vec::new();
    while let Some((name, ended)) = running.next().await {
        let (status, lines) = ended?;
        failures.extend(lines.into_iter().map(|line| format!("{name} | {line}")));
        results.add(name, status, started);
    }
    let concluded = results.conclude();
    for line in failures {
        eprintln!("{line}");
    }
    Ok(concluded)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_tests_said_is_remembered() {
        let output = "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\nError: broken\n\nStack backtrace:\n   0: c\n\n\n\
                      failures:\n    b\n\ntest result: FAILED. 1 passed; 1 failed";
        let mut failures = Failures::default();
        output.lines().chain(output.lines()).for_each(|line| failures.read(line));
        assert_eq!(failures.lines, ["---- b stdout ----", "Error: broken"].repeat(2));
    }
}
