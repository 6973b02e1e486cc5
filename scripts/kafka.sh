#!/usr/bin/env bash
# Fetches Apache Kafka and runs one broker of it, for tests against the real thing. Needs Java 17 or newer and curl; no
# root, no Docker.
#
#   kafka.sh fetch                 gets Kafka from Maven Central, once, and prints its folder
#   kafka.sh check                 prints the folder, or says in one line what is missing; fetches nothing
#   kafka.sh start DIR PORT        starts a broker (KRaft, its own controller) on 127.0.0.1:PORT with its data in DIR,
#                                  and prints its address once it serves
#   kafka.sh stop DIR              stops it and keeps its data; it is well if it has stopped already
#   kafka.sh run DIR PORT          is start in the foreground: until SIGTERM, or until stdin ends, so that a broker
#                                  does not outlive who started it
#
# start and run take a third argument: the controller's port, PORT + 1 by default. Kafka is kept in
# $XDG_CACHE_HOME/cornjacket/kafka-VERSION (~/.cache/...), and KAFKA_REPOSITORY names another repository than Maven
# Central. Exit codes: 0, 1 for an error, 2 for bad usage, 3 if Kafka can't be had on this machine.
#
# kafka-jars.sha256 lists what is fetched: the runtime dependencies of org.apache.kafka:kafka_2.13, and slf4j-simple to
# have its log. For a newer version, resolve them with
#   mvn dependency:copy-dependencies -DincludeScope=runtime -Dmdep.useRepositoryLayout=true -DoutputDirectory=lib
# in a project that has these two dependencies, and list them with sha256sum.
set -euo pipefail

jars=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/kafka-jars.sha256
version=$(sed -n 's|.*/kafka_2.13/\([^/]*\)/.*|\1|p' "$jars")
repository=${KAFKA_REPOSITORY:-https://repo1.maven.org/maven2}
cache=${XDG_CACHE_HOME:-}
[[ $cache == /* ]] || cache=${HOME:?}/.cache # a relative path is to be ignored (XDG Base Directory Specification)
home=$cache/cornjacket/kafka-$version
host=127.0.0.1

fail() { echo "kafka.sh: $1" >&2; exit "${2:-1}"; }

# Kafka's servers need Java 17 (KIP-1013).
need_java() {
    command -v java >/dev/null || fail "Java is not installed (Debian: apt-get install openjdk-17-jre-headless)" 3
    local spec
    spec=$(java -XshowSettings:properties -version 2>&1 | sed -n 's/.*java\.specification\.version = //p')
    [[ ${spec%%.*} =~ ^[0-9]+$ && ${spec%%.*} -ge 17 ]] || fail "Java ${spec:-of no known version} is too old, Kafka $version needs 17" 3
}

check() {
    need_java
    [[ -d $home ]] || fail "Apache Kafka $version is not here; scripts/kafka.sh fetch gets it" 3
    echo "$home"
}

sha256() { if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }

fetch() {
    need_java
    if [[ ! -d $home ]]; then
        command -v curl >/dev/null || fail "curl is not installed, which gets Kafka from Maven Central" 3
        mkdir -p "$(dirname "$home")"
        local sum path
        part=$(mktemp -d "$home.part.XXXXXX")
        trap 'rm -rf "$part"' EXIT
        while read -r sum path; do
            printf 'url = "%s/%s"\noutput = "%s/%s"\n' "$repository" "$path" "$part" "${path##*/}"
        done <"$jars" >"$part/urls"
        curl --config "$part/urls" --parallel --fail --silent --show-error --location --retry 2 \
            --connect-timeout 10 --max-time 240 >"$part/errors" 2>&1 ||
            fail "Apache Kafka $version can't be had from $repository: $(grep -m 1 "^curl:" "$part/errors" || echo "no reason given")" 3
        while read -r sum path; do
            echo "$sum  $part/${path##*/}"
        done <"$jars" >"$part/sums"
        sha256 --check --status "$part/sums" || fail "what $repository gave is not the Apache Kafka $version that kafka-jars.sha256 names"
        rm -f "$part/urls" "$part/errors" "$part/sums"
        mv "$part" "$home" 2>/dev/null || [[ -d $home ]] # another one may have been faster
    fi
    echo "$home"
}

# jvm runs a class of Kafka. The broker is small and short-lived: little heap, and compilation that starts fast.
jvm() {
    exec java -Xms64m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto -Djava.awt.headless=true \
        -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info \
        -cp "$home/*" "$@"
}

# configure writes the settings of the broker, and formats its storage if it is new.
configure() {
    local dir=$1 port=$2 controller=$3
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    cat >"$dir/server.properties" <<TEXT
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@$host:$controller
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listeners=PLAINTEXT://$host:$port,CONTROLLER://$host:$controller
advertised.listeners=PLAINTEXT://$host:$port
log.dirs=$dir/data
num.network.threads=2
num.io.threads=4
# One broker holds the only copy of everything.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# Tests wait for what a group does when members come, go and die.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
# After a kill -9 a broker is not let in again before its old session has ended.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=400
TEXT
    if [[ ! -e $dir/data/meta.properties ]]; then
        (jvm kafka.tools.StorageTool format --cluster-id Y29ybmphY2tldC10ZXN0cw --config "$dir/server.properties") >"$dir/format.log" 2>&1 ||
            fail "could not format the storage in $dir: $(tail -n 1 "$dir/format.log")"
    fi
}

run() {
    check >/dev/null
    configure "$@"
    exec 3<&0
    (jvm kafka.Kafka "$1/server.properties") </dev/null 3<&- &
    local pid=$!
    echo "$pid" >"$1/pid"
    (
        while read -r _; do :; done
        kill "$pid" 2>/dev/null || true
    ) <&3 3<&- &
    local guard=$! code=0
    exec 3<&-
    trap 'kill "$pid" 2>/dev/null || true' TERM INT HUP
    # A signal interrupts wait: the broker is still waited for, whose exit code then tells of that signal (143).
    wait "$pid" || code=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || code=$?; done
    kill "$guard" 2>/dev/null || true
    rm -f "$1/pid"
    ((code == 143 || code == 130)) && code=0
    ((code == 0)) || fail "the broker has ended with exit code $code" "$code"
}

running() { [[ -s $1/pid ]] && kill -0 "$(cat "$1/pid")" 2>/dev/null; }

start() {
    check >/dev/null
    running "$1" && fail "a broker with its data in $1 runs already"
    configure "$@"
    : >"$1/kafka.log"
    (jvm kafka.Kafka "$1/server.properties") </dev/null >>"$1/kafka.log" 2>&1 &
    echo $! >"$1/pid"
    disown
    local _
    for _ in {1..600}; do
        if grep -q 'Kafka Server started' "$1/kafka.log"; then
            echo "$host:$2"
            return
        fi
        running "$1" || fail "the broker has ended: $(grep -E 'ERROR|Exception' "$1/kafka.log" | head -n 1) (all of it in $1/kafka.log)"
        sleep 0.1
    done
    stop "$1"
    fail "the broker does not serve after a minute; its log is $1/kafka.log"
}

stop() {
    local pid _
    if running "$1"; then
        pid=$(cat "$1/pid")
        kill "$pid"
        for _ in {1..300}; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
    fi
    rm -f "$1/pid"
}

usage() { sed -n '/^#   kafka.sh/,/^#$/s/^# \{0,3\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }

# ports checks DIR PORT [CONTROLLER_PORT] and makes them complete.
ports() {
    (($# == 2 || $# == 3)) || usage
    [[ $2 =~ ^[0-9]+$ && ${3:-1} =~ ^[0-9]+$ ]] || fail "PORT and CONTROLLER_PORT are numbers" 2
}

case ${1:-} in
fetch | check)
    (($# == 1)) || usage
    "$1"
    ;;
start | run)
    ports "${@:2}"
    "$1" "$2" "$3" "${4:-$(($3 + 1))}"
    ;;
stop)
    (($# == 2)) || usage
    stop "$2"
    ;;
*) usage ;;
esac
