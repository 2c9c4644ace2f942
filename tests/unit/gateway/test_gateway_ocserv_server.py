"""An ocserv gateway beside ocserv itself: what it looks at while that runs."""

import asyncio
import logging

from htcondor_vpn.gateway.ocserv_users import OcservUsers
from htcondor_vpn.packet_gateway import ocserv


async def test_users_that_cannot_be_read_for_a_moment_end_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ocserv, "_USERS_SECONDS", 0.01)
    users = OcservUsers(tmp_path / "gateway")
    file = users.folder / "passwd"
    file.write_text("site-a:*:hash\n")
    server = ocserv._OcservServer(tmp_path, tmp_path, users, None, True, ("127.0.0.1", 1))
    keeping = asyncio.ensure_future(server._keep_users())
    try:
        with caplog.at_level(logging.ERROR):
            file.rename(tmp_path / "aside")
            while "cannot be read" not in caplog.text:
                await asyncio.sleep(0)
                assert not keeping.done()
        (tmp_path / "aside").rename(file)
        done, _ = await asyncio.wait([keeping], timeout=0.1)
        assert not done
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
