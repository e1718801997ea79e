//! `cargo xtask check`: what CI demands of the sources beside passing tests.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use e2e::charts::{self, Render, Variant};

use super::{Step, generate, run_all};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A folder with custom resource definitions of other operators: what charts make of their kinds is checked too
    #[arg(long)]
    schemas: Option<PathBuf>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let steps = vec![
        Step::cargo("formatting", ["fmt", "--all", "--check"]),
        Step::cargo("lints", ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]),
        // Not the advisories: what others find out about a dependency must not turn an old commit red.
        Step::cargo(
            "licences and duplicates",
            ["deny", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"],
        ),
    ];
    let checked = run_all(steps).await?;
    let mut passed = say("charts", &lint().await);
    match generate::renders().await {
        Ok(renders) => {
            passed &= say("generated files", &are_current(&renders));
            passed &= say("charts' objects", &conform(&renders, arguments).await);
        }
        Err(error) => passed &= say("charts' templates", &Err(error)),
    }
    Ok(if passed { checked } else { ExitCode::FAILURE })
}

/// Shows how a check ended; says whether well.
fn say(name: &str, ended: &Result<()>) -> bool {
    match ended {
        Ok(()) => eprintln!("passed {name}"),
        Err(error) => eprintln!("FAILED {name}: {error:#}"),
    }
    ended.is_ok()
}

async fn lint() -> Result<()> {
    for variant in Variant::all()? {
        variant.lint().await?;
    }
    Ok(())
}

fn are_current(renders: &[Render]) -> Result<()> {
    let old: Vec<_> =
        generate::old_files(renders)?.into_iter().map(|path| path.display().to_string()).collect();
    anyhow::ensure!(old.is_empty(), "{} should be otherwise: run `cargo xtask generate`", old.join(", "));
    Ok(())
}

async fn conform(renders: &[Render], arguments: &Arguments) -> Result<()> {
    let conformity = charts::conform(renders, arguments.schemas.as_deref()).await?;
    eprintln!("{}", conformity.summary);
    for kind in &conformity.skipped {
        eprintln!("not looked at: {kind}, whose definition --schemas would bring");
    }
    Ok(())
}
