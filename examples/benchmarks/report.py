#!/usr/bin/env python3
"""The tables of the benchmark, from what was measured: docs/performance.json to README.md and docs/performance.md.

usage: report.py            writes the tables between their markers
       report.py --check    exits with 1 if they are not what the JSON gives
       report.py --print    prints the whole table as text
Only the standard library.
"""
import json
import math
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
JSON = ROOT / "docs/performance.json"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
# What the README shows: key of a row, in this order.
README_ROWS = ["compute-time", "compute-memory", "ballot-layer", "count-and-select", "tally-layer-column-thresholds", "large-apply-time",
               "wire", "idle-memory"]

# hidden_size, intermediate_size, blocks, width of the queries, width of keys and values
SHAPES = {
    "SmolLM2-135M": (576, 1536, 30, 576, 192),
    "1 B (Llama-3.2-1B)": (2048, 8192, 16, 2048, 512),
    "7 B (LLaMA-7B)": (4096, 11008, 32, 4096, 4096),
    "70 B (Llama-2-70B)": (8192, 28672, 80, 8192, 1024),
}
SILOS = (8, 64, 128)
LINE_BITS_PER_SECOND = 100e6


# --- words for numbers ----------------------------------------------------------------------------------------------

def three(value):
    """At least three significant digits, no exponent."""
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def seconds(value):
    for limit, scale, unit in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (600, 1, "s"), (36000, 1 / 60, "min")):
        if value < limit:
            return f"{three(value * scale)} {unit}"
    return f"{three(value / 3600)} h"


def size(value):
    for limit, scale, unit in ((1e3, 1, "bytes"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if value < limit:
            return f"{three(value / scale)} {unit}"
    return f"{three(value / 1e12)} TB"


def goal_of(row):
    if row["goal"] is None:
        return "–"
    return f"{row['kind']} {row['goal']:g} {row['unit']}"


def met_of(row):
    return {True: "yes", False: "**no**", None: "–"}[row["met"]]


# --- the calculation ------------------------------------------------------------------------------------------------

def counts(shape):
    """(channels that norms describe, columns of all matrices, prunable weights)"""
    hidden, intermediate, blocks, queries, keys = shape
    channels = hidden + queries + hidden + intermediate
    columns = 3 * hidden + queries + 2 * hidden + intermediate
    weights = hidden * (2 * queries + 2 * keys) + 3 * hidden * intermediate
    return blocks * channels, blocks * columns, blocks * weights


def calculate(sections):
    """Bytes and seconds a silo, from measured sizes and the layouts of models; none where nothing was measured."""
    raw = {section["section"]: section["raw"] for section in sections}
    if "ballots" not in raw:
        return None
    channels, columns, weights = counts(SHAPES["SmolLM2-135M"])
    shown = dict(zip(("layer", "row", "2of4", "thresholds"), raw["ballots"]["shown"]))
    sizes = dict(zip(("layer", "row", "2of4", "thresholds"), raw["ballots"]["sizes"]))
    # the file with its header: small models carry relatively more of it
    measured = {"norms": ("channel", sizes["layer"]["ballot_bytes"] / channels)}
    llama = raw["ballots"].get("llama")
    norms_of_large = llama["llama_ballot_bytes"] / llama["llama_norms"] if llama else measured["norms"][1]
    thresholds = {key: value for key, value in shown["thresholds"]["encoded_bytes"].items() if "threshold" in key}
    if sum(thresholds.values()) > 0:
        measured["column-thresholds"] = ("column", sizes["thresholds"]["ballot_bytes"] / columns)
    measured["bitmap"] = ("weight", 1 / 8)
    measured["packed, 1 bit a weight (as in the paper)"] = ("weight", 1 / 8)
    rows = []
    for model, shape in SHAPES.items():
        units = dict(zip(("channel", "column", "weight"), counts(shape)))
        for encoding, (unit, bytes_per_unit) in measured.items():
            if encoding == "norms" and model != "SmolLM2-135M":
                bytes_per_unit = norms_of_large
            ballot = units[unit] * bytes_per_unit
            rows.append(dict(model=model, encoding=encoding, ballot_bytes=round(ballot), silos=[
                dict(silos=silos, bytes_each_way=round(ballot * (silos - 1)),
                     seconds=ballot * (silos - 1) * 8 / LINE_BITS_PER_SECOND) for silos in SILOS]))
    check = None
    if "wire" in raw:
        silos = raw["wire"]["silos"]
        predicted = sizes["layer"]["ballot_bytes"] * (len(silos) - 1)
        check = dict(silos=len(silos), predicted_bytes=predicted,
                     sent_bytes=[silo["sent_bytes"] for silo in silos],
                     received_bytes=[silo["received_bytes"] for silo in silos])
    bytes_per = {encoding: dict(unit=unit, bytes=value) for encoding, (unit, value) in measured.items()}
    if llama:
        bytes_per["norms of LLaMA-7B's layout, taken for the larger models too,"] = dict(unit="channel", bytes=norms_of_large)
    return dict(bytes_per=bytes_per, rows=rows, check=check)


def calculation_table(calculation):
    lines = ["| model | encoding | ballot | " + " | ".join(f"{silos} silos" for silos in SILOS) + " |",
             "|---|---|---|" + "---|" * len(SILOS)]
    for row in calculation["rows"]:
        cells = [f"{size(one['bytes_each_way'])}, {seconds(one['seconds'])}" for one in row["silos"]]
        lines.append(f"| {row['model']} | {row['encoding']} | {size(row['ballot_bytes'])} | {' | '.join(cells)} |")
    text = ("Bytes that a silo sends, and as many that it receives at the same time, and seconds on a line of 100 Mbit/s: "
            "each ballot crosses the wire n − 1 times. By calculation from measured sizes: "
            + ", ".join(f"{encoding} {three(one['bytes'])} bytes a {one['unit']}"
                        for encoding, one in calculation["bytes_per"].items() if one["unit"] != "weight") + ".")
    check = calculation["check"]
    if check:
        mean = {key: sum(check[key]) / check["silos"] for key in ("sent_bytes", "received_bytes")}
        text += (f" Checked against a round of {check['silos']} real nodes with SmolLM2: calculated "
                 f"{size(check['predicted_bytes'])} each way; a node sent {size(mean['sent_bytes'])} and received "
                 f"{size(mean['received_bytes'])} on average, all messages included.")
    return "\n".join([text, "", *lines])


# --- tables ---------------------------------------------------------------------------------------------------------

def rows_of(result):
    return [row for section in result["sections"] for row in section["rows"]]


def figure_of(row):
    return f"{three(row['figure'])} {row['unit']}"


def table(rows, columns):
    heads = {"work": "work", "ours": "ours", "rival": "others", "floor": "floor", "figure": "figure", "goal": "goal",
             "met": "met"}
    cells = {"work": lambda row: row["work"], "ours": lambda row: row["ours"], "rival": lambda row: row["rival"] or "–",
             "floor": lambda row: row["floor"] or "–", "figure": figure_of, "goal": goal_of, "met": met_of}
    lines = ["| " + " | ".join(heads[column] for column in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cells[column](row) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def machine_of(result):
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if machine["memory_bytes"] else ""
    dates = sorted({section["date"] for section in result["sections"]})
    when = " to ".join(dates[:1] + dates[1:][-1:])
    return (f"{machine['processor']}, {machine['threads']} threads{memory}; {machine['rustc'].split(' (')[0]}, "
            f"Python {machine['python']}, {versions}; {when}.")


def for_readme(result):
    by_key = {row["key"]: row for row in rows_of(result)}
    rows = [by_key[key] for key in README_ROWS if key in by_key]
    return table(rows, ["work", "ours", "rival", "figure"])


def for_docs(result):
    rows = rows_of(result)
    notes = [f"* {row['work']}: {row['note']}" for row in rows if row["note"]]
    parts = [f"Measured on {machine_of(result)}", "",
             table(rows, ["work", "ours", "rival", "floor", "figure", "goal", "met"])]
    if notes:
        parts += ["", "Beside them:", "", *notes]
    if result["calculation"]:
        parts += ["", "### What a round costs on the wire", "", calculation_table(result["calculation"])]
    return "\n".join(parts)


def plain(result):
    """The whole table for a terminal."""
    rows = [[row["work"], row["ours"], row["rival"] or "", row["floor"] or "", figure_of(row), goal_of(row),
             met_of(row).strip("*")] for row in rows_of(result)]
    rows.insert(0, ["work", "ours", "others", "floor", "figure", "goal", "met"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([machine_of(result), "", *lines])


PLACES = {ROOT / "README.md": for_readme, ROOT / "docs/performance.md": for_docs}


def rendered(result):
    """What the files should hold, by path."""
    texts = {}
    for path, make in PLACES.items():
        text = path.read_text(encoding="utf-8")
        if text.count(BEGIN) != 1 or text.count(END) != 1:
            sys.exit(f"`{path}` needs the markers `{BEGIN}` and `{END}`, once each")
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        texts[path] = f"{before}{BEGIN}\n{make(result)}\n{END}{after}"
    return texts


def write(result):
    for path, text in rendered(result).items():
        path.write_text(text, encoding="utf-8")


def main(arguments):
    result = json.loads(JSON.read_text(encoding="utf-8"))
    if arguments == ["--print"]:
        print(plain(result))
    elif arguments == ["--check"]:
        stale = [path for path, text in rendered(result).items() if path.read_text(encoding="utf-8") != text]
        for path in stale:
            print(f"`{path.relative_to(ROOT)}` is not what `docs/performance.json` gives: run examples/benchmarks/report.py")
        sys.exit(1 if stale else 0)
    elif not arguments:
        write(result)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
