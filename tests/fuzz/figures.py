#!/usr/bin/env python3
"""What libFuzzer's log says, as figures: `row TARGET SECONDS COMPUTED CRASHES LOG` one target as a line of JSON (seconds by the
clock and of processor time), `table FILE` lines from standard input as a table, and as JSON in FILE."""

import json
import re
import sys


def row(target, seconds, computed, crashes, log):
    with open(log, errors="replace") as file:
        text = file.read()
    # `#123 NEW cov: 4 ft: 5 corp: 6/7b …`; the last line has the highest
    status = re.findall(r"^#(\d+)\s+\S+\s+cov: (\d+) ft: (\d+) corp: (\d+)", text, re.M)
    total = re.findall(r"stat::number_of_executed_units:\s+(\d+)", text)
    memory = re.findall(r"stat::peak_rss_mb:\s+(\d+)", text)
    first = re.search(r"INITED cov: (\d+) ft: (\d+)", text)
    last = status[-1] if status else (0, 0, 0, 0)
    return {
        "target": target,
        "seconds": int(seconds),
        "processor_seconds": int(computed),
        "executions": int(total[-1] if total else last[0]),
        "coverage_of_corpus": int(first.group(1)) if first else 0,
        "coverage": int(last[1]),
        "features": int(last[2]),
        "inputs": int(last[3]),
        "peak_memory_mb": int(memory[-1]) if memory else 0,
        "crashes": int(crashes),
    }


def table(rows, path):
    with open(path, "w") as file:
        json.dump(rows, file, indent=2)
        file.write("\n")
    print("| target | seconds, computing | executions | a second | edges | features | inputs | memory, MB | crashes |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for one in rows:
        rate = one["executions"] // max(one["processor_seconds"], 1)
        cells = [
            one["target"], one["processor_seconds"], f"{one['executions']:,}", f"{rate:,}", f"{one['coverage']:,}",
            f"{one['features']:,}", f"{one['inputs']:,}", one["peak_memory_mb"], one["crashes"],
        ]
        print("| " + " | ".join(str(cell) for cell in cells) + " |")


if sys.argv[1] == "row":
    print(json.dumps(row(*sys.argv[2:])))
else:
    table([json.loads(line) for line in sys.stdin if line.strip()], sys.argv[2])
