#!/bin/sh
# htcondor-vpn @version@, a bundle: this script, and a packed folder behind it. `FILE --help` says how it is used.
# It contains @contents@.
set -u
version='@version@'
digest='@digest@'
machine='@machine@'
has_python='@has_python@'
size=@size@
self=$0

usage() {
    cat <<END
usage: $self NOUN …       what \`htcondor-vpn NOUN …\` does, such as: run [options] -- COMMAND
       $self launch …     what htvpn-launch does
       $self --unpack     unpacks what is inside, where that has not been done yet, and prints the folder
       $self --version    says what is inside
       $self --verify [--key PUBLIC_KEY] [--signature FILE]
           checks that it is whole; with a key, also the signature (default: that in $self.sig)
END
}

fail() { # CODE CAUSE REMEDY
    echo "htcondor-vpn: $2: $3" >&2
    exit "$1"
}

payload() {
    tail -c "+$((size + 1))" "$self"
}

check() {
    sum=$(payload | sha256sum) || sum=''
    [ "${sum%% *}" = "$digest" ] || fail 65 "$self is damaged" 'copy it again, whole and unchanged'
}

verify() { # [--key FILE] [--signature FILE]
    key='' signature=$self.sig
    while [ $# -gt 0 ]; do
        case $1 in
        --key) key=${2-} ;;
        --signature) signature=${2-} ;;
        *) fail 64 "there is no option $1 here" "see $self --help" ;;
        esac
        [ -n "${2-}" ] || fail 64 "$1 needs a file" "see $self --help"
        shift 2
    done
    check
    if [ -z "$key" ]; then
        echo 'ok: it is whole'
        return
    fi
    [ -r "$key" ] || fail 66 "$key cannot be read" "give the builder's public key"
    [ -r "$signature" ] || fail 66 "$signature cannot be read" 'get the signature as well'
    command -v ssh-keygen >/dev/null || fail 72 'there is no ssh-keygen here' 'check the signature elsewhere'
    signers=$(mktemp) || fail 74 'there is no room for a temporary file' 'set TMPDIR'
    { printf 'builder ' && cat "$key"; } >"$signers"
    said=$(ssh-keygen -Y verify -f "$signers" -I builder -n htcondor-vpn-bundle -s "$signature" <"$self" 2>&1)
    code=$?
    rm -f "$signers"
    said=$(printf '%s\n' "$said" | head -n 1 | tr -d '\r')
    [ $code = 0 ] || fail 65 "$self was not signed with $key ($said)" 'get it from where it was made'
    echo "ok: it is whole, and signed with $key"
}

find_python() { # sets python, where none is inside
    for python in ${HTVPN_PYTHON:-python3 /usr/bin/python3 python3.13 python3.12 python3.11 python3.10 python3.9}; do
        "$python" -IS -c 'import sys, ssl, ctypes; sys.exit(sys.version_info < (3, 9))' >/dev/null 2>&1 && return
    done
    fail 72 'there is no Python of version 3.9 or newer here' \
        'name one in HTVPN_PYTHON, or have the bundle made with --with-python'
}

whole() { # PATH: prints it from the root on, as programs are named that are run in other folders
    case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$PWD/$1" ;;
    esac
}

bases() { # prints the folders that may hold what is unpacked, one a line; a node's own disk comes before a home
    if [ -n "${HTVPN_CACHE:-}" ]; then
        whole "$HTVPN_CACHE"
        return
    fi
    for above in "${TMPDIR:-/tmp}" /tmp "${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}"; do
        [ -n "$above" ] || continue
        above=$(whole "$above")
        printf '%s\n' "$above/htvpn-cache-$(id -u)"
        for other in "$above/htvpn-cache-$(id -u)".??????; do # made where another user was there first
            [ ! -d "$other" ] || printf '%s\n' "$other"
        done
    done
}

ours() { # FOLDER: whether it is a folder of ours in which nobody else can put anything
    [ -d "$1" ] && [ ! -L "$1" ] || return 1
    set -- $(ls -ldn "$1")
    case $1 in
    drwx?-??-*) [ "$3" = "$(id -u)" ] ;;
    *) return 1 ;;
    esac
}

complete() { # FOLDER: whether all files are there, and whole; what clears /tmp takes them one by one, a crash their ends
    [ -f "$1/count" ] || return 1
    files=0 bytes=0
    while read -r length name; do
        case $name in ./*) files=$((files + 1)) bytes=$((bytes + length)) ;; esac # the rest is the sum, in some language
    done <<END
$(cd "$1" && find . -name __pycache__ -prune -o -type f ! -path ./count -exec wc -c {} +)
END
    [ "$files $bytes" = "$(cat "$1/count")" ]
}

extract() { # BASE FOLDER: says why it could not, and leaves nothing then
    new=$(mktemp -d "$1/.new.XXXXXX") || return 1
    trap 'rm -rf "$new"' EXIT
    payload | tar -xzof - -C "$new" || return 1
    if [ -n "$has_python" ]; then # all but this program is packed smaller than a node's tar may understand
        "$new/lib/loader" --library-path "$new/lib" "$new/@xz@" -dc "$new/@packed@" | tar -xof - -C "$new" || return 1
        rm "$new/@packed@" || return 1
    fi
    if [ -n "$has_python" ]; then
        "$new/lib/loader" --library-path "$new/lib" "$new/python/bin/python3" -ISXutf8 "$new/unpack.py" "$new" "$2"
    else
        "$python" -ISXutf8 "$new/unpack.py" "$new" "$2"
    fi
}

place() { # sets folder, where it is unpacked after that has been done if need be
    umask 077
    case $machine in
    any | "$(uname -m)") ;;
    *) fail 72 "this bundle's programs are for $machine" "have one made on $(uname -m)" ;;
    esac
    found=$(bases)
    while IFS= read -r base; do
        folder=$base/@name@
        if ours "$base" && complete "$folder"; then
            return
        fi
    done <<END
$found
END
    check
    why=''
    while IFS= read -r base; do
        made=''
        mkdir -p "${base%/*}" 2>/dev/null
        [ -e "$base" ] || { mkdir "$base" 2>/dev/null && made=yes; }
        if ! ours "$base"; then
            [ -z "${HTVPN_CACHE:-}" ] && base=$(mktemp -d "$base.XXXXXX" 2>/dev/null) && made=yes || continue
        fi
        folder=$base/@name@
        why=$(extract "$base" "$folder" 2>&1 </dev/null) && return
        [ -z "$made" ] || rmdir "$base" 2>/dev/null
    done <<END
$found
END
    why=$(printf '%s\n' "$why" | head -n 1)
    fail 74 "it can be unpacked nowhere${why:+ ($why)}" 'set HTVPN_CACHE to a folder of yours, with room and not noexec'
}

case ${1-} in
'') usage >&2 && exit 64 ;;
-h | --help) usage && exit ;;
--version) echo '@contents@; sha256 @digest@' && exit ;;
--verify) shift && verify "$@" && exit ;;
esac
own_umask=$(umask)
[ -n "$has_python" ] || find_python
place
[ -z "$has_python" ] || python=$folder/python/bin/python3
umask "$own_umask"
case $1 in
--unpack) printf '%s\n' "$folder" && exit ;;
launch) shift && HTVPN_BUNDLE=$self exec "$folder/glidein/htvpn-launch" "$@" ;;
esac
exec "$python" -ISXutf8 "$folder/app" "$@"
