"""A folder of small pictures, good and broken, for the integration test of the formats.

In: a folder to fill, and tests/pictures (HEIC and AVIF, which Pillow does not write). Out: the files; and beside the
folder FOLDER.expected with a line "NAME<TAB>CODE" each, CODE being ok, skipped, or the error's name.
"""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (80, 60)


def picture():
    y, x = np.mgrid[0:SIZE[1], 0:SIZE[0]]
    return Image.fromarray(np.stack([x * 3 % 256, y * 4 % 256, (x + y) % 256], -1).astype(np.uint8))


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def good():
    image = picture()
    transparent = image.convert("RGBA")
    transparent.putalpha(image.convert("L"))
    turned = Image.Exif()
    turned[0x112] = 6
    frames = {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)], "duration": 100}
    yield "baseline.jpg", saved(image, "jpeg")
    yield "progressive.jpeg", saved(image, "jpeg", progressive=True)
    yield "grey.jpe", saved(image.convert("L"), "jpeg")
    yield "cmyk.JPG", saved(image.convert("CMYK"), "jpeg")
    yield "turned.jpg", saved(image, "jpeg", exif=turned)
    yield "colours.png", saved(image, "png")
    yield "alpha.png", saved(transparent, "png")
    yield "palette.png", saved(image.quantize(16), "png", transparency=3)
    yield "lossy.webp", saved(image, "webp")
    yield "lossless.webp", saved(transparent, "webp", lossless=True)
    yield "animated.webp", saved(image, "webp", **frames)
    yield "still.gif", saved(image, "gif")
    yield "animated.gif", saved(image, "gif", **frames)
    yield "strips.tif", saved(image, "tiff")
    yield "packed.tiff", saved(image.convert("CMYK"), "tiff", compression="tiff_lzw")
    yield "wrong_name.png", saved(image, "webp")
    yield "no_name_at_all", saved(image, "gif")
    for path in sorted(Path("tests/pictures").iterdir()):
        yield path.name, path.read_bytes()


def with_png_size(data, width, height):
    head = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def changed(data, mark, offset, new):
    at = data.index(mark) + offset
    return data[:at] + new + data[at + len(new):]


def broken():
    """Name, bytes, code."""
    image = picture()
    whole = {kind: saved(image, kind) for kind in ("jpeg", "png", "webp", "gif", "tiff")}
    whole["heic"] = Path("tests/pictures/tiny.heic").read_bytes()
    whole["avif"] = Path("tests/pictures/tiny.avif").read_bytes()
    for kind, data in whole.items():
        yield f"cut.{kind}", data[:len(data) * 2 // 3], "image_truncated"
    for kind in ("jpg", "png", "heic", "tiff"):
        yield f"empty.{kind}", b"", "image_empty"
    yield "tables.jpg", changed(whole["jpeg"], b"\xff\xc4", 5, b"\xfe" * 16), "image_corrupt"
    yield "large.jpg", changed(whole["jpeg"], b"\xff\xc0", 5, b"\xf0\0\xf0\0"), "image_too_large"
    yield "twelve.jpg", changed(whole["jpeg"], b"\xff\xc0", 4, b"\x0c"), "image_unsupported"
    yield "sum.png", changed(whole["png"], b"IDAT", 30, b"\x55\x55"), "image_corrupt"
    yield "large.png", with_png_size(whole["png"], 100000, 100000), "image_too_large"
    yield "bomb.png", with_png_size(whole["png"], 15000, 15000), "image_truncated"
    yield "bits.webp", changed(whole["webp"], b"\x9d\x01\x2a", -3, b"\xff\xff\xff"), "image_corrupt"
    yield "no_codec.heic", changed(whole["heic"], b"hvcC", 0, b"oops"), "image_corrupt"
    yield "bits.avif", changed(whole["avif"], b"mdat", 4, b"\x80" * 40), "image_corrupt"
    yield "large.gif", changed(whole["gif"], b"GIF8", 6, b"\xff\xff\xff\xff"), "image_too_large"
    yield "no_picture.gif", b"GIF89a\1\0\1\0\0\0\0;", "image_truncated"
    yield "text.jpg", b"no picture\n", "image_unsupported"
    yield "page.png", b"<!DOCTYPE html><title>404</title>", "image_unsupported"
    yield "archive.webp", b"PK\3\4rest of an archive", "image_unsupported"
    yield "windows.bmp", b"BM" + bytes(60), "image_unsupported"


def skipped():
    yield "notes.txt", b"no picture"
    yield "film.mp4", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"
    yield "nothing", b""
    yield "archive.zip", b"PK\3\4"


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: picture_samples.py FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(name, data, "ok") for name, data in good()] + list(broken())
    rows += [(name, data, "skipped") for name, data in skipped()]
    for name, data, _ in rows:
        (folder / name).write_bytes(data)
    Path(f"{folder}.expected").write_text("".join(f"{name}\t{code}\n" for name, _, code in rows))


if __name__ == "__main__":
    main()
