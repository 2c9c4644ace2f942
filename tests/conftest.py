"""Tests of the levels `linux` and `pool` run inside the testbed's sandbox, as an ordinary user's processes.

Plain `pytest` therefore executes itself anew in there, when such tests are asked for; started by root it becomes an
ordinary account first. With `-n` each worker has a sandbox of its own. Where there can be no sandbox these tests are
skipped, and say why.

Those of `root` are for the machine's root, outside of any sandbox: for others, and beside tests that need a sandbox,
they are skipped.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import neighbours
import pytest
from hypothesis import settings

from htcondor_vpn.errors import AccountUnusable, NamespacesUnavailable
from htcondor_vpn.testbed import sandbox
from htcondor_vpn.testbed.links import Link
from htcondor_vpn.testbed.services import WorldServices
from htcondor_vpn.testbed.site import Site

TESTS = Path(__file__).parent
LEVELS = {"linux": TESTS / "linux", "pool": TESTS / "pool"}
FOR_ROOT = TESTS / "root"

# The checkout may belong to another account than the one that runs the tests, and the machine may be busy.
settings.register_profile("anywhere", database=None, deadline=None)
settings.load_profile("anywhere")

# Who starts the tests in the background may have these ignored, as a shell or nohup does, and so would every job.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_obstacle = pytest.StashKey["str | None"]()
_scheduler = pytest.StashKey[neighbours.Together]()


def _asks_for_levels(config: pytest.Config) -> bool:
    if config.option.for_root == "only":
        return False
    paths = [(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args]
    return any(
        path.is_relative_to(folder) or folder.is_relative_to(path) for path in paths for folder in LEVELS.values()
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--alone", choices=["only", "never"], help="only the tests marked alone, or only the others")
    parser.addoption("--for-root", choices=["only", "never"], help="only the tests in tests/root, or only the others")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.stash[_obstacle] = config.workerinput.get("obstacle")
        if sandbox.inside():
            config.option.basetemp = None  # the controller's is not in here
    elif not (sandbox.inside() or config.option.help or config.option.version) and _asks_for_levels(config):
        _enter_sandbox(config)


def _enter_sandbox(config: pytest.Config) -> None:
    """Runs pytest in a sandbox and exits as it does; has workers do so if there are any, once one has been tried."""
    workers = bool(config.option.numprocesses or config.option.tx)
    argv = ["true"] if workers else [sys.executable, "-m", "pytest", *config.invocation_params.args]
    obstacle = None
    try:
        code = sandbox.exec_inside(argv)
        if not workers:
            raise SystemExit(code)
    except (AccountUnusable, NamespacesUnavailable) as error:
        obstacle = str(error)
    config.stash[_obstacle] = obstacle
    if workers:
        config.pluginmanager.register(neighbours.InSandboxes(obstacle))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> neighbours.Together | None:
    if config.option.dist != "load":
        return None
    return config.stash.setdefault(_scheduler, neighbours.Together(config, log))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    scheduler = config.stash.get(_scheduler, None)
    if exitstatus == pytest.ExitCode.INTERRUPTED and scheduler is not None:
        for worker, test in scheduler.under_way().items():
            terminalreporter.write_line(f"{worker} was at {test}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for level, folder in LEVELS.items():
            if item.path.is_relative_to(folder):
                item.add_marker(level)
                if not sandbox.inside():
                    reason = config.stash.get(_obstacle, None) or "not in the sandbox"
                    item.add_marker(pytest.mark.skip(reason=f"no sandbox: {reason}"))
    _choose(config, items, config.option.alone, lambda item: item.get_closest_marker("alone") is not None)
    _choose(config, items, config.option.for_root, lambda item: item.path.is_relative_to(FOR_ROOT))
    if hasattr(config, "workerinput"):
        items.sort(key=_order)


def _choose(
    config: pytest.Config, items: list[pytest.Item], which: str | None, is_one: Callable[[pytest.Item], bool]
) -> None:
    """Keeps only those that are one, or never those; all if `which` is None."""
    if which is None:
        return
    ones, others = [item for item in items if is_one(item)], [item for item in items if not is_one(item)]
    items[:], left_out = (ones, others) if which == "only" else (others, ones)
    config.hook.pytest_deselected(items=left_out)


def _order(item: pytest.Item) -> int:
    """What is long begins first, so that no worker is left with it at the end: pools, sites, and what needs neither."""
    return 0 if item.get_closest_marker("pool") else 1 if item.get_closest_marker("linux") else 2


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
