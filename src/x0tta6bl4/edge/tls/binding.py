"""OpenSSL as cryptography bundles it, without types: the one place that reaches for it.

pyOpenSSL's public calls cost half of the bulk rate (measured), so the byte path uses the binding
below them; pyOpenSSL itself uses the same names, and a contract test notices when they change.
"""

from __future__ import annotations

from typing import Any, Final

from OpenSSL import SSL

lib: Final[Any] = vars(SSL)["_lib"]
ffi: Final[Any] = vars(SSL)["_ffi"]
