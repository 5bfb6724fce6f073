"""Speaks mutual TLS by `spiffe` and `spiffe-tls`, as told on standard input: see go/wire/main.go.

Runs in an environment of its own, where these packages are.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto
from spiffe import SpiffeId, X509Source
from spiffe.errors import PySpiffeError
from spiffetls import ListenOptions, ServerTlsMode, dial, listen
from spiffetls.tlsconfig.authorize import authorize_id

warnings.simplefilter("ignore")


def say(*words: object) -> None:
    print(" ".join(map(str, words)).replace("\n", " "), flush=True)


def met(connection: Any) -> None:
    certificate: crypto.X509 = connection.get_peer_certificate()
    leaf = certificate.to_cryptography()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (name,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    say("met", name, connection.get_group_name(), leaf.serial_number)


def line_of(connection: Any) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += connection.recv(4096)
    return line


def echo(connection: Any) -> None:
    try:
        connection.do_handshake()
        met(connection)
        while True:
            connection.sendall(line_of(connection))
    except SSL.ZeroReturnError:
        pass
    except (SSL.Error, OSError) as error:
        say("refused", repr(error), repr(error.__cause__))
    finally:
        connection.close()


def serve(source: Any, allowed: str) -> None:
    options = ListenOptions(
        tls_mode=ServerTlsMode.MTLS, authorize_fn=authorize_id(SpiffeId(allowed))
    )
    listener = listen("127.0.0.1:0", source, options)
    say("port", listener.getsockname()[1])

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def own(svids: Any) -> Any:
    (found,) = (svid for svid in svids if str(svid.spiffe_id) == os.environ["X0_ID"])
    return found


def main() -> None:
    source = X509Source(svid_picker=own, timeout_in_seconds=10)
    say("ready")
    dialled: Any = None
    for told in sys.stdin:
        match told.split():
            case "serve", allowed:
                serve(source, allowed)
            case "dial", port, allowed:
                try:
                    dialled = dial(
                        f"127.0.0.1:{port}", source, authorize_fn=authorize_id(SpiffeId(allowed))
                    )
                    met(dialled)
                except (OSError, PySpiffeError) as error:
                    say("refused", repr(error), repr(error.__cause__))
            case "say", word:
                try:
                    dialled.sendall(word.encode() + b"\n")
                    say("heard", line_of(dialled).decode().strip())
                except (SSL.Error, OSError) as error:
                    say("refused", repr(error), repr(error.__cause__))
            case ("hang",):
                dialled.shutdown()
                dialled.close()


main()
