//! `cargo xtask mutants`: breaks one rule of the protocol after the other, and sees whether a test notices.

use std::{collections::BTreeMap, fmt, fs, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result};
use e2e::{
    mutants::{self, Mutant, Outcome, Test, Verdict, Workshop},
    progress::Progress,
    settings,
};
use serde::Serialize;

/// Which mutants.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only this mutant; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Print the mutants and the tests that must catch them, and do nothing.
    #[arg(long)]
    list: bool,
    /// Write the verdicts to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Of all mutants that were tried.
#[derive(Serialize)]
#[serde(transparent)]
struct Report(Vec<Outcome>);

impl Report {
    fn is_good(&self) -> bool {
        self.0.iter().all(|outcome| matches!(outcome.verdict, Verdict::Caught(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let caught = self.0.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Caught(_))).count();
        write!(f, "{caught} of {} mutants were caught", self.0.len())
    }
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut chosen = mutants::chosen(&arguments.only)?;
    for mutant in &chosen {
        mutant.apply(&settings::repository())?;
    }
    if arguments.list {
        for mutant in &chosen {
            println!("{}: {}\n    {}", mutant.name, mutant.breaks, mutant.caught_by.name());
        }
        return Ok(ExitCode::SUCCESS);
    }
    // What one builds the next need not build.
    chosen.sort_by_key(|mutant| (mutant.file, mutant.caught_by.name()));
    let workshop = Workshop::open().await?;
    expect_passing(&workshop, &tests_of(&chosen)).await?;
    let report = try_all(&workshop, &chosen).await?;
    println!("{report}");
    if let Some(file) = &arguments.json {
        fs::write(file, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| format!("failed to write {}", file.display()))?;
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn expect_passing(workshop: &Workshop, tests: &[Test]) -> Result<()> {
    let (progress, started) = (Progress::of_words("the tests without any mutant"), Instant::now());
    for (done, test) in tests.iter().enumerate() {
        progress.say(&format!("{}, {}", test.name(), left(started, done, tests.len())?));
        workshop.expect_passing(*test).await?;
    }
    progress.done();
    Ok(())
}

async fn try_all(workshop: &Workshop, chosen: &[Mutant]) -> Result<Report> {
    let mut outcomes = Vec::new();
    let (progress, started) = (Progress::of_words(format!("{} mutants", chosen.len())), Instant::now());
    for (done, mutant) in chosen.iter().enumerate() {
        progress.say(&format!("{}, {}", mutant.name, left(started, done, chosen.len())?));
        let outcome = workshop.try_out(mutant).await?;
        println!("{}", line(&outcome));
        outcomes.push(outcome);
    }
    progress.done();
    Ok(Report(outcomes))
}

/// How many are to go, and for how long if they take what the others took.
fn left(started: Instant, done: usize, all: usize) -> Result<String> {
    let (done, left) = (u32::try_from(done)?, u32::try_from(all - done)?);
    let about =
        started.elapsed().checked_div(done).map(|each| format!(", about {} s", (each * left).as_secs()));
    Ok(format!("{left} to go{}", about.unwrap_or_default()))
}

fn line(outcome: &Outcome) -> String {
    let Outcome { mutant, breaks, test, verdict, seconds } = outcome;
    let (word, why) = match verdict {
        Verdict::Caught(why) => ("caught", why.as_str()),
        Verdict::Survived => ("SURVIVED", *breaks),
        Verdict::DidNotCompile => ("DID NOT COMPILE", *breaks),
    };
    let why: String = why.chars().take(160).collect();
    format!("{word} {mutant} ({seconds:.1} s) by {test}\n    {why}")
}

/// Each once.
fn tests_of(mutants: &[Mutant]) -> Vec<Test> {
    let named = mutants.iter().map(|mutant| (mutant.caught_by.name(), mutant.caught_by));
    named.collect::<BTreeMap<_, _>>().into_values().collect()
}
