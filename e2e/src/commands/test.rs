//! `cargo xtask test`: the tiers of tests, by the names of their files.

use std::process::ExitCode;

use anyhow::Result;

use super::{Step, run_all};

/// Which tests; all if none is chosen.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Unit and property tests: no server is started.
    #[arg(long)]
    unit: bool,
    /// SQL tests on PostgreSQL 16, 17 and 18 (e2e/tests/sql_*.rs).
    #[arg(long)]
    sql: bool,
    /// Tests with an API server, the operator and the order service (e2e/tests/api_*.rs).
    #[arg(long)]
    api: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    run_all(steps(arguments)).await
}

fn steps(arguments: &Arguments) -> Vec<Step> {
    if [arguments.unit, arguments.sql, arguments.api].iter().all(|chosen| !chosen) {
        return vec![Step::cargo("all tests", ["test", "--workspace", "--no-fail-fast"])];
    }
    let tiers = [
        (
            arguments.unit,
            "unit tests",
            &["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--test", "workspace"][..],
        ),
        (
            arguments.sql,
            "SQL tests",
            &["test", "--workspace", "--no-fail-fast", "--test", "sql_*", "--test", "checker_*"],
        ),
        (arguments.api, "API server tests", &["test", "--workspace", "--no-fail-fast", "--test", "api_*"]),
    ];
    let chosen = tiers.into_iter().filter(|(chosen, _, _)| *chosen);
    chosen.map(|(_, name, arguments)| Step::cargo(name, arguments)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_choice_means_all() {
        let names = |unit, sql, api| -> Vec<String> {
            steps(&Arguments { unit, sql, api }).into_iter().map(|step| step.name).collect()
        };
        assert_eq!(names(false, false, false), ["all tests"]);
        assert_eq!(names(true, false, true), ["unit tests", "API server tests"]);
    }
}
