#!/usr/bin/env bash
# Looks for known vulnerabilities in what the packages call. Fails when there are any. Without the database nothing can be
# said either way: that is told in one line and is no failure, so that a check works offline, unless VULNCHECK=required.
# Usage: vulncheck.sh GOVULNCHECK [-C FOLDER] PACKAGE...
set -euo pipefail
cd "$(dirname "$0")/.."
tool=${1:?usage: vulncheck.sh GOVULNCHECK [-C FOLDER] PACKAGE...}
shift

code=0
output=$("$tool" -db "${VULNDB:-https://vuln.go.dev}" "$@" 2>&1) || code=$?
if ((code != 0)) && grep -q 'fetching vulnerabilities:' <<<"$output"; then
    echo "vulncheck: NOT CHECKED, the vulnerability database ${VULNDB:-https://vuln.go.dev} can't be reached from here"
    if [[ ${VULNCHECK:-} == required ]]; then
        exit 1
    fi
    exit 0
fi
echo "$output"
exit "$code"
