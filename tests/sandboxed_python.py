"""Python in a sandbox of its own, for a worker of pytest-xdist: takes Python's arguments.

Each worker has a site of its own that way, and what it started ends with it. It ends with who started it.
"""

import signal
import sys

from htcondor_vpn.linux.namespaces import die_with_parent
from htcondor_vpn.testbed import sandbox

if __name__ == "__main__":
    die_with_parent(signal.SIGKILL)
    sys.exit(sandbox.exec_inside([sys.executable, *sys.argv[1:]]))
