#!/bin/bash
# Makes the pictures of docs/observability.md: the page of a running node in headless Chromium, and the dashboard in a
# terminal of tmux, as text and as a picture. Both show a real round of four nodes on this machine, halted half way by stopping two of them.
#
#     testnet/scripts/screenshots.sh [PROGRAM]
#
# PROGRAM is target/release/fedprune unless given. Needs chromium, tmux and python3; writes docs/screenshots/ and the
# picture of the terminal in docs/observability.md.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
program=$(realpath "${1:-$root/target/release/fedprune}")
[ -x "$program" ] || { echo "there is no $program: cargo build --release" >&2; exit 2; }
for needed in chromium tmux python3; do
    command -v "$needed" >/dev/null || { echo "there is no $needed: apt-get install chromium tmux python3" >&2; exit 2; }
done
bundle=$root/examples/bundled-model
pictures=$root/docs/screenshots
work=$(mktemp -d "${TMPDIR:-/tmp}/fedprune-screenshots.XXXXXX")
members=(north east south west)
texts=(melville_moby_dick austen_emma speeches_1945_1953 speeches_1953_1958)
nodes=()
socket=fedprune-screenshots-$$

clean_up() {
    tmux -L "$socket" kill-server 2>/dev/null || true
    for node in "${nodes[@]}"; do
        kill -CONT "$node" 2>/dev/null || true
        kill "$node" 2>/dev/null || true
    done
    wait
    rm -rf "$work"
}
trap clean_up EXIT

# a value of a JSON document on standard input
value() { python3 -c "import json, sys; print(eval('d' + sys.argv[1], {'d': json.load(sys.stdin)}))" "$1"; }
state() { python3 -c "import sys, urllib.request; sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())" "$page/state.json"; }
# waits until a Python expression of the state d is true
until_state() {
    for _ in $(seq 600); do
        if [ "$(state | python3 -c "import json, sys; d = json.load(sys.stdin); print($1)")" = True ]; then return; fi
        sleep 0.1
    done
    echo "waited in vain until $1" >&2
    exit 1
}

cd "$work"
mapfile -t ports < <(python3 -c "
import socket
sockets = [socket.socket() for _ in range(4)]
for one in sockets: one.bind(('127.0.0.1', 0))
for one in sockets: print(one.getsockname()[1])")
"$program" --quiet consortium new --name "Four libraries" --out consortium.toml >/dev/null
for number in 0 1 2 3; do
    key=$("$program" --format json key new --home "${members[number]}" | value "['public_key']")
    "$program" consortium add consortium.toml --name "${members[number]}" --key "$key" \
        --address "/ip4/127.0.0.1/tcp/${ports[number]}" >/dev/null
done
before=()
for member in "${members[@]}"; do
    "$program" consortium sign consortium.toml --home "$member" ${before[@]:+--merge "${before[@]}"} >/dev/null
    before=("$member/consortium.signatures")
done
for member in "${members[@]:0:3}"; do
    "$program" consortium sign --home "$member" --merge "${before[@]}" >/dev/null
done
"$program" --quiet round new --consortium consortium.toml --model "$bundle/model" --out round.toml \
    --strategy iterative --nsamples 2 --seqlen 64 --contribution-seconds 600 >/dev/null
for member in "${members[@]}"; do
    "$program" --quiet round approve round.toml --home "$member" --model "$bundle/model" --yes >/dev/null
done
for number in 0 1 2 3; do
    served=()
    [ "$number" = 0 ] && served=(--page 127.0.0.1:0)
    "$program" --format json node run --home "${members[number]}" --model "$bundle/model" \
        --data "$bundle/silos/${texts[number]}.txt" --linger 120 "${served[@]}" >"${members[number]}.jsonl" 2>"${members[number]}.log" &
    nodes+=($!)
done
for _ in $(seq 100); do
    page=$(python3 -c "
import json
for line in open('north.jsonl'):
    event = json.loads(line)
    if event['event'] == 'serving': print(event['page'].rstrip('/'))" 2>/dev/null || true)
    [ -n "$page" ] && break
    sleep 0.1
done
[ -n "$page" ] || { echo "no page: $(cat north.log)" >&2; exit 1; }

# two of four make no quorum: the round halts where it is
timeout 60 python3 - "${nodes[2]}" "${nodes[3]}" <<'PYTHON'
import os, signal, sys, time
while '"certified","height":2' not in open("north.jsonl").read(): time.sleep(0.005)
for node in sys.argv[1:]: os.kill(int(node), signal.SIGSTOP)
PYTHON
until_state "d['waits_for'] is not None and sum(one is not None for one in d['agreement']) >= 3"
sleep 3

mkdir -p "$pictures"
picture() { # NAME URL WIDTH HEIGHT MORE...
    timeout 60 chromium --headless=new --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$work/chromium" \
        --virtual-time-budget=3000 --window-size="$3,$4" --screenshot="$pictures/$1.png" "${@:5}" "$2" >"$work/chromium.log" 2>&1 ||
        { cat "$work/chromium.log" >&2; exit 1; }
    [ -s "$pictures/$1.png" ] || { cat "$work/chromium.log" >&2; exit 1; }
}
picture page-light "$page/" 1000 1045
picture page-dark "$page/" 1000 1045 --blink-settings=preferredColorScheme=0
# as wide as a phone, at its resolution
picture page-phone "$page/" 390 1506 --force-device-scale-factor=2

tmux -L "$socket" new-session -d -x 110 -y 38 "$program node watch --home $work/north"
sleep 4
tmux -L "$socket" capture-pane -p | sed 's/ *$//' >watch.txt
tmux -L "$socket" capture-pane -p -e >watch.ansi
grep -q 'waits\|phase' watch.txt || { cat watch.txt >&2; exit 1; }
python3 - "$root/docs/observability.md" watch.txt <<'PYTHON'
import sys
path, capture = sys.argv[1:]
text, drawn = open(path).read(), open(capture).read().rstrip("\n") + "\n"
before, rest = text.split("```text\n", 1)
_, after = rest.split("```\n", 1)
open(path, "w").write(before + "```text\n" + drawn + "```\n" + after)
PYTHON

# the same with its colours, drawn by the browser
python3 - watch.ansi watch.html <<'PYTHON'
import html, re, sys
names = ["#2e3436", "#ef5350", "#7cb342", "#fbc02d", "#42a5f5", "#ba68c8", "#26c6da", "#d3d7cf",
         "#8a8f8c", "#ff7043", "#9ccc65", "#ffee58", "#64b5f6", "#ce93d8", "#4dd0e1", "#ffffff"]
drawn, style = [], {}

def colour(codes):
    kind = codes.pop(0)
    if kind == 2:
        return "rgb({},{},{})".format(*(codes.pop(0) for _ in range(3)))
    number = codes.pop(0)
    if number < 16:
        return names[number]
    if number > 231:
        return "rgb({0},{0},{0})".format(8 + 10 * (number - 232))
    cube = [0, 95, 135, 175, 215, 255]
    return "rgb({},{},{})".format(*(cube[(number - 16) // by % 6] for by in (36, 6, 1)))

def change(codes):
    while codes:
        code = codes.pop(0)
        if code == 0: style.clear()
        elif code == 1: style["font-weight"] = "bold"
        elif code == 2: style["opacity"] = "0.65"
        elif code == 7: style["filter"] = "invert(1)"
        elif code == 22: style.pop("font-weight", None), style.pop("opacity", None)
        elif code == 27: style.pop("filter", None)
        elif code == 38: style["color"] = colour(codes)
        elif code == 48: style["background"] = colour(codes)
        elif code == 39: style.pop("color", None)
        elif code == 49: style.pop("background", None)
        elif 30 <= code <= 37: style["color"] = names[code - 30]
        elif 90 <= code <= 97: style["color"] = names[code - 82]
        elif 40 <= code <= 47: style["background"] = names[code - 40]
        elif 100 <= code <= 107: style["background"] = names[code - 92]

for part in re.split("(\x1b\\[[0-9;]*m)", open(sys.argv[1]).read()):
    if part.startswith("\x1b["):
        change([int(code or 0) for code in part[2:-1].split(";")])
    elif part:
        css = ";".join(f"{name}:{value}" for name, value in style.items())
        drawn.append(f'<span style="{css}">{html.escape(re.sub(chr(27) + "[(][A-Z0-9]|" + chr(15), "", part))}</span>')
page = "<meta charset=utf-8><body style='margin:12px;background:#1b1f22;color:#d3d7cf'><pre style='margin:0;font:14px/16px DejaVu Sans Mono,monospace'>"
open(sys.argv[2], "w").write(page + "".join(drawn) + "</pre>")
PYTHON
picture terminal "file://$work/watch.html" 960 632 --force-device-scale-factor=2

# and the round ends as if nothing had happened
kill -CONT "${nodes[2]}" "${nodes[3]}"
until_state "d['phase'] == 'agreed'"
echo "$pictures and docs/observability.md are written"
