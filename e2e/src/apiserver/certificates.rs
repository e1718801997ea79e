//! The certificates of one API server: an authority, the server's, the administrator's, and the key that
//! signs service account tokens. They live as long as the run.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};

use crate::authority::{Authority, Signed};

/// Paths of the files made.
pub(super) struct Certificates {
    authority: PathBuf,
    server: Pair,
    administrator: Pair,
    service_accounts: ServiceAccountKey,
}

struct ServiceAccountKey {
    signs: PathBuf,
    verifies: PathBuf,
}

struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

impl Certificates {
    pub(super) fn create(folder: &Path) -> Result<Self> {
        let authority = Authority::new()?;
        let authority_path = folder.join("ca.crt");
        write_private(&authority_path, &authority.certificate())?;

        let names = ["127.0.0.1", "10.96.0.1", "localhost", "kubernetes.default.svc"];
        let server = authority.sign_server("kube-apiserver", &names)?;

        let mut administrator = CertificateParams::default();
        administrator.distinguished_name.push(DnType::CommonName, "admin");
        administrator.distinguished_name.push(DnType::OrganizationName, "system:masters");
        administrator.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];

        let key = KeyPair::generate()?;
        let service_accounts = ServiceAccountKey {
            signs: folder.join("service-accounts.key"),
            verifies: folder.join("service-accounts.pub"),
        };
        write_private(&service_accounts.signs, &key.serialize_pem())?;
        write_private(&service_accounts.verifies, &key.public_key_pem())?;
        Ok(Self {
            server: write_pair(folder, "apiserver", &server)?,
            administrator: write_pair(folder, "admin", &authority.sign(&administrator)?)?,
            authority: authority_path,
            service_accounts,
        })
    }

    pub(super) fn apiserver_flags(&self) -> Vec<String> {
        [
            ("tls-cert-file", &self.server.certificate),
            ("tls-private-key-file", &self.server.key),
            ("client-ca-file", &self.authority),
            ("service-account-key-file", &self.service_accounts.verifies),
            ("service-account-signing-key-file", &self.service_accounts.signs),
        ]
        .map(|(flag, file)| format!("--{flag}={}", file.display()))
        .to_vec()
    }

    pub(super) fn write_kubeconfig(&self, folder: &Path, port: u16) -> Result<PathBuf> {
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "longshore", "cluster": {
                "server": format!("https://127.0.0.1:{port}"),
                "certificate-authority": self.authority,
            }}],
            "users": [{"name": "admin", "user": {
                "client-certificate": self.administrator.certificate,
                "client-key": self.administrator.key,
            }}],
            "contexts": [{"name": "longshore", "context": {"cluster": "longshore", "user": "admin"}}],
            "current-context": "longshore",
        });
        let path = folder.join("kubeconfig");
        write_private(&path, &serde_json::to_string_pretty(&kubeconfig)?)?;
        Ok(path)
    }
}

fn write_pair(folder: &Path, name: &str, signed: &Signed) -> Result<Pair> {
    let pair =
        Pair { certificate: folder.join(format!("{name}.crt")), key: folder.join(format!("{name}.key")) };
    write_private(&pair.certificate, &signed.certificate)?;
    write_private(&pair.key, &signed.key)?;
    Ok(pair)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, text.as_bytes())
        .with_context(|| format!("failed to write {}", path.display()))
}
