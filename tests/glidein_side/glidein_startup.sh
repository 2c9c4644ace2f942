#!/bin/bash
# GlideinWMS' script of that name, as far as scripts of a factory and HTCondor have to do with it.
stage=$1
start=$PWD
work=$(mktemp -d "$start/glide_XXXXXX")
cd "$work" || exit 1
mkdir main entry_TEST tmp
cp "$stage/add_config_line.source" .
glidein_config=$work/glidein_config
{
    echo "GLIDEIN_STARTUP_PID $$"
    echo "GLIDEIN_START_DIR_ORIG $start"
    echo "GLIDEIN_WORKSPACE_ORIG $work"
    echo "GLIDEIN_WORK_DIR $work/main"
    echo "GLIDEIN_ENTRY_WORK_DIR $work/entry_TEST"
    echo "DESCRIPTION_FILE description.cfg"
    echo "ADD_CONFIG_LINE_SOURCE $work/add_config_line.source"
    echo "ERROR_GEN_PATH $work/main/error_gen.sh"
    echo "CONDOR_VARS_FILE $work/condor_vars.lst"
    echo "WRAPPER_LIST $work/wrappers"
    echo "CONDOR_DIR ${CONDOR_DIR-}"
    cat "$stage/attributes"
} >"$glidein_config"
touch condor_vars.lst wrappers
printf 'last_script \tcondor_startup.sh\n' >main/description.cfg
. ./add_config_line.source

finish() {
    cd "$start" && rm -rf "$work"
    exit "$1"
}

for id in main entry; do
    folder=$work/main
    [ $id = main ] || folder=$work/entry_TEST
    while read -r name kind period prefix; do
        cp "$stage/$name" "$folder/$name"
        case $name in
        *.sh) chmod u+x "$folder/$name" ;; # these have been run before
        esac
        case $kind in
        wrapper) echo "$folder/$name" >>wrappers ;;
        exec)
            chmod u+x "$folder/$name"
            rm -f otrb_output.xml
            if ! "$folder/$name" glidein_config $id </dev/null; then
                cat otrb_output.xml || echo 'did not produce an XML file'
                echo "=== Validation error in $name ==="
                cat glidein_config
                finish 1
            fi
            cat otrb_output.xml
            if [ "$period" -gt 0 ]; then
                job=GLIDEIN_PS_$((++jobs))
                cat >>periodic <<END
STARTD_CRON_JOBLIST = \$(STARTD_CRON_JOBLIST) $job
STARTD_CRON_${job}_EXECUTABLE = $work/main/script_wrapper.sh
STARTD_CRON_${job}_ARGS = glidein_config $id $job $folder/$name $prefix
STARTD_CRON_${job}_CWD = $work
STARTD_CRON_${job}_PERIOD = ${period}s
STARTD_CRON_${job}_PREFIX = $prefix
STARTD_CRON_${job}_SLOTS = 1
END
            fi
            ;;
        esac
    done <"$stage/$id"
done

# A signal before this kills the shell at once, and what it has started stays.
ended=''
on_die() {
    ended=yes
    kill -s "$1" %1
}
for signal in TERM INT QUIT; do
    # shellcheck disable=SC2064
    trap "on_die $signal" $signal
done
trap : HUP
rm -f otrb_output.xml
main/condor_startup.sh glidein_config &
wait $!
code=$?
[ -z "$ended" ] || code=0
echo "=== Last script ended with code $code ==="
[ $code = 0 ] || cat otrb_output.xml || echo 'did not produce an XML file'
finish $code
