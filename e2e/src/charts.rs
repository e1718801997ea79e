//! The Helm charts of the repository, as `helm` renders them with each of their values files, and what checks them without a
//! cluster. Never installs any.

mod schemas;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::process::Command;

use crate::{
    parts::{self, output},
    run_folder::RunFolder,
    settings,
};

/// The oldest Kubernetes that the charts are for.
const KUBERNETES: &str = "1.31.0";
/// Kinds of other operators: nobody can say anything of them who has not their definitions.
const FOREIGN_GROUPS: [&str; 3] = ["postgresql.cnpg.io", "cert-manager.io", "kafka.strimzi.io"];

/// A chart with one of its values files.
#[derive(Clone, Debug)]
pub struct Variant {
    chart: String,
    /// The values file, without its ending.
    values: String,
}

/// What a variant renders to.
#[derive(Clone, Debug)]
pub struct Render {
    /// `<chart>-<values>`: unique, and fit for a file.
    pub name: String,
    /// The namespace that it was rendered for: the chart's name.
    pub namespace: String,
    /// All its documents.
    pub yaml: String,
}

/// What was found to be right, and what could not be looked at.
#[derive(Clone, Debug)]
pub struct Conformity {
    /// Kubeconform's own words.
    pub summary: String,
    /// As `group/version/Kind`.
    pub skipped: BTreeSet<String>,
}

impl Variant {
    /// All variants of all charts, in the order of their names.
    pub fn all() -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for folder in entries(&settings::repository().join("charts"))? {
            for file in entries(&folder)? {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                if let Some(values) = name.strip_suffix(".yaml").filter(|name| name.starts_with("values")) {
                    let chart = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    all.push(Self { chart, values: values.to_owned() });
                }
            }
        }
        Ok(all)
    }

    /// `<chart>-<values>`.
    pub fn name(&self) -> String {
        format!("{}-{}", self.chart, self.values)
    }

    /// I/O: as `helm template` does.
    pub async fn render(&self) -> Result<Render> {
        self.render_with(&[]).await
    }

    /// I/O: as [`Self::render`], with more of helm's arguments.
    pub async fn render_with(&self, arguments: &[&str]) -> Result<Render> {
        let mut helm = helm().await?;
        helm.args(["template", &self.chart]).arg(self.folder()).args(["--namespace", &self.chart]);
        let rendered = output(self.with_values(&mut helm).args(arguments)).await;
        let yaml = rendered.with_context(|| format!("failed to render {}", self.name()))?;
        Ok(Render { name: self.name(), namespace: self.chart.clone(), yaml })
    }

    /// I/O: as `helm lint --strict` does; what it warns of is an error.
    pub async fn lint(&self) -> Result<()> {
        let mut helm = helm().await?;
        helm.args(["lint", "--strict", "--quiet"]).arg(self.folder());
        let linted = output(self.with_values(&mut helm)).await;
        linted.map(drop).with_context(|| format!("failed to lint {}", self.name()))
    }

    fn folder(&self) -> PathBuf {
        settings::repository().join("charts").join(&self.chart)
    }

    fn with_values<'a>(&self, helm: &'a mut Command) -> &'a mut Command {
        let file = self.folder().join(format!("{}.yaml", self.values));
        helm.arg("--values").arg(file).args(["--kube-version", KUBERNETES])
    }
}

impl Render {
    /// Its documents, in their order.
    pub fn documents(&self) -> Result<Vec<Value>> {
        let documents: Vec<Option<Value>> =
            serde_saphyr::from_multiple(&self.yaml).with_context(|| format!("{} is no YAML", self.name))?;
        Ok(documents.into_iter().flatten().collect())
    }
}

/// Whether a document is of a kind that another operator brings.
pub fn is_foreign(document: &Value) -> bool {
    Kind::of(document).is_some_and(|kind| FOREIGN_GROUPS.contains(&kind.group.as_str()))
}

/// I/O: compares renders with the schemas of their kinds, strictly: Kubernetes' own, ours, and those of the custom resource
/// definitions in `more`.
///
/// # Errors
/// When a document does not fit, or no schema is known of its kind and the kind is none of another operator's.
pub async fn conform(renders: &[Render], more: Option<&Path>) -> Result<Conformity> {
    let program = parts::kubeconform().await?.join("kubeconform");
    let folder = RunFolder::current()?.folder("conformity", 0o700)?;
    let schemas = schemas::Schemas::read(&parts::kubernetes_source().await?, more)?;
    let (mut skipped, mut files) = (BTreeSet::new(), Vec::new());
    for render in renders {
        for kind in render.documents()?.iter().filter_map(Kind::of) {
            match schemas.of(&kind) {
                Some(schema) => fs::write(folder.join(kind.file()), serde_json::to_string(&schema)?)?,
                None if FOREIGN_GROUPS.contains(&kind.group.as_str()) => {
                    skipped.insert(kind.to_string());
                }
                None => {} // kubeconform says so
            }
        }
        let file = folder.join(format!("{}.yaml", render.name));
        fs::write(&file, &render.yaml)?;
        files.push(file);
    }
    let mut kubeconform = Command::new(program);
    let location = folder.join("{{.Group}}_{{.ResourceAPIVersion}}_{{.ResourceKind}}.json");
    kubeconform.args(["-strict", "-summary", "-schema-location"]).arg(location);
    kubeconform.arg("-skip").arg(skipped.iter().cloned().collect::<Vec<_>>().join(","));
    let summary = output(kubeconform.args(files)).await.context("a render does not fit its schemas")?;
    Ok(Conformity { summary: summary.trim().to_owned(), skipped })
}

/// What a document says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kind {
    /// Empty for the oldest ones.
    group: String,
    version: String,
    kind: String,
}

impl Kind {
    fn of(document: &Value) -> Option<Self> {
        let (api_version, kind) = (document["apiVersion"].as_str()?, document["kind"].as_str()?);
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Some(Self { group: group.to_owned(), version: version.to_owned(), kind: kind.to_owned() })
    }

    /// As kubeconform asks for it: of the oldest kinds it takes the version for the group.
    fn file(&self) -> String {
        let group = if self.group.is_empty() { &self.version } else { &self.group };
        format!("{group}_{}_{}.json", self.version, self.kind.to_lowercase())
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.group.is_empty() {
            write!(f, "{}/", self.group)?;
        }
        write!(f, "{}/{}", self.version, self.kind)
    }
}

async fn helm() -> Result<Command> {
    let mut helm = Command::new(parts::helm().await?.join("helm"));
    // Whatever cluster somebody works on is none of its business.
    helm.env_remove("KUBECONFIG");
    Ok(helm)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(folder).with_context(|| format!("failed to read {}", folder.display()))?;
    let mut entries = read.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}
