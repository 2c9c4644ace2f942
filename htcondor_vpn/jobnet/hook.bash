#!/bin/bash
# The job hooks `prepare-job` (PREPARE_JOB_BEFORE_TRANSFER) and `update-job-info` (UPDATE_JOB_INFO) of a pilot, by the
# name that this is started by: what hook.py does, in a quarter of the time, for no other interpreter is started.
#
# bash has TCP but no UNIX sockets, so the broker listens on the loopback of the pilot's network namespace, which no job
# is in. It reads the job ad from this process's standard input itself: a shell would do so byte by byte. (So that has to
# stay what it is: `read <&3` would replace it for a moment.)
LC_ALL=C # lengths are in bytes
case ${0##*/} in
    prepare-job) verb=prepare ;;
    update-job-info) verb=update ;;
    *) echo "htcondor-vpn: there is no hook ${0##*/}" >&2; exit 64 ;;
esac
fields="pid $$"$'\n'"machine ${_CONDOR_MACHINE_AD-}"$'\n'
if exec 3<>/dev/tcp/127.0.0.1/15002 &&
    printf '%s %d\n%s' "$verb" "${#fields}" "$fields" >&3 &&
    read -r -t 10 -u 3 status length &&
    read -r -t 10 -u 3 -N "$length" answer &&
    [[ $status == ok ]]
then
    printf '%s' "${answer#$'\n'}" # a text alone, after the empty line
else
    why="the job network's broker does not answer${answer:+: ${answer//[$'\n'\"\\]/ }}"
    echo "htcondor-vpn: $why" >&2
    [[ $verb != prepare ]] || printf 'HookStatusCode = 300\nHookStatusMessage = "%s"\n' "$why"
fi
