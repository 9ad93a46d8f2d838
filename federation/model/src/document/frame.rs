//! What every document has around its `spec`: `apiVersion`, `kind`, `metadata`.

use super::{
    decode::{Cursor, Fields, Mistakes},
    suggest,
    tree::{Node, Place, shorten},
};
use crate::resource::{API_VERSION, Metadata, Spec};

/// A document whose kind is known.
pub(crate) struct Frame<'n> {
    root: Cursor<'n>,
    /// Where the kind stands.
    pub(crate) kind: Place,
    metadata: Option<Cursor<'n>>,
    spec: Option<Cursor<'n>>,
}

impl<'n> Frame<'n> {
    /// Reads the frame and picks the kind out of `kinds`. `None`: too little is right to go on.
    pub(crate) fn read<K: Copy>(root: &'n Node, kinds: &[(&str, K)], out: &mut Mistakes) -> Option<(Self, K)> {
        let root = Cursor::root(root);
        let mut fields = root.fields(out)?;
        if let Some(version) = fields.required("apiVersion") {
            let found = version.text(out);
            if found != API_VERSION && !found.is_empty() {
                let found = shorten(&found);
                version.wrong(out, format!("unknown API version `{found}`, expected `{API_VERSION}`"));
            }
        }
        let mut place = root.node.place;
        let kind = fields.required("kind").and_then(|kind| {
            place = kind.node.place;
            let name = kind.text(out);
            let found = kinds.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
            if found.is_none() && !name.is_empty() {
                let known = kinds.iter().map(|(known, _)| format!("`{known}`")).collect::<Vec<_>>().join(", ");
                let advice = match suggest::nearest(&name, kinds.iter().map(|(known, _)| *known)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("expected one of {known}"),
                };
                kind.wrong(out, format!("unknown kind `{}`, {advice}", shorten(&name)));
            }
            found
        });
        let metadata = fields.required("metadata");
        let spec = fields.optional("spec");
        fields.finish(out);
        Some((Self { root, kind: place, metadata, spec }, kind?))
    }

    /// The metadata; placeholders where it is wrong.
    pub(crate) fn metadata(&self, namespaced: bool, out: &mut Mistakes) -> Metadata {
        Metadata::decode(self.metadata.clone(), namespaced, out)
    }

    /// The specification; placeholders where it is wrong, `None` where nothing of it can be read.
    pub(crate) fn spec<S: Spec>(&self, out: &mut Mistakes) -> Option<S> {
        let fields: Option<Fields<'_>> = match &self.spec {
            Some(spec) => Some(spec.fields(out)?),
            None => None,
        };
        S::decode(fields, self.spec.as_ref().unwrap_or(&self.root), out)
    }
}
