//! Every mix in `pipeline/configs` is one that the build takes.

use std::path::Path;

use vela_prepare::{Likeness, Mix, Source};

#[test]
fn every_mix_of_the_repository_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).expect("configs") {
        let path = entry.expect("an entry").path();
        let mix = Mix::read(&path).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()));
        assert!(!mix.inputs.is_empty(), "{}", path.display());
        // Short questions and answers repeat over other images.
        let has_questions = mix.inputs.iter().any(|input| input.source == Source::Finevision);
        assert!(!has_questions || !mix.clean.dedupe.contains(&Likeness::Text), "{}", path.display());
        names.push(path.file_stem().expect("a name").to_string_lossy().into_owned());
    }
    assert!(names.iter().any(|name| name == "llava-instruct-150k"), "{names:?}");
}
