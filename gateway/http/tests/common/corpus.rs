//! The corpus of ambiguous messages: `corpus/*.txt`.
//!
//! Blocks with an empty line between them. Each has a first line with its name, then lines of a key and a value: `why` (what is right, and
//! by which section), `bytes` (with `\r`, `\n`, `\t`, `\0`, `\xNN` and `\\`; several are one after the other), `to` (the method that a response answers), `ours`
//! and `hyper`: verdicts, in the words of `verdict.rs`.

use std::path::Path;

/// One form.
#[derive(Debug, Default, Clone)]
pub struct Form {
    pub name: String,
    pub why: String,
    pub to: String,
    pub bytes: Vec<u8>,
    pub ours: String,
    pub hyper: String,
}

pub fn read(file: &str) -> Vec<Form> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut forms: Vec<Form> = Vec::new();
    for block in text.split("\n\n") {
        let mut lines = block.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let Some(name) = lines.next() else { continue };
        let mut form = Form { name: name.to_owned(), to: "GET".to_owned(), ..Form::default() };
        for line in lines {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            match key {
                "why" => form.why.push_str(value),
                "to" => value.clone_into(&mut form.to),
                "bytes" => form.bytes.extend(unescape(value)),
                "ours" => value.clone_into(&mut form.ours),
                "hyper" => value.clone_into(&mut form.hyper),
                _ => panic!("{name}: no such key: {key}"),
            }
        }
        assert!(!form.bytes.is_empty() && !form.why.is_empty(), "{name} lacks bytes or why");
        assert!(forms.iter().all(|other| other.name != form.name), "{name} is there twice");
        forms.push(form);
    }
    forms
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match bytes.next() {
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'0') => 0,
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let hex: String = bytes.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&hex, 16).unwrap_or_else(|_| panic!("\\x{hex} in {text}"))
            }
            other => panic!("{other:?} after a backslash in {text}"),
        });
    }
    out
}
