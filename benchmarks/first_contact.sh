#!/usr/bin/env bash
# The first minutes on a machine with an NVIDIA GPU, in one command that takes at most nine of them:
#
#   bash benchmarks/first_contact.sh FOLDER      (or FIRST_CONTACT_OUT=FOLDER)
#
# Builds the kernels for the card and takes what is worth knowing of them, the most valuable first:
# are they right, how fast are they, how fast are others, the tests, the sanitizers, the schedules,
# counters. Every result is in FOLDER as soon as it exists (seven small files); a step that fails or
# takes too long ends alone. Called again with the files of the first call in FOLDER, it takes what is
# missing. Needs no network: Python with torch, pybind11, pytest, CMake, ninja and nvcc are enough.
# Afterwards, where the repository is: python benchmarks/run.py merge FOLDER.
#
# PYTHON names the interpreter, FIRST_CONTACT_LIMIT_S the seconds in all, FIRST_CONTACT_WORK a folder
# for the build, the logs and the references (build/contact). FIRST_CONTACT_STAND_IN names a folder
# of stand-ins for the device and its tools (tests/benchmarks/stand_in), with which tests rehearse
# this very script; FIRST_CONTACT_STRETCH multiplies all times, where a machine is busy with others.
set -uo pipefail

out=${1:-${FIRST_CONTACT_OUT:-}}
if [[ -z $out ]]; then
  echo "usage: bash benchmarks/first_contact.sh FOLDER" >&2
  exit 2
fi
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

readonly stretch=${FIRST_CONTACT_STRETCH:-1}
readonly limit=$((${FIRST_CONTACT_LIMIT_S:-540} * stretch))
readonly reserve=10 # for the summary
readonly rivals_budget=90 # seconds of a step, like those below
export FIRST_CONTACT_WORK=${FIRST_CONTACT_WORK:-$PWD/build/contact}
readonly work=$FIRST_CONTACT_WORK
cores=$(nproc)
export PYTHONPATH="$work/stage:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
export TORCHINDUCTOR_COMPILE_THREADS=1
if [[ -n ${FIRST_CONTACT_STAND_IN:-} ]]; then
  FIRST_CONTACT_STAND_IN=$(cd "$FIRST_CONTACT_STAND_IN" && pwd) || exit 2
  export FIRST_CONTACT_STAND_IN PATH="$FIRST_CONTACT_STAND_IN/bin:$PATH"
fi
mkdir -p "$work/logs"
running="" rivals="" references="" built=no
readonly needs_kernels=" smoke ours tests alone memcheck racecheck synccheck schedules ncu "

# What a killed call left behind would compute beside this one.
while read -r pid; do
  [[ $(tr '\0' ' ' <"/proc/$pid/cmdline") == timeout\ *contact* ]] && kill -TERM "$pid"
done 2>/dev/null <"$work/pids"
: >"$work/pids"

contact() {
  "${PYTHON:-python3}" benchmarks/run.py contact "$@"
}

say() {
  printf '%4d s  %s\n' "$SECONDS" "$*" | tee -a "$out/log.txt"
}

# Ends what runs, says what was found. Also on SIGTERM and SIGINT.
finish() {
  trap '' TERM INT
  local pid
  for pid in $running $references $rivals; do
    kill -TERM "$pid" 2>/dev/null
  done
  printf '\n'
  contact summary "$out" 2>&1 | tee -a "$out/log.txt"
  exit "$1"
}
trap 'say "ended from outside"; finish 143' TERM INT

# step NAME BUDGET COMMAND...: takes a step, unless it is done or does not fit in what time remains.
step() {
  local name=$1 budget=$(($2 * stretch)) left status from reason
  shift 2
  if [[ " $finished " == *" $name "* ]]; then
    say "$name: done by an earlier call"
    return
  fi
  left=$((limit - reserve - SECONDS))
  reason=""
  ((left < budget)) && reason="it may take $budget s and $left s are left"
  [[ $needs_kernels == *" $name "* && $built == no ]] && reason="there are no kernels"
  if [[ -n $reason ]]; then
    say "$name: skipped, $reason"
    contact close "$out" "$name" skipped "$reason" 0
    return
  fi
  say "$name"
  from=$SECONDS
  timeout --kill-after=5 "$budget" "$@" >"$work/logs/$name" 2>&1 &
  running=$!
  echo "$running" >>"$work/pids"
  wait "$running"
  status=$?
  running=""
  [[ $name =~ ^(tests|alone)$ && $status == 1 ]] && status=0 # tests that fail are a result
  {
    printf -- '---- %s, status %d\n' "$name" "$status"
    tail -c 40000 "$work/logs/$name"
  } >>"$out/log.txt"
  if ((status == 0)); then
    contact close "$out" "$name" "done" "" $((SECONDS - from))
    return
  fi
  reason="status $status: $(tail -n 1 "$work/logs/$name" | cut -c1-300)"
  ((status == 124 || status == 137)) && reason="took more than $budget s"
  say "$name: failed, $reason"
  contact close "$out" "$name" failed "$reason" $((SECONDS - from))
}

# take NAME BUDGET: a step of run.py, which is told how long it has.
take() {
  step "$1" "$2" "${PYTHON:-python3}" benchmarks/run.py contact "$1" "$out" \
    "$(($2 * stretch - 3))"
}

# aside NAME ARGUMENTS...: beside the steps, on the cores that the build leaves. `$!` is its number.
aside() {
  local name=$1
  shift
  timeout --kill-after=5 "$((limit - SECONDS))" "${PYTHON:-python3}" benchmarks/run.py contact \
    "$name" "$@" >"$work/logs/$name" 2>&1 &
  echo "$!" >>"$work/pids"
}

# pytest_step NAME BUDGET ARGUMENTS...
pytest_step() {
  local name=$1 budget=$2
  shift 2
  INNERLOOP_CONTACT="$name:$out" step "$name" "$budget" "${PYTHON:-python3}" -m pytest -q \
    -p contact.tests_plugin -p no:cacheprovider -W default --maxfail=25 "${each_test[@]}" "$@" tests/cuda
}

say "first contact: ${limit} s, ${cores} cores, results in $out"
finished=$(contact finished "$out")
each_test=()
"${PYTHON:-python3}" -c 'import pytest_timeout' 2>/dev/null && each_test=(--timeout=60 --timeout-method=thread)

# 0 and 1: the card, then the build, with the rivals beside it
take card 60
rm -f "$work/rivals-go" "$work/rivals-ready"
if [[ " $finished " != *" rivals "* ]] && ((limit - reserve - SECONDS >= rivals_budget * stretch)); then
  aside references
  references=$!
  aside rivals "$out"
  rivals=$!
fi
take build 240
built=$(contact built)

# 2: are the kernels right
take smoke 60

# 3 and 4: how fast are they, once nothing compiles beside them; then the others
patience=$((SECONDS + 45))
while [[ -n $rivals && ! -e $work/rivals-ready ]] && kill -0 "$rivals" && ((SECONDS < patience)); do
  sleep 0.2
done
take ours 90
step rivals "$rivals_budget" "${PYTHON:-python3}" benchmarks/run.py contact await "$out" "$rivals"
for pid in $references $rivals; do
  kill -TERM "$pid" 2>/dev/null
done
references="" rivals=""

# 5: the tests; the one that fills the memory alone
workers=$((cores / 2 < 8 ? (cores / 2 > 0 ? cores / 2 : 1) : 8))
pytest_step tests 100 -m "cuda and not alone" -n "$workers"
pytest_step alone 30 -m "cuda and alone"

# 6 to 8: sanitizers, schedules, counters
take memcheck 50
take racecheck 40
take synccheck 40
take schedules 60
take ncu 40
finish 0
