use super::*;

fn read_text(text: &str) -> Result<Vec<CreateVmRequest>, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.yaml");
    std::fs::write(&path, text).unwrap();
    read_now(&path)
}

fn refusal(text: &str) -> String {
    let failure = read_text(text).expect_err(text);
    assert_eq!(failure.exit(), 2, "{failure}");
    failure.text()
}

const FULL: &str = "
name: web
backend: sim
start: true
config:
  cpu: {vcpu_count: 2}
  memory: {sizeBytes: 256MiB, hotplugEnabled: true, max_size_bytes: 1 GiB}
  storage:
    - path: /srv/root.raw
      read_only: true
  metadata: {size_bytes: 256MiB, tier: \"1\"}
";

#[test]
fn both_spellings_and_units_are_read() {
    let requests = read_text(FULL).unwrap();
    let request = &requests[0];
    assert_eq!((request.name.as_str(), request.start, requests.len()), ("web", true, 1));
    assert_eq!(request.config.memory.size_bytes, 256 << 20);
    assert_eq!(request.config.memory.max_size_bytes, 1 << 30);
    assert_eq!(request.config.cpu.vcpu_count, 2);
    // The owner's own words stay as they are.
    assert_eq!(request.config.metadata["size_bytes"], "256MiB");
}

#[test]
fn json_is_read_with_tabs_and_in_a_row() {
    let requests =
        read_text("{\n\t\"name\": \"a\",\n\t\"config\": {\"memory\": {\"sizeBytes\": \"1GiB\"}}\n}\n{\"name\": \"b\"}")
            .unwrap();
    assert_eq!(requests.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(requests[0].config.memory.size_bytes, 1 << 30);
    // YAML's flow style looks the same at first.
    assert_eq!(read_text("{name: a}").unwrap()[0].name, "a");
}

#[test]
fn many_documents_are_many_vms() {
    let requests = read_text("---\nname: a\n---\nname: b\n---\n").unwrap();
    assert_eq!(requests.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let text = refusal("name: a\n---\nname: b\nconfig: {memroy: {}}\n");
    assert!(text.contains("document 2") && text.contains("config.memroy") && text.contains("\"memory\""), "{text}");
}

#[test]
fn what_is_not_understood_is_named() {
    let cases = [
        ("config: {storage: [{path: /a}, {pth: /b}]}", &["config.storage[1].pth", "did you mean \"path\"?"][..]),
        ("config: {memory: {size_bytes: 256MiBs}}", &["config.memory.size_bytes", "256MiBs", "MiB"]),
        ("config: {cpu: {vcpu_count: two}}", &["config.cpu.vcpu_count", "two"]),
        ("config: {metadata: {a: 1}}", &["config.metadata.a", "is not a string"]),
        ("start: yes please", &["start", "true, false"]),
        ("name: a\nname: b", &["duplicate"]),
        ("{\"name\": \"a\", \"name\": \"b\"}", &["duplicate"]),
        ("1: x", &["no text"]),
        ("name: !secret x", &["tags"]),
        ("name: [", &["vm.yaml"]),
        ("just words", &["is not an object"]),
        ("", &["no document"]),
        ("---\n", &["no document"]),
    ];
    for (text, needles) in cases {
        let told = refusal(text);
        for needle in needles {
            assert!(told.contains(needle), "{text}: {told}");
        }
    }
}

#[test]
fn a_file_that_explodes_is_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..30 {
        let items = vec![format!("*a{}", i - 1); 10].join(", ");
        bomb.push_str(&format!("a{i}: &a{i} [{items}]\n"));
    }
    refusal(&bomb);
    refusal(&"[".repeat(100_000));
    refusal(&"{\"config\":".repeat(100_000));
    refusal(&"- ".repeat(100_000));
    refusal(&"? ".repeat(100_000));
    refusal(&"---\nname: a\n".repeat(1001));
    refusal(&" ".repeat(5 << 20));
}

#[test]
fn a_missing_file_is_named() {
    let failure = read_now(Path::new("/nonexistent/vm.yaml")).expect_err("it does not exist");
    assert_eq!(failure.exit(), 2);
    assert!(failure.text().contains("/nonexistent/vm.yaml"), "{}", failure.text());
}
