//! Takes the way from bytes to the components' samples over from the library: Huffman codes and inverse DCT.
//!
//! The library asks its coefficient controller for one row of MCUs after another by a pointer; here it is given another
//! controller, for the plain case: one sequential scan of all components. What is not as it should be (a bad code, data
//! that ends too early, another marker than the one that is due) is left to the library: this controller gives up, and
//! the picture is read again from the start without it. So nothing is decided here that the library could decide
//! otherwise.

use std::ffi::{c_int, c_uint, c_void};
use std::mem::{offset_of, size_of};
use std::{ptr, slice};

use mozjpeg_sys as ffi;

use super::huffman::{Kind, Unreadable};
use super::scan::{Component, MAX_BLOCKS, Plane, Scan};

/// What `decompress_data` returns (jpegint.h).
const SUSPENDED: c_int = 0;
const ROW_COMPLETED: c_int = 3;
const SCAN_COMPLETED: c_int = 4;

/// Samples along a block's side.
const SIDE: usize = ffi::DCTSIZE;

/// `jpeg_d_coef_controller` of jpegint.h.
#[repr(C)]
struct Methods {
    start_input_pass: *const c_void,
    consume_data: *const c_void,
    start_output_pass: *const c_void,
    decompress_data: unsafe extern "C-unwind" fn(*mut Decompress, *const *const *mut u8) -> c_int,
    coefficient_arrays: *const c_void,
}

/// The methods of `jpeg_input_controller` of jpegint.h.
#[repr(C)]
struct InputController {
    _methods: [*const c_void; 3],
    finish_input_pass: unsafe extern "C-unwind" fn(*mut Decompress),
}

/// Where the field behind the source begins.
const SOURCE_END: usize = offset_of!(ffi::jpeg_decompress_struct, src) + size_of::<*mut ffi::jpeg_source_mgr>();

/// `jpeg_decompress_struct` of jpeglib.h, with fields that the binding hides.
#[repr(C)]
struct Decompress {
    _common: ffi::jpeg_common_struct,
    source: *mut ffi::jpeg_source_mgr,
    _settings: [u8; offset_of!(ffi::jpeg_decompress_struct, input_iMCU_row) - SOURCE_END],
    input_imcu_row: c_uint,
    _output_scan_number: c_int,
    output_imcu_row: c_uint,
    _coefficient_bits: *mut c_void,
    _quantisation: [*mut c_void; 4],
    dc_tables: [*const ffi::JHUFF_TBL; 4],
    ac_tables: [*const ffi::JHUFF_TBL; 4],
    _data_precision: c_int,
    components: *const ffi::jpeg_component_info,
    is_progressive: ffi::boolean,
    is_arithmetic: ffi::boolean,
    _conditioning: [u8; 48],
    restart_interval: c_uint,
    _saw_jfif: ffi::boolean,
    _jfif_version: [u8; 2],
    density_unit: u8,
    _density: [u16; 2],
    _saw_adobe: ffi::boolean,
    _adobe_transform: u8,
    _is_cosited: ffi::boolean,
    marker_list: *mut c_void,
    max_h_sampling: c_int,
    _max_v_sampling: c_int,
    _min_scaled_size: c_int,
    num_imcu_rows: c_uint,
    _range_limit: *mut u8,
    num_scan_components: c_int,
    scan_components: [*const ffi::jpeg_component_info; 4],
    mcus_per_row: c_uint,
    _mcu_rows: c_uint,
    _blocks_per_mcu: c_int,
    _membership: [c_int; MAX_BLOCKS],
    _spectral: [c_int; 4],
    unread_marker: c_int,
    _master: *mut c_void,
    _main: *mut c_void,
    controller: *mut Takeover<'static>,
    _post: *mut c_void,
    input_controller: *const InputController,
    _other_modules: [*mut c_void; 6],
}

// The struct above is the library's if the binding's visible fields stand where its own do.
const _: () = {
    type Binding = ffi::jpeg_decompress_struct;
    assert!(size_of::<Decompress>() == size_of::<Binding>());
    assert!(offset_of!(Decompress, source) == offset_of!(Binding, src));
    assert!(offset_of!(Decompress, input_imcu_row) == offset_of!(Binding, input_iMCU_row));
    assert!(offset_of!(Decompress, output_imcu_row) == offset_of!(Binding, output_iMCU_row));
    assert!(offset_of!(Decompress, components) == offset_of!(Binding, comp_info));
    assert!(offset_of!(Decompress, density_unit) == offset_of!(Binding, density_unit));
    assert!(offset_of!(Decompress, marker_list) == offset_of!(Binding, marker_list));
    assert!(offset_of!(Decompress, max_h_sampling) == offset_of!(Binding, max_h_samp_factor));
};

/// The controller in the stead of the library's own; the methods come first, so that the library's pointer to them is
/// a pointer to the whole.
#[repr(C)]
pub(super) struct Takeover<'a> {
    methods: Methods,
    scan: Scan<'a>,
    outline: Vec<Outline>,
    gave_up: bool,
}

/// A component's place in the library's buffers.
struct Outline {
    /// Its index in the frame.
    index: usize,
    /// Columns of the buffer that are written.
    width: usize,
    /// Rows of blocks in a row of interleaved MCUs, and in the last one.
    height: usize,
    last_height: usize,
}

impl<'a> Takeover<'a> {
    /// For a started decompression of `bytes`, the whole file; `None` where the library reads by itself: other scans,
    /// machines without the instructions of the fast way, a library without vector code.
    pub(super) fn new(info: &ffi::jpeg_decompress_struct, bytes: &'a [u8]) -> Option<Self> {
        // SAFETY: the library's struct, of the same layout.
        let layout = unsafe { &*ptr::from_ref(info).cast::<Decompress>() };
        let num_components = layout.num_scan_components;
        let is_plain = layout.is_progressive == 0
            && layout.is_arithmetic == 0
            && num_components == info.num_components
            && layout.unread_marker == 0;
        if !has_instructions() || !is_plain {
            return None;
        }
        // SAFETY: `src` points at the boxed manager of the `Decompress` at work.
        let num_left = unsafe { (*info.src).bytes_in_buffer };
        let mut scan = Scan::new(bytes.get(bytes.len().checked_sub(num_left)?..)?, layout.restart_interval);
        let mut outline = Vec::new();
        for &component in layout.scan_components.get(..usize::try_from(num_components).ok()?)? {
            // SAFETY: set for each component of a scan that has started, and pointing into the library's list.
            let component = unsafe { component.as_ref()? };
            outline.push(Outline::of(component)?);
            let component = component_of(component, layout, num_components > 1, &mut scan)?;
            scan.push(component);
        }
        Some(Self { methods: Methods::new(), scan, outline, gave_up: false })
    }

    /// Puts itself in the place of the library's controller.
    ///
    /// # Safety
    /// `self` must stay where it is for as long as `info` decompresses.
    pub(super) unsafe fn install(&mut self, info: &mut ffi::jpeg_decompress_struct) {
        // SAFETY: the library's struct, of the same layout.
        let layout = unsafe { &mut *ptr::from_mut(info).cast::<Decompress>() };
        layout.controller = ptr::from_mut(self).cast();
    }

    /// Whether the picture must be read without this controller.
    pub(super) fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// Reads one row of interleaved MCUs, or as many rows of blocks of a single component.
    fn row(&mut self, planes: &mut [Plane<'_>], num_mcus: usize, is_last: bool) -> Result<(), Unreadable> {
        let num_rows = match &self.outline[..] {
            [single] if is_last => single.last_height,
            [single] => single.height,
            _ => 1,
        };
        for row in 0..num_rows {
            // SAFETY: `new` has looked for the instructions.
            unsafe { self.scan.mcu_row(planes, num_mcus, row * SIDE, is_last)? };
        }
        Ok(())
    }
}

impl Methods {
    /// The library calls none but `decompress_data` of a controller whose only scan has started.
    fn new() -> Self {
        Self {
            start_input_pass: ptr::null(),
            consume_data: ptr::null(),
            start_output_pass: ptr::null(),
            decompress_data,
            coefficient_arrays: ptr::null(),
        }
    }
}

unsafe extern "C" {
    /// Whether the library's own inverse DCT is vector code (jsimddct.h), which differs from its portable code where
    /// coefficients are beyond all bounds.
    safe fn jsimd_can_idct_islow() -> c_int;
}

fn has_instructions() -> bool {
    jsimd_can_idct_islow() != 0
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
}

impl Outline {
    fn of(component: &ffi::jpeg_component_info) -> Option<Self> {
        let height = usize::try_from(component.v_samp_factor).ok()?;
        Some(Self {
            index: usize::try_from(component.component_index).ok()?,
            width: component.width_in_blocks as usize * SIDE,
            height,
            last_height: last_of(component.height_in_blocks, height)?,
        })
    }
}

/// How many of `count` are left for the last group of `size`.
fn last_of(count: c_uint, size: usize) -> Option<usize> {
    Some(match (count as usize).checked_rem(size)? {
        0 => size,
        rest => rest,
    })
}

/// What the scan must know of a component; an MCU of a single component is one block.
fn component_of(
    info: &ffi::jpeg_component_info,
    layout: &Decompress,
    is_interleaved: bool,
    scan: &mut Scan<'_>,
) -> Option<Component> {
    let side = |sampling: c_int| if is_interleaved { usize::try_from(sampling).ok() } else { Some(1) };
    let (width, height) = (side(info.h_samp_factor)?, side(info.v_samp_factor)?);
    let (dc, ac) = (table(&layout.dc_tables, info.dc_tbl_no)?, table(&layout.ac_tables, info.ac_tbl_no)?);
    // SAFETY: null, or a table that the library keeps as long as the decompression.
    let steps = unsafe { info.quant_table.as_ref()? }.quantval;
    Some(Component {
        width,
        height,
        last_width: last_of(info.width_in_blocks, width)?,
        last_height: last_of(info.height_in_blocks, height)?,
        dc: scan.table(Kind::Dc, info.dc_tbl_no, &dc.bits, &dc.huffval)?,
        ac: scan.table(Kind::Ac, info.ac_tbl_no, &ac.bits, &ac.huffval)?,
        steps: steps.map(|step| step as i16),
    })
}

/// The table in slot `number`, if there is one.
fn table(tables: &[*const ffi::JHUFF_TBL; 4], number: c_int) -> Option<&ffi::JHUFF_TBL> {
    // SAFETY: null, or a table that the library keeps as long as the decompression.
    unsafe { tables.get(usize::try_from(number).ok()?)?.as_ref() }
}

/// Reads a row of MCUs into the library's planes; as if the file had ended, where this controller gives up.
unsafe extern "C-unwind" fn decompress_data(info: *mut Decompress, planes: *const *const *mut u8) -> c_int {
    // SAFETY: the library calls with the struct that `install` was called with.
    let info = unsafe { &mut *info };
    // SAFETY: set by `install`; nothing else refers to the controller while the library runs.
    let this = unsafe { &mut *info.controller };
    if this.gave_up || info.input_imcu_row >= info.num_imcu_rows {
        this.gave_up = true;
        return SUSPENDED;
    }
    let plane = |outline: &Outline| -> Plane<'_> {
        // SAFETY: the library's contract: for each component of the frame, pointers to as many rows of samples as a
        // row of MCUs has of it, no two the same and each at least as wide as the component's blocks.
        let rows = unsafe { slice::from_raw_parts(*planes.add(outline.index), outline.height * SIDE) };
        // SAFETY: the same.
        rows.iter().map(|&row| unsafe { slice::from_raw_parts_mut(row, outline.width) }).collect()
    };
    let mut planes: Vec<Plane<'_>> = this.outline.iter().map(plane).collect();
    let is_last = info.input_imcu_row + 1 == info.num_imcu_rows;
    if this.row(&mut planes, info.mcus_per_row as usize, is_last).is_err() {
        this.gave_up = true;
        return SUSPENDED;
    }
    let rest = this.scan.rest();
    // SAFETY: `src` points at the boxed manager of the `Decompress` at work, whose bytes these are.
    let source = unsafe { &mut *info.source };
    (source.next_input_byte, source.bytes_in_buffer) = (rest.as_ptr(), rest.len());
    info.output_imcu_row += 1;
    info.input_imcu_row += 1;
    if !is_last {
        return ROW_COMPLETED;
    }
    // SAFETY: the library's own method, called when it would call it itself.
    unsafe { ((*info.input_controller).finish_input_pass)(info) };
    SCAN_COMPLETED
}
