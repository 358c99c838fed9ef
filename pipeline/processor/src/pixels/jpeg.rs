//! libjpeg-turbo by FFI: the one place where its C API is touched.
//!
//! Pillow's settings: the accurate integer DCT, fancy upsampling, block smoothing; libjpeg's own guess of the colour
//! space. Input is a *suspending* source, as Pillow's is: when the bytes end before the picture does, the library
//! reports suspension instead of inventing an end, and the file counts as truncated. A fatal library error unwinds as
//! a Rust panic through the C frames (compiled with `-fexceptions`) and is caught here.
//!
//! Plain scans are brought to samples by code of our own (decision 0009), which leaves to the library whatever is amiss.

#[cfg(target_arch = "x86_64")]
#[deny(unsafe_code)]
mod huffman;
#[cfg(target_arch = "x86_64")]
mod idct;
#[cfg(target_arch = "x86_64")]
#[deny(unsafe_code)]
mod scan;
#[cfg(target_arch = "x86_64")]
mod takeover;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

use std::ffi::{c_int, c_long};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;

use mozjpeg_sys as ffi;

#[cfg(target_arch = "x86_64")]
use takeover::Takeover;

/// Why there are no samples.
#[derive(Debug)]
pub(super) enum Fault {
    Truncated,
    TooLarge { width: u32, height: u32 },
    Unsupported(String),
    Damaged(String),
}

/// Rows decoded before they are handed out: few enough to stay in the cache.
const ROWS_AT_A_TIME: usize = 8;

/// What `jpeg_read_header` returns for a complete header (jpeglib.h).
const HEADER_OK: c_int = 1;

/// The panic payload by which `error_exit` leaves the library.
struct LibraryError(String);

/// Scans beyond this many are refused: a small progressive file may hold thousands, each as slow as a picture.
const MAX_SCANS: c_int = 1000;

/// A JPEG whose header is read.
pub(super) struct Picture<'a> {
    decompress: Decompress<'a>,
    pub(super) width: u32,
    pub(super) height: u32,
    /// Samples per pixel: 1 (gray), 3 (RGB) or 4 (CMYK, ink as the file has it).
    pub(super) channels: usize,
}

impl<'a> Picture<'a> {
    /// Reads the header of a JPEG of at most `max_pixels` pixels: refuses what can be refused before the first pixel.
    pub(super) fn open(bytes: &'a [u8], max_pixels: u64) -> Result<Self, Fault> {
        caught(|| {
            let mut decompress = Decompress::new(bytes);
            let (width, height) = decompress.read_header(max_pixels)?;
            let channels = decompress.choose_output()?;
            Ok(Self { decompress, width, height, channels })
        })
    }

    /// Decodes all rows and hands them out from the top, some at a time.
    pub(super) fn read(mut self, mut take: impl FnMut(&[u8])) -> Result<(), Fault> {
        let mut num_taken = 0;
        let result = self.rows(|rows| {
            num_taken += rows.len();
            take(rows);
        });
        if !self.decompress.gave_up() {
            return result;
        }
        let mut again = Self::open(self.decompress.bytes, u64::MAX)?;
        drop(self);
        again.decompress.may_take_over = false;
        // What the library makes again is not handed out twice.
        again.rows(|rows| {
            let num_known = num_taken.min(rows.len());
            num_taken -= num_known;
            if num_known < rows.len() {
                take(&rows[num_known..]);
            }
        })
    }

    fn rows(&mut self, take: impl FnMut(&[u8])) -> Result<(), Fault> {
        let row_bytes = self.width as usize * self.channels;
        caught(|| self.decompress.run(row_bytes, self.height as usize, take))
    }
}

/// The library tells an error by a panic.
fn caught<T>(body: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| match payload.downcast::<LibraryError>() {
        Ok(error) if error.0.contains("precision") => Err(Fault::Unsupported(error.0)),
        Ok(error) => Err(Fault::Damaged(error.0)),
        Err(other) => resume_unwind(other),
    })
}

/// Encodes RGB rows as baseline 4:2:0 at `quality`.
///
/// # Panics
/// If the rows do not fill the extent or the library refuses it.
pub(crate) fn encode(rgb_hwc: &[u8], width: u32, height: u32, quality: u8) -> Vec<u8> {
    assert_eq!(rgb_hwc.len(), width as usize * height as usize * 3, "RGB rows must fill {width} x {height}");
    let result = catch_unwind(AssertUnwindSafe(|| Compress::new().run(rgb_hwc, width, height, quality)));
    result.unwrap_or_else(|payload| match payload.downcast::<LibraryError>() {
        Ok(error) => panic!("JPEG encoder refused {width} x {height}: {}", error.0),
        Err(other) => resume_unwind(other),
    })
}

struct Decompress<'a> {
    info: Box<ffi::jpeg_decompress_struct>,
    // Boxed so that the addresses that the library holds stay put.
    _errors: Box<ffi::jpeg_error_mgr>,
    source: Box<ffi::jpeg_source_mgr>,
    _progress: Box<ffi::jpeg_progress_mgr>,
    bytes: &'a [u8],
    /// Whether code of our own may bring a plain scan to samples.
    may_take_over: bool,
    #[cfg(target_arch = "x86_64")]
    takeover: Option<Box<Takeover<'a>>>,
}

impl<'a> Decompress<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let mut errors = error_manager();
        let mut source = Box::new(ffi::jpeg_source_mgr {
            next_input_byte: bytes.as_ptr(),
            bytes_in_buffer: bytes.len(),
            init_source: Some(source_nothing),
            fill_input_buffer: Some(source_suspend),
            skip_input_data: Some(source_skip),
            resync_to_restart: Some(ffi::jpeg_resync_to_restart),
            term_source: Some(source_nothing),
        });
        // SAFETY: the struct is plain C data for which all-zero is the state the library expects before creation.
        let mut info: Box<ffi::jpeg_decompress_struct> = unsafe { Box::new(mem::zeroed()) };
        info.common.err = &mut *errors;
        // SAFETY: `info` is zeroed and holds an error manager that outlives it (fields drop after `Drop::drop`).
        unsafe { ffi::jpeg_create_decompress(&mut *info) };
        info.src = &mut *source;
        let mut progress = Box::new(ffi::jpeg_progress_mgr {
            progress_monitor: Some(stop_at_too_many_scans),
            pass_counter: 0,
            pass_limit: 0,
            completed_passes: 0,
            total_passes: 0,
        });
        info.common.progress = &mut *progress;
        Self {
            info,
            _errors: errors,
            source,
            _progress: progress,
            bytes,
            may_take_over: true,
            #[cfg(target_arch = "x86_64")]
            takeover: None,
        }
    }

    /// Columns and rows that the header tells.
    fn read_header(&mut self, max_pixels: u64) -> Result<(u32, u32), Fault> {
        debug_assert_eq!(self.source.bytes_in_buffer, self.bytes.len());
        // SAFETY: created by `new`, with a source over `self.bytes`, which are borrowed for the life of `self`.
        if unsafe { ffi::jpeg_read_header(&mut self.info, 1) } != HEADER_OK {
            return Err(Fault::Truncated);
        }
        let (width, height) = (self.info.image_width, self.info.image_height);
        if u64::from(width) * u64::from(height) > max_pixels {
            return Err(Fault::TooLarge { width, height });
        }
        Ok((width, height))
    }

    fn run(&mut self, row_bytes: usize, num_rows: usize, take: impl FnMut(&[u8])) -> Result<(), Fault> {
        // SAFETY: the header is read and every decompression setting is one of the library's own values.
        if unsafe { ffi::jpeg_start_decompress(&mut self.info) } == 0 {
            return Err(Fault::Truncated);
        }
        self.take_over();
        self.read_rows(row_bytes, num_rows, take)?;
        // SAFETY: all rows are read. False means that the end-of-image marker is missing.
        match unsafe { ffi::jpeg_finish_decompress(&mut self.info) } {
            0 => Err(Fault::Truncated),
            _ => Ok(()),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn take_over(&mut self) {
        if !self.may_take_over {
            return;
        }
        self.takeover = Takeover::new(&self.info, self.bytes).map(Box::new);
        if let Some(takeover) = &mut self.takeover {
            // SAFETY: boxed, and kept as long as `info`.
            unsafe { takeover.install(&mut self.info) };
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn take_over(&mut self) {}

    /// Whether the picture must be read again by the library alone.
    fn gave_up(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let gave_up = self.takeover.as_ref().is_some_and(|takeover| takeover.gave_up());
        #[cfg(not(target_arch = "x86_64"))]
        let gave_up = false;
        gave_up
    }

    fn choose_output(&mut self) -> Result<usize, Fault> {
        let (space, channels) = match self.info.num_components {
            1 => (ffi::JCS_GRAYSCALE, 1),
            3 => (ffi::JCS_RGB, 3),
            4 => (ffi::JCS_CMYK, 4),
            count => return Err(Fault::Unsupported(format!("expected 1, 3 or 4 components, found {count}"))),
        };
        self.info.out_color_space = space;
        self.info.dct_method = ffi::J_DCT_METHOD::JDCT_ISLOW;
        self.info.do_fancy_upsampling = 1;
        self.info.do_block_smoothing = 1;
        Ok(channels)
    }

    fn read_rows(&mut self, row_bytes: usize, num_rows: usize, mut take: impl FnMut(&[u8])) -> Result<(), Fault> {
        let mut rows = vec![0u8; row_bytes * ROWS_AT_A_TIME.min(num_rows)];
        while (self.info.output_scanline as usize) < num_rows {
            let mut pointers = [ptr::null_mut(); ROWS_AT_A_TIME];
            let wanted = ROWS_AT_A_TIME.min(num_rows - self.info.output_scanline as usize);
            pointers
                .iter_mut()
                .zip(rows.chunks_exact_mut(row_bytes))
                .for_each(|(pointer, row)| *pointer = row.as_mut_ptr());
            let made = self.read_some(&mut pointers[..wanted])?;
            take(&rows[..made * row_bytes]);
        }
        Ok(())
    }

    /// Fills the rows pointed at, from the first; returns how many.
    fn read_some(&mut self, rows: &mut [*mut u8]) -> Result<usize, Fault> {
        let mut made = 0;
        while made < rows.len() {
            let left = &mut rows[made..];
            // SAFETY: each pointer is one to a row's bytes, the library's row length for this colour space.
            match unsafe { ffi::jpeg_read_scanlines(&mut self.info, left.as_mut_ptr(), left.len() as u32) } {
                0 => return Err(Fault::Truncated),
                count => made += count as usize,
            }
        }
        Ok(made)
    }
}

impl Drop for Decompress<'_> {
    fn drop(&mut self) {
        // SAFETY: created by `new`; destroying twice cannot happen, and the library allows it in any state.
        unsafe { ffi::jpeg_destroy_decompress(&mut self.info) };
    }
}

/// Bytes handed to the library at a time while encoding.
const CHUNK_BYTES: usize = 1 << 16;

/// A destination that grows; the manager comes first, so that the library's pointer to it is a pointer to the whole.
#[repr(C)]
struct Destination {
    manager: ffi::jpeg_destination_mgr,
    chunk: Box<[u8; CHUNK_BYTES]>,
    encoded: Vec<u8>,
}

struct Compress {
    info: Box<ffi::jpeg_compress_struct>,
    _errors: Box<ffi::jpeg_error_mgr>,
    destination: Box<Destination>,
}

impl Compress {
    fn new() -> Self {
        let mut errors = error_manager();
        let mut chunk = Box::new([0u8; CHUNK_BYTES]);
        let manager = ffi::jpeg_destination_mgr {
            next_output_byte: chunk.as_mut_ptr(),
            free_in_buffer: CHUNK_BYTES,
            init_destination: Some(destination_nothing),
            empty_output_buffer: Some(destination_empty),
            term_destination: Some(destination_finish),
        };
        let mut destination = Box::new(Destination { manager, chunk, encoded: Vec::new() });
        // SAFETY: the struct is plain C data for which all-zero is the state the library expects before creation.
        let mut info: Box<ffi::jpeg_compress_struct> = unsafe { Box::new(mem::zeroed()) };
        info.common.err = &mut *errors;
        // SAFETY: `info` is zeroed and holds an error manager that outlives it.
        unsafe { ffi::jpeg_create_compress(&mut *info) };
        info.dest = ptr::from_mut(&mut *destination).cast();
        Self { info, _errors: errors, destination }
    }

    fn run(mut self, rgb_hwc: &[u8], width: u32, height: u32, quality: u8) -> Vec<u8> {
        self.info.image_width = width;
        self.info.image_height = height;
        self.info.input_components = 3;
        self.info.in_color_space = ffi::JCS_RGB;
        // SAFETY: created by `new` with a destination; the profile is set before the defaults that read it.
        unsafe {
            ffi::jpeg_c_set_int_param(&mut self.info, ffi::JINT_COMPRESS_PROFILE, ffi::JCP_FASTEST as c_int);
            ffi::jpeg_set_defaults(&mut self.info);
            ffi::jpeg_set_quality(&mut self.info, c_int::from(quality), 1);
            ffi::jpeg_start_compress(&mut self.info, 1);
        }
        for row in rgb_hwc.chunks_exact(width as usize * 3) {
            let row = row.as_ptr();
            // SAFETY: `row` points at the `width * 3` bytes that the settings announce; the library only reads them.
            unsafe { ffi::jpeg_write_scanlines(&mut self.info, &row, 1) };
        }
        // SAFETY: all rows are written.
        unsafe { ffi::jpeg_finish_compress(&mut self.info) };
        mem::take(&mut self.destination.encoded)
    }
}

impl Drop for Compress {
    fn drop(&mut self) {
        // SAFETY: created by `new`; the library allows destruction in any state.
        unsafe { ffi::jpeg_destroy_compress(&mut self.info) };
    }
}

fn error_manager() -> Box<ffi::jpeg_error_mgr> {
    // SAFETY: plain C data; `jpeg_std_error` fills every field.
    let mut errors: Box<ffi::jpeg_error_mgr> = unsafe { Box::new(mem::zeroed()) };
    // SAFETY: `errors` is writable; the call only stores into it.
    unsafe { ffi::jpeg_std_error(&mut errors) };
    errors.error_exit = Some(leave_by_unwinding);
    errors.emit_message = Some(ignore_message);
    errors
}

extern "C-unwind" fn leave_by_unwinding(info: &mut ffi::jpeg_common_struct) {
    /// `JMSG_LENGTH_MAX` of jpeglib.h.
    const MESSAGE_BYTES: usize = 200;
    let mut message = [0u8; MESSAGE_BYTES];
    // SAFETY: the error manager was set at creation and outlives the struct.
    let format = unsafe { (*info.err).format_message };
    if let Some(format) = format {
        // SAFETY: the C signature takes a buffer of `MESSAGE_BYTES`; the binding's shorter array is only a pointer.
        unsafe { format(info, &*message.as_mut_ptr().cast::<[u8; 80]>()) };
    }
    let length = message.iter().position(|&byte| byte == 0).unwrap_or(MESSAGE_BYTES);
    resume_unwind(Box::new(LibraryError(String::from_utf8_lossy(&message[..length]).into_owned())));
}

/// Warnings (corrupt codes, extra bytes) are tolerated, as Pillow tolerates them; lost input shows as suspension.
extern "C-unwind" fn ignore_message(_: &mut ffi::jpeg_common_struct, _: c_int) {}

extern "C-unwind" fn stop_at_too_many_scans(info: &mut ffi::jpeg_common_struct) {
    // SAFETY: the monitor is set on decompression structs alone, whose first field is the common struct.
    let info = unsafe { &*ptr::from_mut(info).cast::<ffi::jpeg_decompress_struct>() };
    if info.input_scan_number > MAX_SCANS {
        resume_unwind(Box::new(LibraryError(format!("expected at most {MAX_SCANS} scans"))));
    }
}

extern "C-unwind" fn source_nothing(_: &mut ffi::jpeg_decompress_struct) {}

extern "C-unwind" fn source_suspend(_: &mut ffi::jpeg_decompress_struct) -> ffi::boolean {
    0
}

extern "C-unwind" fn source_skip(info: &mut ffi::jpeg_decompress_struct, num_bytes: c_long) {
    let Ok(num_bytes) = usize::try_from(num_bytes) else { return };
    // SAFETY: `src` points at the boxed manager of the `Decompress` at work.
    let source = unsafe { &mut *info.src };
    let skipped = num_bytes.min(source.bytes_in_buffer);
    // SAFETY: at most `bytes_in_buffer` bytes ahead, so within the input or at its end.
    source.next_input_byte = unsafe { source.next_input_byte.add(skipped) };
    source.bytes_in_buffer -= skipped;
}

extern "C-unwind" fn destination_nothing(_: &mut ffi::jpeg_compress_struct) {}

extern "C-unwind" fn destination_empty(info: &mut ffi::jpeg_compress_struct) -> ffi::boolean {
    flush(info, CHUNK_BYTES);
    1
}

extern "C-unwind" fn destination_finish(info: &mut ffi::jpeg_compress_struct) {
    // SAFETY: `dest` points at the boxed `Destination` of the `Compress` at work, manager first.
    let free = unsafe { (*info.dest).free_in_buffer };
    flush(info, CHUNK_BYTES - free);
}

fn flush(info: &mut ffi::jpeg_compress_struct, num_bytes: usize) {
    // SAFETY: `dest` points at the boxed `Destination` of the `Compress` at work, manager first.
    let destination = unsafe { &mut *info.dest.cast::<Destination>() };
    destination.encoded.extend_from_slice(&destination.chunk[..num_bytes]);
    destination.manager.next_output_byte = destination.chunk.as_mut_ptr();
    destination.manager.free_in_buffer = CHUNK_BYTES;
}
