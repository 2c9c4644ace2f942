"""IDTOKENs and SciTokens, and what is none."""

import base64
import functools
import hashlib
import hmac
import json
import math
import os
import time

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from signing import TokenIssuer, public_pem, unsigned

from htcondor_vpn.errors import GatewayFolderError
from htcondor_vpn.gateway.trust.identity import CredentialRefused, Presented
from htcondor_vpn.gateway.trust.idtoken import Pool, signing_key
from htcondor_vpn.gateway.trust.jwt_bearer import JsonWebTokens
from htcondor_vpn.gateway.trust.key_sets import KeyFile, parse
from htcondor_vpn.gateway.trust.scitoken import SciTokenIssuer

AUDIENCE = "https://gw.example"


class Keys:
    def __init__(self, keys):
        self._keys = keys

    def key(self, kid):
        try:
            return self._keys[kid]
        except KeyError:
            raise CredentialRefused("unknown key") from None

    def refresh(self):
        pass


@functools.lru_cache(None)
def issuer():
    return TokenIssuer()


@pytest.fixture(scope="session")
def scitokens():
    return JsonWebTokens([SciTokenIssuer(issuer().url, Keys(parse(issuer().key_set())), [AUDIENCE])])


@pytest.fixture
def pool(tmp_path):
    """A pool's folder of keys, and what signs with them."""
    folder = tmp_path / "passwords.d"
    folder.mkdir()
    return PoolKeys(folder)


class PoolKeys:
    def __init__(self, folder):
        self.folder, self.passwords = folder, {}
        self.write("POOL")

    def write(self, name, mode=0o600):
        self.passwords[name] = os.urandom(48)
        path = self.folder / name
        path.write_bytes(self.passwords[name])
        path.chmod(mode)

    def token(self, kid="POOL", headers=None, **claims):
        body = {"iss": "pool.example", "sub": "pilot@pool.example", "iat": int(time.time()), "jti": "7" * 32, **claims}
        body = {name: value for name, value in body.items() if value is not None}
        key = signing_key(self.passwords[kid], pool=kid == "POOL")
        return jwt.encode(body, key, "HS256", headers={"kid": kid, **(headers or {})})

    def authenticator(self, *scopes):
        return JsonWebTokens([Pool("pool.example", self.folder, scopes)])


def refused(authenticator, token, match=None):
    with pytest.raises(CredentialRefused, match=match) as caught:
        authenticator.identify(Presented(bearer=token))
    for secret in filter(None, token.split(".")):
        assert len(secret) < 8 or secret not in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_idtoken(pool):
    identity = pool.authenticator().identify(Presented(bearer=pool.token()))
    assert (identity.kind, identity.name) == ("idtoken", "idtoken:pilot@pool.example")
    assert identity.marks == {"issuer:pool.example", "kid:POOL", "jti:" + "7" * 32}
    assert identity.expires == math.inf
    soon = int(time.time()) + 100
    limited = pool.authenticator().identify(Presented(bearer=pool.token(exp=soon)))
    assert limited.expires == soon + 60
    assert limited.credential != identity.credential


def test_an_idtoken_of_another_key(pool):
    before = pool.authenticator()
    pool.write("pilots")
    refused(before, pool.token("pilots"), "key that is not here")
    before.refresh()
    assert before.identify(Presented(bearer=pool.token("pilots")))
    refused(before, pool.token("pilots", headers={"kid": "POOL"}), "InvalidSignature")
    pool.write("POOL")
    refused(before, pool.token(jti="another"), "InvalidSignature")
    before.refresh()
    assert before.identify(Presented(bearer=pool.token()))


def test_what_an_idtoken_may_be_for(pool):
    pilots = pool.authenticator("condor:/ADVERTISE_STARTD")
    assert pilots.identify(Presented(bearer=pool.token()))
    assert pilots.identify(Presented(bearer=pool.token(scope="condor:/READ condor:/ADVERTISE_STARTD")))
    refused(pilots, pool.token(scope="condor:/READ"), "scopes")
    refused(pilots, pool.token(scope=["condor:/ADVERTISE_STARTD"]), "scopes")
    assert pool.authenticator().identify(Presented(bearer=pool.token(scope="condor:/READ")))


@pytest.mark.parametrize(
    "claims",
    [{"iss": "other.example"}, {"iss": None}, {"iss": ["pool.example"]}, {"sub": None}, {"sub": 7}, {"sub": ""},
     {"jti": None}, {"jti": 7}, {"iat": None}, {"exp": "soon"}, {"exp": 1}, {"exp": None, "nbf": 10**11},
     {"iat": 10**11}, {"nbf": "x"}, {"exp": 10**400}, {"sub": "x" * 300}],
)  # fmt: skip
def test_idtokens_with_bad_claims(pool, claims):
    if claims.get("iss") in (None, ["pool.example"]) and "iss" in claims:
        body = {"sub": "pilot", "iat": 1, "jti": "7", **claims}
        key = signing_key(pool.passwords["POOL"], pool=True)
        header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"POOL"}').rstrip(b"=")
        text = header + b"." + base64.urlsafe_b64encode(json.dumps(body).encode()).rstrip(b"=")
        signature = base64.urlsafe_b64encode(hmac.digest(key, text, hashlib.sha256)).rstrip(b"=")
        refused(pool.authenticator(), (text + b"." + signature).decode())
    else:
        refused(pool.authenticator(), pool.token(**claims))


def test_clocks_may_be_a_minute_apart(pool, scitokens):
    now = int(time.time())
    for claims in ({"iat": now + 40}, {"nbf": now + 40}, {"exp": now - 40}):
        assert pool.authenticator().identify(Presented(bearer=pool.token(**claims)))
        assert scitokens.identify(Presented(bearer=issuer().token(**claims)))
    for claims in ({"iat": now + 600}, {"nbf": now + 600}, {"exp": now - 80}):
        refused(pool.authenticator(), pool.token(**claims))
        refused(scitokens, issuer().token(**claims))


@pytest.mark.parametrize("break_it", ["open", "empty", "none", "gone"])
def test_a_folder_of_keys_that_is_no_good(pool, break_it):
    key = pool.folder / "POOL"
    if break_it == "open":
        key.chmod(0o644)
    elif break_it == "empty":
        key.write_bytes(b"")
    else:
        key.unlink()
        if break_it == "gone":
            pool.folder.rmdir()
    with pytest.raises(GatewayFolderError):
        pool.authenticator()


@pytest.mark.parametrize("key", ["rsa", "ec"])
def test_a_scitoken(scitokens, key):
    identity = scitokens.identify(Presented(bearer=issuer().token(key, jti="a-b")))
    assert (identity.kind, identity.name) == ("scitoken", "scitoken:pilot@issuer.example/vo")
    assert identity.marks == {"issuer:https://issuer.example/vo", f"kid:{key}", "jti:a-b"}
    assert identity.expires < time.time() + 700


@pytest.mark.parametrize("audience", [AUDIENCE, ["https://x.example", AUDIENCE], "ANY", "https://wlcg.cern.ch/jwt/v1/any"])
def test_scitokens_for_us(scitokens, audience):
    assert scitokens.identify(Presented(bearer=issuer().token(aud=audience)))


@pytest.mark.parametrize(
    "claims",
    [{"aud": None}, {"aud": "https://x.example"}, {"aud": []}, {"aud": 7}, {"exp": None}, {"exp": 7}, {"sub": None},
     {"iss": "https://issuer.example/vo/"}, {"iss": "https://other.example"}, {"nbf": 10**11}],
)  # fmt: skip
def test_scitokens_not_for_us(scitokens, claims):
    refused(scitokens, issuer().token(**claims))


def test_a_scitokens_scope():
    asking = SciTokenIssuer(issuer().url, Keys(parse(issuer().key_set())), [AUDIENCE], ["compute.create"])
    scitokens = JsonWebTokens([asking])
    for scope in ("compute.create", "storage.read:/ compute.create:/", "compute.create:/pilots"):
        assert scitokens.identify(Presented(bearer=issuer().token(scope=scope)))
    for scope in (None, "", "compute.read", "compute.created", "xcompute.create", ["compute.create"], 7):
        refused(scitokens, issuer().token(scope=scope), "scopes")


def test_a_token_cannot_choose_how_it_is_verified(scitokens, pool):
    """RFC 8725, 2.1: no algorithm `none`, and no public key of RSA as a secret of HMAC."""
    now = int(time.time())
    claims = {"iss": issuer().url, "sub": "pilot", "aud": AUDIENCE, "iat": now, "exp": now + 600}
    for name in ("none", "None", "NONE", ""):
        refused(scitokens, unsigned({"alg": name, "kid": "rsa"}, claims))
        refused(scitokens, unsigned({"alg": name, "kid": "rsa", "typ": "JWT"}, claims, b"x" * 32))
    public = public_pem(issuer().keys["rsa"])
    for secret in (public, public.strip(), b"", issuer().key_set()):
        head = unsigned({"alg": "HS256", "kid": "rsa"}, claims).rpartition(".")[0]
        signature = base64.urlsafe_b64encode(hmac.digest(secret, head.encode(), hashlib.sha256)).rstrip(b"=").decode()
        refused(scitokens, f"{head}.{signature}")
    both = JsonWebTokens([Pool("pool.example", pool.folder), SciTokenIssuer(issuer().url, Keys({}), [AUDIENCE])])
    refused(both, jwt.encode({**claims, "iss": "pool.example"}, issuer().keys["rsa"], "RS256", headers={"kid": "POOL"}))
    refused(both, pool.token(iss=issuer().url))


def test_the_wrong_key_of_the_right_issuer(scitokens):
    refused(scitokens, issuer().token("rsa", headers={"kid": "ec"}))
    refused(scitokens, issuer().token("ec", headers={"kid": "rsa"}))
    refused(scitokens, issuer().token(headers={"kid": "../../etc/passwd"}), "unknown key")
    refused(scitokens, TokenIssuer().token(), "InvalidSignature")
    refused(scitokens, issuer().token(headers={"crit": ["exp"]}))


def test_a_good_signature_is_not_looked_at_for_every_flow(monkeypatch):
    asked, keys = [], parse(issuer().key_set())

    class Counted(Keys):
        def key(self, kid):
            asked.append(kid)
            return super().key(kid)

    scitokens = JsonWebTokens([SciTokenIssuer(issuer().url, Counted(keys), [AUDIENCE])])
    token, bad = issuer().token(), issuer().token(headers={"kid": "none"})
    for _ in range(5):
        assert scitokens.identify(Presented(bearer=token))
        refused(scitokens, bad)
    assert (asked.count("rsa"), asked.count("none")) == (1, 5)
    keys.clear()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 16)
    refused(scitokens, token, "unknown key")


def test_signatures_are_not_remembered_without_end(scitokens, monkeypatch):
    monkeypatch.setattr("htcondor_vpn.gateway.trust.jwt_bearer._MAX_VERIFIED", 10)
    for number in range(40):
        scitokens.identify(Presented(bearer=issuer().token("ec", jti=str(number))))
        assert len(scitokens._verified) <= 10


def test_a_file_of_keys_is_read_again(tmp_path):
    path, first, second = tmp_path / "keys.json", issuer(), TokenIssuer()
    path.write_bytes(first.key_set())
    keys = KeyFile(path)
    scitokens = JsonWebTokens([SciTokenIssuer(first.url, keys, [AUDIENCE])])
    assert scitokens.identify(Presented(bearer=first.token()))
    (tmp_path / "next").write_bytes(second.key_set())
    (tmp_path / "next").replace(path)
    scitokens.refresh()
    refused(scitokens, first.token(jti="another"))
    assert scitokens.identify(Presented(bearer=second.token()))
    path.write_bytes(b"{}")
    with pytest.raises(GatewayFolderError, match="Key Set"):
        scitokens.refresh()
    assert scitokens.identify(Presented(bearer=second.token()))


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"keys": []}', '{"keys": 7}', '{"keys": ["x"]}', '{"keys": [{"kty": "RSA"}]}',
     '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "[" * 100_000],
)  # fmt: skip
def test_what_is_no_key_set(text):
    with pytest.raises(ValueError, match="key|Key|Expecting|char"):
        parse(text.encode())


def test_one_strange_key_does_not_spoil_the_others():
    listed = json.loads(issuer().key_set())["keys"]
    strange = [{"kty": "RSA", "kid": "x", "use": "enc"}, {"kty": "EC", "kid": "y", "crv": "P-999"}, {"kty": "OKP"}]
    assert set(parse(json.dumps({"keys": [*strange, *listed]}).encode())) == {"rsa", "ec"}


@pytest.mark.parametrize(
    "token",
    ["..", "a.b.c", "e30.e30.e30", "a" * 16000, "." * 16000, "eyJhbGciOiJub25lIn0.e30.", "ä.ö.ü", "\udcff.\udcff.x",
     "eyJhbGciOiJIUzI1NiJ9." + base64.urlsafe_b64encode(b"[" * 9000).decode() + ".x"],
)  # fmt: skip
def test_odd_tokens(scitokens, token):
    if token.count(".") == 2:
        refused(scitokens, token)
    else:
        assert scitokens.identify(Presented(bearer=token)) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
claim_names = st.sampled_from(["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "scope"])


@given(
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64"]), json_values),
    st.dictionaries(claim_names, json_values | st.just(issuer().url)) | json_values,
    st.binary(max_size=40),
)
def test_any_token_put_together_is_refused(scitokens, header, claims, signature):
    refused(scitokens, unsigned(header, claims, signature))


@given(st.dictionaries(claim_names, json_values))
def test_any_signed_claims_are_an_identity_or_refused(claims):
    """An issuer may say anything; what comes of it can stand in the log."""
    keys = Keys({"k": b"k" * 32})
    trusted = SciTokenIssuer(issuer().url, keys, [AUDIENCE])
    trusted.algorithms = ["HS256"]
    now = int(time.time())
    body = {"iss": issuer().url, "sub": "pilot", "aud": AUDIENCE, "exp": now + 600, **claims}
    head = unsigned({"alg": "HS256", "kid": "k"}, body).rpartition(".")[0]
    signature = base64.urlsafe_b64encode(hmac.digest(b"k" * 32, head.encode(), hashlib.sha256)).rstrip(b"=").decode()
    try:
        identity = JsonWebTokens([trusted]).identify(Presented(bearer=f"{head}.{signature}"))
    except CredentialRefused:
        return
    assert identity.name.isascii()
    assert " " not in identity.name
    assert identity.name.isprintable()
    assert identity.expires > now - 61


@given(st.tuples(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60)).map(".".join))
def test_any_text(scitokens, text):
    if text.count(".") == 2:
        refused(scitokens, text)
    else:
        assert scitokens.identify(Presented(bearer=text)) is None
