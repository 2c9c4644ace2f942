"""Tests of the levels `linux` and `pool` run inside the testbed's sandbox, as an ordinary user's processes.

Plain `pytest` therefore executes itself anew in there, when such tests are asked for; started by root it becomes an
ordinary account first. Where there can be no sandbox these tests are skipped, and say why.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from htcondor_vpn.errors import AccountUnusable, NamespacesUnavailable
from htcondor_vpn.testbed import sandbox
from htcondor_vpn.testbed.links import Link
from htcondor_vpn.testbed.services import WorldServices
from htcondor_vpn.testbed.site import Site

TESTS = Path(__file__).parent
LEVELS = {"linux": TESTS / "linux", "pool": TESTS / "pool"}

# The checkout may belong to another account than the one that runs the tests, and the machine may be busy.
settings.register_profile("anywhere", database=None, deadline=None)
settings.load_profile("anywhere")

# Who starts the tests in the background may have these ignored, as a shell does, and so would every job in them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

_obstacle = pytest.StashKey[str]()


def _asks_for_levels(config: pytest.Config) -> bool:
    paths = [(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args]
    return any(
        path.is_relative_to(folder) or folder.is_relative_to(path) for path in paths for folder in LEVELS.values()
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    if sandbox.inside() or config.option.help or config.option.version or not _asks_for_levels(config):
        return
    argv = [sys.executable, "-m", "pytest", *config.invocation_params.args]
    try:
        code = sandbox.exec_inside(argv)
    except (AccountUnusable, NamespacesUnavailable) as error:
        config.stash[_obstacle] = str(error)
        return
    raise SystemExit(code)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for level, folder in LEVELS.items():
            if item.path.is_relative_to(folder):
                item.add_marker(level)
                if not sandbox.inside():
                    reason = config.stash.get(_obstacle, "not in the sandbox")
                    item.add_marker(pytest.mark.skip(reason=f"no sandbox: {reason}"))


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """The simulated site, one for all tests."""
    with Site() as site:
        yield site


@pytest.fixture(scope="session")
def services(site: Site) -> Iterator[WorldServices]:
    """The world's services on that site."""
    with WorldServices(site) as services:
        yield services


@pytest.fixture
def link(site: Site) -> Iterator[Link]:
    """The node's cable, which is whole, undelayed and unlimited again after the test."""
    yield site.link
    site.link.up()
    site.link.shape()
