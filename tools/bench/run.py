"""The bench: what is measured, against whom, how often. bench/run starts it.

Usage: run.py [SECTION...]    none: all. Environment: BUILD, MODEL, WORK, QUICK=1, ROUNDS.
Out: WORK/results/SECTION.json; tools/bench/report.py makes bench/results.json and docs/PERFORMANCE.md of them.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import cpu_profile
import numpy as np
from driver import Contestant, Program, alone, alternate, compare, result
from photos import make_photos
from stack import Stack

ROOT = Path(__file__).resolve().parents[2]
BUILD, MODEL, WORK = (Path(os.environ[name]).absolute() for name in ("BUILD", "MODEL", "WORK"))
PREPARED, TOOLS = WORK / "prepared", Path(__file__).resolve().parent
QUICK = os.environ.get("QUICK", "") not in ("", "0")
COUNTS, NEW, SEQUENCES = (64, 144, 256), 15, 8
ROUNDS = int(os.environ.get("ROUNDS") or (2 if QUICK else 5))
COSINE_IMAGES_MAX = 8 if QUICK else 64
SMALL, LARGE = make_photos(ROOT / "examples", WORK / "photos")


def peer(script: str, *arguments: object) -> list[str]:
    """A peer's command line."""
    return [sys.executable, str(TOOLS / script), *(str(argument) for argument in arguments)]


OURS = Program("tokenflex", [str(BUILD / "bench/ours"), str(MODEL)])
VIT = {kind: Program(kind, peer("peer_vit.py", kind, PREPARED))
       for kind in ("openvino-int8", "openvino-bf16", "onnxruntime-int8", "onnxruntime-f32", "openvino-f32")}
GENAI = Program("OpenVINO GenAI", peer("peer_genai.py", MODEL / "llm.gguf"))
LLAMA = {name: Program(f"llama.cpp {name}", peer("peer_llama.py", path)) for name, path in
         (("Q4_1", MODEL / "llm.gguf"), ("Q4_0", PREPARED / "llm-q4_0.gguf"), ("Q8_0", PREPARED / "llm-q8_0.gguf"))}
PICTURES = Program("llama.cpp mtmd", peer("peer_llama.py", MODEL / "llm.gguf", PREPARED / "mmproj.gguf"))
PILLOW = Program("Pillow", peer("peer_pillow.py"))


def per_s(answer: dict) -> float:
    """Units a second over all samples."""
    return answer["units"] * len(answer["ms"]) * 1000 / sum(answer["ms"])


def median_ms(answer: dict) -> float:
    """Of one command's samples."""
    return statistics.median(answer["ms"])


def prompt_tokens(tokens: int) -> int:
    """What the peers' prompts must count to be as long as ours."""
    return OURS.ask("prompt", tokens)["prompt_tokens"]


# ---- 1. ViT ----

def cosine_to_f32(program: Program) -> str:
    """Mean and least cosine of the patch features to OpenVINO's in f32, over pictures of the calibration set."""
    folder = WORK / "features"
    folder.mkdir(exist_ok=True)
    pixels, reference = folder / "pixels.f32", folder / "reference.f32"
    pictures = np.load(PREPARED / "calibration.npy")[-COSINE_IMAGES_MAX:].astype(np.float32)
    images = len(pictures)
    if not reference.is_file() or not pixels.is_file() or pixels.read_bytes() != pictures.tobytes():
        reference.unlink(missing_ok=True)
        pictures.tofile(pixels)
        VIT["openvino-f32"].ask("features", pixels, reference, images)
    out = folder / f"{program.name.replace(' ', '-')}.f32"
    program.ask("features", pixels, out, images)
    a, b = (np.fromfile(path, np.float32).reshape(images, -1).astype(np.float64) for path in (reference, out))
    cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return f"cosine to f32 {cosine.mean():.5f} (least {cosine.min():.5f})"


def vit_section() -> dict:
    """vit_1 and vit_batch."""
    kinds = ("openvino-int8",) if QUICK else ("openvino-int8", "openvino-bf16", "onnxruntime-int8", "onnxruntime-f32")
    labels = {"openvino-int8": "OpenVINO int8", "openvino-bf16": "OpenVINO bf16", "onnxruntime-int8": "onnxruntime int8",
              "onnxruntime-f32": "onnxruntime f32"}
    cosines = {kind: cosine_to_f32(VIT[kind]) for kind in kinds}
    ours = cosine_to_f32(OURS)
    calls = 10 if QUICK else 24
    results = []
    for name, batch in (("vit_1", 1), ("vit_batch", 8)):
        count = max(2, calls // batch)
        everybody = [Contestant(f"ours, {streams} x {2 // streams} threads", lambda s=streams: per_s(OURS.ask("vit", s, 2 // s, batch, count // s)),
                                True, ours) for streams in (1, 2)]
        for kind in kinds:
            for streams in (1, 2):
                everybody.append(Contestant(f"{labels[kind]}, {streams} stream{'s' * (streams > 1)}",
                                            lambda s=streams, k=kind: per_s(VIT[k].ask("vit", s, batch, count // s)), False, cosines[kind]))
        results.append(compare(name, "images/s", everybody, ROUNDS, True))
    return {"results": results}


# ---- 2. LLM ----

def llm_peers(command: str, of: object, *words: object, formats: tuple[str, ...] = tuple(LLAMA)) -> list[Contestant]:
    """GenAI and llama.cpp in its formats, asked the same."""
    programs = {"OpenVINO GenAI": GENAI} | {f"llama.cpp {name}": LLAMA[name] for name in formats if not QUICK or name == "Q4_0"}
    return [Contestant(name, lambda p=program: of(p.ask(command, *words))) for name, program in programs.items()]


def prefill_section() -> dict:
    """prefill_64, _144, _256."""
    results, calls = [], 2 if QUICK else 3
    for tokens in COUNTS:
        ours = Contestant("ours", lambda: median_ms(OURS.ask("prefill", tokens, calls)), True)
        peers = llm_peers("prefill", median_ms, prompt_tokens(tokens), calls)
        results.append(compare(f"prefill_{tokens}", "ms", [ours, *peers], ROUNDS, False))
    return {"results": results}


def decode_result(sequences: int, formats: tuple[str, ...], rounds: int) -> dict:
    """Milliseconds of a step."""
    steps = 8 if QUICK else 20
    ours = Contestant("ours", lambda: median_ms(OURS.ask("decode", sequences, steps)), True)
    peers = llm_peers("decode", median_ms, sequences, prompt_tokens(256), steps, formats=formats)
    return compare(f"decode_{sequences}", "ms", [ours, *peers], rounds, False)


def decode_section() -> dict:
    """decode_1 and decode_8."""
    return {"results": [decode_result(sequences, tuple(LLAMA), ROUNDS) for sequences in (1, 8)]}


def decode32_section() -> dict:
    """decode_32; prompts of 32 sequences take long, so only llama.cpp's fastest format takes part, in fewer rounds."""
    return {"results": [decode_result(32, ("Q4_0",), min(ROUNDS, 2))]}


def answers_section() -> dict:
    """tokens_64_vs_256_llm: whole answers of the LLM alone at each count."""
    def ours(tokens: int) -> Contestant:
        return Contestant(f"ours at {tokens}", lambda: per_s(OURS.ask("answers", tokens, SEQUENCES, NEW, 1)), True)

    low, middle, high = (ours(tokens) for tokens in COUNTS)
    alternate([low, middle, high], ROUNDS)
    return {"results": [result("tokens_64_vs_256_llm", "captions/s", low, high, [low, middle, high], True)]}


# ---- 3. the whole job ----

def jobs_of(stack: Stack, tokens: int, files: list[str], count: int) -> float:
    """Captions a second through Redis, router, encoder and LLM."""
    return stack.jobs(tokens, NEW, count, 4 * SEQUENCES, files)["per_s"]


def added_up(vit_per_s: float, answers_per_s: float) -> float:
    """Jobs a second of parts that share the cores and lose nothing between them."""
    return 1 / (1 / vit_per_s + 1 / answers_per_s)


def best_parts(tokens: int) -> Contestant:
    """OpenVINO's ViT and OpenVINO GenAI, added up."""
    def measure() -> float:
        vit = max(per_s(VIT["openvino-int8"].ask("vit", streams, 1, 20 // streams)) for streams in (1, 2))
        return added_up(vit, per_s(GENAI.ask("answers", prompt_tokens(tokens), SEQUENCES, NEW, 1)))

    return Contestant("OpenVINO int8 ViT + OpenVINO GenAI, added up", measure)


def llama_parts(tokens: int, quantisation: str) -> Contestant:
    """llama.cpp's vision encoder and LLM, added up: what its server does one after the other."""
    def measure() -> float:
        vit = PICTURES.ask("pictures", SMALL[0], 3)
        assert vit["tokens"] == 256
        return added_up(1000 / median_ms(vit), per_s(LLAMA[quantisation].ask("answers", prompt_tokens(tokens), SEQUENCES, NEW, 1)))

    return Contestant(f"llama.cpp multimodal, LLM in {quantisation}", measure)


def jobs_section() -> dict:
    """job_captions_per_s_*, against the best parts and against llama.cpp."""
    count = 16 if QUICK else 32
    with Stack(BUILD, MODEL, sequences=SEQUENCES) as stack:
        jobs_of(stack, 64, SMALL, 16)  # warms
        pair = {tokens: Contestant(f"ours at {tokens}", lambda n=tokens: jobs_of(stack, n, SMALL, count), True) for tokens in COUNTS}
        parts = {tokens: best_parts(tokens) for tokens in COUNTS}
        llama = [llama_parts(256, name) for name in LLAMA if not QUICK or name == "Q4_0"]
        alternate([one for tokens in COUNTS for one in (pair[tokens], parts[tokens])] + llama, 1 if QUICK else min(ROUNDS, 3))
    unit = "captions/s"
    results = [result(f"job_captions_per_s_{n}", unit, pair[n], parts[n], [pair[n], parts[n]], True) for n in COUNTS]
    best = max(llama, key=lambda one: one.median)
    results.append(result("job_captions_per_s_256_llamacpp", unit, pair[256], best, [pair[256], *llama], True))
    results.append(result("tokens_64_vs_256_pair", unit, pair[64], pair[256], list(pair.values()), True))
    return {"results": results}


def photos_section() -> dict:
    """200 photos of 224 pixels, and photos of 12 megapixels: the whole job against parts that decode too."""
    rows, rounds = [], 1 if QUICK else min(ROUNDS, 2)
    with Stack(BUILD, MODEL, sequences=SEQUENCES) as stack:
        for label, files, count in (("224 x 224", SMALL, 32 if QUICK else 200), ("4000 x 3000", LARGE, 16 if QUICK else 64)):
            ours = Contestant("ours", lambda: jobs_of(stack, 256, files, count), True)
            parts = best_parts(256)

            def with_decoding(parts: Contestant = parts, files: list[str] = files) -> float:
                # One photo on each core at once: half a thread's time each.
                return 1 / (1 / parts.measure() + median_ms(PILLOW.ask("picture", files[0], 3)) / 2000)

            theirs = Contestant("OpenVINO parts + Pillow, added up", with_decoding)
            alternate([ours, theirs], rounds)
            rows.append([label, f"{count}", f"{ours.median:.2f}", f"{theirs.median:.2f}", f"{ours.median / theirs.median:.2f}"])
    return {"tables": [{"title": "Photos by size, 256 tokens", "header": ["pixels", "photos", "ours, captions/s", "parts with Pillow", "ratio"], "rows": rows}]}


# ---- 4. parts, 5. scale ----

def start_up() -> dict:
    """Time and CPU time of a start to ready: without a folder for packed weights, filling one, and from a full one."""
    kinds = ("none", "empty", "filled")
    columns = {kind: {"wall": [], "encoder 0": [], "llm 0": []} for kind in kinds}
    for _ in range(2 if QUICK else ROUNDS):
        with tempfile.TemporaryDirectory(prefix="tokenflex-weights-") as name:
            folder = Path(name)
            for kind in kinds:
                with Stack(BUILD, MODEL, sequences=SEQUENCES, cache=None if kind == "none" else folder) as stack:
                    columns[kind]["wall"].append(stack.started_s)
                    for process in ("encoder 0", "llm 0"):
                        columns[kind][process].append(stack.cpu_s(process))
                    if kind == "empty":  # written behind the start's back
                        stack.wait(lambda: len(list(folder.glob("*.weights"))) == 2)
    rows = [[kind] + [f"{statistics.median(values) * 1000:.0f}" for values in columns[kind].values()] for kind in kinds]
    header = ["folder of packed weights", "all four ready, ms", "encoder, CPU ms", "LLM, CPU ms"]
    return {"title": f"Start-up, medians of {len(columns['none']['wall'])}", "header": header, "rows": rows}


def parts_section() -> dict:
    """What lies between the models."""
    calls = 5 if QUICK else 20
    rows = []
    for label, path in (("224 x 224", SMALL[0]), ("4000 x 3000", LARGE[0])):
        ours, pillow = (median_ms(program.ask("picture", path, max(3, calls // 2))) for program in (OURS, PILLOW))
        rows.append([f"JPEG of {label} to the ViT's input, one thread", f"{ours:.2f} ms", f"Pillow {pillow:.2f} ms"])
    for tokens in COUNTS:
        rows.append([f"projector, {tokens} tokens", f"{median_ms(OURS.ask('projector', tokens, calls)):.2f} ms", ""])
    for label, endpoint in (("ipc", f"ipc://{WORK}/hop.sock"), ("tcp, loopback", "tcp://127.0.0.1:*")):
        rows.append([f"tensor hop and acknowledgement, 256 x 576 f16, {label}", f"{median_ms(OURS.ask('hop', endpoint, 256, 576, 10 * calls)):.3f} ms", ""])
    with Stack(BUILD, MODEL, sequences=SEQUENCES) as stack:
        rows.append(["start-up, all four processes to ready", f"{stack.started_s:.2f} s", ""])
        for name, megabytes in stack.memory_mb().items():
            rows.append([f"resident memory at rest, {name}", f"{megabytes:.0f} MB", ""])
        before = {name: stack.cpu_s(name) for name in stack.processes}
        count = 16 if QUICK else 48
        stack.jobs(256, NEW, count, 4 * SEQUENCES, SMALL)
        for name in stack.processes:
            rows.append([f"CPU time a job at 256 tokens, {name}", f"{(stack.cpu_s(name) - before[name]) / count * 1000:.2f} ms", ""])
        for name, megabytes in stack.memory_mb().items():
            rows.append([f"resident memory after {count} jobs, {name}", f"{megabytes:.0f} MB", ""])
    return {"tables": [{"title": "Parts", "header": ["what", "ours", "peer"], "rows": rows}, start_up()]}


def profile_section() -> dict:
    """outside_matrix_kernels_share_*: where a job's CPU time goes, by perf."""
    reason = cpu_profile.Sampler.missing()
    if reason:
        print(f"profile: left out, {reason}", file=sys.stderr)
        return {}
    count, counts = 32 if QUICK else 200, {}
    sampler = cpu_profile.Sampler(BUILD)
    with Stack(BUILD, MODEL, sequences=SEQUENCES) as stack:
        jobs_of(stack, 64, SMALL, 8)
        pids = {name: process.pid for name, process in stack.processes.items()}
        for tokens in (64, 256):
            try:
                seconds = sampler.sample(pids, lambda n=tokens: jobs_of(stack, n, SMALL, count), lambda: sum(map(stack.cpu_s, pids)))
            except cpu_profile.Unusable as error:
                print(f"profile: left out, at {tokens} tokens {error}", file=sys.stderr)
                return {}
            counts[tokens] = (count, seconds)
    results = [alone(f"outside_matrix_kernels_share_{tokens}", "share", cpu_profile.outside(seconds)) for tokens, (_, seconds) in counts.items()]
    return {"results": results, "tables": [cpu_profile.table_of(counts)]}


def router_section() -> dict:
    """router_jobs_per_s: Redis and one router with tiers that answer at once, against the streams alone."""
    count = 4000 if QUICK else 20000
    with Stack(BUILD, MODEL, stub=BUILD / "bench/fake_worker") as stack:
        stack.jobs(64, NEW, 500, 500, ["/nothing.jpg"])
        ours = Contestant("ours: claim, assign, stage, commit", lambda: stack.jobs(64, NEW, count, 2000, ["/nothing.jpg"])["per_s"], True)
        streams = Contestant("Redis Streams alone: XADD, XREADGROUP, XADD, XACK, XDEL", lambda: stack.streams(count)["per_s"])
        names = ("router", "redis-server")
        before = [stack.cpu_s(name) for name in names]
        ours.measure()
        rows = [[name, f"{(stack.cpu_s(name) - was) / count * 1e6:.0f} us"] for name, was in zip(names, before)]
        alternate([ours, streams], min(ROUNDS, 3))
    return {"results": [result("router_jobs_per_s", "jobs/s", ours, streams, [ours, streams], True)],
            "tables": [{"title": "CPU time of a job outside the tiers", "header": ["process", "a job"], "rows": rows}]}


def scale_section() -> dict:
    """Captions a second against batch sizes, worker count and every N."""
    count, tables = 16 if QUICK else 24, []
    rows = []
    for batch, sequences in ((1, 1), (1, 8), (4, 8)) if QUICK else ((1, 1), (1, 4), (4, 8), (8, 8), (4, 16), (8, 32)):
        with Stack(BUILD, MODEL, sequences=sequences, batch=batch) as stack:
            jobs_of(stack, 64, SMALL, 8)
            rows.append([f"{batch}", f"{sequences}"] + [f"{stack.jobs(tokens, NEW, count, 4 * max(sequences, 4), SMALL)['per_s']:.2f}" for tokens in COUNTS])
    header = ["images a pass", "sequences"] + [f"captions/s at {tokens}" for tokens in COUNTS]
    tables.append({"title": "Batch sizes", "header": header, "rows": rows})
    rows = []
    for workers, threads in ((1, 2), (2, 1)):
        with Stack(BUILD, MODEL, sequences=SEQUENCES, workers=workers, threads=threads) as stack:
            jobs_of(stack, 64, SMALL, 8)
            rows.append([f"{workers}", f"{threads}"] + [f"{jobs_of(stack, tokens, SMALL, count):.2f}" for tokens in COUNTS])
    header = ["pairs of workers", "threads each"] + [f"captions/s at {tokens}" for tokens in COUNTS]
    tables.append({"title": "Workers on two cores", "header": header, "rows": rows})
    return {"tables": tables}


SECTIONS = {"vit": vit_section, "prefill": prefill_section, "decode": decode_section, "decode32": decode32_section, "answers": answers_section, "jobs": jobs_section,
            "router": router_section, "photos": photos_section, "parts": parts_section, "profile": profile_section, "scale": scale_section}
QUICK_SECTIONS = ("vit", "prefill", "decode", "decode32", "answers", "jobs", "router")


def main() -> None:
    """[SECTION...]"""
    out = WORK / ("results-quick" if QUICK else "results")
    out.mkdir(parents=True, exist_ok=True)
    print(f"{'':34} {'ours':>10} {'peer':>10} {'':12} {'ratio':>6}", file=sys.stderr)
    for name in sys.argv[1:] or (QUICK_SECTIONS if QUICK else SECTIONS):
        if name not in SECTIONS:
            raise SystemExit(f"bench: no section {name}; there are {', '.join(SECTIONS)}")
        done = SECTIONS[name]()
        for table in done.get("tables", []):
            print(f"{table['title']}: " + " | ".join(table["header"]), file=sys.stderr)
            for row in table["rows"]:
                print("  " + " | ".join(row), file=sys.stderr)
        (out / f"{name}.json").write_text(json.dumps(done, indent=1) + "\n")
    Program.close_all()


if __name__ == "__main__":
    main()
