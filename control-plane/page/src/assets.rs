//! The files of the page, out of the binary.

/// A file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asset {
    /// Where it is asked for.
    pub path: &'static str,
    /// What it is.
    pub content_type: &'static str,
    /// All of it.
    pub bytes: &'static [u8],
}

/// The file at a path; the page itself at `/` and where links lead.
#[must_use]
pub fn find(path: &str) -> Option<&'static Asset> {
    let path = if path == SIGN_IN { "/" } else { path };
    ASSETS.iter().find(|asset| asset.path == path)
}

/// Where links lead; their secrets stand behind `#`, which browsers keep to themselves.
pub const SIGN_IN: &str = "/sign-in";

/// A file and its place.
macro_rules! asset {
    ($path:literal, $file:literal, $content_type:expr) => {
        Asset { path: $path, content_type: $content_type, bytes: include_bytes!(concat!("../assets/", $file)) }
    };
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// All of them; a test holds the list to the folder.
const ASSETS: &[Asset] = &[
    asset!("/", "index.html", HTML),
    asset!("/page.css", "page.css", CSS),
    asset!("/icon.svg", "icon.svg", SVG),
    asset!("/js/action.js", "js/action.js", JS),
    asset!("/js/api.js", "js/api.js", JS),
    asset!("/js/app.js", "js/app.js", JS),
    asset!("/js/bits.js", "js/bits.js", JS),
    asset!("/js/dialog.js", "js/dialog.js", JS),
    asset!("/js/diff.js", "js/diff.js", JS),
    asset!("/js/dom.js", "js/dom.js", JS),
    asset!("/js/format.js", "js/format.js", JS),
    asset!("/js/forms.js", "js/forms.js", JS),
    asset!("/js/frame.js", "js/frame.js", JS),
    asset!("/js/history.js", "js/history.js", JS),
    asset!("/js/live.js", "js/live.js", JS),
    asset!("/js/main.js", "js/main.js", JS),
    asset!("/js/map.js", "js/map.js", JS),
    asset!("/js/matrix.js", "js/matrix.js", JS),
    asset!("/js/model.js", "js/model.js", JS),
    asset!("/js/sse.js", "js/sse.js", JS),
    asset!("/js/steady.js", "js/steady.js", JS),
    asset!("/js/theme.js", "js/theme.js", JS),
    asset!("/js/view-clusters.js", "js/view-clusters.js", JS),
    asset!("/js/view-events.js", "js/view-events.js", JS),
    asset!("/js/view-gateways.js", "js/view-gateways.js", JS),
    asset!("/js/view-overview.js", "js/view-overview.js", JS),
    asset!("/js/view-service.js", "js/view-service.js", JS),
    asset!("/js/view-services.js", "js/view-services.js", JS),
    asset!("/js/view-slow.js", "js/view-slow.js", JS),
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn the_list_is_what_is_in_the_folder() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
        let mut folders = vec![root.clone()];
        let mut files = BTreeSet::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.to_str().unwrap().ends_with(".d.ts") {
                    // Types are for whoever writes it.
                    files.insert(format!("/{}", path.strip_prefix(&root).unwrap().display()));
                }
            }
        }
        let listed: BTreeSet<String> =
            ASSETS.iter().map(|asset| if asset.path == "/" { "/index.html" } else { asset.path }.to_owned()).collect();
        assert_eq!(listed, files, "each file of assets/ has its line in ASSETS");
        for asset in ASSETS {
            let ends = [("/", HTML), (".html", HTML), (".css", CSS), (".js", JS), (".svg", SVG)];
            let kind = ends.iter().find(|(end, _)| asset.path.ends_with(end)).map(|(_, kind)| *kind);
            assert_eq!(kind, Some(asset.content_type), "{}", asset.path);
        }
        assert_eq!(find("/sign-in"), find("/"));
        assert_eq!(find("/index.html"), None);
        assert_eq!(find("/../Cargo.toml"), None);
    }

    /// The policy of the site forbids it, and a browser would show a page without them.
    #[test]
    fn nothing_is_inline_and_nothing_comes_from_elsewhere() {
        for asset in ASSETS {
            let text = std::str::from_utf8(asset.bytes).unwrap();
            let lower = text.to_lowercase();
            for word in ["<script>", "<style", " style=", "javascript:", " onclick=", " onload=", " onerror="] {
                let is_markup = asset.content_type == HTML;
                assert!(!is_markup || !lower.contains(word), "{} has {word}", asset.path);
            }
            for word in ["src=\"http", "href=\"http", "url(http", "from \"http", "from 'http", "eval("] {
                assert!(!lower.contains(word), "{} has {word}", asset.path);
            }
            assert!(asset.content_type != CSS || !lower.contains("@import"), "{}", asset.path);
        }
    }
}
