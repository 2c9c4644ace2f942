#!/bin/bash
# -ok ID [NAME VALUE]…, or -error ID TYPE DETAIL [NAME VALUE]…: the result of a script, in its folder.
status=$1 id=$2
shift 2
metric() {
    echo "    <metric name=\"$1\" ts=\"$(date +%Y-%m-%dT%H:%M:%S%:z)\" uri=\"local\">$2</metric>"
}
{
    printf '<?xml version="1.0"?>\n<OSGTestResult id="%s" version="4.3.1">\n  <result>\n' "$id"
    if [ "$status" = -ok ]; then
        printf '    <status>OK</status>\n  </result>\n'
    else
        echo '    <status>ERROR</status>'
        metric failure "$1"
        printf '  </result>\n  <detail>\n    %s\n  </detail>\n' "$2"
    fi
    echo '</OSGTestResult>'
} >otrb_output.xml
