//! What filters say, in tables.

use std::borrow::Cow;

use proptest::prelude::*;

use super::{Fact, Field, Filter, Node, Test};

/// A failed request from paris to tokyo.
fn fact(field: Field) -> Fact<'static> {
    let text = |text: &'static str| Fact::Text(Cow::Borrowed(text));
    match field {
        Field::Service => text("shop/checkout:8080"),
        Field::Source => text("paris"),
        Field::Destination => text("tokyo"),
        Field::Gateway => text("paris/gw-1"),
        Field::Peer => text("tokyo/gw-2"),
        Field::Endpoint => text("10.0.0.7:8080"),
        Field::Version | Field::Workload | Field::TraceId => Fact::Unknown,
        Field::Rule => text("default"),
        Field::Method => text("POST"),
        Field::Host => text("Checkout.shop"),
        Field::Path => text("/pay/\u{1b}[2J \"now\""),
        Field::Protocol => text("HTTP/2.0"),
        Field::Status => Fact::Number(503),
        Field::Flags => text("UF,URX"),
        Field::Attempts => Fact::Number(2),
        Field::Duration => Fact::Number(250_000),
        Field::Received => Fact::Number(12),
        Field::Sent => Fact::Number(0),
        Field::RequestId => text("7f"),
    }
}

#[test]
fn what_is_taken() {
    let table = [
        ("", true),
        ("  \n ", true),
        ("service=shop/checkout status>=500", true),
        ("service=shop/checkout:8080", true),
        ("service=shop/check", false),
        ("service^=shop/check", true),
        ("service!=shop/checkout", false),
        ("status=503", true),
        ("status!=503", false),
        ("status=5xx", true),
        ("status!=5xx", false),
        ("status=4xx", false),
        ("status < 503", false),
        ("status<= 503", true),
        ("method=post", true),
        ("host=checkout.SHOP host$=.Shop", true),
        ("path^=/pay path*=\"\\\"now\\\"\"", true),
        ("path=/Pay", false),
        ("flags=URX", true),
        ("flags=UR", false),
        ("flags!=UH", true),
        ("flags=\"\"", false),
        ("flags*=UR", true),
        ("duration>=250ms duration<0.3s", true),
        ("duration>250ms", false),
        ("duration>1us duration<1m", true),
        ("attempts>1 received=12 sent=0", true),
        // What is not known is not equal to anything.
        ("version=v1", false),
        ("version!=v1", true),
        ("version^=\"\"", false),
        ("not version=v1", true),
        ("source=tokyo or destination=tokyo", true),
        ("source=paris and destination=paris", false),
        ("source=paris destination=paris or status=503", true),
        ("source=paris (destination=paris or status=503)", true),
        ("not (source=paris destination=tokyo)", false),
        ("not not source=paris", true),
        (
            "gateway=paris/gw-1 peer=tokyo/gw-2 endpoint=10.0.0.7:8080 protocol=http/2.0 rule=default request-id=7f",
            true,
        ),
        ("trace-id!=4bf9 workload!=x", true),
    ];
    for (text, expected) in table {
        let filter = Filter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(filter.takes(&fact), expected, "{text}");
        assert_eq!(Filter::parse(&filter.to_string()), Ok(filter.clone()), "{text} is written as {filter}");
    }
}

#[test]
fn what_is_wrong_and_where() {
    let long = "x".repeat(2_049);
    let many = "status=1 ".repeat(33);
    let deep = format!("{}status=1{}", "(".repeat(17), ")".repeat(17));
    let table = [
        ("colour=red", "1:1: `colour` is no field; there are service, source, destination"),
        ("status>=500\n  or stauts=1", "2:6: `stauts` is no field; there are service"),
        ("é=1", "1:1: a field belongs here, not `\\u{e9}`; there are service"),
        ("status=500 or", "1:14: a field belongs here, not the end; there are"),
        ("status=500 and", "1:15: a field belongs here, not the end"),
        ("not", "1:4: a field belongs here, not the end"),
        ("status", "1:7: `status` is compared by one of =, !=, <"),
        ("status 500", "1:8: `status` is compared by one of"),
        ("status=", "1:8: a value of `status` belongs here"),
        ("status==500", "1:8: a value of `status` belongs here"),
        ("status=many", "1:8: `status` is a number, and `many` is none"),
        ("status=6xx", "1:8: a class of statuses is 1xx to 5xx, after = or !="),
        ("status>5xx", "1:8: a class of statuses is"),
        ("status^=5", "1:9: `status` is a number: compare it by =, !=, <, <=, > or >="),
        ("path>=/a", "1:7: `path` is a text: compare it by =, !=, ^=, $= or *="),
        ("duration>250", "1:10: `250` is no time: write for example 250ms"),
        ("duration>1e9s", "1:10: `1e9s` is no time"),
        ("duration>-1s", "1:10: `-1s` is no time"),
        ("sent>-1", "1:6: `sent` is a number, and `-1` is none"),
        ("path=/a?x=1", "1:10: write a value with this character in it as \"…\""),
        ("path=\"/a", "1:6: there is no second \" for this one"),
        ("path=\"\\n\"", "1:7: after \\ comes \" or \\"),
        ("(status=500", "1:1: there is no `)` for this `(`"),
        ("status=500)", "1:11: there is no `(` for this `)`"),
        ("status=500 ()", "1:13: a field belongs here, not `)`"),
        (&long, "1:1: a filter has at most 2048 bytes"),
        (&many, "1:289: a filter has at most 32 comparisons"),
        (&deep, "1:17: at most 16 levels of `(` and `not` are understood"),
    ];
    for (text, expected) in table {
        let error = Filter::parse(text).expect_err(text).to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
        assert!(!error.contains("field;") || error.ends_with("request-id, trace-id"), "all fields are named: {error}");
    }
}

#[test]
fn filters_are_put_together() {
    let equal = |field, value| Filter::equals(field, value).unwrap();
    let of = equal(Field::Source, "paris").or(equal(Field::Destination, "paris"));
    let all = Filter::parse("status>=500 or flags=UH").unwrap().and(equal(Field::Service, "shop/web")).and(of);
    assert_eq!(all.to_string(), "(status>=500 or flags=UH) service=shop/web (source=paris or destination=paris)");
    assert_eq!(Filter::default().and(Filter::default()), Filter::default());
    assert_eq!(Filter::default().and(equal(Field::Path, "/a b")).to_string(), "path=\"/a b\"");
    assert_eq!(Filter::default().or(equal(Field::Path, "/")), Filter::default(), "all, or some of them");
    assert!(Filter::equals(Field::Status, "ok").is_err());
}

#[test]
fn names_of_fields_are_their_own() {
    let names: std::collections::BTreeSet<&str> = Field::ALL.iter().map(|(_, name, _)| *name).collect();
    assert_eq!(names.len(), Field::ALL.len());
    for (field, name, what) in Field::ALL {
        assert_eq!((field.name(), Field::of(name)), (name, Some(field)));
        assert!(!what.is_empty() && !["and", "or", "not"].contains(&name));
    }
}

fn filters() -> impl Strategy<Value = Filter> {
    let operators = prop_oneof![Just("="), Just("!="), Just("<"), Just(">="), Just("^="), Just("$="), Just("*=")];
    let value = prop_oneof!["[0-9]{1,6}", "[0-9]{1,5}(us|ms|s)", "[1-5]xx", ".{0,8}"];
    let test = (0..Field::ALL.len(), operators, value).prop_filter_map("fits", |(field, operator, value)| {
        let field = Field::ALL[field].0;
        let operator = super::test::Operator::ALL.iter().find(|(_, text)| *text == operator).unwrap().0;
        Test::read(field, operator, &value).ok().map(|test| Node::Is(field, test))
    });
    let node = test.prop_recursive(4, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(Node::All),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Node::Any),
            inner.prop_map(|node| Node::Not(Box::new(node))),
        ]
    });
    node.prop_map(|node| Filter(Some(node)))
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_as_the_same(filter in filters()) {
        prop_assert_eq!(Filter::parse(&filter.to_string()), Ok(filter));
    }

    #[test]
    fn nothing_panics(text in ".{0,60}") {
        if let Ok(filter) = Filter::parse(&text) {
            filter.takes(&fact);
            prop_assert_eq!(Filter::parse(&filter.to_string()), Ok(filter));
        }
    }

    /// Words of the language in any order find what random characters do not.
    #[test]
    fn nothing_of_its_own_words_panics(words in prop::collection::vec(
        prop_oneof![Just("status"), Just("path"), Just("="), Just(">="), Just("("), Just(")"), Just("not"), Just("or"), Just("and"),
            Just(" "), Just("\""), Just("\\"), Just("5xx"), Just("1"), Just("é"), Just("\n"), Just("duration"), Just("9ms")], 0..24)) {
        let text = words.concat();
        if let Ok(filter) = Filter::parse(&text) {
            filter.takes(&fact);
            prop_assert_eq!(Filter::parse(&filter.to_string()), Ok(filter));
        }
    }
}
