//! What the chart installs of all this, as templates: JSON and rules have braces of their own, so they are quoted whole.

use crate::{ALERTING_RULES, RECORDING_RULES, dashboards};

/// `dashboards.yaml` of the chart: a ConfigMap for each, with the label by which Grafana's sidecar finds it.
pub fn dashboards_template() -> String {
    let of_each = dashboards::all().into_iter().map(|dashboard| {
        let file = dashboard.file();
        let name = file.trim_end_matches(".json");
        DASHBOARD.replace("NAME", name).replace("JSON", &dashboard.json().to_string())
    });
    format!(
        "{GENERATED}{{{{- if .Values.monitoring.dashboards.enabled }}}}\n{}{{{{- end }}}}\n",
        of_each.collect::<String>()
    )
}

/// `prometheusrule.yaml` of the chart.
pub fn rules_template() -> String {
    let groups = |rules: &'static str| {
        let lines = rules.lines().skip_while(|line| *line != "groups:").skip(1);
        lines.map(|line| format!("  {line}\n")).collect::<String>()
    };
    let groups = [RECORDING_RULES, ALERTING_RULES].map(groups).concat();
    format!("{GENERATED}{}", RULES.replace("GROUPS", groups.trim_end()))
}

const GENERATED: &str =
    "{{- /* Made from topologies/observability by its tests: UPDATE=1 cargo test -p archipelago-observability */}}\n";
const DASHBOARD: &str = r#"---
apiVersion: v1
kind: ConfigMap
metadata:
  name: archipelago-dashboard-NAME
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "archipelago.labels" . | nindent 4 }}
    {{ .Values.monitoring.dashboards.label | quote }}: {{ .Values.monitoring.dashboards.value | quote }}
data:
  NAME.json: |
    {{ `JSON` }}
"#;
const RULES: &str = r#"{{- if .Values.monitoring.rules.enabled }}
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: archipelago
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "archipelago.labels" . | nindent 4 }}
    {{- range .Values.monitoring.labels }}
    {{ .name | quote }}: {{ .value | quote }}
    {{- end }}
spec:
  groups:
{{ `GROUPS` }}
{{- end }}
"#;
