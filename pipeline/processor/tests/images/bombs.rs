//! Decompression bombs: small files that claim or unpack to much are refused before memory is taken.
//!
//! A counting allocator measures the most bytes held at once by this thread's call.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;

use vela_processor::codec;

use crate::golden;

/// Counts what the calling thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // A thread that ends allocates after its counters are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

#[expect(unsafe_code, reason = "a counting allocator can be written in no other way")]
// SAFETY: every call is passed on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `body` holds beyond what was held before.
fn peak_of<T>(body: impl FnOnce() -> T) -> (T, isize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = body();
    (result, PEAK.get() - before)
}

/// Far below what any of the bombs unpacks to, far above what reading a header takes.
const SMALL_BYTES: isize = 4 << 20;

fn with_bytes(mut file: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

fn read(name: &str) -> Vec<u8> {
    fs::read(golden("files").join(name)).unwrap()
}

/// Name, file, cause: every format claims more pixels than the limit.
fn claims() -> Vec<(&'static str, Vec<u8>)> {
    let jpeg = read("jpeg_sampling_2x2.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    let progressive = read("jpeg_mode_RGB_progressive.jpg");
    let late_frame = progressive.windows(2).position(|pair| pair == [0xFF, 0xC2]).unwrap();
    let png = read("png_mode_RGB.png");
    let gif = read("gif_mode_P.gif");
    let descriptor = gif.iter().rposition(|&byte| byte == b',').unwrap_or(0);
    let webp = read("webp_RGB_60.webp");
    let lossless = read("webp_RGB_lossless.webp");
    let bmp = read("bmp_mode_RGB.bmp");
    vec![
        ("jpeg", with_bytes(jpeg, frame + 5, &[0xFF, 0xDC, 0xFF, 0xDC])),
        ("progressive jpeg", with_bytes(progressive, late_frame + 5, &[0xFF, 0xDC, 0xFF, 0xDC])),
        ("png", with_bytes(png, 16, &[0, 1, 0, 0, 0, 1, 0, 0])),
        ("gif screen", with_bytes(gif.clone(), 6, &[0xFF; 4])),
        ("gif frame", with_bytes(gif, descriptor + 1, &[0xFF; 8])),
        ("webp", with_bytes(webp, 26, &[0xFF, 0x3F, 0xFF, 0x3F])),
        ("lossless webp", with_bytes(lossless, 21, &[0xFE, 0xBF, 0xFF, 0x0F])),
        ("bmp", with_bytes(bmp, 18, &[0x60, 0xEA, 0, 0, 0x60, 0xEA, 0, 0])),
        ("tiff", read("tiff_huge.tiff")),
    ]
}

#[test]
fn pictures_over_the_limit_are_refused_in_every_format_before_memory_is_taken() {
    for (name, file) in claims() {
        let (result, peak) = peak_of(|| codec::decode_rgb(&file, name));
        let error = result.expect_err(name);
        assert_eq!(error.cause(), "image_too_large", "{name}: {error}");
        assert!(peak < SMALL_BYTES, "{name}: {peak} bytes");
        assert_eq!(codec::check_header(&file, name).expect_err(name).cause(), "image_too_large");
    }
}

#[test]
fn text_and_profiles_of_a_png_are_never_unpacked_whole() {
    // Both hold eight megabytes of zeros beside a small picture, which is sound.
    for name in ["png_ztxt_bomb.png", "png_iccp_bomb.png"] {
        let file = read(name);
        let (result, peak) = peak_of(|| codec::decode_rgb(&file, name));
        assert_eq!(result.unwrap().width, 21);
        assert!(peak < SMALL_BYTES, "{name}: {peak} bytes");
    }
}

#[test]
fn the_counter_counts() {
    let (_, peak) = peak_of(|| vec![1u8; 5 << 20]);
    assert!((5 << 20..6 << 20).contains(&peak), "{peak}");
}
