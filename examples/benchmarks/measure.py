#!/usr/bin/env python3
"""Runs the sections of the benchmark and writes one JSON file; `run.sh` builds what it needs and calls it.

A section is a function that measures and returns rows. A row says what was done, what ours took, what its rival and its
floor took in the same run, and the figure that its goal is about. What was measured lies in OUT/sections, one file a
section, so that a section can be measured again without the others.
"""
import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import time

import report

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(os.environ.get("FEDPRUNE_PROGRAM", ROOT / "target/release/fedprune"))
KERNELS = ROOT / "target/release/examples/benchmark-kernels"
LLAMA_NORMS = ROOT / "target/release/examples/llama-norms"
SYNTHETIC = ROOT / "target/release/write-synthetic-checkpoint"
RIVALS = ROOT / "examples/benchmarks/rivals"
THREADS = int(os.environ.get("THREADS", "2"))
SMOLLM2 = pathlib.Path(os.environ.get("SMOLLM2", "smollm2")).resolve()
TEXT = pathlib.Path(os.environ.get("CALIBRATION", ROOT / "examples/study/texts/wikitext2_test.txt")).resolve()
for variable in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(THREADS)


class Failed(Exception):
    """A command failed, or a machine lacks what a section needs."""


class Ran:
    """What a command said, and what it took."""

    def __init__(self, command, cwd=None):
        command = [str(part) for part in command]
        print(f"  $ {' '.join(command)}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        child = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.out, err = child.communicate()
        self.seconds = time.perf_counter() - started
        if child.returncode != 0:
            raise Failed(f"`{' '.join(command)}` failed ({child.returncode}): {err.strip()[-2000:]}")

    def json(self):
        return json.loads(self.out)


def measured(command):
    """Runs a command; returns its JSON with `wall_seconds` of the whole process, and its `VmHWM` in bytes.

    The high-water mark is what the process itself read, or else what `wait4` says of it; resident pages of mapped files
    count.
    """
    command = [str(part) for part in command]
    print(f"  $ {' '.join(command)}", file=sys.stderr, flush=True)
    with open(OUT / "stdout.tmp", "w+") as out, open(OUT / "stderr.tmp", "w+") as err:
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        said = out.read()
        if child.returncode != 0:
            raise Failed(f"`{' '.join(command)}` failed ({child.returncode}): {(err.read() + said).strip()[-2000:]}")
    answer = json.loads(said) if said.lstrip().startswith("{") else {}
    return answer | {
        "wall_seconds": seconds,
        "peak_bytes": answer.get("peak_memory_bytes") or usage.ru_maxrss * 1024,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def row(key, work, ours, figure, kind, goal, rival=None, floor=None, note=None):
    """One line of the table: `figure` is what the goal is about, `kind` is "at most" or "at least".

    `ours`, `rival` and `floor` are texts for people, `figure` is (number, unit).
    """
    value, unit = figure
    met = None if goal is None else (value <= goal if kind == "at most" else value >= goal)
    return dict(key=key, work=work, ours=ours, rival=rival, floor=floor, figure=value, unit=unit, kind=kind,
                goal=goal, met=met, note=note)


def best(runs, key):
    return min(run[key] for run in runs)


def below(path):
    """A path for a manifest whose paths start at the root."""
    return str(path).lstrip("/")


def fresh(name):
    path = OUT / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return path


def compute(ballot, *extra, model=None, samples=8, tokens=512, sampling="sequential"):
    fresh(ballot)
    fresh(f"{ballot}.unfinished")
    return measured([PROGRAM, "mask", "compute", "--model", model or SMOLLM2, "--data", TEXT, "--nsamples", samples,
                     "--seqlen", tokens, "--sampling", sampling, *extra, "--out", OUT / ballot, "--format", "json"])


# --- sections -------------------------------------------------------------------------------------------------------

def section_compute():
    """A whole `mask compute` beside the same in torch."""
    ours, theirs = [], []
    for _ in range(1 if QUICK else 3):
        ours.append(compute("layer.ballot", "--local-group", "layer"))
        theirs.append(measured([sys.executable, RIVALS / "wanda_torch.py", SMOLLM2, TEXT, "--nsamples", 8, "--seqlen",
                                512, "--group", "layer", "--threads", THREADS]))
    seconds, torch_seconds = best(ours, "wall_seconds"), best(theirs, "wall_seconds")
    peak, torch_peak = best(ours, "peak_bytes"), best(theirs, "peak_bytes")
    work = "`mask compute`, SmolLM2, 8 × 512 tokens, layer, 50 %"
    return dict(ours=ours, rival=theirs), [
        row("compute-time", f"{work}: wall time", report.seconds(seconds), (seconds / torch_seconds, "× torch"),
            "at most", 0.7, rival=f"torch {report.seconds(torch_seconds)}",
            note=f"without torch's import and loading of the model: "
                 f"{seconds / best(theirs, 'seconds_without_import_and_load'):.2f} ×"),
        row("compute-memory", f"{work}: peak memory", report.size(peak), (peak / torch_peak, "× torch"),
            "at most", 0.4, rival=f"torch {report.size(torch_peak)}"),
    ]


def section_ballots():
    """Ballots of real masks, beside general-purpose compression of their bits."""
    if not (OUT / "layer.ballot").is_file():
        compute("layer.ballot", "--local-group", "layer")
    samples, tokens = (2, 128) if QUICK else (2, 512)
    compute("row.ballot", "--local-group", "row", samples=samples, tokens=tokens)
    compute("2of4.ballot", "--local-group", "2:4", samples=samples, tokens=tokens)
    compute("thresholds.ballot", "--local-group", "layer", "--ballots", "mask-only", samples=samples, tokens=tokens)
    names = ["layer", "row", "2of4", "thresholds"]
    files = [OUT / f"{name}.ballot" for name in names]
    sizes = Ran([KERNELS, "sizes", "--model", SMOLLM2, *files]).json()["ballots"]
    shown = Ran([PROGRAM, "mask", "show", *files, "--model", SMOLLM2, "--format", "json"]).json()["files"]
    rows = []
    for name, one, file in zip(names, sizes, shown):
        packed, ours = one["packed_bytes"], one["ballot_bytes"]
        encodings = ", ".join(f"{key} {report.size(value)}" for key, value in file["encoded_bytes"].items() if value)
        title = "`column-thresholds` ballot (mask-only), SmolLM2, layer" if name == "thresholds" else \
            f"`norms` ballot, SmolLM2, {name.replace('of', ':')}"
        rows.append(row(
            f"ballot-{name}", title, f"{ours:,} bytes", (packed / ours, "× smaller than packed bits"), "at least",
            125 if name == "thresholds" else 132,
            rival=f"zstd -19 {packed / one['zstd_bytes']:.2f} ×, roaring {packed / one['roaring_bytes']:.2f} ×",
            floor=f"packed bits {packed:,} bytes", note=encodings))
    llama = None
    if LLAMA_NORMS.is_file():
        llama = Ran([LLAMA_NORMS, "--model", SMOLLM2, "--json", OUT / "layer.ballot"]).json()
        packed = llama["llama_ratio"] * llama["llama_ballot_bytes"]
        rows.append(row(
            "ballot-llama", "`norms` ballot, LLaMA-7B layout, norms resampled from SmolLM2's",
            f"{llama['llama_ballot_bytes']:,} bytes", (llama["llama_ballot_bytes"] / 1e6, "MB"), "at most", 0.8,
            floor=f"packed bits {report.size(packed)}", note=f"{llama['llama_ratio']:,.0f} × smaller than packed bits"))
    return dict(sizes=sizes, shown=shown, llama=llama), rows


def section_matrix():
    """One large matrix: tally, counting, selection."""
    work = OUT / "matrix"
    rows, columns = 4096, 11008
    ours, theirs = [], []
    for _ in range(1 if QUICK else 2):
        ours.append(Ran([KERNELS, "--rounds", 2 if QUICK else 7, "matrix", "--work", work]).json())
        theirs.append(Ran([sys.executable, RIVALS / "kernels_torch.py", work, rows, columns, "--threads", THREADS,
                           "--rounds", 1 if QUICK else 3]).json())
    shutil.rmtree(work)
    if ours[0]["pruned_by_count"] != theirs[0]["pruned_by_count"]:
        raise Failed("torch prunes other numbers of weights at some counts than ours")
    quick = {key: min(run["seconds"][key] for run in ours) for key in ours[0]["seconds"]}
    slow = {key: min(run["tally_seconds"][key] for run in ours) for key in ours[0]["tally_seconds"]}
    torch = {key: min(run["seconds"][key] for run in theirs) for key in theirs[0]["seconds"]}
    weights, silos = rows * columns, ours[0]["silos"]
    both = torch["torch_count"] + torch["torch_topk"]
    numpy = torch["numpy_count"] + torch["numpy_partition"]
    shape = f"{rows} × {columns}"
    floor = f"read W once {report.seconds(quick['read_weights'])}"

    def per_vote(seconds):
        return seconds * 1e9 * THREADS / weights / silos

    lines = [
        row(f"tally-{key}", f"tally of 64 local-{name} ballots of one {shape} matrix", report.seconds(slow[f"tally_{key}"]),
            (per_vote(slow[f"tally_{key}"]), "ns a weight a voter a thread"), "at most", 1.2, floor=floor,
            note=f"differing bits between two silos: {ours[0]['differing_share']:.1%}" if key == "row" else None)
        for key, name in (("row", "row"), ("2of4", "2:4"))
    ]
    lines += [
        row("count-and-select", f"counting 64 bitmaps of {shape} and their mask, ties broken",
            report.seconds(quick["count_and_select"]), (both / quick["count_and_select"], "× faster than torch"),
            "at least", 30, rival=f"torch int8 sum + topk {report.seconds(both)}, numpy {report.seconds(numpy)}"),
        row("count", f"counting 64 bitmaps of {shape}", report.seconds(quick["count"]),
            (quick["read_masks"] / quick["count"], "of the speed of a plain read"), "at least", 0.7,
            rival=f"torch {report.seconds(torch['torch_count'])}, numpy {report.seconds(torch['numpy_count'])}",
            floor=f"read them once {report.seconds(quick['read_masks'])}",
            note=f"into memory in use, as from matrix to matrix of a tally; {report.seconds(quick['count_new'])} into fresh memory"),
    ]
    for group in ("layer", "row"):
        taken = quick[f"select_{group}"]
        lines.append(row(
            f"select-{group}", f"selection, {columns} × {rows}, {group}", report.seconds(taken),
            (taken * 1e9 / weights, "ns a weight"), "at most", 1.5, floor=floor,
            rival=f"torch topk {report.seconds(torch[f'torch_select_{group}'])}"))
    thresholds = ours[0].get("thresholds")
    if thresholds:
        lines.append(row(
            "ballot-thresholds-4096", "`column-thresholds` ballot of one 4096 × 4096 matrix, layer",
            f"{thresholds['ballot_bytes']:,} bytes",
            (thresholds["packed_bytes"] / thresholds["ballot_bytes"], "× smaller than packed bits"), "at least", 450,
            floor=f"packed bits {thresholds['packed_bytes']:,} bytes"))
    return dict(ours=ours, rival=theirs), lines


def section_digest():
    """The digest of a checkpoint in the page cache."""
    model = SMOLLM2 if QUICK else fresh("1b")
    if not QUICK:
        Ran([SYNTHETIC, "--shape", "1b", "--out", model])
    taken = Ran([KERNELS, "--rounds", 5, "digest", "--model", model]).json()
    if not QUICK:
        shutil.rmtree(model)
    rate = {key: taken["bytes"] / value / 1e9 for key, value in taken["seconds"].items()}
    # reading and then hashing, one after the other
    floor = 1 / (1 / rate["read"] + 1 / rate["blake3"])
    return taken, [
        row("digest", f"digest of a checkpoint of {report.size(taken['bytes'])} in page cache",
            report.seconds(taken["seconds"]["digest"]), (rate["digest"], "GB/s"), "at least", 2.0,
            floor=f"mapped read {rate['read']:.1f} GB/s, BLAKE3 of resident bytes {rate['blake3']:.1f} GB/s, one after the other "
                  f"{floor:.1f} GB/s"),
    ]


def large_model():
    given = os.environ.get("LLAMA7B")
    if given:
        return pathlib.Path(given).resolve()
    model = OUT / "llama7b"
    if not (model / "model.safetensors.index.json").is_file():
        room(30)
        Ran([SYNTHETIC, "--shape", "llama-7b", "--out", fresh("llama7b")])
    return model


def room(gigabytes):
    free = shutil.disk_usage(OUT).free / 1e9
    if free < gigabytes:
        raise Failed(f"{gigabytes} GB of disk are needed and {free:.0f} are free")


def section_tally():
    """64 local-layer ballots of LLaMA-7B's layout."""
    model = large_model()
    runs, lines = {}, []
    # writing ballots that are functions of masks takes 64 selections of each matrix, so that some blocks stand for all
    for encoding, flags in (("column-thresholds", ["--mask-only", "--blocks", 1 if QUICK else 4]),
                            ("norms", ["--blocks", 1] if QUICK else [])):
        turns = [Ran([KERNELS, "tally", "--model", model, *flags]).json() for _ in range(1 if QUICK else 3)]
        runs[encoding] = turns
        taken = min(turns, key=lambda turn: turn["seconds"]["tally"])
        seconds, per = taken["seconds"], 1e9 * THREADS / taken["weights"]
        what = f"tally of 64 local-layer ballots of {encoding}, {taken['weights'] / taken['prunable_weights']:.0%} of LLaMA-7B"
        if encoding == "column-thresholds" and seconds.get("thresholds"):
            scaled = seconds["thresholds"] * taken["prunable_weights"] / taken["weights"]
            share = taken["weights"] / taken["prunable_weights"]
            lines.append(row("tally-thresholds",
                             f"tally of 64 local-layer ballots, LLaMA-7B layout: threshold counts, scaled from {share:.0%}",
                             report.seconds(scaled), (scaled, "s"), "at most", 0.3))
        lines += [
            row(f"tally-layer-{encoding}", f"{what}: exact mask root", report.seconds(seconds["tally"]),
                (seconds["tally"] * per, "ns a weight a thread"), "at most", 2.0,
                floor=f"read W once {report.seconds(seconds['read'])}"),
            row(f"tally-layer-{encoding}-memory", f"{what}: peak memory", report.size(taken["peak_memory_bytes"]),
                (taken["peak_memory_bytes"] / taken["block_bytes"], "blocks"), "at most", None,
                floor=f"one block {report.size(taken['block_bytes'])}"),
        ]
    return runs, lines


def section_large():
    """A model larger than a laptop's memory, from text to pruned copy and back."""
    model = large_model()
    room(32)
    goal = 3e9
    ballots = []
    for seed in range(4):
        name = f"large-{seed}.ballot"
        ballots.append(compute(name, "--restart", "--local-group", "row", "--seed", seed, model=model, samples=1, tokens=128,
                               sampling="random"))
    files = [OUT / f"large-{seed}.ballot" for seed in range(4)]
    copies, applied = [], []
    for _ in range(2):
        # copying as safely as ours is written: on the disk when it returns
        copy = fresh("copy")
        started = time.perf_counter()
        Ran(["cp", "-r", model, copy])
        Ran(["sync", *sorted(copy.iterdir())])
        copies.append(time.perf_counter() - started)
        shutil.rmtree(copy)
        pruned = fresh("pruned")
        applied.append(measured([PROGRAM, "apply", "--model", model, "--mask", files[0], "--out", pruned,
                                 "--format", "json"]))
        shutil.rmtree(pruned)
    tallied = measured([PROGRAM, "tally", *files, "--model", model, "--out", fresh("large.tally"), "--format", "json"])
    weights = tallied["prunable_weights"]
    copy, apply = min(copies), best(applied, "wall_seconds")
    audited, audit_rows = audit_large(model, files[0])
    shape = "LLaMA-7B shape, 13 GB"
    lines = [
        row("large-compute-memory", f"{shape}: `mask compute`, 1 × 128 tokens, peak memory",
            report.size(best(ballots, "peak_bytes")), (max(run["peak_bytes"] for run in ballots) / 1e9, "GB"), "at most",
            goal / 1e9, note=f"{report.seconds(best(ballots, 'wall_seconds'))}"),
        row("large-apply-memory", f"{shape}: `apply`, peak memory", report.size(best(applied, "peak_bytes")),
            (max(run["peak_bytes"] for run in applied) / 1e9, "GB"), "at most", goal / 1e9),
        row("large-apply-time", f"{shape}: `apply` of a row ballot", report.seconds(apply), (apply / copy, "× copying"),
            "at most", 1.5, rival=f"cp and sync {report.seconds(copy)}",
            note=f"{report.seconds(best(applied, 'cpu_seconds'))} of processor time"),
        row("large-tally-memory", f"{shape}: `tally` of 4 row ballots, peak memory", report.size(tallied["peak_bytes"]),
            (tallied["peak_bytes"] / 1e9, "GB"), "at most", goal / 1e9,
            note=f"{report.seconds(tallied['wall_seconds'])}, "
                 f"{tallied['wall_seconds'] * 1e9 * THREADS / weights / 4:.1f} ns a weight a voter a thread"),
    ]
    return dict(compute=ballots, copies=copies, apply=applied, tally=tallied, audit=audited), lines + audit_rows


def audit_large(model, ballot):
    """A consortium of one writes a transcript of the large model; an auditor checks it."""
    network = fresh("large-network")
    manifest = OUT / "large-network.toml"
    manifest.write_text(f'name = "large"\nmodel = "{below(model)}"\n[[silo]]\nname = "only"\n'
                        f'ballot = "{below(ballot)}"\n[round]\nsparsity = "0.5"\nnsamples = 1\nseqlen = 128\n'
                        f'minimum-calibration-tokens = 0\ncontribution-seconds = 900\n[expect]\nwithin_seconds = 1800\n')
    ran = Ran([PROGRAM, "testnet", "run", manifest, "--base", "/", "--out", network, "--format", "json"]).json()
    silo = ran["silos"][0]
    audited = measured([PROGRAM, "audit", "verify", silo["transcript"], "--consortium-id", ran["consortium"],
                        "--round-id", ran["round"], "--model", model, "--pruned", silo["pruned"], "--format", "json"])
    shutil.rmtree(network)
    return audited, [row(
        "large-audit-memory", "LLaMA-7B shape, 13 GB: `audit verify` with model and pruned model, peak memory",
        report.size(audited["peak_bytes"]), (audited["peak_bytes"] / 1e9, "GB"), "at most", 3.0,
        note=f"{report.seconds(audited['wall_seconds'])}, {report.seconds(audited['cpu_seconds'])} of processor time")]


def section_wire():
    """Eight real nodes: everything that they send."""
    network = fresh("wire")
    manifest = OUT / "wire.toml"
    text = (ROOT / "examples/smollm2/eight-silos.toml").read_text()
    manifest.write_text(text.replace('model = "smollm2"', f'model = "{SMOLLM2.name}"'))
    ran = Ran([PROGRAM, "testnet", "run", manifest, "--base", SMOLLM2.parent, "--out", network, "--format", "json"]).json()
    shutil.rmtree(network)
    silos = ran["silos"]
    sent = sum(silo["sent_bytes"] for silo in silos)
    ballots = [silo["ballot_bytes"] for silo in silos]
    least = sum(ballots) * (len(silos) - 1)
    slim = dict(seconds=ran["seconds"], wire=ran.get("wire"), silos=[
        {key: silo.get(key) for key in ("name", "ballot_bytes", "sent_bytes", "received_bytes")} for silo in silos])
    return slim, [row(
        "wire", "8 nodes, SmolLM2, one round: bytes on the wire", report.size(sent), (sent / least, "× ballots × (n − 1)"),
        "at most", 1.3, floor=f"ballots × (n − 1) {report.size(least)}",
        note=f"{report.size(max(silo['sent_bytes'] for silo in silos))} at most by one node")]


def section_idle():
    """Nodes that wait for a member who never comes: memory and processor time of one."""
    network = fresh("idle")
    silos = "".join(f'[[silo]]\nname = "silo-{index}"\ndata = ["{below(TEXT)}"]\n' + ("start = false\n" if index == 3 else "")
                    for index in range(4))
    manifest = OUT / "idle.toml"
    manifest.write_text(f'name = "idle"\nmodel = "{below(SMOLLM2)}"\n{silos}[round]\nsparsity = "0.5"\nnsamples = 1\n'
                        'seqlen = 128\nminimum-calibration-tokens = 0\ncontribution-seconds = 600\n'
                        '[expect]\nwithin_seconds = 900\n')
    command = [PROGRAM, "testnet", "run", manifest, "--base", "/", "--out", network]
    print(f"  $ {' '.join(map(str, command))}", file=sys.stderr, flush=True)
    runner = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        nodes = wait_for_nodes(runner, network, 3)
        time.sleep(5)
        seconds = 10 if QUICK else 60
        before = [processor_seconds(pid) for pid in nodes]
        time.sleep(seconds)
        share = [(processor_seconds(pid) - earlier) / seconds for pid, earlier in zip(nodes, before)]
        peak = [status_bytes(pid, "VmHWM") for pid in nodes]
        now = [status_bytes(pid, "VmRSS") for pid in nodes]
    finally:
        runner.send_signal(signal.SIGINT)
        runner.wait(timeout=60)
    shutil.rmtree(network, ignore_errors=True)
    return dict(share=share, peak=peak, now=now, seconds=seconds), [
        row("idle-memory", "idle node, SmolLM2, waiting for a member: peak memory", report.size(max(peak)),
            (max(peak) / 1e6, "MB"), "at most", 60, note=f"{report.size(max(now))} at that moment"),
        row("idle-processor", f"idle node, over {seconds} s: share of a core", f"{max(share):.2%}", (max(share) * 100, "%"),
            "at most", 1.0),
    ]


def wait_for_nodes(runner, network, count):
    """Process ids of the nodes, once each has its ballot and the children that made it are gone."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if runner.poll() is not None:
            raise Failed("the network of idle nodes ended by itself; see its manifest in the output folder")
        logs = list((network / "logs").glob("*.jsonl")) if (network / "logs").is_dir() else []
        have = sum('"ballot"' in log.read_text() for log in logs)
        nodes = [pid for pid in children_of(runner.pid) if "node" in arguments_of(pid)[1:2]]
        if have >= count and len(nodes) == count:
            return nodes
        time.sleep(0.5)
    raise Failed("the nodes did not come to have their ballots within 300 s")


def children_of(pid):
    path = pathlib.Path(f"/proc/{pid}/task")
    return [int(child) for task in path.iterdir() for child in (task / "children").read_text().split()]


def arguments_of(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def processor_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def status_bytes(pid, key):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise Failed(f"/proc/{pid}/status has no {key}")


SECTIONS = {
    "compute": section_compute, "ballots": section_ballots, "matrix": section_matrix, "tally": section_tally,
    "digest": section_digest, "large": section_large, "wire": section_wire, "idle": section_idle,
}
NOT_QUICK = ("tally", "large", "wire")


def machine():
    """What it ran on."""
    model, memory = platform.processor(), None
    if os.path.exists("/proc/cpuinfo"):
        lines = open("/proc/cpuinfo").read().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
        memory = int(open("/proc/meminfo").readline().split()[1]) * 1024
    installed = {}
    for package in ("torch", "transformers", "numpy"):
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return dict(processor=model, cores=os.cpu_count(), threads=THREADS, memory_bytes=memory, system=platform.system(),
                python=platform.python_version(), versions=installed,
                rustc=Ran(["rustc", "--version"], cwd=ROOT).out.strip(),
                fedprune=Ran([PROGRAM, "--version"]).out.strip())


def main():
    global OUT, QUICK
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "out/benchmarks")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=list(SECTIONS))
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.record and options.quick:
        parser.error("--record keeps what was measured in full: drop --quick")
    OUT, QUICK = options.out.resolve(), options.quick
    kept = OUT / "sections"
    kept.mkdir(parents=True, exist_ok=True)
    wanted = options.only or [name for name in SECTIONS if not (QUICK and name in NOT_QUICK)]
    failures = []
    for name in wanted:
        print(f"== {name}: {SECTIONS[name].__doc__}", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            raw, rows = SECTIONS[name]()
        except Failed as error:
            print(f"  {error}", file=sys.stderr, flush=True)
            failures.append(name)
            continue
        date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
        content = dict(section=name, date=date, quick=QUICK, seconds=time.monotonic() - started, rows=rows, raw=raw)
        temporary = kept / f"{name}.json.tmp"
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
        temporary.rename(kept / f"{name}.json")
    sections = [json.loads((kept / f"{name}.json").read_text()) for name in SECTIONS if (kept / f"{name}.json").is_file()]
    result = dict(machine=machine(), sections=[{key: value for key, value in section.items() if key != "raw"}
                                               for section in sections], calculation=report.calculate(sections))
    (OUT / "performance.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(report.plain(result))
    print(f"written to {OUT / 'performance.json'}; what was measured in detail to {kept}")
    if options.record:
        shutil.copyfile(OUT / "performance.json", report.JSON)
        report.write(result)
    if failures:
        sys.exit(f"not measured: {', '.join(failures)}")


main()
