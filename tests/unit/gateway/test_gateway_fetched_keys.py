"""An issuer's keys, fetched from a web server with a certificate of the test's own."""

import contextlib
import http.server
import json
import ssl
import threading
import time
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from signing import Authority, TokenIssuer, pem

from htcondor_vpn.errors import VpnError
from htcondor_vpn.gateway.trust.identity import CredentialRefused, Presented
from htcondor_vpn.gateway.trust.jwt_bearer import JsonWebTokens
from htcondor_vpn.gateway.trust.key_sets import FetchedKeys, metadata_urls
from htcondor_vpn.gateway.trust.scitoken import SciTokenIssuer

DEADLINE_SECONDS = 30
NO_HTTP = b"220 mail.example ESMTP\r\n"


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
def web(authority, tmp_path):
    """Serves `pages` (path to body, or to a status) by https; `url` is where, `asked` what was asked for."""

    class Web:
        def __init__(self):
            self.pages, self.asked, self.came = {}, [], threading.Event()

    served = Web()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            served.asked.append(self.path)
            page = served.pages.get(self.path, 404)
            if page == NO_HTTP:
                self.wfile.write(page)
            elif isinstance(page, int):
                self.send_response(page)
                self.send_header("Location", f"{served.url}/elsewhere")
                self.end_headers()
            else:
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(page)
            served.came.set()

        def log_message(self, *_):
            pass

    certificate, key = authority.issue("web", [x509.IPAddress(ip_address("127.0.0.1"))])
    (tmp_path / "web.pem").write_bytes(certificate.public_bytes(Encoding.PEM) + pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "web.pem")

    class Server(http.server.ThreadingHTTPServer):
        def finish_request(self, request, address):
            with contextlib.suppress(OSError), context.wrap_socket(request, server_side=True) as stream:
                super().finish_request(stream, address)

    with Server(("127.0.0.1", 0), Handler) as server:
        served.url = f"https://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield served
        finally:
            # Who still asks is answered: what is cut off in the middle would be found unclosed in another test.
            for fetching in threading.enumerate():
                if fetching.name.startswith("keys of "):
                    fetching.join(DEADLINE_SECONDS)
            server.shutdown()
            thread.join(DEADLINE_SECONDS)


@pytest.fixture
def trusting(authority):
    return ssl.create_default_context(cadata=authority.pem.decode())


def publish(web, issuer, /, **metadata):
    told = {"issuer": issuer.url, "jwks_uri": f"{web.url}/keys", **metadata}
    web.pages["/vo/.well-known/openid-configuration"] = json.dumps(told).encode()
    web.pages["/keys"] = issuer.key_set()


def eventually(attempt):
    """Returns what `attempt` returns once it does not refuse any more."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            return attempt()
        except (VpnError, CredentialRefused):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_keys_are_fetched(web, trusting):
    issuer = TokenIssuer(f"{web.url}/vo")
    publish(web, issuer)
    with FetchedKeys(issuer.url, trusting) as keys:
        scitokens = JsonWebTokens([SciTokenIssuer(issuer.url, keys, ["https://gw.example"])])
        identity = eventually(lambda: scitokens.identify(Presented(bearer=issuer.token())))
    assert identity.name == f"scitoken:pilot@{web.url[8:]}/vo"


def test_the_metadata_may_be_where_oauth_has_it(web, trusting):
    issuer = TokenIssuer(f"{web.url}/vo")
    publish(web, issuer)
    web.pages["/.well-known/oauth-authorization-server/vo"] = web.pages.pop("/vo/.well-known/openid-configuration")
    with FetchedKeys(issuer.url, trusting) as keys:
        assert eventually(lambda: keys.key("rsa"))


def test_a_new_key_is_asked_for(web, trusting, monkeypatch):
    monkeypatch.setattr("htcondor_vpn.gateway.trust.key_sets._RETRY_SECONDS", 0.0)
    issuer = TokenIssuer(f"{web.url}/vo")
    publish(web, issuer)
    with FetchedKeys(issuer.url, trusting) as keys:
        eventually(lambda: keys.key("rsa"))
        issuer.keys["rsa-2"] = issuer.keys["rsa"]
        web.pages["/keys"] = issuer.key_set()
        assert eventually(lambda: keys.key("rsa-2"))


def test_unknown_keys_do_not_make_us_ask_for_ever(web, trusting):
    issuer = TokenIssuer(f"{web.url}/vo")
    publish(web, issuer)
    with FetchedKeys(issuer.url, trusting) as keys:
        eventually(lambda: keys.key("rsa"))
        for number in range(200):
            with pytest.raises(CredentialRefused):
                keys.key(f"guess-{number}")
        time.sleep(0.1)
        assert len(web.asked) <= 4


def test_keys_that_were_good_stay_so_for_a_while(web, trusting, monkeypatch):
    monkeypatch.setattr("htcondor_vpn.gateway.trust.key_sets._RETRY_SECONDS", 0.0)
    issuer = TokenIssuer(f"{web.url}/vo")
    publish(web, issuer)
    with FetchedKeys(issuer.url, trusting) as keys:
        eventually(lambda: keys.key("rsa"))
        web.pages.clear()
        web.came.clear()
        with pytest.raises(CredentialRefused):
            keys.key("another")
        assert web.came.wait(DEADLINE_SECONDS)
        assert keys.key("rsa")
        monkeypatch.setattr("htcondor_vpn.gateway.trust.key_sets._KEEP_SECONDS", 0.0)
        with pytest.raises(VpnError, match="could not be fetched"):
            keys.key("rsa")


@pytest.mark.parametrize(
    "spoil",
    [
        "other issuer", "plain http", "file", "endless", "redirect", "no json", "deep", "no keys", "untrusted",
        "nothing", "no http", "no url",
    ],
)  # fmt: skip
def test_keys_that_are_not_fetched(web, trusting, spoil, caplog):
    issuer = TokenIssuer(f"{web.url}/vo")
    publish(web, issuer)
    metadata = "/vo/.well-known/openid-configuration"
    if spoil == "other issuer":
        publish(web, issuer, issuer="https://issuer.example")
    elif spoil == "plain http":
        publish(web, issuer, jwks_uri=f"http{web.url[5:]}/keys")
    elif spoil == "file":
        publish(web, issuer, jwks_uri="file:///etc/passwd")
    elif spoil == "endless":
        web.pages["/keys"] = b" " * 3_000_000
    elif spoil == "redirect":
        web.pages["/elsewhere"] = web.pages["/keys"]
        web.pages["/keys"] = 302
    elif spoil == "no http":
        web.pages["/keys"] = NO_HTTP
    elif spoil == "no url":
        publish(web, issuer, jwks_uri=f"{web.url}x/keys")
    elif spoil == "untrusted":
        trusting = ssl.create_default_context()
    else:
        web.pages[metadata] = {"no json": b"<html>", "deep": b"[" * 100_000, "no keys": b"{}"}.get(spoil, 500)
    with FetchedKeys(issuer.url, trusting) as keys:
        keys.refresh()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while "cannot be fetched" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(VpnError, match="could not be fetched yet"):
            keys.key("rsa")
    assert "/elsewhere" not in web.asked


def test_a_web_server_that_speaks_something_else_for_a_while(web, trusting, monkeypatch):
    """As one that is being restarted, behind a load balancer: the keys are asked for again."""
    monkeypatch.setattr("htcondor_vpn.gateway.trust.key_sets._RETRY_SECONDS", 0.05)
    issuer = TokenIssuer(f"{web.url}/vo")
    publish(web, issuer)
    pages, web.pages = web.pages, dict.fromkeys(web.pages, NO_HTTP)
    with FetchedKeys(issuer.url, trusting) as keys:
        keys.refresh()
        assert web.came.wait(DEADLINE_SECONDS)
        web.pages = pages
        assert eventually(lambda: keys.key("rsa"))


def test_where_metadata_is_looked_for():
    assert metadata_urls("https://a.example/b/c/") == [
        "https://a.example/b/c/.well-known/openid-configuration",
        "https://a.example/.well-known/oauth-authorization-server/b/c",
    ]
