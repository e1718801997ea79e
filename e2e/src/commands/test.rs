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
    /// SQL tests on PostgreSQL 16, 17 and 18 (e2e/tests/servers/sql).
    #[arg(long)]
    sql: bool,
    /// Tests with an API server, the operator and what it keeps (e2e/tests/servers/api, fleet and kafka).
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
    /// Cargo's choice of test programs, and what is run of those.
    tests: &'static [&'static str],
}

/// Of those that wait a lot, none is to take longer than another; SQL tests would, two at a time.
const TIERS: [Tier; 6] = [
    Tier { name: "unit", tests: &["--lib", "--bins", "--test", "workspace", "--test", "load"] },
    Tier { name: "doc", tests: &["--doc"] },
    Tier { name: "sql", tests: &["--test", "servers", "sql::", "--", "--test-threads=3"] },
    Tier { name: "api", tests: &["--test", "servers", "api::"] },
    Tier { name: "fleet", tests: &["--test", "servers", "fleet::"] },
    Tier { name: "kafka", tests: &["--test", "servers", "kafka::"] },
];

impl Tier {
    fn step(&self) -> Step {
        Step::cargo(self.name, [&["test", "--workspace", "--no-fail-fast"], self.tests].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_run(tests: &str) -> bool {
        TIERS.iter().any(|tier| tier.tests.contains(&tests))
    }

    #[test]
    fn every_test_is_in_a_tier() {
        // Cargo runs tests in their package's folder.
        for folder in ["tests", "checker/tests"] {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_stem().unwrap().to_str().unwrap();
                assert!(is_run(name), "{}", path.display());
            }
        }
        let servers = std::fs::read_to_string("tests/servers/main.rs").unwrap();
        let modules = servers.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
        let modules: Vec<_> = modules.filter(|module| !["shards", "stage"].contains(module)).collect();
        assert_eq!(modules.len(), 4);
        for module in modules {
            assert!(is_run(&format!("{module}::")), "{module}");
        }
    }
}
