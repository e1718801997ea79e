//! The certificates of one cluster: an authority, its servers', its users', and the key that signs service account tokens.
//! They live as long as the folder they are in.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};

use crate::authority::{Authority, Signed};

/// The group of those who may do everything.
pub(crate) const ADMINISTRATORS: &str = "system:masters";

/// An authority and what it signs, in one folder.
pub(crate) struct Certificates {
    folder: PathBuf,
    authority: Authority,
}

/// Paths of a certificate and its key.
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificates {
    /// A new authority and a key for service accounts.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        let certificates = Self { folder: folder.to_owned(), authority: Authority::new()? };
        write_private(&certificates.authority(), &certificates.authority.certificate())?;
        let key = KeyPair::generate()?;
        write_private(&certificates.tokens_key(), &key.serialize_pem())?;
        write_private(&certificates.tokens_public_key(), &key.public_key_pem())?;
        Ok(certificates)
    }

    /// The authority's own certificate.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// The key that signs service account tokens.
    pub(crate) fn tokens_key(&self) -> PathBuf {
        self.folder.join("service-accounts.key")
    }

    fn tokens_public_key(&self) -> PathBuf {
        self.folder.join("service-accounts.pub")
    }

    /// A certificate for a server that goes by these names and addresses.
    pub(crate) fn sign_server(&self, name: &str, names: &[&str]) -> Result<Pair> {
        self.write_pair(name, &self.authority.sign_server(name, names)?)
    }

    /// A certificate for a user of the API server, of a group or of none.
    pub(crate) fn sign_user(&self, file: &str, user: &str, group: Option<&str>) -> Result<Pair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.write_pair(file, &self.authority.sign(&params)?)
    }

    /// What the API server, which goes by these names, is told of them.
    pub(crate) fn apiserver_flags(&self, names: &[&str]) -> Result<Vec<String>> {
        let server = self.sign_server("kube-apiserver", names)?;
        let flags = [
            ("tls-cert-file", server.certificate),
            ("tls-private-key-file", server.key),
            ("client-ca-file", self.authority()),
            ("service-account-key-file", self.tokens_public_key()),
            ("service-account-signing-key-file", self.tokens_key()),
        ];
        Ok(flags.map(|(flag, file)| format!("--{flag}={}", file.display())).to_vec())
    }

    /// Writes `<file>.kubeconfig` for a user of the API server at `server`, an URL.
    pub(crate) fn write_kubeconfig(
        &self,
        file: &str,
        (user, group): (&str, Option<&str>),
        server: &str,
    ) -> Result<PathBuf> {
        let pair = self.sign_user(file, user, group)?;
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "longshore", "cluster": {
                "server": server,
                "certificate-authority": self.authority(),
            }}],
            "users": [{"name": file, "user": {
                "client-certificate": pair.certificate,
                "client-key": pair.key,
            }}],
            "contexts": [{"name": "longshore", "context": {"cluster": "longshore", "user": file}}],
            "current-context": "longshore",
        });
        let path = self.folder.join(format!("{file}.kubeconfig"));
        write_private(&path, &serde_json::to_string_pretty(&kubeconfig)?)?;
        Ok(path)
    }

    fn write_pair(&self, name: &str, signed: &Signed) -> Result<Pair> {
        let file = |ending: &str| self.folder.join(format!("{name}.{ending}"));
        let pair = Pair { certificate: file("crt"), key: file("key") };
        write_private(&pair.certificate, &signed.certificate)?;
        write_private(&pair.key, &signed.key)?;
        Ok(pair)
    }
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, text.as_bytes())
        .with_context(|| format!("failed to write {}", path.display()))
}
