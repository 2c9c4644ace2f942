"""The program itself."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import sys
import termios
import time

from htcondor_vpn.publish.advertiser.ads import AT_ONCE, Advertiser, SlotAdvertiser, advertisement
from htcondor_vpn.publish.advertiser.jobs_file import Jobs
from htcondor_vpn.publish.advertiser.state_file import Observer

POLL_SECONDS = 0.5
_LOOK_SECONDS, _LONGEST_SECONDS = 0.02, 60.0


def reconfigure_startd() -> None:
    """Sends our parent a SIGHUP if it is a startd of our own user."""
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/comm", encoding="ascii") as file:
            if file.read() == "condor_startd\n":
                os.kill(parent, signal.SIGHUP)
    except OSError as error:
        print(f"the startd was not told to send its ads at once: {error}", file=sys.stderr)


def wait_until_taken(output: select.poll) -> None:
    """Waits until the startd has read what was written: on a SIGHUP that it finds first it sends the former values.

    One that does not read for a minute is not waited for any longer, and neither is one that will not any more.
    """
    deadline = time.monotonic() + _LONGEST_SECONDS
    while struct.unpack("i", fcntl.ioctl(sys.stdout.fileno(), termios.FIONREAD, bytes(4)))[0]:
        if output.poll(_LOOK_SECONDS * 1000) or time.monotonic() > deadline:
            return


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data`, where a pipe takes it in parts."""
    while data:
        data = data[os.write(descriptor, data) :]


def main(arguments: list[str]) -> int:
    """Prints ads until nobody reads them any more, with `--once` one; our own path says where the run folder is."""
    run_dir = os.path.dirname(os.path.dirname(os.path.abspath(arguments[0])))
    observer, jobs = Observer(run_dir), Jobs(run_dir)
    if "--once" in arguments[1:]:
        write_all(sys.stdout.fileno(), advertisement(observer.fields(time.time())).encode("ascii"))
        return 0
    advertiser, slots = Advertiser(), SlotAdvertiser()
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # only POLLERR and POLLHUP: the startd has closed its end
    try:
        while True:
            text = advertiser.due(observer.fields(time.time()), time.monotonic())
            of_jobs = slots.due(jobs.by_slot(), time.monotonic())
            if text or of_jobs:
                write_all(sys.stdout.fileno(), (of_jobs + text).encode("ascii"))
            if text.endswith(AT_ONCE) and "--reconfigure" in arguments[1:]:
                wait_until_taken(output)
                reconfigure_startd()
            if output.poll(POLL_SECONDS * 1000):
                return 0
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
