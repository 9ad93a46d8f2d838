//! Dashboards in Grafana's JSON (schema v1, which every Grafana imports), put together from panels.
//!
//! What every panel must have is an argument here, so that none can be without: a title, a sentence that says what one sees, a unit,
//! and queries for the chosen data source that keep to the chosen processes. In queries, `@` stands for that choice.

use serde_json::{Map, Value, json};

/// A dashboard in the making.
#[derive(Debug)]
pub struct Dashboard {
    name: &'static str,
    title: &'static str,
    description: &'static str,
    matchers: &'static str,
    variables: Vec<Value>,
    panels: Vec<Value>,
    place: Place,
    next_id: u32,
}

/// One panel.
#[derive(Debug)]
pub struct Panel {
    kind: Kind,
    title: &'static str,
    description: &'static str,
    unit: &'static str,
    queries: Vec<Query>,
    width: u32,
    runbook: Option<&'static str>,
    thresholds: Vec<(Option<f64>, &'static str)>,
    mappings: Vec<(&'static str, &'static str, &'static str)>,
    max: Option<f64>,
    is_stacked: bool,
}

/// One query of a panel, and what its series are called.
#[derive(Debug)]
pub struct Query {
    expr: &'static str,
    legend: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stat,
    Lines,
    States,
    Heatmap,
    Table,
}

#[derive(Debug, Default)]
struct Place {
    x: u32,
    y: u32,
    row_height: u32,
}

/// A query; `legend` names labels as `{{label}}`.
pub const fn query(expr: &'static str, legend: &'static str) -> Query {
    Query { expr, legend }
}

/// One number.
pub fn stat(title: &'static str, description: &'static str, unit: &'static str, query: Query) -> Panel {
    Panel::new(Kind::Stat, title, description, unit, vec![query], 4)
}

/// Lines over time.
pub fn lines<const N: usize>(
    title: &'static str,
    description: &'static str,
    unit: &'static str,
    queries: [Query; N],
) -> Panel {
    Panel::new(Kind::Lines, title, description, unit, queries.into(), 12)
}

/// Bars that say from when to when something was in which state, by value and its word and colour.
pub fn states(
    title: &'static str,
    description: &'static str,
    query: Query,
    mappings: &[(&'static str, &'static str, &'static str)],
) -> Panel {
    Panel { mappings: mappings.into(), ..Panel::new(Kind::States, title, description, "none", vec![query], 24) }
}

/// How many observations fell where, over time; of the buckets of a histogram.
pub fn heatmap(title: &'static str, description: &'static str, unit: &'static str, query: Query) -> Panel {
    Panel::new(Kind::Heatmap, title, description, unit, vec![query], 24)
}

/// The newest value of each series in a row of its own.
pub fn table(title: &'static str, description: &'static str, unit: &'static str, query: Query) -> Panel {
    Panel::new(Kind::Table, title, description, unit, vec![query], 12)
}

impl Panel {
    fn new(
        kind: Kind,
        title: &'static str,
        description: &'static str,
        unit: &'static str,
        queries: Vec<Query>,
        width: u32,
    ) -> Self {
        let (runbook, thresholds, mappings) = (None, Vec::new(), Vec::new());
        Self {
            kind,
            title,
            description,
            unit,
            queries,
            width,
            runbook,
            thresholds,
            mappings,
            max: None,
            is_stacked: false,
        }
    }

    /// So many of the 24 columns.
    #[must_use]
    pub fn width(self, width: u32) -> Self {
        Self { width, ..self }
    }

    /// The page that says what to do, by the name of its alert.
    #[must_use]
    pub fn runbook(self, alert: &'static str) -> Self {
        Self { runbook: Some(alert), ..self }
    }

    /// Colours from values on; the first one from nothing on.
    #[must_use]
    pub fn thresholds(self, thresholds: &[(Option<f64>, &'static str)]) -> Self {
        Self { thresholds: thresholds.into(), ..self }
    }

    /// Good from `least` on, bad below.
    #[must_use]
    pub fn at_least(self, least: f64) -> Self {
        self.thresholds(&[(None, "red"), (Some(least), "green")])
    }

    /// Good below `most`, bad from there on.
    #[must_use]
    pub fn below(self, most: f64) -> Self {
        self.thresholds(&[(None, "green"), (Some(most), "red")])
    }

    /// A share: from 0 to 1.
    #[must_use]
    pub fn share(self) -> Self {
        Self { max: Some(1.0), ..self }
    }

    /// On top of each other: the whole is what matters.
    #[must_use]
    pub fn stacked(self) -> Self {
        Self { is_stacked: true, ..self }
    }

    fn height(&self) -> u32 {
        match self.kind {
            Kind::Stat => 4,
            _ => 8,
        }
    }

    fn json(&self, id: u32, place: (u32, u32), matchers: &str) -> Value {
        let is_instant = matches!(self.kind, Kind::Stat | Kind::Table);
        let targets = self.queries.iter().zip('A'..).map(|(query, id)| {
            json!({
                "datasource": datasource(),
                "editorMode": "code",
                "expr": query.expr.replace('@', matchers),
                "format": match self.kind { Kind::Heatmap => "heatmap", Kind::Table => "table", _ => "time_series" },
                "instant": is_instant,
                "legendFormat": if query.legend.is_empty() { "__auto" } else { query.legend },
                "range": !is_instant,
                "refId": id.to_string(),
            })
        });
        let mut panel = json!({
            "id": id,
            "type": match self.kind {
                Kind::Stat => "stat",
                Kind::Lines => "timeseries",
                Kind::States => "state-timeline",
                Kind::Heatmap => "heatmap",
                Kind::Table => "table",
            },
            "title": self.title,
            "description": self.description,
            "datasource": datasource(),
            "gridPos": { "x": place.0, "y": place.1, "w": self.width, "h": self.height() },
            "targets": targets.collect::<Vec<_>>(),
            "fieldConfig": { "defaults": self.defaults(), "overrides": [] },
            "options": self.options(),
        });
        if self.kind == Kind::Table {
            // Neither the time of the query nor what all rows have in common.
            set(
                &mut panel,
                "transformations",
                json!([{
                    "id": "organize",
                    "options": { "excludeByName": { "Time": true, "__name__": true, "job": true }, "renameByName": { "Value": self.title } },
                }]),
            );
        }
        if let Some(alert) = self.runbook {
            set(
                &mut panel,
                "links",
                json!([link("What to do", "What the alert means and what to do", &runbook_url(alert))]),
            );
        }
        panel
    }

    fn defaults(&self) -> Value {
        let mut defaults = json!({ "unit": self.unit, "min": 0 });
        if self.kind == Kind::Lines {
            let stacking = if self.is_stacked { "normal" } else { "none" };
            set(
                &mut defaults,
                "custom",
                json!({
                    "drawStyle": "line",
                    "fillOpacity": if self.is_stacked { 30 } else { 8 },
                    "lineWidth": 1,
                    "showPoints": "never",
                    "spanNulls": false,
                    "stacking": { "group": "A", "mode": stacking },
                }),
            );
        }
        if self.kind == Kind::States {
            set(&mut defaults, "custom", json!({ "fillOpacity": 80, "lineWidth": 0 }));
        }
        if let Some(max) = self.max {
            set(&mut defaults, "max", json!(max));
        }
        if !self.thresholds.is_empty() {
            let steps = self.thresholds.iter().map(|(value, color)| json!({ "color": color, "value": value }));
            set(&mut defaults, "thresholds", json!({ "mode": "absolute", "steps": steps.collect::<Vec<_>>() }));
        }
        if !self.mappings.is_empty() {
            let options: Map<String, Value> = (0..)
                .zip(&self.mappings)
                .map(|(index, (value, text, color))| {
                    ((*value).to_owned(), json!({ "color": color, "index": index, "text": text }))
                })
                .collect();
            set(&mut defaults, "mappings", json!([{ "type": "value", "options": options }]));
        }
        defaults
    }

    fn options(&self) -> Value {
        match self.kind {
            Kind::Stat => json!({
                "colorMode": if self.thresholds.is_empty() { "none" } else { "background" },
                "graphMode": "none",
                "justifyMode": "auto",
                "orientation": "auto",
                "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
                "textMode": "auto",
                "wideLayout": true,
            }),
            Kind::Lines => json!({
                "legend": { "calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": true },
                "tooltip": { "mode": "multi", "sort": "desc" },
            }),
            Kind::States => json!({
                "alignValue": "left",
                "legend": { "calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": true },
                "mergeValues": true,
                "rowHeight": 0.8,
                "showValue": "never",
                "tooltip": { "mode": "single", "sort": "none" },
            }),
            Kind::Heatmap => json!({
                "calculate": false,
                "cellGap": 1,
                "color": { "exponent": 0.5, "fill": "dark-orange", "mode": "scheme", "reverse": false, "scale": "exponential", "scheme": "Oranges", "steps": 64 },
                "exemplars": { "color": "rgba(255,0,255,0.7)" },
                "filterValues": { "le": 1e-9 },
                "legend": { "show": true },
                "rowsFrame": { "layout": "auto" },
                "tooltip": { "mode": "single", "showColorScale": false, "yHistogram": false },
                "yAxis": { "axisPlacement": "left", "reverse": false, "unit": self.unit },
            }),
            Kind::Table => json!({ "cellHeight": "sm", "showHeader": true }),
        }
    }
}

impl Dashboard {
    /// An empty one; `name` is its file and, behind `archipelago-`, its uid.
    pub fn new(name: &'static str, title: &'static str, description: &'static str) -> Self {
        let source = json!({
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "regex": "",
            "hide": 0,
            "includeAll": false,
            "multi": false,
            "options": [],
        });
        let this = Self {
            name,
            title,
            description,
            matchers: r#"job=~"$job", instance=~"$instance""#,
            variables: vec![source],
            panels: Vec::new(),
            place: Place::default(),
            next_id: 1,
        };
        this.many("job", "Job", "label_values(mesh_build_info, job)", ".+")
    }

    /// With a choice among clusters, to which all queries keep.
    #[must_use]
    pub fn by_cluster(self) -> Self {
        let mut this = self.many("cluster", "Cluster", r#"label_values(mesh_build_info{job=~"$job"}, cluster)"#, ".*");
        this.matchers = r#"job=~"$job", instance=~"$instance", cluster=~"$cluster""#;
        this.many(
            "instance",
            "Instance",
            r#"label_values(mesh_build_info{job=~"$job", cluster=~"$cluster"}, instance)"#,
            ".+",
        )
    }

    /// With a choice among processes only.
    #[must_use]
    pub fn by_instance(self) -> Self {
        self.many("instance", "Instance", r#"label_values(mesh_build_info{job=~"$job"}, instance)"#, ".+")
    }

    /// A variable with one value out of what `values` asks for.
    #[must_use]
    pub fn one(mut self, name: &str, label: &str, values: &str) -> Self {
        self.variables.push(variable(name, label, values, None));
        self
    }

    fn many(mut self, name: &str, label: &str, values: &str, all: &str) -> Self {
        self.variables.push(variable(name, label, values, Some(all)));
        self
    }

    /// A heading, and the panels below it, from left to right.
    #[must_use]
    pub fn row<const N: usize>(mut self, title: &str, panels: [Panel; N]) -> Self {
        let Place { y, row_height, .. } = self.place;
        let y = y + row_height;
        let place = json!({ "x": 0, "y": y, "w": GRID, "h": 1 });
        let id = self.id();
        self.panels.push(
            json!({ "id": id, "type": "row", "title": title, "collapsed": false, "gridPos": place, "panels": [] }),
        );
        self.place = Place { x: 0, y: y + 1, row_height: 0 };
        for panel in panels {
            if self.place.x + panel.width > GRID {
                self.place = Place { x: 0, y: self.place.y + self.place.row_height, row_height: 0 };
            }
            let id = self.id();
            self.panels.push(panel.json(id, (self.place.x, self.place.y), self.matchers));
            self.place.x += panel.width;
            self.place.row_height = self.place.row_height.max(panel.height());
        }
        self
    }

    fn id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// Its file.
    pub fn file(&self) -> String {
        format!("{}.json", self.name)
    }

    /// As Grafana imports it, in the same order whatever else of this workspace is built.
    pub fn json(&self) -> Value {
        sorted(json!({
            "uid": format!("archipelago-{}", self.name),
            "title": format!("Archipelago / {}", self.title),
            "description": self.description,
            "tags": ["archipelago"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": false,
            "graphTooltip": 1,
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "browser",
            "refresh": "10s",
            "annotations": { "list": [] },
            "links": [
                {
                    "type": "dashboards",
                    "title": "Archipelago",
                    "tags": ["archipelago"],
                    "asDropdown": true,
                    "includeVars": true,
                    "keepTime": true,
                    "targetBlank": false,
                    "icon": "external link",
                    "tooltip": "The other dashboards",
                    "url": "",
                },
                link("Runbooks", "What alerts mean and what to do", RUNBOOKS),
            ],
            "templating": { "list": self.variables },
            "panels": self.panels,
        }))
    }
}

/// Where the page of an alert is.
pub fn runbook_url(alert: &str) -> String {
    format!("{RUNBOOKS}/{alert}.md")
}

/// With the keys of all objects in alphabetical order, in which `serde_json` keeps them only where nobody asks it for another.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().collect();
            fields.sort_by(|(one, _), (other, _)| one.cmp(other));
            Value::Object(fields.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// Adds a field to an object.
fn set(object: &mut Value, key: &str, value: Value) {
    if let Value::Object(fields) = object {
        fields.insert(key.to_owned(), value);
    }
}

fn link(title: &str, tooltip: &str, url: &str) -> Value {
    json!({
        "type": "link",
        "title": title,
        "tooltip": tooltip,
        "url": url,
        "icon": "doc",
        "tags": [],
        "asDropdown": false,
        "includeVars": false,
        "keepTime": false,
        "targetBlank": true,
    })
}

fn datasource() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

/// A variable that asks again whenever the range of time changes; `all` is what "All" matches, where more than one may be chosen.
fn variable(name: &str, label: &str, values: &str, all: Option<&str>) -> Value {
    let mut variable = json!({
        "name": name,
        "label": label,
        "type": "query",
        "datasource": datasource(),
        "query": values,
        "refresh": 2,
        "regex": "",
        "sort": 1,
        "hide": 0,
        "multi": all.is_some(),
        "includeAll": all.is_some(),
        "options": [],
    });
    if let Some(all) = all {
        set(&mut variable, "allValue", json!(all));
        set(&mut variable, "current", json!({ "selected": true, "text": ["All"], "value": ["$__all"] }));
    }
    variable
}

const GRID: u32 = 24;
/// Of Grafana 12; later ones migrate it when they load it.
const SCHEMA_VERSION: u32 = 41;
const RUNBOOKS: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/runbooks");
