"""Which tests run beside each other with `-n`: a plugin for pytest-xdist, whose workers have a sandbox each."""

from __future__ import annotations

import functools
import re
import shlex
import sys
from pathlib import Path

import execnet
import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

TESTS = Path(__file__).parent
SANDBOXED_PYTHON = TESTS / "sandboxed_python.py"


class InSandboxes:
    """Registered with the controller when its workers are to have sandboxes, or cannot have them for `obstacle`."""

    def __init__(self, obstacle: str | None) -> None:
        self.obstacle = obstacle

    def pytest_xdist_setupnodes(self, specs: list[execnet.XSpec]) -> None:
        for spec in specs:
            if self.obstacle is None:
                spec.python = shlex.join([sys.executable, str(SANDBOXED_PYTHON)])

    def pytest_configure_node(self, node: WorkerController) -> None:
        node.workerinput["obstacle"] = self.obstacle


class Together(LoadScopeScheduling):
    """Hands tests out one by one, but those together, in their order, that share what is dear to make."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)

    def under_way(self) -> dict[str, str]:
        """Returns, by each worker that is not done, the test it is at."""
        unfinished = {
            node.gateway.id: [test for scope in assigned.values() for test, done in scope.items() if not done]
            for node, assigned in self.assigned_work.items()
        }
        return {worker: tests[0] for worker, tests in unfinished.items() if tests}


def unit(nodeid: str) -> str:
    """Returns the name of those that this test goes with: they share a fixture of their module's, or are short ones.

    The parameter of such a fixture is a test's first, and for another one the fixture is made anew.
    """
    path, _, test = nodeid.partition("::")
    shared, parametrized = _fixtures(path)
    if not shared:
        return nodeid
    return f"{path} {test.rpartition('[')[2].rstrip(']').partition('-')[0]}" if parametrized and "[" in test else path


@functools.lru_cache(None)
def _fixtures(path: str) -> tuple[bool, bool]:
    """Tells whether this file's tests share anything, and whether that has parameters."""
    file = TESTS.parent / path
    text = file.read_text()
    pools = path.startswith("tests/pool/")
    short = path.startswith("tests/unit/")
    shared = 'scope="module"' in text or any(_takes(text, name) for name in _shared_names(file.parent))
    return pools or short or shared, pools or 'scope="module", params=' in text


@functools.lru_cache(None)
def _shared_names(folder: Path) -> list[str]:
    """The fixtures of a folder's own that each of its files makes once."""
    text = (folder / "conftest.py").read_text() if (folder / "conftest.py").exists() else ""
    return re.findall(r'^@pytest.fixture\(scope="module".*\)\ndef (\w+)\(', text, re.MULTILINE)


def _takes(text: str, fixture: str) -> bool:
    """Tells whether a test or a fixture of a file takes a fixture that is not the file's own."""
    taken = rf"^(?:def test_\w+|@pytest.fixture.*\ndef \w+)\([^)]*\b{fixture}\b"
    return bool(re.search(taken, text, re.MULTILINE)) and not re.search(rf"^def {fixture}\(", text, re.MULTILINE)
