#!/usr/bin/env bash
# Runs each fuzz target of all modules for some time.
# Usage: fuzz.sh TIME, such as 10s
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:?usage: fuzz.sh TIME, such as 10s}

targets=$(grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sed -e 's/func //' -e 's|^\./||' | sort || true)
if [[ -z $targets ]]; then
    echo "fuzz: no targets"
    exit 0
fi
while IFS=: read -r file target; do
    echo "=== $target in $(dirname "$file") for $time"
    go -C "$(dirname "$file")" test -run '^$' -fuzz "^${target}\$" -fuzztime "$time" . </dev/null
done <<<"$targets"
