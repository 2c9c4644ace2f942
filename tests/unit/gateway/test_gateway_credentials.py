import ssl
import stat
import subprocess
import threading

import pytest
from cryptography import x509

from htcondor_vpn.errors import GatewayFolderError
from htcondor_vpn.gateway.trust.credentials import (
    activate_rotation,
    given_credentials,
    own_credentials,
    prepare_rotation,
)
from htcondor_vpn.gateway.trust.folder import open_folder
from htcondor_vpn.wire.trust import pin_of, read_pins


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def folder(tmp_path):
    return open_folder(tmp_path / "a" / "gateway")


def test_first_start_makes_them_and_the_next_reuses_them(folder):
    made = own_credentials(folder, ["gw.example.org", "2001:db8::1", "192.0.2.1"])
    assert (mode(folder), mode(made.key)) == (0o700, 0o600)
    key, certificate = made.key.read_bytes(), made.certificate.read_bytes()
    assert own_credentials(folder, ["other.example.org"]) == made
    assert (made.key.read_bytes(), made.certificate.read_bytes()) == (key, certificate)
    names = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["gw.example.org"]
    assert [str(a) for a in names.value.get_values_for_type(x509.IPAddress)] == ["2001:db8::1", "192.0.2.1"]


def test_the_pin_is_what_pilots_compute(folder):
    made = own_credentials(folder, ["gw"])
    der = ssl.PEM_cert_to_DER_cert(made.certificate.read_text())
    assert made.pin == pin_of(der)
    assert read_pins(folder / "gateway.pin") == (made.pin,)


def test_the_pin_is_what_openssl_computes(folder):
    made = own_credentials(folder, ["gw"])
    key = subprocess.run(
        ["openssl", "pkey", "-in", made.key, "-pubout", "-outform", "DER"], capture_output=True, timeout=30, check=True
    ).stdout
    digest = subprocess.run(
        ["openssl", "dgst", "-sha256", "-binary"], input=key, capture_output=True, timeout=30, check=True
    ).stdout
    encoded = subprocess.run(["openssl", "base64"], input=digest, capture_output=True, timeout=30, check=True).stdout
    assert made.pin == "pin-sha256:" + encoded.decode().strip()


def test_a_lost_certificate_keeps_the_pin(folder):
    made = own_credentials(folder, ["gw"])
    made.certificate.unlink()
    (folder / "gateway.pin").unlink()
    assert own_credentials(folder, ["gw"]).pin == made.pin
    assert read_pins(folder / "gateway.pin") == (made.pin,)


def test_the_certificate_is_its_own_ca_even_for_strict_clients(folder):
    made = own_credentials(folder, ["gw.example.org"])
    context = ssl.create_default_context(cafile=made.certificate)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="gw.example.org")
    server = made.server_context().wrap_bio(outgoing, incoming, server_side=True)
    for side in (client, server):
        with pytest.raises(ssl.SSLWantReadError):
            side.do_handshake()
    client.do_handshake()
    server.do_handshake()
    assert client.version() == "TLSv1.3"


def test_starts_at_once_agree(tmp_path):
    found, barrier = [], threading.Barrier(8)

    def start():
        barrier.wait(60)
        found.append(own_credentials(open_folder(tmp_path / "gateway"), ["gw"]).pin)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len(set(found)) == 1
    names = {path.name for path in (tmp_path / "gateway").iterdir()}
    assert names == {"gateway.crt", "gateway.key", "gateway.pin", "lock"}


def test_an_operators_own_pair(tmp_path, folder):
    own = own_credentials(open_folder(tmp_path / "own"), ["gw"])
    given = given_credentials(folder, own.certificate, own.key)
    assert given.pin == own.pin
    assert read_pins(folder / "gateway.pin") == (own.pin,)
    given.server_context()


def test_an_operators_rsa_pair(tmp_path, folder):
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=gw", "-keyout", tmp_path / "key"]
    subprocess.run([*argv, "-out", tmp_path / "crt"], capture_output=True, timeout=60, check=True)
    (tmp_path / "key").chmod(0o600)
    given_credentials(folder, tmp_path / "crt", tmp_path / "key").server_context()


def test_a_pair_that_does_not_match(tmp_path, folder):
    one, other = (own_credentials(open_folder(tmp_path / name), ["gw"]) for name in ("one", "other"))
    with pytest.raises(GatewayFolderError, match="is not the key of"):
        given_credentials(folder, one.certificate, other.key)


@pytest.mark.parametrize("bad", [0o640, 0o604, 0o666])
def test_a_key_that_others_may_read(folder, bad):
    own_credentials(folder, ["gw"]).key.chmod(bad)
    with pytest.raises(GatewayFolderError, match="open to other users.*chmod 600"):
        own_credentials(folder, ["gw"])


@pytest.mark.parametrize("name", ["gateway.key", "gateway.crt"])
@pytest.mark.parametrize("content", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n"])
def test_rubbish_is_one_clear_error(folder, name, content):
    own_credentials(folder, ["gw"])
    (folder / name).write_bytes(content)
    with pytest.raises(GatewayFolderError, match=name):
        own_credentials(folder, ["gw"])


def test_an_encrypted_key_does_not_ask(tmp_path, folder):
    own = own_credentials(folder, ["gw"])
    argv = ["openssl", "pkcs8", "-topk8", "-in", own.key, "-out", tmp_path / "key", "-passout", "pass:secret"]
    subprocess.run(argv, capture_output=True, timeout=30, check=True)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(GatewayFolderError, match="without a passphrase"):
        given_credentials(folder, own.certificate, tmp_path / "key")


def test_a_folder_that_is_open_or_none(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(GatewayFolderError, match="chmod 700"):
        open_folder(tmp_path / "open")
    (tmp_path / "file").write_text("")
    with pytest.raises(GatewayFolderError, match="not a folder"):
        open_folder(tmp_path / "file")
    with pytest.raises(GatewayFolderError, match="cannot be made"):
        open_folder(tmp_path / "file" / "below")


def test_a_name_that_is_none(folder):
    with pytest.raises(GatewayFolderError, match="no host name"):
        own_credentials(folder, ["a" * 80 + ".example.org"])


def test_an_account_without_a_home_folder_has_to_name_one():
    with pytest.raises(GatewayFolderError, match="no home folder.*--dir"):
        open_folder(None)


def test_a_rotation_in_two_steps(folder):
    made = own_credentials(folder, ["gw.example.org", "2001:db8::1"])
    with pytest.raises(GatewayFolderError, match="no next key"):
        activate_rotation(folder)
    present, following = prepare_rotation(folder)
    assert present == made.pin != following
    assert prepare_rotation(folder) == (present, following)
    assert read_pins(folder / "gateway.pin") == (present, following)
    assert own_credentials(folder, ["gw"]).pin == present
    assert read_pins(folder / "gateway.pin") == (present, following)
    assert mode(folder / "gateway.next.key") == 0o600
    assert activate_rotation(folder) == following
    assert read_pins(folder / "gateway.pin") == (following,)
    assert not (folder / "gateway.next.key").exists()
    renewed = own_credentials(folder, ["gw"])
    assert renewed.pin == following
    names = x509.load_pem_x509_certificate(renewed.certificate.read_bytes()).extensions
    names = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gw.example.org"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["2001:db8::1"]


def test_a_rotation_that_was_interrupted_is_finished_by_the_next_start(folder):
    own_credentials(folder, ["gw"])
    _, following = prepare_rotation(folder)
    (folder / "gateway.next.key").replace(folder / "gateway.key")
    assert own_credentials(folder, ["gw"]).pin == following
    assert read_pins(folder / "gateway.pin") == (following,)
