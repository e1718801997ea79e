//! Mutants: the protocol with one rule broken at a time. A test must notice each of them.
//!
//! They are made and tested in a copy of the repository, which has a target folder of its own: both stay in the cache
//! folder, so that the next run builds only what changed.

mod list;
mod workshop;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

pub use list::mutants;
pub use workshop::Workshop;

/// A rule broken on purpose.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// For the command line.
    pub name: &'static str,
    /// What is wrong with it, in a sentence.
    pub breaks: &'static str,
    /// Which file is changed, from the root of the repository.
    pub file: &'static str,
    /// Found there exactly once, …
    pub find: &'static str,
    /// … and replaced by this.
    pub replace: &'static str,
    /// The test that must fail.
    pub caught_by: Test,
}

/// One test, by its full name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Of the pure crate.
    Sharding(&'static str),
    /// Of a module in `e2e/tests/servers/sql`, on one version of PostgreSQL: a broken rule is broken on all of them.
    Sql(&'static str, &'static str),
}

/// What came of a mutant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// The test failed, and this is the first that it said.
    Caught(String),
    /// The test passed: the rule is not tested.
    Survived,
    /// It says nothing about the test.
    DidNotCompile,
}

/// One mutant's verdict.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Its name.
    pub mutant: &'static str,
    /// What is wrong with it.
    pub breaks: &'static str,
    /// The test that was to catch it.
    pub test: String,
    /// What came of it.
    pub verdict: Verdict,
    /// Building and testing.
    pub seconds: f32,
}

impl Mutant {
    /// The file as it is, and as the mutant has it.
    pub fn apply(&self, repository: &Path) -> Result<(String, String)> {
        let path = repository.join(self.file);
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let found = text.matches(self.find).count();
        ensure!(found == 1, "mutant {}: its text is {found} times in {}", self.name, self.file);
        let changed = text.replacen(self.find, self.replace, 1);
        Ok((text, changed))
    }
}

impl Test {
    /// The arguments with which cargo builds its binary.
    fn binary(self) -> Vec<&'static str> {
        match self {
            Self::Sharding(_) => vec!["test", "-p", "longshore-sharding", "--lib"],
            Self::Sql(..) => vec!["test", "--workspace", "--test", "servers"],
        }
    }

    /// As the test program knows it.
    pub fn name(self) -> String {
        match self {
            Self::Sharding(test) => test.to_owned(),
            Self::Sql(module, test) => format!("sql::{module}::postgres_17::{test}"),
        }
    }
}

/// Those with these names, or all.
pub fn chosen(names: &[String]) -> Result<Vec<Mutant>> {
    let all = mutants();
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|mutant| mutant.name != **name)) {
        bail!("there is no mutant {unknown}; `--list` shows all");
    }
    let wanted = |mutant: &Mutant| names.is_empty() || names.iter().any(|name| name == mutant.name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// Longer than any of the tests takes: what hangs is caught as well.
const TEST_TIMEOUT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::settings;

    #[test]
    fn each_finds_its_text_once_and_changes_it() {
        for mutant in mutants() {
            let (before, after) = mutant.apply(&settings::repository()).unwrap();
            assert_ne!(before, after, "{}", mutant.name);
        }
        let names: BTreeSet<_> = mutants().iter().map(|mutant| mutant.name).collect();
        assert_eq!(names.len(), mutants().len(), "two mutants share a name");
    }
}
