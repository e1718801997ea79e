//! `cargo xtask check`: what CI demands of the sources beside passing tests.

use std::process::ExitCode;

use anyhow::Result;

use super::{Step, generate, run_all};

pub(crate) async fn run() -> Result<ExitCode> {
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
    let old = generate::old_files()?;
    for file in &old {
        eprintln!("FAILED {} is not what the types say: run `cargo xtask generate`", file.display());
    }
    if old.is_empty() {
        eprintln!("passed generated files");
    }
    Ok(if old.is_empty() { checked } else { ExitCode::FAILURE })
}
