#!/usr/bin/env python3
"""The stages of `run.sh`, which builds what they need and calls this.

A stage checks or measures one thing under a time limit of its own, and what it found is written before the next begins:
one that fails or takes too long loses nothing but itself. `long` asks for the time that is left before it starts. What was
run is in OUT/commands.log.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples/benchmarks"))
import report  # noqa: E402

STARTED = time.monotonic()
# All of it, the builds not counted.
WHOLE_SECONDS = 470
THREADS = int(os.environ.get("THREADS", os.cpu_count() or 1))
for variable in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(THREADS)
RIVAL = ROOT / "examples/benchmarks/rivals/wanda_torch.py"
FIXTURES = ROOT / "tests/fixtures"
BUNDLED = ROOT / "examples/bundled-model"
# Bits in which masks of own forward passes in float32 may differ.
DIFFERENT_BITS = 1e-3

# Weights of the seven matrices of a block of LLaMA-7B, and of all blocks.
HIDDEN, INTERMEDIATE, HEADS, BLOCKS = 4096, 11008, 32, 32
BLOCK_WEIGHTS = 4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE


class Failed(Exception):
    """A command failed, took too long, or said something else than it should."""


def left():
    return WHOLE_SECONDS - (time.monotonic() - STARTED)


def say(text):
    print(text, file=sys.stderr, flush=True)


class Watch(threading.Thread):
    """The most memory that anybody has on the device, as nvidia-smi tells it."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most = self.first = None
        self.over = threading.Event()

    def run(self):
        ordinal = DEVICE.partition(":")[2] or "0"
        command = ["nvidia-smi", "-i", ordinal, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self.over.wait(0.1):
            try:
                said = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
                used = int(said.split()[0]) << 20
            except (OSError, subprocess.SubprocessError, ValueError, IndexError):
                return
            self.first = used if self.first is None else self.first
            self.most = max(self.most or 0, used)


def ran(command, limit, watch=False):
    """What a command says as JSON, with `wall_seconds` of the whole process."""
    command = [str(part) for part in command]
    limit = max(1, min(limit, left()))
    with open(OUT / "commands.log", "a", encoding="utf-8") as log:
        print(" ".join(command), file=log)
    watching = Watch()
    if watch:
        watching.start()
    started = time.perf_counter()
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as late:
        raise Failed(f"`{command[0]}` took more than {limit:.0f} s") from late
    finally:
        watching.over.set()
    seconds = time.perf_counter() - started
    if child.returncode != 0:
        raise Failed(f"`{' '.join(command)}` failed ({child.returncode}): {(child.stderr + child.stdout).strip()[-1500:]}")
    said = child.stdout.strip()
    # libraries of others may say something first
    last = said.splitlines()[-1] if said else ""
    answer = json.loads(said if said.startswith("{") else last) if said.startswith("{") or last.startswith("{") else {"said": said}
    answer["wall_seconds"] = seconds
    if watching.most is not None:
        answer["device_bytes_by_nvidia_smi"] = watching.most - watching.first
    return answer


def fresh(name):
    path = OUT / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return path


def compute(name, model, device, *extra, group, samples, tokens, limit, text=None, watch=False):
    fresh(f"{name}.unfinished")
    return ran([FEDPRUNE, "mask", "compute", "--model", model, "--data", text or TEXT, "--nsamples", samples, "--seqlen",
                tokens, "--sampling", "sequential", "--local-group", group, "--device", device, *extra, "--out", fresh(name),
                "--format", "json"], limit, watch)


def shown(model, *names, limit=60):
    """What the processor makes of ballots: roots of their masks, and the bits in which they differ."""
    return ran([FEDPRUNE, "mask", "show", *(OUT / name for name in names), "--model", model, "--format", "json"], limit)


def need(condition, words):
    if not condition:
        raise Failed(words)


def row(key, work, ours, figure, kind, goal, floor=None, rival=None):
    """One line of the table: `figure` is (number, unit), `kind` is "at most" or "at least"."""
    value, unit = figure
    met = None if goal is None else (value <= goal if kind == "at most" else value >= goal)
    ROWS.append(dict(key=key, work=work, ours=ours, floor=floor, rival=rival, figure=value, unit=unit, kind=kind, goal=goal,
                     met=met))


def rates():
    found = RESULTS.get("rates", {}).get("found")
    if not found:
        raise Failed("the rates of this machine were not measured")
    return found


# --- floors ---------------------------------------------------------------------------------------------------------

def block_bytes():
    return 2 * BLOCK_WEIGHTS


def operations(blocks, windows, tokens):
    """Of both runs: products, and causal attention, whose scores are half a square; the last block runs once and its last
    product never."""
    runs = 2 * blocks - 1
    products = 2 * BLOCK_WEIGHTS * windows * tokens * runs
    attention = 2 * 2 * windows * HIDDEN * (tokens * tokens / 2) * runs
    unread = 2 * HIDDEN * INTERMEDIATE * windows * tokens * blocks
    return products + attention - unread


def floor_seconds(blocks, windows, tokens):
    """Every weight once over the bus, every operation at the measured rate."""
    upload = blocks * block_bytes() / rates()["host_to_device_bytes_per_second"]
    return upload, operations(blocks, windows, tokens) / rates()["bf16_operations_per_second"]


# --- stages ---------------------------------------------------------------------------------------------------------

def stage_devices():
    found = ran([FEDPRUNE, "model", "devices", "--format", "json"], 60)
    names = [device["device"] for device in found["devices"]]
    need("cpu" in names, f"no processor among {names}")
    if CPU_ONLY:
        need(found.get("no_gpus"), "a program without CUDA must say why it lists no GPU")
    else:
        need(DEVICE in names, f"{DEVICE} is not among {names}: {found.get('no_gpus')}")
    for device in found["devices"]:
        say(f"  {device}")
    return found


def pairs_agree(model, name, group, samples, tokens, text, limit, sparsity="0.5"):
    """A ballot of the processor and one of the device, both in float32: roots from the same norms, bits from own passes."""
    answers = {}
    for where, device in (("cpu", "cpu"), ("gpu", "cpu" if CPU_ONLY else DEVICE)):
        answers[where] = compute(f"{name}-{where}.ballot", model, device, "--dtype", "f32", "--sparsity", sparsity,
                                 group=group, samples=samples, tokens=tokens, text=text, limit=limit)
    both = shown(model, f"{name}-cpu.ballot", f"{name}-gpu.ballot")
    for where, file in zip(("cpu", "gpu"), both["files"]):
        need(file["mask_root"] == answers[where]["mask_root"],
             f"{name}, {group}: the {where}'s mask is not the one that the processor makes of the same norms")
    weights, different = answers["cpu"]["prunable_weights"], both["agreement"][0]["different_bits"]
    need(different <= DIFFERENT_BITS * weights, f"{name}, {group}: {different} of {weights} bits differ")
    return dict(name=name, group=group, weights=weights, different_bits=different, same_norms="bit-identical")


def stage_fixtures():
    """Every architecture, every kind of group; a token is a byte."""
    tiny = OUT / "tiny"
    if not (tiny / "config.json").exists():
        fresh("tiny")
        ran([WRITE_CHECKPOINT, "--out", tiny, "--shape", "tiny"], 60)
    tokenizer = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8")) | {"added_tokens": []}
    found = []
    for fixture in sorted(path for path in FIXTURES.iterdir() if (path / "expected.json").exists()):
        folder = fresh(f"fixture-{fixture.name}")
        folder.mkdir()
        for path in fixture.glob("*"):
            if path.name == "config.json" or path.name.startswith("model"):
                shutil.copy(path, folder)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        for group in ("layer", "row", "column", "2:4"):
            sparsity = "0.5" if ":" in group else json.loads((fixture / "expected.json").read_text())["sparsity"]
            name = f"{fixture.name}-{group.replace(':', 'of')}"
            found.append(pairs_agree(folder, name, group, 4, 48, None, 60, sparsity))
    return found


def stage_bundled():
    text = sorted((BUNDLED / "silos").glob("*.txt"))[0]
    model = BUNDLED / "model"
    found = [pairs_agree(model, f"bundled-{group.replace(':', 'of')}", group, 16, 128, text, 120)
             for group in ("layer", "row", "column", "2:4", "4:8")]
    for group in ("layer", "row"):
        # in bf16, which is what a GPU computes in: told, and no promise
        name = f"bundled-{group}-bf16.ballot"
        answer = compute(name, model, "cpu" if CPU_ONLY else DEVICE, "--dtype", "bf16", group=group, samples=16, tokens=128,
                         text=text, limit=120)
        both = shown(model, f"bundled-{group}-cpu.ballot", name)
        need(both["files"][1]["mask_root"] == answer["mask_root"], f"bf16, {group}: another mask from the same norms")
        found.append(dict(name="bundled, bf16 beside f32", group=group, weights=answer["prunable_weights"],
                          different_bits=both["agreement"][0]["different_bits"]))
    perplexity = {}
    for where, device, dtype in (("cpu-f32", "cpu", "f32"), ("gpu-f32", DEVICE, "f32"), ("gpu-bf16", DEVICE, "bf16")):
        perplexity[where] = ran(
            [FEDPRUNE, "eval", "perplexity", "--model", model, "--data", BUNDLED / "held_out.txt", "--seqlen", 128,
             "--max-windows", 32, "--device", "cpu" if CPU_ONLY else device, "--dtype", dtype, "--format", "json"],
            120)["perplexity"]
    say(f"  perplexity: {perplexity}")
    need(abs(perplexity["gpu-f32"] / perplexity["cpu-f32"] - 1) < 1e-3, f"perplexity differs: {perplexity}")
    return dict(masks=found, perplexity=perplexity)


def stage_rates():
    if CPU_ONLY:
        # numbers that nobody has measured, so that the arithmetic of the floors is run
        return dict(host_to_device_bytes_per_second=50e9, bf16_operations_per_second=700e12,
                    device_copy_bytes_per_second=4e12, assumed=True)
    found = ran([sys.executable, ROOT / "examples/gpu/rates_torch.py", DEVICE], 90)
    say(f"  host to device {found['host_to_device_bytes_per_second'] / 1e9:.1f} GB/s, bf16 "
        f"{found['bf16_operations_per_second'] / 1e12:.0f} TFLOP/s, device copy "
        f"{found['device_copy_bytes_per_second'] / 1e9:.0f} GB/s")
    return found


def model_folder():
    named = os.environ.get("LLAMA7B")
    return pathlib.Path(named) if named else OUT / ("tiny" if CPU_ONLY else f"llama-{BLOCKS_MADE}")


def blocks_there():
    return 3 if CPU_ONLY else BLOCKS_MADE


def stage_model():
    folder = model_folder()
    if not (folder / "config.json").exists():
        fresh(folder.name)
        shape = ["--shape", "tiny"] if CPU_ONLY else ["--shape", "llama-7b", "--blocks", BLOCKS_MADE]
        found = ran([WRITE_CHECKPOINT, "--out", folder, *shape], 150)
        say(f"  {found['said']}")
    # once through the page cache
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while data := file.read(16 << 20):
                total += len(data)
    return dict(folder=str(folder), bytes=total, blocks=blocks_there())


def stage_upload():
    """Our own way of bringing weights there, beside the bus."""
    if CPU_ONLY:
        return dict(skipped="needs a GPU")
    found = ran([GPU_KERNELS, "upload", "--device", DEVICE.partition(":")[2] or "0", "--json"], 60)
    ratio = found["bytes_per_second"] / rates()["host_to_device_bytes_per_second"]
    row("upload", "weights to the device, from pageable memory", f"{found['bytes_per_second'] / 1e9:.1f} GB/s",
        (ratio, "× pinned"), "at least", None, floor=f"{rates()['host_to_device_bytes_per_second'] / 1e9:.1f} GB/s")
    return found


def stage_ballot():
    """Two windows, layer, half: weights in page cache to ballot, beside torch."""
    samples, tokens = (2, 64) if CPU_ONLY else (2, 2048)
    shape = "tiny shape" if CPU_ONLY else f"LLaMA-7B shape, {blocks_there()} blocks"
    ours, theirs = [], []
    for turn in range(1 if CPU_ONLY else 2):
        ours.append(compute(f"ballot-{turn}.ballot", model_folder(), "cpu" if CPU_ONLY else DEVICE, group="layer",
                            samples=samples, tokens=tokens, limit=90, watch=not CPU_ONLY))
        say(f"  {ours[-1]['wall_seconds']:.2f} s")
    need(ours[0]["mask_root"] == ours[-1]["mask_root"], "twice the same run, and two masks")
    upload, compute_seconds = floor_seconds(blocks_there(), samples, tokens)
    seconds = min(run["wall_seconds"] for run in ours)
    floor = upload + compute_seconds
    work = f"{shape}, {samples} × {tokens} tokens, layer, 50 %: to the ballot"
    row("ballot", work, report.seconds(seconds), (seconds / floor, "× floor"), "at most", None if CPU_ONLY else 3.0,
        floor=f"{report.seconds(floor)} = upload {report.seconds(upload)} + operations {report.seconds(compute_seconds)}")
    memory = [run.get("peak_device_memory_bytes") for run in ours if run.get("peak_device_memory_bytes")]
    if memory:
        allowed = 2 * block_bytes() + samples * tokens * HIDDEN * 2
        row("memory", f"{shape}, {samples} × {tokens} tokens: device memory beyond two blocks and activations",
            report.size(max(memory)), ((max(memory) - allowed) / (1 << 30), "GiB"), "at most", 1.0,
            floor=report.size(allowed))
    # what others see of it: with the driver's context and what the allocator keeps
    by_driver = [run["device_bytes_by_nvidia_smi"] for run in ours if run.get("device_bytes_by_nvidia_smi")]
    if by_driver:
        row("memory-by-driver", f"{shape}, {samples} × {tokens} tokens: device memory, as nvidia-smi has it",
            report.size(max(by_driver)), (max(by_driver) / (1 << 30), "GiB"), "at most", None)
    try:
        theirs.append(ran([sys.executable, RIVAL, model_folder(), TEXT, "--nsamples", samples, "--seqlen", tokens, "--group",
                           "layer", "--threads", THREADS, "--device", "cpu" if CPU_ONLY else DEVICE], 120))
        beside = theirs[0]["seconds_without_import"]
        row("ballot-torch", f"{work}: beside torch", report.seconds(seconds), (beside / seconds, "× faster"), "at least",
            None if CPU_ONLY else 2.0,
            rival=f"torch {report.seconds(beside)} without its import, {report.seconds(theirs[0]['seconds'])} with it")
    except Failed as problem:
        say(f"  torch: {problem}")
        theirs.append(dict(failed=str(problem)))
    return dict(ours=ours, torch=theirs, floor=dict(upload=upload, operations=compute_seconds))


def stage_selection():
    if CPU_ONLY:
        return dict(skipped="needs a GPU")
    found = ran([GPU_KERNELS, "select", "--device", DEVICE.partition(":")[2] or "0", "--rows", HIDDEN, "--columns",
                 INTERMEDIATE, "--json"], 90)
    for group in ("layer", "row"):
        taken = found[group]
        share = taken["bytes"] / taken["seconds"] / rates()["device_copy_bytes_per_second"]
        row(f"selection-{group}", f"selection alone, {HIDDEN} × {INTERMEDIATE}, {group}", report.seconds(taken["seconds"]),
            (share, "× device copy"), "at least", 0.6,
            floor=report.seconds(taken["bytes"] / rates()["device_copy_bytes_per_second"]))
    return found


def stage_tally():
    """64 ballots of one silo's norms, each moved a little: as different as ballots are, and made in seconds."""
    voters = 8 if CPU_ONLY else 64
    samples, tokens = (2, 64) if CPU_ONLY else (1, 2048)
    device = "cpu" if CPU_ONLY else DEVICE
    compute("voter.ballot", model_folder(), device, group="row", samples=samples, tokens=tokens, limit=60)
    folder = fresh("voters")
    ran([JITTER_BALLOT, "--model", model_folder(), "--ballot", OUT / "voter.ballot", "--count", voters, "--out", folder], 60)
    where = [] if CPU_ONLY else ["--device", DEVICE]
    answers = [ran([FEDPRUNE, "tally", *sorted(folder.glob("*.ballot")), "--model", model_folder(), "--brief", *where, "--out",
                    fresh("voters.tally"), "--format", "json"], 90)]
    seconds = answers[0]["wall_seconds"]
    row("tally", f"tally of {voters} local-row ballots, {'tiny' if CPU_ONLY else 'LLaMA-7B'} layout", report.seconds(seconds),
        (seconds, "s"), "at most", None if CPU_ONLY else 20.0,
        floor=report.seconds(blocks_there() * block_bytes() / rates()["host_to_device_bytes_per_second"]) + " to upload W")
    return answers


def stage_long():
    """The calibration that papers use."""
    samples, tokens = (4, 64) if CPU_ONLY else (128 if not QUICK else 32, 2048)
    upload, compute_seconds = floor_seconds(blocks_there(), samples, tokens)
    if left() < 4 * compute_seconds + 10:
        raise Failed(f"{left():.0f} s are left, which is too little")
    answer = compute("long.ballot", model_folder(), "cpu" if CPU_ONLY else DEVICE, group="layer", samples=samples,
                     tokens=tokens, limit=120, watch=not CPU_ONLY)
    share = compute_seconds / answer["wall_seconds"]
    row("long", f"{samples} × {tokens} tokens, end to end", report.seconds(answer["wall_seconds"]), (share, "of the bf16 rate"),
        "at least", None if CPU_ONLY else 0.45, floor=report.seconds(compute_seconds))
    return answer


STAGES = dict(devices=stage_devices, fixtures=stage_fixtures, bundled=stage_bundled, rates=stage_rates, model=stage_model,
              upload=stage_upload, ballot=stage_ballot, selection=stage_selection, tally=stage_tally, long=stage_long)


def write():
    with open(OUT / "gpu.json.partial", "w", encoding="utf-8") as file:
        json.dump(dict(stages=RESULTS, rows=ROWS, device=DEVICE, cpu_only=CPU_ONLY, threads=THREADS), file, indent=1)
    os.replace(OUT / "gpu.json.partial", OUT / "gpu.json")


def table():
    lines = [["work", "ours", "floor", "others", "figure", "goal", ""]]
    for line in ROWS:
        goal = "–" if line["goal"] is None else f"{line['kind']} {line['goal']:g} {line['unit']}"
        met = {None: "", True: "met", False: "MISSED"}[line["met"]]
        lines.append([line["work"], line["ours"], line["floor"] or "–", line["rival"] or "–",
                      f"{report.three(line['figure'])} {line['unit']}", goal, met])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def main():
    failed = []
    for name, stage in STAGES.items():
        if ONLY and name not in ONLY:
            continue
        say(f"{name}  ({left():.0f} s left)")
        started = time.perf_counter()
        try:
            found = stage()
            RESULTS[name] = dict(found=found, seconds=time.perf_counter() - started)
            skipped = found.get("skipped") if isinstance(found, dict) else None
            say(f"  skipped: {skipped}" if skipped else f"  done in {RESULTS[name]['seconds']:.1f} s")
        except (Failed, OSError, KeyError, ValueError) as problem:
            failed.append(name)
            RESULTS[name] = dict(failed=f"{type(problem).__name__}: {problem}", seconds=time.perf_counter() - started)
            say(f"  FAILED: {RESULTS[name]['failed']}")
        write()
    print(table())
    for name in failed:
        print(f"failed: {name}: {RESULTS[name]['failed'].splitlines()[0][:200]}")
    print(f"{OUT / 'gpu.json'}; {time.monotonic() - STARTED:.0f} s")
    missed = [line["key"] for line in ROWS if line["met"] is False]
    return 1 if failed or missed else 0


parser = argparse.ArgumentParser(description="see run.sh")
parser.add_argument("--out", type=pathlib.Path, default=ROOT / "out/gpu")
parser.add_argument("--device", default="cuda:0")
parser.add_argument("--cpu-only", action="store_true")
parser.add_argument("--quick", action="store_true")
parser.add_argument("--only", action="append", choices=list(STAGES))
options = parser.parse_args()
OUT, DEVICE, CPU_ONLY, QUICK = options.out.resolve(), options.device, options.cpu_only, options.quick
ONLY = set(options.only or [])
BLOCKS_MADE = 4 if QUICK else BLOCKS
if CPU_ONLY:
    # the tiny shape's, so that floors are of what is run
    HIDDEN, INTERMEDIATE = 128, 352
    BLOCK_WEIGHTS = 3 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE
FEDPRUNE, WRITE_CHECKPOINT, JITTER_BALLOT, GPU_KERNELS = (
    pathlib.Path(os.environ[name]).resolve() if os.environ.get(name) else None
    for name in ("FEDPRUNE", "WRITE_CHECKPOINT", "JITTER_BALLOT", "GPU_KERNELS"))
OUT.mkdir(parents=True, exist_ok=True)
RESULTS, ROWS = {}, []
if ONLY and (OUT / "gpu.json").exists():
    # the other stages as they were
    with open(OUT / "gpu.json", encoding="utf-8") as known:
        RESULTS = json.load(known)["stages"]
named = os.environ.get("CALIBRATION")
if named:
    TEXT = pathlib.Path(named).resolve()
else:
    # 128 windows of 2,048 tokens of a byte each, and more
    TEXT = OUT / "calibration.txt"
    texts = sorted((ROOT / "examples/study/texts").glob("*.txt")) + sorted((BUNDLED / "silos").glob("*.txt"))
    TEXT.write_bytes(b"\n".join(path.read_bytes() for path in texts))
sys.exit(main())
