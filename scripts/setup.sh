#!/usr/bin/env bash
# Installs what the tests need beside Go and a C compiler (for the race detector): PostgreSQL's server binaries,
# Mosquitto with its clients, kcat. Does nothing when all is there. `make dev` needs none of it. Where Java is
# installed it also fetches Apache Kafka with Maven (kafka.sh), whose tests are skipped where it can't be had.
#
# The packages are installed without starting their services, so that ports 1883 and 5432 stay free.
set -euo pipefail

# True if the binaries of a PostgreSQL server are where the tests look for them.
have_postgres() {
    local dir
    for dir in ${PATH//:/ } "$(pg_config --bindir 2>/dev/null || true)" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
        /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin; do
        if [[ -x $dir/initdb && -x $dir/postgres ]]; then
            return 0
        fi
    done
    return 1
}

# Debian keeps servers in /usr/sbin, which is not on everyone's PATH.
have() { PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "$1" >/dev/null; }

missing=()
have_postgres || missing+=(postgresql)
have mosquitto || missing+=(mosquitto)
have mosquitto_pub || missing+=(mosquitto-clients)
have kcat || missing+=(kcat)
# A compiler is not installed on the quiet, but the race detector does not work without one.
if ! have "${CC:-gcc}" && ! have cc; then
    echo "setup: no C compiler found; go test -race needs one" >&2
    exit 1
fi

# Apache Kafka is welcome, not needed: one line says why it is not there.
fetch_kafka() {
    local script
    script=$(dirname "${BASH_SOURCE[0]}")/kafka.sh
    if have java && ! "$script" check >/dev/null 2>&1 && ! "$script" fetch >/dev/null; then
        echo "setup: tests against Apache Kafka will be skipped" >&2
    fi
}

if ((${#missing[@]} == 0)); then
    fetch_kafka
    echo "setup: PostgreSQL, Mosquitto and kcat are installed"
    exit 0
fi

if ! have apt-get || [[ $(id -u) != 0 ]]; then
    cat >&2 <<TEXT
setup: the tests need what is not installed: ${missing[*]}
  Debian, Ubuntu: sudo apt-get install ${missing[*]}
                  (then, to keep the default ports free: sudo systemctl disable --now mosquitto postgresql)
  Fedora:         sudo dnf install postgresql-server mosquitto kcat
  macOS:          brew install postgresql@17 mosquitto kcat
TEXT
    exit 1
fi

# Debian's packages start their services unless this file says no (invoke-rc.d(8)). One that is there stays as it is
# if it says no already, and is put back afterwards if not.
policy=/usr/sbin/policy-rc.d
saved=
restore() {
    if [[ -n $saved ]]; then
        mv -f "$saved" "$policy"
    else
        rm -f "$policy"
    fi
}
if [[ -e $policy ]]; then
    saved=$(mktemp "$policy.XXXXXX")
    cp -p "$policy" "$saved"
fi
trap restore EXIT
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

# A database of its own is not wanted either, only the binaries.
clusters=/etc/postgresql-common/createcluster.conf
if [[ " ${missing[*]} " == *" postgresql "* && ! -e $clusters ]]; then
    mkdir -p "$(dirname "$clusters")"
    echo "create_main_cluster = false" >"$clusters"
fi

echo "setup: installing ${missing[*]}"
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update && apt-get install --yes --no-install-recommends -o Dpkg::Options::=--force-confold "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "setup: could not install ${missing[*]}; the whole log is in $log" >&2
    exit 1
fi
rm -f "$log"
# Installed units are enabled, and would start at the next boot.
for unit in mosquitto postgresql; do
    if [[ " ${missing[*]} " == *" $unit "* && -d /run/systemd/system ]]; then
        systemctl disable --quiet "$unit" || echo "setup: could not disable $unit; it starts at the next boot" >&2
    fi
done
for program in mosquitto mosquitto_pub kcat; do
    have "$program" || { echo "setup: $program is still not found" >&2; exit 1; }
done
have_postgres || { echo "setup: PostgreSQL's initdb and postgres are still not found" >&2; exit 1; }
fetch_kafka
echo "setup: installed; no service was started"
