#!/bin/sh
# The job hooks of a pilot whose pool has such a hook itself: runs the pool's, then ours, each with the job ad, as
# `pool-prepare-job` or `pool-update-job-info`, the name that this is started by. What the pool's hook says counts first:
# if it fails, or turns the job away, ours is not asked.
ours=${0%/*}/${0##*/pool-}
case $ours in
*/prepare-job) knob=PREPARE_JOB_BEFORE_TRANSFER ;;
*/update-job-info) knob=UPDATE_JOB_INFO ;;
*) echo "htcondor-vpn: there is no hook ${0##*/}" >&2 && exit 64 ;;
esac

fail() { # CAUSE: sends the job back to the queue
    echo "htcondor-vpn: $1" >&2
    [ $knob = UPDATE_JOB_INFO ] || printf 'HookStatusCode = 300\nHookStatusMessage = "%s"\n' "$1"
    exit 0
}

# The pool's HTCondor is where the starter, our parent, comes from; its bin may be on no PATH.
program=$(readlink "/proc/$PPID/exe")
PATH=${program%/sbin/*}/bin:$PATH

value() { # KNOB: as it is without our hooks
    HTCONDOR_VPN_POOL_HOOKS=1 condor_config_val "$1"
}

keyword=$(value STARTER_JOB_HOOK_KEYWORD) && hook=$(value "${keyword}_HOOK_$knob") ||
    fail "the pool's hook $knob is not known to condor_config_val"
ad=$(mktemp) && trap 'rm -f "$ad"' EXIT && cat >"$ad" || fail 'the job ad cannot be kept for two hooks'
said=$("$hook" <"$ad")
code=$?
[ -z "$said" ] || printf '%s\n' "$said"
[ $code = 0 ] || exit $code
printf '%s\n' "$said" | grep -Eqi '^HookStatusCode *= *[1-9]' || "$ours" <"$ad"
