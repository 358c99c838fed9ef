//! Inputs that a target should know.

use vela_prepare::Source;
use vela_processor::codec::{encode_jpeg, encode_png};

use crate::targets::FORMATS;

/// The seeds of a target.
pub(crate) fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "cap_seg" => texts(&[
            "{'global_caption': '一只猫', 'local_caption': ['草地', \"it's\", None]}",
            "{'a': [1, -2.5e3, True, False, None, (1,), b'x'], \"b\": {}}",
            r"'\x41\u4e00\U0001F600\n\'' 'joined' r'\raw'",
        ]),
        "image" => images(),
        "template" => texts(&[
            "What is it?\nA cat.\nAnd now?\nA dog.",
            "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}\0Hi\nHello",
            "{{ raise_exception('no') }}\0Hi\nHello",
            "{%}{{ m }} %}\0Hi\nHello",
            "{% set x = namespace(n=0) %}{% for m in messages %}{% set x.n = x.n + 1 %}{{ m['content'] | trim }}{% endfor %}\0Hi\nHello",
        ]),
        _ => FORMATS
            .iter()
            .enumerate()
            .flat_map(|(at, (source, ending))| with_choice(at, &records(*source, ending)))
            .collect(),
    }
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn with_choice(choice: usize, contents: &[Vec<u8>]) -> Vec<Vec<u8>> {
    contents.iter().map(|content| [&[choice as u8], content.as_slice()].concat()).collect()
}

fn images() -> Vec<Vec<u8>> {
    let pixels: Vec<u8> = (0..24 * 16 * 3).map(|at| (at * 7 % 251) as u8).collect();
    let gif = b"GIF89a\x02\0\x02\0\x80\0\0\xff\0\0\0\0\xff!\xf9\x04\x01\0\0\0\0,\0\0\0\0\x02\0\x02\0\0\x02\x03\x44\x02\x05\0;";
    let bmp =
        [b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\x18\0".as_slice(), &[0; 28]].concat();
    vec![encode_jpeg(&pixels, 24, 16, 90), encode_png(&pixels, 24, 16), gif.to_vec(), bmp]
}

fn records(source: Source, ending: &str) -> Vec<Vec<u8>> {
    let human = r#"{"id":"a","image":"a.jpg","conversations":[{"from":"human","value":"<image>\nWhat?"},{"from":"gpt","value":"A cat."}]}"#;
    let user = r#"{"messages":[{"role":"user","content":"<image>What?"},{"role":"assistant","content":"A cat."}],"images":["a.jpg"]}"#;
    let parts = r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"a.jpg"}},{"type":"text","text":"What?"}]},{"role":"assistant","content":"A cat."}]}"#;
    let captions = r#"[{"url":"","image_id":"a.jpg","caption":["一","二"]}]"#;
    let coco = r#"{"images":[{"id":1,"file_name":"a.jpg","width":9,"height":9}],"categories":[{"id":1,"name":"cat"}],"annotations":[{"id":1,"image_id":1,"caption":"A cat."}]}"#;
    let boxes = r#"{"images":[{"id":1,"file_name":"a.jpg","width":9,"height":9}],"categories":[{"id":1,"name":"cat"}],"annotations":[{"id":1,"image_id":1,"category_id":1,"bbox":[1,2,3,4]}]}"#;
    let problems = r#"{"1":{"question":"Which?","choices":["a","b"],"answer":1,"hint":"","image":null,"lecture":"L","solution":"S","split":"train"}}"#;
    let tsv = "index\timage\tquestion\tA\tB\tanswer\n0\t\tWhich?\tx\ty\tA\n1\t0\t\"a \"\"b\"\"\"\tx\ty\tB\n";
    match (source, ending) {
        (_, "parquet") => vec![b"PAR1\x15\x04\x15PAR1".to_vec(), b"PAR1".to_vec()],
        (_, "tar") => vec![tar(&[("a.jpg", b"\xff\xd8\xff"), ("a.json", human.as_bytes()), ("b.txt", b"A cat.")])],
        (Source::Llava | Source::Minimind, "jsonl") => texts(&[&format!("{human}\n{human}\n")]),
        (Source::Llava, _) => texts(&[&format!("[{human},\n{human}]")]),
        (Source::AiChallenger, _) => texts(&[captions]),
        (Source::Coco, _) => texts(&[coco, boxes]),
        (Source::Sharegpt, _) => texts(&[&format!("[{user}]"), user]),
        (Source::Openai, _) => {
            texts(&[parts, r#"[{"role":"user","content":"Hi"},{"role":"assistant","content":"Ho"}]"#])
        }
        (Source::Scienceqa, _) => texts(&[problems]),
        _ => texts(&[tsv]),
    }
}

/// A tar of these members.
fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in members {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(header);
        bytes.extend(*content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}
