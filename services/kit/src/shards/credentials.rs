//! What the router logs in with, from the mounted directory, and whom it trusts. Read again whenever that may have changed:
//! nothing restarts for a new password or a new authority.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::time::{MissedTickBehavior, interval};

use super::core::Core;
use crate::settings::SslMode;

/// How often the files are read. Three small files: cheaper than to be told of changes, and right on every file system.
const READ_INTERVAL: Duration = Duration::from_secs(1);

/// As long as any file may be.
const FILE_BYTES_MAX: usize = 256 * 1024;

/// Why the credentials could not be read.
#[derive(Debug, thiserror::Error)]
#[error("failed to read credentials from {path}")]
pub struct CredentialsError {
    path: PathBuf,
    source: io::Error,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    username: String,
    password: String,
    /// Certificates in PEM.
    authorities: Option<String>,
}

impl Credentials {
    /// I/O: reads `username`, `password` and, if it is there, `ca.crt`.
    pub(crate) fn read(dir: &Path) -> Result<Self, CredentialsError> {
        // A kubelet swaps this link to change all files at once: through it they are of one moment.
        let dir = fs::canonicalize(dir.join("..data")).unwrap_or_else(|_| dir.to_owned());
        let read = |name| {
            let path = dir.join(name);
            let text = fs::read_to_string(&path).and_then(|text| match text.len() {
                0..=FILE_BYTES_MAX => Ok(text),
                _ => Err(io::Error::other(format!("longer than {FILE_BYTES_MAX} bytes"))),
            });
            match text {
                // People write these files with editors, which end them with a line break.
                Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned())),
                Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(CredentialsError { path, source }),
            }
        };
        let must = |name| {
            let missing =
                || CredentialsError { path: dir.join(name), source: io::ErrorKind::NotFound.into() };
            read(name)?.ok_or_else(missing)
        };
        Ok(Self { username: must("username")?, password: must("password")?, authorities: read("ca.crt")? })
    }

    /// Logs in with them; `asked` is the mode of the settings.
    pub(crate) fn apply(&self, options: PgConnectOptions, asked: Option<SslMode>) -> PgConnectOptions {
        let by_files = if self.authorities.is_some() { SslMode::VerifyFull } else { SslMode::Prefer };
        let mode = match asked.unwrap_or(by_files) {
            SslMode::Disable => PgSslMode::Disable,
            SslMode::Prefer => PgSslMode::Prefer,
            SslMode::Require => PgSslMode::Require,
            SslMode::VerifyCa => PgSslMode::VerifyCa,
            SslMode::VerifyFull => PgSslMode::VerifyFull,
        };
        let options = options.username(&self.username).password(&self.password).ssl_mode(mode);
        match &self.authorities {
            Some(pem) => options.ssl_root_cert_from_pem(pem.clone().into_bytes()),
            None => options,
        }
    }
}

/// Keeps what new connections use as it is mounted now. Never ends.
pub(crate) async fn keep(core: Arc<Core>) {
    let mut ticks = interval(READ_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        core.reload_credentials();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("longshore-credentials-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn mode(credentials: &Credentials, asked: Option<SslMode>) -> String {
        format!("{:?}", credentials.apply(PgConnectOptions::new_without_pgpass(), asked).get_ssl_mode())
    }

    #[test]
    fn an_authority_asks_for_full_verification() {
        let dir = folder("modes");
        fs::write(dir.join("username"), "service\n").unwrap();
        assert!(Credentials::read(&dir).is_err(), "there is no password");
        fs::write(dir.join("password"), "secret\r\n").unwrap();
        let without = Credentials::read(&dir).unwrap();
        assert_eq!((without.username.as_str(), without.password.as_str()), ("service", "secret"));
        assert_eq!(mode(&without, None), "Prefer");
        assert_eq!(mode(&without, Some(SslMode::Require)), "Require");
        fs::write(dir.join("ca.crt"), "a certificate").unwrap();
        let with = Credentials::read(&dir).unwrap();
        assert!(with != without);
        assert_eq!(mode(&with, None), "VerifyFull");
        assert_eq!(mode(&with, Some(SslMode::VerifyCa)), "VerifyCa");
        fs::write(dir.join("ca.crt"), "x".repeat(FILE_BYTES_MAX + 1)).unwrap();
        assert!(Credentials::read(&dir).is_err());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_a_kubelet_swaps_is_seen() {
        let dir = folder("swapped");
        for generation in ["first", "second"] {
            fs::create_dir(dir.join(generation)).unwrap();
            fs::write(dir.join(generation).join("username"), "service").unwrap();
            fs::write(dir.join(generation).join("password"), generation).unwrap();
        }
        symlink("first", dir.join("..data")).unwrap();
        for file in ["username", "password"] {
            symlink(format!("..data/{file}"), dir.join(file)).unwrap();
        }
        assert_eq!(Credentials::read(&dir).unwrap().password, "first");
        symlink("second", dir.join("..new")).unwrap();
        fs::rename(dir.join("..new"), dir.join("..data")).unwrap();
        assert_eq!(Credentials::read(&dir).unwrap().password, "second");
        fs::remove_dir_all(dir).unwrap();
    }
}
