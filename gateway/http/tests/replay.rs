//! The corpora of the fuzz targets, and every form of the ambiguous messages, through what fuzzing checks.

mod common;

use std::path::Path;

use common::{corpus, targets};

#[test]
fn corpora_replay() {
    for (name, target) in
        [("request", targets::request as fn(&[u8])), ("response", targets::response), ("body", targets::body)]
    {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut replayed = 0;
        for file in files {
            target(&std::fs::read(file.unwrap().path()).unwrap());
            replayed += 1;
        }
        assert!(replayed > 20, "{name}: {replayed}");
    }
}

#[test]
fn forms_replay_cut_at_every_byte() {
    for form in corpus::read("requests.txt") {
        for end in 0..=form.bytes.len() {
            targets::request(&form.bytes[..end]);
        }
        let body = form.bytes.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |at| at + 4);
        targets::body(&[&[2], &form.bytes[body..]].concat());
    }
    for form in corpus::read("responses.txt") {
        for first in 0..4 {
            for end in 0..=form.bytes.len() {
                targets::response(&[&[first], &form.bytes[..end]].concat());
            }
        }
    }
}
