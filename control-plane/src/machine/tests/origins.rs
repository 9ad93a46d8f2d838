//! Who wrote a resource: operators, or the users of a cluster.

use archipelago_model::resource::Resource;

use super::*;

fn split(name: &str, content: &str) -> ResourceWrite {
    ResourceWrite { key: Some(key("TrafficSplit", "shop", name)), canonical: content.to_owned().into() }
}

/// Written in this cluster; empty: by an operator.
fn from(origin: &str, action: Action) -> Action {
    let Action::ApplyResources(apply) = action else { panic!("not a write of resources") };
    Action::ApplyResources(ApplyResources { origin: origin.into(), ..apply })
}

fn taking_over(action: Action) -> Action {
    let Action::ApplyResources(apply) = action else { panic!("not a write of resources") };
    Action::ApplyResources(ApplyResources { takes_over: true, ..apply })
}

fn origin_of(machine: &Machine, name: &str) -> Option<String> {
    let key = Key::from(key("TrafficSplit", "shop", name));
    machine.state().resources().get(&key).map(|stored| stored.origin.clone())
}

#[test]
fn what_one_wrote_another_neither_writes_nor_deletes() {
    let mut machine = machine();
    let story = [
        (from("paris", upsert(vec![split("web", "a")])), "@1.0 TrafficSplit shop/web Created"),
        (from("paris", upsert(vec![split("web", "a")])), "@1.0 TrafficSplit shop/web Unchanged"),
        (
            upsert(vec![split("web", "b")]),
            "@1.0 TrafficSplit shop/web was written in cluster paris: change it there, or delete it there first",
        ),
        // The same content is a claim all the same, and one of many refuses all.
        (
            from("tokyo", upsert(vec![split("new", "a"), split("web", "a")])),
            "@1.0 TrafficSplit shop/web was written in cluster paris: change it there, or delete it there first",
        ),
        (
            delete("TrafficSplit", "shop", "web"),
            "@1.0 TrafficSplit shop/web was written in cluster paris: change it there, or delete it there first",
        ),
        (upsert(vec![split("mine", "a")]), "@2.0 TrafficSplit shop/mine Created"),
        (
            from("paris", delete("TrafficSplit", "shop", "mine")),
            "@2.0 TrafficSplit shop/mine was written by an operator: change it with meshctl, or delete it there first",
        ),
        (from("paris", upsert(vec![split("web", "c")])), "@3.0 TrafficSplit shop/web Updated"),
        (taking_over(upsert(vec![split("web", "c")])), "@4.0 TrafficSplit shop/web Updated"),
        (
            from("paris", upsert(vec![split("web", "d")])),
            "@4.0 TrafficSplit shop/web was written by an operator: change it with meshctl, or delete it there first",
        ),
        (taking_over(from("tokyo", upsert(vec![split("web", "d")]))), "@5.0 TrafficSplit shop/web Updated"),
        (taking_over(delete("TrafficSplit", "shop", "web")), "@6.0 TrafficSplit shop/web Deleted"),
    ];
    for (number, (action, expected)) in story.into_iter().enumerate() {
        let outcome = apply(&mut machine, &command(&number.to_string(), action));
        assert_eq!(line(&machine, &outcome), expected, "{number}");
    }
    assert_eq!((origin_of(&machine, "new"), origin_of(&machine, "mine")), (None, Some(String::new())));
}

#[test]
fn origins_survive_in_the_image_and_pass_to_operators_with_their_cluster() {
    let mut machine = machine();
    apply(&mut machine, &command("a", upsert(vec![cluster("paris", "eu-west"), cluster("tokyo", "ap-northeast")])));
    apply(&mut machine, &command("b", from("paris", upsert(vec![split("web", "a")]))));
    apply(&mut machine, &command("c", from("tokyo", upsert(vec![split("cart", "a")]))));
    let image = machine.snapshot()();
    let mut restored = super::machine();
    restored.restore(&image).unwrap();
    assert_eq!(restored.state(), machine.state());
    assert_eq!(origin_of(&restored, "web").as_deref(), Some("paris"));

    apply(&mut machine, &command("d", delete("Cluster", "", "paris")));
    assert_eq!(origin_of(&machine, "web").as_deref(), Some(""));
    assert_eq!(origin_of(&machine, "cart").as_deref(), Some("tokyo"));
    let outcome = apply(&mut machine, &command("e", delete("TrafficSplit", "shop", "web")));
    assert!(line(&machine, &outcome).ends_with("TrafficSplit shop/web Deleted"));
}

#[test]
fn no_cluster_fills_the_federation_with_policies() {
    let mut machine = machine();
    let many = |from: usize, count: usize| (from..from + count).map(|n| split(&format!("s{n}"), "a")).collect();
    apply(&mut machine, &command("a", from("paris", upsert(many(0, 9_999)))));
    let outcome = apply(&mut machine, &command("b", from("paris", upsert(many(9_999, 2)))));
    assert_eq!(line(&machine, &outcome), "@1.0 cluster paris has 10000 policies, which is the most it may have");
    apply(&mut machine, &command("c", from("paris", upsert(many(9_990, 10)))));
    assert_eq!(machine.state().revision(), 2);
    apply(&mut machine, &command("d", from("tokyo", upsert(many(20_000, 1)))));
    assert_eq!(machine.state().revision(), 3, "another's bound is its own");
}

#[test]
fn ownership_needs_a_format_that_knows_it_and_so_do_clusters_that_may_write_policies() {
    let plain = upsert(vec![split("web", "a")]);
    assert_eq!(format::required(&plain), format::BASE);
    assert_eq!(format::required(&from("paris", plain.clone())), format::PORTS);
    assert_eq!(format::required(&taking_over(plain)), format::PORTS);
    let resource = |spec: &str| {
        let json = format!(
            r#"{{"apiVersion":"archipelago.dev/v1alpha1","kind":"Cluster","metadata":{{"name":"paris"}},"spec":{spec}}}"#
        );
        let resource = Resource::from_json(&json).unwrap();
        assert_eq!(resource.to_json(), json, "what is not said is not written, so that older members can read it");
        resource
    };
    let silent = resource(r#"{"region":"eu-west"}"#);
    let allowed = resource(r#"{"region":"eu-west","policies":true}"#);
    assert_eq!(format::of_resources([&silent]), 0);
    let resources_format = format::of_resources([&silent, &allowed]);
    let action = Action::ApplyResources(ApplyResources { resources_format, ..ApplyResources::default() });
    assert_eq!(
        (format::required(&action), format::feature(&action)),
        (format::PORTS, "a Cluster that may write policies (`policies: true`)")
    );
    let limits = Resource::from_json(
        r#"{"apiVersion":"archipelago.dev/v1alpha1","kind":"BackendPolicy","metadata":{"name":"web","namespace":"shop"},"spec":{"service":"web","limits":{"uploadIdle":"none"}}}"#,
    );
    let resources_format = format::of_resources([&limits.unwrap()]);
    let action = Action::ApplyResources(ApplyResources { resources_format, ..ApplyResources::default() });
    assert_eq!((format::required(&action), format::feature(&action)), (format::BACKEND_POLICIES, "a BackendPolicy"));
    assert!(!format::permits(format::PORTS, &action), "a member that knows no such kind would stop at it");
}
