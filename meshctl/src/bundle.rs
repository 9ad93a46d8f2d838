//! A bundle for whoever is asked for help: files in one archive, without secrets, with a page that says what is in it.

pub(crate) mod redact;

use std::fmt::Write as _;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::exit::{Failure, Outcome};

/// Files of a bundle, redacted as they come.
#[derive(Debug, Default)]
pub(crate) struct Bundle {
    files: Vec<File>,
    bytes: usize,
}

#[derive(Debug)]
struct File {
    name: String,
    what: String,
    content: Option<Vec<u8>>,
}

impl Bundle {
    /// Adds a text, the end of it if it is long.
    pub(crate) fn text(&mut self, name: impl Into<String>, what: impl Into<String>, text: &str) {
        let begins = text.len().saturating_sub(FILE_BYTES_MAX);
        let begins = (begins..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        let mut kept = text.get(begins..).unwrap_or_default();
        if begins > 0 {
            // Half a line may be the half of a secret that is not recognised.
            kept = kept.split_once('\n').map_or("", |(_, whole)| whole);
        }
        self.add(name.into(), what.into(), redact::text(kept).into_bytes());
    }

    /// Adds JSON.
    pub(crate) fn json(&mut self, name: impl Into<String>, what: impl Into<String>, mut value: serde_json::Value) {
        redact::resource(&mut value);
        let text = serde_json::to_string_pretty(&value).unwrap_or_default();
        self.add(name.into(), what.into(), text.into_bytes());
    }

    /// Says why something is not in it.
    pub(crate) fn missing(&mut self, name: impl Into<String>, why: &str) {
        self.files.push(File { name: name.into(), what: format!("missing: {}", redact::text(why)), content: None });
    }

    fn add(&mut self, name: String, what: String, content: Vec<u8>) {
        if self.files.len() >= FILES_MAX || self.bytes + content.len() > BYTES_MAX {
            return self.missing(name, "the bundle is full");
        }
        self.bytes += content.len();
        self.files.push(File { name, what, content: Some(content) });
    }

    /// Files that are in it, and how many are not.
    pub(crate) fn count(&self) -> (usize, usize) {
        let there = self.files.iter().filter(|file| file.content.is_some()).count();
        (there, self.files.len() - there)
    }

    /// A line for each file.
    pub(crate) fn contents(&self) -> String {
        let width = self.files.iter().map(|file| file.name.len()).max().unwrap_or(0);
        self.files.iter().fold(String::new(), |mut list, file| {
            let _ = writeln!(list, "{:width$}   {}", file.name, file.what);
            list
        })
    }

    /// Writes the archive, gzip of tar, all of it below `folder`.
    pub(crate) fn write(&self, folder: &str, unix_seconds: u64, out: impl Write) -> Outcome {
        let failed = |error: std::io::Error| Failure::refused(format!("cannot write the bundle: {error}"));
        let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::default()));
        let readme = format!("{README}\n{}", self.contents());
        let files = self.files.iter().filter_map(|file| Some((file.name.as_str(), file.content.as_deref()?)));
        for (name, content) in [("README.txt", readme.as_bytes())].into_iter().chain(files) {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(unix_seconds);
            archive.append_data(&mut header, format!("{folder}/{}", safe(name)), content).map_err(failed)?;
        }
        archive.into_inner().and_then(GzEncoder::finish).and_then(|mut out| out.flush()).map_err(failed)
    }
}

/// Names of clusters and gateways are nobody's way out of the folder.
fn safe(name: &str) -> String {
    let is_kept = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let parts = name.split('/').filter(|part| !matches!(*part, "" | "." | ".."));
    let parts = parts.map(|part| part.chars().map(|c| if is_kept(c) { c } else { '_' }).collect::<String>());
    parts.collect::<Vec<_>>().join("/")
}

const README: &str = "\
What `meshctl bug-report` gathered of a federation, for whoever is asked for help with it.

Not in it: keys, certificates, join tokens, anything of the state directory but its logs, access logs, bodies of requests.
Removed from what is in it, and shown as [removed]: what looks like a secret or stands behind the name of one, what policies compare
headers and cookies with, annotations, and queries of URLs. Nobody can recognise every secret: look through it before you pass it on.
It has names and addresses of clusters, gateways, services and endpoints, and who operates the federation.
";
/// The end of a log that matters.
const FILE_BYTES_MAX: usize = 1024 * 1024;
const BYTES_MAX: usize = 128 * 1024 * 1024;
const FILES_MAX: usize = 2_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_what_it_says_and_nothing_gets_out_of_its_folder() {
        let mut bundle = Bundle::default();
        bundle.text("logs/../../etc/cron.d/x", "a hostile name", "password=hunter2\n");
        bundle.json("status.json", "what runs", serde_json::json!({ "token": "hunter2", "n": 1 }));
        bundle.missing("metrics/paris/gw-1.txt", "no answer: token=hunter2");
        let long = format!("password=hunter2{}\nlast line\n", "x".repeat(FILE_BYTES_MAX));
        bundle.text("logs/long.log", "the end of it", &long);
        assert_eq!(bundle.count(), (3, 1));
        let mut archive = Vec::new();
        bundle.write("report", 1_700_000_000, &mut archive).unwrap();
        let mut read = tar::Archive::new(flate2::read::GzDecoder::new(archive.as_slice()));
        let mut names = Vec::new();
        let mut whole = String::new();
        for entry in read.entries().unwrap() {
            let mut entry = entry.unwrap();
            names.push(entry.path().unwrap().display().to_string());
            std::io::Read::read_to_string(&mut entry, &mut whole).unwrap();
        }
        assert_eq!(
            names,
            ["report/README.txt", "report/logs/etc/cron.d/x", "report/status.json", "report/logs/long.log"]
        );
        assert!(!whole.contains("hunter2") && whole.contains("\"n\": 1") && whole.ends_with("last line\n"), "{whole}");
        assert!(whole.contains("metrics/paris/gw-1.txt    missing: no answer: token=[removed]"), "{whole}");
    }

    #[test]
    fn there_is_an_end_to_it() {
        let mut bundle = Bundle::default();
        (0..FILES_MAX + 3).for_each(|n| bundle.text(n.to_string(), "", "x"));
        assert_eq!(bundle.count(), (FILES_MAX, 3));
    }
}
