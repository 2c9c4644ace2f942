"""Mounts: what mount(2) is asked for, and its errors."""

import errno
import os
from pathlib import Path

import pytest

from htcondor_vpn.linux import mounts


@pytest.mark.parametrize("call", [mounts.hide, mounts.unmount, lambda path: mounts.bind(path, path)])
def test_a_path_is_bytes_and_need_not_be_text(tmp_path, call):
    missing = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    with pytest.raises(OSError, match="mount") as raised:
        call(missing)
    assert raised.value.errno in (errno.EPERM, errno.ENOENT)
    assert raised.value.filename == str(missing)
