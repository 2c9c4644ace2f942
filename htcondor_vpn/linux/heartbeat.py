"""Whether a child still does something: one that is stopped (SIGSTOP) or stuck is not dead, and nothing ends with it.

It says every second that it lives, and its parent looks as often whether it has. Looks are counted, not seconds: when
all processes were stopped together, as batch systems do it, and go on, nobody has been silent for long.
"""

from __future__ import annotations

import logging
import os
import signal

BEAT_SECONDS = 1.0

log = logging.getLogger(__name__)


class Heartbeat:
    """Of the child that is called `name`.

    After `continue_looks` in vain it is made to go on, should it be stopped, which loses nothing; after `most_looks` it
    is killed.
    """

    def __init__(self, name: str, continue_looks: int, most_looks: int) -> None:
        self._name, self._continue_looks, self._most_looks = name, continue_looks, most_looks
        #: How often it was looked at since it last said anything.
        self.silent_looks = 0

    def heard(self) -> None:
        """It has said something, or has just been started."""
        self.silent_looks = 0

    def look(self, pid: int) -> None:
        """To be called every `BEAT_SECONDS`, with its process id."""
        self.silent_looks += 1
        if self.silent_looks == self._continue_looks:
            log.error("the %s is stopped or stuck: if it is stopped it goes on now", self._name)
            os.kill(pid, signal.SIGCONT)
        if self.silent_looks == self._most_looks:
            log.error("the %s is stuck, and killed", self._name)
            os.kill(pid, signal.SIGKILL)
