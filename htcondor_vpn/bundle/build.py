"""Puts a bundle together: a head, which is a shell script, and what it unpacks. Same contents give the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import platform
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from htcondor_vpn.bundle import unpack
from htcondor_vpn.bundle.contents import (
    HELPERS,
    PACKED,
    XZ,
    add_package,
    add_python,
    add_shipped,
    add_xz,
    check_python,
    versions,
)
from htcondor_vpn.bundle.programs import Relocated
from htcondor_vpn.errors import UsageError, VpnError
from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program

#: What a signature is for (ssh-keygen(1), -n), so that it cannot pass for one of something else.
SIGNATURE_NAMESPACE = "htcondor-vpn-bundle"

_HERE = Path(__file__).parent
_SIGN_SECONDS = 120
_ELF = b"\x7fELF"
#: A dictionary of 32 MB, which is what unpacking takes of memory.
_LZMA = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 25}


class Made(NamedTuple):
    """A bundle that was written: its size, the digest of what is behind its head, and what it contains."""

    size_bytes: int
    digest: str
    contents: str


def build(output: Path, helpers: Sequence[str], with_python: bool) -> Made:
    """Writes a bundle to `output` (0755), replacing it whole.

    Raises `UsageError`, `ProgramMissing`, or `VpnError` where a program of this machine cannot be taken along.
    """
    if "openconnect" in helpers and not with_python:
        raise UsageError("libopenconnect runs in the bundle's own Python", "have that made with --with-python, too")
    with tempfile.TemporaryDirectory(prefix="htcondor-vpn-bundle-") as name:
        folder = Path(name)
        try:
            found = _fill(folder, helpers, with_python)
        except ProgramFailed as error:
            raise VpnError(f"a program cannot be taken along: {error}", "have the bundle made without it") from error
        contents = ", ".join(f"{part} {version}" for part, version in found.items())
        machine = platform.machine() if helpers or with_python else "any"
        payload = gzip.compress(_tar(folder, _files(folder)), 9, mtime=0)
        digest = hashlib.sha256(payload).hexdigest()
        head = _head(versions()["htcondor-vpn"], digest, contents, machine, with_python)
    _write(output, head + payload)
    return Made(len(head) + len(payload), digest, contents)


def sign(bundle: Path, key: Path) -> Path:
    """Signs a bundle with a private key of ssh's; returns the signature's file. Raises `UsageError`."""
    signature = bundle.with_name(f"{bundle.name}.sig")
    signature.unlink(missing_ok=True)
    argv = [find_program("ssh-keygen", "openssh-client"), "-q", "-Y", "sign"]
    try:
        run_program([*argv, "-n", SIGNATURE_NAMESPACE, "-f", str(key), str(bundle)], timeout_seconds=_SIGN_SECONDS)
    except ProgramFailed as error:
        said = (error.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UsageError(f"{bundle} cannot be signed: {said}", "ssh-keygen -t ed25519 makes a key") from error
    return signature


def _fill(folder: Path, helpers: Sequence[str], with_python: bool) -> dict[str, str]:
    """Gathers what goes in, and returns the names and versions of it."""
    found = versions()
    relocated = Relocated(folder) if helpers or with_python else None
    if relocated is not None and with_python:  # otherwise a node may not understand xz
        add_xz(relocated)
    needed = _files(folder)
    if relocated is not None:
        if with_python:
            found["Python"] = add_python(relocated)
        for helper in helpers:
            found[helper] = HELPERS[helper](relocated)
    add_package(folder)
    add_shipped(folder)
    shutil.copyfile(unpack.__file__, folder / "unpack.py")
    if with_python:
        check_python(folder)
        _pack(folder, set(_files(folder)) - set(needed))
    return found


def _pack(folder: Path, files: Iterable[Path]) -> None:
    """Packs files smaller than gzip does. Machine code comes first, in a stream of its own with a filter for that."""
    code = [path for path in sorted(files) if path.read_bytes().startswith(_ELF)]
    others = [path for path in sorted(files) if path not in code]
    archive = _tar(folder, [*code, *others])
    border = sum(tarfile.BLOCKSIZE * (1 + -(-path.stat().st_size // tarfile.BLOCKSIZE)) for path in code)
    branches = [{"id": lzma.FILTER_X86}] if platform.machine() == "x86_64" else []
    with (folder / PACKED).open("wb") as file:
        for part, filters in ((archive[:border], branches), (archive[border:], [])):
            file.write(lzma.compress(part, filters=[*filters, _LZMA]))
    for path in (*code, *others):
        path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _tar(folder: Path, files: Iterable[Path]) -> bytes:
    """A tar archive of files in a folder that tells of names, contents and what is a program; of nothing else."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in files:
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size, entry.mode = path.stat().st_size, 0o755 if path.stat().st_mode & 0o100 else 0o644
            with path.open("rb") as file:
                archive.addfile(entry, file)
    return stream.getvalue()


def _head(version: str, digest: str, contents: str, machine: str, has_python: bool) -> bytes:
    """The script, with what it has to know of itself: how many bytes it has, too."""
    text = (_HERE / "head.sh").read_text(encoding="utf-8")
    told = {
        "version": version, "digest": digest, "contents": contents, "machine": machine,
        "has_python": "yes" if has_python else "", "name": f"{version}-{digest[:16]}",
        "xz": XZ, "packed": PACKED,
    }  # fmt: skip
    for name, value in told.items():
        text = text.replace(f"@{name}@", value)
    size_digits = 6  # filled up with blanks, so that the size does not depend on itself
    size = len(text.encode()) - len("@size@") + size_digits
    return text.replace("@size@", f"{size:<{size_digits}d}").encode()


def _write(output: Path, content: bytes) -> None:
    new = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        new.write_bytes(content)
        new.chmod(0o755)
        new.replace(output)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise UsageError(f"{output} cannot be written: {error.strerror}", "choose another file") from error
