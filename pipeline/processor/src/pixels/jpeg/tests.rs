//! The library alone and the takeover, on the same files: the same pixels, the same verdicts.
//!
//! Seeded: a failing case prints what makes it again. `VELA_MUTATIONS` sets the number of cases.

use std::fs;
use std::path::Path;

use vela_types::SeedStream;

use super::*;
use crate::pixels::machine::WITHOUT_VNNI;

const MAX_PIXELS: u64 = 1 << 20;

/// Samples and verdict; of a file that is refused, the verdict alone.
type Outcome = Result<Vec<u8>, String>;

/// How far the takeover came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    NotTaken,
    GaveUp,
    Finished,
}

fn by_library(file: &[u8]) -> Outcome {
    let mut picture = Picture::open(file, MAX_PIXELS).map_err(|fault| format!("{fault:?}"))?;
    picture.decompress.may_take_over = false;
    read(picture)
}

fn read(picture: Picture<'_>) -> Outcome {
    let mut samples = Vec::new();
    let result = picture.read(|rows| samples.extend_from_slice(rows));
    result.map(|()| samples).map_err(|fault| format!("{fault:?}"))
}

fn course(file: &[u8]) -> Course {
    let Ok(mut picture) = Picture::open(file, MAX_PIXELS) else { return Course::NotTaken };
    let _ = picture.rows(|_| {});
    match &picture.decompress.takeover {
        None => Course::NotTaken,
        Some(takeover) if takeover.gave_up() => Course::GaveUp,
        Some(_) => Course::Finished,
    }
}

fn compare(file: &[u8], what: &str) -> Course {
    let alone = by_library(file);
    for without_vnni in [false, true] {
        WITHOUT_VNNI.set(without_vnni);
        let taken_over = Picture::open(file, MAX_PIXELS).map_err(|fault| format!("{fault:?}")).and_then(read);
        let is_same = taken_over == alone;
        assert!(is_same, "{what}: {:?}, {:?}", taken_over.map(|all| all.len()), alone.map(|all| all.len()));
    }
    course(file)
}

/// A machine without the instructions, or a library without vector code, takes nothing over.
fn takes_over() -> bool {
    course(&encode(&[128; 8 * 8 * 3], 8, 8, 90)) != Course::NotTaken
}

struct Style {
    extent: (usize, usize),
    channels: usize,
    quality: u8,
    /// Of the first component; the others have one sample an MCU.
    sampling: (i32, i32),
    restart_interval: u32,
    optimised: bool,
    progressive: bool,
}

impl Style {
    fn drawn(draws: &mut SeedStream) -> Self {
        let mut below = |limit: u64| draws.below(limit);
        Self {
            extent: (1 + below(90) as usize, 1 + below(90) as usize),
            channels: [1, 3, 3, 3, 4][below(5) as usize],
            quality: [1, 10, 50, 75, 90, 95, 100][below(7) as usize],
            sampling: [(1, 1), (2, 1), (2, 2), (1, 2), (4, 1), (2, 2), (1, 4)][below(7) as usize],
            restart_interval: [0, 0, 1, 3, 20][below(5) as usize],
            optimised: below(2) == 0,
            progressive: below(8) == 0,
        }
    }

    /// Smooth shapes, edges and noise.
    fn samples(&self, draws: &mut SeedStream) -> Vec<u8> {
        let noise = [1, 8, 64, 256][draws.below(4) as usize];
        let (step, edge) = (1 + draws.below(9) as usize, 1 + draws.below(30) as usize);
        let (width, height) = self.extent;
        let mut samples = Vec::with_capacity(width * height * self.channels);
        for at in 0..width * height * self.channels {
            let (x, y) = (at / self.channels % width, at / self.channels / width);
            let shape = x * step + y * (at % self.channels + 1) + if x / edge % 2 == 0 { 0 } else { 120 };
            samples.push((shape as u64 + draws.below(noise)) as u8);
        }
        samples
    }

    fn encode(&self, samples: &[u8]) -> Vec<u8> {
        let mut compress = Compress::new();
        let info = &mut *compress.info;
        (info.image_width, info.image_height) = (self.extent.0 as u32, self.extent.1 as u32);
        info.input_components = self.channels as c_int;
        info.in_color_space =
            [ffi::JCS_GRAYSCALE, ffi::JCS_GRAYSCALE, ffi::JCS_RGB, ffi::JCS_RGB, ffi::JCS_CMYK][self.channels];
        // SAFETY: as in `Compress::run`.
        unsafe {
            ffi::jpeg_c_set_int_param(info, ffi::JINT_COMPRESS_PROFILE, ffi::JCP_FASTEST as c_int);
            ffi::jpeg_set_defaults(info);
            ffi::jpeg_set_quality(info, c_int::from(self.quality), 1);
            if self.progressive {
                ffi::jpeg_simple_progression(info);
            }
        }
        info.restart_interval = self.restart_interval;
        info.optimize_coding = self.optimised.into();
        // SAFETY: the defaults have made at least one component.
        let first = unsafe { &mut *info.comp_info };
        (first.h_samp_factor, first.v_samp_factor) = self.sampling;
        for at in 1..info.num_components as usize {
            // SAFETY: as many components as the defaults have made.
            let other = unsafe { &mut *info.comp_info.add(at) };
            (other.h_samp_factor, other.v_samp_factor) = (1, 1);
        }
        // SAFETY: as in `Compress::run`.
        unsafe { ffi::jpeg_start_compress(info, 1) };
        for row in samples.chunks_exact(self.extent.0 * self.channels) {
            // SAFETY: the row is as long as the settings announce.
            unsafe { ffi::jpeg_write_scanlines(info, &row.as_ptr(), 1) };
        }
        // SAFETY: all rows are written.
        unsafe { ffi::jpeg_finish_compress(info) };
        mem::take(&mut compress.destination.encoded)
    }
}

fn drawn_file(draws: &mut SeedStream) -> Vec<u8> {
    let style = Style::drawn(draws);
    let samples = style.samples(draws);
    style.encode(&samples)
}

/// The files that Pillow is compared on: every sampling, order of scans and colour.
fn golden_files() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/processor/files");
    let entries = fs::read_dir(folder).expect("the goldens are part of the repository");
    let paths = entries.map(|entry| entry.expect("a readable folder").path());
    let mut files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "jpg"))
        .map(|path| (path.display().to_string(), fs::read(&path).expect("a readable file")))
        .collect();
    files.sort();
    files
}

/// One to four faults anywhere, or a cut.
fn damage(file: &mut Vec<u8>, draws: &mut SeedStream) {
    for _ in 0..=draws.below(4) {
        let length = file.len() as u64;
        if length < 4 {
            return;
        }
        let at = draws.below(length) as usize;
        let run = 1 + draws.below((length - at as u64).min(8)) as usize;
        match draws.below(8) {
            0..=2 => file[at] ^= 1 << draws.below(8),
            3 => file[at..at + run].fill([0, 0xFF, 0xD0 + draws.below(8) as u8][draws.below(3) as usize]),
            4 => file[at] = draws.next_u64() as u8,
            5 => drop(file.drain(at..at + run)),
            6 => {
                let doubled = file[at..at + run].to_vec();
                file.splice(at..at, doubled);
            }
            _ => file.truncate(at.max(2)),
        }
    }
}

fn num_cases() -> u64 {
    std::env::var("VELA_MUTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(3000)
}

#[test]
fn golden_files_are_read_the_same_with_and_without_the_takeover() {
    let files = golden_files();
    assert!(files.len() > 60, "{} files", files.len());
    let courses: Vec<_> = files.iter().map(|(name, file)| compare(file, name)).collect();
    if takes_over() {
        let finished = courses.iter().filter(|&&course| course == Course::Finished).count();
        let not_taken = courses.iter().filter(|&&course| course == Course::NotTaken).count();
        assert!(finished > 30 && not_taken > 20, "{finished} finished, {not_taken} not taken");
    }
}

#[test]
fn sound_files_are_taken_over_to_the_end() {
    for case in 0..num_cases() / 4 {
        let mut draws = SeedStream::new(case ^ 0x1DC7);
        let style = Style::drawn(&mut draws);
        let samples = style.samples(&mut draws);
        let course = compare(&style.encode(&samples), &format!("case {case}"));
        if takes_over() {
            let expected = if style.progressive { Course::NotTaken } else { Course::Finished };
            assert_eq!(course, expected, "case {case}");
        }
    }
}

#[test]
fn damaged_files_end_as_the_library_ends_them() {
    let golden = golden_files();
    let mut courses = Vec::new();
    for case in 0..num_cases() {
        let mut draws = SeedStream::new(case ^ 0xDA3A_6ED0);
        let mut file = match draws.below(2) {
            0 => golden[draws.below(golden.len() as u64) as usize].1.clone(),
            _ => drawn_file(&mut draws),
        };
        damage(&mut file, &mut draws);
        courses.push(compare(&file, &format!("case {case}")));
    }
    if takes_over() {
        for course in [Course::NotTaken, Course::GaveUp, Course::Finished] {
            let count = courses.iter().filter(|&&other| other == course).count();
            assert!(count * 20 > courses.len(), "{course:?}: {count}");
        }
    }
}

/// Where the steps of a block's first row stand in a table, which is written in zigzag.
const FIRST_ROW: [usize; 8] = [0, 1, 5, 6, 14, 15, 27, 28];

#[test]
fn coefficients_beyond_all_bounds_wrap_and_saturate_as_the_librarys() {
    let mut courses = Vec::new();
    for case in 0..num_cases() / 4 {
        let mut draws = SeedStream::new(case ^ 0xB0D5);
        let mut file = drawn_file(&mut draws);
        // Quantisation steps of up to 255 to each of the tables; the bytes behind `DQT`, its length and the slot. Mostly those of
        // the first row are 1: with large ones there the takeover leaves the file to the library.
        let tables: Vec<_> =
            file.windows(2).enumerate().filter(|(_, pair)| *pair == [0xFF, 0xDB]).map(|(at, _)| at).collect();
        for at in tables {
            let end = file.len().min(at + 5 + 64);
            let (steps, num_steps) = (&mut file[at + 5..end], end - at - 5);
            steps.fill_with(|| [1, 16, 128, 255][draws.below(4) as usize]);
            if case % 4 > 0 {
                FIRST_ROW.into_iter().filter(|at| *at < num_steps).for_each(|at| steps[at] = 1);
            }
        }
        courses.push(compare(&file, &format!("case {case}")));
    }
    if takes_over() {
        let finished = courses.iter().filter(|&&course| course == Course::Finished).count();
        assert!(finished * 2 > courses.len(), "{finished} of {} were read by our own way", courses.len());
    }
}
