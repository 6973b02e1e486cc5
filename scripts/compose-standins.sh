#!/usr/bin/env bash
# Builds stand-ins for the container images of the compose files, from what this machine has: PostgreSQL's binaries, and
# programs of compose/standin. They are for machines that can't pull images, and for the test of the containers.
# Usage: compose-standins.sh [postgres redpanda console emqx traefik platform]
# then e.g. docker compose --env-file compose/standin/images.env -f compose/docker-compose.yaml up
set -euo pipefail
cd "$(dirname "$0")/.."

DOCKER=${DOCKER:-docker}
work=$(mktemp -d "${TMPDIR:-/tmp}/standins.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Copies programs into the root file system $1, with the libraries that they load.
add() {
    local root=$1 program
    shift
    for program; do
        program=$(readlink -f "$program")
        install -D "$program" "$root$program"
        { ldd "$program" 2>/dev/null || true; } | grep -oE '/[^ ]+\.so[^ ]*' | while read -r library; do
            [[ -e $root$library ]] || install -D "$(readlink -f "$library")" "$root$library"
        done
    done
}

# Starts a root file system with a shell, for health checks, and the users that the images have.
root() {
    local root=$work/$1
    mkdir -p "$root"/{bin,etc,run,tmp,usr/bin,var/lib}
    chmod 1777 "$root/tmp"
    add "$root" "$(command -v dash || command -v sh)"
    ln -s "$(readlink -f "$(command -v dash || command -v sh)")" "$root/bin/sh"
    printf '%s\n' 'root:x:0:0::/:/bin/sh' 'postgres:x:999:999::/:/bin/sh' 'nobody:x:65534:65534::/:/bin/sh' >"$root/etc/passwd"
    printf '%s\n' 'root:x:0:' 'postgres:x:999:' 'nogroup:x:65534:' >"$root/etc/group"
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
    echo "$root"
}

# Puts the stand-in program into the root file system $1, under each of the other names.
standin() {
    local root=$1 name
    shift
    install -D "$work/program" "$root/usr/bin/standin"
    for name; do ln -s standin "$root/usr/bin/$name"; done
}

# Makes an image of the root file system $1; the other arguments are instructions of a Dockerfile that import knows.
image() {
    local name=$1 old change=(--change 'ENV PATH=/usr/bin:/bin')
    shift
    for instruction; do change+=(--change "$instruction"); done
    old=$($DOCKER images --quiet "cornjacket-standin/$name")
    tar -C "$work/$name" --numeric-owner --owner 0 --group 0 -c . | $DOCKER import "${change[@]}" - "cornjacket-standin/$name" >/dev/null
    replaced "$name" "$old"
}

# Builds an image with the Dockerfile and the folder of the name $1.
build() {
    local old
    old=$($DOCKER images --quiet "cornjacket-standin/$1")
    if ! $DOCKER build --quiet --force-rm --tag "cornjacket-standin/$1" --file "$work/$1.Dockerfile" "$work/$1" >"$work/log" 2>&1; then
        cat "$work/log" >&2
        exit 1
    fi
    replaced "$1" "$old"
}

# Says that the image $1 is there, and deletes the one that it has replaced, $2, unless a container uses it.
replaced() {
    if [[ -n $2 && $2 != $($DOCKER images --quiet "cornjacket-standin/$1") ]]; then
        $DOCKER rmi "$2" >/dev/null 2>&1 || true
    fi
    echo "standins: cornjacket-standin/$1"
}

postgres() {
    local root bin share lib version
    version=$(find /usr/lib/postgresql -mindepth 1 -maxdepth 1 -printf '%f\n' 2>/dev/null | sort -n | tail -n 1)
    if [[ -z $version ]]; then
        echo "standins: no PostgreSQL in /usr/lib/postgresql (scripts/setup.sh installs it)" >&2
        exit 1
    fi
    root=$(root postgres-base)
    standin "$root" postgres-entrypoint
    bin=/usr/lib/postgresql/$version/bin
    lib=/usr/lib/postgresql/$version/lib
    share=/usr/share/postgresql/$version
    add "$root" "$bin"/{postgres,initdb,pg_isready,psql}
    ln -s "$version/bin" "$root/usr/lib/postgresql/bin"
    ln -s ../lib/postgresql/bin/pg_isready "$root/usr/bin/pg_isready"
    ln -s ../lib/postgresql/bin/psql "$root/usr/bin/psql"
    mkdir -p "$root$lib" "$root$share" "$root/usr/share" "$root/usr/lib/locale"
    cp -r "$lib"/{plpgsql.so,dict_snowball.so,*_and_*.so} "$root$lib/"
    cp -rL "$share/." "$root$share/"
    cp -r /usr/share/zoneinfo "$root/usr/share/"
    cp -rL /usr/lib/locale/C.utf8 "$root/usr/lib/locale/"
    image postgres-base 'ENTRYPOINT ["postgres-entrypoint"]' 'CMD ["postgres"]' 'VOLUME /var/lib/postgresql/data'
    mkdir "$work/postgres"
    printf '%s\n' 'FROM cornjacket-standin/postgres-base' 'STOPSIGNAL SIGINT' >"$work/postgres.Dockerfile" # import does not know it
    build postgres
}

redpanda() {
    local root
    root=$(root redpanda)
    standin "$root" rpk
    mkdir -p "$root/var/lib/redpanda/data"
    image redpanda 'ENTRYPOINT ["rpk"]' 'VOLUME /var/lib/redpanda/data'
}

console() {
    local root
    root=$(root console)
    standin "$root" console wget
    image console 'ENTRYPOINT ["console"]' 'USER nobody'
}

emqx() {
    local root mosquitto
    mosquitto=$(PATH=$PATH:/usr/sbin command -v mosquitto) || { echo "standins: no Mosquitto (scripts/setup.sh installs it)" >&2; exit 1; }
    root=$(root emqx)
    standin "$root" emqx
    add "$root" "$mosquitto" "$(command -v mosquitto_passwd)"
    mkdir -p "$root/usr/sbin" "$root/opt/emqx/data" "$root/opt/emqx/etc"
    image emqx 'ENTRYPOINT ["emqx"]' 'CMD ["foreground"]'
}

traefik() {
    local root
    root=$(root traefik)
    standin "$root" traefik
    image traefik 'ENTRYPOINT ["traefik"]'
}

# The platform itself, from its own Dockerfile: only the two images are replaced that can't be pulled. The first compiles,
# as this machine can; of the second nothing is needed but that it is empty.
platform() {
    mkdir -p "$work/platform"
    CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.version=${VERSION:-devel} -X main.commit=${COMMIT:-unknown}" \
        -o "$work/platform/platform" ./cmd/platform
    sed -n -e '/^FROM \${BASE_IMAGE}$/,$p' Dockerfile |
        sed -e 's/^FROM .*/FROM scratch/' -e 's|^COPY --from=build /platform|COPY platform|' >"$work/platform.Dockerfile"
    build platform
}

CGO_ENABLED=0 GOFLAGS=-buildvcs=false go -C compose/standin build -trimpath -ldflags '-s -w' -o "$work/program" .
for name in "${@:-postgres redpanda console emqx traefik platform}"; do
    for image in $name; do "$image"; done
done
