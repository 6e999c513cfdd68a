#!/usr/bin/env bash
# The whole way from text to a model that can be given away:
#
#   data -> vocabulary -> shards -> pre-train -> SFT -> RL -> evaluate -> package
#
#   bash recipes/speedrun.sh tiny    minutes on a CPU, to see every stage run; `make speedrun-tiny` is this
#   bash recipes/speedrun.sh nano    a model like the shipped one, on one GPU; get its texts first: recipes/corpora/README.md
#
# The recipes are recipes/speedrun/NAME/*.toml, all that comes of them is in runs/NAME. A stage that is done is not done
# again, and training that was stopped goes on from its last checkpoint: after a stop, run the same line again.
# Quantisation is no stage of its own: the experts are trained as MXFP4 ([quantize] in the recipes), and every model that
# a stage leaves is packed as it was trained.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:-}
recipes=recipes/speedrun/$name
run=runs/$name
case $name in
  tiny) corpus=$recipes/corpus.toml examples=2000 eval=(--tasks greet --limit 50) ;;
  nano) corpus=${CORPUS:-corpora/manifest.json} examples=60000 eval=(--limit 500) ;;
  *) echo "usage: bash recipes/speedrun.sh tiny|nano" >&2 && exit 2 ;;
esac
mkdir -p "$run/done"

commands=()
stage() { # stage NAME COMMAND...
  local mark=$run/done/$1
  shift
  commands+=(--made-by "$*")
  if [ -e "$mark" ]; then
    echo "== $(basename "$mark") is done"
  else
    echo "== $(basename "$mark"): $*"
    "$@"
    touch "$mark"
  fi
}

# Text: extracted, filtered and deduplicated, with a data card; then the tokens that this mix uses most.
stage data ossia data build "$corpus" --out "$run/corpus"
stage vocabulary ossia train vocabulary --recipe "$recipes/pretrain.toml" --out "$run/pretrain" --examples "$examples"
stage shards ossia data shard "$run/corpus" --tokenizer "$run/pretrain/tokenizer"

# Three kinds of training. Each leaves a whole model that `ossia chat` runs.
stage pretrain ossia train pretrain --recipe "$recipes/pretrain.toml" --out "$run/pretrain"
stage sft ossia train sft --recipe "$recipes/sft.toml" --model "$run/pretrain/model" --out "$run/sft"
stage rl ossia train rl --recipe "$recipes/rl.toml" --out "$run/rl"

# The files that are shipped are the files that are measured.
stage evaluate ossia eval "$run/rl/model" "${eval[@]}" --out "$run/results"
stage package ossia train ship "$run/rl/model" --results "$run/results/model-accuracy.json" --out "$run/shipped" \
  --data-card "$run/corpus/README.md" "${commands[@]}"
echo "done; talk to it with: ossia chat $run/shipped"
