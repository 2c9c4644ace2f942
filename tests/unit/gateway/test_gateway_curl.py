"""curl as the pilot: what we speak is a standard."""

import asyncio
import os
import shutil

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl on this machine")

PAYLOAD = os.urandom(500_000)


async def curl(gateway, *arguments, proxy="localhost", config=""):
    """Runs curl with the token in a configuration on stdin; returns its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-m", "15", "-K", "-", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    lines = [
        f'proxy = "https://{proxy}:{gateway.port}"',
        f'proxy-cacert = "{gateway.credentials.certificate}"',
        f'proxy-header = "Proxy-Authorization: Bearer {gateway.token}"',
        config,
    ]
    out, errors = await process.communicate("\n".join(lines).encode())
    return process.returncode, out, errors.decode()


@pytest.fixture
def web(far_side):
    async def serve(sock):
        loop, request = asyncio.get_running_loop(), b""
        while b"\r\n\r\n" not in request:
            request += await loop.sock_recv(sock, 65536)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(PAYLOAD)}\r\nConnection: close\r\n\r\n"
        await loop.sock_sendall(sock, head.encode() + PAYLOAD)

    return lambda: far_side(serve)


@pytest.mark.parametrize("tunnel", [[], ["--proxytunnel"]], ids=["passed on", "CONNECT"])
@pytest.mark.parametrize("proxy", ["localhost", "127.0.0.1"])
async def test_a_download(running, web, tunnel, proxy):
    async with running() as gateway, web() as port:
        code, out, errors = await curl(gateway, *tunnel, f"http://127.0.0.1:{port}/", proxy=proxy)
        assert (code, errors) == (0, "")
        assert out == PAYLOAD


async def test_without_checking_the_certificate(running, web):
    async with running() as gateway, web() as port:
        code, out, _ = await curl(
            gateway, "-p", "--proxy-insecure", f"http://localhost:{port}/", config='proxy-cacert = ""'
        )
        assert (code, out == PAYLOAD) == (0, True)


async def test_the_wrong_certificate(running, web, tmp_path):
    async with running() as gateway, running() as other, web() as port:
        code, _, errors = await curl(
            gateway, "-p", f"http://127.0.0.1:{port}/", config=f'proxy-cacert = "{other.credentials.certificate}"'
        )
        assert code == 60, errors


async def test_a_refused_destination(running):
    async with running() as gateway:
        code, _, errors = await curl(gateway, "-p", "http://127.0.0.9:80/")
        assert (code, "response 403" in errors) == (56, True)


async def test_the_gateways_own_resources(running):
    async with running() as gateway:
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-m", "15", "-K", "-", "-w", "%{http_code}", "-o", os.devnull,
            "--cacert", gateway.credentials.certificate,
            f"https://localhost:{gateway.port}/.well-known/htcondor-vpn/bytes?count=10000000",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate(f'header = "Authorization: Bearer {gateway.token}"'.encode())
        assert (process.returncode, out) == (0, b"200")
