#!/bin/bash
# The last script: makes HTCondor's configuration and starts it. It does not wait for it once it has been told to end.
for name in $(compgen -e | grep -i '^_condor_'); do
    unset "$name"
done
glidein_config=$PWD/$1
. "$(grep -m1 '^ADD_CONFIG_LINE_SOURCE ' "$glidein_config" | cut -d ' ' -f 2-)"
export CONDOR_CONFIG=$PWD/condor_config
cp main/condor_config "$CONDOR_CONFIG"
{
    echo '#!/bin/sh'
    while read -r fragment; do
        cat "$fragment"
    done <"$(gconfig_get WRAPPER_LIST)"
    echo 'exec "$@"'
} >condor_job_wrapper.sh
chmod +x condor_job_wrapper.sh
mkdir execute
published=''
{
    echo "WORK_DIR = $PWD"
    echo "EXECUTE = $PWD/execute"
    echo "LOCAL_CONFIG_DIR = $PWD/condor_config.d"
    echo "USER_JOB_WRAPPER = $PWD/condor_job_wrapper.sh"
    [ -z "$(ls cred.d/idtokens)" ] || echo "SEC_TOKEN_DIRECTORY = $PWD/cred.d/idtokens"
    while read -r name type default condor_name _ publish _; do
        value=$(gconfig_get "$name")
        value=${value:-$default}
        [ "$value" != - ] || continue
        [ "$condor_name" != + ] || condor_name=$name
        [ "$type" != S ] || value="\"$value\""
        echo "$condor_name=$value"
        [ "$publish" != Y ] || published="$published $condor_name"
    done <"$(gconfig_get CONDOR_VARS_FILE)"
    echo "STARTD_ATTRS = \$(STARTD_ATTRS)$published"
    [ ! -f periodic ] || cat periodic
} >>"$CONDOR_CONFIG"

condor_pid=''
on_die() {
    kill -s QUIT "${condor_pid:-$(cat condor_master2.pid)}"
}
trap on_die TERM INT QUIT
trap : HUP
echo "=== Condor starting: $$ ==="
"$(gconfig_get CONDOR_DIR)/sbin/condor_master" -f -pidfile "$PWD/condor_master2.pid" &
condor_pid=$!
wait $condor_pid
code=$?
[ $code != 99 ] || code=0
exit $code
