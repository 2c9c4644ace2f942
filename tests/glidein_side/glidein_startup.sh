#!/bin/bash
# GlideinWMS' script of that name, as far as scripts of a factory and HTCondor have to do with it.
start=$PWD proxy=''
while [ $# -gt 0 ]; do
    case $1 in
    -web) stage=$2 ;;
    -dir) work_dir=$2 ;;
    -proxy) proxy=$2 ;;
    -*) ;;
    *) echo "Unknown option $1" >&2 && exit 1 ;;
    esac
    shift 2
done
case $work_dir in
TMPDIR) work_dir=$TMPDIR ;;
. | '') work_dir=$PWD ;;
esac
work=$(mktemp -d "$work_dir/glide_XXXXXX")
cd "$work" || exit 1
mkdir -p main entry_TEST tmp cred.d/idtokens .gwms.d/exec/cleanup
cp "$start"/credential_*.idtoken cred.d/idtokens 2>/dev/null

finish() {
    cd "$work/.gwms.d/exec/cleanup" || exit 1
    for script in *; do
        [ ! -x "$script" ] || "./$script" "$glidein_config"
    done
    cd "$start" && rm -rf "$work"
    exit "$1"
}

fetch() { # NAME TARGET: what cannot be had ends the glidein
    if ! curl -sSf ${proxy:+--proxy "$proxy"} -o "$2" "$stage/$1"; then
        echo "<metric name=\"failure\" uri=\"local\">Network</metric> Failed to load file $1"
        finish 1
    fi
}

fetch add_config_line.source add_config_line.source
for list in main entry attributes; do
    fetch $list $list.list
done
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
    cat attributes.list
} >"$glidein_config"
touch condor_vars.lst wrappers
printf 'last_script \tcondor_startup.sh\n' >main/description.cfg
. ./add_config_line.source

for id in main entry; do
    folder=$work/main
    [ $id = main ] || folder=$work/entry_TEST
    while read -r name kind period prefix; do
        fetch "$name" "$folder/$name"
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
    done <$id.list
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
