//! Just enough of PostgreSQL's protocol (version 3): frames, the startup, prepared statements.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Larger messages are not of this protocol, or not of this operator.
const LENGTH_MAX: usize = 1 << 30;
const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSAPI: u32 = 80_877_104;

/// What a connection begins with.
pub(super) enum Startup {
    /// A wish to encrypt, to be answered with `N`.
    Encrypt,
    /// A cancellation, or a version that we do not know.
    Other,
    /// The parameters of a session.
    Session(Vec<(String, String)>),
}

/// Reads the first message, as it came and as it reads.
pub(super) async fn read_startup(client: &mut (impl AsyncRead + Unpin)) -> io::Result<(Vec<u8>, Startup)> {
    let mut bytes = vec![0; 8];
    client.read_exact(&mut bytes).await?;
    let length = number(&bytes).unwrap_or(0);
    if !(8..=10_000).contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    bytes.resize(length as usize, 0);
    client.read_exact(&mut bytes[8..]).await?;
    let startup = match number(&bytes[4..]) {
        Some(SSL | GSSAPI) => Startup::Encrypt,
        Some(CANCEL) | None => Startup::Other,
        Some(version) if version >> 16 != 3 => Startup::Other,
        Some(_) => Startup::Session(parameters(&bytes[8..])),
    };
    Ok((bytes, startup))
}

fn parameters(bytes: &[u8]) -> Vec<(String, String)> {
    let mut texts = bytes.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
    let mut parameters = Vec::new();
    while let (Some(key), Some(value)) = (texts.next(), texts.next()) {
        parameters.push((key, value));
    }
    parameters
}

/// One message with its tag and length.
#[derive(Debug)]
pub(super) struct Frame(Vec<u8>);

impl Frame {
    pub(super) fn tag(&self) -> u8 {
        self.0.first().copied().unwrap_or(0)
    }

    pub(super) fn body(&self) -> &[u8] {
        self.0.get(5..).unwrap_or_default()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What has been read of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    buffer: Vec<u8>,
}

impl Frames {
    /// Reads some more; false at the end. Nothing is lost if the wait is given up.
    pub(super) async fn fill(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<bool> {
        let mut chunk = [0; 16 * 1024];
        let read = from.read(&mut chunk).await?;
        self.buffer.extend_from_slice(&chunk[..read]);
        Ok(read > 0)
    }

    /// The next message, if it is there in full.
    pub(super) fn next(&mut self) -> io::Result<Option<Frame>> {
        let Some(length) = self.buffer.get(1..).and_then(number) else { return Ok(None) };
        let length = length as usize;
        if !(4..LENGTH_MAX).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if self.buffer.len() <= length {
            return Ok(None);
        }
        Ok(Some(Frame(self.buffer.drain(..=length).collect())))
    }
}

/// A prepared statement.
#[derive(Clone, Debug, Default)]
pub(super) struct Prepared {
    pub(super) sql: String,
    /// The types of its parameters, as far as the client says.
    types: Vec<u32>,
}

/// The name and content of a Parse message.
pub(super) fn parse(body: &[u8]) -> Option<(String, Prepared)> {
    let (name, rest) = text(body)?;
    let (sql, rest) = text(rest)?;
    let types = rest.get(2..)?.chunks_exact(4).filter_map(number).collect();
    Some((name, Prepared { sql, types }))
}

/// The statement that a Bind message names.
pub(super) fn bound(body: &[u8]) -> Option<String> {
    let (_portal, rest) = text(body)?;
    text(rest).map(|(name, _)| name)
}

/// The parameters of a Bind message, readable.
pub(super) fn bound_parameters(body: &[u8], prepared: &Prepared) -> Option<Vec<String>> {
    let (_portal, rest) = text(body)?;
    let (_name, rest) = text(rest)?;
    let formats = usize::from(short(rest)?);
    let binary = |index: usize| {
        let at = if formats == 1 { 0 } else { index };
        rest.get(2 + at * 2..).and_then(short) == Some(1) && at < formats
    };
    let mut values = rest.get(2 + formats * 2..)?;
    let count = usize::from(short(values)?);
    values = values.get(2..)?;
    let mut parameters = Vec::with_capacity(count);
    for index in 0..count {
        let length = number(values)?;
        values = values.get(4..)?;
        if length == u32::MAX {
            parameters.push("null".to_owned());
            continue;
        }
        let (value, rest) = values.split_at_checked(length as usize)?;
        values = rest;
        let kind = if binary(index) { prepared.types.get(index).copied().unwrap_or(0) } else { 0 };
        parameters.push(readable(value, kind));
    }
    Some(parameters)
}

/// A binary value by the object id of its type.
fn readable(value: &[u8], kind: u32) -> String {
    const BOOL: u32 = 16;
    const INT8: u32 = 20;
    const INT4: u32 = 23;
    const JSONB: u32 = 3802;
    match (kind, value) {
        (BOOL, [byte]) => (*byte != 0).to_string(),
        (INT8, _) => {
            value.try_into().map_or_else(|_| String::new(), |bytes| i64::from_be_bytes(bytes).to_string())
        }
        (INT4, _) => {
            value.try_into().map_or_else(|_| String::new(), |bytes| i32::from_be_bytes(bytes).to_string())
        }
        (JSONB, [_version, json @ ..]) => String::from_utf8_lossy(json).into_owned(),
        (_, text) => String::from_utf8_lossy(text).into_owned(),
    }
}

/// A text that ends with a zero, and what follows.
pub(super) fn text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((String::from_utf8_lossy(&bytes[..end]).into_owned(), &bytes[end + 1..]))
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn short(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_apart_however_they_arrive() {
        let mut frames = Frames::default();
        for part in [&b"Q\0\0\0\x08"[..], b"one\0Z\0\0", b"\0\x05I"] {
            frames.fill(&mut &part[..]).await.unwrap();
        }
        let tags: Vec<u8> = std::iter::from_fn(|| frames.next().unwrap()).map(|frame| frame.tag()).collect();
        assert_eq!(tags, b"QZ");
    }

    #[test]
    fn parameters_are_read_by_their_types() {
        let (name, prepared) = parse(b"s1\0select $1, $2\0\0\x02\0\0\0\x14\0\0\x0e\xda").unwrap();
        assert_eq!((name.as_str(), prepared.sql.as_str()), ("s1", "select $1, $2"));
        let bind =
            b"\0s1\0\0\x01\0\x01\0\x03\0\0\0\x08\0\0\0\0\0\0\0\x07\0\0\0\x03\x01{}\xff\xff\xff\xff\0\0";
        assert_eq!(bound(bind).as_deref(), Some("s1"));
        assert_eq!(bound_parameters(bind, &prepared).unwrap(), ["7", "{}", "null"]);
    }
}
