"""USER_JOB_WRAPPER: gives a job its own network, runs it, and sees to it that its traffic is in the job ad at the end.

Started as `RUN_DIR/libexec/job-wrapper COMMAND ARGUMENT…`, which runs the compiled form of these modules as one program
(condor/programs.py), with the interpreter's `-IS`. It makes a user and a network namespace of its own, has the broker
wire them (protocol.py), and only then runs the job: without its network no job runs. The job's exit code, or death by a
signal, becomes the wrapper's own.

The job runs with the same uid and without any capability. The wrapper keeps those it has in the job's namespaces: they
are why the job cannot trace it or open its descriptors, although it has the same uid (ptrace(2)).

When the job cannot be run, one line says so on stderr and in the file that HTCondor names for that; the starter then
gives the job back to the queue with that line in the job's event log. The codes are those of sysexits.h: 71 no
namespaces, 75 no network, and 126 or 127 as the shells use them.

What runs once per job is fast: `posix`, `_socket` and `_signal` are what `os`, `socket` and `signal` wrap, and save
half of the time that the interpreter takes to start.
"""
