//! Programs of Debian: those that this machine needs, and file systems for images, both from the mirror that this machine uses.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::process::Command;

use super::{Recipe, output, run_with_progress};

/// The release whose packages images are made of: the first with PgBouncer ≥ 1.21.
const SUITE: &str = "trixie";
const INSTALL_EXPECTED: Duration = Duration::from_secs(60);
const ROOTFS_EXPECTED: Duration = Duration::from_secs(30);

/// What an image never needs: it has no package manager, no manual and no compiler.
const EXCLUDED: &[&str] = &[
    "./dev",
    "./etc/apt",
    "./usr/bin/perl*",
    "./usr/lib/postgresql/*/lib/bitcode",
    "./usr/lib/postgresql/*/lib/llvmjit*",
    "./usr/lib/x86_64-linux-gnu/libLLVM*",
    "./usr/lib/x86_64-linux-gnu/libperl*",
    "./usr/lib/x86_64-linux-gnu/libz3*",
    "./usr/lib/x86_64-linux-gnu/perl*",
    "./usr/share/bash-completion",
    "./usr/share/doc",
    "./usr/share/i18n",
    "./usr/share/info",
    "./usr/share/lintian",
    "./usr/share/locale",
    "./usr/share/man",
    "./usr/share/perl*",
    "./var/cache",
    "./var/lib/apt",
    "./var/lib/dpkg",
];

/// A program that this machine must have: how to see that it is there, and the package it is in.
pub(crate) struct Needed {
    /// A name in PATH, or a path.
    pub(crate) program: &'static str,
    /// Debian's package.
    pub(crate) package: &'static str,
}

/// Installs what is missing; whoever may not, is told what to install.
pub(crate) async fn install(needed: &[Needed]) -> Result<()> {
    let missing: Vec<&str> =
        needed.iter().filter(|needed| !is_there(needed.program)).map(|needed| needed.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let command = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    ensure!(
        is_there("apt-get"),
        "these Debian packages are missing, or what they are called here: {missing:?}"
    );
    if !rustix::process::getuid().is_root() {
        bail!("packages are missing, run as root: {command}");
    }
    output(Command::new("apt-get").args(["update", "-qq"]))
        .await
        .context("failed to update the package lists")?;
    let mut apt = Command::new("apt-get");
    apt.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing);
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    run_with_progress(&format!("installing {}", missing.join(", ")), INSTALL_EXPECTED, &mut apt).await
}

fn is_there(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    // Root's shells may lack the folders of root's programs.
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|folder| Path::new(folder).join(program).exists())
}

/// A folder with `rootfs.tar`: these packages of [`SUITE`], and what they depend on, without what [`EXCLUDED`] names.
pub(crate) async fn rootfs(name: &str, packages: &[&str]) -> Result<PathBuf> {
    install(&[Needed { program: "mmdebstrap", package: "mmdebstrap" }]).await?;
    let packages = packages.join(",");
    let ingredients = [SUITE.as_bytes(), packages.as_bytes(), include_bytes!("debian.rs").as_slice()];
    let recipe = Recipe::new(format!("rootfs-{name}"), &ingredients);
    recipe.provide(async |folder: &Path| extract(name, &packages, folder).await).await
}

async fn extract(name: &str, packages: &str, folder: &Path) -> Result<()> {
    let (whole, root, excluded) = (folder.join("whole.tar"), folder.join("root"), folder.join("excluded"));
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--variant=extract", "--quiet", &format!("--include={packages}"), SUITE]);
    mmdebstrap.arg(&whole).arg(mirror().await?);
    run_with_progress(&format!("fetching the packages of {name}"), ROOTFS_EXPECTED, &mut mmdebstrap).await?;
    fs::write(&excluded, EXCLUDED.join("\n"))?;
    fs::create_dir(&root)?;
    output(Command::new("tar").arg("-xf").arg(&whole).arg("-C").arg(&root).arg("-X").arg(&excluded)).await?;
    complete(&root)?;
    let archive = folder.join("rootfs.tar");
    output(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&root).arg(".")).await?;
    fs::remove_file(&whole)?;
    fs::remove_file(&excluded)?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// What scripts of the packages would have done: none of them has run.
fn complete(root: &Path) -> Result<()> {
    for folder in ["bin", "lib", "lib64", "sbin"] {
        let link = root.join(folder);
        if !link.exists() {
            symlink(format!("usr/{folder}"), link)?;
        }
    }
    let user = "nonroot:x:65532:65532:nonroot:/tmp:/usr/sbin/nologin\n";
    fs::write(root.join("etc/passwd"), format!("root:x:0:0:root:/root:/usr/sbin/nologin\n{user}"))?;
    fs::write(root.join("etc/group"), "root:x:0:\nnonroot:x:65532:\n")?;
    let authorities = root.join("usr/share/ca-certificates/mozilla");
    if authorities.is_dir() {
        let mut bundle = Vec::new();
        for certificate in fs::read_dir(authorities)? {
            bundle.extend(fs::read(certificate?.path())?);
        }
        fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), bundle)?;
    }
    Ok(())
}

/// Where this machine gets Debian's packages from.
async fn mirror() -> Result<String> {
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", "$(COMPONENT) $(REPO_URI)", "Created-By: Packages"]);
    let targets = output(&mut apt).await?;
    let main = targets.lines().find_map(|line| line.strip_prefix("main "));
    main.map(str::to_owned)
        .context("apt-get knows no mirror of Debian's main packages: is there one in its sources?")
}
