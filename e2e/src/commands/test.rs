//! `cargo xtask test`: the tiers of tests, by the names of their files.

use std::process::ExitCode;

use anyhow::Result;

use super::{Step, run_all, run_side_by_side};

/// Which tests; all if none is chosen.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Unit and property tests: no server is started.
    #[arg(long)]
    unit: bool,
    /// SQL tests on PostgreSQL 16, 17 and 18 (e2e/tests/sql_*.rs).
    #[arg(long)]
    sql: bool,
    /// Tests with an API server, the operator and what it keeps (e2e/tests/api_*.rs, fleet_*.rs and kafka_*.rs).
    #[arg(long)]
    api: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { unit, sql, api } = *arguments;
    let all = !(unit || sql || api);
    let tiers = TIERS.iter().zip([unit, unit, sql, api, api, api]);
    let tiers = tiers.filter(|(_, chosen)| all || *chosen).map(|(tier, _)| tier);
    let steps: Vec<_> = tiers.map(Tier::step).collect();
    if steps.len() < 2 {
        return run_all(steps).await;
    }
    // What is built is built once; servers are mostly waited for, so that tiers take no longer side by side.
    let built = run_all(vec![Step::cargo("build", ["test", "--workspace", "--no-run"])]).await?;
    if built == ExitCode::SUCCESS { run_side_by_side(steps).await } else { Ok(built) }
}

/// Tests that need the same servers.
struct Tier {
    name: &'static str,
    targets: &'static [&'static str],
}

/// Of those that wait a lot, none takes longer than another.
const TIERS: [Tier; 6] = [
    Tier { name: "unit", targets: &["--lib", "--bins", "--test", "workspace", "--test", "load"] },
    Tier { name: "doc", targets: &["--doc"] },
    Tier { name: "sql", targets: &["--test", "sql_*", "--test", "checker_*"] },
    Tier { name: "api", targets: &["--test", "api_*"] },
    Tier { name: "fleet", targets: &["--test", "fleet_*"] },
    Tier { name: "kafka", targets: &["--test", "kafka_*"] },
];

impl Tier {
    fn step(&self) -> Step {
        Step::cargo(self.name, [&["test", "--workspace", "--no-fail-fast"], self.targets].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_file_is_in_a_tier() {
        let patterns: Vec<_> = TIERS.iter().flat_map(|tier| tier.targets).collect();
        let is_run = |name: &str| {
            patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => **pattern == name,
            })
        };
        // Cargo runs tests in their package's folder.
        for folder in ["tests", "checker/tests"] {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let is_test =
                    path.extension().is_some_and(|ending| ending == "rs") || path.join("main.rs").is_file();
                let name = path.file_stem().unwrap().to_str().unwrap();
                assert!(!is_test || is_run(name), "{}", path.display());
            }
        }
    }
}
