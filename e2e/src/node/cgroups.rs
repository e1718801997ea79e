//! Control groups: who gets how much of the processors when all want more than there is. Without groups each session of processes
//! weighs as much as all pods together; where systemd runs, it and the kubelet make some much like these.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::awaiting::await_condition;

/// A control group and its share, in 1024ths of what one session has.
#[derive(Debug)]
pub(crate) struct Cgroup {
    pub(super) name: &'static str,
    shares: u32,
}

/// All pods. The kubelet makes groups below it.
pub(super) const PODS: Cgroup = Cgroup { name: "longshore", shares: 4096 };
/// What runs the pods: where it has to wait, a server that fell over stays down.
pub(super) const NODE: Cgroup = Cgroup { name: "longshore-node", shares: 4096 };
/// The load: its users would wait for processors as well, which users elsewhere do not, and their waits would count as the shop's.
pub(crate) const LOAD: Cgroup = Cgroup { name: "longshore-load", shares: 8192 };

const CGROUPS: &str = "/sys/fs/cgroup";
/// Of the processes in a group, and what moves one there.
const PROCESSES: &str = "cgroup.procs";
const REMOVED_DEADLINE: Duration = Duration::from_secs(10);

/// The kubelet wants the pods' group to be there in every hierarchy; the others say something of processors alone.
pub(super) fn create() -> Result<()> {
    hierarchies()?.iter().try_for_each(|hierarchy| PODS.create(hierarchy))?;
    let Some(hierarchy) = of_processors()? else { return Ok(()) };
    [NODE, LOAD].iter().try_for_each(|group| group.create(&hierarchy))
}

/// They can go when the last process in them is gone, which may take a moment after it was killed.
pub(super) async fn remove() -> Result<()> {
    let hierarchies = hierarchies()?;
    let removed = async || {
        let mut groups = hierarchies
            .iter()
            .flat_map(|hierarchy| [PODS, NODE, LOAD].map(|group| hierarchy.join(group.name)));
        groups.all(|group| remove_with_all_below(&group)).then_some(())
    };
    await_condition("the node's control groups to be gone", REMOVED_DEADLINE, removed).await
}

impl Cgroup {
    fn create(&self, hierarchy: &Path) -> Result<()> {
        let folder = hierarchy.join(self.name);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("failed to make {}", folder.display()));
            }
            Ok(()) | Err(_) => {}
        }
        // By the version's name. Of version 2 the default is 100.
        for (weight, value) in [("cpu.shares", self.shares), ("cpu.weight", self.shares * 100 / 1024)] {
            let weight = folder.join(weight);
            if weight.exists() {
                fs::write(&weight, value.to_string())
                    .with_context(|| format!("failed to write {}", weight.display()))?;
            }
        }
        Ok(())
    }

    /// Moves a process there, and says so; not where there is no node.
    pub(crate) fn enter(&self, pid: u32) -> Result<bool> {
        let group = of_processors()?.map(|hierarchy| hierarchy.join(self.name));
        let Some(group) = group.filter(|group| group.exists()) else { return Ok(false) };
        move_to(&group, pid)?;
        Ok(true)
    }
}

/// Moves a process out of these groups, which could not be removed before it ends.
pub(crate) fn leave(pid: u32) -> Result<()> {
    of_processors()?.map_or(Ok(()), |hierarchy| move_to(&hierarchy, pid))
}

fn move_to(group: &Path, pid: u32) -> Result<()> {
    let processes = group.join(PROCESSES);
    fs::write(&processes, pid.to_string())
        .with_context(|| format!("failed to write {pid} to {}", processes.display()))
}

fn remove_with_all_below(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_with_all_below(&entry.path());
        }
    }
    match fs::remove_dir(group) {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// One for each controller (version 1), or the one of all (version 2).
fn hierarchies() -> Result<Vec<PathBuf>> {
    let whole = PathBuf::from(CGROUPS);
    if whole.join(PROCESSES).exists() {
        return Ok(vec![whole]);
    }
    let folders = fs::read_dir(&whole).with_context(|| format!("no control groups in {CGROUPS}"))?;
    let folders = folders.flatten().map(|entry| entry.path());
    Ok(folders.filter(|folder| folder.join(PROCESSES).exists()).collect())
}

/// The one of them that shares out the processors; none where nobody has asked for that.
fn of_processors() -> Result<Option<PathBuf>> {
    let shares = |hierarchy: &PathBuf| {
        let controllers = fs::read_to_string(hierarchy.join("cgroup.controllers")).unwrap_or_default();
        hierarchy.join("cpu.shares").exists() || controllers.split_whitespace().any(|name| name == "cpu")
    };
    Ok(hierarchies()?.into_iter().find(shares))
}
