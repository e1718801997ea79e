//! What the environment says. The only module of the harness that reads it: tests have no command line.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

/// The root of the repository: of the checkout that cargo runs us in. One target folder may serve several checkouts, so
/// the one that we were compiled in counts only where nobody says.
pub fn repository() -> PathBuf {
    let here = variable("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").to_owned());
    let here = Path::new(&here);
    here.parent().map_or_else(|| here.to_path_buf(), Path::to_path_buf)
}

/// Where parts are kept between runs: `longshore` in the user's cache folder.
pub fn cache_folder() -> Result<PathBuf> {
    if let Some(cache) = variable("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(cache).join("longshore"));
    }
    let home = variable("HOME").context("neither XDG_CACHE_HOME nor HOME is set: no place for a cache")?;
    Ok(PathBuf::from(home).join(".cache/longshore"))
}

/// The cluster to use instead of one of our own.
pub fn kubeconfig() -> Option<PathBuf> {
    variable("KUBECONFIG").map(PathBuf::from)
}

/// What cargo tells whatever it runs of its package, and a build script of `ring` asks for: left in the environment of a cargo
/// inside, it would build ring and all that stands on it anew, and the next cargo outside once more.
const OF_OUR_PACKAGE: [&str; 7] = [
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_PKG_NAME",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
];

/// The cargo that runs us, so that a build inside a run uses the same toolchain, and what it has built.
pub fn cargo() -> Command {
    let mut command = Command::new(variable("CARGO").unwrap_or_else(|| "cargo".to_owned()));
    for name in OF_OUR_PACKAGE {
        command.env_remove(name);
    }
    command
}

/// With `LONGSHORE_KEEP_LOGS` set, the logs of a run stay behind when it ends.
pub fn keep_logs() -> bool {
    variable("LONGSHORE_KEEP_LOGS").is_some()
}

#[expect(clippy::disallowed_methods, reason = "the one place of the harness that reads the environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
