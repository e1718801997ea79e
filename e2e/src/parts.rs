//! Parts that are fetched or built once and kept in the user's cache folder.
//!
//! A part is a folder `parts/<name>-<hash of what it is made of>`: what is there is complete, since it is
//! made under another name and renamed. A file lock keeps two runs from making the same part at once.

pub(crate) mod debian;
mod go;
mod kafka;
mod pgbouncer;
mod postgres;

use std::{
    ffi::OsStr,
    fs::{self, File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

pub(crate) use self::{
    go::{coredns, kubeconform, kubernetes_source, metrics_server, pause},
    pgbouncer::{PACKAGES as PGBOUNCER_PACKAGES, command as pgbouncer_command},
};
pub use self::{
    go::{helm, kubenode},
    kafka::kafka,
    pgbouncer::pgbouncer,
    postgres::postgres,
};
use crate::{
    awaiting::await_condition,
    progress::Progress,
    run_folder::{base, make_folder},
    settings,
};

const OTHER_RUN_DEADLINE: Duration = Duration::from_secs(20 * 60);
const TICK: Duration = Duration::from_millis(200);
/// How many of a name stay in the cache: of several checkouts, and one to go back to.
const KEPT: usize = 4;

/// What a part is called and made of: another ingredient makes another part.
pub(crate) struct Recipe {
    name: String,
    hash: String,
}

impl Recipe {
    pub(crate) fn new(name: impl Into<String>, ingredients: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        for ingredient in ingredients {
            hasher.update(u64::try_from(ingredient.len()).unwrap_or(u64::MAX).to_be_bytes());
            hasher.update(ingredient);
        }
        let hash = hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { name: name.into(), hash }
    }

    /// Of what it is made of, in hexadecimal digits.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }

    /// The finished part's folder; `make` fills it if it is not there yet.
    pub(crate) async fn provide(&self, make: impl AsyncFnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        provide(&settings::cache_folder()?.join("parts"), &format!("{}-{}", self.name, self.hash), make).await
    }
}

/// `parent/name`, filled by `make` under another name if it is not there yet, and renamed when complete.
async fn provide(parent: &Path, name: &str, make: impl AsyncFnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let finished = parent.join(name);
    let lock_file = lock_file_of(&finished);
    if finished.is_dir() {
        fs::write(&lock_file, "")?; // says when it was last used
        return Ok(finished);
    }
    fs::create_dir_all(parent).with_context(|| format!("failed to make folder {}", parent.display()))?;
    let _lock = lock(&lock_file).await?;
    if finished.is_dir() {
        return Ok(finished); // another run made it meanwhile
    }
    let unfinished = parent.join(format!("{name}.unfinished"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?; // left by a run that was killed
    }
    fs::create_dir(&unfinished)?;
    make(&unfinished).await.with_context(|| format!("failed to make part {name}"))?;
    fs::rename(&unfinished, &finished)?;
    prune(parent, name)?;
    Ok(finished)
}

fn lock_file_of(part: &Path) -> PathBuf {
    let mut path = part.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

/// Removes all but the parts of this one's name that were used last. Lock files stay: somebody may wait at one.
fn prune(parent: &Path, newest: &str) -> Result<()> {
    let of = |name: &str| name.rsplit_once('-').map(|(name, _hash)| name.to_owned());
    let mut parts = Vec::new();
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && path.extension().is_none() && of(&name) == of(newest) {
            let used = fs::metadata(lock_file_of(&path)).and_then(|file| file.modified()).ok();
            parts.push((name == newest, used, path));
        }
    }
    parts.sort();
    for (_, _, path) in parts.iter().rev().skip(KEPT) {
        fs::remove_dir_all(path).with_context(|| format!("failed to remove {}", path.display()))?;
    }
    Ok(())
}

/// A part made of another one, outside this user's home: root's servers run as another user, who cannot enter it.
async fn provide_for_all(part: &Path, make: impl AsyncFnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let parts = base()?.join("parts");
    make_folder(&parts, 0o755)?;
    let name = part.file_name().context("a part has a name")?.to_string_lossy().into_owned();
    provide(&parts, &name, make).await
}

/// Lets every user read a folder.
async fn open_to_all(folder: &Path) -> Result<()> {
    output(Command::new("chmod").args(["-R", "go+rX"]).arg(folder)).await?;
    Ok(())
}

/// An exclusive lock, freed when the file is dropped or its holder dies.
pub(crate) async fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("failed to make {}", path.display()))?;
    let what = format!("another run to finish the same part ({})", path.display());
    let locked = async || match file.try_lock() {
        Ok(()) => Some(Ok(())),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => Some(Err(error)),
    };
    await_condition(what, OTHER_RUN_DEADLINE, locked).await??;
    Ok(file)
}

/// What a command prints; its error output is the error.
pub(crate) async fn output(command: &mut Command) -> Result<String> {
    let program = command.as_std().get_program().to_owned();
    let output = match command.stdin(Stdio::null()).kill_on_drop(true).output().await {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(missing(&program)),
        Err(error) => {
            return Err(error).with_context(|| format!("failed to run {}", program.to_string_lossy()));
        }
    };
    if !output.status.success() {
        let [said, complained] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        bail!("{:?} ended with {}\n{said}{complained}", command.as_std(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that takes about `expected`, and shows how far it is.
pub(crate) async fn run_with_progress(what: &str, expected: Duration, command: &mut Command) -> Result<()> {
    let progress = Progress::of_time(what, expected);
    let mut running = std::pin::pin!(output(command));
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            finished = &mut running => {
                finished?;
                progress.done();
                return Ok(());
            }
            _ = ticks.tick() => progress.tick(),
        }
    }
}

fn missing(program: &OsStr) -> String {
    let program = program.to_string_lossy();
    let package = match program.as_ref() {
        "go" => "Go 1.26 or later",
        "mvn" => "Maven 3.8 or later (Debian: apt-get install maven)",
        "java" | "jar" => "a Java 17 development kit (Debian: apt-get install openjdk-17-jdk-headless)",
        "python3" => "Python 3 (Debian: apt-get install python3)",
        "tar" => "tar and xz (Debian: apt-get install tar xz-utils)",
        _ => "the program of that name",
    };
    format!("{program} is not installed or not in PATH: install {package}")
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn other_ingredients_make_another_part() {
        let hash = |ingredients: &[&[u8]]| Recipe::new("part", ingredients).hash;
        assert_eq!(hash(&[b"ab", b"c"]), hash(&[b"ab", b"c"]));
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
    }

    #[tokio::test]
    async fn a_part_is_made_once_and_never_seen_unfinished() {
        let parent = std::env::temp_dir().join(format!("longshore-parts-{}", std::process::id()));
        let failed = provide(&parent, "part", async |folder: &Path| {
            fs::write(folder.join("half"), "")?;
            bail!("no")
        });
        assert!(failed.await.is_err());
        assert!(!parent.join("part").exists());
        let whole = async |folder: &Path| Ok(fs::write(folder.join("whole"), "")?);
        let made = provide(&parent, "part", whole).await.unwrap();
        assert!(made.join("whole").exists() && !made.join("half").exists());
        let again = async |_: &Path| bail!("made twice");
        assert_eq!(provide(&parent, "part", again).await.unwrap(), made);
        fs::remove_dir_all(&parent).unwrap();
    }

    #[tokio::test]
    async fn few_parts_of_a_name_are_kept() -> Result<()> {
        let parent = std::env::temp_dir().join(format!("longshore-kept-{}", std::process::id()));
        for number in 0..7 {
            let part = provide(&parent, &format!("image-order-{number}"), async |_: &Path| Ok(())).await?;
            let then = SystemTime::UNIX_EPOCH + Duration::from_secs(number);
            File::options().write(true).open(lock_file_of(&part))?.set_modified(then)?;
            provide(&parent, "image-order-0", async |_: &Path| bail!("it is there, for it is used")).await?;
        }
        provide(&parent, "image-7", async |_: &Path| Ok(())).await?;
        let mut kept: Vec<_> = fs::read_dir(&parent)?
            .filter_map(|entry| entry.ok()?.path().file_name()?.to_str().map(str::to_owned))
            .filter(|name| !name.ends_with(".lock"))
            .collect();
        kept.sort();
        fs::remove_dir_all(&parent)?;
        assert_eq!(kept, ["image-7", "image-order-0", "image-order-4", "image-order-5", "image-order-6"]);
        Ok(())
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = output(&mut Command::new("longshore-no-such-program")).await.unwrap_err();
        assert!(error.to_string().contains("longshore-no-such-program is not installed"), "{error}");
    }
}
