//! What may leave the house of a text: secrets are recognised by what is before them and by what they look like, and replaced.
//!
//! Nobody can recognise every secret. So the bundle takes no file that is meant to have some, and this is for what got into logs and
//! resources all the same. It removes rather too much.

use serde_json::Value;

/// In the place of what was removed.
pub(crate) const REMOVED: &str = "[removed]";

/// A text, line by line, without secrets.
pub(crate) fn text(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut in_pem = false;
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        if in_pem {
            if let Some((_, rest)) = line.split_once(PEM_ENDS) {
                in_pem = false;
                clean.push_str(rest.trim_start_matches(|c| c != '-').trim_start_matches('-'));
                clean.push_str(end);
            }
            continue;
        }
        if let Some((before, rest)) = line.split_once(PEM_BEGINS) {
            clean.push_str(&words(&named(before)));
            clean.push_str(REMOVED);
            // All of it in one line, as in JSON.
            match rest.split_once(PEM_ENDS) {
                Some((_, rest)) => {
                    let rest = rest.split_once("-----").map_or("", |(_, rest)| rest);
                    clean.push_str(&self::text(rest));
                }
                None => in_pem = true,
            }
        } else {
            clean.push_str(&words(&named(line)));
        }
        clean.push_str(end);
    }
    clean
}

/// A resource: what a policy compares headers and cookies with can be a secret, and annotations can hold anything.
pub(crate) fn resource(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let is_secret = matches!(name.as_str(), "headers" | "cookies" | "annotations");
                if is_secret {
                    remove(value)
                } else {
                    resource(value)
                }
                if is_name(&name.to_ascii_lowercase()) {
                    remove(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(resource),
        Value::String(value) => *value = text(value),
        _ => {}
    }
}

fn remove(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(remove),
        Value::Array(values) => values.iter_mut().for_each(remove),
        value => *value = REMOVED.into(),
    }
}

/// Without what stands behind names such as `password`: `name=value`, `name: value`, `"name": "value"`, `--name value`.
fn named(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let mut clean = String::with_capacity(line.len());
    let mut at = 0;
    while let Some(found) = NAMES.iter().filter_map(|name| Some(at + lower.get(at..)?.find(name)?)).min() {
        let belongs = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let name_end =
            lower.get(found..).and_then(|rest| rest.find(|c| !belongs(c))).map_or(line.len(), |end| found + end);
        let rest = line.get(name_end..).unwrap_or_default();
        let unquoted = rest.trim_start_matches(['\\', '"', '\'']);
        let word = lower.get(..found).and_then(|before| before.rsplit(char::is_whitespace).next());
        let is_flag = word.is_some_and(|word| word.starts_with("--"));
        let value = match unquoted.trim_start().strip_prefix([':', '=']) {
            Some(value) => value.trim_start(),
            None if is_flag && unquoted.starts_with(' ') => unquoted.trim_start(),
            None => {
                clean.push_str(line.get(at..name_end).unwrap_or_default());
                at = name_end;
                continue;
            }
        };
        let begins = line.len() - value.len();
        clean.push_str(line.get(at..begins).unwrap_or_default());
        let length = value_length(value);
        if length > 0 {
            clean.push_str(REMOVED);
        }
        at = begins + length;
    }
    clean.push_str(line.get(at..).unwrap_or_default());
    clean
}

/// How long a value is, its quotes included; of `Bearer x` both.
fn value_length(value: &str) -> usize {
    if let Some(quote) = value.trim_start_matches('\\').chars().next().filter(|c| matches!(c, '"' | '\'')) {
        let opening = value.find(quote).unwrap_or(0) + 1;
        let inner = value.get(opening..).unwrap_or_default();
        return inner.find(quote).map_or(value.len(), |end| opening + end + 1);
    }
    let ends = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '"' | '\'' | '}' | ')' | ']' | '&');
    let first = value.find(ends).unwrap_or(value.len());
    let (scheme, rest) = value.split_at(first);
    if !["bearer", "basic", "digest"].contains(&&*scheme.to_ascii_lowercase()) {
        return first;
    }
    let blanks = rest.len() - rest.trim_start().len();
    let second = rest.trim_start();
    first + blanks + second.find(ends).unwrap_or(second.len())
}

/// Without words that look like secrets, whatever is before them.
fn words(line: &str) -> String {
    let mut clean = String::with_capacity(line.len());
    let mut after_scheme = false;
    for piece in line.split_inclusive(|c: char| {
        c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '(' | ')' | '{' | '}' | '[' | ']')
    }) {
        let end = piece
            .chars()
            .next_back()
            .filter(|c| !c.is_alphanumeric() && !matches!(c, '=' | '-' | '_' | '.' | '/' | '+'));
        let word = end.map_or(piece, |end| piece.strip_suffix(end).unwrap_or(piece));
        let is_scheme = word.eq_ignore_ascii_case("bearer");
        if after_scheme && word.len() > 3 || looks_secret(word) {
            clean.push_str(REMOVED);
        } else {
            match word.split_once('?') {
                // Of a query nothing is known.
                Some((path, query)) if path.contains('/') && query.contains('=') => {
                    clean.push_str(path);
                    clean.push('?');
                    clean.push_str(REMOVED);
                }
                _ => clean.push_str(word),
            }
        }
        clean.extend(end);
        after_scheme = is_scheme || (after_scheme && word.is_empty());
    }
    clean
}

/// A join token, a JSON Web Token, or as much base64 as a key has.
fn looks_secret(word: &str) -> bool {
    if word.contains("amt1.") || (word.contains("eyJ") && word.len() > 40) {
        return true;
    }
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '=' | '_');
    word.split(|c| !is_base64(c)).any(|run| {
        run.len() >= KEY_CHARS_MIN
            && run.bytes().any(|byte| byte.is_ascii_uppercase())
            && run.bytes().any(|byte| byte.is_ascii_lowercase())
            && run.bytes().any(|byte| byte.is_ascii_digit())
    })
}

fn is_name(lower: &str) -> bool {
    NAMES.iter().any(|name| lower.contains(name))
}

/// In any case, as a part of a name.
const NAMES: [&str; 10] =
    ["password", "passwd", "secret", "token", "authorization", "cookie", "api-key", "apikey", "api_key", "private-key"];
const PEM_BEGINS: &str = "-----BEGIN ";
const PEM_ENDS: &str = "-----END ";
/// 32 bytes in base64 are 43 characters; a hexadecimal digest has no capital letters.
const KEY_CHARS_MIN: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_are_removed_and_the_rest_is_not() {
        let key = "MC4CAQAwBQYDK2VwBCIEIHuNtER2gmnKpQWQZcUO3D1234567890abcd";
        let pem = format!("before\n-----BEGIN PRIVATE KEY-----\n{key}\nAAAA\n-----END PRIVATE KEY-----\nafter\n");
        let escaped = format!(
            r#"{{"key":"-----BEGIN EC PRIVATE KEY-----\nhunter2{key}\n-----END EC PRIVATE KEY-----","then":"this"}}"#
        );
        for (given, expected) in [
            (
                "INFO joined cluster=paris gateway=gw-1 revision=12",
                "INFO joined cluster=paris gateway=gw-1 revision=12",
            ),
            ("cannot use amt1.eyJjb250cm9sIjoiMTI3: expired", "cannot use [removed] expired"),
            ("password=hunter2 user=ada", "password=[removed] user=ada"),
            ("db_password: 'hunter2 and more', host: db", "db_password: [removed], host: db"),
            (r#"{"apiKey":"hunter2","n":1}"#, r#"{"apiKey":[removed],"n":1}"#),
            (r#"log "{\"token\": \"hunter2\", \"n\": 1}""#, r#"log "{\"token\": [removed], \"n\": 1}""#),
            ("Authorization: Bearer hunter2 next", "Authorization: [removed] next"),
            ("sent bearer hunter2hunter2", "sent bearer [removed]"),
            ("set-cookie: session=hunter2; Path=/", "set-cookie: [removed]; Path=/"),
            ("started with --join-token hunter2 --zone a", "started with --join-token [removed] --zone a"),
            ("GET /pay?card=hunter2&n=1 503", "GET /pay?[removed] 503"),
            ("is it there? no=1", "is it there? no=1"),
            ("jwt eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.c2lnbmF0dXJl", "jwt [removed]"),
            (&format!("seal key {key}"), "seal key [removed]"),
            (
                "sha256:0a4d55a8d778e5022fab701977c5d840bbc486d0aaaabbbbccccddddeeeeffff",
                "sha256:0a4d55a8d778e5022fab701977c5d840bbc486d0aaaabbbbccccddddeeeeffff",
            ),
            ("the token of paris has run out", "the token of paris has run out"),
            (&pem, "before\n[removed]\n\nafter\n"),
            (&escaped, r#"{"key":"[removed]","then":"this"}"#),
            ("cut off -----BEGIN PRIVATE KEY-----\nhunter2", "cut off [removed]\n"),
        ] {
            let clean = text(given);
            assert_eq!(clean, expected, "{given}");
            assert!(!clean.contains("hunter2") && !clean.contains(key), "{clean}");
        }
    }

    #[test]
    fn what_policies_compare_with_is_removed_and_their_shape_stays() {
        let mut split = serde_json::json!({
            "kind": "TrafficSplit", "metadata": { "name": "checkout", "annotations": { "note": "hunter2" } },
            "spec": { "routes": [{ "match": { "headers": { "x-key": "hunter2" }, "pathPrefix": "/pay" }, "backends": [{ "weight": 1 }] }],
                      "sticky": { "cookie": "hunter2" } },
        });
        resource(&mut split);
        assert_eq!(
            split,
            serde_json::json!({
                "kind": "TrafficSplit", "metadata": { "name": "checkout", "annotations": { "note": REMOVED } },
                "spec": { "routes": [{ "match": { "headers": { "x-key": REMOVED }, "pathPrefix": "/pay" }, "backends": [{ "weight": 1 }] }],
                          "sticky": { "cookie": REMOVED } },
            })
        );
    }

    proptest! {
        #[test]
        fn nothing_panics_and_nothing_planted_survives(
            before in ".{0,20}", name in prop::sample::select(&NAMES[..]), between in "( ?[:=] ?|\": ?\")", after in "[ ,;}\n].{0,20}"
        ) {
            let clean = text(&format!("{before} {name}{between}hunter2{after}"));
            prop_assert!(!clean.contains("hunter2"), "{}", clean);
        }

        #[test]
        fn lines_stay_lines(given in "[ -~\n]{0,200}") {
            prop_assume!(!given.contains("-----"));
            prop_assert_eq!(text(&given).matches('\n').count(), given.matches('\n').count());
        }
    }
}
