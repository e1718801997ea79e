//! One connection to one broker: Kafka's messages, one at a time. Knows no message by name.

use std::{collections::HashMap, io, time::Duration};

use kafka_protocol::{
    messages::{ApiVersionsRequest, RequestHeader, ResponseHeader},
    protocol::{Decodable as _, Encodable as _, HeaderVersion, Request, StrBytes},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::{KafkaError, access::Access, complaint, sasl};

pub(super) const CLIENT_ID: &str = "longshore-operator";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than a broker takes for a request that it forwards and waits for.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(45);
/// Far more than the configuration of all topics of a set.
const ANSWER_BYTES_MAX: i32 = 100 * 1024 * 1024;
/// Which all brokers since Kafka 2.4 know.
const API_VERSIONS_VERSION: i16 = 3;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

/// One that failed once is of no more use.
pub(super) struct Connection {
    endpoint: String,
    stream: Box<dyn Stream>,
    /// What the broker understands, from and to.
    versions: HashMap<i16, (i16, i16)>,
    asked: i32,
}

impl Connection {
    /// I/O: connects, encrypts, authenticates.
    pub(super) async fn open(access: &Access, host: &str, port: u16) -> Result<Self, KafkaError> {
        let endpoint = format!("{host}:{port}");
        let stream = connect(access, host, port).await?;
        let mut connection = Self { endpoint, stream, versions: HashMap::new(), asked: 0 };
        let software = StrBytes::from_static_str(CLIENT_ID);
        let request = ApiVersionsRequest::default()
            .with_client_software_name(software)
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let answer = connection.ask_in(&request, API_VERSIONS_VERSION).await?;
        if let Some(words) = complaint(answer.error_code, None) {
            return Err(KafkaError::Refused { request: "ApiVersions", words });
        }
        let known = answer.api_keys.iter().map(|api| (api.api_key, (api.min_version, api.max_version)));
        connection.versions = known.collect();
        if let Some(credentials) = &access.sasl {
            sasl::authenticate(&mut connection, credentials).await?;
        }
        Ok(connection)
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// I/O: sends a request in the newest version that both sides know, and returns the answer.
    pub(super) async fn ask<R: Request>(&mut self, request: &R) -> Result<R::Response, KafkaError> {
        let unknown = || KafkaError::Version { request: name::<R>(), endpoint: self.endpoint.clone() };
        let (oldest, newest) = self.versions.get(&R::KEY).copied().ok_or_else(unknown)?;
        let version = newest.min(R::VERSIONS.max);
        if version < oldest.max(R::VERSIONS.min) {
            return Err(unknown());
        }
        self.ask_in(request, version).await
    }

    async fn ask_in<R: Request>(&mut self, request: &R, version: i16) -> Result<R::Response, KafkaError> {
        let exchanged = match timeout(ANSWER_TIMEOUT, self.exchange(request, version)).await {
            Ok(exchanged) => exchanged,
            Err(late) => Err(late.into()),
        };
        let result = if exchanged.is_ok() { "answered" } else { "failed" };
        super::admin::count(name::<R>(), result);
        exchanged.map_err(|source| {
            let (request, endpoint) = (name::<R>(), self.endpoint.clone());
            KafkaError::Exchange { request, endpoint, source }
        })
    }

    async fn exchange<R: Request>(&mut self, request: &R, version: i16) -> io::Result<R::Response> {
        self.asked = self.asked.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.asked)
            .with_client_id(Some(StrBytes::from_static_str(CLIENT_ID)));
        let mut frame = vec![0; 4];
        header.encode(&mut frame, R::header_version(version)).map_err(malformed)?;
        request.encode(&mut frame, version).map_err(malformed)?;
        let length = i32::try_from(frame.len().saturating_sub(4)).map_err(malformed)?;
        frame.splice(..4, length.to_be_bytes());
        self.stream.write_all(&frame).await?;
        self.stream.flush().await?;

        let length = self.stream.read_i32().await?;
        if !(0..=ANSWER_BYTES_MAX).contains(&length) {
            return Err(malformed(format!("an answer of {length} bytes")));
        }
        let mut answer = vec![0; usize::try_from(length).unwrap_or(0)];
        self.stream.read_exact(&mut answer).await?;
        let mut answer = bytes::Bytes::from(answer);
        let header =
            ResponseHeader::decode(&mut answer, R::Response::header_version(version)).map_err(malformed)?;
        if header.correlation_id != self.asked {
            return Err(malformed("an answer to another request"));
        }
        R::Response::decode(&mut answer, version).map_err(malformed)
    }
}

/// As Kafka calls it.
fn name<R: Request>() -> &'static str {
    let name = std::any::type_name::<R>().rsplit("::").next().unwrap_or_default();
    name.trim_end_matches("Request")
}

fn malformed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

async fn connect(access: &Access, host: &str, port: u16) -> Result<Box<dyn Stream>, KafkaError> {
    let endpoint = || format!("{host}:{port}");
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port))).await;
    let stream = connected.map_err(io::Error::from).flatten();
    let stream = stream.map_err(|source| KafkaError::Connect { endpoint: endpoint(), source })?;
    let Some(tls) = &access.tls else { return Ok(Box::new(stream)) };
    let shaken = async {
        let config = tls.config().map_err(malformed)?;
        let name = ServerName::try_from(host.to_owned()).map_err(malformed)?;
        TlsConnector::from(config).connect(name, stream).await
    };
    let shaken = timeout(CONNECT_TIMEOUT, shaken).await.map_err(io::Error::from).flatten();
    let stream = shaken.map_err(|source| KafkaError::Tls { endpoint: endpoint(), source })?;
    Ok(Box::new(stream))
}
