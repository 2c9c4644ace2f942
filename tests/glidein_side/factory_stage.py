"""A stage area with GlideinWMS' own scripts, as a factory lays it out: lists, descriptions, and signatures of them all.

The scripts come from a checkout of GlideinWMS; of ours there are the files of the entry. Names are not versioned, and
HTCondor's tarball is one of links to what the machine has.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

from glidein_side import CONDOR_CONFIG, SCRIPTS

ENTRY = "TEST"
_PLATFORM = "CONDOR_PLATFORM_default-default-default"
_MAIN = {
    "file_list": (
        "error_gen.sh", "error_augment.sh", "setup_script.sh exec", "constants.cfg out:CONSTS_FILE",
        "condor_vars.lst out:CONDOR_VARS_FILE", "untar.cfg out:UNTAR_CFG_FILE", "grid-mapfile out:GRIDMAP",
        "parse_starterlog.awk", "advertise_failure.helper", "condor_config", "condor_config.multi_schedd.include",
        "condor_config.dedicated_starter.include", "condor_config.check.include", "condor_config.monitor.include",
        "glidein_lib.sh", "singularity_lib.sh", "cat_consts.sh exec", "condor_platform_select.sh exec",
        "singularity_wrapper.sh exec", f"condor.tgz untar if:{_PLATFORM} out:CONDOR_DIR", "collector_setup.sh exec",
        "create_temp_mapfile.sh exec", "gwms-python exec", "condor_startup.sh exec", "setup_x509.sh exec 60 NOPREFIX",
        "check_wn_drainstate.sh exec 60 NOPREFIX", "mjf_setparams.sh exec 1800 MJF_", "htchirp.tar.gz untar",
        "cvmfs_helper_funcs.sh exec", "cvmfsexec_platform_select.sh exec",
    ),
    "precvmfs_file_list": ("cvmfs_setup.sh exec",),
    "at_file_list": ("singularity_setup.sh exec", "condor_chirp exec", "gconfig.py exec"),
    "after_file_list": (
        "check_proxy.sh exec", "create_mapfile.sh exec", "validate_node.sh exec", "setup_network.sh exec",
        "java_setup.sh exec", "glidein_memory_setup.sh exec", "glidein_cpus_setup.sh exec",
        "glidein_sitewms_setup.sh exec", "script_wrapper.sh exec", "smart_partitionable.sh exec",
        "cvmfs_umount.sh exec",
    ),
}  # fmt: skip
_MAIN_DESCRIPTION = {
    "last_script": "condor_startup.sh",
    "condor_config": "condor_config",
    "condor_config_multi_include": "condor_config.multi_schedd.include",
    "condor_config_main_include": "condor_config.dedicated_starter.include",
    "condor_config_monitor_include": "condor_config.monitor.include",
    "condor_config_check_include": "condor_config.check.include",
}
_ENTRY = (
    "constants.cfg out:CONSTS_FILE", "condor_vars.lst out:CONDOR_VARS_FILE", "untar.cfg out:UNTAR_CFG_FILE",
    "nodes.blacklist out:BLACKLIST_FILE", "cat_consts.sh exec", "check_blacklist.sh exec",
)  # fmt: skip
_PAYLOAD = (
    "add_config_line.source", "get_id_selectors.source", "logging_utils.source", "b64uuencode.source",
    "glidein_paths.source",
)  # fmt: skip


class FactoryStage:
    """The stage area in `folder`, from the checkout's scripts, for a pool at `collector` with HTCondor's `release`.

    `files` are listed before our own in the entry. `startup` is what a factory would submit, `arguments(url)` what it
    would be told.
    """

    def __init__(self, checkout: Path, folder: Path, collector: str, release: Path, files: Mapping[str, Path]) -> None:
        self._source, self.folder = checkout / "creation/web_base", folder
        folder.mkdir()
        main, entry = folder, folder / f"entry_{ENTRY}"
        entry.mkdir()
        self.startup = folder / "glidein_startup.sh"
        self.startup.write_bytes((self._source / "glidein_startup.sh").read_bytes() + b"\n#EOF\n" + self._payload())
        self.startup.chmod(0o755)
        _write_table(main / "constants.cfg", {
            "GLIDEIN_Collector": collector, "USE_CCB": "True", "TRUST_DOMAIN": "testbed",
            "GLIDEIN_Report_Failed": "NEVER", "CONDOR_OS": "default", "CONDOR_ARCH": "default",
            "CONDOR_VERSION": "default", _PLATFORM: "0",
        })  # fmt: skip
        _write_table(main / "untar.cfg", {"condor.tgz": "condor", "htchirp.tar.gz": "lib/python/htchirp"})
        (main / "grid-mapfile").touch()
        _tar_of_links(main / "condor.tgz", {
            "bin": release / "bin", "sbin": release / "sbin", "lib": release / "lib/condor",
            "libexec": release / "libexec/condor",
        })  # fmt: skip
        self.signature = self._list(main, _MAIN, _MAIN_DESCRIPTION)
        _write_table(entry / "constants.cfg", {"GLIDEIN_VPN": "test"})
        _write_table(entry / "untar.cfg", {})
        shutil.copyfile(self._source / "condor_vars.lst.entry", entry / "condor_vars.lst")
        ours = {
            **files, "50-htcondor-vpn.conf": CONDOR_CONFIG, "htvpn-setup exec": SCRIPTS / "htvpn-setup",
            "htvpn-status exec 5 GLIDEIN_VPN_": SCRIPTS / "htvpn-status",
        }  # fmt: skip
        for line, path in ours.items():
            shutil.copyfile(path, entry / line.split()[0])
        self.entry_signature = self._list(entry, {"file_list": (*_ENTRY, *ours)}, {})

    def arguments(self, url: str, *more: str) -> list[str]:
        """What a factory tells glidein_startup.sh, with the stage area at `url`."""
        return [
            *("-v", "fast", "-name", "instance", "-entry", ENTRY, "-clientname", "FE.main", "-schedd", "schedd"),
            *("-factory", "factory", "-web", url, "-sign", self.signature, "-signentry", self.entry_signature),
            *("-signtype", "sha1", "-descript", "description.cfg", "-descriptentry", "description.cfg"),
            *("-dir", ".", "-cluster", "1", "-subcluster", "0", "-submitcredid", "none"),
            *("-slotslayout", "partitionable", *more),
        ]

    def _payload(self) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for name in _PAYLOAD:
                archive.add(self._source / name, name)
        return stream.getvalue()

    def _list(self, folder: Path, lists: Mapping[str, tuple[str, ...]], description: Mapping[str, str]) -> str:
        """Puts what is listed into the folder, writes lists, description and signatures; returns their digest."""
        for name, lines in lists.items():
            for line in lines:
                target = folder / line.split()[0]
                if not target.exists():
                    shutil.copyfile(self._source / target.name, target)
            (folder / f"{name}.lst").write_text("".join(map(_file_line, lines)))
        listed = {name: f"{name}.lst" for name in lists}
        _write_table(folder / "description.cfg", {"signature": "signature.sha1", **listed, **description})
        signed = [path for path in sorted(folder.iterdir()) if path.is_file()]
        text = "".join(f"{hashlib.sha1(path.read_bytes()).hexdigest()}  {path.name}\n" for path in signed)
        (folder / "signature.sha1").write_text(text)
        return hashlib.sha1(text.encode()).hexdigest()


def _file_line(line: str) -> str:
    """A list's line from `NAME [KIND [PERIOD PREFIX]] [if:ATTRIBUTE] [out:ATTRIBUTE]`."""
    words = [word for word in line.split() if ":" not in word]
    told = dict(word.split(":", 1) for word in line.split() if ":" in word)
    name, kind, period, prefix = (*words, *("regular", "0", "GLIDEIN_PS_")[len(words) - 1 :])
    return "\t".join((name, name, kind, period, prefix, told.get("if", "TRUE"), told.get("out", "FALSE"))) + "\n"


def _write_table(path: Path, values: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name} \t{value}\n" for name, value in values.items()))


def _tar_of_links(path: Path, links: Mapping[str, Path]) -> None:
    with gzip.open(path, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, str(target)
            archive.addfile(entry)
