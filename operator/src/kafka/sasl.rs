//! Proves to a broker who the operator is.

use std::io::Cursor;

use kafka_protocol::messages::{SaslAuthenticateRequest, SaslHandshakeRequest};
use rsasl::{
    mechname::Mechname,
    prelude::{SASLClient, SASLConfig},
};

use super::{
    KafkaError,
    access::{Sasl, word},
    complaint,
    connection::Connection,
};

/// I/O: everything until the broker lets us in, and has proven itself where the mechanism lets it.
pub(super) async fn authenticate(connection: &mut Connection, sasl: &Sasl) -> Result<(), KafkaError> {
    let endpoint = connection.endpoint().to_owned();
    let refused = |words: String| KafkaError::Authentication { endpoint: endpoint.clone(), words };
    let mechanism = word(sasl.mechanism);
    let handshake = SaslHandshakeRequest::default().with_mechanism(mechanism.into());
    let answer = connection.ask(&handshake).await?;
    if let Some(words) = complaint(answer.error_code, None) {
        let offered: Vec<&str> = answer.mechanisms.iter().map(|mechanism| mechanism.as_str()).collect();
        return Err(refused(format!("{words}; it offers {}", offered.join(", "))));
    }
    let config = SASLConfig::with_credentials(None, sasl.username.clone(), sasl.password.clone())
        .map_err(|error| refused(error.to_string()))?;
    let name = Mechname::parse(mechanism.as_bytes()).map_err(|error| refused(error.to_string()))?;
    let mut session =
        SASLClient::new(config).start_suggested(&[name]).map_err(|error| refused(error.to_string()))?;
    let mut said = None;
    loop {
        let mut reply = Cursor::new(Vec::new());
        let step = session.step(said.as_deref(), &mut reply).map_err(|error| refused(error.to_string()))?;
        if !step.has_sent_message() {
            return Ok(());
        }
        let request = SaslAuthenticateRequest::default().with_auth_bytes(reply.into_inner().into());
        let answer = connection.ask(&request).await?;
        if let Some(words) = complaint(answer.error_code, answer.error_message.as_deref()) {
            return Err(refused(words));
        }
        if step.is_finished() {
            return Ok(());
        }
        said = Some(answer.auth_bytes.to_vec());
    }
}
