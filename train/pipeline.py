"""How good the shipped programs' captions are: the same scores as train.evaluate, through `tokenflex caption`.

In: data folder, model folder, the program, token counts. Out: a JSON line for each count: scores, images, failures, images
a second. Images in tars are unpacked into a temporary folder that goes at the end.
Run: python -m train.pipeline --data DIR --model DIR --program build/release/tokenflex [--images 300]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from . import data
from .evaluate import scores


def unpack(source: Path, wanted: set[str], target: Path) -> None:
    """Writes the wanted images of a data folder, wherever they lie in it, into one folder."""
    for name, content in data.load(source, wanted).items():
        (target / name).write_bytes(content)


def caption(program: Path, model: Path, images: Path, count: int, extra: list[str]) -> tuple[dict[str, str], float]:
    """Captions by file name, and the seconds that the command took. The output must not exist before."""
    with tempfile.TemporaryDirectory() as folder:
        output, start = Path(folder) / "captions.jsonl", time.monotonic()
        command = [program, "caption", images, "--model", model, "--vision-tokens", str(count), "-o", output, *extra]
        status = subprocess.run([str(part) for part in command], check=False).returncode
        if status not in (0, 3):  # 3: some failed, and are counted below
            raise SystemExit(f"{program} ended with status {status}")
        seconds = time.monotonic() - start
        lines = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    return {Path(line["image"]).name: line["caption"] for line in lines}, seconds


def measure(examples: list[data.Example], captions: dict[str, str], count: int, seconds: float) -> dict[str, Any]:
    """The numbers of one count; an image without a caption scores as an empty one."""
    result: dict[str, Any] = {"vision_tokens": count, "images": len(examples)}
    result["failed"] = sum(example.file not in captions for example in examples)
    result |= scores([example.captions for example in examples], [captions.get(e.file, "") for e in examples])
    return result | {"images_per_second": round(len(examples) / seconds, 2)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measures captions of the C programs on captioned images.")
    for name in ("data", "model", "program"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--images", type=int, default=0, help="the first so many; 0: all")
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 144, 256])
    parser.add_argument("--captions", type=Path, help="writes file, count, caption as TSV")
    parser.add_argument("options", nargs="*", help="after --: options handed to tokenflex caption")
    options = parser.parse_args()
    examples, lines = data.read_captions(options.data, options.split)[:options.images or None], []
    with tempfile.TemporaryDirectory() as folder:
        unpack(options.data, {example.file for example in examples}, Path(folder))
        for count in options.counts:
            captions, seconds = caption(options.program, options.model, Path(folder), count, options.options)
            print(json.dumps(measure(examples, captions, count, seconds)), flush=True)
            lines += [f"{e.file}\t{count}\t{captions.get(e.file, '')}\n" for e in examples]
    if options.captions:
        options.captions.write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    main()
