//! A gateway that a person has started and wired by hand, as fixtures/targets/README.md describes
//! it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use gauntlet_harness::subject::{Capability, TargetFile};
use gauntlet_suites::cases;
use tempfile::TempDir;

/// The hash of the key in the manifest of the README.
const KEY: &str = "257028aae5746db5f4bf536251e54899f5ffa4cb21efd715276683c97a7f71d1";

/// A bundled gateway that runs at a URL. Dropping it ends it.
struct Served {
    process: Child,
    url: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        // a process that has ended needs no signal
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a gateway with the aliases `solo` and `pair` at these stubs, with the timeouts of the
/// manifest in the README, and with its key.
fn serve(folder: &TempDir, [p1, p2]: &[String; 2]) -> Served {
    let config = format!(
        r#"
[server]
listen = "127.0.0.1:0"
[store]
url = "sqlite::memory:"
[[auth.keys]]
tenant = "t"
sha256 = "{KEY}"
[timeouts]
connect_ms = 500
first_token_ms = 1000
idle_ms = 1000
total_ms = 4000
[retry]
max_attempts = 1
[breaker]
failure_threshold = 1000
[[providers]]
name = "p1"
protocol = "openai"
base_url = "http://{p1}/v1"
api_key = "key-of-p1"
[[providers]]
name = "p2"
protocol = "openai"
base_url = "http://{p2}/v1"
api_key = "key-of-p2"
[[models]]
alias = "solo"
candidates = [{{ provider = "p1", model = "m-p1" }}]
[[models]]
alias = "pair"
candidates = [{{ provider = "p1", model = "m-p1" }}, {{ provider = "p2", model = "m-p2" }}]
"#
    );
    let config = file(folder, "gateway.toml", &config);
    let mut process = Command::new("sh")
        .args(["-c", "exec \"$0\" serve --config \"$1\" 2>&1"])
        .args([env!("CARGO_BIN_EXE_gauntlet"), &config])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut log = Vec::new();
    let url = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let url = line
            .split_once("listening on ")
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .map(str::to_string);
        log.push(line);
        url
    });
    let url = url.unwrap_or_else(|| panic!("the gateway is not ready: {log:?}"));
    std::thread::spawn(move || lines.for_each(drop));
    Served { process, url }
}

fn file(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Returns two addresses that were free a moment ago.
fn two_addresses() -> [String; 2] {
    let free = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    free.map(|listener| listener.local_addr().unwrap().to_string())
}

/// Runs the command; returns its exit code, what it wrote, and the verdicts by their ids.
fn run(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, Vec<(String, String)>) {
    let output = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env_remove("GAUNTLET_DATABASE")
        .env_remove("GAUNTLET_REQUIRE")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let record = std::fs::read_to_string(folder.join("report/report.json")).unwrap_or_default();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap_or_default();
    let outcomes = record["outcomes"].as_array().cloned().unwrap_or_default();
    let verdicts = outcomes
        .iter()
        .map(|outcome| {
            let text = |key: &str| outcome[key].as_str().unwrap_or_default().to_string();
            (text("id"), text("verdict"))
        })
        .collect();
    (output.status.code(), text, verdicts)
}

#[test]
fn the_manifest_of_the_readme_examines_a_gateway_with_other_timeouts() {
    let folder = tempfile::tempdir().unwrap();
    let stubs = two_addresses();
    let served = serve(&folder, &stubs);
    let readme = include_str!("../fixtures/targets/README.md");
    let example = readme
        .split("```toml\n")
        .filter_map(|text| text.split("```").next())
        .find(|example| example.contains("[settings.timeouts]"))
        .unwrap();
    let example = example
        .replace("127.0.0.1:9101", &stubs[0])
        .replace("127.0.0.1:9102", &stubs[1]);
    let manifest = file(&folder, "mine.toml", &example);
    let arguments = ["run", "--target", &served.url, "--manifest", &manifest];
    let (code, text, verdicts) = run(folder.path(), &arguments);
    let examined: Vec<_> = verdicts
        .iter()
        .filter(|(_, verdict)| verdict != "not_supported" && verdict != "not_run")
        .collect();
    assert!(
        examined.len() > 20,
        "{} are examined: {text}",
        examined.len()
    );
    let failed: Vec<_> = examined
        .iter()
        .filter(|(_, verdict)| verdict == "failed")
        .collect();
    assert_eq!(failed, Vec::<&&(String, String)>::new(), "{text}");
    assert_eq!(code, Some(0), "{text}");
    // a case that waits for a timeout says which one differs
    let record = std::fs::read_to_string(folder.path().join("report/report.json")).unwrap();
    let differs = "solo needs first_token_ms = 60000, and [settings.timeouts] has 1000";
    assert!(record.contains(differs), "{text}");
}

#[test]
fn the_example_of_the_readme_is_examined_as_it_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report").display().to_string();
    let file = "fixtures/targets/example/gateway.toml";
    let cases = [
        "WIRE-01", "WIRE-03", "TIME-09", "STRM-01", "AUTH-03", "BRKR-01",
    ];
    let start = ["run", "--target", file, "--report", &report];
    let (code, text, _) = run(root, &[&start[..], &cases].concat());
    assert_eq!(code, Some(1), "{text}");
    let record = std::fs::read_to_string(folder.path().join("report/report.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let verdict = |id: &str| {
        let outcomes = record["outcomes"].as_array().into_iter().flatten();
        let mut of_case = outcomes.filter(|outcome| outcome["id"] == id);
        of_case.next().unwrap()["verdict"].clone()
    };
    let verdicts = cases.map(verdict);
    let expected = [
        "passed",
        "passed",
        "passed",
        "failed",
        "passed",
        "not_supported",
    ];
    assert_eq!(verdicts, expected, "{text}");
}

#[test]
fn a_part_of_the_timeouts_and_a_target_file_with_a_url_do_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let stubs = two_addresses();
    let served = serve(&folder, &stubs);
    let listen = format!("[listen]\np1 = \"{}\"\np2 = \"{}\"\n", stubs[0], stubs[1]);
    let rest = format!(
        "capabilities = [\"chat\", \"stream\", \"fallback\"]\n[headers]\n\
         authorization = \"Bearer my-own-key\"\n{listen}[settings.timeouts]\ntotal_ms = 4000\n\
         first_token_ms = 1000\n"
    );
    let manifest = file(&folder, "mine.toml", &format!("name = \"mine\"\n{rest}"));
    let text = format!("name = \"mine\"\nurl = \"{}\"\n{rest}", served.url);
    let target = file(&folder, "target.toml", &text);
    for arguments in [
        vec!["run", "--target", &served.url, "--manifest", &manifest],
        vec!["run", "--target", &target],
    ] {
        let cases = ["WIRE-02", "WIRE-03", "FALL-01"];
        let (code, text, verdicts) = run(folder.path(), &[&arguments[..], &cases].concat());
        assert_eq!(code, Some(0), "{text}");
        let passed = |(_, verdict): &(String, String)| verdict == "passed";
        assert!(
            verdicts.len() == 3 && verdicts.iter().all(passed),
            "{verdicts:?} {text}"
        );
    }
}

#[test]
fn a_gateway_with_one_set_of_timeouts_or_whole_seconds_is_examined_by_all_other_cases() {
    let all: Vec<String> = Capability::ALL
        .iter()
        .filter(|capability| **capability != Capability::TimeoutPerModel)
        .filter(|capability| **capability != Capability::RevocableKeys)
        .map(|capability| format!("\"{capability}\""))
        .collect();
    let refused = |unit: u64| -> Vec<&str> {
        let file = format!(
            "name = \"t\"\ncapabilities = [{}]\n[start]\ncommand = [\"x\"]\n[behaviour]\n\
             timeout_unit_ms = {unit}\n",
            all.join(", ")
        );
        let file = TargetFile::parse(&file, "t.toml").unwrap();
        let target = file.into_target("gauntlet".into()).unwrap();
        cases::all()
            .iter()
            .filter(|case| !case.needs.contains(&Capability::TimeoutPerModel))
            .filter(|case| target.accepts(&(case.spec)()).is_err())
            .map(|case| case.id)
            .collect()
    };
    assert_eq!(refused(1), Vec::<&str>::new());
    assert_eq!(refused(1_000), Vec::<&str>::new());
}
