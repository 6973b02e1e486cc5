#!/usr/bin/env bash
# Calls Docker Compose: the plugin of the docker command if it is there, else bin/tools/docker-compose, which is built
# from its Go module the first time.
# Usage: compose.sh ARGUMENTS OF DOCKER COMPOSE
set -euo pipefail

version=v5.1.2
tool=$(dirname "$0")/../bin/tools/docker-compose-$version

if docker compose version >/dev/null 2>&1; then
    exec docker compose "$@"
fi
if [[ ! -x $tool ]]; then
    echo "compose: building docker-compose $version into bin/tools, once; takes some minutes" >&2
    # Its go.mod has replacements, with which `go install` refuses a module; a module of our own may depend on it.
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    (
        cd "$work"
        export GOFLAGS=-mod=mod GOWORK=off
        go mod init docker-compose
        go get -tool "github.com/docker/compose/v5/cmd@$version"
        CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X github.com/docker/compose/v5/internal.Version=$version" \
            -o docker-compose github.com/docker/compose/v5/cmd
    ) >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }
    mkdir -p "$(dirname "$tool")"
    mv "$work/docker-compose" "$tool"
fi
exec "$tool" "$@"
