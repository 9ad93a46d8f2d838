//! The control stream (RFC 9114 §6.2.1): SETTINGS first, then GOAWAY; and our settings.

use super::{Code, Frame, FrameDecoder, Limits, ProtocolError, StreamRole, varint};
use bytes::{BufMut, Bytes, BytesMut};

/// Reads the frames of a peer's control stream, whose type byte the caller has consumed.
#[derive(Debug)]
pub struct ControlDecoder {
    frames: FrameDecoder,
    settings_seen: bool,
    goaway: Option<u64>,
}

impl Default for ControlDecoder {
    fn default() -> Self {
        Self { frames: FrameDecoder::new(StreamRole::Control, Limits::default()), settings_seen: false, goaway: None }
    }
}

impl ControlDecoder {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, chunk: Bytes) {
        self.frames.push(chunk);
    }

    /// The next event, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// Anything but SETTINGS first, SETTINGS twice, a GOAWAY id that grows. All of them close the connection.
    pub fn next_event(&mut self) -> Result<Option<ControlEvent>, ProtocolError> {
        match self.frames.next_frame().map_err(|error| ProtocolError { scope: super::Scope::Connection, ..error })? {
            None => Ok(None),
            Some(Frame::Settings(_)) if self.settings_seen => {
                Err(ProtocolError::connection(Code::FRAME_UNEXPECTED, "second SETTINGS"))
            }
            Some(Frame::Settings(payload)) => {
                self.settings_seen = true;
                Settings::decode(&payload).map(|settings| Some(ControlEvent::Settings(settings)))
            }
            Some(_) if !self.settings_seen => {
                Err(ProtocolError::connection(Code::MISSING_SETTINGS, "control stream does not begin with SETTINGS"))
            }
            Some(Frame::GoAway(id)) => {
                if self.goaway.is_some_and(|before| id > before) {
                    return Err(ProtocolError::connection(Code::ID_ERROR, "GOAWAY id grew"));
                }
                self.goaway = Some(id);
                Ok(Some(ControlEvent::GoAway(id)))
            }
            Some(Frame::Data(_) | Frame::Headers(_)) => {
                Err(ProtocolError::connection(Code::FRAME_UNEXPECTED, "message frame on the control stream"))
            }
        }
    }
}

/// What a control stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlEvent {
    /// The peer's settings; once, first.
    Settings(Settings),
    /// The peer is going away: requests on stream ids from this one on are not processed.
    GoAway(u64),
}

/// The settings that matter here (RFC 9114 §7.2.4, RFC 9220, RFC 9297, and ours).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Largest field section the sender accepts, bytes; absent: no limit.
    pub field_section_bytes_max: Option<u64>,
    /// Extended CONNECT is understood (RFC 9220).
    pub extended_connect: bool,
    /// HTTP datagrams are understood (RFC 9297).
    pub datagrams: bool,
    /// The sender is one of our gateways: [`Mesh::version`] of the extensions and who it is this time.
    pub mesh: Option<Mesh>,
}

/// Our extensions: beats in datagrams and service health on a stream of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mesh {
    /// Version of the extensions; both sides use the smaller one.
    pub version: u64,
    /// Drawn anew by every process (62 bits), so that a peer knows a restart from a healed path.
    pub incarnation: u64,
}

impl Settings {
    /// The type byte of a control stream and SETTINGS, the first bytes on it.
    pub fn control_stream_prefix(&self) -> Bytes {
        let mut payload = BytesMut::with_capacity(64);
        let mut put = |id: u64, value: u64| {
            varint::encode(id, &mut payload);
            varint::encode(value, &mut payload);
        };
        put(QPACK_MAX_TABLE_CAPACITY, 0);
        if let Some(bytes) = self.field_section_bytes_max {
            put(MAX_FIELD_SECTION_SIZE, bytes);
        }
        if self.extended_connect {
            put(ENABLE_CONNECT_PROTOCOL, 1);
        }
        if self.datagrams {
            put(H3_DATAGRAM, 1);
        }
        if let Some(mesh) = self.mesh {
            put(MESH_EXT, mesh.version);
            put(MESH_INCARNATION, mesh.incarnation);
        }
        let mut out = BytesMut::with_capacity(payload.len() + 4);
        out.put_u8(0x00); // stream type: control
        out.put_u8(0x04); // frame type: SETTINGS
        varint::encode(payload.len() as u64, &mut out);
        out.put(payload);
        out.freeze()
    }

    fn decode(mut payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut settings =
            Self { field_section_bytes_max: None, extended_connect: false, datagrams: false, mesh: None };
        let (mut version, mut incarnation) = (None, 0);
        let mut seen = Vec::new();
        while !payload.is_empty() {
            let id = take_varint(&mut payload)?;
            let value = take_varint(&mut payload)?;
            if seen.contains(&id) {
                return Err(ProtocolError::connection(Code::SETTINGS_ERROR, "setting given twice"));
            }
            if seen.len() == SETTINGS_MAX {
                return Err(ProtocolError::connection(Code::EXCESSIVE_LOAD, "too many settings"));
            }
            seen.push(id);
            match id {
                MAX_FIELD_SECTION_SIZE => settings.field_section_bytes_max = Some(value),
                ENABLE_CONNECT_PROTOCOL => settings.extended_connect = flag(value)?,
                H3_DATAGRAM => settings.datagrams = flag(value)?,
                MESH_EXT => version = Some(value),
                MESH_INCARNATION => incarnation = value,
                // HTTP/2's settings (RFC 9114 §7.2.4.1).
                0x00 | 0x02..=0x05 => {
                    return Err(ProtocolError::connection(Code::SETTINGS_ERROR, "reserved HTTP/2 setting"));
                }
                _ => {} // a peer's QPACK limits need no answer: we never use its dynamic table
            }
        }
        settings.mesh = version.filter(|version| *version > 0).map(|version| Mesh { version, incarnation });
        Ok(settings)
    }
}

/// GOAWAY: requests on client-initiated streams from `id` on are not processed.
pub fn goaway_frame(id: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(10);
    let mut payload = BytesMut::with_capacity(8);
    varint::encode(id, &mut payload);
    out.put_u8(0x07);
    varint::encode(payload.len() as u64, &mut out);
    out.put(payload);
    out.freeze()
}

fn take_varint(payload: &mut &[u8]) -> Result<u64, ProtocolError> {
    let (value, length) =
        varint::decode(payload).ok_or(ProtocolError::connection(Code::FRAME_ERROR, "truncated SETTINGS"))?;
    *payload = payload.get(length..).unwrap_or_default();
    Ok(value)
}

fn flag(value: u64) -> Result<bool, ProtocolError> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(ProtocolError::connection(Code::SETTINGS_ERROR, "boolean setting is neither 0 nor 1")),
    }
}

const QPACK_MAX_TABLE_CAPACITY: u64 = 0x01;
const MAX_FIELD_SECTION_SIZE: u64 = 0x06;
const ENABLE_CONNECT_PROTOCOL: u64 = 0x08;
const H3_DATAGRAM: u64 = 0x33;
/// Private, from the 62-bit space where RFC 9114 §11.2.2 leaves room; not of the grease form 0x1f * N + 0x21.
const MESH_EXT: u64 = 0x1a7c_6e5d_4d65_7368;
const MESH_INCARNATION: u64 = 0x1a7c_6e5d_4d65_7369;
/// More settings than any registry lists.
const SETTINGS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder(bytes: &[u8]) -> ControlDecoder {
        let mut decoder = ControlDecoder::default();
        decoder.push(Bytes::copy_from_slice(bytes));
        decoder
    }

    #[test]
    fn our_settings_round_trip() {
        let settings = Settings {
            field_section_bytes_max: Some(65536),
            extended_connect: true,
            datagrams: true,
            mesh: Some(Mesh { version: 1, incarnation: varint::MAX }),
        };
        let wire = settings.control_stream_prefix();
        assert_eq!(wire[0], 0);
        let mut decoder = decoder(&wire[1..]);
        decoder.push(goaway_frame(12));
        assert_eq!(decoder.next_event(), Ok(Some(ControlEvent::Settings(settings))));
        assert_eq!(decoder.next_event(), Ok(Some(ControlEvent::GoAway(12))));
        assert_eq!(decoder.next_event(), Ok(None));
    }

    #[test]
    fn violations_close_the_connection() {
        for (bytes, code) in [
            (&[0x07, 0x01, 0x00][..], Code::MISSING_SETTINGS),
            (&[0x04, 0x00, 0x04, 0x00], Code::FRAME_UNEXPECTED),
            (&[0x04, 0x02, 0x02, 0x00], Code::SETTINGS_ERROR),
            (&[0x04, 0x02, 0x08, 0x02], Code::SETTINGS_ERROR),
            (&[0x04, 0x04, 0x06, 0x01, 0x06, 0x01], Code::SETTINGS_ERROR),
            (&[0x04, 0x01, 0x06], Code::FRAME_ERROR),
            (&[0x04, 0x00, 0x00, 0x01], Code::FRAME_UNEXPECTED),
            (&[0x04, 0x00, 0x07, 0x01, 0x04, 0x07, 0x01, 0x08], Code::ID_ERROR),
            (&[0x04, 0x00, 0x07, 0x02, 0x04, 0x04], Code::FRAME_ERROR),
            (&[0x04, 0x80, 0x10, 0x00, 0x00], Code::EXCESSIVE_LOAD),
            (&[0x02, 0x00], Code::FRAME_UNEXPECTED),
        ] {
            let mut decoder = decoder(bytes);
            let error = loop {
                match decoder.next_event() {
                    Ok(Some(_)) => continue,
                    Ok(None) => panic!("accepted {bytes:02x?}"),
                    Err(error) => break error,
                }
            };
            assert_eq!((error.code, error.scope), (code, super::super::Scope::Connection), "{bytes:02x?}");
        }
    }

    #[test]
    fn grease_is_skipped() {
        // Frame 0x21 with four bytes, then SETTINGS with setting 0x21, then MAX_PUSH_ID.
        let mut decoder =
            decoder(&[0x04, 0x02, 0x21, 0x05, 0x21, 0x04, 1, 2, 3, 4, 0x0d, 0x01, 0x07, 0x07, 0x01, 0x00]);
        assert!(matches!(decoder.next_event(), Ok(Some(ControlEvent::Settings(_)))));
        assert_eq!(decoder.next_event(), Ok(Some(ControlEvent::GoAway(0))));
    }
}
