#!/usr/bin/env bash
# Run the test suite in fresh environments: each Python with the oldest and the newest torch that pyproject.toml allows.
#
#   bash tests/matrix.sh [PYTHON:TORCH ...]     e.g. python3.13:oldest python3.11:2.14.1; default: all four combinations
#
# PYTHON is an interpreter; TORCH is oldest, newest or a version. Each environment takes about 6 GB below $TMPDIR and is
# removed before the next one is made. One line per combination at the end; exit code 1 if any of them failed.
set -euo pipefail
cd "$(dirname "$0")/.."

allowed=$(grep -oE '"torch>=[^"]+"' pyproject.toml | tr -d '"')   # torch>=2.11,<2.16
oldest=$(grep -oE '>=[0-9.]+' <<<"$allowed" | tr -d '>=')
combinations=("$@")
[ $# -gt 0 ] || combinations=(python3.11:oldest python3.11:newest python3.13:oldest python3.13:newest)

work=""
trap 'rm -rf "$work"' EXIT

run_combination() { # PYTHON TORCH: install and test; the versions it ran with are in $work/versions
  local torch
  case $2 in
    oldest) torch="torch~=$oldest.0" ;;
    newest) torch=$allowed ;;
    *) torch="torch==$2" ;;
  esac
  "$1" -m venv "$work/venv" || return
  # shellcheck disable=SC1091
  source "$work/venv/bin/activate" || return
  pip install --quiet "$torch" -e '.[dev]' || return
  python -c 'import platform, torch; print(platform.python_version(), torch.__version__)' >"$work/versions" || return
  DISTGAN_CACHE="$work/cache" WANDB_MODE=offline TMPDIR="$work" pytest
}

results=() failed=0
for combination in "${combinations[@]}"; do
  work=$(mktemp -d)
  echo "== $combination"
  if (run_combination "${combination%%:*}" "${combination##*:}"); then outcome=passed; else outcome=FAILED failed=1; fi
  read -r python torch 2>/dev/null <"$work/versions" || { python="not installed" torch=""; }
  results+=("$outcome: $combination (Python $python, torch $torch)")
  rm -rf "$work"
done
printf '%s\n' "${results[@]}"
exit $failed
