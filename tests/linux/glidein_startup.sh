#!/bin/bash
# Stands in for GlideinWMS' script of that name as far as a launcher has to do with it: it keeps the glidein's order, tells
# what it was given, passes signals on as SIGQUIT to the process of condor_master2.pid, and ends without waiting for it.
work=$(mktemp -d "$PWD/glide_XXXXXX")
cat >"$work/condor_master" <<'END'
import os, signal, sys, time

def end(*_):
    time.sleep(float(os.environ.get("MASTER_ENDS_IN", "1")))
    print("master ended by QUIT", flush=True)
    sys.exit()

signal.signal(signal.SIGQUIT, end)
with open(sys.argv[3], "w") as file:
    file.write(f"{os.getpid()}\n")
print("master runs", flush=True)
while True:
    signal.pause()
END
on_signal() {
    echo "glidein got $1"
    kill -s QUIT "$(cat "$work/condor_master2.pid")"
    rm -rf "$work"
    exit 7
}
echo "glidein: $*"
id -u
[ -z "$FETCH" ] || bash -c "$FETCH"
[ ! -e pilot.token ] || echo "the token is there"
case " $* " in
*" -quick "*) rm -rf "$work" && exit 5 ;;
esac
trap 'on_signal TERM' TERM
trap 'on_signal QUIT' QUIT
"$HTVPN_PYTHON" -IS "$work/condor_master" -f -pidfile "$work/condor_master2.pid" &
wait
