#!/usr/bin/env bash
# Makes docs/pictures/preview.png and preview-phone.png: a ballot of the bundled model's first text, its preview as a page,
# and what Chromium shows of it on a desk and on a telephone.
#
#   docs/pictures/preview.sh [FEDPRUNE]       the program; target/release/fedprune unless said otherwise
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$(realpath "${1:-target/release/fedprune}")
pictures=$PWD/docs/pictures
bundled=$PWD/examples/bundled-model
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/notes"
cp "$bundled"/silos/austen_emma.txt "$scratch/notes/"
# the page has the commands that come next, as one types them
mkdir "$scratch/bin"
ln -s "$program" "$scratch/bin/fedprune"
ln -s "$bundled/model" "$scratch/model"
PATH=$scratch/bin:$PATH
cd "$scratch"
quietly() { fedprune --quiet "$@" >/dev/null; }
quietly consortium new --name "Four hospitals" --out consortium.toml
for name in north south east west; do
  quietly key new --home "$name"
  quietly consortium add consortium.toml --name "$name" --key "$name/key.pem" --address "/dns4/$name.example/tcp/4001"
done
for name in north south east west; do quietly consortium sign consortium.toml --home "$name"; done
quietly consortium sign --home north --merge south/consortium.signatures east/consortium.signatures west/consortium.signatures
# so short a text that the attack of the small model, with its 128 channels, finds something to show
quietly round new --consortium consortium.toml --model model --out round.toml --nsamples 1 --seqlen 32 \
  --sampling sequential --bos none
printf 'allowed_strategies = ["one-shot"]\nmaximum_ballot_bytes = 100000\nrequire_approval = true\n' >north/policy.toml
quietly round preview round.toml --home north --model model --data notes --out page.html
# a telephone's width is below the narrowest window: a frame has it
printf '<!doctype html><body style="margin:0"><iframe src="page.html" style="width:390px;height:4500px;border:0"></iframe>' \
  >phone.html
show() {
  chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --allow-file-access-from-files "--window-size=$2" \
    "--screenshot=$pictures/$1" "file://$scratch/$3" >/dev/null 2>&1
}
show preview.png 1000,2800 page.html
show preview-phone.png 500,4500 phone.html
