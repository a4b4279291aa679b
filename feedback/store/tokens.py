"""Secrets: tokens of 256 bits, what is kept of them, and the owner's password."""

import hashlib
import hmac
import secrets

COST = {"n": 2**15, "r": 8, "p": 1, "maxmem": 2**26}
"""The work that scrypt does for a password: 32 MiB, and about a tenth of a second."""


def new() -> str:
    """A token of 256 bits, of 43 letters that need no quoting in a link."""
    return secrets.token_urlsafe(32)


def hashed(token: str) -> str:
    """The hash of a token, which is all that the database keeps of it.

    A token has 256 random bits, so its SHA-256 can neither be reversed nor guessed.
    """
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def csrf(token: str) -> str:
    """The word that a session's forms carry: a function of its token, which it does not reveal."""
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


def same(a: str, b: str) -> bool:
    """True where two secrets are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(a.encode("utf-8", "replace"), b.encode("utf-8", "replace"))


def locked(password: str) -> str:
    """The hash of a password, for the database: of scrypt, with a salt of its own."""
    salt = secrets.token_bytes(16)
    return f"{salt.hex()}:{_scrypt(password, salt).hex()}"


def opens(password: str, kept: str) -> bool:
    """True where a password is the one whose hash is `kept`."""
    if not password or not kept:
        return False
    salt, _, digest = kept.partition(":")
    return hmac.compare_digest(_scrypt(password, bytes.fromhex(salt)), bytes.fromhex(digest))


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode("utf-8", "replace"), salt=salt, **COST)
