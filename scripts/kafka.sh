#!/usr/bin/env bash
# Fetches Apache Kafka and runs one broker of it, for tests against the real thing. Needs Java 17 or newer, and Maven to
# fetch; no root, no Docker.
#
#   kafka.sh fetch                 gets Kafka with Maven, once, and prints its folder
#   kafka.sh check                 prints the folder, or says in one line what is missing; fetches nothing
#   kafka.sh start DIR PORT        starts a broker (KRaft, its own controller) on 127.0.0.1:PORT with its data in DIR,
#                                  and prints its address once it serves
#   kafka.sh stop DIR              stops it and keeps its data; it is well if it has stopped already
#   kafka.sh run DIR PORT          is start in the foreground: until SIGTERM, or until stdin ends, so that a broker
#                                  does not outlive who started it
#
# start and run take a third argument: the controller's port, PORT + 1 by default. Kafka is kept in
# $XDG_CACHE_HOME/cornjacket/kafka-VERSION (~/.cache/...). Where it comes from is Maven's to know (settings.xml). Exit
# codes: 0, 1 for an error, 2 for bad usage, 3 if Kafka can't be had on this machine.
#
# kafka-jars.sha256 lists the jars that Maven must give: the runtime dependencies of org.apache.kafka:kafka_2.13, and
# slf4j-simple to have its log. The paths, as in a Maven repository, hold the versions. For a newer Kafka, change
# its version there and fetch: the error names the jars that do not agree.
set -euo pipefail

jars=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/kafka-jars.sha256
version_of() { sed -n "s|.*/$1/\\([^/]*\\)/.*|\\1|p" "$jars"; }
version=$(version_of kafka_2.13)
copy_dependencies=org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies
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

# pom writes a project that has nothing but its dependencies.
pom() {
    cat <<TEXT
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>cornjacket</groupId>
  <artifactId>kafka</artifactId>
  <version>$version</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>$(version_of slf4j-simple)</version></dependency>
  </dependencies>
</project>
TEXT
}

fetch() {
    need_java
    if [[ ! -d $home ]]; then
        command -v mvn >/dev/null || fail "Maven is not installed, which gets Apache Kafka (Debian: apt-get install maven)" 3
        mkdir -p "$(dirname "$home")"
        work=$(mktemp -d "$home.part.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        pom >"$work/pom.xml"
        mvn --batch-mode --no-transfer-progress -Dstyle.color=never --file "$work/pom.xml" "$copy_dependencies" -DincludeScope=runtime \
            -DoutputDirectory="$work/lib" -Daether.connector.connectTimeout=10000 -Daether.connector.requestTimeout=60000 >"$work/log" 2>&1 ||
            fail "Maven can't get Apache Kafka $version: $(sed -n '/^\[ERROR\] /{s///;s/ -> \[Help 1\]$//;p;q;}' "$work/log")" 3
        (cd "$work/lib" && sha256 ./*.jar) | sed 's|\./||' | sort >"$work/got"
        sed 's|  .*/|  |' "$jars" | sort >"$work/want"
        if ! diff "$work/want" "$work/got" >"$work/diff"; then
            fail "what Maven gave is not the Apache Kafka $version that kafka-jars.sha256 names: $(sed -n 's/^[<>] [0-9a-f]*  //p' "$work/diff" | sort -u | paste -sd ' ' -)"
        fi
        mv "$work/lib" "$home" 2>/dev/null || [[ -d $home ]] # another one may have been faster
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
