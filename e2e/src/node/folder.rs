//! The node's folder: its programs' logs, records and files. A record is what the harness writes of each process it starts, so
//! that whoever comes later finds it, and tells it from another one with the same pid.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::cgroups;
use crate::{
    awaiting::{await_condition, describe_log},
    parts::{self, output},
    process::{ProcessId, Signal},
    run_folder::{base, make_folder},
};

const END_DEADLINE: Duration = Duration::from_secs(20);
const FOLDERS: [&str; 8] = ["pki", "etcd", "kubelet", "containerd", "cni", "children", "logs", "volumes"];

/// The plugins' results, the kubelet's links to logs, its socket, and the sockets of containerd's shims.
const KEPT_ELSEWHERE: [&str; 4] =
    ["/var/lib/cni/results", "/var/log/containers", "/var/lib/kubelet/device-plugins", "/run/containerd/s"];

/// The folder of the one node of this machine.
#[derive(Debug)]
pub(super) struct NodeFolder {
    root: PathBuf,
}

/// What `cargo xtask status` says of the node.
pub fn describe() -> Result<Option<String>> {
    let Some(folder) = NodeFolder::found()? else { return Ok(None) };
    let processes = folder.processes()?;
    let state = if folder.all_run()? { "up" } else { "left behind, or not all of it runs" };
    let names: Vec<&str> = processes.iter().map(|(name, _)| name.as_str()).collect();
    Ok(Some(format!("{}: Kubernetes node, {state}; {}", folder.root.display(), names.join(", "))))
}

/// Whether there is one, dead or alive.
pub(super) fn exists() -> Result<bool> {
    Ok(root()?.exists())
}

/// Held while the node comes or goes.
pub(super) async fn lock() -> Result<File> {
    parts::lock(&base()?.join("node.lock")).await
}

fn root() -> Result<PathBuf> {
    Ok(base()?.join("node"))
}

impl NodeFolder {
    pub(super) fn create() -> Result<Self> {
        let folder = Self { root: root()? };
        make_folder(&folder.root, 0o755)?;
        for name in FOLDERS {
            make_folder(&folder.path(name), 0o755)?;
        }
        make_folder(&folder.path("pki"), 0o700)?;
        Ok(folder)
    }

    pub(super) fn found() -> Result<Option<Self>> {
        let root = root()?;
        Ok(root.exists().then_some(Self { root }))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Any user may write there: the fsGroup of a pod is given rights by Kubernetes, but not to a folder of the host's.
    pub(super) fn make_volume(&self, name: &str) -> Result<PathBuf> {
        let folder = self.path("volumes").join(name);
        make_folder(&folder, 0o777)?;
        Ok(folder)
    }

    /// Starts a program that stays when the harness ends.
    pub(super) fn start(&self, name: &str, command: &mut Command) -> Result<()> {
        let log = File::create(self.log(name))?;
        let child = command
            .process_group(0)
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("failed to start {name}"))?;
        let id = ProcessId::of(child.id()).with_context(|| format!("{name} ended at once"))?;
        fs::write(self.path("children").join(name), id.to_string())
            .with_context(|| format!("failed to record process {name}"))?;
        // Before it has children, which are born where it is.
        cgroups::NODE.enter(child.id())?;
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.path("logs").join(format!("{name}.log"))
    }

    /// The logs of all programs.
    pub(super) fn logs(&self) -> Result<Vec<PathBuf>> {
        Ok(self.processes()?.iter().map(|(name, _)| self.log(name)).collect())
    }

    /// All that were started, by name.
    fn processes(&self) -> Result<Vec<(String, ProcessId)>> {
        let mut processes = Vec::new();
        for entry in fs::read_dir(self.path("children")).into_iter().flatten() {
            let entry = entry?;
            let id = fs::read_to_string(entry.path())?.parse()?;
            processes.push((entry.file_name().to_string_lossy().into_owned(), id));
        }
        processes.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(processes)
    }

    pub(super) fn all_run(&self) -> Result<bool> {
        let processes = self.processes()?;
        Ok(!processes.is_empty() && processes.iter().all(|(_, id)| id.is_running()))
    }

    pub(super) fn expect_all_run(&self) -> Result<()> {
        match self.processes()?.iter().find(|(_, id)| !id.is_running()) {
            None => Ok(()),
            Some((name, _)) => bail!("{name} ended by itself{}", describe_log(&self.log(name))),
        }
    }

    /// Kills these programs, and waits until they are gone.
    pub(super) async fn end(&self, names: &[&str]) -> Result<()> {
        let doomed: Vec<_> =
            self.processes()?.into_iter().filter(|(name, _)| names.contains(&name.as_str())).collect();
        end_processes(&doomed).await
    }

    pub(super) async fn end_all(&self) -> Result<()> {
        end_processes(&self.processes()?).await
    }

    /// A folder whose mounts its pods see, as a kubelet wants its own. It would mount it over itself while it starts, under the feet
    /// of what it starts beside that: a socket made before cannot be renamed after, and it ends.
    pub(super) async fn share(&self, name: &str) -> Result<()> {
        let folder = self.path(name);
        fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
        let mount = || tokio::process::Command::new("mount");
        output(mount().arg("--bind").args([&folder, &folder])).await?;
        output(mount().arg("--make-rshared").arg(&folder)).await?;
        Ok(())
    }

    /// What is mounted below the folder, the deepest first.
    pub(super) fn mounts(&self) -> Result<Vec<PathBuf>> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4).map(PathBuf::from));
        let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(&self.root)).collect();
        below.sort();
        below.reverse();
        Ok(below)
    }

    /// Mounts go with their processes as well: what is gone when it is asked for is no error, what stays is.
    pub(super) async fn unmount_all(&self) -> Result<()> {
        for mount in self.mounts()? {
            let unmounted = output(tokio::process::Command::new("umount").arg("--lazy").arg(&mount)).await;
            if self.mounts()?.contains(&mount) {
                unmounted?;
            }
        }
        Ok(())
    }

    /// Removes it, and what programs keep elsewhere, whatever they are told.
    pub(super) fn remove(self) -> Result<()> {
        let ours = self.root.display().to_string();
        for folder in KEPT_ELSEWHERE.map(Path::new) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if is_about(&entry.path(), &ours) {
                    let _ = fs::remove_file(entry.path());
                }
            }
            // Another's are in a folder that stays.
            let _ = fs::remove_dir(folder);
            let _ = folder.parent().map(fs::remove_dir);
        }
        fs::remove_dir_all(&self.root).with_context(|| format!("failed to remove {}", self.root.display()))
    }
}

/// Whether a file or a link speaks of our folder, or is a socket of the one kubelet that a machine can have.
fn is_about(path: &Path, ours: &str) -> bool {
    let link = fs::read_link(path).map(|target| target.display().to_string()).unwrap_or_default();
    let text = fs::metadata(path)
        .is_ok_and(|found| found.is_file())
        .then(|| fs::read_to_string(path).ok())
        .flatten();
    link.starts_with(ours) || text.is_some_and(|text| text.contains(ours)) || path.ends_with("kubelet.sock")
}

async fn end_processes(doomed: &[(String, ProcessId)]) -> Result<()> {
    for (_, id) in doomed {
        id.signal(Signal::KILL)?;
    }
    let gone = async || doomed.iter().all(|(_, id)| !id.is_running()).then_some(());
    await_condition("the node's programs to be gone", END_DEADLINE, gone).await
}
