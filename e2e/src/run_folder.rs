//! The folder of one run of the harness, and what ends the run when the harness is gone.
//!
//! `<temp>/longshore-<uid>/run-<pid>/` holds `owner` (the harness), `children/` (a record per process it
//! started), `logs/`, and `servers/` with a folder for each. It lies under the system's temporary folder because
//! PostgreSQL may have to run as another user, who cannot enter the home folder of this one.
//!
//! A child process, the reaper, waits for the harness to end and then ends all that the run left: statics
//! of a test binary are never dropped, and a killed harness drops nothing. `down` runs the same script.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::ErrorKind,
    os::unix::{
        fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{process::ProcessId, settings};

const REAPER: &str = include_str!("reaper.sh");

/// Where this run of the harness keeps its files.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Closed by the kernel when the harness ends: the reaper's signal to act.
    _alive: ChildStdin,
}

/// A run found on this machine.
#[derive(Debug)]
pub struct FoundRun {
    /// Its folder.
    pub path: PathBuf,
    /// The harness that made it, if that still runs.
    pub owner: Option<ProcessId>,
    /// The names of its processes that still run.
    pub processes: Vec<String>,
}

impl RunFolder {
    /// The folder of this process, made when first asked for.
    pub fn current() -> Result<&'static Self> {
        static CURRENT: OnceLock<Result<RunFolder, String>> = OnceLock::new();
        let current = CURRENT.get_or_init(|| Self::create().map_err(|error| format!("{error:#}")));
        current.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    fn create() -> Result<Self> {
        let path = base()?.join(format!("run-{}", std::process::id()));
        if path.exists() {
            end(&path)?; // left by a killed harness that had our pid
        }
        make_folder(&path, 0o755)?;
        make_folder(&path.join("children"), 0o755)?;
        make_folder(&path.join("logs"), 0o755)?;
        make_folder(&path.join("servers"), 0o755)?;
        let owner = ProcessId::of(std::process::id()).context("failed to read our own start time")?;
        fs::write(path.join("owner"), owner.to_string())?;
        let alive = start_reaper(&path)?;
        Ok(Self { path, _alive: alive })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The log of the process with this name.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    /// Lets the logs stay behind when the run ends; returns where they are.
    pub fn keep_logs(&self) -> Result<PathBuf> {
        let logs = self.path.join("logs");
        fs::write(logs.join("keep"), "")?;
        Ok(logs)
    }

    /// The processes of this run that run now, each by its name and pid.
    pub fn processes(&self) -> Result<Vec<(String, ProcessId)>> {
        running_children(&self.path)
    }

    /// A new folder for a server's files.
    pub fn folder(&self, name: &str, mode: u32) -> Result<PathBuf> {
        let folder = self.path.join("servers").join(name);
        make_folder(&folder, mode)?;
        Ok(folder)
    }

    /// Writes down a process, so that whoever ends the run finds it.
    pub(crate) fn record(&self, name: &str, id: ProcessId) -> Result<PathBuf> {
        let record = self.path.join("children").join(format!("{name}-{}", id.pid()));
        fs::write(&record, id.to_string()).with_context(|| format!("failed to record process {name}"))?;
        Ok(record)
    }
}

/// All runs on this machine, of this user; of an ended one only kept logs may be left.
pub fn found_runs() -> Result<Vec<FoundRun>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(base()?)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("run-")) {
            let processes = running_children(&path)?.into_iter().map(|(name, _)| name).collect();
            let owner = read_record(&path.join("owner")).filter(|owner| owner.is_running());
            found.push(FoundRun { processes, owner, path });
        }
    }
    Ok(found)
}

/// Ends every process that a run left behind and removes its folder, logs included.
pub fn end(run: &Path) -> Result<()> {
    let status = reaper(run).stdin(Stdio::null()).status().context("failed to run sh")?;
    ensure!(status.success(), "failed to end the processes of {}", run.display());
    match fs::remove_dir_all(run) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", run.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The folder of all runs: ours alone to write, for every user to enter.
pub fn base() -> Result<PathBuf> {
    let uid = rustix::process::getuid().as_raw();
    let base = std::env::temp_dir().join(format!("longshore-{uid}"));
    if !base.exists() {
        make_folder(&base, 0o755)?;
    }
    let found = fs::symlink_metadata(&base)?;
    // The temporary folder is everybody's: refuse what another user put there in our name.
    if !found.is_dir() || found.uid() != uid || found.mode() & 0o022 != 0 {
        bail!("{} is not a folder that only this user can write: remove it", base.display());
    }
    Ok(base)
}

/// Makes a folder with exactly this mode, whatever the umask says.
pub(crate) fn make_folder(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .with_context(|| format!("failed to make folder {}", path.display()))
}

fn start_reaper(run: &Path) -> Result<ChildStdin> {
    let mut reaper = reaper(run);
    // A group of its own: the interrupt key of a terminal must not end it together with the harness.
    let mut child = reaper
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(File::create(run.join("logs/reaper.log"))?)
        .spawn()
        .context("failed to run sh")?;
    child.stdin.take().context("the reaper has no standard input")
}

fn reaper(run: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(REAPER).arg("reaper").arg(run).current_dir("/");
    command.env("KEEP_LOGS", if settings::keep_logs() { "yes" } else { "no" });
    command
}

fn running_children(run: &Path) -> Result<Vec<(String, ProcessId)>> {
    let mut running = Vec::new();
    let records = match fs::read_dir(run.join("children")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(running),
        records => records?,
    };
    for entry in records {
        let record = entry?.path();
        if let Some(id) = read_record(&record).filter(|id| id.is_running())
            && let Some(name) = record.file_name()
        {
            running.push((name.to_string_lossy().into_owned(), id));
        }
    }
    running.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(running)
}

fn read_record(record: &Path) -> Option<ProcessId> {
    fs::read_to_string(record).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::awaiting::await_condition;

    /// A run with one process, as a harness would have left it. The process is not our `Process`: that would
    /// be killed on drop.
    fn run_left_behind(name: &str) -> (PathBuf, ProcessId, std::process::Child) {
        let run = std::env::temp_dir().join(format!("longshore-run-{name}-{}", std::process::id()));
        fs::create_dir_all(run.join("children")).unwrap();
        fs::create_dir_all(run.join("logs")).unwrap();
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        fs::write(run.join("children/sleep"), id.to_string()).unwrap();
        (run, id, child)
    }

    #[tokio::test]
    async fn the_reaper_acts_when_the_harness_is_gone_and_not_before() {
        let (run, id, mut child) = run_left_behind("reaped");
        let alive = start_reaper(&run).unwrap();
        assert!(id.is_running());
        drop(alive);
        let gone = async || (!run.exists()).then_some(());
        await_condition("the folder to be gone", Duration::from_secs(60), gone).await.unwrap();
        // Whoever is killed may need a moment to be gone.
        let ended = async || (!id.is_running()).then_some(());
        await_condition("its process to be gone", Duration::from_secs(60), ended).await.unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn ending_a_run_twice_is_no_error() {
        let (run, id, mut child) = run_left_behind("ended");
        end(&run).unwrap();
        assert!(!id.is_running() && !run.exists());
        child.wait().unwrap();
        end(&run).unwrap();
    }

    #[test]
    fn a_later_process_with_the_same_pid_is_left_alone() {
        let (run, id, mut child) = run_left_behind("reused");
        fs::write(run.join("children/sleep"), format!("{} 1", id.pid())).unwrap();
        end(&run).unwrap();
        assert!(id.is_running());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
