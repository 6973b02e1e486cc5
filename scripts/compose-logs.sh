#!/usr/bin/env bash
# Prints the state of a compose project and the newest log lines of each service that is not running and healthy.
# Usage: compose-logs.sh docker compose -f FILE
set -euo pipefail

"$@" ps --all
while read -r service state health; do
    if [[ $state != running || ($health != healthy && $health != -) ]]; then
        echo "--- $service: $state, health: $health"
        "$@" logs --no-color --tail 50 "$service"
    fi
done < <("$@" ps --all --format '{{.Service}} {{.State}} {{or .Health "-"}}')
