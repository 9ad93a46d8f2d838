//! What concerns one connection does not cross a gateway (RFC 9110 §7.6.1).

use crate::fields::{Field, Fields};
use crate::name::{HOP_BY_HOP, Known};
use crate::text;

impl Fields {
    /// Removes what concerns only the connection that the message came on: `Connection` and what it names, `Keep-Alive`,
    /// `Proxy-Connection`, `TE`, `Transfer-Encoding`, `Upgrade` and `HTTP2-Settings`.
    ///
    /// Where a message goes, how long it is and who it says it is from cannot be made hop-by-hop by its sender, see
    /// [`Known::is_end_to_end`]. `Trailer` stays: RFC 9110 §7.6.1 does not list it, and §6.6.2 has it announce fields that are passed on.
    ///
    /// Returns true when the sender takes trailers (`TE: trailers`, RFC 9110 §10.1.4).
    pub fn strip_hop_by_hop(&mut self) -> bool {
        let (text, fields, present) = self.parts();
        let mut named: u128 = 0;
        let (mut trailers, mut others) = (false, false);
        if *present & HOP_BY_HOP == 0 {
            return false;
        }
        for field in fields.iter() {
            if field.is(Known::Te) {
                trailers |= text::list(field.value(text)).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
            } else if field.is(Known::Connection) {
                for option in text::list(field.value(text)) {
                    match Known::of(option) {
                        Some(known) if known.is_end_to_end() => {}
                        Some(known) => named |= known.bit(),
                        // `close` is no field; looking for it in every message would be a second pass for nothing.
                        None => others |= !option.eq_ignore_ascii_case(b"close"),
                    }
                }
            }
        }
        if others {
            mark_named(text, fields);
        }
        let gone = named | HOP_BY_HOP;
        fields.retain(|field| field.flags & Field::DOOMED == 0 && field.bit() & gone == 0);
        *present &= !gone;
        trailers
    }
}

/// Marks the fields that `Connection` names and that are not in the table of names.
fn mark_named(text: &[u8], fields: &mut [Field]) {
    for at in 0..fields.len() {
        let Some(field) = fields.get(at).copied().filter(|field| field.known == Field::OTHER && !field.is_mesh())
        else {
            continue;
        };
        let name = field.name(text);
        let named =
            |connection: &Field| text::list(connection.value(text)).any(|option| option.eq_ignore_ascii_case(name));
        if fields.iter().filter(|field| field.is(Known::Connection)).any(named)
            && let Some(field) = fields.get_mut(at)
        {
            field.flags |= Field::DOOMED;
        }
    }
}

impl Field {
    fn is(&self, known: Known) -> bool {
        self.known == known as u8
    }
}
