#!/bin/sh
# Boots a VM named hello from the tiny guest and leaves it running. `make run` calls this after building.
#
# It may be called again at any time: a daemon that runs is used, a VM hello that exists is started.
# What it started itself is noted in the state directory, one word a line, so that stop.sh ends that and
# nothing else:
#
#   make-run:  daemon   no daemon ran before
#              vm       there was no VM hello before; one that was there is the user's, and stays

set -eu

# shellcheck source=scripts/roost.sh
. "$(dirname "$0")/roost.sh"

note() {
    mkdir -p "$state"
    grep -qx "$1" "$notes" 2>/dev/null || echo "$1" >>"$notes"
}

# Lines of KEY=VALUE; a value may hold spaces and further `=`.
image=$(cd "$repo" && "$cargo" xtask guest-image --print-paths)
value() { printf '%s\n' "$image" | sed -n "s/^$1=//p"; }

if ! roost daemon status >/dev/null 2>&1; then
    # Noted first: if this is interrupted in between, stop.sh still knows whose daemon it is.
    note daemon
    roost daemon start
fi

if roost vm get hello >/dev/null 2>&1; then
    roost vm start hello
else
    note vm
    roost vm create hello \
        --kernel "$(value kernel)" --initrd "$(value initrd)" --kernel-args "$(value kernel_args)" \
        --memory 256MiB --cpus 1 --allow-exec --start
fi
if ! roost vm wait hello --console 'roost: guest up' --timeout 120s; then
    echo 'The guest did not say that it is up. The last lines of its console:' >&2
    roost vm logs hello --tail 15 >&2
    exit 1
fi

echo
roost vm get hello
echo
echo 'The last lines of its console:'
roost vm logs hello --tail 15

roost vm wait hello --agent --timeout 60s
echo "\$ roost exec hello -- uname -a"
roost exec hello -- uname -a
cat <<END

The VM hello is running, and goes on without this terminal. Next:

  export PATH="$bin:\$PATH"
  roost console hello        a shell in the guest
  roost exec -it hello sh    the same through its agent
  roost vm list
  roost vm stop hello        as by its power button
  make stop                  ends what make run started
END
