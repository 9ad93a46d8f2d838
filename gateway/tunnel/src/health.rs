//! What gateways tell each other about their services: how many endpoints are ready.
//!
//! The accepting side sends it on a unidirectional stream of a private type, at once when it changes and an empty
//! message every second in between, so that a reader can tell "unchanged" from "stuck".

use crate::codec::varint;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Readiness of one service version behind one gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceHealth {
    /// `namespace/name`.
    pub service: String,
    /// Version of its endpoints; empty when they carry none.
    pub version: String,
    /// Endpoints that take requests.
    pub ready: u32,
    /// Endpoints that exist.
    pub total: u32,
}

/// Stream type, from the private space as the settings ids are (RFC 9114 §11.2.4).
pub(crate) const STREAM_TYPE: u64 = 0x1a7c_6e5d_4d65_7370;

/// The type byte(s) that open a health stream.
pub(crate) fn stream_prefix() -> Bytes {
    let mut out = BytesMut::with_capacity(8);
    varint::encode(STREAM_TYPE, &mut out);
    out.freeze()
}

/// One message: everything we know, or nothing but a sign of life.
///
/// Layout: `length: varint | (service: text, version: text, ready: varint, total: varint)*`, where text is
/// `length: varint | UTF-8`. A length of zero is the sign of life; an empty list is one entry with an empty service.
pub(crate) fn encode(services: Option<&[ServiceHealth]>) -> Bytes {
    let mut payload = BytesMut::new();
    let nothing = [ServiceHealth { service: String::new(), version: String::new(), ready: 0, total: 0 }];
    let services = match services {
        Some([]) => &nothing[..],
        Some(services) => services,
        None => &[],
    };
    for service in services {
        let before = payload.len();
        for text in [&service.service, &service.version] {
            varint::encode(text.len() as u64, &mut payload);
            payload.put_slice(text.as_bytes());
        }
        varint::encode(u64::from(service.ready), &mut payload);
        varint::encode(u64::from(service.total), &mut payload);
        if payload.len() > MESSAGE_BYTES_MAX {
            tracing::warn!(services = services.len(), "more services than one health message holds");
            payload.truncate(before);
            break;
        }
    }
    let mut out = BytesMut::with_capacity(payload.len() + 8);
    varint::encode(payload.len() as u64, &mut out);
    out.put(payload);
    out.freeze()
}

/// Collects the bytes of a health stream and cuts them into messages.
#[derive(Debug, Default)]
pub(crate) struct HealthDecoder {
    buffer: BytesMut,
}

impl HealthDecoder {
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next message that says something, or `None` when more bytes are needed.
    pub(crate) fn next_message(&mut self) -> Result<Option<Vec<ServiceHealth>>, InvalidHealth> {
        loop {
            let Some((length, used)) = varint::decode(&self.buffer) else { return Ok(None) };
            let length =
                usize::try_from(length).ok().filter(|length| *length <= MESSAGE_BYTES_MAX).ok_or(InvalidHealth)?;
            if self.buffer.len() < used + length {
                return Ok(None);
            }
            self.buffer.advance(used);
            let payload = self.buffer.split_to(length);
            if !payload.is_empty() {
                return decode(&payload).map(Some).ok_or(InvalidHealth);
            }
        }
    }
}

/// A health message that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid health message")]
pub(crate) struct InvalidHealth;

fn decode(mut payload: &[u8]) -> Option<Vec<ServiceHealth>> {
    let mut services = Vec::new();
    while !payload.is_empty() {
        let service = text(&mut payload)?;
        let version = text(&mut payload)?;
        let ready = u32::try_from(number(&mut payload)?).ok()?;
        let total = u32::try_from(number(&mut payload)?).ok()?;
        if !service.is_empty() {
            services.push(ServiceHealth { service, version, ready, total });
        }
    }
    Some(services)
}

fn number(payload: &mut &[u8]) -> Option<u64> {
    let (value, used) = varint::decode(payload)?;
    *payload = payload.get(used..)?;
    Some(value)
}

fn text(payload: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(number(payload)?).ok()?;
    let (text, rest) = payload.split_at_checked(length)?;
    *payload = rest;
    String::from_utf8(text.to_vec()).ok()
}

/// Ten thousand service versions with names of the length Kubernetes allows in practice.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(services in proptest::collection::vec(("[a-z]{1,9}/[a-z]{1,9}", "[a-z0-9]{0,5}", any::<u32>(), any::<u32>()), 0..20), cut: usize) {
            let services: Vec<_> = services.into_iter().map(|(service, version, ready, total)| ServiceHealth { service, version, ready, total }).collect();
            let wire = [encode(None), encode(Some(&services)), encode(None)].concat();
            let mut decoder = HealthDecoder::default();
            decoder.push(&wire[..cut % wire.len()]);
            let early = decoder.next_message().unwrap();
            decoder.push(&wire[cut % wire.len()..]);
            let got = match early { Some(services) => services, None => decoder.next_message().unwrap().unwrap() };
            prop_assert_eq!(got, services);
            prop_assert_eq!(decoder.next_message(), Ok(None));
        }

        #[test]
        fn arbitrary_bytes(bytes: Vec<u8>) {
            let mut decoder = HealthDecoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_message() {}
        }
    }

    #[test]
    fn bounded() {
        let mut decoder = HealthDecoder::default();
        decoder.push(&[0xbf, 0xff, 0xff, 0xff]);
        assert_eq!(decoder.next_message(), Err(InvalidHealth));
    }
}
