# What run.sh and stop.sh share; sourced by both, not run.
# shellcheck shell=sh disable=SC2034  # the variables are used where this is sourced

repo=$(cd "$(dirname "$0")/.." && pwd)
cargo=${CARGO:-cargo}

# Relative target directories are cargo's: below the repository, where make runs it.
bin=${CARGO_TARGET_DIR:-target}
case $bin in
/*) bin=$bin/debug ;;
*) bin=$repo/$bin/debug ;;
esac

# The daemon's own choice of a state directory, which these scripts need for their notes.
if [ -n "${ROOST_STATE_DIR:-}" ]; then
    state=$ROOST_STATE_DIR
elif [ "$(id -u)" = 0 ]; then
    state=/var/lib/roost
else
    state=${XDG_STATE_HOME:-$HOME/.local/state}/roost
fi
notes=$state/make-run

roost() { "$bin/roost" "$@"; }
