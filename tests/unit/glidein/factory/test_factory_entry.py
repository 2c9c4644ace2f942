import re
from pathlib import Path

import pytest

from htcondor_vpn.errors import ConfigError, ConfigUnreadable
from htcondor_vpn.glidein.factory.check import check
from htcondor_vpn.glidein.factory.document import read_document
from htcondor_vpn.glidein.factory.entry import render
from htcondor_vpn.glidein.factory.site import NAMES, Way, read_site

PAGE = Path(__file__).parents[4] / "docs/glidein-operator.md"

FACTORY = """<glidein factory_name="f">
   <attrs>
      <attr name="USE_CCB" value="False"/>
   </attrs>
   <entries>
      <entry name="PLAIN" gridtype="condor"/>
@entry@
   </entries>
   <files>
      <file absfname="/etc/other.sh" executable="True" const="True"/>
   </files>
</glidein>
"""


@pytest.fixture
def folder(tmp_path):
    for name in ("htvpn-launch", "htcondor-vpn.bundle", "htcondor-vpn.conf"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "pilot.token").touch(mode=0o600)
    return tmp_path


def site(folder, **values):
    names = {"ENTRY": "HPC", "GATEKEEPER": "login.example.org", "SITE": 'A & "B" <C>', "FOLDER": str(folder), **values}
    path = folder / "site"
    path.write_text("".join(f"{name} = {value}\n" for name, value in names.items() if value is not None))
    return read_site(path)


def factory(folder, **values):
    """A whole factory's XML with the entry for that site."""
    return FACTORY.replace("@entry@", render(site(folder, **values)))


def checked(folder, text, only=None):
    path = folder / "glideinWMS.xml"
    path.write_text(text)
    return check(read_document(path), only)


@pytest.mark.parametrize("values", [{}, {"GRIDTYPE": "condor"}, {"WAY": "module", "PROXY_URL": "http://proxy:3128"}])
def test_what_is_written_has_no_mistake(folder, values):
    found = checked(folder, factory(folder, **values))
    assert found.findings == []
    assert found.entries == {"HPC": Way(values.get("WAY", "wrap"))}


def test_what_is_written_means_the_site(folder):
    path = folder / "x"
    path.write_text(factory(folder))
    entry = list(read_document(path).all("entries", "entry"))[1]
    attrs = {attr.get("name"): attr.get("value") for attr in entry.all("attrs", "attr")}
    assert attrs["GLIDEIN_Site"] == 'A & "B" <C>'
    assert entry.get("gatekeeper") == "login.example.org"


def multiglidein(how, launcher):
    """The beginning of an attribute, with another one before it."""
    return f'name="GLIDEIN_MULTIGLIDEIN_{how}" value="{launcher}"/>\n<attr name="GLIDEIN_CPUS"'


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("/htvpn-launch", "/other", "cannot be executed"),
        ('name="executable"', 'name="other"', "nothing starts the glidein"),
        ("glidein_startup.sh,", "", "has no glidein_startup.sh"),
        ("$ENV(IDTOKENS_FILE:)", "", "pool's credential"),
        ("$ENV(X509_USER_PROXY:/dev/null)", "", "pool's credential"),
        ("/htcondor-vpn.conf", "/htcondor-vpn.cnf", "has no htcondor-vpn.conf"),
        ('name="transfer_input_files"', 'name="more"', "no transfer_input_files"),
        ('name="encrypt_input_files"', 'name="more"', "not encrypted on its way"),
        ('name="USE_CCB" const="True"', 'name="other"', "USE_CCB is not True"),
        ("batch slurm", "cream", "passes over the submit_attr"),
        ('value="wrap"', 'value="eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJwaWxvdCJ9.AAAA"', "holds a token"),
        ('name="GLIDEIN_CPUS"', 'name="GLIDEIN_USE_CVMFSEXEC"', "GLIDEIN_USE_CVMFSEXEC"),
        ('name="GLIDEIN_CPUS"', multiglidein("LAUNCHALL", "srun /a/htvpn-launch"), "LAUNCHALL both start a tunnel"),
        ('name="GLIDEIN_CPUS"', multiglidein("LAUNCHER", "/a/htvpn-launch"), "LAUNCHER both start a tunnel"),
    ],
)
def test_a_mistake_is_found_with_its_line(folder, before, after, says):
    text = factory(folder)
    assert before in text
    found = checked(folder, text.replace(before, after, 1)).findings
    assert any(says in finding.cause for finding in found), found
    assert all(finding.line > 1 and finding.remedy for finding in found)


def moved(text, name):
    """The text with the line of the file `name` behind those of the others."""
    line = next(line for line in text.splitlines(keepends=True) if f'relfname="{name}"' in line)
    before, last, after = text.replace(line, "").rpartition("htvpn-status")
    end = after.index("\n") + 1
    return before + last + after[:end] + line + after[end:]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace('relfname="htvpn-setup"', ""), None),
        (lambda text: text.replace("htvpn-setup", "my-setup"), "no htvpn-setup"),
        (lambda text: text.replace('period="60"', 'period="600"'), 'period="600"'),
        (lambda text: moved(text, "50-htcondor-vpn.conf"), "wrong order"),
        (lambda text: text.replace("</files>\n   <inf", '<file absfname="/a/late.sh"/></files><inf'), "late.sh comes"),
        (lambda text: text.replace("/etc/other.sh", "/x/secret.token"), "stage area"),
    ],
)
def test_the_files_come_last_and_in_their_order(folder, change, says):
    found = checked(folder, change(factory(folder, WAY="module", PROXY_URL="http://proxy:3128"))).findings
    if says is None:
        assert found == []
    else:
        assert any(says in finding.cause for finding in found), found


def test_the_page_has_every_name_of_a_site_file_with_its_default():
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \|(.*?)\| .* \|$", PAGE.read_text(), re.MULTILINE)
    told = {}
    for names, defaults in rows:
        names, defaults = re.findall("`(.+?)`", names), re.findall("`(.+?)`", defaults)
        told |= dict(zip(names, defaults or [""] * len(names)))
    assert {name: told.get(name) for name in NAMES} == {name: default or "" for name, default in NAMES.items()}


def test_a_token_that_others_can_read(folder):
    (folder / "pilot.token").chmod(0o644)
    (finding,) = checked(folder, factory(folder)).findings
    assert "read by others" in finding.cause


@pytest.mark.parametrize("how", ["LAUNCHALL", "LAUNCHER"])
def test_another_launcher_of_several_glideins_is_no_second_tunnel(folder, how):
    text = factory(folder).replace('name="GLIDEIN_CPUS"', multiglidein(how, "srun"))
    assert checked(folder, text).findings == []


def test_an_entry_that_is_asked_for(folder):
    assert "no tunnel" in checked(folder, factory(folder), "PLAIN").findings[0].cause
    assert "no entry" in checked(folder, factory(folder), "NONE").findings[0].cause
    assert checked(folder, factory(folder), "HPC").findings == []


@pytest.mark.parametrize("text", ["", "<glidein", "<a></b>", '<!DOCTYPE a [<!ENTITY e SYSTEM "/etc/passwd">]><a>&e;'])
def test_what_is_no_xml(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(ConfigUnreadable):
        read_document(tmp_path / "x")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"SITE": None}, "has no SITE"),
        ({"SIET": "x"}, r"site:5: there is no SIET"),
        ({"ENTRY": "a b"}, "site:1: ENTRY"),
        ({"CPUS": "many"}, "CPUS = many"),
        ({"FOLDER": "here"}, "whole path"),
        ({"WAY": "magic"}, "WAY = magic"),
        ({"WAY": "module"}, "PROXY_URL"),
    ],
)
def test_a_site_that_is_not_described(folder, values, says):
    with pytest.raises(ConfigError, match=says):
        site(folder, **values)
