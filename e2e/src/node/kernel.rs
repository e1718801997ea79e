//! Settings of the kernel that a node changes, and that get their old values back when it ends.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::folder::NodeFolder;

/// Packets pass between pods, and from this machine to them.
const FORWARDING: &str = "net/ipv4/ip_forward";
/// The kubelet sets the others.
const CHANGED: [&str; 5] =
    [FORWARDING, "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"];

/// Writes the values down, and changes the one that is ours to change.
pub(super) fn prepare(folder: &NodeFolder) -> Result<()> {
    for name in CHANGED {
        fs::write(saved(folder, name), fs::read(setting(name))?)?;
    }
    fs::write(setting(FORWARDING), "1").context("failed to let this machine forward packets between pods")
}

/// Brings the values back.
pub(super) fn restore(folder: &NodeFolder) -> Result<()> {
    for name in CHANGED {
        if let Ok(before) = fs::read(saved(folder, name)) {
            fs::write(setting(name), before).with_context(|| format!("failed to restore {name}"))?;
        }
    }
    Ok(())
}

fn setting(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

fn saved(folder: &NodeFolder, name: &str) -> PathBuf {
    folder.path(&format!("kernel-{}", name.replace('/', ".")))
}
