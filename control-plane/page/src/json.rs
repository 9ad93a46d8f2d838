//! JSON that is harmless wherever it ends up.

use serde::Serialize;

/// JSON in which no text ends a script, a tag, an attribute or a line, whatever names there are: `<`, `>`, `&`, `'` and all that
/// breaks lines or turns their direction stand as `\u` escapes. These occur in JSON within texts only, so its meaning stays.
#[must_use]
pub fn text(value: &impl Serialize) -> String {
    // Maps with keys that are not texts, which no type here has, are all that fails.
    let plain = serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned());
    let mut safe = String::with_capacity(plain.len());
    for c in plain.chars() {
        if is_harmless(c) {
            safe.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                safe.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    safe
}

fn is_harmless(c: char) -> bool {
    match c {
        '<' | '>' | '&' | '\'' | '`' => false,
        // Line and paragraph separators, marks and overrides of direction, and what takes no room.
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => false,
        c => !c.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_means_something_elsewhere_is_escaped() {
        let hostile = "</script><img src=x onerror='alert(`1`)'>&amp;\u{2028}\u{202e}\u{1b}]0;x\u{7}\u{85}\n\"\\";
        let text = text(&hostile);
        assert_eq!(
            text,
            r#""\u003c/script\u003e\u003cimg src=x onerror=\u0027alert(\u00601\u0060)\u0027\u003e\u0026amp;\u2028\u202e\u001b]0;x\u0007\u0085\n\"\\""#
        );
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), hostile);
    }

    proptest! {
        #[test]
        fn any_text_comes_back_and_none_breaks_a_line_or_opens_a_tag(said in any::<String>()) {
            let text = text(&[&said]);
            let is_hostile = |c| matches!(c, '<' | '>' | '&' | '\'' | '\n' | '\r' | '\u{2028}' | '\u{2029}');
            prop_assert!(!text.contains(is_hostile));
            prop_assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), vec![said]);
        }
    }
}
