"""Tells the startd how the tunnel is: a STARTD_CRON job that runs on, and prints the slot's `Vpn*` attributes.

Its modules are compiled into one program, `libexec/advertise` of the run folder (`condor.programs`), which runs as
`python -IS` and finds the run folder from its own path: so it needs the standard library alone. Nothing of state.json
is believed: a value that is not what it should be makes the state "unknown", and every line printed is `Name =
literal`.

A change of state is printed at once with `- update:true`, which makes the startd send the slots' ads at once too
(whatever STARTD_CRON_AUTOPUBLISH says). Numbers change all the time: they go to the startd every few seconds, and
from there with its next ordinary update, so that a large pool's collector does not pay for them.

HTCondor 23 sends only the startd's own ad on `update:true`, not the slots' (seen with 23.9.6; 25.14.1 sends both).
With `--reconfigure` this program therefore sends the startd a SIGHUP each time: then all ads go out.
"""
