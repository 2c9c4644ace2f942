"""Programs that are made of a package's modules."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from htcondor_vpn.condor.programs import compiled_parts, write_programs
from htcondor_vpn.jobnet import wrapper
from htcondor_vpn.linux.programs import ProgramFailed, run_program


def package(folder, **modules):
    """A package of that folder; modules find each other as `ours.package`."""
    folder.mkdir()
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_a_package_becomes_one_program(tmp_path):
    source = package(
        tmp_path / "greeting",
        __main__="from ours.greeting.words import hello\nfrom ours.greeting.names import name\nimport sys\n"
        "if __name__ == '__main__': print(hello(), name(), sys.argv[1])\n",
        words="from ours.greeting.names import name\ndef hello(): return f'hello, {name()}'\n",
        names="def name(): return 'world'\n",
    )
    write_programs(tmp_path / "libexec", {"greet": source}, 0o700)
    assert run_program([str(tmp_path / "libexec/greet"), "again"]) == "hello, world world again\n"


def test_an_error_is_where_it_was_written(tmp_path):
    source = package(
        tmp_path / "broken", __main__="from ours.broken.part import fail\n\nfail()\n", part="\ndef fail(): 1 / 0\n"
    )
    write_programs(tmp_path / "libexec", {"broken": source}, 0o700)
    with pytest.raises(ProgramFailed) as told:
        run_program([str(tmp_path / "libexec/broken")])
    assert f'{source}/__main__.py", line 3' in told.value.stderr
    assert f'{source}/part.py", line 2' in told.value.stderr


def test_another_name_for_what_a_module_has_is_a_mistake(tmp_path):
    source = package(tmp_path / "renamed", __main__="from ours.renamed.part import a as b\n", part="a = 1\n")
    with pytest.raises(ValueError, match=r"__main__.py:1: "):
        compiled_parts(source)


def test_no_name_is_in_two_modules_of_the_wrapper():
    names = Counter()
    for path in Path(*wrapper.__path__).glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            names.update(target.id for target in targets if target.id != "TYPE_CHECKING")
            names.update([node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else [])
    assert names["environ"] == names["main"] == 1
    assert [name for name, count in names.items() if count > 1] == []
