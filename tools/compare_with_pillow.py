"""Decodes pictures of every format with our decoder and with Pillow, and compares the pixels.

In: the picture_to_ppm program, and examples/ for JPEG. Out: a line for each that differs; "N passed, N failed" last.
Pictures are made here by Pillow itself; Debian's python3-pil and python3-numpy are all it needs. Tolerances, in levels
of 255: 0 where both do the same arithmetic; 1 where a division is rounded otherwise (CMYK and multiplied alpha in
libtiff); what Pillow reads differently on purpose is computed here from the stored samples.
"""

import io
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIDES = (97, 61)


def stripes(width, height, channels, seed=1):
    """Smooth colours with some noise, so that every predictor and filter has work."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * (3 + c) + y * (5 - c)) % 256 for c in range(channels)]
    noise = generator.integers(0, 24, (height, width, channels))
    return np.clip(np.stack(planes, -1) // 2 + noise + 40, 0, 255).astype(np.uint8)


def over_white(image):
    """What a viewer shows: transparency over white, by Pillow's own composition."""
    rgba = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width, height, depth, colour, rows, extra=b""):
    """A PNG from packed rows, for depths and kinds that Pillow does not write."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + extra + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


class Comparison:
    def __init__(self, program, folder):
        self.program, self.folder, self.passed, self.failed = program, folder, 0, 0

    def check(self, name, data, expected, tolerance=0):
        path = self.folder / name
        path.write_bytes(data)
        done = subprocess.run([self.program, path], capture_output=True)
        message = done.stderr.decode(errors="replace").strip()
        if done.returncode == 0 and not message:
            ours = np.asarray(Image.open(io.BytesIO(done.stdout)))
            if ours.shape == expected.shape:
                difference = int(np.abs(ours.astype(int) - expected.astype(int)).max())
                message = "" if difference <= tolerance else f"differs by up to {difference}"
            else:
                message = f"has shape {ours.shape}, not {expected.shape}"
        if message or done.returncode != 0:
            self.failed += 1
            print(f"FAILED  {name}: {message}")
        else:
            self.passed += 1

    def check_pillow(self, name, image, tolerance=0, **options):
        """Saves by Pillow, and expects what Pillow reads back."""
        file = io.BytesIO()
        image.save(file, name.rsplit(".", 1)[1].replace("jpg", "jpeg"), **options)
        back = Image.open(io.BytesIO(file.getvalue()))
        back.seek(0)
        turned = back if name.endswith("tiff") else ImageOps.exif_transpose(back)  # Pillow turns a TIFF as it loads it
        self.check(name, file.getvalue(), over_white(turned), tolerance)


def pngs(test):
    width, height = SIDES
    rgb, rgba = stripes(width, height, 3), stripes(width, height, 4)
    rgba[..., 3] = np.linspace(0, 255, width).astype(np.uint8)
    for mode, pixels in (("RGB", rgb), ("RGBA", rgba), ("L", rgb[..., 0]), ("LA", rgba[..., 2:])):
        test.check_pillow(f"{mode}.png", Image.fromarray(pixels, mode))
    grey = Image.fromarray(rgb[..., 0], "L")
    test.check_pillow("bilevel.png", grey.convert("1"))
    for bits in (1, 2, 4, 8):
        palette = Image.fromarray(rgb).quantize(2**bits)
        test.check_pillow(f"palette{bits}.png", palette, bits=bits)
        test.check_pillow(f"palette{bits}_one_transparent.png", palette, bits=bits, transparency=1)
        shades = bytes(value * 7 % 256 for value in range(2**bits))
        test.check_pillow(f"palette{bits}_shades.png", palette, bits=bits, transparency=shades)
    test.check_pillow("colour_key.png", Image.fromarray(rgb), transparency=tuple(int(v) for v in rgb[3, 4]))
    test.check_pillow("profile.png", Image.fromarray(rgb), icc_profile=b"not a profile" * 50)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        test.check_pillow(f"turned{orientation}.png", Image.fromarray(rgb), exif=exif)
    for bits in (2, 4):  # Pillow writes no grey of these
        values = rgb[..., 0] >> (8 - bits)
        flags = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        rows = [np.packbits(row).tobytes() for row in flags.reshape(height, -1)]
        expected = np.repeat((values.astype(int) * 255 // (2**bits - 1)).astype(np.uint8)[..., None], 3, -1)
        test.check(f"grey{bits}.png", raw_png(width, height, bits, 0, rows), expected)
    for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):  # 16 bits: the upper 8
        low = stripes(width, height, channels, seed=9)
        high = stripes(width, height, channels)
        rows = [np.stack([h, l], -1).tobytes() for h, l in zip(high, low)]
        mode = {1: "L", 3: "RGB", 2: "LA", 4: "RGBA"}[channels]
        expected = over_white(Image.fromarray(high[..., 0] if channels == 1 else high, mode))
        gamma = png_chunk(b"gAMA", struct.pack(">I", 100000))
        test.check(f"sixteen{channels}.png", raw_png(width, height, 16, colour, rows, gamma), expected)
        if channels != 1:  # Pillow's "I" is another matter
            same = over_white(Image.open(test.folder / f"sixteen{channels}.png"))
            assert (same == expected).all()


def webps(test):
    width, height = SIDES
    rgb, rgba = stripes(width, height, 3), stripes(width, height, 4)
    rgba[..., 3] = np.linspace(0, 255, width).astype(np.uint8)
    for mode, pixels in (("RGB", rgb), ("RGBA", rgba)):
        for kind, options in (("lossy", {"quality": 80}), ("lossless", {"lossless": True, "exact": True})):
            test.check_pillow(f"{mode}_{kind}.webp", Image.fromarray(pixels, mode), **options)
    for orientation in (3, 6, 8):
        exif = Image.Exif()
        exif[0x112] = orientation
        test.check_pillow(f"turned{orientation}.webp", Image.fromarray(rgb), exif=exif, quality=90)
    frames = [Image.fromarray(stripes(width, height, 4, seed)) for seed in (5, 6, 7)]
    test.check_pillow("animated.webp", frames[0], save_all=True, append_images=frames[1:], duration=100, lossless=True)


def gifs(test):
    width, height = SIDES
    rgb = stripes(width, height, 3)
    for colours in (2, 16, 256):
        palette = Image.fromarray(rgb).quantize(colours)
        for interlace in (0, 1):
            test.check_pillow(f"colours{colours}_interlace{interlace}.gif", palette, interlace=interlace)
        test.check_pillow(f"colours{colours}_transparent.gif", palette, transparency=1)
    test.check_pillow("grey.gif", Image.fromarray(rgb[..., 0], "L"))
    frames = [Image.fromarray(stripes(width, height, 3, seed)) for seed in (5, 6, 7)]
    test.check_pillow("animated.gif", frames[0], save_all=True, append_images=frames[1:], duration=100)


def tiffs(test):
    width, height = SIDES
    rgb, rgba = stripes(width, height, 3), stripes(width, height, 4)
    rgba[..., 3] = np.linspace(0, 255, width).astype(np.uint8)
    image = Image.fromarray(rgb)
    for compression in (None, "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "webp"):
        options = {"compression": compression} if compression else {}
        test.check_pillow(f"rgb_{compression}.tiff", image, **options)
    for compression in ("group3", "group4", "tiff_ccitt"):
        test.check_pillow(f"bilevel_{compression}.tiff", image.convert("1"), compression=compression)
    test.check_pillow("grey.tiff", image.convert("L"))
    test.check_pillow("palette.tiff", image.quantize(256))
    test.check_pillow("rgba.tiff", Image.fromarray(rgba), tolerance=1)
    test.check_pillow("grey_alpha.tiff", Image.fromarray(rgba[..., 2:], "LA"), tolerance=1)
    cmyk = image.convert("CMYK")
    test.check_pillow("cmyk.tiff", cmyk, tolerance=1)
    for orientation in range(1, 9):
        test.check_pillow(f"turned{orientation}.tiff", image, tiffinfo={0x112: orientation})
    values = stripes(width, height, 1)[..., 0].astype(np.uint16) * 257 + 100
    file = io.BytesIO()
    Image.fromarray(values).save(file, "tiff")
    expected = np.repeat(((values.astype(int) + 128) // 257).astype(np.uint8)[..., None], 3, -1)
    test.check("sixteen.tiff", file.getvalue(), expected, 1)


def jpegs(test):
    width, height = SIDES
    image = Image.fromarray(stripes(width, height, 3))
    for mode in ("RGB", "L", "CMYK"):
        for progressive in (False, True):
            test.check_pillow(f"{mode}_{progressive}.jpg", image.convert(mode), quality=90, progressive=progressive)
    for subsampling in (0, 1, 2):
        test.check_pillow(f"subsampling{subsampling}.jpg", image, subsampling=subsampling)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        test.check_pillow(f"turned{orientation}.jpg", image, exif=exif)
    for path in sorted(Path("examples").glob("*.jpg")):
        test.check(f"example_{path.name}", path.read_bytes(),
                   over_white(ImageOps.exif_transpose(Image.open(path))))


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: compare_with_pillow.py PICTURE_TO_PPM")
    with tempfile.TemporaryDirectory(prefix="tokenflex-pillow-") as folder:
        test = Comparison(sys.argv[1], Path(folder))
        for kind in (pngs, webps, gifs, tiffs, jpegs):
            kind(test)
    print(f"{test.passed} passed, {test.failed} failed")
    sys.exit(test.failed > 0)


if __name__ == "__main__":
    main()
