"""What Pillow reads in image files of every kind: the expected values of `tests/files.rs` in vela-processor.

    requirements: pillow==13.0.0 numpy; cjpeg and jpegtran of libjpeg-turbo
    run:          python make_files.py          (in this folder; writes `files/` and `files.json` beside the script)

`files/` holds small files in every mode of every format: as Pillow and libjpeg-turbo's tools write them, and made by hand where
neither can. `files.json` holds for each of them, and for each image among the third-party files (folder `images_tricky/`
in VELA_DATA, or in ../shared/data next to the repository), the extent and the SHA-256 of the RGB samples after
`exif_transpose` and `convert("RGB")`, or the name of the error.
"""
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("VELA_DATA", HERE.parents[2].parent / "shared" / "data"))
WIDTH, HEIGHT = 21, 13


def picture(mode, seed=0, width=WIDTH, height=HEIGHT):
    """Gradients with an edge and noise, in any of Pillow's modes."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * (9 + 2 * c) + y * (17 - 3 * c) + 60 * c + seed * 31) % 256 for c in range(4)]
    planes = np.stack(planes, -1)
    planes[:, width // 2:] = random.integers(0, 256, planes[:, width // 2:].shape)
    planes = planes.astype(np.uint8)
    if mode == "1":
        return Image.fromarray(planes[..., 0]).point(lambda v: 255 if v > 120 else 0).convert("1")
    if mode == "P":
        return Image.fromarray(planes[..., :3]).quantize(40)
    if mode in ("I;16", "I", "F"):
        wide = planes[..., 0].astype(np.uint32) * 3 + planes[..., 1]
        return Image.fromarray(wide.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    if mode == "LAB":
        return Image.frombytes("LAB", (width, height), np.ascontiguousarray(planes[..., :3]).tobytes())
    channels = {"L": 1, "LA": 2, "RGB": 3, "YCbCr": 3, "RGBA": 4, "CMYK": 4}[mode]
    samples = planes[..., 0] if channels == 1 else np.ascontiguousarray(planes[..., :channels])
    return Image.frombytes(mode, (width, height), samples.tobytes())


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block


# ---- JPEG -----------------------------------------------------------------------------------------------------------

def jpeg_files():
    rgb, odd = picture("RGB"), picture("RGB", 3, 37, 29)
    ppm = saved(odd, "PPM")

    def cjpeg(*options, source=ppm):
        return subprocess.run(["cjpeg", *options], input=source, stdout=subprocess.PIPE, check=True).stdout

    def jpegtran(data, *options):
        return subprocess.run(["jpegtran", "-copy", "all", *options], input=data, stdout=subprocess.PIPE, check=True).stdout

    files = {}
    for mode in ("1", "L", "RGB", "YCbCr", "CMYK"):
        files[f"mode_{mode}"] = saved(picture(mode), "JPEG", quality=80)
        files[f"mode_{mode}_progressive"] = saved(picture(mode), "JPEG", quality=80, progressive=True)
    files["mode_CMYK_no_adobe"] = files["mode_CMYK"].replace(b"\xff\xee\x00\x0eAdobe", b"\xff\xee\x00\x0eOther")
    for factors in ("1x1", "2x1", "1x2", "2x2", "4x1", "1x4", "4x2", "2x4", "3x1", "1x3"):
        files[f"sampling_{factors}"] = cjpeg("-quality", "85", "-sample", factors)
    for factors in ("2x1,2x1,1x1", "2x2,1x2,2x1", "2x2,2x1,2x1", "1x1,2x2,2x2"):
        files[f"sampling_{factors.replace(',', '_')}"] = cjpeg("-quality", "85", "-sample", factors)
    files["rgb_no_transform"] = cjpeg("-rgb", "-quality", "85")
    files["gray_scans"] = cjpeg("-grayscale", "-progressive")
    files["dct_float"] = cjpeg("-dct", "float")
    for name in ("sampling_2x2", "sampling_1x2", "mode_L", "mode_CMYK"):
        files[f"{name}_arithmetic"] = jpegtran(files[name], "-arithmetic")
        files[f"{name}_arithmetic_progressive"] = jpegtran(files[name], "-arithmetic", "-progressive")
        files[f"{name}_restart"] = jpegtran(files[name], "-restart", "1B")
        files[f"{name}_restart_progressive"] = jpegtran(files[name], "-restart", "1", "-progressive")
    baseline = files["sampling_2x2"]
    files["junk_after_soi"] = baseline[:2] + b"\xff\xff\xff" + baseline[2:]
    files["junk_before_soi"] = b"\0\0" + baseline
    files["junk_after_end"] = baseline + b"trailing bytes" * 40
    files["two_pictures"] = baseline + files["mode_L"]
    files["mpo"] = saved(rgb, "MPO", save_all=True, append_images=[picture("RGB", 5)])
    files["no_end"] = baseline[:-2]
    files["half"] = baseline[:len(baseline) * 2 // 3]
    files["half_progressive"] = files["mode_RGB_progressive"][:-90]
    scan = baseline.index(b"\xff\xda") + 40
    files["flipped_bits"] = baseline[:scan] + bytes([baseline[scan] ^ 0x55]) + baseline[scan + 1:]
    files["lost_restart"] = files["sampling_2x2_restart"].replace(b"\xff\xd1", b"\xff\xd3", 1)
    files["no_tables"] = baseline[:2] + baseline[baseline.index(b"\xff\xc0"):]
    height = baseline.index(b"\xff\xc0") + 5
    files["height_zero"] = baseline[:height] + b"\0\0" + baseline[height + 2:]
    files["lossless_frame"] = baseline.replace(b"\xff\xc0\x00\x11", b"\xff\xc3\x00\x11", 1)
    big = saved(picture("RGB", 7), "JPEG", exif=exif(6))
    at = big.index(b"Exif\0\0")
    files["exif_cut"] = big[:at + 18] + b"\xff" * 8 + big[at + 26:]
    files["exif_value_9"] = saved(rgb, "JPEG", exif=exif(9))
    files["xmp_orientation"] = saved(rgb, "JPEG", xmp=b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>')
    both = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    files["xmp_and_exif"] = saved(rgb, "JPEG", xmp=both, exif=exif(3))
    files["icc_profile"] = saved(rgb, "JPEG", icc_profile=bytes(range(256)) * 300)
    return {f"jpeg_{name}.jpg": data for name, data in files.items()}


# ---- PNG ------------------------------------------------------------------------------------------------------------

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, color, rows, before=b"", after=b"", interlace=0, level=9):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows, level)) + after + chunk(b"IEND", b"")


def packed_rows(samples, depth):
    """Rows of an array (height, width, channels) of values below 2 ** depth, each after filter type 0."""
    height = samples.shape[0]
    if depth == 16:
        return b"".join(b"\0" + samples[r].astype(">u2").tobytes() for r in range(height))
    bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth:]
    return b"".join(b"\0" + np.packbits(bits[r].reshape(-1)).tobytes() for r in range(height))


def adam7_rows(samples, depth):
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [samples[y::dy, x::dx] for x, y, dx, dy in passes]
    return b"".join(packed_rows(part, depth) for part in parts if part.size)


def png_files():
    files = {}
    random = np.random.default_rng(4)
    kinds = [(0, 1, (1, 2, 4, 8, 16)), (2, 3, (8, 16)), (3, 1, (1, 2, 4, 8)), (4, 2, (8, 16)), (6, 4, (8, 16))]
    for color, channels, depths in kinds:
        for depth in depths:
            samples = random.integers(0, 2 ** depth, (HEIGHT, WIDTH, channels))
            colors = random.integers(0, 256, 3 * 2 ** min(depth, 8), np.uint8).tobytes()
            before = chunk(b"PLTE", colors) if color == 3 else b""
            name = f"color{color}_depth{depth}"
            files[name] = png(WIDTH, HEIGHT, depth, color, packed_rows(samples, depth), before)
            files[name + "_interlaced"] = png(WIDTH, HEIGHT, depth, color, adam7_rows(samples, depth), before, interlace=1)
            if color in (0, 2):
                note = b"".join(struct.pack(">H", int(v)) for v in samples[2, 3])
                files[name + "_trns"] = png(WIDTH, HEIGHT, depth, color, packed_rows(samples, depth), chunk(b"tRNS", note))
            if color == 3:
                note = random.integers(0, 256, 2 ** depth - 1, np.uint8).tobytes()
                files[name + "_trns"] = png(WIDTH, HEIGHT, depth, color, packed_rows(samples, depth), before + chunk(b"tRNS", note))
    samples = random.integers(0, 256, (HEIGHT, WIDTH, 1))
    rows = packed_rows(samples, 8)
    colors = random.integers(0, 256, 60, np.uint8).tobytes()
    files["palette_short"] = png(WIDTH, HEIGHT, 8, 3, rows, chunk(b"PLTE", colors))
    files["palette_missing"] = png(WIDTH, HEIGHT, 8, 3, rows)
    files["palette_of_rgb"] = png(WIDTH, HEIGHT, 8, 0, rows, chunk(b"gAMA", struct.pack(">I", 45455)))
    files["gamma_and_srgb"] = png(WIDTH, HEIGHT, 8, 0, rows, chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"sRGB", b"\0"))
    files["all_filters"] = saved(picture("RGB"), "PNG", compress_level=1)
    files["one_pixel"] = png(1, 1, 8, 0, b"\0\x42")
    files["wrong_filter"] = png(WIDTH, HEIGHT, 8, 0, b"\x07" + rows[1:])
    files["short_data"] = png(WIDTH, HEIGHT, 8, 0, rows[:100])
    files["long_data"] = png(WIDTH, HEIGHT, 8, 0, rows + b"\0" * 500)
    files["wide_zero"] = png(0, HEIGHT, 8, 0, b"")
    files["stored"] = png(WIDTH, HEIGHT, 8, 0, rows, level=0)
    good = files["color2_depth8"]
    end, data = good.index(b"IEND"), good.index(b"IDAT")
    files["no_end_chunk"] = good[:end - 4]
    files["cut_end_chunk"] = good[:end + 3]
    files["half"] = good[:data + 200]
    files["data_crc"] = good[:end - 8] + b"\0\0\0\0" + good[end - 4:]
    flipped = bytearray(good)
    flipped[29] ^= 1
    files["header_crc"] = bytes(flipped)
    text = chunk(b"tEXt", b"Comment\0hello")
    files["text_crc"] = png(WIDTH, HEIGHT, 8, 0, rows, text[:-1] + bytes([text[-1] ^ 1]))
    files["text_crc_after"] = png(WIDTH, HEIGHT, 8, 0, rows, after=text[:-1] + bytes([text[-1] ^ 1]))
    adler = zlib.compress(rows, 9)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 0, 0, 0, 0))
    files["adler"] = head + chunk(b"IDAT", adler[:-4] + bytes(4)) + chunk(b"IEND", b"")
    pieces = b"".join(chunk(b"IDAT", adler[i:i + 7]) for i in range(0, len(adler), 7))
    files["many_idat"] = head + pieces + chunk(b"IEND", b"")
    bomb = zlib.compress(bytes(8 << 20), 9)
    files["ztxt_bomb"] = png(WIDTH, HEIGHT, 8, 0, rows, chunk(b"zTXt", b"Comment\0\0" + bomb))
    files["iccp_bomb"] = png(WIDTH, HEIGHT, 8, 0, rows, chunk(b"iCCP", b"profile\0\0" + bomb))
    block = exif(6).tobytes()[6:]
    files["exif_before"] = png(WIDTH, HEIGHT, 8, 0, rows, chunk(b"eXIf", block))
    files["exif_after"] = png(WIDTH, HEIGHT, 8, 0, rows, after=chunk(b"eXIf", block))
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    plain = b"XML:com.adobe.xmp\0\0\0\0\0" + packet
    squeezed = b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib.compress(packet)
    files["xmp"] = png(WIDTH, HEIGHT, 8, 0, rows, chunk(b"iTXt", plain))
    files["xmp_compressed"] = png(WIDTH, HEIGHT, 8, 0, rows, chunk(b"iTXt", squeezed))
    files["xmp_after"] = png(WIDTH, HEIGHT, 8, 0, rows, after=chunk(b"iTXt", plain))
    hexed = b"\nexif\n" + str(len(block) + 6).encode().rjust(8) + b"\n" + (b"Exif\0\0" + block).hex().encode() + b"\n"
    files["raw_profile_exif"] = png(WIDTH, HEIGHT, 8, 0, rows, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexed)))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        files[f"mode_{mode.replace(';', '')}"] = saved(picture(mode), "PNG")
    frames = [picture("RGBA", seed) for seed in (1, 2, 3)]
    files["apng"] = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    files["apng_default"] = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    return {f"png_{name}.png": data for name, data in files.items()}


# ---- the others -----------------------------------------------------------------------------------------------------

def gif_files():
    files = {}
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA"):
        files[f"mode_{mode}"] = saved(picture(mode), "GIF")
        files[f"mode_{mode}_interlaced"] = saved(picture(mode, 1, 40, 33), "GIF", interlace=1)
    frames = [picture("P", seed) for seed in (1, 2, 3)]
    files["animated"] = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=2)
    files["transparent"] = saved(frames[0], "GIF", transparency=7)

    def by_hand(screen, extent, offset, palette, local, control=b"", background=0):
        width, height = extent
        flags = (0x80 | 4) if palette else 0
        head = b"GIF89a" + struct.pack("<HHBBB", *screen, flags, background, 0) + (palette or b"")
        frame = b"," + struct.pack("<HHHHB", *offset, *extent, (0x80 | 4) if local else 0) + (local or b"")
        source = Image.frombytes("L", extent, bytes(i % 32 for i in range(width * height)))
        data = saved(source, "GIF", optimize=False)
        body = data[data.rindex(b",") + 10:] if b"," in data else b""
        return head + control + frame + body

    colors = np.random.default_rng(5).integers(0, 256, 96, np.uint8).tobytes()
    other = np.random.default_rng(6).integers(0, 256, 96, np.uint8).tobytes()
    note = b"!\xf9\x04\x01\0\0\x09\0"
    files["frame_inside"] = by_hand((20, 15), (9, 7), (4, 3), colors, None, background=5)
    files["frame_inside_transparent"] = by_hand((20, 15), (9, 7), (4, 3), colors, None, note, background=5)
    files["frame_beyond"] = by_hand((8, 6), (9, 7), (4, 3), colors, None)
    files["local_palette"] = by_hand((9, 7), (9, 7), (0, 0), colors, other)
    files["no_palette"] = by_hand((9, 7), (9, 7), (0, 0), None, None)
    files["screen_zero"] = by_hand((0, 0), (9, 7), (0, 0), colors, None)
    whole = files["mode_P"]
    files["half"] = whole[:len(whole) * 3 // 4]
    files["no_trailer"] = whole[:-1]
    files["header_only"] = whole[:13]
    return {f"gif_{name}.gif": data for name, data in files.items()}


def webp_files():
    files = {}
    for mode in ("L", "RGB", "RGBA"):
        for quality in (1, 60, 100):
            files[f"{mode}_{quality}"] = saved(picture(mode, 2, 61, 43), "WEBP", quality=quality, method=3)
        files[f"{mode}_lossless"] = saved(picture(mode), "WEBP", lossless=True)
        files[f"{mode}_exact"] = saved(picture(mode), "WEBP", lossless=True, exact=True)
    files["alpha_quality"] = saved(picture("RGBA", 2, 61, 43), "WEBP", quality=50, alpha_quality=20)
    frames = [picture("RGBA", seed) for seed in (1, 2, 3)]
    files["animated"] = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, background=(9, 99, 199, 77))
    solid = [picture("RGB", seed) for seed in (1, 2)]
    files["animated_lossy"] = saved(solid[0], "WEBP", save_all=True, append_images=solid[1:], quality=70)
    files["one_pixel"] = saved(picture("RGB", 0, 1, 1), "WEBP")
    files["orientation"] = saved(picture("RGB"), "WEBP", lossless=True, exif=exif(5))
    files["xmp"] = saved(picture("RGB"), "WEBP", lossless=True, xmp=b'<x tiff:Orientation="6"/>')
    files["half"] = files["RGB_100"][:-200]
    files["half_lossless"] = files["RGB_lossless"][:-200]
    return {f"webp_{name}.webp": data for name, data in files.items()}


def bmp_files():
    files = {f"mode_{mode}": saved(picture(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")}
    random = np.random.default_rng(8)

    def by_hand(width, height, bits, body, compression=0, masks=b"", palette=b"", colors=0, size=40):
        offset = 14 + size + len(masks) + len(palette)
        info = struct.pack("<IiiHHIIiiII", size, width, height, 1, bits, compression, len(body), 0, 0, colors, 0)
        if size == 12:
            info = struct.pack("<IHHHH", size, width, height, 1, bits)
        return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + info + masks + palette + body

    def noise(count):
        return random.integers(0, 256, count, np.uint8).tobytes()

    palette = noise(64)
    files["bits_4"] = by_hand(WIDTH, HEIGHT, 4, noise(12 * HEIGHT), palette=palette, colors=16)
    files["bits_16"] = by_hand(WIDTH, HEIGHT, 16, noise(44 * HEIGHT))
    files["bits_565"] = by_hand(WIDTH, HEIGHT, 16, noise(44 * HEIGHT), 3, struct.pack("<III", 0xF800, 0x7E0, 0x1F))
    files["bits_32"] = by_hand(WIDTH, HEIGHT, 32, noise(84 * HEIGHT))
    files["masks_bgrx"] = by_hand(WIDTH, HEIGHT, 32, noise(84 * HEIGHT), 3, struct.pack("<III", 0xFF0000, 0xFF00, 0xFF))
    files["masks_rgbx"] = by_hand(WIDTH, HEIGHT, 32, noise(84 * HEIGHT), 3, struct.pack("<III", 0xFF, 0xFF00, 0xFF0000))
    files["masks_odd"] = by_hand(WIDTH, HEIGHT, 32, noise(84 * HEIGHT), 3, struct.pack("<III", 0x3FF, 0xFFC00, 0x3FF00000))
    files["top_down"] = by_hand(WIDTH, -HEIGHT, 24, noise(64 * HEIGHT))
    files["core_header"] = by_hand(WIDTH, HEIGHT, 24, noise(64 * HEIGHT), size=12)
    run8 = b"".join(bytes([WIDTH - 5, y * 3 % 16, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0]) for y in range(HEIGHT)) + b"\0\1"
    files["rle8"] = by_hand(WIDTH, HEIGHT, 8, run8, 1, palette=palette, colors=16)
    jump = b"\x04\x03\0\2\x03\x02\x05\x07\0\0\x03\x09\0\1"
    files["rle8_jump"] = by_hand(WIDTH, HEIGHT, 8, jump, 1, palette=palette, colors=16)
    run4 = b"".join(bytes([WIDTH, 0x1D ^ y, 0, 0]) for y in range(HEIGHT)) + b"\0\1"
    files["rle4"] = by_hand(WIDTH, HEIGHT, 4, run4, 2, palette=palette, colors=16)
    files["palette_short"] = by_hand(WIDTH, HEIGHT, 8, noise(24 * HEIGHT), palette=palette, colors=16)
    files["half"] = files["mode_RGB"][:400]
    return {f"bmp_{name}.bmp": data for name, data in files.items()}


def tiff_files():
    files = {}
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"):
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
            data = saved(picture(mode), "TIFF", compression=compression)
            files[f"{mode.replace(';', '')}_{(compression or 'raw').replace('tiff_', '')}"] = data
    files["1_group4"] = saved(picture("1"), "TIFF", compression="group4")
    files["RGB_jpeg"] = saved(picture("RGB", 0, 64, 48), "TIFF", compression="jpeg")
    files["RGB_predictor"] = saved(picture("RGB"), "TIFF", compression="tiff_lzw", tiffinfo={317: 2})
    files["L_white_is_zero"] = saved(picture("L"), "TIFF", tiffinfo={262: 0})
    files["two_pages"] = saved(picture("RGB"), "TIFF", save_all=True, append_images=[picture("RGB", 1)])
    for orientation in (3, 6, 8):
        files[f"orientation_{orientation}"] = saved(picture("RGB"), "TIFF", tiffinfo={0x0112: orientation})

    def by_hand(tags, body, big=False, width=WIDTH, height=HEIGHT):
        order = ">" if big else "<"
        tags = dict(sorted({256: (4, [width]), 257: (4, [height]), 259: (3, [1]), 278: (4, [height]), 279: (4, [len(body)]), 273: (4, [0]),
                            **tags}.items()))
        start = 8 + 2 + 12 * len(tags) + 4
        extra, entries = b"", b""
        for tag, (kind, values) in tags.items():
            packed = b"".join(struct.pack(order + {3: "H", 4: "I"}[kind], v) for v in values)
            if tag == 273:
                packed = struct.pack(order + "I", 0xFEEDBEEF)
            if len(packed) > 4:
                field = struct.pack(order + "I", start + len(extra))
                extra += packed
            else:
                field = packed.ljust(4, b"\0")
            entries += struct.pack(order + "HHI", tag, kind, len(values)) + field
        head = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "I", 8) + struct.pack(order + "H", len(tags))
        data = head + entries + b"\0" * 4 + extra
        return data.replace(struct.pack(order + "I", 0xFEEDBEEF), struct.pack(order + "I", len(data))) + body

    rgb16 = np.random.default_rng(9).integers(0, 65536, (HEIGHT, WIDTH, 3))
    for big in (False, True):
        tag = "big" if big else "little"
        body = rgb16.astype(">u2" if big else "<u2").tobytes()
        files[f"rgb16_{tag}"] = by_hand({258: (3, [16, 16, 16]), 262: (3, [2]), 277: (3, [3])}, body, big)
        body = rgb16[..., 0].astype(">u2" if big else "<u2").tobytes()
        files[f"gray16_{tag}"] = by_hand({258: (3, [16]), 262: (3, [1]), 277: (3, [1])}, body, big)
        body = rgb16[..., 0].astype(np.uint8).tobytes()
        files[f"gray8_inverted_{tag}"] = by_hand({258: (3, [8]), 262: (3, [0]), 277: (3, [1])}, body, big)
    nibbles = np.random.default_rng(10).integers(0, 256, 11 * HEIGHT, np.uint8).tobytes()
    files["gray4"] = by_hand({258: (3, [4]), 262: (3, [1]), 277: (3, [1])}, nibbles)
    files["huge"] = by_hand({258: (3, [8]), 262: (3, [1]), 277: (3, [1])}, b"\0" * 100, width=1 << 20, height=1 << 20)
    files["half"] = files["RGB_raw"][:500]
    return {f"tiff_{name}.tiff": data for name, data in files.items()}


def make_files():
    files = {**jpeg_files(), **png_files(), **gif_files(), **webp_files(), **bmp_files(), **tiff_files()}
    files["avif.avif"] = saved(picture("RGB"), "AVIF")
    files["jpeg2000.jp2"] = saved(picture("RGB"), "JPEG2000")
    files["jpeg2000.j2k"] = saved(picture("RGB"), "JPEG2000", no_jp2=True)
    return files


def verdict(path):
    """What Pillow reads: extent and hash, or the kind of error."""
    try:
        with Image.open(path) as image:
            rgb = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:
        return {"error": type(error).__name__}
    return {"width": rgb.shape[1], "height": rgb.shape[0], "rgb": hashlib.sha256(rgb.tobytes()).hexdigest()}


def main():
    warnings.simplefilter("ignore")
    folder = HERE / "files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    own = {}
    for name, content in make_files().items():
        (folder / name).write_bytes(content)
        own[name] = verdict(folder / name)
    tricky = DATA / "images_tricky"
    theirs = {}
    if tricky.is_dir():
        for path in sorted(tricky.rglob("*")):
            if path.is_file() and not path.name.startswith("LICENSE"):
                theirs[path.relative_to(tricky).as_posix()] = verdict(path)
    lines = json.dumps({"own": own, "tricky": theirs}).replace("}, \"", "},\n\"")
    (HERE / "files.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
