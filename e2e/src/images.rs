//! Container images, built without a daemon from the same Dockerfiles that `docker build` takes, and kept as archives in the
//! user's cache folder. A tag is a hash of the image's ingredients: what has not changed is not built again.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::process::Command;

use crate::{
    parts::{
        self, Recipe,
        debian::{self, Needed},
        output, run_with_progress,
    },
    settings,
};

const BUILD_EXPECTED: Duration = Duration::from_secs(8);
const REPOSITORY: &str = "localhost/longshore";

/// An image, as an archive that container runtimes import.
#[derive(Clone, Debug)]
pub struct Image {
    name: &'static str,
    tag: String,
    archive: PathBuf,
}

impl Image {
    /// What it is called, without its tag.
    pub fn repository(&self) -> String {
        format!("{REPOSITORY}/{}", self.name)
    }

    /// Another content has another one.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// With its tag.
    pub fn reference(&self) -> String {
        format!("{}:{}", self.repository(), self.tag)
    }

    /// The archive, as `docker save` writes them.
    pub fn archive(&self) -> &Path {
        &self.archive
    }
}

/// What an image is built of.
struct Plan<'a> {
    name: &'static str,
    /// Below the root of the repository.
    dockerfile: &'a str,
    base: Option<&'a Image>,
    /// The one file that goes in.
    file: &'a Path,
    /// Whether that is a program with symbols that nobody needs in there.
    strip: bool,
}

/// The operator or a service: a program on a small base of Debian packages.
pub async fn of_binary(name: &'static str, dockerfile: &str, binary: &Path) -> Result<Image> {
    let packages = ["ca-certificates", "libc6", "libgcc-s1", "libssl3t64"];
    let base = of_packages("base", &packages).await?;
    build(&Plan { name, dockerfile, base: Some(&base), file: binary, strip: true }).await
}

/// PostgreSQL 17, the shell that initdb calls, and what locks its volume.
pub async fn postgres() -> Result<Image> {
    of_packages("postgres", &["postgresql-17", "coreutils", "dash", "sed", "util-linux"]).await
}

/// PgBouncer, and a shell for what is started with it.
pub async fn pgbouncer() -> Result<Image> {
    of_packages("pgbouncer", &parts::PGBOUNCER_PACKAGES).await
}

/// Kafka's own programs on a Java runtime, and a shell for what starts them.
pub async fn kafka() -> Result<Image> {
    let base = of_packages("java", &["openjdk-21-jre-headless", "coreutils", "dash"]).await?;
    let (dockerfile, file) = ("e2e/images/kafka.Dockerfile", parts::kafka().await?.join("kafka.tar"));
    build(&Plan { name: "kafka", dockerfile, base: Some(&base), file: &file, strip: false }).await
}

/// The cluster's DNS server.
pub(crate) async fn coredns() -> Result<Image> {
    of_program("coredns", "e2e/images/coredns.Dockerfile", &parts::coredns().await?).await
}

/// What autoscalers ask.
pub(crate) async fn metrics_server() -> Result<Image> {
    let dockerfile = "e2e/images/metricsserver.Dockerfile";
    of_program("metricsserver", dockerfile, &parts::metrics_server().await?).await
}

/// What holds a pod's namespaces.
pub(crate) async fn pause() -> Result<Image> {
    of_program("pause", "e2e/images/pause.Dockerfile", &parts::pause().await?).await
}

async fn of_program(name: &'static str, dockerfile: &str, part: &Path) -> Result<Image> {
    build(&Plan { name, dockerfile, base: None, file: &part.join(name), strip: false }).await
}

async fn of_packages(name: &'static str, packages: &[&str]) -> Result<Image> {
    let file = debian::rootfs(name, packages).await?.join("rootfs.tar");
    let dockerfile = "e2e/images/rootfs.Dockerfile";
    build(&Plan { name, dockerfile, base: None, file: &file, strip: false }).await
}

async fn build(plan: &Plan<'_>) -> Result<Image> {
    debian::install(&[Needed { program: "buildah", package: "buildah" }]).await?;
    let dockerfile = settings::repository().join(plan.dockerfile);
    let content = fs::read(plan.file).with_context(|| format!("failed to read {}", plan.file.display()))?;
    let base = plan.base.map(Image::reference).unwrap_or_default();
    let recipe =
        Recipe::new(format!("image-{}", plan.name), &[&fs::read(&dockerfile)?, base.as_bytes(), &content]);
    let tag = recipe.hash().to_owned();
    let reference = format!("{REPOSITORY}/{}:{tag}", plan.name);
    let made = recipe.provide(async |folder: &Path| make(plan, &dockerfile, &reference, folder).await);
    Ok(Image { name: plan.name, archive: made.await?.join("image.tar"), tag })
}

/// buildah keeps what it knows in the unfinished part's folder: nothing of it is left afterwards.
async fn make(plan: &Plan<'_>, dockerfile: &Path, reference: &str, folder: &Path) -> Result<()> {
    let (store, context) = (folder.join("store"), folder.join("context"));
    fs::create_dir(&context)?;
    let name = plan.file.file_name().context("a file has a name")?;
    if plan.strip {
        output(Command::new("strip").arg("-o").arg(context.join(name)).arg(plan.file)).await?;
    } else {
        fs::copy(plan.file, context.join(name))?;
    }
    let buildah = || {
        let mut buildah = Command::new("buildah");
        buildah.arg("--root").arg(store.join("root")).arg("--runroot").arg(store.join("run"));
        buildah.args(["--storage-driver", "vfs"]);
        buildah
    };
    let mut bud = buildah();
    bud.args(["bud", "--quiet", "--isolation", "chroot", "--tag", reference, "--file"]).arg(dockerfile);
    if let Some(base) = plan.base {
        bud.args(["--build-arg", &format!("BASE=docker-archive:{}", base.archive.display())]);
    }
    bud.arg(&context);
    run_with_progress(&format!("building image {}", plan.name), BUILD_EXPECTED, &mut bud).await?;
    let archive = format!("docker-archive:{}:{reference}", folder.join("image.tar").display());
    output(buildah().args(["push", "--quiet", reference, &archive])).await?;
    fs::remove_dir_all(&store)?;
    fs::remove_dir_all(&context)?;
    Ok(())
}
