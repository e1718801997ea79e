//! What ConfigMaps and Secrets hold, as a hash: it is read again only when its version has changed.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use sha2::{Digest as _, Sha256};

use super::{
    Error, Watches, manifest,
    observed::{Config, Content},
};

/// The version that was read, and its hash.
#[derive(Default)]
pub(super) struct Configs(BTreeMap<Config, (String, String)>);

impl Configs {
    /// I/O: what each holds; that one cannot be read is said of it alone.
    pub(super) async fn read(
        &mut self,
        client: &Client,
        watches: &Watches,
        namespace: &str,
        wanted: &BTreeSet<Config>,
    ) -> Result<BTreeMap<Config, Content>, Error> {
        self.0.retain(|config, _| wanted.contains(config));
        let mut contents = BTreeMap::new();
        for config in wanted {
            let content = match watches.version(namespace, config) {
                Some(version) => self.content(client, namespace, config, version).await?,
                None => Content::Missing,
            };
            contents.insert(config.clone(), content);
        }
        Ok(contents)
    }

    async fn content(
        &mut self,
        client: &Client,
        namespace: &str,
        config: &Config,
        version: String,
    ) -> Result<Content, Error> {
        if let Some((known, hash)) = self.0.get(config)
            && *known == version
        {
            return Ok(Content::Hash(hash.clone()));
        }
        match hash(client, namespace, config).await {
            Ok(Some(hash)) => {
                self.0.insert(config.clone(), (version, hash.clone()));
                Ok(Content::Hash(hash))
            }
            Ok(None) => Ok(Content::Missing),
            Err(kube::Error::Api(status)) => Ok(Content::Unreadable(status.message.clone())),
            Err(source) => Err(Error::Config { config: config.clone(), source: Box::new(source) }),
        }
    }
}

async fn hash(client: &Client, namespace: &str, config: &Config) -> Result<Option<String>, kube::Error> {
    let mut hasher = Sha256::new();
    let mut add = |key: &str, value: &[u8]| {
        for part in [key.as_bytes(), value] {
            hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hasher.update(part);
        }
    };
    match config {
        Config::ConfigMap(name) => {
            let Some(map) = Api::<ConfigMap>::namespaced(client.clone(), namespace).get_opt(name).await?
            else {
                return Ok(None);
            };
            map.data.iter().flatten().for_each(|(key, value)| add(key, value.as_bytes()));
            map.binary_data.iter().flatten().for_each(|(key, value)| add(key, &value.0));
        }
        Config::Secret(name) => {
            let Some(secret) = Api::<Secret>::namespaced(client.clone(), namespace).get_opt(name).await?
            else {
                return Ok(None);
            };
            secret.data.iter().flatten().for_each(|(key, value)| add(key, &value.0));
        }
    }
    Ok(Some(manifest::digits(hasher)))
}
