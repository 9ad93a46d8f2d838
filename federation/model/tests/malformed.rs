//! More than a hundred ways to write a policy wrong: each is refused with file, line and column, and none panics.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on may say so by panicking")]

use std::{collections::BTreeMap, fs, path::PathBuf};

use archipelago_model::{
    admit::{self, Resources},
    document::{Document, Problem},
    service_file,
};
use proptest::prelude::*;

const HEAD: &str = "apiVersion: archipelago.dev/v1alpha1\n";

const SPLIT: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: TrafficSplit
metadata: { name: checkout, namespace: shop, annotations: { note: x } }
spec:
  service: checkout
  sticky: { header: x-user }
  routes:
    - match: { headers: { x-preview: pr-42 }, cookies: { beta: yes-please }, pathPrefix: /cart, method: GET }
      backends: [{ cluster: tokyo, version: v2, weight: 1 }]
  backends:
    - { cluster: paris, weight: 90 }
    - { cluster: tokyo, weight: 10 }
";

const BACKEND: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: BackendPolicy
metadata: { name: checkout, namespace: shop }
spec:
  service: checkout
  limits:
    uploadIdle: 45s
    uploadMinRate: 500
    uploadGrace: 20s
    downloadIdle: 2m
    endpointIdle: none
    streamIdle: 1h
";

const POLICY: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: FailoverPolicy
metadata: { name: checkout, namespace: shop }
spec:
  service: checkout
  order:
    - { clusters: [\"@local\"] }
    - { regions: [\"@same\"] }
    - { clusters: [frankfurt] }
  residency: { regions: [eu-west, eu-central] }
  failback: { after: 10m, ramp: 5m, mode: auto }
  avoid: [frankfurt]
";

fn current() -> Resources {
    let clusters: String = [("paris", "eu-west"), ("frankfurt", "eu-central"), ("tokyo", "ap-northeast")]
        .map(|(name, region)| {
            format!("---\n{HEAD}kind: Cluster\nmetadata: {{ name: {name} }}\nspec: {{ region: {region} }}\n")
        })
        .concat();
    let document = Document { file: "clusters.yaml".into(), text: clusters };
    let admitted = admit::admit(&[document], &BTreeMap::new()).unwrap();
    admitted.into_iter().map(|resource| (resource.key(), resource)).collect()
}

fn refuse(name: &str, bytes: &[u8]) -> Vec<Problem> {
    let problems = match Document::from_bytes(name, bytes) {
        Err(problem) => vec![problem],
        Ok(document) => match admit::admit(&[document], &current()) {
            Err(problems) => problems,
            Ok(admitted) => panic!("{name} was admitted: {admitted:?}\n{}", String::from_utf8_lossy(bytes)),
        },
    };
    assert!(!problems.is_empty(), "{name}: refused without a reason");
    let lines = u32::try_from(bytes.split(|byte| *byte == b'\n').count()).unwrap();
    for problem in &problems {
        assert_eq!(problem.file, name);
        assert!((1..=lines).contains(&problem.line) && problem.column >= 1, "{name}: {problem}");
        assert!(
            !problem.message.is_empty() && !problem.message.contains(|c: char| c.is_control()),
            "{name}: {problem}"
        );
        assert!(problem.message.len() < 2_000, "{name}: a message of {} bytes", problem.message.len());
        assert!(problem.to_string().starts_with(&format!("{name}:{}:{}: ", problem.line, problem.column)));
    }
    problems
}

/// Replaces `from` by `to` and expects a problem on the line of the replacement that says `says`; with nothing to say the
/// syntax is broken, and the place is where the parser noticed.
fn mutate(base: &str, from: &str, to: &str, says: &str) {
    let at = base.find(from).unwrap_or_else(|| panic!("{from:?} is not in the base"));
    let text = base.replacen(from, to, 1);
    let line = u32::try_from(base[..at].matches('\n').count()).unwrap() + 1;
    let last = line + u32::try_from(to.matches('\n').count()).unwrap();
    let problems = refuse("p.yaml", text.as_bytes());
    assert!(
        problems
            .iter()
            .any(|problem| (says.is_empty() || (line..=last).contains(&problem.line))
                && problem.to_string().contains(says)),
        "{from:?} → {to:?}: nothing on line {line} says {says:?}: {problems:#?}"
    );
}

#[test]
fn the_bases_are_valid() {
    for base in [SPLIT, POLICY, BACKEND] {
        let document = Document { file: "p.yaml".into(), text: base.into() };
        assert!(admit::admit(&[document], &current()).is_ok());
    }
}

#[test]
fn backend_policies() {
    for (from, to, says) in [
        ("service: checkout", "service: Check", "no valid name"),
        ("  service: checkout\n", "\n", "`service` is missing"),
        ("uploadIdle: 45s", "uploadIdel: 45s", "unknown field `uploadIdel`, did you mean `uploadIdle`?"),
        ("uploadIdle: 45s", "uploadIdle: 45", "expected a duration"),
        ("uploadIdle: 45s", "uploadIdle: never", "`none` for no limit"),
        ("uploadIdle: 45s", "uploadIdle: 999ms", "expected `none` or at least 1s"),
        ("uploadIdle: 45s", "uploadIdle: 8d", "expected a duration"),
        ("uploadIdle: 45s", "uploadIdle: 169h", "longer than the 7 days"),
        ("uploadIdle: 45s", "uploadIdle: 45s\n    uploadIdle: 45s", "duplicate key"),
        ("uploadMinRate: 500", "uploadMinRate: -1", "a whole number from 0 to 1000000"),
        ("uploadMinRate: 500", "uploadMinRate: 1000001", "a whole number from 0 to 1000000"),
        ("uploadMinRate: 500", "uploadMinRate: none", "a whole number from 0 to 1000000"),
        ("uploadGrace: 20s", "uploadGrace: none", "expected a duration"),
        ("uploadGrace: 20s", "uploadGrace: 0s", "measured over at least 1s; `uploadMinRate: 0` asks for none"),
        ("downloadIdle: 2m", "downloadIdle: 1ms", "expected `none` or at least 1s"),
        ("endpointIdle: none", "endpointIdle: [none]", "expected a duration"),
        ("streamIdle: 1h", "streamIdle: 10ms", "expected `none` or at least 1s"),
    ] {
        mutate(BACKEND, from, to, says);
    }
    let empty = "spec: { service: checkout, limits: {} }\n";
    let head = BACKEND.split("spec:").next().unwrap();
    let problems = refuse("p.yaml", format!("{head}{empty}").as_bytes());
    assert!(problems[0].to_string().starts_with("p.yaml:4:36: spec.limits: needs at least one limit"), "{problems:?}");
    let problems = refuse("p.yaml", format!("{head}spec: {{ service: checkout }}\n").as_bytes());
    assert!(problems[0].to_string().contains("`limits` is missing"), "{problems:?}");
}

#[test]
fn splits() {
    for (from, to, says) in [
        // the frame
        ("apiVersion: archipelago.dev/v1alpha1\n", "\n", "`apiVersion` is missing"),
        ("archipelago.dev/v1alpha1", "archipelago.dev/v1", "unknown API version"),
        ("archipelago.dev/v1alpha1", "7", "put it in quotes"),
        ("kind: TrafficSplit", "kind: trafficsplit", "did you mean `TrafficSplit`?"),
        ("kind: TrafficSplit", "kind: HTTPRoute", "expected one of"),
        ("kind: TrafficSplit", "kind: Topology", "cannot be applied"),
        ("kind: TrafficSplit", "kind: [TrafficSplit]", "found a list"),
        ("kind: TrafficSplit", "kind:", "`kind` is missing"),
        ("kind: TrafficSplit", "kind: TrafficSplit\nkind: TrafficSplit", "duplicate key `kind`"),
        ("kind: TrafficSplit", "kind: TrafficSplit\nstatus: {}", "unknown field `status`"),
        ("metadata: {", "metdata: {", "did you mean `metadata`?"),
        (
            "metadata: { name: checkout, namespace: shop, annotations: { note: x } }",
            "metadata: checkout",
            "expected a map",
        ),
        ("name: checkout,", "", "`name` is missing"),
        ("name: checkout,", "name: Check_Out,", "no valid name"),
        ("name: checkout,", "name: -checkout,", "no valid name"),
        ("name: checkout,", "name: \"\",", "no valid name"),
        ("name: checkout,", "name: 7,", "put it in quotes"),
        ("name: checkout,", "name: \"check\\u001b[2Jout\",", "no valid name"),
        ("namespace: shop", "namespace: sh.op", "no valid name"),
        ("namespace: shop", "labels: {}", "unknown field `labels`"),
        ("{ note: x }", "[x]", "expected a map"),
        ("{ note: x }", "{ note: 1 }", "put it in quotes"),
        ("{ note: x }", "{ note: x, note: y }", "duplicate key `note`"),
        // the service and its stickiness
        ("  service: checkout\n", "\n", "`service` is missing"),
        ("service: checkout", "service: shop/checkout", "no valid name"),
        ("service: checkout", "service: [checkout]", "expected a text"),
        ("service: checkout", "service: true", "put it in quotes"),
        ("service: checkout", "sevice: checkout", "did you mean `service`?"),
        ("{ header: x-user }", "{ header: x-user, cookie: user }", "exactly one of"),
        ("{ header: x-user }", "{}", "exactly one of"),
        ("{ header: x-user }", "{ headers: x-user }", "did you mean `header`?"),
        ("{ header: x-user }", "{ header: \"x user\" }", "no valid header name"),
        ("{ header: x-user }", "{ header: mesh-source }", "belong to the gateways"),
        ("{ header: x-user }", "{ cookie: \"a=b\" }", "no valid cookie name"),
        ("{ header: x-user }", "x-user", "expected a map"),
        // routes
        (
            "{ headers: { x-preview: pr-42 }, cookies: { beta: yes-please }, pathPrefix: /cart, method: GET }",
            "{}",
            "takes every request",
        ),
        ("{ x-preview: pr-42 }", "{ x-preview: 42 }", "put it in quotes"),
        ("{ x-preview: pr-42 }", "{ \"x preview\": a }", "no valid header name"),
        ("{ x-preview: pr-42 }", "{ X-Preview: a, x-preview: b }", "given twice"),
        ("{ x-preview: pr-42 }", "{ x-preview: \"a\\nb\" }", "no value that a header can have"),
        ("{ x-preview: pr-42 }", "[x-preview]", "expected a map"),
        ("{ beta: yes-please }", "{ \"be;ta\": x }", "no valid cookie name"),
        ("pathPrefix: /cart", "pathPrefix: cart", "begins with `/`"),
        ("pathPrefix: /cart", "pathPrefix: \"/cart?x=1\"", "begins with `/`"),
        ("pathPrefix: /cart", "pathprefix: /cart", "did you mean `pathPrefix`?"),
        ("method: GET", "method: get", "upper case"),
        ("method: GET", "method: \"GET /\"", "upper case"),
        ("      backends: [{ cluster: tokyo, version: v2, weight: 1 }]", "      backends: []", "at least one backend"),
        ("    - match: { headers", "    - matches: { headers", "did you mean `match`?"),
        ("version: v2", "version: 2", "put it in quotes"),
        ("version: v2", "version: \"v 2\"", "no valid version"),
        ("version: v2", "verison: v2", "did you mean `version`?"),
        // backends and weights
        ("cluster: paris", "cluster: pairs", "did you mean `paris`?"),
        ("cluster: paris", "cluster: lyon", "no cluster `lyon`"),
        ("cluster: paris", "cluster: \"@local\"", "no valid name"),
        ("cluster: tokyo, weight: 10", "cluster: paris, weight: 10", "already a backend"),
        ("cluster: paris, ", "", "`cluster` is missing"),
        ("weight: 90", "weight: -1", "found the number -1"),
        ("weight: 90", "weight: 1000001", "from 0 to 1000000"),
        ("weight: 90", "weight: 99999999999999999999", "from 0 to 1000000"),
        ("weight: 90", "weight: 0.5", "found the number 0.5"),
        ("weight: 90", "weight: \"90\"", "found the text"),
        ("weight: 90", "weight: 90%", "found the text"),
        ("weight: 90", "weight: .nan", "whole number"),
        ("weight: 90", "weight: .inf", "whole number"),
        ("weight: 90", "weight: [90]", "found a list"),
        ("weight: 90", "weight: 90, weight: 10", "duplicate key `weight`"),
        ("weight: 90", "weigth: 90", "did you mean `weight`?"),
        ("weight: 90", "wieght: 90, region: eu", "unknown field `region`"),
        (
            "    - { cluster: paris, weight: 90 }\n    - { cluster: tokyo, weight: 10 }",
            "    - { cluster: paris, weight: 0 }",
            "",
        ),
        (
            "  backends:\n    - { cluster: paris, weight: 90 }\n    - { cluster: tokyo, weight: 10 }",
            "  backends: { paris: 90 }",
            "expected a list",
        ),
        (
            "  backends:\n    - { cluster: paris, weight: 90 }\n    - { cluster: tokyo, weight: 10 }",
            "  backends: [paris]",
            "expected a map",
        ),
        (
            "    - { cluster: paris, weight: 90 }",
            "    - { cluster: paris, weight: 90 }\n    - { cluster: paris, weight: 1 }",
            "already a backend",
        ),
        // syntax
        ("weight: 90 }", "weight: 90", ""),
        ("  backends:\n", "  backends\n", ""),
        ("spec:\n", "spec: [\n", ""),
        ("kind: TrafficSplit", "\tkind: TrafficSplit", ""),
        ("kind: TrafficSplit", "kind: \"TrafficSplit", ""),
        ("kind: TrafficSplit", "kind: !!binary TrafficSplit", ""),
        ("kind: TrafficSplit", "kind: !secret TrafficSplit", ""),
        ("service: checkout", "service: *checkout", ""),
        ("service: checkout", "<<: { service: checkout }", ""),
        ("service: checkout", "? [a, b]\n  : checkout", ""),
    ] {
        mutate(SPLIT, from, to, says);
    }
}

#[test]
fn policies() {
    for (from, to, says) in [
        ("[\"@local\"]", "[\"@locl\"]", "expected a name or `@local`"),
        ("[\"@local\"]", "[\"@same\"]", "expected a name or `@local`"),
        ("[\"@same\"]", "[\"@local\"]", "expected a name or `@same`"),
        ("[\"@local\"]", "[]", "at least one entry"),
        ("[\"@local\"]", "\"@local\"", "expected a list"),
        ("clusters: [\"@local\"]", "cluster: [\"@local\"]", "did you mean `clusters`?"),
        ("clusters: [\"@local\"]", "clusters: [\"@local\"], regions: [eu-west]", "not both"),
        ("{ clusters: [frankfurt] }", "{}", "needs `clusters` or `regions`"),
        ("{ clusters: [frankfurt] }", "{ clusters: [frankfrut] }", "did you mean `frankfurt`?"),
        (
            "{ clusters: [frankfurt] }",
            "{ clusters: [frankfurt, frankfurt] }",
            "already stands at spec.order[2].clusters[0]",
        ),
        ("{ clusters: [frankfurt] }", "{ clusters: [frankfurt, 5] }", "put it in quotes"),
        ("{ clusters: [frankfurt] }", "{ regions: [eu-wset] }", "did you mean `eu-west`?"),
        (
            "{ clusters: [frankfurt] }",
            "{ clusters: [frankfurt, tokyo] }",
            "paris → frankfurt → tokyo: tokyo is in ap-northeast",
        ),
        ("{ clusters: [frankfurt] }", "{ regions: [ap-northeast] }", "outside residency regions eu-west, eu-central"),
        ("{ clusters: [frankfurt] }", "frankfurt", "expected a map"),
        ("[eu-west, eu-central]", "[eu-west, eu-centrl]", "did you mean `eu-central`?"),
        ("[eu-west, eu-central]", "[eu-west, eu-west]", "already stands at spec.residency.regions[0]"),
        ("[eu-west, eu-central]", "[]", "needs `regions` or `clusters`"),
        ("[eu-west, eu-central]", "eu-west", "expected a list"),
        ("residency: { regions", "residency: { region", "did you mean `regions`?"),
        ("after: 10m", "after: 10", "expected a duration"),
        ("after: 10m", "after: 10 minutos", "expected a duration"),
        ("after: 10m", "after: -1s", "expected a duration"),
        ("after: 10m", "after: 1.5ms", "finer than a millisecond"),
        ("after: 10m", "after: 9999h", "7 days"),
        ("after: 10m", "after: 99999999999999999999999s", "expected a duration"),
        ("mode: auto", "mode: automatic", "expected `auto` or `manual`"),
        ("mode: auto", "mode: manul", "did you mean `manual`?"),
        ("mode: auto", "mode: true", "put it in quotes"),
        ("avoid: [frankfurt]", "avoid: frankfurt", "expected a list"),
        ("avoid: [frankfurt]", "avoid: [nowhere]", "no cluster `nowhere`"),
        ("avoid: [frankfurt]", "triggers: {}", "unknown field `triggers`"),
        ("kind: FailoverPolicy", "kind: FailoverPolcy", "did you mean `FailoverPolicy`?"),
    ] {
        mutate(POLICY, from, to, says);
    }
}

/// Every value of every field, replaced by something of another type.
#[test]
fn wrong_types_everywhere() {
    let mut tried = 0;
    for base in [SPLIT, POLICY] {
        for line in base.lines() {
            let indent = line.len() - line.trim_start().len();
            let Some((key, _)) = line.split_once(": ").filter(|(key, _)| !key.contains('-')) else { continue };
            for wrong in ["[[]]", "{ zz: { zz: 1 } }", "-3", "3.5", "true", "\"\\t\"", "{ <<: 1 }"] {
                let replaced = base.replacen(line, &format!("{}{}: {wrong}", " ".repeat(indent), key.trim_start()), 1);
                refuse("p.yaml", replaced.as_bytes());
                tried += 1;
            }
        }
    }
    assert!(tried >= 80, "{tried}");
}

#[test]
fn hostile_files() {
    let bomb: String = std::iter::once("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned())
        .chain((1..12).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "))))
        .collect();
    let billion = format!("{HEAD}kind: ServiceExport\nmetadata: {{ name: a }}\nspec: {{ clusters: [x] }}\n{bomb}");
    for (name, bytes) in [
        ("empty.yaml", Vec::new()),
        ("newlines.yaml", b"\n\n\n".to_vec()),
        ("comment.yaml", b"# nothing\n---\n# nothing\n".to_vec()),
        ("null.yaml", b"~\n".to_vec()),
        ("scalar.yaml", b"hello\n".to_vec()),
        ("list.yaml", b"- a\n- b\n".to_vec()),
        ("bom.yaml", b"\xef\xbb\xbf".to_vec()),
        ("utf16.yaml", b"\xff\xfea\0:\0".to_vec()),
        ("latin1.yaml", b"name: caf\xe9\n".to_vec()),
        ("elf", b"\x7fELF\x02\x01\x01\0\0\0".to_vec()),
        ("png", b"\x89PNG\r\n\x1a\n".to_vec()),
        ("zeros", vec![0; 4096]),
        ("bomb.yaml", bomb.into_bytes()),
        ("billion.yaml", billion.into_bytes()),
        ("anchor-loop.yaml", b"a: &a [*a]\n".to_vec()),
        ("deep-flow.yaml", [b"[".repeat(100_000), b"]".repeat(100_000)].concat()),
        (
            "deep-block.yaml",
            (0..2_000).flat_map(|depth| format!("{}a:\n", " ".repeat(depth % 500)).into_bytes()).collect(),
        ),
        ("deep-dashes.yaml", b"- ".repeat(50_000)),
        ("many-documents.yaml", b"---\na: 1\n".repeat(20_000)),
        ("huge.yaml", b"x".repeat(3 << 20)),
        ("long-key.yaml", [b"k".repeat(500_000), b": 1\n".to_vec()].concat()),
        ("long-value.yaml", [format!("{HEAD}kind: ").into_bytes(), b"K".repeat(500_000)].concat()),
        ("many-keys.yaml", (0..40_000).flat_map(|n| format!("k{n}: 1\n").into_bytes()).collect()),
        ("many-anchors.yaml", (0..40_000).flat_map(|n| format!("- &a{n} 1\n").into_bytes()).collect()),
        ("carriage.yaml", b"kind: X\rmetadata: Y\r".to_vec()),
        ("control.yaml", b"kind: \x01\x02\x1b[31m\n".to_vec()),
    ] {
        refuse(name, &bytes);
    }
}

/// Files whose last line says what is wrong: `# expect LINE:COLUMN text`.
#[test]
fn files() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/malformed");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let expectation = text.lines().last().and_then(|line| line.strip_prefix("# expect "));
        let (place, says) =
            expectation.and_then(|text| text.split_once(' ')).unwrap_or_else(|| panic!("{name} expects nothing"));
        let problems = refuse(&name, text.as_bytes());
        let found = problems.iter().any(|problem| {
            format!("{}:{}", problem.line, problem.column) == place && problem.to_string().contains(says)
        });
        assert!(found, "{name}: expected {place} {says}, found {problems:#?}");
        count += 1;
    }
    assert!(count >= 10, "only {count} files");
}

/// Whatever comes in: no panic, and a refusal has a place.
fn survive(bytes: &[u8]) {
    if let Ok(document) = Document::from_bytes("fuzz.yaml", bytes) {
        let documents = [document];
        for problems in [
            admit::admit(&documents, &current()).err(),
            admit::validate(&documents).err(),
            admit::topology(&documents[0]).err(),
            service_file::parse(&documents).err(),
        ]
        .into_iter()
        .flatten()
        {
            assert!(!problems.is_empty());
            assert!(problems.iter().all(|problem| problem.line >= 1 && problem.column >= 1));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        survive(&bytes);
    }

    #[test]
    fn anything_that_looks_like_yaml(text in "([a-z&*!|>%@`\"'{}\\[\\],:?#\\- \t\n.0-9~<]|---\n|\\.\\.\\.\n){0,200}") {
        survive(text.as_bytes());
    }

    /// Valid files with pieces cut out, doubled, swapped and overwritten.
    #[test]
    fn mutated_policies(
        which in 0usize..3,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..5, any::<u8>()), 1..6),
    ) {
        let both = format!("{SPLIT}---\n{POLICY}");
        let mut bytes = [SPLIT, POLICY, both.as_str()][which].as_bytes().to_vec();
        for (one, other, what, byte) in edits {
            if bytes.is_empty() { break }
            let (a, b) = (one.index(bytes.len()), other.index(bytes.len()));
            let (from, to) = (a.min(b), a.max(b).min(a.min(b) + 40));
            match what {
                0 => drop(bytes.drain(from..to)),
                1 => { let piece = bytes[from..to].to_vec(); bytes.splice(from..from, piece); }
                2 => bytes.swap(a, b),
                3 => bytes[a] = byte,
                _ => bytes.insert(a, b"{}[]:,-&*!|>'\"%@`#?\n\t "[usize::from(byte) % 22]),
            }
        }
        survive(&bytes);
    }
}
