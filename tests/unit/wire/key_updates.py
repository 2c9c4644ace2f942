"""Key updates as a hostile peer makes them, which ssl cannot be asked for (RFC 8446, sections 4.6.3 and 7.2)."""

import hmac
import ssl
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

_CIPHERS = {
    "TLS_AES_256_GCM_SHA384": (AESGCM, 32, "sha384"),
    "TLS_AES_128_GCM_SHA256": (AESGCM, 16, "sha256"),
    "TLS_CHACHA20_POLY1305_SHA256": (ChaCha20Poly1305, 32, "sha256"),
}
#: The handshake message KeyUpdate(update_requested), and the type of its record's content.
_UPDATE = b"\x18\x00\x00\x01\x01" + b"\x16"
#: What each takes on the wire, bytes.
SIZE_BYTES = 5 + len(_UPDATE) + 16


def revealing_context(certificate, keys):
    """The context of a client that trusts `certificate` and writes its connections' secrets into the file `keys`."""
    context = ssl.create_default_context(cafile=certificate)
    context.keylog_filename = str(keys)
    return context


def key_updates(cipher, keys, count):
    """Returns `count` records with which a client that has sent nothing yet asks for new keys.

    `cipher` is its cipher suite's name, `keys` the file of `revealing_context`.
    """
    aead, key_bytes, hash_name = _CIPHERS[cipher]
    lines = (line.split() for line in keys.read_text().splitlines())
    (secret,) = (bytes.fromhex(line[2]) for line in lines if line[0] == "CLIENT_TRAFFIC_SECRET_0")
    header = struct.pack("!BHH", 0x17, 0x0303, SIZE_BYTES - 5)

    def expanded(label, length):
        label = b"tls13 " + label
        info = struct.pack("!HB", length, len(label)) + label + b"\0" + b"\x01"
        return hmac.digest(secret, info, hash_name)[:length]

    records = []
    for _ in range(count):  # each is the first record of its key, for which the nonce is the vector itself
        records.append(header + aead(expanded(b"key", key_bytes)).encrypt(expanded(b"iv", 12), _UPDATE, header))
        secret = expanded(b"traffic upd", len(secret))
    return b"".join(records)
