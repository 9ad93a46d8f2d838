//! A real Prometheus beside a real federation: every panel and every rule has data, and a killed cluster is one alert.
//!
//! Needs `prometheus` and `promtool` (Debian's package `prometheus`). Without them it says so and passes, unless
//! `ARCHIPELAGO_PROMETHEUS=required` is set, as CI does.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use archipelago_chaos::load::{self, Running};
use archipelago_observability::{ALERTING_RULES, RECORDING_RULES, dashboards};
use harness::suite::{self, alone};
use harness::{Connection, Federation, PATIENCE, SMALL, check, eventually, saw};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn main() -> ExitCode {
    let is_here = |program: &str| Command::new(program).arg("--version").output().is_ok_and(|ran| ran.status.success());
    if !is_here("prometheus") || !is_here("promtool") {
        assert!(std::env::var_os("ARCHIPELAGO_PROMETHEUS").is_none(), "prometheus and promtool are required");
        println!("SKIPPED: needs prometheus and promtool: apt-get install prometheus");
        return ExitCode::SUCCESS;
    }
    suite::run(&alone![everything_is_answered_with_data, without_prometheus_the_federation_comes_up_and_says_how])
}

async fn everything_is_answered_with_data() {
    let federation = Federation::plan(None).begin_with(&["--observe"]).await;
    federation.settle().await;
    let prometheus = Api(listener(&federation));
    let traffic = Traffic::begin(&federation).await;

    let texts = reference(&federation).await;
    for (name, text) in &texts {
        promtool(&["check", "metrics"], text, name);
    }
    rules_are_sound();
    panels_have_data(&federation, &prometheus).await;
    rules_have_data(&federation, &prometheus).await;
    native_histograms_are_taken(&federation).await;
    a_killed_cluster_is_one_alert(&federation).await;

    traffic.end().await;
    federation.down().await;
}

/// Where the Prometheus of `up --observe` listens.
fn listener(federation: &Federation) -> String {
    let text = fs::read_to_string(federation.state.join("observe/grafana/provisioning/datasources/archipelago.yaml"));
    let source: Value = serde_json::from_str(&text.unwrap()).unwrap();
    source["datasources"][0]["url"].as_str().unwrap().to_owned()
}

/// What clients do meanwhile: requests that stay and that cross, and a TCP connection.
struct Traffic(Vec<Running>);

impl Traffic {
    async fn begin(federation: &Federation) -> Self {
        federation.ok("split set shop/checkout paris=50 tokyo=50").await;
        let loads = ["paris/gw-1", "frankfurt/gw-1", "frankfurt/gw-2"]
            .map(|gateway| load::start(federation.load(gateway, "checkout.shop", 20.0)).unwrap());
        // Nobody's request: refused by its gateway.
        let stranger =
            Connection::http1(&federation.gateway("paris/gw-1").http).await.get("nobody.shop", "/", &[]).await;
        assert_eq!(stranger.status, 404);
        let services = federation.json("services").await;
        let ledger = services.as_array().unwrap().iter().find(|service| service["name"] == "shop/ledger").unwrap();
        let address = ledger["tcp"][0]["address"].as_str().unwrap();
        let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        tcp.write_all(b"hello\n").await.unwrap();
        tcp.shutdown().await.unwrap();
        assert!(tcp.read(&mut [0; 64]).await.unwrap() > 0);
        Self(loads.into())
    }

    async fn end(self) {
        for load in self.0 {
            load.stop();
            load.finish().await.unwrap();
        }
    }
}

/// A Prometheus, by its address.
struct Api(String);

impl Api {
    async fn get(&self, path: &str) -> Result<Value, String> {
        let address = harness::client::address(&self.0);
        let mut connection = match tokio::net::TcpStream::connect(address).await {
            Ok(stream) => {
                drop(stream);
                Connection::http1(&self.0).await
            }
            Err(error) => return Err(error.to_string()),
        };
        let reply = connection.get("prometheus", path, &[]).await;
        // 503 while it starts.
        check(reply.status != 503, || format!("{path}: {reply:?}"))?;
        let answer = reply.json();
        check(answer["status"] == "success", || format!("{path}: {answer}"))?;
        Ok(answer["data"].clone())
    }

    /// The values that a query has now, those that are numbers.
    async fn values(&self, expr: &str) -> Result<usize, String> {
        let escaped: String = expr.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let data = self.get(&format!("/api/v1/query?query={escaped}")).await?;
        let is_number = |value: &Value| value.as_str().is_some_and(|text| text != "NaN");
        Ok(match data["resultType"].as_str() {
            Some("scalar") => usize::from(is_number(&data["result"][1])),
            _ => data["result"].as_array().unwrap().iter().filter(|sample| is_number(&sample["value"][1])).count(),
        })
    }

    /// Alerts by state, each as its name and the cluster or process that it is about.
    async fn alerts(&self, state: &str) -> Result<BTreeSet<String>, String> {
        let data = self.get("/api/v1/alerts").await?;
        let alerts = data["alerts"].as_array().unwrap().iter().filter(|alert| alert["state"] == state);
        Ok(alerts
            .map(|alert| {
                let labels = &alert["labels"];
                let about = ["destination_cluster", "instance", "cluster", "destination_service"];
                let about = about.iter().find_map(|name| labels[name].as_str()).unwrap_or("all");
                format!("{} {about}", labels["alertname"].as_str().unwrap())
            })
            .collect())
    }
}

/// `docs/metrics.md` lists exactly what processes say of themselves. Returns the exposition of one of each kind.
async fn reference(federation: &Federation) -> BTreeMap<&'static str, String> {
    let config: Value =
        serde_json::from_str(&fs::read_to_string(federation.state.join("observe/prometheus.yml")).unwrap()).unwrap();
    let mut texts = BTreeMap::new();
    for (job, name) in [
        ("archipelago-gateway", "Gateways"),
        ("archipelago-agent", "Agents"),
        ("archipelago-control-plane", "Control plane"),
    ] {
        let jobs = config["scrape_configs"].as_array().unwrap();
        let job = jobs.iter().find(|scrape| scrape["job_name"] == job).unwrap();
        let address = job["static_configs"][0]["targets"][0].as_str().unwrap();
        let reply = Connection::http1(address).await.get("metrics", "/metrics", &[]).await;
        texts.insert(name, String::from_utf8(reply.body.to_vec()).unwrap());
    }
    let mut sections: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    for (name, text) in &texts {
        let (mut help, rows) = (BTreeMap::new(), sections.entry(*name).or_default());
        for line in text.lines() {
            if let Some((metric, words)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                help.insert(metric, words);
            } else if let Some((metric, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                rows.insert(metric.to_owned(), format!("| `{metric}` | {kind} | {} |", help[metric]));
            }
        }
    }
    let everywhere: BTreeMap<String, String> = sections["Agents"]
        .iter()
        .filter(|(metric, _)| sections.values().all(|rows| rows.contains_key(*metric)))
        .map(|(metric, row)| (metric.clone(), row.clone()))
        .collect();
    sections.values_mut().for_each(|rows| rows.retain(|metric, _| !everywhere.contains_key(metric)));
    sections.insert("Every process", everywhere);
    let mut made = String::new();
    for (name, rows) in sections {
        made.push_str(&format!("\n## {name}\n\n| metric | type | what |\n| --- | --- | --- |\n"));
        rows.values().for_each(|row| made.push_str(&format!("{row}\n")));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let found = fs::read_to_string(&path).unwrap();
    let (before, listed) = found.split_once(MARK).unwrap();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, format!("{before}{MARK}{made}")).unwrap();
    } else {
        assert!(
            listed == made,
            "docs/metrics.md is stale: UPDATE=1 cargo test -p archipelago-meshctl --test observe\n{made}"
        );
    }
    texts
}

fn promtool(args: &[&str], input: &str, what: &str) {
    let mut command = Command::new("promtool");
    let mut child =
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ran = child.wait_with_output().unwrap();
    let said = [ran.stdout, ran.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(ran.status.success(), "promtool {args:?} of {what}: {said}\n{input}");
}

fn rules_are_sound() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../topologies/observability/rules");
    let path = |name: &str| rules.join(name).display().to_string();
    promtool(&["check", "rules", "--lint-fatal", &path("recording.yaml"), &path("alerts.yaml")], "", "rules");
    promtool(&["test", "rules", &path("tests/alerts.yaml")], "", "tests of rules");
}

/// As a person chooses them, and "All" for the rest.
fn substituted(expr: &str) -> String {
    [
        ("$__rate_interval", "30s"),
        ("$job", ".+"),
        ("$instance", ".+"),
        ("$cluster", ".*"),
        ("$source", "paris"),
        ("$destination", "tokyo"),
        ("$service", "shop/checkout"),
    ]
    .iter()
    .fold(expr.to_owned(), |expr, (variable, value)| expr.replace(variable, value))
}

async fn panels_have_data(federation: &Federation, prometheus: &Api) {
    let mut queries: BTreeMap<String, String> = BTreeMap::new();
    let mut panels = 0;
    for board in dashboards::all() {
        let json = board.json();
        for panel in json["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
            panels += 1;
            for target in panel["targets"].as_array().unwrap() {
                let place = format!("{} / {} / {}", board.file(), panel["title"], target["refId"]);
                queries.insert(place, substituted(target["expr"].as_str().unwrap()));
            }
        }
        for variable in json["templating"]["list"].as_array().unwrap().iter().filter(|one| one["type"] == "query") {
            let query = variable["query"].as_str().unwrap().strip_prefix("label_values(").unwrap();
            let (series, label) = query.strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
            let expr = format!("count by ({label}) ({})", substituted(series));
            queries.insert(format!("{} ${}", board.file(), variable["name"]), expr);
        }
    }
    answered(federation, prometheus, &queries).await;
    saw!(
        "{panels} panels of {} dashboards and their variables: {} queries with data",
        dashboards::all().len(),
        queries.len()
    );
}

/// Waits until every one of `queries` has a value. Somebody changes something meanwhile: how long a write takes is only known of writes.
async fn answered(federation: &Federation, prometheus: &Api, queries: &BTreeMap<String, String>) {
    let mut open = queries.clone();
    eventually("every query is answered with data", PATIENCE, async || {
        for weight in [60, 50] {
            federation.ok(&format!("split set shop/checkout paris=50 tokyo={weight}")).await;
        }
        let mut empty = BTreeMap::new();
        for (place, expr) in &open {
            if prometheus.values(expr).await? == 0 {
                empty.insert(place.clone(), expr.clone());
            }
        }
        open = empty;
        check(open.is_empty(), || format!("no data: {open:#?}"))
    })
    .await;
}

async fn rules_have_data(federation: &Federation, prometheus: &Api) {
    let mut queries = BTreeMap::new();
    let mut count = 0;
    for text in [RECORDING_RULES, ALERTING_RULES] {
        let file: Value = serde_saphyr::from_str(text).unwrap();
        for rule in file["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()) {
            count += 1;
            let expr = rule["expr"].as_str().unwrap();
            if let Some(name) = rule["record"].as_str() {
                queries.insert(name.to_owned(), expr.to_owned());
                queries.insert(format!("{name}, recorded"), name.to_owned());
                continue;
            }
            // Nothing is wrong, so the alert itself has no data; what it looks at has.
            for word in expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':') {
                if word.starts_with("mesh_") || word.contains(':') || word == "up" {
                    queries.insert(format!("{} {word}", rule["alert"].as_str().unwrap()), format!("count({word})"));
                }
            }
        }
    }
    answered(federation, prometheus, &queries).await;
    let rules = prometheus.get("/api/v1/rules").await.unwrap();
    let rules = rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    let unwell: Vec<_> = rules.clone().filter(|rule| rule["health"] != "ok").collect();
    assert!(unwell.is_empty() && rules.count() == count, "{unwell:#?}");
    assert_eq!(prometheus.alerts("firing").await.unwrap(), BTreeSet::new(), "nothing is wrong");
    saw!("{count} rules evaluate, and what they look at has data");
}

/// By a second Prometheus, which asks for them: the same metrics in another format, and durations by buckets that nobody chose.
async fn native_histograms_are_taken(federation: &Federation) {
    let dir = federation.scratch().join("native");
    let text = fs::read_to_string(federation.state.join("observe/prometheus.yml")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["global"] = json!({ "scrape_interval": "1s" });
    config.as_object_mut().unwrap().remove("rule_files");
    let native = Second::start(&dir, &config, &["--enable-feature=native-histograms,exemplar-storage"]);
    // All processes are scraped; of requests there are histograms, and no classic buckets any more; everything else is as ever.
    let queries = [
        ("gateways are up", r#"count(up{job="archipelago-gateway"} == 1) == 6"#),
        ("all is up", "min(up) == 1"),
        ("there are histograms", r#"histogram_count(sum(mesh_request_duration_seconds{reporter="source"})) > 0"#),
        ("of each label set", "count(mesh_request_duration_seconds) == count(mesh_requests_total)"),
        ("with quantiles", "histogram_quantile(0.99, sum(rate(mesh_request_duration_seconds[10s]))) > 0"),
        (
            "that follow from the sum",
            "histogram_sum(sum(mesh_request_duration_seconds)) / histogram_count(sum(mesh_request_duration_seconds)) < 60",
        ),
        ("counters have their names", r#"sum(rate(mesh_requests_total{reporter="source"}[10s])) > 0"#),
        ("gauges, too", "count(mesh_build_info == 1) > 6"),
        ("classic ones of others stay", "count(mesh_control_plane_commit_seconds_bucket) > 0"),
    ];
    eventually("native histograms are answered with", PATIENCE, async || {
        for (what, query) in queries {
            check(native.api.values(query).await? > 0, || format!("{what}: nothing for {query}"))?;
        }
        let classic = native.api.values("count(mesh_request_duration_seconds_bucket)").await?;
        check(classic == 0, || "classic buckets were taken in their place".to_owned())
    })
    .await;
    saw!("native histograms: {} queries with data", queries.len());
}

/// The same rules, in a second Prometheus in which they need a twelfth of their time.
async fn a_killed_cluster_is_one_alert(federation: &Federation) {
    let hasty = Second::hasty(federation);
    eventually("the second Prometheus knows the tunnels", PATIENCE, async || {
        let known = hasty.api.values("cluster_pair:mesh_tunnel_up:max == 1").await?;
        check(known == 6, || format!("{known} pairs of clusters"))
    })
    .await;
    federation.ok("drill kill tokyo --for 10m").await;
    let wanted = BTreeSet::from(["MeshClusterUnreachable tokyo".to_owned()]);
    let firing = async || {
        let firing = hasty.api.alerts("firing").await?;
        // Not only in the end: at no time.
        assert!(firing.is_subset(&wanted), "{firing:?}");
        Ok::<_, String>(firing)
    };
    eventually("the alert fires", PATIENCE, async || {
        let firing = firing().await?;
        let pending = hasty.api.alerts("pending").await?;
        check(firing == wanted, || format!("{firing:?}, pending {pending:?}"))
    })
    .await;
    // Until any other would have had its time: the longest but those of ten minutes and more.
    let since = hasty.evaluations().await.unwrap();
    eventually("the rules were evaluated a dozen times more", PATIENCE, async || {
        firing().await?;
        let now = hasty.evaluations().await?;
        check(now >= since + 12.0, || format!("{now} after {since}"))
    })
    .await;
    federation.ok("drill end").await;
    federation.settle().await;
    eventually("it resolves, and nothing else is left", PATIENCE, async || {
        let firing = hasty.api.alerts("firing").await?;
        check(firing.is_empty(), || format!("{firing:?}"))
    })
    .await;
    saw!("a killed cluster fired {wanted:?} and nothing else, and it resolved");
}

/// A Prometheus beside the one of `up --observe`.
struct Second {
    child: Child,
    api: Api,
}

impl Second {
    fn hasty(federation: &Federation) -> Self {
        let dir = federation.scratch().join("hasty");
        fs::create_dir_all(&dir).unwrap();
        let written = |name: &str, value: &Value| -> PathBuf {
            let path = dir.join(name);
            fs::write(&path, value.to_string()).unwrap();
            path
        };
        let mut files = Vec::new();
        for (name, text) in [("recording.yml", RECORDING_RULES), ("alerts.yml", ALERTING_RULES)] {
            let mut rules: Value = serde_saphyr::from_str(text).unwrap();
            for group in rules["groups"].as_array_mut().unwrap() {
                for rule in group["rules"].as_array_mut().unwrap() {
                    if let Some(minutes) = rule["for"].as_str() {
                        let minutes: u32 = match minutes.strip_suffix('m') {
                            Some(minutes) => minutes.parse().unwrap(),
                            None => 60 * minutes.strip_suffix('h').unwrap().parse::<u32>().unwrap(),
                        };
                        rule["for"] = json!(format!("{}s", minutes * 5));
                    }
                }
            }
            files.push(written(name, &rules).display().to_string());
        }
        let text = fs::read_to_string(federation.state.join("observe/prometheus.yml")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["global"] = json!({ "scrape_interval": "1s", "evaluation_interval": "1s" });
        config["rule_files"] = json!(files);
        Self::start(&dir, &config, &[])
    }

    fn start(dir: &Path, config: &Value, flags: &[&str]) -> Self {
        fs::create_dir_all(dir).unwrap();
        let path = dir.join("prometheus.yml");
        fs::write(&path, config.to_string()).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, api: Api(format!("http://127.0.0.1:{port}")) }
    }

    /// How often the alerts were evaluated.
    async fn evaluations(&self) -> Result<f64, String> {
        let reply = Connection::http1(&self.api.0).await.get("prometheus", "/metrics", &[]).await;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let line = text
            .lines()
            .find(|line| {
                line.starts_with("prometheus_rule_group_iterations_total") && line.contains("archipelago.alerts")
            })
            .ok_or("no evaluation yet")?;
        line.rsplit(' ').next().unwrap().parse().map_err(|error| format!("{error}: {line}"))
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn without_prometheus_the_federation_comes_up_and_says_how() {
    let federation = Federation::plan(Some(SMALL)).with("PATH", "/nowhere").begin_with(&["--observe"]).await;
    let guide = federation.started();
    for words in ["Prometheus is not installed", "apt install prometheus", "GF_PATHS_PROVISIONING="] {
        assert!(guide.contains(words), "{words} missing in {guide}");
    }
    assert!(federation.state.join("observe/grafana/dashboards/federation.json").exists());
    assert!(federation.status().await.processes.iter().all(|process| process.name != "prometheus"));
    federation.down().await;
}

/// Behind it, `docs/metrics.md` is made from what processes say.
const MARK: &str = "<!-- From here on made by meshctl/tests/observe.rs -->\n";
