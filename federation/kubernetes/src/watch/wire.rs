//! What the API server says, read far enough to know which object it is about.

use bytes::Bytes;
use http::StatusCode;
use kube::core::Status;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    client::Failure,
    types::{Key, Kind, Names},
};

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    pub(super) metadata: PageMeta,
    /// Go writes `null` for an empty list.
    #[serde(borrow)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PageMeta {
    pub(super) resource_version: String,
    pub(super) r#continue: String,
}

impl<'a> Page<'a> {
    pub(super) fn parse(bytes: &'a Bytes) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

/// A line of a watch.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// Added or changed.
    Applied(&'a RawValue),
    Deleted(&'a RawValue),
    /// Nothing changed up to here.
    Bookmark {
        version: String,
    },
    /// The watch cannot go on.
    Error(Failure),
}

impl<'a> Event<'a> {
    pub(super) fn parse(line: &'a [u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Line<'a> {
            r#type: &'a str,
            #[serde(borrow)]
            object: &'a RawValue,
        }
        let Line { r#type, object } = serde_json::from_slice(line)?;
        Ok(match r#type {
            "DELETED" => Self::Deleted(object),
            "BOOKMARK" => Self::Bookmark { version: Head::parse(object)?.resource_version },
            "ERROR" => {
                let status = serde_json::from_str::<Status>(object.get()).unwrap_or_default();
                Self::Error(Failure::said(status, StatusCode::INTERNAL_SERVER_ERROR))
            }
            // `ADDED` and `MODIFIED` are the same to who keeps an index.
            _ => Self::Applied(object),
        })
    }
}

/// Which object it is.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Head {
    name: String,
    namespace: String,
    pub(super) resource_version: String,
}

impl Head {
    pub(super) fn parse(object: &RawValue) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Object {
            metadata: Head,
        }
        Ok(serde_json::from_str::<Object>(object.get())?.metadata)
    }

    pub(super) fn key(&self, names: &mut Names) -> Key {
        Key { namespace: names.intern(&self.namespace), name: self.name.as_str().into() }
    }
}

/// The object itself.
pub(super) fn read<K: Kind>(object: &RawValue, names: &mut Names) -> Result<Option<K>, serde_json::Error> {
    Ok(K::keep(serde_json::from_str(object.get())?, names))
}

/// Percent-encodes what is not plain in a query.
pub(super) fn escape(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            byte => {
                out.push('%');
                for digit in [byte >> 4, byte & 15] {
                    out.extend(char::from_digit(digit.into(), 16));
                }
            }
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        assert_eq!(escape("a!=b,c=d e/é"), "a%21%3db%2cc%3dd%20e%2f%c3%a9");
    }

    #[test]
    fn lines_say_what_they_are() {
        let kind = |line: &str| match Event::parse(line.as_bytes()) {
            Ok(Event::Applied(_)) => "applied".to_owned(),
            Ok(Event::Deleted(_)) => "deleted".to_owned(),
            Ok(Event::Bookmark { version }) => format!("bookmark {version}"),
            Ok(Event::Error(failure)) => format!("error {}", failure.is_expired()),
            Err(_) => "unreadable".to_owned(),
        };
        let object = r#""object":{"kind":"Pod","metadata":{"name":"a","namespace":"b","resourceVersion":"7"}}"#;
        assert_eq!(kind(&format!(r#"{{"type":"ADDED",{object}}}"#)), "applied");
        assert_eq!(kind(&format!(r#"{{"type":"DELETED",{object}}}"#)), "deleted");
        assert_eq!(kind(&format!(r#"{{"type":"BOOKMARK",{object}}}"#)), "bookmark 7");
        assert_eq!(kind(r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}"#), "error true");
        assert_eq!(kind(r#"{"type":"ADD"#), "unreadable");
    }
}
