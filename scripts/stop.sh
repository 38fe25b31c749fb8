#!/bin/sh
# Ends what run.sh started, by its notes: the VM hello, the daemon, both, or nothing.

set -eu

# shellcheck source=scripts/roost.sh
. "$(dirname "$0")/roost.sh"

started() { grep -qx "$1" "$notes" 2>/dev/null; }

if [ ! -s "$notes" ]; then
    echo 'Nothing to stop: make run has started nothing here.'
    exit 0
fi

if started vm; then
    # A VM outlives its daemon. One that ended in the meantime is needed once more, and only for this.
    if ! roost daemon status >/dev/null 2>&1; then
        echo daemon >>"$notes"
        roost daemon start
    fi
    if roost vm get hello >/dev/null 2>&1; then
        roost vm delete hello --force
    fi
fi
if started daemon && roost daemon status >/dev/null 2>&1; then
    roost daemon stop
fi
rm -f "$notes"
