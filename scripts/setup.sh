#!/bin/sh
# Puts on a Debian or Ubuntu machine what building, running and testing Roost needs, and nothing else.
#
#   scripts/setup.sh            system packages (QEMU, a C toolchain, tools for the guest image), Rust checked
#   scripts/setup.sh --lint     the same, and cargo-deny, which `make lint` calls
#   scripts/setup.sh --fuzz     the same, and cargo-fuzz with a C++ compiler, which `make fuzz` calls
#   scripts/setup.sh --system   system packages only: the part that needs root; --system --fuzz adds its compiler
#
# Where nothing is missing it changes nothing and calls no apt. It looks for commands, not for package
# names, so a QEMU that was built by hand counts. Rust is never installed here: it belongs to the user.

set -eu

here=$(cd "$(dirname "$0")" && pwd)
repo=$(dirname "$here")

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# The packages whose command is missing, on one line. $1: empty, or --fuzz.
missing_packages() {
    [ "$1" != --fuzz ] || have g++ || printf 'g++ '
    have qemu-system-x86_64 || printf 'qemu-system-x86 '
    have qemu-img || printf 'qemu-utils '
    have make || printf 'make '
    have pkg-config || printf 'pkg-config '
    have xz || printf 'xz-utils '
    have zstd || printf 'zstd '
    # gcc alone cannot link: without libc6-dev it has no crt1.o and prints back the bare name.
    if have gcc; then
        [ "$(gcc -print-file-name=crt1.o)" != crt1.o ] || printf 'libc6-dev '
    else
        printf 'gcc libc6-dev '
    fi
    have dpkg-deb || printf 'dpkg '
    # apt checks the signatures of its indexes with this; some minimal images leave it out.
    [ -e /etc/ssl/certs/ca-certificates.crt ] || printf 'ca-certificates '
}

# os_release KEY: a value of /etc/os-release, empty when there is none.
os_release() {
    if [ -r /etc/os-release ]; then
        # shellcheck disable=SC1091
        (. /etc/os-release && eval "printf %s \"\${$1:-}\"")
    fi
}

# Prints the machine's own Debian archive entry with its suite replaced: same mirror, same key, other suite.
# $1: suite to write; $2: name of the file to make, without its extension. The format follows the entry found.
add_suite() {
    suite=$1 name=$2 codename=$(os_release VERSION_CODENAME)
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -e "$file" ] || continue
        # One stanza per record. A stanza is the archive's when one of its suites is the release itself
        # (security and updates have a suffix).
        stanza=$(awk -v code="$codename" -v suite="$suite" '
            BEGIN { RS = ""; FS = "\n" }
            {
                hit = 0; on = 1; out = ""
                for (i = 1; i <= NF; i++) {
                    if ($i ~ /^#/) continue
                    if (tolower($i) ~ /^enabled:[ \t]*no/) on = 0
                    if (tolower($i) ~ /^suites:/) {
                        n = split($i, word, /[ \t]+/)
                        for (j = 2; j <= n; j++)
                            if (word[j] == code || word[j] == "stable" || word[j] == "oldstable") hit = 1
                        out = out "Suites: " suite "\n"
                    } else out = out $i "\n"
                }
                if (hit && on) { printf "%s", out; exit }
            }' "$file")
        if [ -n "$stanza" ]; then
            printf '%s\n' "$stanza" >"/etc/apt/sources.list.d/$name.sources"
            return 0
        fi
    done
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -e "$file" ] || continue
        line=$(awk -v code="$codename" -v suite="$suite" '
            $1 == "deb" {
                # The suite is the field after the URI, and the URI is the first field with a scheme.
                for (i = 2; i < NF; i++) if ($i ~ /^[a-z+]+:/) break
                if ($(i + 1) == code || $(i + 1) == "stable" || $(i + 1) == "oldstable") {
                    $(i + 1) = suite; print; exit
                }
            }' "$file")
        if [ -n "$line" ]; then
            printf '%s\n' "$line" >"/etc/apt/sources.list.d/$name.list"
            return 0
        fi
    done
    return 1
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    release=
    # Debian 12 carries QEMU 7.2, its backports 10.0. The two cannot be mixed: with one package from
    # backports installed, the others must come from there too. Debian 13 and Ubuntu need nothing special.
    if [ "$(os_release VERSION_CODENAME)" = bookworm ]; then
        case " $* " in *' qemu-'*)
            release=bookworm-backports
            # shellcheck disable=SC2016  # apt expands it, not the shell
            if ! apt-get indextargets --format '$(RELEASE)' 'Created-By: Packages' | grep -qx "$release"; then
                add_suite "$release" roost-backports ||
                    die "found no entry of the Debian archive under /etc/apt to derive $release from; add it by hand"
            fi
        esac
    fi
    apt-get -q -o DPkg::Lock::Timeout=300 update
    # shellcheck disable=SC2086  # `release` is empty or one word
    apt-get -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends ${release:+-t $release} install "$@"
}

# $1: empty, or --fuzz.
setup_system() {
    packages=$(missing_packages "$1")
    [ -n "$packages" ] || return 0
    have apt-get || die "this machine has no apt-get; install the equivalents of: $packages"
    if [ "$(id -u)" = 0 ]; then
        say "installing $packages"
        # shellcheck disable=SC2086  # a list of words
        install_packages $packages
    elif have sudo && sudo -n true 2>/dev/null; then
        sudo -n "$here/setup.sh" --system ${1:+"$1"}
    elif have sudo; then
        say "missing: $packages"
        say 'installing them needs root. Run this, then try again:'
        printf '  sudo %s/setup.sh --system%s\n' "$here" "${1:+ $1}" >&2
        exit 1
    else
        say "missing: $packages"
        say 'installing them needs root. Run this, then try again:'
        printf '  su -c "%s/setup.sh --system%s"\n' "$here" "${1:+ $1}" >&2
        exit 1
    fi
    packages=$(missing_packages "$1")
    [ -z "$packages" ] || die "installed, but still missing: $packages"
}

check_rust() {
    needed=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$repo/Cargo.toml")
    if ! have cargo; then
        if [ -x "${CARGO_HOME:-${HOME:-/nonexistent}/.cargo}/bin/cargo" ]; then
            die "cargo is installed but not on the PATH. Run: . \"${CARGO_HOME:-$HOME/.cargo}/env\""
        fi
        die "no Rust toolchain. Install rustup (https://rustup.rs); it fetches Rust $needed by itself on the first build"
    fi
    # In the repository, so that rustup answers for the toolchain that is pinned there.
    found=$(cd "$repo" && cargo --version | awk '{ print $2 }')
    [ -n "$found" ] || die "cargo does not start in $repo; see its message above"
    oldest=$(printf '%s\n%s\n' "$needed" "$found" | sort -V | head -n 1)
    [ "$oldest" = "$needed" ] ||
        die "Rust $found is too old: Roost needs $needed. Install rustup (https://rustup.rs) and put it first on the PATH"
}

# cargo_tool NAME: a subcommand of cargo, installed where it is missing.
cargo_tool() {
    if ! cargo "$1" --version >/dev/null 2>&1; then
        say "installing cargo-$1"
        # Not from inside the repository: its pinned toolchain and settings are Roost's, not the tool's.
        (cd / && cargo install --locked "cargo-$1")
    fi
}

case "$*" in
'')
    setup_system ''
    check_rust
    ;;
--lint)
    setup_system ''
    check_rust
    cargo_tool deny
    ;;
--fuzz)
    setup_system --fuzz
    check_rust
    cargo_tool fuzz
    ;;
--system)
    setup_system ''
    ;;
'--system --fuzz')
    setup_system --fuzz
    ;;
*) die "unknown arguments '$*'; there are --lint, --fuzz, --system and --system --fuzz" ;;
esac
