"""Sections' results to what is committed: bench/results.json and docs/PERFORMANCE.md.

Usage: report.py RESULTS-FOLDER RESULTS-JSON PERFORMANCE-MD
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

SECTIONS = ("vit", "prefill", "decode", "decode32", "answers", "jobs", "photos", "parts", "profile", "scale", "router")
NAMES = ("vit_1", "vit_batch", "prefill_64", "prefill_144", "prefill_256", "decode_1", "decode_8", "decode_32",
         "job_captions_per_s_64", "job_captions_per_s_144", "job_captions_per_s_256", "job_captions_per_s_256_llamacpp",
         "tokens_64_vs_256_llm", "tokens_64_vs_256_pair", "router_jobs_per_s", "outside_matrix_kernels_share_64", "outside_matrix_kernels_share_256")
GOALS = {"vit_1": 1.1, "prefill_256": 1.5, "decode_8": 1.8, "decode_1": 1.5, "job_captions_per_s_256": 1.6,
         "job_captions_per_s_256_llamacpp": 3, "tokens_64_vs_256_llm": 2.1, "tokens_64_vs_256_pair": 1.7}
BELOW = {"outside_matrix_kernels_share_256": 0.15}  # no peer: the value itself has a goal
PACKAGES = ("openvino", "openvino-genai", "nncf", "onnxruntime", "llama-cpp-python", "numpy", "pillow")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def machine() -> dict[str, object]:
    """Processor, what it can do, memory, and who was there."""
    text = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split("\t: ", 1) for line in text.splitlines() if "\t: " in line.replace("\t\t", "\t"))
    fields = {key.strip(): value for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    kb = int(Path("/proc/meminfo").read_text().split()[1])
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout.strip()
    return {"cpu": fields.get("model name", platform.processor()), "cores": os.cpu_count(),
            "features": [flag for flag in FLAGS if flag in flags], "memory_gib": round(kb / 2**20), "versions": versions,
            "compiler": subprocess.run(["cc", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip(),
            "commit": commit, "date": datetime.date.today().isoformat()}


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def number(value: float) -> str:
    """Three digits that matter."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def summary(results: list[dict]) -> str:
    """One line a result."""
    rows = []
    for one in results:
        goal = GOALS.get(one["name"])
        verdict = f"{goal}: {'met' if one['ratio'] >= goal else 'missed'}" if goal else ""
        if one["ratio"] is None:
            most = BELOW.get(one["name"])
            verdict = f"below {most}: {'met' if one['ours'] < most else 'missed'}" if most else ""
            rows.append([f"`{one['name']}`", number(one["ours"]), "", one["unit"], "", "", "", verdict])
            continue
        rows.append([f"`{one['name']}`", number(one["ours"]), number(one["peer"]), one["unit"], f"**{one['ratio']:.2f}**",
                     f"{one['ratio_low']:.2f} to {one['ratio_high']:.2f}", one["peer_name"], verdict])
    return table(["name", "ours", "peer", "unit", "ratio", "in single rounds", "peer", "goal"], rows)


def details(one: dict) -> str:
    """Everybody who took part."""
    rows = [[c["name"], number(c["value"]), f"{number(c['low'])} to {number(c['high'])}", c["detail"]] for c in one["contestants"]]
    return f"### {one['name']} ({one['unit']}, {one['rounds']} rounds)\n" + table(["who", "median", "spread", ""], rows)


TEXT = """# Performance, side by side
Made by `make bench` on {date}, commit {commit}. Absolute times drift from run to run; the ratios are of medians inside one run in
which the sides took turns. Ratio above 1: tokenflex is faster.

**Machine**: {cpu}, {cores} cores, {features}, {memory_gib} GiB; Debian 12, gcc {compiler}.
**Peers**: {versions}; llama.cpp is built from source for this processor.

{summary}
## What each side ran
- **ViT**: DINOv2-S, 224 pixels, the same weights on all sides (the ONNX that vision.gguf is made from, cut after its final norm).
  OpenVINO int8: NNCF post-training quantisation for transformers. `vit_1`: one image a call; `vit_batch`: eight. Streams:
  independent calls at once; two cores in all. Each side is shown at one stream and at two, the better one is in the ratio.
- **LLM**: the same GGUF, SmolLM2-135M-Instruct Q4_1. Peers get random token ids, as many as our prompt has; we get random vision
  tokens. No prompt comes twice and the peers' prefix caches are off; ours may keep the few words before the image, as it
  does for every job. `decode_N`: one step of N sequences after 256 vision tokens. llama.cpp: the file as shipped and
  re-quantised to Q4_0 and Q8_0.
- **Jobs**: Redis (append-only, fsync every second), router, encoder and LLM as separate programs, photos of 224 pixels by
  file: URI, {new} new tokens each, end of text ignored, 8 sequences in the LLM's batch. The peers' side is the time of their ViT
  call and of their LLM's 8 requests at once, added up: no queue, no photo decoding, no transfer.
- **llama.cpp multimodal**: its vision encoder (mtmd) with the same ViT at f16 and a random projector of as many weights as
  ours, one photo after the other, then its LLM on 8 sequences; decoding the small photo is part of it.
- **router_jobs_per_s**: one router and one Redis with tiers that answer at once (claim, assign, stage, commit, four scripts a
  job); beside it the same Redis with nothing but bare stream commands, pipelined by the hundred.
- **outside_matrix_kernels_share_N**: of the CPU time of router, Redis, encoder and LLM while 200 photos of 224 pixels pass, what is
  not spent in matrix kernels; sampled by perf (cpu-clock, 499 Hz), sorted by the file and name of the function. Matrix kernels are
  the linears' products with the epilogues of their tiles (scales, bias, activation, SwiGLU, residual), and attention's two products.
  All else is outside: soft maximum, norms, rows turned to int8 or bf16, RoPE, threads that wait, the kernel.

{tables}
## Everybody's numbers
{details}"""


def main() -> None:
    """RESULTS-FOLDER RESULTS-JSON PERFORMANCE-MD"""
    folder, results_path, text_path = (Path(argument) for argument in sys.argv[1:4])
    sections = {name: json.loads((folder / f"{name}.json").read_text()) for name in SECTIONS if (folder / f"{name}.json").is_file()}
    found = {one["name"]: one for section in sections.values() for one in section.get("results", [])}
    results = [found[name] for name in NAMES if name in found]
    tables = [one for section in sections.values() for one in section.get("tables", [])]
    about = machine()
    results_path.write_text(json.dumps(results, indent=1) + "\n")
    text = TEXT.format(**about | {"features": ", ".join(about["features"]), "new": 15,
                                  "versions": ", ".join(f"{name} {version}" for name, version in about["versions"].items())},
                       summary=summary(results), details="\n".join(details(one) for one in results if one["contestants"]),
                       tables="\n".join(f"### {one['title']}\n{table(one['header'], one['rows'])}" for one in tables))
    text_path.write_text(text)
    print(f"bench: {results_path} and {text_path} are written", file=sys.stderr)


if __name__ == "__main__":
    main()
