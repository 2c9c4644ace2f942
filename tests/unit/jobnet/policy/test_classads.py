from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("classad2", reason="a policy's expressions need HTCondor's Python bindings")

from htcondor_vpn.jobnet.policy.classads import unknown_function, without_strings  # noqa: E402

FUNCTIONS = """
regexp regexps ifThenElse stringListMember stringListIMember stringListSize splitUserName substr splitSlotName
isUndefined isError member anyCompare allCompare strcat toUpper tolower time versioncmp version_in_range int
real string floor round random unresolved unparse size formatTime absTime interval userHome envV1ToV2
mergeEnvironment evalInEachContext countMatches quantize join split regexpMember sum max getYear bool pow
stringList_regexpMember
"""


@pytest.mark.parametrize("name", FUNCTIONS.split())
def test_functions_of_the_manual_are_known(name: str) -> None:
    assert unknown_function(f"{name} (x)") is None


def test_unknown_function() -> None:
    assert unknown_function('strcat("foo(", bar(1))') == "bar"
    assert unknown_function('strcat("foo(\\"", x)') is None


def test_strings_are_emptied() -> None:
    assert without_strings(r'a == "b\"(" && c') == 'a == "" && c'


@pytest.mark.parametrize("config", [None, "/nonexistent", "include command : /bin/false |"])
def test_htcondors_configuration_changes_nothing(config: str | None) -> None:
    environ = {name: text for name, text in os.environ.items() if name != "CONDOR_CONFIG"}
    if config is not None:
        environ["CONDOR_CONFIG"] = config
    script = (
        "import os; from htcondor_vpn.jobnet.policy.classads import unknown_function as unknown\n"
        "print(unknown('userHome(x) + stringListMember(x)'), os.environ.get('CONDOR_CONFIG'))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"None {config}\n", "")
