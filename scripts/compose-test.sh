#!/usr/bin/env bash
# Tests the containers: the real compose files, with stand-ins for the images that can't be pulled. Brings up fullstack
# mode, runs the end-to-end tests through gateway and broker, lets containers crash under load, switches the access rules
# on, and takes everything down. Its containers and volumes have names of their own; the ports are those of the compose
# files, so nothing else may be running.
#
# Uses the Docker engine that runs. Else it starts one for itself, after installing it on Debian and Ubuntu, if this is root.
# Exit code 77: there is no engine, or ports are taken; nothing was tested.
set -euo pipefail
cd "$(dirname "$0")/.."

cannot() { echo "compose-test: $*; nothing was tested" >&2; exit 77; }
say() { printf '=== %s (%d s)\n' "$*" "$SECONDS"; }

work=$(mktemp -d "${TMPDIR:-/tmp}/compose-test.XXXXXX")
engine=
up=

finish() {
    local code=$?
    trap - EXIT INT TERM
    if [[ -n $up ]]; then
        if ((code != 0)); then
            say "failed; the state of the containers and their logs follow"
            for service in platform emqx traefik redpanda postgres console; do
                echo "--- $service"
                "${fullstack[@]}" logs --no-color --tail 30 "$service" || true
            done
            "${fullstack[@]}" ps --all || true
        fi
        "${fullstack[@]}" down --volumes --timeout 20 >/dev/null 2>&1 || true
    fi
    if [[ -n $engine ]]; then
        kill "$engine" 2>/dev/null || true
        wait "$engine" 2>/dev/null || true
    fi
    rm -rf "$work" || true
    exit "$code"
}
trap finish EXIT INT TERM

start_engine() {
    [[ $(uname -s) == Linux && $(id -u) == 0 ]] || cannot "no Docker engine answers, and only root on Linux can start one"
    if ! command -v dockerd >/dev/null; then
        command -v apt-get >/dev/null || cannot "no Docker engine is installed"
        say "installing Docker's engine"
        if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends docker.io iptables; } >"$work/apt.log" 2>&1; then
            tail -n 5 "$work/apt.log" >&2
            cannot "Docker's engine can't be installed"
        fi
        docker info >/dev/null 2>&1 && return # the package has started it
    fi
    say "starting an engine"
    export DOCKER_HOST=unix://$work/docker.sock
    dockerd --host "$DOCKER_HOST" --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/dockerd.pid" >"$work/dockerd.log" 2>&1 &
    engine=$!
    for ((i = 0; i < 120; i++)); do
        docker info >/dev/null 2>&1 && return
        kill -0 "$engine" 2>/dev/null || break
        sleep 0.5
    done
    tail -n 5 "$work/dockerd.log" >&2
    cannot "the engine does not start"
}

command -v docker >/dev/null && docker info >/dev/null 2>&1 || start_engine

for port in 80 1883 5432 8080 8081 8082 8083 8084 8085 8086 8087 8088 8180 9092 9644 18083; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        cannot "port $port is taken"
    fi
done

# Not those of whoever works on this machine.
export COMPOSE_PROJECT_NAME=cornjacket-test
unset COMPOSE_FILE COMPOSE_PROFILES
export COMPOSE_ENV_FILES=$PWD/compose/standin/images.env
fullstack=("$PWD/scripts/compose.sh" -f "$PWD/compose/docker-compose.yaml" -f "$PWD/compose/docker-compose.fullstack.yaml")
e2e() {
    E2E_LIVE=1 E2E_GATEWAY_URL=http://127.0.0.1 E2E_COMPOSE="${fullstack[*]}" go test -count=1 -timeout 10m "$@" ./e2e/
}

say "building Docker Compose and the stand-ins"
"${fullstack[@]}" version
scripts/setup.sh
scripts/compose-standins.sh

say "bringing everything up"
up=yes
"${fullstack[@]}" down --volumes >/dev/null 2>&1 # what a test that was killed has left
make --no-print-directory fullstack-up PLATFORM_IMAGE=cornjacket-standin/platform

say "end to end"
e2e -skip '^TestContainer'

say "limits, topics, crashes, the platform away"
e2e -v -run '^TestContainer'
docker stats --no-stream

say "users and rules"
export MQTT_AUTH=true MQTT_ACL=devices.acl MQTT_USERNAME=platform MQTT_PASSWORD=platform
"${fullstack[@]}" up --detach --wait
E2E_MQTT_ACCESS=1 e2e -v -run '^TestContainerAccess'

say "taking everything down"
make --no-print-directory fullstack-down VOLUMES=1
up=
left=$(docker ps --all --quiet --filter label=com.docker.compose.project=$COMPOSE_PROJECT_NAME; docker volume ls --quiet --filter label=com.docker.compose.project=$COMPOSE_PROJECT_NAME)
if [[ -n $left ]]; then
    echo "compose-test: left behind: $left" >&2
    exit 1
fi
say "compose-test: all is well"
