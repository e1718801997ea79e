//! PgBouncer from Debian, with all that it depends on: the C library too, for this machine's may be older.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tokio::process::Command;

use super::{debian, open_to_all, output, provide_for_all};

/// With a shell for what is started with it in an image.
pub(crate) const PACKAGES: [&str; 3] = ["pgbouncer", "coreutils", "dash"];

/// A folder with `usr/sbin/pgbouncer` and its libraries, which the user who runs the servers can read.
pub async fn pgbouncer() -> Result<PathBuf> {
    let rootfs = debian::rootfs("pgbouncer", &PACKAGES).await?;
    provide_for_all(&rootfs, async |folder: &Path| {
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(rootfs.join("rootfs.tar")).arg("-C").arg(folder);
        output(tar.args(["./usr/lib", "./usr/lib64", "./usr/sbin/pgbouncer"])).await?;
        open_to_all(folder).await
    })
    .await
}

/// How it is started: by the dynamic linker of its own C library.
pub(crate) fn command(part: &Path) -> Result<std::process::Command> {
    let linker = part.join("usr/lib64/ld-linux-x86-64.so.2");
    let linker = linker.canonicalize().context("PgBouncer's part has no dynamic linker")?;
    let mut command = std::process::Command::new(linker);
    command.arg("--library-path").arg(part.join("usr/lib/x86_64-linux-gnu"));
    command.arg(part.join("usr/sbin/pgbouncer"));
    Ok(command)
}
