#!/usr/bin/env bash
# What a GPU is asked once it can be had for half an hour: each part is one command that ends within ten minutes.
#
#   DATA=xrays.zip REFERENCE=mtt-distillation benchmarks/gpu.sh step teachers tests   # about 15 minutes
#   DATA=xrays.zip REFERENCE=mtt-distillation benchmarks/gpu.sh table                 # again and again: it goes on
#
#   step       a distillation step, ours and the public MTT code's: (a) W64 D4, 64 px, J = 10, 20 images;
#              (b) W128 D5, 112 px, J = 5, 8 images
#   teachers   teacher training, ours and the public MTT code's: W128 D5 112 px
#   tests      the tests that need a GPU
#   table      Table 1 at 112 px by the preset `fast`: σ = 0 and 0.1, 1 and 10 images per class, three seeds
#   all        all of them, the table until it is done (longer than ten minutes)
#
# DATA       chest X-rays, as `ppdd distill` takes them (table)
# WHERE      rows of them; default hospital=a, empty = all
# REFERENCE  a clone of GeorgeCazenavette/mtt-distillation (step, teachers)
# RESULTS    folder for what is found; default gpu-results
# DEVICE     cuda (default), or cpu to try this script
# TOY=1      a toy size; drawn X-rays where DATA is not given
# LIMIT      seconds a part may take; default 570
# PYTHON     default .venv/bin/python where that is
#
# Exit codes: 0 done; 3 the table is not done yet, run it again; anything else: it failed, and says at what.
set -euo pipefail
trap 'echo "gpu.sh: failed at line $LINENO: $BASH_COMMAND" >&2' ERR

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
results=${RESULTS:-gpu-results}
device=${DEVICE:-cuda}
toy=${TOY:-0}
limit=${LIMIT:-570}
where=${WHERE-hospital=a}
python=${PYTHON:-}
if [[ -z $python ]]; then
  python=python3
  if [[ -x $here/.venv/bin/python ]]; then python=$here/.venv/bin/python; fi
fi

stop() {
  echo "gpu.sh: $1" >&2
  exit 2
}

# To stderr: what a command prints may go into a file.
say() {
  printf '== %(%H:%M:%S)T %s\n' -1 "$*" >&2
}

ppdd() {
  "$python" -m ppdd_core.cli "$@"
}

# within SECONDS COMMAND…: ends it and fails where it takes longer.
within() {
  local seconds=$1
  shift
  say "$* (at most $seconds s)"
  timeout --foreground --kill-after=20 "$seconds" "$@"
}

needs_reference() {
  [[ -d ${REFERENCE:-} ]] || stop "REFERENCE must be a clone of https://github.com/GeorgeCazenavette/mtt-distillation"
}

needs_device() {
  [[ $device == cuda || $device == cpu ]] || stop "DEVICE must be cuda or cpu, got $device"
  if [[ $device == cuda ]]; then
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
      || stop "torch sees no CUDA device on this machine; DEVICE=cpu TOY=1 tries this script without one"
  fi
}

# bench NAME SECONDS ARGUMENTS…: `ppdd bench`, its JSON and its bars in the results.
bench() {
  local name=$1 seconds=$2
  shift 2
  within "$seconds" "$python" -m ppdd_core.cli bench "$@" --device "$device" --reference "$REFERENCE" \
    --json --plot "$results/$name.svg" > "$results/$name.json.part"
  mv "$results/$name.json.part" "$results/$name.json"
  say "wrote $results/$name.json and $results/$name.svg"
}

step() {
  needs_reference
  if [[ $toy == 1 ]]; then
    bench step-a $((limit / 2)) step --size 16 --width 4 --depth 2 --steps 2 --batch 4 --repeats 1 --rounds 1
    bench step-b $((limit / 2)) step --size 16 --width 4 --depth 3 --steps 1 --batch 4 --repeats 1 --rounds 1
  else
    bench step-a $((limit / 2)) step --size 64 --width 64 --depth 4 --steps 10 --batch 20 --repeats 10 --rounds 3
    bench step-b $((limit / 2)) step --size 112 --width 128 --depth 5 --steps 5 --batch 8 --repeats 10 --rounds 3
  fi
}

teachers() {
  needs_reference
  if [[ $toy == 1 ]]; then
    bench teachers "$limit" teachers --size 16 --width 4 --depth 2 --batch 8 --images 16 --repeats 1 --rounds 1
  else
    bench teachers "$limit" teachers --size 112 --width 128 --depth 5 --batch 256 --images 4096 --repeats 3 --rounds 3
  fi
}

tests() {
  local which=(tests/core)
  if [[ $toy == 1 ]]; then which=(tests/core/distill/test_student.py); fi
  (cd "$here" && within "$limit" "$python" -m pytest -m gpu -p no:cacheprovider -n 0 -rs "${which[@]}") \
    | tee "$results/tests.txt.part"
  mv "$results/tests.txt.part" "$results/tests.txt"
  if [[ $device == cuda ]]; then
    grep -q passed "$results/tests.txt" || stop "no test ran on the GPU; see $results/tests.txt"
  fi
}

# One slice of the table; 3 where it is not done yet.
table_slice() {
  local arguments=(--data "$DATA" --out "$results/table" --device "$device" --sigma 0 --sigma 0.1) code=0
  if [[ -n $where ]]; then arguments+=(--where "$where"); fi
  if [[ $toy == 1 ]]; then
    arguments+=(
      --preset quick --ipc 1 --seeds 1 --baseline random_real --no-calibrate
      --set image_size=16 --set net.width=8 --set net.depth=2 --set teacher.teachers=2 --set teacher.epoch_images=800
      --set teacher.momentum=0.9 --set distill.iterations=2 --set detector.epochs=2 --set detector.seeds=1 --set privacy.members=20
    )
  else
    arguments+=(--preset fast --ipc 1 --ipc 10 --seeds 3)
  fi
  within "$limit" "$python" -m ppdd_core.cli sweep "${arguments[@]}" || code=$?
  if [[ $code == 124 || $code == 137 ]]; then # timed out; 137 where it was slow to stop and had to be killed
    say "the table is not done yet; what was finished is kept in $results/table: run the same again"
    return 3
  fi
  return "$code"
}

table() {
  ppdd sweep --help > /dev/null 2>&1 || stop "this version has no ppdd sweep, which the table is made with"
  if [[ $toy == 1 && -z ${DATA:-} ]]; then
    DATA=$results/phantoms
    if [[ ! -e $DATA/manifest.csv ]]; then
      within "$limit" "$python" -m ppdd_core.cli phantom write "$DATA" --patients 60 --size 32 --balanced || return
    fi
    where=''
  fi
  [[ -e ${DATA:-} ]] || stop "DATA must be chest X-rays: a folder, a ZIP or a CSV manifest"
  local code=0
  table_slice || code=$?
  return "$code"
}

main() {
  (($# > 0)) || stop "say which parts: step, teachers, tests, table or all"
  needs_device
  mkdir -p "$results"
  results=$(cd "$results" && pwd)
  export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
  local part code
  for part in "$@"; do
    case $part in
      step | teachers | tests) "$part" ;;
      table)
        code=0
        table || code=$?
        if ((code)); then exit "$code"; fi
        ;;
      all)
        step
        teachers
        tests
        code=3
        while ((code == 3)); do
          code=0
          table || code=$?
        done
        if ((code)); then exit "$code"; fi
        ;;
      *) stop "there is no part $part; there are step, teachers, tests, table and all" ;;
    esac
    say "$part: done"
  done
}

main "$@"
