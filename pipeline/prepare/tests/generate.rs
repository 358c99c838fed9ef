//! `pipeline generate`: the real binary against a stub of an OpenAI-compatible server that misbehaves, kills included.

mod http_stub;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use http_stub::{Answer, Request, Server};
use serde_json::{Value, json};
use vela_prepare::{GenerateKind, ImageFacts, LabelledBox, parse_pairs};

const TALK: &str = "Question:\nWhat is in the picture?\n===\nAnswer:\nIt is number {n}.\n===\nQuestion:\nWhere is it?\n===\nAnswer:\nOn the table.\n===\n";
const LONG: &str =
    "The picture shows number {n} on a wooden table, and behind it a window through which the evening sun falls.";

/// The number in the last message: `A photo of thing 17.`
fn number(request: &Request) -> usize {
    let body: Value = serde_json::from_slice(&request.body).expect("JSON");
    let last = body["messages"].as_array().expect("messages").last().expect("one")["content"]
        .as_str()
        .expect("text")
        .to_owned();
    last.split(|letter: char| !letter.is_ascii_digit())
        .find(|part| !part.is_empty())
        .expect("a number")
        .parse()
        .expect("a number")
}

fn completion(text: &str, finish_reason: &str) -> Answer {
    let message = json!({"role": "assistant", "content": text});
    let usage = json!({"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1000});
    let body = json!({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}], "usage": usage});
    Answer::of(200, "Content-Type: application/json\r\n", body.to_string().as_bytes())
}

fn talk(n: usize) -> Answer {
    completion(&TALK.replace("{n}", &n.to_string()), "stop")
}

struct Place {
    root: tempfile::TempDir,
}

impl Place {
    /// `num` records with one caption and one box each.
    fn new(num: usize) -> Self {
        let record = |n: usize| {
            let instances = json!([{"category": "thing", "bbox": [0.1, 0.2, 0.3, 0.4]}]);
            json!({"id": format!("{n:04}"), "image": format!("{n:04}.jpg"), "captions": [format!("A photo of thing {n}.")], "instances": instances})
        };
        let place = Self { root: tempfile::tempdir().expect("temp folder") };
        place.write("facts.jsonl", &(0..num).map(|n| record(n).to_string() + "\n").collect::<String>());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).expect("file");
    }

    fn command(&self, server: &Server, kind: &str, more: &[&str]) -> Command {
        self.command_to(server, kind, "out.jsonl", more)
    }

    fn command_to(&self, server: &Server, kind: &str, output: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.env("NO_PROXY", "*").stdin(Stdio::null()).args(["generate", "--json", "--kind", kind]);
        if !more.contains(&"--model") {
            command.args(["--model", "stub"]);
        }
        command
            .args(["--endpoint", &server.url("v1"), "--first-wait", "10ms", "--input"])
            .arg(self.path("facts.jsonl"));
        command.arg("--output").arg(self.path(output)).args(more);
        command
    }

    fn run(&self, server: &Server, more: &[&str]) -> Output {
        self.command(server, "conversation", more).output().expect("the binary starts")
    }

    fn spawn(&self, server: &Server, more: &[&str]) -> Child {
        let mut command = self.command(server, "conversation", more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
    }

    fn report(&self, server: &Server, code: i32, more: &[&str]) -> Value {
        report(&self.run(server, more), code)
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(name)).expect("file");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Numbers of the records whose answers are in the cache.
    fn cached(&self) -> BTreeSet<usize> {
        let text = fs::read_to_string(self.path("out.jsonl.cache")).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let lines = whole.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter_map(|line| line["id"].as_str()?.parse().ok()).collect()
    }

    /// Rejects by the number of their record.
    fn causes(&self) -> BTreeMap<u64, String> {
        let rejects = self.lines("out.jsonl.rejects");
        rejects
            .iter()
            .map(|line| (line["record"].as_u64().expect("a number"), line["cause"].as_str().expect("text").to_owned()))
            .collect()
    }
}

fn report(output: &Output, code: i32) -> Value {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|fault| panic!("{fault}: {output:?}"))
}

fn asked(server: &Server) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    server.requests().iter().for_each(|request| *counts.entry(number(request)).or_default() += 1);
    counts
}

/// How often this number was asked for before.
fn earlier(counts: &std::sync::Mutex<BTreeMap<usize, usize>>, n: usize) -> usize {
    let mut counts = counts.lock().expect("no panic");
    let count = counts.entry(n).or_default();
    *count += 1;
    *count - 1
}

#[test]
fn every_way_a_server_fails_is_tried_again_or_named() {
    let counts = std::sync::Mutex::new(BTreeMap::new());
    let body = |text: &str| Answer::of(200, "", text.as_bytes());
    let server = Server::start(move |request| {
        let n = number(request);
        let is_first = earlier(&counts, n) == 0;
        let text = TALK.replace("{n}", &n.to_string());
        match n {
            1 if is_first => Answer::of(429, "Retry-After: 1\r\n", b"slow down"),
            2 if is_first => Answer::of(500, "", b"oh"),
            3 if is_first => Answer(vec![]),
            4 if is_first => body("{\"choices\": [{\"mess"),
            5 if is_first => body("{\"choices\": []}"),
            6 => body(&json!({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).to_string()),
            7 => talk(n).after(Duration::from_secs(2)),
            8 => body("{\"unexpected\": true}"),
            9 => Answer::of(400, "", b"{\"error\": {\"message\": \"context too long\"}}"),
            10 => completion("I'm sorry, I can't help with that.", "stop"),
            11 => completion(&text.replace("On the table.", "The caption does not say."), "stop"),
            12 => completion(&format!("{text}Question:\nWhy is it there?\n===\nAnswer:\nBecause som"), "length"),
            13 => completion(&text[..60], "length"),
            14 => completion("What a nice photo!", "stop"),
            15 => completion("", "stop"),
            16 => completion(
                &format!("Sure! Here it is:\r\n\r\n{}", text.replace('\n', "\r\n").trim_end_matches("===\r\n")),
                "stop",
            ),
            17 => talk(n).dripping(37, Duration::from_millis(5)),
            _ => talk(n),
        }
    });
    let place = Place::new(20);
    let output = place.run(&server, &["--retries", "2", "--timeout", "600ms", "--max-reject", "1"]);
    let report = report(&output, 0);
    let causes = place.causes();
    let expected = [
        (7, "timeout", 3),
        (8, "bad_response", 3),
        (9, "http_400", 1),
        (10, "refusal", 1),
        (11, "names_source", 1),
        (13, "cut_short", 1),
        (14, "bad_grammar", 1),
        (15, "empty_answer", 1),
    ];
    let requests = asked(&server);
    for (n, cause, num) in expected {
        assert_eq!(causes.get(&n).map(String::as_str), Some(cause), "{n}: {output:?}");
        assert_eq!(requests[&(n as usize)], num, "{n}");
    }
    assert_eq!(causes.len(), expected.len(), "{causes:?}");
    for n in 1..=5 {
        assert_eq!(requests[&n], 2, "{n} was asked for again");
    }
    let raw = |n: u64| {
        place.lines("out.jsonl.rejects").into_iter().find(|line| line["record"] == n).expect("a reject")["raw"].clone()
    };
    assert_eq!((raw(14), raw(7)), (json!("What a nice photo!"), Value::Null), "nothing of an answer is lost");
    let samples = place.lines("out.jsonl");
    let ids: Vec<usize> =
        samples.iter().map(|sample| sample["id"].as_str().expect("an id").parse().expect("a number")).collect();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5, 6, 12, 16, 17, 18, 19], "in the order of the input");
    for (n, sample) in ids.iter().zip(&samples) {
        let turns = sample["conversations"].as_array().expect("turns");
        assert_eq!(turns.len(), 4, "{n}: a half pair is dropped");
        assert_eq!(turns[0], json!({"from": "human", "value": "<image>\nWhat is in the picture?"}));
        assert_eq!(turns[1], json!({"from": "gpt", "value": format!("It is number {n}.")}));
    }
    let count = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{key}: {report}"));
    assert_eq!((count("records"), count("samples"), count("left"), count("cached")), (20, 12, 0, 0));
    assert_eq!(count("requests"), requests.values().sum::<usize>() as u64);
    assert!(count("estimated_tokens") > 0 && count("lost_tokens") > 0, "{report}");
    assert!(report["seconds"].as_f64().expect("a number") >= 1.0, "Retry-After was waited for");

    let before = fs::read(place.path("out.jsonl")).expect("file");
    let again = place.report(&server, 0, &["--retries", "0", "--timeout", "600ms", "--max-reject", "1"]);
    let new = asked(&server).into_iter().filter(|(n, num)| requests[n] != *num).map(|(n, _)| n).collect::<Vec<_>>();
    assert_eq!(new, [7, 8, 9], "what was answered is not asked again, rejected or not");
    assert_eq!((again["cached"].as_u64(), again["samples"].as_u64()), (Some(17), Some(12)));
    assert_eq!(fs::read(place.path("out.jsonl")).expect("file"), before);
}

#[test]
fn killed_in_the_middle_no_answer_is_paid_for_twice() {
    let server = Server::start(|request| {
        let n = number(request);
        talk(n).after(Duration::from_millis(30 + 15 * (n as u64 % 5)))
    });
    let place = Place::new(120);
    for round in 1..=3 {
        let mut child = place.spawn(&server, &["--concurrency", "4"]);
        let started = Instant::now();
        while place.cached().len() < round * 25 && started.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("killed");
        assert_eq!(child.wait().expect("ended").code(), None, "it was killed in the middle");
        assert!(!place.path("out.jsonl").exists(), "the output gets its name at the end");
        assert!((round * 25..120).contains(&place.cached().len()));
        // What a kill within a write leaves behind.
        let torn = [fs::read(place.path("out.jsonl.cache")).expect("cache"), b"{\"key\":\"0123".to_vec()].concat();
        fs::write(place.path("out.jsonl.cache"), torn).expect("torn");
    }
    let (known, before) = (place.cached(), asked(&server));
    let report = place.report(&server, 0, &[]);
    assert_eq!((report["samples"].as_u64(), report["damaged_lines"].as_u64()), (Some(120), Some(0)), "{report}");
    assert_eq!(report["cached"].as_u64(), Some(known.len() as u64));
    for n in &known {
        assert_eq!(asked(&server)[n], before[n], "{n} was answered before");
    }
    let paid_twice: usize = asked(&server).values().map(|num| num - 1).sum();
    assert!(paid_twice <= 3 * 4, "only what was on its way when the process died: {paid_twice}");
    let whole = Place::new(120);
    whole.report(&server, 0, &["--concurrency", "1"]);
    assert_eq!(fs::read(whole.path("out.jsonl")).expect("file"), fs::read(place.path("out.jsonl")).expect("file"));
}

#[cfg(unix)]
#[test]
fn an_interrupt_waits_for_what_is_paid_and_the_same_command_continues() {
    let server = Server::start(|request| talk(number(request)).after(Duration::from_millis(60)));
    let place = Place::new(60);
    let child = place.spawn(&server, &["--concurrency", "4"]);
    let started = Instant::now();
    while place.cached().len() < 8 && started.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(signal.success());
    let output = child.wait_with_output().expect("ended");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("run the same command again"), "{told}");
    assert_eq!(place.cached().len(), server.requests().len(), "every answer that was asked for is kept");
    assert!(server.requests().len() < 60);
    place.report(&server, 0, &[]);
    assert!(asked(&server).values().all(|num| *num == 1));
}

#[test]
fn the_token_budget_is_not_exceeded_and_counts_what_was_paid_before() {
    let server = Server::start(|request| talk(number(request)));
    let place = Place::new(30);
    let limits = ["--token-budget", "9500", "--max-tokens", "200", "--concurrency", "3"];
    let report = place.report(&server, 0, &limits);
    let count = |report: &Value, key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{key}: {report}"));
    let spent = count(&report, "prompt_tokens") + count(&report, "completion_tokens");
    assert!((5_000..=9_500).contains(&spent), "{report}");
    assert_eq!(spent, 1000 * count(&report, "samples"));
    assert_eq!(count(&report, "samples") + count(&report, "left"), 30);
    assert_eq!(place.lines("out.jsonl").len() as u64, count(&report, "samples"), "what was paid for is written");
    let again = place.report(&server, 0, &limits);
    assert_eq!(
        (count(&again, "requests"), count(&again, "samples")),
        (0, count(&report, "samples")),
        "the budget is of all runs"
    );
    let raised = place.report(&server, 0, &["--max-tokens", "200"]);
    assert_eq!(
        (count(&raised, "samples"), count(&raised, "cached"), count(&raised, "left")),
        (30, count(&report, "samples"), 0)
    );
    assert!(asked(&server).values().all(|num| *num == 1));
}

#[test]
fn all_three_kinds_are_read_by_a_build_as_they_are() {
    let server = Server::start(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let n = number(request);
        match body.contains("Describe the photo in detail") {
            true => completion(&LONG.replace("{n}", &n.to_string()), "stop"),
            false => talk(n),
        }
    });
    let place = Place::new(12);
    fs::create_dir(place.path("gen")).expect("folder");
    for kind in ["conversation", "detail", "complex"] {
        let mut command = place.command_to(&server, kind, &format!("gen/{kind}.jsonl"), &["--seed", "5"]);
        report(&command.output().expect("the binary starts"), 0);
    }
    let detail = place.lines("gen/detail.jsonl");
    let questions: BTreeSet<&str> =
        detail.iter().filter_map(|line| line["conversations"][0]["value"].as_str()).collect();
    assert!(questions.len() > 3 && questions.iter().all(|question| question.starts_with("<image>\n")), "{questions:?}");
    let images = place.path("images");
    fs::create_dir(&images).expect("folder");
    let photo = vela_processor::codec::encode_png(&[9; 12], 2, 2);
    (0..12).for_each(|n| fs::write(images.join(format!("{n:04}.jpg")), &photo).expect("file"));
    let mut audit = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    audit.args(["audit", "--source", "llava", "--decode", "--json", "--input"]).arg(place.path("gen"));
    let audited = report(&audit.arg("--images").arg(&images).output().expect("the binary starts"), 0);
    assert_eq!(
        (audited["records"].as_u64(), &audited["rejected"]),
        (Some(36), &json!({})),
        "cache and rejects are no inputs"
    );
}

#[test]
fn a_wrong_key_stops_at_once_and_is_never_shown() {
    let server = Server::start(|request| {
        let key = request.headers.get("authorization").cloned().unwrap_or_default();
        match key.as_str() {
            "Bearer sk-good" => talk(number(request)),
            _ => Answer::of(401, "", format!("no such key: {key}").as_bytes()),
        }
    });
    let place = Place::new(40);
    let with_key = |key: &str| {
        let mut command = place.command(&server, "conversation", &["--api-key-env", "STUB_KEY", "--concurrency", "2"]);
        command.env("STUB_KEY", key).env("RUST_LOG", "trace").output().expect("the binary starts")
    };
    let output = with_key("sk-bad-secret");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("http_401") && !told.contains("secret"), "{told}");
    assert!(server.requests().len() <= 2, "nobody is asked forty times with a wrong key");
    let output = with_key("");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let output = with_key("sk-good");
    assert_eq!(report(&output, 0)["samples"].as_u64(), Some(40));
    for name in ["out.jsonl", "out.jsonl.cache", "out.jsonl.rejects"] {
        assert!(!fs::read_to_string(place.path(name)).expect("file").contains("sk-"), "{name}");
    }
    assert!(!String::from_utf8_lossy(&output.stderr).contains("sk-good"));
}

#[test]
fn a_server_that_is_gone_ends_the_run_and_keeps_what_was_answered() {
    let server = Server::start(|request| match number(request) {
        n if n < 5 => talk(n),
        _ => Answer::of(503, "", b"gone"),
    });
    let place = Place::new(200);
    let output = place.run(&server, &["--retries", "1", "--concurrency", "4"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("http_503") && told.contains("run again to continue"), "{told}");
    assert!(server.requests().len() < 60, "{} requests", server.requests().len());
    assert_eq!(place.cached(), (0..5).collect());
    assert!(!place.path("out.jsonl").exists() && !place.path("out.jsonl.partial").exists());
}

#[test]
fn equal_requests_are_paid_once_and_a_second_run_changes_nothing() {
    let counts = std::sync::Mutex::new(BTreeMap::new());
    // No two answers are equal.
    let server = Server::start(move |request| {
        std::thread::sleep(Duration::from_millis(50));
        let (n, before) = (number(request), earlier(&counts, number(request)));
        completion(&TALK.replace("{n}", &format!("{n}, asked {before} times before")), "stop")
    });
    let place = Place::new(3);
    let lines = fs::read_to_string(place.path("facts.jsonl")).expect("file");
    let again = |copy: usize| lines.replace("\"id\":\"", &format!("\"id\":\"{copy}-"));
    place.write("facts.jsonl", &(0..4).map(again).collect::<String>());
    let report = place.report(&server, 0, &["--concurrency", "8"]);
    assert_eq!((report["samples"].as_u64(), report["cached"].as_u64()), (Some(12), Some(9)), "{report}");
    assert_eq!(asked(&server), (0..3).map(|n| (n, 1)).collect());
    let first = fs::read(place.path("out.jsonl")).expect("dialogues");
    fs::remove_file(place.path("out.jsonl")).expect("removed");
    assert_eq!(place.report(&server, 0, &["--concurrency", "8"])["cached"], 12);
    assert_eq!(fs::read(place.path("out.jsonl")).expect("dialogues"), first);
}

#[test]
fn records_that_the_server_refuses_are_rejects_however_many_follow_one_another() {
    let server = Server::start(|request| match number(request) {
        n if n < 20 => Answer::of(400, "", b"the prompt is too long"),
        n => talk(n),
    });
    let place = Place::new(24);
    let report = place.report(&server, 3, &["--concurrency", "2"]);
    assert_eq!(report["rejected"], json!({"http_400": 20}), "{report}");
    assert_eq!(report["samples"], 4);
}

#[test]
fn records_that_cannot_be_asked_about_are_rejects_and_the_rest_goes_on() {
    let server = Server::start(|request| talk(number(request)));
    let place = Place::new(4);
    let mut lines = fs::read_to_string(place.path("facts.jsonl")).expect("file");
    let twice = lines.lines().next().expect("a line").to_owned();
    lines.push_str(&format!("{{broken\n{}\n{twice}\n", r#"{"id":"x","image":"x.jpg","captions":[]}"#));
    place.write("facts.jsonl", &lines);
    let report = place.report(&server, 3, &[]);
    assert_eq!(report["rejected"], json!({"broken_json": 1, "duplicate_id": 1, "no_captions": 1}), "{report}");
    assert_eq!((report["samples"].as_u64(), place.causes().into_keys().collect::<Vec<_>>()), (Some(4), vec![4, 5, 6]));
    let (cache, elsewhere) = (place.path("out.jsonl.cache").display().to_string(), ["--limit", "3", "--cache"]);
    let mut limited =
        place.command_to(&server, "conversation", "limited.jsonl", &[&elsewhere[..], &[cache.as_str()]].concat());
    let limited: Value = serde_json::from_slice(&limited.output().expect("the binary starts").stdout).expect("JSON");
    assert_eq!((limited["records"].as_u64(), limited["cached"].as_u64()), (Some(3), Some(3)));
}

#[test]
fn finished_dialogues_are_never_replaced_by_others_or_by_fewer() {
    let server = Server::start(|request| talk(number(request)));
    let place = Place::new(6);
    // The folder of the output is made, as the examples of the documentation expect.
    let run =
        |kind: &str, more: &[&str]| place.command_to(&server, kind, "gen/new/c.jsonl", more).output().expect("starts");
    assert_eq!(report(&run("conversation", &[]), 0)["samples"].as_u64(), Some(6));
    let read = || {
        ["c.jsonl", "c.jsonl.rejects", "c.jsonl.settings"]
            .map(|name| fs::read(place.path("gen/new").join(name)).expect(name))
    };
    let finished = read();
    let budget = ["--token-budget", "1"];
    for (kind, more, said) in [
        ("detail", &budget[..], "--kind conversation"),
        ("conversation", &["--seed", "9", "--token-budget", "1"], "--seed 0"),
        ("conversation", &["--model", "other", "--token-budget", "1"], "--model stub"),
        ("conversation", &["--temperature", "0.1"], "--temperature 0.7"),
        ("conversation", &["--max-tokens", "7"], "--max-tokens 1024"),
        ("conversation", &["--limit", "2"], "4 dialogues"),
    ] {
        let output = run(kind, more);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {told}");
        assert!(told.contains("c.jsonl") && told.contains(said), "{more:?}: {told}");
        assert_eq!(read(), finished, "{more:?}");
    }
    assert_eq!(server.requests().len(), 6, "nobody is asked in vain");

    // A list that became longer, and one that lost a record.
    let lines = fs::read_to_string(place.path("facts.jsonl")).expect("facts");
    place.write("facts.jsonl", &format!("{lines}{}\n", lines.lines().next().expect("a line").replace("0000", "0009")));
    assert_eq!(report(&run("conversation", &[]), 0)["samples"].as_u64(), Some(7));
    place.write("facts.jsonl", &lines);
    let output = run("conversation", &budget);
    assert!(
        output.status.code() == Some(2) && String::from_utf8_lossy(&output.stderr).contains("1 dialogues"),
        "{output:?}"
    );
    assert_eq!(place.lines("gen/new/c.jsonl").len(), 7);
    // Of unknown settings.
    fs::remove_file(place.path("gen/new/c.jsonl.settings")).expect("there");
    assert_eq!(run("conversation", &[]).status.code(), Some(2));
    fs::write(place.path("gen/new/c.jsonl"), "").expect("emptied");
    assert_eq!(report(&run("detail", &["--max-reject", "1"]), 0)["records"].as_u64(), Some(6));
}

#[test]
fn wrong_use_exits_with_2_and_asks_nobody() {
    let server = Server::start(|request| talk(number(request)));
    let place = Place::new(2);
    let input = place.path("facts.jsonl").to_string_lossy().into_owned();
    let none = place.path("none.json").to_string_lossy().into_owned();
    for (flags, said) in [
        (&["--instances", input.as_str()][..], "--source coco"),
        (&["--temperature", "9"], "--temperature"),
        (&["--cache", input.as_str()], "--input"),
        (&["--instances", none.as_str(), "--source", "coco"], "--instances"),
        (&["--api-key-env", "NO_SUCH_VARIABLE"], "--api-key-env"),
        (&["--concurrency", "0"], "--concurrency"),
    ] {
        let output = place.run(&server, flags);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {told}");
        assert!(told.contains(said), "{told}");
    }
    let output = place.command(&server, "detail", &["--source", "coco"]).output().expect("the binary starts");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--instances"), "{output:?}");
    assert_eq!(server.requests().len(), 0);
}

/// The published prompts, or `None` with a word where they are absent.
#[expect(clippy::print_stderr, reason = "a test that skips says so")]
fn published(test: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let data = std::env::var("VELA_DATA").map_or_else(|_| beside(), PathBuf::from);
    if !data.join("llava/prompts").is_dir() {
        eprintln!("skipped: {test}, no ../shared/data");
        return None;
    }
    Some(data)
}

fn files(folder: &Path, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for kind in fs::read_dir(folder).expect("folder").flatten() {
        for file in fs::read_dir(kind.path()).expect("folder").flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if name.ends_with(ending) {
                let kind = kind.file_name().to_string_lossy().into_owned();
                found.push((kind, fs::read_to_string(file.path()).expect("text")));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

#[test]
fn published_answers_are_in_the_grammar() {
    let Some(data) = published("published_answers_are_in_the_grammar") else { return };
    for (kind, text) in files(&data.join("llava/prompts"), "_conv.txt") {
        let num = text.lines().filter(|line| *line == "Question:").count();
        match kind.as_str() {
            "detail_description" => assert_eq!(num, 0),
            _ => assert_eq!(parse_pairs(&text).expect("in the grammar").len(), num, "{kind}"),
        }
    }
}

/// A context read back into what it was made from.
fn facts_of(context: &str) -> ImageFacts {
    let (captions, boxes) = context.split_once("\n\n").unwrap_or((context, ""));
    let object = |line: &str| {
        let (category, corners) = line.split_once(": ").expect("an object");
        let corners: [f64; 4] = serde_json::from_str(corners).expect("four numbers");
        LabelledBox { category: category.to_owned(), corners }
    };
    ImageFacts {
        id: "1".into(),
        image: "1.jpg".into(),
        captions: captions.lines().map(str::to_owned).collect(),
        boxes: boxes.lines().map(object).collect(),
    }
}

#[test]
fn published_contexts_are_what_the_builder_makes_of_their_facts() {
    let Some(data) = published("published_contexts_are_what_the_builder_makes_of_their_facts") else { return };
    for (kind, text) in files(&data.join("llava/prompts"), "_caps.txt") {
        let facts = facts_of(&text);
        let kind = match kind.as_str() {
            "conversation" => GenerateKind::Conversation,
            "detail_description" => GenerateKind::Detail,
            _ => GenerateKind::Complex,
        };
        assert_eq!(kind.context(&facts), text);
        assert_eq!(kind.shows_boxes(), !facts.boxes.is_empty());
    }
}

/// Every published record becomes a request, and what GPT-4 once answered about such images passes the rules.
#[test]
fn published_records_and_answers_go_all_the_way() {
    let Some(data) = published("published_records_and_answers_go_all_the_way") else { return };
    let rows = fs::read_to_string(data.join("llava/coco2014_val_gpt4_qa_30x3.jsonl")).expect("text");
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let facts = fs::read_to_string(data.join("llava/caps_boxes_coco2014_val_80.jsonl")).expect("text");
    for (kind, published) in [("complex", "complex"), ("detail", "detail")] {
        let answers: Vec<(String, String)> = rows
            .iter()
            .filter(|row| row["type"] == published)
            .map(|row| {
                (
                    row["instruction"].as_str().expect("text").to_owned(),
                    row["output"].as_str().expect("text").to_owned(),
                )
            })
            .collect();
        let server = Server::start(move |request| {
            let (question, answer) = &answers[request.earlier % answers.len()];
            completion(
                &if kind == "detail" {
                    answer.clone()
                } else {
                    format!("Question:\n{question}\n===\nAnswer:\n{answer}")
                },
                "stop",
            )
        });
        let place = Place::new(0);
        place.write("facts.jsonl", &facts);
        let output = place.command(&server, kind, &[]).output().expect("the binary starts");
        let report = report(&output, 0);
        assert_eq!((report["samples"].as_u64(), &report["rejected"]), (Some(80), &json!({})), "{output:?}");
    }
    let coco = data.join("coco_mini/annotations");
    let server = Server::start(|_| completion(LONG, "stop"));
    let place = Place::new(0);
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command
        .env("NO_PROXY", "*")
        .args(["generate", "--json", "--model", "m", "--kind", "detail", "--source", "coco", "--input"]);
    command.arg(coco.join("captions_val2017.json")).arg("--instances").arg(coco.join("instances_val2017.json"));
    command.args(["--endpoint", &server.url("v1"), "--output"]).arg(place.path("out.jsonl"));
    assert_eq!(report(&command.output().expect("the binary starts"), 0)["samples"].as_u64(), Some(79));
    let with_boxes = server.requests().into_iter().filter(|request| {
        let body: Value = serde_json::from_slice(&request.body).expect("JSON");
        body["messages"].as_array().and_then(|all| all.last()?["content"].as_str().map(|text| text.contains("\n\n")))
            == Some(true)
    });
    assert!(with_boxes.count() > 60);
}
