//! The part of Helm's template language that the chart is written in.
//!
//! `meshctl install` prints the manifests of the chart without Helm. It does so by reading the very same templates, so the
//! chart keeps to what is understood here, and anything else in it is an error, never something that renders differently:
//!
//! | form | |
//! | --- | --- |
//! | `.Values.a.b`, `.Release.Namespace`, `.`, `$`, `$name.a` | a path that leads nowhere may be tested, not printed |
//! | `"text"`, `` `text` ``, `12`, `true`, `false`, `nil` | literals |
//! | `if`, `else if`, `else`, `with`, `range`, `range $i, $e :=`, `$x :=`, `define`, `end`, comments | as in Go; `{{-` and `-}}` trim |
//! | `a \| b`, `( … )` | pipelines: the value before becomes the last argument |
//! | [`functions`] | `include quote toJson nindent indent default required eq ne and or not printf join add len` |
//!
//! Texts are compared with Helm's own output in `tests/helm.rs`.

mod functions;
mod parse;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use self::parse::{Call, Node, Pipe, Term};

/// Templates by file name, parsed, with the blocks that they define.
#[derive(Debug)]
pub struct Templates {
    files: Vec<(String, Vec<Node>)>,
    defined: BTreeMap<String, Vec<Node>>,
}

impl Templates {
    /// Parses `files` (name, text).
    ///
    /// # Errors
    /// Something that is no template, or none of this part of the language.
    pub fn parse<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, TemplateError> {
        let mut templates = Self { files: Vec::new(), defined: BTreeMap::new() };
        for (name, text) in files {
            let parsed = parse::parse(text).map_err(|what| TemplateError { file: name.to_owned(), what })?;
            templates.defined.extend(parsed.defined);
            templates.files.push((name.to_owned(), parsed.nodes));
        }
        Ok(templates)
    }

    /// Renders every file with `context` as `.` and `$`.
    ///
    /// # Errors
    /// A value that is missing, of the wrong shape, or that the template itself requires.
    pub fn render(&self, context: &Value) -> Result<Vec<(String, String)>, TemplateError> {
        let mut rendered = Vec::new();
        for (name, nodes) in &self.files {
            let mut out = String::new();
            let mut scope = Scope { templates: self, root: context, variables: Vec::new(), depth: 0 };
            scope.nodes(nodes, context, &mut out).map_err(|what| TemplateError { file: name.clone(), what })?;
            rendered.push((name.clone(), out));
        }
        Ok(rendered)
    }
}

/// Why a template gives no text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{file}: {what}")]
pub struct TemplateError {
    /// File of the chart.
    pub file: String,
    /// What is wrong.
    pub what: String,
}

/// What a template sees while it is rendered.
struct Scope<'a> {
    templates: &'a Templates,
    root: &'a Value,
    /// Innermost last.
    variables: Vec<(String, Value)>,
    depth: usize,
}

impl Scope<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value, out: &mut String) -> Result<(), String> {
        let outer = self.variables.len();
        for node in nodes {
            self.node(node, dot, out)?;
        }
        self.variables.truncate(outer);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Value, out: &mut String) -> Result<(), String> {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Output(pipe) => {
                let value = self.pipe(pipe, dot)?;
                if value.is_null() {
                    return Err(format!("{{{{ {} }}}} has no value", pipe.text));
                }
                out.push_str(&functions::display(&value));
            }
            Node::Let(name, pipe) => {
                let value = self.pipe(pipe, dot)?;
                self.variables.push((name.clone(), value));
            }
            Node::If(branches, otherwise) => {
                for (pipe, body) in branches {
                    if functions::is_true(&self.pipe(pipe, dot)?) {
                        return self.nodes(body, dot, out);
                    }
                }
                self.nodes(otherwise, dot, out)?;
            }
            Node::With(pipe, body, otherwise) => {
                let value = self.pipe(pipe, dot)?;
                match functions::is_true(&value) {
                    true => self.nodes(body, &value, out)?,
                    false => self.nodes(otherwise, dot, out)?,
                }
            }
            Node::Range { names, pipe, body, otherwise } => {
                let items: Vec<(Value, Value)> = match self.pipe(pipe, dot)? {
                    Value::Array(items) => {
                        items.into_iter().enumerate().map(|(index, item)| (Value::from(index), item)).collect()
                    }
                    Value::Object(map) => sorted(map).map(|(key, item)| (Value::from(key), item)).collect(),
                    Value::Null => Vec::new(),
                    other => return Err(format!("range over {other}, which is no list")),
                };
                if items.is_empty() {
                    return self.nodes(otherwise, dot, out);
                }
                for (key, item) in items {
                    let outer = self.variables.len();
                    match &names[..] {
                        [value] => self.variables.push((value.clone(), item.clone())),
                        [index, value] => {
                            self.variables.push((index.clone(), key));
                            self.variables.push((value.clone(), item.clone()));
                        }
                        _ => {}
                    }
                    self.nodes(body, &item, out)?;
                    self.variables.truncate(outer);
                }
            }
        }
        Ok(())
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, String> {
        let mut piped = None;
        for call in &pipe.calls {
            piped = Some(self.call(call, dot, piped)?);
        }
        Ok(piped.unwrap_or_default())
    }

    fn call(&mut self, call: &Call, dot: &Value, piped: Option<Value>) -> Result<Value, String> {
        let Call { function: Some(name), terms } = call else {
            return match &call.terms[..] {
                [term] if piped.is_none() => self.term(term, dot),
                _ => Err("a value takes no arguments".to_owned()),
            };
        };
        let mut arguments = Vec::with_capacity(terms.len() + 1);
        for term in terms {
            arguments.push(self.term(term, dot)?);
        }
        arguments.extend(piped);
        match name.as_str() {
            "include" => self.include(&arguments).map(Value::from),
            name => functions::call(name, &arguments),
        }
    }

    fn include(&mut self, arguments: &[Value]) -> Result<String, String> {
        let [Value::String(name), dot] = arguments else {
            return Err("include takes a name and a value".to_owned());
        };
        let nodes = self.templates.defined.get(name).ok_or_else(|| format!("nothing defines {name:?}"))?;
        if self.depth == INCLUDES_MAX {
            return Err(format!("{name:?} includes itself"));
        }
        let mut inner =
            Scope { templates: self.templates, root: self.root, variables: Vec::new(), depth: self.depth + 1 };
        let mut out = String::new();
        // `$` in a block is what the block was given.
        inner.root = dot;
        inner.nodes(nodes, dot, &mut out)?;
        Ok(out)
    }

    fn term(&mut self, term: &Term, dot: &Value) -> Result<Value, String> {
        match term {
            Term::Literal(value) => Ok(value.clone()),
            Term::Paren(pipe) => self.pipe(pipe, dot),
            Term::Field(path) => lookup(dot, path),
            Term::Variable(name, path) if name.is_empty() => lookup(self.root, path),
            Term::Variable(name, path) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                lookup(&found.ok_or_else(|| format!("${name} is not set"))?.1, path)
            }
        }
    }
}

fn lookup(from: &Value, path: &[String]) -> Result<Value, String> {
    let mut value = from;
    for name in path {
        value = match value {
            Value::Object(map) => map.get(name).unwrap_or(&Value::Null),
            other => return Err(format!(".{}: {other} has no fields", path.join("."))),
        };
    }
    Ok(value.clone())
}

/// As Go ranges over a map.
fn sorted(map: Map<String, Value>) -> impl Iterator<Item = (String, Value)> {
    map.into_iter().collect::<BTreeMap<_, _>>().into_iter()
}

/// No block of the chart is nested deeper than three.
const INCLUDES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(text: &str) -> Result<String, String> {
        let context = json!({
            "Values": { "name": "a b", "empty": "", "none": null, "number": 7, "on": true, "off": false,
                        "list": ["x", "y"], "map": { "b": 2, "a": 1 }, "nested": { "deep": "down" } },
            "Release": { "Namespace": "ns" },
        });
        let helper = r#"{{- define "label" -}}app: {{ .Release.Namespace }}{{- end -}}"#;
        let templates = Templates::parse([("h", helper), ("t", text)]).map_err(|error| error.to_string())?;
        let rendered = templates.render(&context).map_err(|error| error.to_string())?;
        Ok(rendered.into_iter().nth(1).unwrap().1)
    }

    #[test]
    fn what_go_prints() {
        for (template, text) in [
            ("a {{ .Values.number }} b", "a 7 b"),
            ("a\n{{- /* said */ -}}\nb", "ab"),
            ("{{ .Values.name | quote }}", "\"a b\""),
            ("{{ if .Values.empty }}1{{ else if .Values.on }}2{{ else }}3{{ end }}", "2"),
            ("{{ if not .Values.missing }}no{{ end }}", "no"),
            ("{{ range .Values.list }}[{{ . }}]{{ end }}", "[x][y]"),
            (
                "{{ range $i, $e := .Values.list }}{{ add $i 1 }}{{ $e }}{{ $.Release.Namespace }} {{ end }}",
                "1xns 2yns ",
            ),
            ("{{ range $k, $v := .Values.map }}{{ $k }}={{ $v }};{{ end }}", "a=1;b=2;"),
            ("{{ with .Values.nested }}{{ .deep }}{{ end }}", "down"),
            ("{{ include \"label\" . | nindent 2 }}", "\n  app: ns"),
            ("{{ default \"d\" .Values.empty }}{{ .Values.name | default \"d\" }}", "da b"),
            ("{{ printf \"%s-%d\" .Values.name .Values.number }}", "a b-7"),
            ("{{ if and (eq .Values.number 7) (ne .Values.name \"x\") .Values.on }}yes{{ end }}", "yes"),
            ("{{ or .Values.empty .Values.name }}", "a b"),
            ("{{ join \",\" .Values.list }}", "x,y"),
            ("{{ $x := .Values.number }}{{ $x }}", "7"),
            ("{{ `{\"a\": {\"b\": {}}} {{c}}` }}!", "{\"a\": {\"b\": {}}} {{c}}!"),
            ("{{ \"}} \\\"}}\" }}{{- /* }} */ -}} x", "}} \"}}x"),
            ("{{ toJson .Values.map }}", "{\"a\":1,\"b\":2}"),
        ] {
            assert_eq!(render(template).as_deref(), Ok(text), "{template}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (template, says) in [
            ("{{ .Values.missing }}", "has no value"),
            ("{{ .Values.none }}", "has no value"),
            ("{{ .Values.missing.too }}", "has no fields"),
            ("{{ lookup \"v1\" }}", "lookup"),
            ("{{ if .Values.on }}", "end"),
            ("{{ end }}", "end"),
            ("{{ .Values.name.x }}", "has no fields"),
            ("{{ required \"say it\" .Values.empty }}", "say it"),
            ("{{ include \"nobody\" . }}", "nobody"),
            ("{{ $y }}", "$y is not set"),
            ("{{ \"open }}", "quote"),
            ("{{ `open }}", "quote"),
            ("{{ .a", "}}"),
        ] {
            let error = render(template).unwrap_err();
            assert!(error.contains(says), "{template}: {error}");
        }
    }
}
