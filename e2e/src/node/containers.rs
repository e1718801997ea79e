//! containerd: its configuration, the images it has, and the end of what it runs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use tokio::process::Command;

use super::folder::NodeFolder;
use crate::{
    awaiting::await_condition,
    images::Image,
    parts::output,
    process::{ProcessId, Signal},
};

/// The containers of pods, among all that a containerd may have.
const PODS: &str = "k8s.io";
const END_DEADLINE: Duration = Duration::from_secs(20);

/// Where it is asked.
pub(super) fn socket(folder: &NodeFolder) -> PathBuf {
    folder.path("containerd/containerd.sock")
}

/// All its files are below the node's folder, those included that usually are in /run and /opt.
pub(super) fn configuration(folder: &NodeFolder, sandbox_image: &str) -> String {
    let path = |name: &str| folder.path(&format!("containerd/{name}")).display().to_string();
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  # Some machines do not let even root lower it.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{runc}"
"#,
        root = path("root"),
        state = path("state"),
        socket = path("containerd.sock"),
        opt = path("opt"),
        runc = path("runc"),
        cni = folder.path("cni").display(),
    )
}

fn ctr(folder: &NodeFolder) -> Command {
    let mut ctr = Command::new("ctr");
    ctr.arg("--address").arg(socket(folder)).args(["--namespace", PODS]);
    ctr
}

pub(super) async fn answers(folder: &NodeFolder) -> Option<()> {
    output(ctr(folder).arg("version")).await.ok().map(drop)
}

/// An image that is there already is left as it is: its tag says what is in it.
pub(super) async fn import(folder: &NodeFolder, image: &Image) -> Result<()> {
    let known = output(ctr(folder).args(["images", "list", "--quiet"])).await?;
    if !known.lines().any(|name| name == image.reference()) {
        output(ctr(folder).args(["images", "import"]).arg(image.archive())).await?;
    }
    Ok(())
}

/// Kills every pod's containers and those who mind them; containerd itself may be dead.
pub(super) async fn end_all(folder: &NodeFolder) -> Result<()> {
    let sockets = minders_sockets(folder);
    let mut doomed = Vec::new();
    for minder in minders(folder)? {
        doomed.extend(minder.family());
    }
    for process in &doomed {
        process.signal(Signal::KILL)?;
    }
    let gone = async || doomed.iter().all(|process| !process.is_running()).then_some(());
    await_condition("the containers to be gone", END_DEADLINE, gone).await?;
    for socket in sockets {
        let _ = fs::remove_file(socket); // it may have cleaned up behind itself
    }
    Ok(())
}

/// containerd's shims, which outlive it: all that were told the path of our socket.
fn minders(folder: &NodeFolder) -> Result<Vec<ProcessId>> {
    let socket = socket(folder).display().to_string();
    let mut minders = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let is_minder = arguments.next().is_some_and(|program| program.contains("containerd-shim"));
        if is_minder && arguments.any(|argument| argument == socket) {
            minders.extend(ProcessId::of(pid));
        }
    }
    Ok(minders)
}

/// They listen in /run, whatever the configuration says, and write down where.
fn minders_sockets(folder: &NodeFolder) -> Vec<PathBuf> {
    let bundles = folder.path("containerd/state/io.containerd.runtime.v2.task").join(PODS);
    let bundles = fs::read_dir(bundles).into_iter().flatten().flatten();
    let addresses = bundles.filter_map(|bundle| fs::read_to_string(bundle.path().join("address")).ok());
    addresses.filter_map(|address| Some(Path::new(address.strip_prefix("unix://")?).to_path_buf())).collect()
}
