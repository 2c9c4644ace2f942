"""Pilots that show a client certificate: who they are, and what their CA's lists say."""

import datetime
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from signing import DAY, NOW, Authority

from htcondor_vpn.errors import GatewayFolderError
from htcondor_vpn.gateway.trust.client_certificate import ClientCertificates
from htcondor_vpn.gateway.trust.identity import CredentialRefused, Presented
from htcondor_vpn.wire.http import HttpConnection
from htcondor_vpn.wire.tls import TlsStream

TARGET = "/.well-known/htcondor-vpn"


def shown(certificate):
    return Presented(certificate=certificate.public_bytes(Encoding.DER))


@pytest.mark.parametrize(
    ("name", "alternatives", "expected"),
    [
        ("pilot-1", [], "certificate:pilot-1"),
        ("pilot-1", [x509.DNSName("node.site.example")], "certificate:node.site.example"),
        ("pilot-1", [x509.RFC822Name("pilot@site.example")], "certificate:pilot@site.example"),
        ("", [x509.UniformResourceIdentifier("spiffe://site/pilot")], "certificate:spiffe://site/pilot"),
        ("Pilot of\tAlice", [], "certificate:Pilot%20of%09Alice"),
    ],
)
def test_names(ca, ca_file, name, alternatives, expected):
    certificate, _ = ca.issue(name, alternatives)
    identity = ClientCertificates(ca_file).identify(shown(certificate))
    assert (identity.kind, identity.name) == ("certificate", expected)
    assert {expected, f"serial:{certificate.serial_number:x}"} <= identity.marks
    assert abs(identity.expires - (NOW + DAY).timestamp()) <= 1


def test_what_names_nobody(ca, ca_file):
    authenticator = ClientCertificates(ca_file)
    assert authenticator.identify(Presented(bearer="x")) is None
    with pytest.raises(CredentialRefused, match="names nobody"):
        authenticator.identify(shown(ca.issue("")[0]))
    with pytest.raises(CredentialRefused, match="understood"):
        authenticator.identify(Presented(certificate=b"\x30\x00"))


def test_a_revocation_list_is_read_again(ca, ca_file, tmp_path):
    crl_file = tmp_path / "crl.pem"
    crl_file.write_bytes(ca.revocation_list())
    authenticator = ClientCertificates(ca_file, crl_file)
    good, bad = ca.issue("good")[0], ca.issue("bad")[0]
    identities = [authenticator.identify(shown(each)) for each in (good, bad)]
    (tmp_path / "next").write_bytes(ca.revocation_list(bad))
    (tmp_path / "next").replace(crl_file)
    authenticator.refresh()
    assert [authenticator.revoked(each) for each in identities] == [False, True]
    with pytest.raises(CredentialRefused, match="revoked by its CA"):
        authenticator.identify(shown(bad))
    crl_file.write_bytes(b"")
    authenticator.refresh()
    with pytest.raises(CredentialRefused, match="no revocation list"):
        authenticator.identify(shown(good))


def test_a_list_that_does_not_count(ca, ca_file, tmp_path):
    crl_file = tmp_path / "crl.pem"
    crl_file.write_bytes(ca.revocation_list(until=NOW - DAY))
    with pytest.raises(CredentialRefused, match="out of date"):
        ClientCertificates(ca_file, crl_file).identify(shown(ca.issue()[0]))
    crl_file.write_bytes(ca.revocation_list(key=Authority().key))
    with pytest.raises(GatewayFolderError, match="signed by no CA"):
        ClientCertificates(ca_file, crl_file)
    for content in (b"-----BEGIN X509 CRL-----\nxx\n-----END X509 CRL-----\n",):
        crl_file.write_bytes(content)
        with pytest.raises(GatewayFolderError, match="no revocation lists"):
            ClientCertificates(ca_file, crl_file)


def test_the_same_serial_number_of_another_ca_is_another_certificate(ca, tmp_path, monkeypatch):
    other = Authority("Other CA")
    monkeypatch.setattr(x509, "random_serial_number", lambda: 4711)
    ours, theirs = ca.issue("ours")[0], other.issue("theirs")[0]
    (tmp_path / "ca.pem").write_bytes(ca.pem + other.pem)
    (tmp_path / "crl.pem").write_bytes(ca.revocation_list() + other.revocation_list(theirs))
    authenticator = ClientCertificates(tmp_path / "ca.pem", tmp_path / "crl.pem")
    assert not authenticator.revoked(authenticator.identify(shown(ours)))
    with pytest.raises(CredentialRefused, match="revoked"):
        authenticator.identify(shown(theirs))


def client_context(paths=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if paths:
        context.load_cert_chain(*paths)
    return context


async def connected(gateway, context):
    return HttpConnection(await TlsStream.client(await gateway.raw(), context, None))


async def ask(gateway, paths=None, headers=()):
    """Asks without a token; the answer's status."""
    client = await connected(gateway, client_context(paths))
    try:
        return (await client.exchange("GET", TARGET, [("Host", "gateway"), *headers])).status
    finally:
        client.stream.abort()


async def test_a_certificate_instead_of_a_token(running, ca, ca_file, tmp_path):
    _, paths = ca.write(tmp_path)
    async with running(authenticators=[ClientCertificates(ca_file)], client_ca=ca_file) as gateway:
        assert await ask(gateway, paths) == 200
        assert await ask(gateway) == 401
        token = ("Authorization", f"Bearer {gateway.token}")
        assert await ask(gateway, headers=[token]) == 200
        assert await ask(gateway, paths, [token]) == 200
        assert await ask(gateway, paths, [("Authorization", "Bearer nonsense")]) == 401


async def test_a_certificate_of_another_ca_is_refused_in_the_handshake(running, ca_file, tmp_path):
    _, paths = Authority().write(tmp_path)
    async with running(authenticators=[ClientCertificates(ca_file)], client_ca=ca_file) as gateway:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask(gateway, paths)


async def test_an_expired_certificate_is_refused_in_the_handshake(running, ca, ca_file, tmp_path):
    _, paths = ca.write(tmp_path, until=NOW - datetime.timedelta(hours=1))
    async with running(authenticators=[ClientCertificates(ca_file)], client_ca=ca_file) as gateway:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask(gateway, paths)


async def test_revoking_a_certificate_cuts_its_connections(running, ca, ca_file, tmp_path):
    crl_file = tmp_path / "crl.pem"
    crl_file.write_bytes(ca.revocation_list())
    certificate, paths = ca.write(tmp_path)
    authenticator = ClientCertificates(ca_file, crl_file)
    async with running(authenticators=[authenticator], client_ca=ca_file) as gateway:
        client = await connected(gateway, client_context(paths))
        assert (await client.exchange("GET", TARGET, [("Host", "gateway")])).status == 200
        started = time.monotonic()
        (tmp_path / "next").write_bytes(ca.revocation_list(certificate))
        (tmp_path / "next").replace(crl_file)
        with pytest.raises(ConnectionResetError):
            await client.stream.read()
        client.stream.abort()
        assert time.monotonic() - started < 15
        assert await ask(gateway, paths) == 401


async def test_a_session_that_is_resumed_keeps_its_certificate(running, ca, ca_file, tmp_path):
    """TLS does not verify it again then, so that the deny list and the certificate's end have to be looked at."""
    certificate, paths = ca.write(tmp_path)
    async with running(authenticators=[ClientCertificates(ca_file)], client_ca=ca_file) as gateway:
        context = client_context(paths)
        client = await connected(gateway, context)
        assert (await client.exchange("GET", TARGET, [("Host", "gateway")])).status == 200
        session = client.stream.tls.session
        client.stream.abort()
        reached = []
        for _ in range(2):
            stream = TlsStream(await gateway.raw(), context, None, False)
            stream.tls.session = session
            while True:
                try:
                    stream.tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await stream._flush()
                    await stream._fill()
            await stream._flush()
            assert stream.tls.session_reused
            client = HttpConnection(stream)
            reached.append((await client.exchange("GET", TARGET, [("Host", "gateway")])).status)
            stream.abort()
            gateway.deny_list.add(f"serial:{certificate.serial_number:x}")
        assert reached == [200, 401]


def test_a_ca_file_that_is_none(tmp_path, running):
    from htcondor_vpn.gateway.trust.credentials import own_credentials

    (tmp_path / "ca.pem").write_text("nonsense")
    with pytest.raises(GatewayFolderError, match="no usable CA certificate"):
        own_credentials(tmp_path, ["localhost"]).server_context(tmp_path / "ca.pem")
