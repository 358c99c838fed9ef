//! An audit finds what a build would reject, without a processor.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use vela_prepare::{
    AuditConfig, AuditReport, BuildConfig, DemoDataConfig, InputConfig, Reject, Source, audit, build_shards,
    write_demo_data,
};
use vela_processor::ImageCheck;
use vela_runtime::{Progress, Shutdown};

fn look(input: &InputConfig, images: ImageCheck, workers: usize, list: &Path) -> (AuditReport, Vec<Reject>) {
    let config = AuditConfig { images, workers, rejects: Some(list.to_owned()), ..AuditConfig::new(input.clone()) };
    let report = audit(&config, &Progress::hidden(), &Shutdown::new()).expect("audited");
    let lines = fs::read_to_string(list).expect("a list");
    (report, lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
}

#[test]
fn an_audit_of_pixels_finds_what_a_build_rejects_and_one_of_headers_what_begins_wrong() {
    let root = tempfile::tempdir().expect("temp folder");
    let demo = DemoDataConfig { num_train: 40, num_heldout: 1, ..DemoDataConfig::new(root.path().join("demo")) };
    let demo = write_demo_data(&demo).expect("demo data");
    let images = demo.llava.parent().expect("folder").join("images");
    let image = |index: usize| images.join(format!("en_{index:06}.png"));
    let whole = fs::read(image(3)).expect("there");
    fs::write(image(3), &whole[..whole.len() - 30]).expect("cut");
    fs::write(image(5), "not an image").expect("text");
    fs::remove_file(image(8)).expect("gone");
    let text = fs::read_to_string(&demo.llava).expect("there").replacen("\"from\": \"gpt\"", "\"from\": \"cat\"", 1);
    fs::write(&demo.llava, text).expect("written");

    let input = InputConfig::new(Source::Llava, &demo.llava);
    let output = root.path().join("shards");
    let config = BuildConfig::new(vec![input.clone()], &demo.processor, output.to_string_lossy());
    let built = build_shards(&config, &Progress::hidden(), &Shutdown::new()).expect("built");
    let build_list = fs::read_to_string(output.join("rejects.jsonl")).expect("a list");
    let build_list: Vec<Reject> = build_list.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(build_list.len(), 4);

    for workers in [1, 3] {
        let list = root.path().join(format!("audit-{workers}.jsonl"));
        let (report, rejects) = look(&input, ImageCheck::Pixels, workers, &list);
        assert_eq!((report.records, report.images), (40, 36));
        assert_eq!((&report.rejected, &rejects), (&built.rejected, &build_list));
    }
    let (report, _) = look(&input, ImageCheck::Header, 2, &root.path().join("headers.jsonl"));
    let mut expected: BTreeMap<String, u64> = built.rejected.clone();
    let cut = build_list.iter().find(|reject| reject.record == 3).expect("the cut image");
    expected.remove(&cut.cause);
    assert_eq!(report.rejected, expected, "a header says nothing of the end of a file");
    assert_eq!(report.examples.len(), 3);
}

#[test]
fn an_audit_that_is_stopped_says_so_instead_of_a_count() {
    let root = tempfile::tempdir().expect("temp folder");
    let demo = DemoDataConfig { num_train: 40, num_heldout: 1, ..DemoDataConfig::new(root.path().join("demo")) };
    let demo = write_demo_data(&demo).expect("demo data");
    let shutdown = Shutdown::new();
    shutdown.request();
    let config = AuditConfig::new(InputConfig::new(Source::Llava, &demo.llava));
    let told = audit(&config, &Progress::hidden(), &shutdown).expect_err("stopped").to_string();
    assert!(told.contains("of 40 records") && told.contains("again"), "{told}");
}

#[test]
fn the_command_exits_3_above_the_accepted_share_and_2_for_wrong_flags() {
    let root = tempfile::tempdir().expect("temp folder");
    let file = root.path().join("a.jsonl");
    fs::write(&file, "{\"id\": 1, \"image\": \"no.png\", \"conversations\": []}\n").expect("written");
    let run = |rest: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.args(["audit", "--source", "llava", "--json", "--input"]).arg(&file).args(rest);
        let output = command.output().expect("run");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, json) = run(&[]);
    let json: serde_json::Value = serde_json::from_str(json.lines().last().expect("a line")).expect("JSON");
    assert_eq!((code, &json["records"]), (Some(3), &serde_json::json!(1)));
    assert_eq!(json["rejected"].as_object().expect("causes").len(), 1);
    assert_eq!(run(&["--max-reject", "1"]).0, Some(0));
    for wrong in [&["--max-reject", "2"][..], &["--workers", "0"], &["--images", "/nowhere"], &["--limit", "0"]] {
        assert_eq!(run(wrong).0, Some(2), "{wrong:?}");
    }
    let before = fs::read(&file).expect("there");
    let itself = file.to_string_lossy().into_owned();
    for wrong in [itself.as_str(), "/nowhere/rejects.jsonl"] {
        assert_eq!(run(&["--rejects", wrong]).0, Some(2), "{wrong}");
    }
    assert_eq!(fs::read(&file).expect("still there"), before);
}
