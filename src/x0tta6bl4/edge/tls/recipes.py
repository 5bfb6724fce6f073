"""Certificates of any shape: what a recipe asks for, however wrong; nothing here checks anything.

The attack set and `sdk.testing` make theirs by it.

Source: X509-SVID.md sections 2 to 4, RFC 5280 section 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, padding, rsa
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from x0tta6bl4.edge.tls.x509 import BACKDATE_S

BOTH_ENDS: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)


@final
class Presented(msgspec.Struct, frozen=True, gc=False):
    """What an impostor holds."""

    chain: tuple[bytes, ...]
    """DER, as it is sent."""
    key: bytes
    """PKCS#8 DER of the first certificate's key."""


class Recipe(msgspec.Struct, frozen=True, gc=False):
    """How one certificate is made; `{td}` in a name stands for the trust domain."""

    uris: tuple[str, ...] | None = ("spiffe://{td}/web",)
    """None: no subject alternative name at all."""
    dns: tuple[str, ...] = ()
    san_critical: bool = True
    subject: str = ""
    ca: bool = False
    path_length: int | None = None
    usages: tuple[str, ...] | None = ("digital_signature",)
    usage_critical: bool = True
    extended: tuple[x509.ObjectIdentifier, ...] | None = BOTH_ENDS
    key: str = "P-256"
    hash: str = "sha256"
    start_s: int = -BACKDATE_S
    """notBefore, relative to now."""
    life_s: int = 3_600
    extended_critical: bool = False
    unknown: str = ""
    """`critical` or `plain`: an extension that nobody knows."""
    permitted: str = ""
    """Name constraint: `dns:x` or `uri:x`."""
    excluded: str = ""
    """As `permitted`, the other way round."""
    others: tuple[x509.GeneralName, ...] = ()
    """Further subject alternative names."""
    more: tuple[tuple[x509.ExtensionType, bool], ...] = ()
    """Further extensions, and whether they are critical."""
    basic: str = "critical"
    """Basic constraints: `critical`, `plain`; empty: none."""
    identifiers: bool = True
    """Whether key identifiers are there."""
    serial: int = 0
    """0: a random one."""
    printable: bool = False
    """Whether the subject is a PrintableString; if not, UTF-8."""
    pss: bool = False
    """Whether an RSA key above signs with PSS padding."""
    doubled: bool = False
    """Whether the last extension stands there twice."""
    spoilt: bool = False
    """Whether a bit of the signature is wrong."""


def bake_chain(
    above: tuple[Any, bytes], domain: str, now: int, recipes: Iterable[Recipe]
) -> Presented:
    """Make certificates each of which signs the next one; `above` (key, DER) signs the first."""
    chain: tuple[bytes, ...] = ()
    for recipe in recipes:
        made = bake(recipe, domain, now, above)
        chain = (*made.chain, *chain)
        above = (serialization.load_der_private_key(made.key, None), made.chain[0])
    return Presented(chain, made.key)


def bake(
    recipe: Recipe, domain: str, now: int, above: tuple[Any, bytes] | None = None
) -> Presented:
    """Make one certificate, signed by `above` (key, DER), or by itself."""
    key: Any = _new_key(recipe.key)
    form = _ASN1Type.PrintableString if recipe.printable else _ASN1Type.UTF8String
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, recipe.subject, form)] if recipe.subject else []
    )
    parent = None if above is None else x509.load_der_x509_certificate(above[1])
    start = now + recipe.start_s
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if parent is None else parent.subject)
        .public_key(key.public_key())
        .serial_number(recipe.serial or x509.random_serial_number())
        .not_valid_before(_time(start))
        .not_valid_after(_time(start + recipe.life_s))
    )
    if recipe.basic:
        basic = x509.BasicConstraints(recipe.ca, recipe.path_length)
        builder = builder.add_extension(basic, recipe.basic == "critical")
    if recipe.identifiers:
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(own, critical=False)
    for value, critical in _extensions(recipe, domain, parent):
        builder = builder.add_extension(value, critical=critical)
    by = key if above is None else above[0]
    weak = recipe.hash in ("md5", "sha1")
    digest: Any = (
        None
        if not isinstance(by, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
        else _HASHES["sha256" if weak else recipe.hash]
    )
    rsa_padding = padding.PSS(padding.MGF1(digest), digest.digest_size) if recipe.pss else None
    made = builder.sign(by, digest, rsa_padding=rsa_padding)
    der = made.public_bytes(serialization.Encoding.DER)
    if weak or recipe.doubled:
        der = _signed_again(der, by, recipe.hash, recipe.doubled)
    if recipe.spoilt:
        der = der[:-1] + bytes([der[-1] ^ 1])
    return Presented((der,), key_bytes(key))


def _extensions(
    recipe: Recipe,
    domain: str,
    parent: x509.Certificate | None,
) -> list[tuple[x509.ExtensionType, bool]]:
    found: list[tuple[x509.ExtensionType, bool]] = []
    if recipe.uris is not None:
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(_fill(uri, domain)) for uri in recipe.uris
        ]
        names += [x509.DNSName(name) for name in recipe.dns]
        names += recipe.others
        found.append((x509.SubjectAlternativeName(names), recipe.san_critical))
    if recipe.usages is not None:
        on = {name: name in recipe.usages for name in _USAGES}
        found.append(
            (x509.KeyUsage(**on, encipher_only=False, decipher_only=False), recipe.usage_critical)
        )
    if recipe.extended is not None:
        found.append((x509.ExtendedKeyUsage(recipe.extended), recipe.extended_critical))
    if recipe.unknown:
        found.append(
            (
                x509.UnrecognizedExtension(
                    x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"
                ),
                recipe.unknown == "critical",
            )
        )
    if recipe.permitted or recipe.excluded:
        sides = [
            [_form(one, domain)] if one else None for one in (recipe.permitted, recipe.excluded)
        ]
        found.append((x509.NameConstraints(*sides), True))
    found += recipe.more
    if parent is not None and recipe.identifiers:
        for above in parent.extensions:
            if isinstance(above.value, x509.SubjectKeyIdentifier):
                found.append((_AKI.from_issuer_subject_key_identifier(above.value), False))
    return found


def _form(text: str, domain: str) -> x509.GeneralName:
    kind, _, name = text.partition(":")
    name = _fill(name, domain)
    return x509.DNSName(name) if kind == "dns" else x509.UniformResourceIdentifier(name)


def _fill(name: str, domain: str) -> str:
    return name.replace("{td}", domain).replace("{TD}", domain.upper())


_AKI: Final = x509.AuthorityKeyIdentifier
_HASHES: Final[dict[str, Any]] = {
    "md5": hashes.MD5(),
    "sha1": hashes.SHA1(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


_MLDSA: Final[dict[str, Any]] = {
    "ML-DSA-44": mldsa.MLDSA44PrivateKey,
    "ML-DSA-65": mldsa.MLDSA65PrivateKey,
    "ML-DSA-87": mldsa.MLDSA87PrivateKey,
}


def _new_key(kind: str) -> Any:
    if kind.startswith("RSA-"):
        if kind == "RSA-1024":  # cryptography makes none so short.
            return _rsa_1024()
        return rsa.generate_private_key(65537, int(kind[4:]))
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "Ed448":
        return ed448.Ed448PrivateKey.generate()
    if kind in _MLDSA:
        return _MLDSA[kind].generate()
    curves: dict[str, type[ec.EllipticCurve]] = {
        "P-192": ec.SECP192R1,
        "P-224": ec.SECP224R1,
        "P-256": ec.SECP256R1,
        "P-384": ec.SECP384R1,
        "P-521": ec.SECP521R1,
        "secp256k1": ec.SECP256K1,
        "brainpoolP256r1": ec.BrainpoolP256R1,
    }
    return ec.generate_private_key(curves[kind]())


def _rsa_1024() -> Any:
    """An RSA key of 1,024 bits from two primes found in a fixed sequence of hashes."""
    primes: list[int] = []
    count = 0
    while len(primes) < 2:
        seed = f"x0 weak prime {count}".encode()
        number = int.from_bytes(hashlib.sha512(seed).digest(), "big") | 3 << 510 | 1
        count += 1
        if number % 3 and number % 5 and number % 65537 != 1 and pow(2, number - 1, number) == 1:
            primes.append(number)
    p, q = primes
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    return rsa.RSAPrivateNumbers(
        p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q), public
    ).private_key()


def key_bytes(key: Any) -> bytes:
    """PKCS#8 DER, of any kind of private key."""
    data: bytes = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return data


def _time(unix_s: int) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)


_ALGORITHMS: Final = {
    ("ec", "sha256"): bytes.fromhex("300a06082a8648ce3d040302"),
    ("ec", "sha1"): bytes.fromhex("300906072a8648ce3d0401"),
    ("rsa", "sha1"): bytes.fromhex("300d06092a864886f70d0101050500"),
    ("rsa", "md5"): bytes.fromhex("300d06092a864886f70d0101040500"),
}


def _signed_again(der: bytes, key: Any, digest: str, doubled: bool) -> bytes:
    """Sign what builders refuse to write: another algorithm in both places, an extension twice."""
    kind = "rsa" if isinstance(key, rsa.RSAPrivateKey) else "ec"
    algorithm = _ALGORITHMS[kind, digest]
    version, serial, _, *rest = _items(_items(der)[0])
    if doubled:
        extensions = _items(_items(rest[-1])[0])
        rest[-1] = _wrap(0xA3, _sequence(b"".join((*extensions, extensions[-1]))))
    body = _sequence(version + serial + algorithm + b"".join(rest))
    if kind == "rsa":
        signature = key.sign(body, padding.PKCS1v15(), _HASHES[digest])
    else:
        signature = key.sign(body, ec.ECDSA(_HASHES[digest]))
    return _sequence(body + algorithm + _wrap(3, b"\x00" + signature))


def _items(der: bytes) -> list[bytes]:
    """DER elements inside an element, each with its header; the whole itself if there are more."""
    start, end = _header(der, 0)
    found = []
    while start < end:
        _, stop = _header(der, start)
        found.append(der[start:stop])
        start = stop
    return found


def _header(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at `at` starts and ends."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(der[start : start + count], "big")
        start += count
    return start, start + length


def _sequence(content: bytes) -> bytes:
    return _wrap(0x30, content)


def _wrap(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content
