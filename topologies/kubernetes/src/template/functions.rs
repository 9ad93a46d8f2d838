//! The functions of templates, as Go and Sprig define them.

use std::collections::BTreeMap;

use serde_json::Value;

/// Calls a function by name.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    match (name, arguments) {
        ("quote", [value]) => Ok(Value::from(json(&Value::from(display(value))))),
        // One line of JSON is YAML too, wherever it stands.
        ("toJson", [value]) => Ok(Value::from(json(value))),
        ("nindent", [width, text]) => Ok(Value::from(format!("\n{}", indent(integer(width)?, &display(text))))),
        ("indent", [width, text]) => Ok(Value::from(indent(integer(width)?, &display(text)))),
        ("default", [fallback, value]) => Ok(if is_true(value) { value.clone() } else { fallback.clone() }),
        ("required", [message, value]) => match value {
            Value::Null => Err(display(message)),
            Value::String(text) if text.is_empty() => Err(display(message)),
            value => Ok(value.clone()),
        },
        ("eq", [first, others @ ..]) if !others.is_empty() => {
            Ok(Value::from(others.iter().any(|one| same(first, one))))
        }
        ("ne", [first, second]) => Ok(Value::from(!same(first, second))),
        ("not", [value]) => Ok(Value::from(!is_true(value))),
        ("and", [.., last]) => Ok(arguments.iter().find(|value| !is_true(value)).unwrap_or(last).clone()),
        ("or", [.., last]) => Ok(arguments.iter().find(|value| is_true(value)).unwrap_or(last).clone()),
        ("printf", [Value::String(format), values @ ..]) => printf(format, values).map(Value::from),
        ("join", [Value::String(separator), Value::Array(items)]) => {
            Ok(Value::from(items.iter().map(display).collect::<Vec<_>>().join(separator)))
        }
        ("len", [Value::Array(items)]) => Ok(Value::from(items.len())),
        ("add", values) if !values.is_empty() => {
            let mut sum = 0_i64;
            for value in values {
                sum = sum.checked_add(integer(value)?).ok_or("the sum is too large")?;
            }
            Ok(Value::from(sum))
        }
        _ => Err(format!("`{name}` with {} arguments is not understood here", arguments.len())),
    }
}

/// As Go prints a value.
pub(super) fn display(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => json(other),
    }
}

/// As Go judges a value: empty is false.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        _ => one == other,
    }
}

fn integer(value: &Value) -> Result<i64, String> {
    value.as_i64().ok_or_else(|| format!("{value} is no whole number"))
}

fn indent(width: i64, text: &str) -> String {
    let pad = " ".repeat(usize::try_from(width).unwrap_or(0));
    text.split('\n').map(|line| format!("{pad}{line}")).collect::<Vec<_>>().join("\n")
}

fn printf(format: &str, values: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('%') => out.push('%'),
            Some('s' | 'd' | 'v') => {
                let value = values.next().ok_or_else(|| format!("printf {format:?} lacks a value"))?;
                out.push_str(&display(value));
            }
            other => return Err(format!("printf %{} is not understood here", other.unwrap_or(' '))),
        }
    }
    if values.next().is_some() {
        return Err(format!("printf {format:?} has a value too many"));
    }
    Ok(out)
}

/// JSON with its keys in order, whatever order they were read in.
fn json(value: &Value) -> String {
    fn ordered(value: &Value) -> Value {
        match value {
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (key.clone(), ordered(value)))
                .collect::<BTreeMap<_, _>>()
                .into_iter()
                .collect(),
            Value::Array(items) => items.iter().map(ordered).collect(),
            other => other.clone(),
        }
    }
    ordered(value).to_string()
}
