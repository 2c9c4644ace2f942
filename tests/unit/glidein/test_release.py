import tarfile

import pytest

from htcondor_vpn.errors import ProgramMissing
from htcondor_vpn.glidein.release import find_release


def release(folder, *more):
    for name in ("sbin/condor_master", "libexec/condor_x", *more):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("#!/bin/sh\n")
    return folder


def test_a_folder(tmp_path):
    found = find_release(release(tmp_path / "condor"), tmp_path / "unpacked")
    assert found.master == tmp_path / "condor/sbin/condor_master"
    assert (found.lib, found.libexec) == (tmp_path / "condor/lib", tmp_path / "condor/libexec")


def test_packages_have_folders_of_their_own(tmp_path):
    found = find_release(release(tmp_path / "prefix/usr", "lib/condor/x", "libexec/condor/x").parent, tmp_path / "u")
    assert (found.lib, found.libexec) == (found.folder / "lib/condor", found.folder / "libexec/condor")


def test_a_tarball(tmp_path):
    with tarfile.open(tmp_path / "condor.tar.gz", "w:gz") as archive:
        archive.add(release(tmp_path / "made"), "condor-23.9-stripped")
    found = find_release(tmp_path / "condor.tar.gz", tmp_path / "unpacked")
    assert found.folder == tmp_path / "unpacked/condor-23.9-stripped"
    assert found.master.exists()


def test_what_is_neither(tmp_path):
    (tmp_path / "text").write_text("no tarball")
    for source in (tmp_path / "none", tmp_path, tmp_path / "text"):
        with pytest.raises(ProgramMissing):
            find_release(source, tmp_path / "unpacked")
