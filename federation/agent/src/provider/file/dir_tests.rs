use std::time::Duration;

use archipelago_base::durable;

use super::{super::hold::SETTLE, *};

fn service(name: &str) -> String {
    format!(
        "apiVersion: archipelago.dev/v1alpha1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {{ port: 80 }}\n"
    )
}

fn names(look: &Look) -> Vec<String> {
    match look {
        Look::Changed { catalog, .. } => catalog.services.keys().map(|key| key.name.to_string()).collect(),
        other => panic!("{other:?}"),
    }
}

fn dir(path: &Path) -> ServiceDir {
    ServiceDir::new(path, &Catalog::default())
}

/// Moments far enough apart that whatever was written before has settled.
struct Later(Instant);

impl Later {
    fn new() -> Self {
        Self(Instant::now())
    }

    fn next(&mut self) -> Instant {
        self.0 += SETTLE + Duration::from_secs(1);
        self.0
    }
}

/// Writes a file in place and lets it age, so that it is believed at the next look.
fn write_long_ago(path: &Path, text: &[u8]) {
    fs::write(path, text).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(60);
    fs::File::options().append(true).open(path).unwrap().set_modified(long_ago).unwrap();
}

#[test]
fn a_broken_file_keeps_its_last_good_state() {
    let temp = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| write_long_ago(&temp.path().join(name), text.as_bytes());
    let mut dir = dir(temp.path());
    let now = Instant::now();
    assert_eq!(names(&dir.look(now).unwrap()), Vec::<String>::new());

    write("a.yaml", &service("web"));
    write("b.yaml", &service("cart"));
    write("notes.txt", "not YAML: [");
    assert_eq!(names(&dir.look(now).unwrap()), ["cart", "web"]);
    assert_eq!(dir.look(now).unwrap(), Look::Unchanged);

    // Broken: the other file still changes.
    write("a.yaml", "apiVersion: [");
    write("b.yaml", &service("basket"));
    let look = dir.look(now).unwrap();
    assert_eq!(names(&look), ["basket", "web"]);
    let Look::Changed { problems, .. } = &look else { panic!() };
    assert!(problems[0].file.ends_with("a.yaml") && problems[0].line == 1, "{problems:?}");
    assert_eq!(dir.look(now).unwrap(), Look::Unchanged);

    // Binary, then repaired, then deleted.
    write_long_ago(&temp.path().join("a.yaml"), b"\xff\xfe");
    assert_eq!(names(&dir.look(now).unwrap()), ["basket", "web"]);
    write("a.yaml", &service("store"));
    assert_eq!(names(&dir.look(now).unwrap()), ["basket", "store"]);
    fs::remove_file(temp.path().join("a.yaml")).unwrap();
    assert_eq!(names(&dir.look(now).unwrap()), ["basket"]);
    fs::remove_dir_all(temp.path()).unwrap();
    assert!(dir.look(now).is_err());
}

#[test]
fn a_service_claimed_by_two_files_stays_with_the_first() {
    let temp = tempfile::tempdir().unwrap();
    let (mut dir, now) = (dir(temp.path()), Instant::now());
    write_long_ago(&temp.path().join("a.yaml"), service("web").as_bytes());
    assert_eq!(names(&dir.look(now).unwrap()), ["web"]);
    write_long_ago(&temp.path().join("b.yaml"), service("web").as_bytes());
    let look = dir.look(now).unwrap();
    assert_eq!(names(&look), ["web"]);
    let Look::Changed { problems, .. } = &look else { panic!() };
    assert!(problems[0].message.contains("already given"), "{problems:?}");
}

const TWO: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  port: 8080
  endpoints:
    - address: 127.0.0.1:8081
      version: v1
    - address: 127.0.0.1:8082
      version: v22
  healthCheck:
    http: /healthz
---
apiVersion: archipelago.dev/v1alpha1
kind: ServiceExport
metadata: { name: web, namespace: shop }
";

/// Cut at any byte, the file may be broken, valid, or blank: what it said before stays, at every one of them.
#[test]
fn a_file_that_is_written_in_place_withdraws_nothing_wherever_it_is_cut() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("web.yaml");
    let mut later = Later::new();
    let mut dir = dir(temp.path());
    write_long_ago(&file, TWO.as_bytes());
    let now = later.next();
    let Look::Changed { catalog: whole, .. } = dir.look(now).unwrap() else { panic!() };
    assert!(whole.services.values().all(|service| service.exported && service.ports[0].endpoints.len() == 2));
    let mut valid = 0;
    for cut in 0..TWO.len() {
        fs::write(&file, &TWO[..cut]).unwrap();
        valid += usize::from(parse("web.yaml", &TWO.as_bytes()[..cut]).is_ok());
        match dir.look(now).unwrap() {
            Look::Unchanged => {}
            Look::Changed { catalog, .. } => assert_eq!(catalog, whole, "cut at {cut}"),
            Look::Refused(problems) => panic!("cut at {cut}: {problems:?}"),
        }
        assert!(dir.next_look().is_some(), "cut at {cut}");
    }
    assert!(valid > 40, "the test is about cuts that still parse; {valid} do");

    // Whole again, and only then something new: an endpoint less.
    let less = TWO.replace("    - address: 127.0.0.1:8082\n      version: v22\n", "");
    fs::write(&file, &less).unwrap();
    dir.look(now).unwrap();
    let Look::Changed { catalog, .. } = dir.look(later.next()).unwrap() else { panic!() };
    assert!(catalog.services.values().all(|service| service.ports[0].endpoints.len() == 1));
    assert_eq!(dir.next_look(), None);
}

#[test]
fn an_emptied_file_is_believed_after_a_while_and_a_deleted_one_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let (one, two) = (temp.path().join("one.yaml"), temp.path().join("two.yaml"));
    let mut later = Later::new();
    let mut dir = dir(temp.path());
    write_long_ago(&one, service("web").as_bytes());
    write_long_ago(&two, service("cart").as_bytes());
    let now = later.next();
    assert_eq!(names(&dir.look(now).unwrap()), ["cart", "web"]);
    fs::write(&one, "").unwrap();
    assert_eq!(names(&dir.look(now).unwrap()), ["cart", "web"]);
    fs::remove_file(&two).unwrap();
    assert_eq!(names(&dir.look(now).unwrap()), ["web"]);
    assert_eq!(names(&dir.look(later.next()).unwrap()), Vec::<String>::new());
}

#[test]
fn a_file_that_is_moved_here_or_says_that_it_ends_counts_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("web.yaml");
    let (mut dir, now) = (dir(temp.path()), Instant::now());
    fs::write(&file, format!("{}...\n", service("web"))).unwrap();
    assert_eq!(names(&dir.look(now).unwrap()), ["web"]);
    // Written elsewhere at another tick of the file system's clock, as a slow disk would have it, then moved.
    let elsewhere = temp.path().join(".web.new");
    durable::write(&elsewhere, service("store").as_bytes(), 0o644).unwrap();
    let a_moment_ago = SystemTime::now() - Duration::from_millis(100);
    fs::File::options().append(true).open(&elsewhere).unwrap().set_modified(a_moment_ago).unwrap();
    fs::rename(&elsewhere, &file).unwrap();
    assert_eq!(names(&dir.look(now).unwrap()), ["store"]);
}

#[test]
fn after_a_restart_a_file_that_is_being_written_is_what_it_was() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("web.yaml");
    let mut later = Later::new();
    write_long_ago(&file, TWO.as_bytes());
    let Look::Changed { catalog: before, .. } = dir(temp.path()).look(later.next()).unwrap() else { panic!() };
    for text in ["", &TWO[..TWO.len() / 2], "\u{1}: ["] {
        fs::write(&file, text).unwrap();
        let mut dir = ServiceDir::new(temp.path(), &before);
        let Look::Changed { catalog, .. } = dir.look(Instant::now()).unwrap() else { panic!("{text}") };
        assert_eq!(catalog, before, "{text}");
    }
    // Without a last good state there is nothing to stand in, and the directory does not count as read.
    let mut dir = dir(temp.path());
    let Look::Changed { catalog, .. } = dir.look(Instant::now()).unwrap() else { panic!() };
    assert!(catalog.services.is_empty() && !catalog.read);
}
