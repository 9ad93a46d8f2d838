//! The first of thousands of rules, found by what they ask for instead of asking each.
//!
//! Every rule is filed under one of its conditions that names an exact thing (a header, cookie or query parameter with its
//! value, a path, a path prefix): under the one that the fewest rules share. A request then looks only at the rules filed
//! under what it carries, and at the few that name nothing exact. Filing narrows; whether a rule matches, only its
//! [`Matcher`] says, so the answer is that of a scan from the top.

use std::collections::HashMap;
use std::hash::Hash;

use http::HeaderName;

use super::{Condition, Matcher, PathPattern, Pattern, RouteInput, bare, cookie_pairs, query_pairs, without_query};

/// Where rules are filed. Rules are numbers, in the order in which they are tried.
#[derive(Debug, Default)]
pub struct RuleIndex {
    /// By names in lower case.
    headers: Map<Box<[u8]>, Values>,
    cookies: Map<Box<[u8]>, Values>,
    queries: Map<Box<[u8]>, Values>,
    paths: Values,
    prefixes: Values,
    /// Lengths of `prefixes`, sorted: a path is cut nowhere else.
    prefix_lengths: Vec<usize>,
    /// Filed under nothing.
    rest: Rules,
}

type Values = Map<Box<[u8]>, Rules>;
type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;
/// Ascending.
type Rules = Vec<u32>;

/// A condition under which a rule can be filed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key<'m> {
    Header(&'m HeaderName, &'m str),
    Cookie(&'m str, &'m str),
    Query(&'m str, &'m str),
    Path(&'m str),
    Prefix(&'m str),
}

impl RuleIndex {
    /// Files the rules with these matchers, numbered from 0.
    pub fn of<'m>(matchers: impl Iterator<Item = &'m Matcher> + Clone) -> Self {
        let mut shared: Map<Key<'m>, usize> = Map::default();
        for key in matchers.clone().flat_map(|matcher| matcher.conditions.iter().filter_map(Key::of)) {
            *shared.entry(key).or_insert(0) += 1;
        }
        let mut index = Self::default();
        for (number, matcher) in (0u32..).zip(matchers) {
            let keys = matcher.conditions.iter().filter_map(Key::of);
            let rarest = keys.min_by_key(|key| shared.get(key).copied().unwrap_or(usize::MAX));
            index.place(rarest).push(number);
        }
        index.prefix_lengths = index.prefixes.keys().map(|prefix| prefix.len()).collect();
        index.prefix_lengths.sort_unstable();
        index.prefix_lengths.dedup();
        index
    }

    /// The lowest number for which `matches` holds, where `matches` is what the matchers say of `request`.
    pub fn first(&self, request: &RouteInput<'_>, matches: impl Fn(u32) -> bool) -> Option<u32> {
        let mut best = Best { found: None, matches };
        best.among(Some(&self.rest));
        if !self.headers.is_empty() {
            let mut lower = [0; NAME_BYTES_MAX];
            for (name, value, known) in request.headers.iter() {
                let name = match known {
                    Some(known) => known.as_str().as_bytes(),
                    None => in_lower_case(name, &mut lower),
                };
                best.among(self.headers.get(name).and_then(|values| values.get(value)));
            }
        }
        if !self.cookies.is_empty() {
            for (name, value) in cookie_pairs(request.headers) {
                best.among(self.cookies.get(name).and_then(|values| values.get(value)));
            }
        }
        if !self.queries.is_empty() {
            for (name, value) in query_pairs(request.path) {
                best.among(self.queries.get(name).and_then(|values| values.get(value)));
            }
        }
        if !self.paths.is_empty() {
            best.among(self.paths.get(without_query(request.path)));
        }
        for length in &self.prefix_lengths {
            let Some((prefix, rest)) = request.path.split_at_checked(*length) else { continue };
            if matches!(rest.first(), None | Some(b'/' | b'?')) {
                best.among(self.prefixes.get(prefix));
            }
        }
        best.found
    }

    fn place(&mut self, key: Option<Key<'_>>) -> &mut Rules {
        let (of, name, value) = match key {
            Some(Key::Header(name, value)) => (&mut self.headers, name.as_str(), value),
            Some(Key::Cookie(name, value)) => (&mut self.cookies, name, value),
            Some(Key::Query(name, value)) => (&mut self.queries, name, value),
            Some(Key::Path(path)) => return self.paths.entry(path.as_bytes().into()).or_default(),
            Some(Key::Prefix(prefix)) => return self.prefixes.entry(prefix.as_bytes().into()).or_default(),
            None => return &mut self.rest,
        };
        of.entry(name.as_bytes().into()).or_default().entry(value.as_bytes().into()).or_default()
    }
}

impl<'m> Key<'m> {
    fn of(condition: &'m Condition) -> Option<Self> {
        match condition {
            // Longer names are asked one by one.
            Condition::Header(name, Pattern::Exact(value)) if name.as_str().len() <= NAME_BYTES_MAX => {
                Some(Self::Header(name, value))
            }
            Condition::Cookie(name, Pattern::Exact(value)) => Some(Self::Cookie(name, value)),
            Condition::Query(name, Pattern::Exact(value)) => Some(Self::Query(name, value)),
            Condition::Path(PathPattern::Exact(path)) => Some(Self::Path(path)),
            Condition::Path(PathPattern::Prefix(prefix)) => Some(Self::Prefix(bare(prefix))),
            Condition::Method(_)
            | Condition::Header(..)
            | Condition::Cookie(_, Pattern::Prefix(_) | Pattern::Present)
            | Condition::Query(_, Pattern::Prefix(_) | Pattern::Present) => None,
        }
    }
}

/// Nothing for longer names: no rule is filed under one.
fn in_lower_case<'b>(name: &[u8], room: &'b mut [u8; NAME_BYTES_MAX]) -> &'b [u8] {
    let Some(room) = room.get_mut(..name.len()) else { return &[] };
    room.copy_from_slice(name);
    room.make_ascii_lowercase();
    room
}

struct Best<F> {
    found: Option<u32>,
    matches: F,
}

impl<F: Fn(u32) -> bool> Best<F> {
    fn among(&mut self, rules: Option<&Rules>) {
        for rule in rules.into_iter().flatten() {
            if self.found.is_some_and(|found| found <= *rule) {
                return;
            }
            if (self.matches)(*rule) {
                self.found = Some(*rule);
                return;
            }
        }
    }
}

/// Rules on longer names are not filed under them.
const NAME_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use archipelago_http::Fields;
    use http::Method;
    use proptest::prelude::*;

    use super::*;

    fn pattern() -> impl Strategy<Value = Pattern> {
        prop_oneof![
            4 => "[ab]{0,2}".prop_map(Pattern::Exact),
            1 => "[ab]{0,1}".prop_map(Pattern::Prefix),
            1 => Just(Pattern::Present),
        ]
    }

    fn path() -> impl Strategy<Value = String> {
        prop::collection::vec("[ab]{0,2}", 0..3).prop_map(|segments| format!("/{}", segments.join("/")))
    }

    fn name() -> impl Strategy<Value = &'static str> {
        prop::sample::select(&["a", "b"][..])
    }

    fn condition() -> impl Strategy<Value = Condition> {
        prop_oneof![
            1 => prop::sample::select(&[Method::GET, Method::POST][..]).prop_map(Condition::Method),
            2 => path().prop_map(|path| Condition::Path(PathPattern::Exact(path))),
            3 => path().prop_map(|path| Condition::Path(PathPattern::Prefix(path))),
            3 => (name(), pattern()).prop_map(|(name, pattern)| Condition::Header(HeaderName::from_static(name), pattern)),
            2 => (name(), pattern()).prop_map(|(name, pattern)| Condition::Query(name.into(), pattern)),
            2 => (name(), pattern()).prop_map(|(name, pattern)| Condition::Cookie(name.into(), pattern)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_index_finds_what_a_scan_finds(
            rules in prop::collection::vec(prop::collection::vec(condition(), 0..3), 0..40),
            method in prop::sample::select(&[Method::GET, Method::POST][..]),
            path in path(),
            query in prop::collection::vec((name(), "[ab]{0,2}"), 0..3),
            lines in prop::collection::vec((name(), "[ab]{0,2}"), 0..4),
            cookie in prop::collection::vec((name(), "[ab]{0,2}"), 0..3),
        ) {
            let rules: Vec<Matcher> = rules.into_iter().map(|conditions| Matcher { conditions }).collect();
            let mut headers = Fields::new();
            for (name, value) in lines {
                headers.push_named(name.to_uppercase().as_bytes(), value.as_bytes()).unwrap();
            }
            let cookie: Vec<String> = cookie.iter().map(|(name, value)| format!("{name}={value}")).collect();
            headers.push_named(b"cookie", cookie.join("; ").as_bytes()).unwrap();
            let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let path = if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) };
            let input = RouteInput { method: &method, path: path.as_bytes(), headers: &headers };
            let scan = rules.iter().position(|rule| rule.matches(&input)).map(|at| at as u32);
            let index = RuleIndex::of(rules.iter());
            prop_assert_eq!(index.first(&input, |at| rules[at as usize].matches(&input)), scan);
        }
    }
}
