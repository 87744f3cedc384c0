#!/bin/sh
# A private Postgres cluster for as long as standard input stays open.
#
#   postgres.sh          prints `ready postgres://postgres@127.0.0.1:PORT`, then waits for the end of its input
#
# A line `restart` on its input starts a Postgres that was killed again, and is answered `ready` once more.
#
# Whoever starts it holds the other end of the pipe: when that process ends, by itself or by kill -9, the pipe closes,
# the cluster is stopped at once and its directory removed. Settings are Postgres's own, so a commit is as durable here
# as anywhere. It listens on loopback only and runs as an unprivileged user, which Postgres insists on.
set -eu
# A ^C at the terminal is for the tests; this ends when they have. Saying `ready` to somebody who has gone already must end
# it the tidy way too, and death by SIGPIPE runs no trap.
trap '' INT TERM HUP PIPE

fail() {
    echo "postgres.sh: $*" >&2
    exit 1
}

if [ -n "${MAKIMA_PG_BIN:-}" ]; then
    bin=$MAKIMA_PG_BIN
else
    # The newest packaged one, else whatever is on the PATH.
    for bin in $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -t/ -k5 -rn) \
        "$(dirname "$(command -v initdb 2>/dev/null || echo /nonexistent/initdb)")"; do
        [ -x "$bin/initdb" ] && [ -x "$bin/postgres" ] && break
    done
fi
[ -x "$bin/initdb" ] && [ -x "$bin/postgres" ] ||
    fail "no Postgres server programs found; install the package postgresql (\`make test\` does it as root), or set MAKIMA_PG_BIN to the folder of initdb"

dir=$(mktemp -d "${TMPDIR:-/tmp}/makima-pg.XXXXXX")
log=$dir/log
cd "$dir"

as_user() { "$@"; }
if [ "$(id -u)" = 0 ]; then
    user=nobody
    id postgres >/dev/null 2>&1 && user=postgres
    group=$(id -g "$user")
    chown "$user:$group" "$dir"
    as_user() { setpriv --reuid="$user" --regid="$group" --clear-groups -- "$@"; }
fi

postmaster=
finish() {
    if [ -n "$postmaster" ]; then
        # SIGQUIT is `pg_ctl stop -m immediate`.
        kill -QUIT "$postmaster" 2>/dev/null || true
        tries=0
        while kill -0 "$postmaster" 2>/dev/null && [ "$tries" -lt 100 ]; do
            tries=$((tries + 1))
            sleep 0.1
        done
        kill -KILL "$postmaster" 2>/dev/null || true
    fi
    cd /
    rm -rf "$dir"
}
trap finish EXIT

as_user "$bin/initdb" -D "$dir/data" -U postgres --auth=trust --encoding=UTF8 --locale=C --no-sync >"$log" 2>&1 || {
    cat "$log" >&2
    fail "initdb failed"
}

# Not through as_user: in the background that would be a subshell, and its pid not the postmaster's.
start() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid="$user" --regid="$group" --clear-groups -- "$bin/postgres" -D "$dir/data" -p "$port" \
            -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300 </dev/null >>"$log" 2>&1 &
    else
        "$bin/postgres" -D "$dir/data" -p "$port" \
            -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300 </dev/null >>"$log" 2>&1 &
    fi
    postmaster=$!
    # postmaster.pid says `ready` in its last line once connections are taken.
    while kill -0 "$postmaster" 2>/dev/null; do
        if grep -q '^ready' "$dir/data/postmaster.pid" 2>/dev/null &&
            [ "$(head -n 1 "$dir/data/postmaster.pid")" = "$postmaster" ]; then
            return 0
        fi
        sleep 0.05
    done
    wait "$postmaster" 2>/dev/null || true
    postmaster=
    return 1
}

# Below the range that port 0 draws from, so that nothing takes the port between two tries.
try=0
while :; do
    try=$((try + 1))
    [ "$try" -le 20 ] || {
        tail -n 20 "$log" >&2
        fail "Postgres did not start"
    }
    port=$((18000 + ($$ * 31 + try * 977) % 2000))
    start && break
done

echo "ready postgres://postgres@127.0.0.1:$port $postmaster"
while read -r word; do
    [ "$word" = restart ] || continue
    wait "$postmaster" 2>/dev/null || true
    # What it had started may take a moment to notice that it is gone, and to let go of what the next one needs.
    try=0
    until start || [ "$try" -ge 100 ]; do
        try=$((try + 1))
        sleep 0.1
    done
    echo "ready postgres://postgres@127.0.0.1:$port $postmaster" || true
done
exec >/dev/null 2>&1
