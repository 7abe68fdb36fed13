//! What a restarted node disowns its former life's connections with.

use std::sync::Arc;

use aws_lc_rs::hmac;
use quinn_proto::HashedConnectionIdGenerator;

use crate::identity::Credentials;

/// Lets a restarted node disown the connections of its former life, so that peers notice at their first packet and
/// not after the idle timeout.
///
/// Derived from the node's key (its signatures are deterministic), so nothing more has to be kept on disk. Who knows
/// the key could end these connections anyway.
#[derive(Clone)]
pub(crate) struct ResetSecrets {
    key: Arc<hmac::Key>,
    connection_ids: u64,
}

impl std::fmt::Debug for ResetSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResetSecrets")
    }
}

impl ResetSecrets {
    pub(crate) fn of(credentials: &Credentials) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, &credentials.sign(b"plexus stateless reset"));
        let derive = |label: &[u8]| hmac::sign(&root, label);
        let ids = derive(b"connection ids");
        let first = ids.as_ref().first_chunk().copied().unwrap_or_default();
        let key = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, derive(b"tokens").as_ref()));
        Self { key, connection_ids: u64::from_be_bytes(first) }
    }

    /// Settings of an endpoint that takes UDP payloads of at most `mtu` bytes.
    pub(crate) fn endpoint_config(&self, mtu: u16) -> quinn::EndpointConfig {
        let connection_ids = self.connection_ids;
        let mut config = quinn::EndpointConfig::new(self.key.clone());
        config
            // A set fixed bit tells QUIC from the packets of other link kinds on the same socket.
            .grease_quic_bit(false)
            .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(connection_ids)));
        // The peer sends no larger ones than this, whatever the path carries.
        config.max_udp_payload_size(mtu.max(1472)).expect("above QUIC's least and below UDP's most");
        config
    }
}
