#!/bin/bash
# Runs a periodic script for the startd: CONFIG ID NAME SCRIPT PREFIX.
config=$PWD/$1 folder=$(mktemp -d "$PWD/periodic_XXXXXX")
cd "$folder" || exit 1
GLIDEIN_PERIODIC_SCRIPT=true "$4" "$config" "$2"
echo "LAST_END = $(date +%s)"
echo -
cd .. && rm -rf "$folder"
