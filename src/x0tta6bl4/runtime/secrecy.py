"""What a process with private keys in its memory does first, so that they stay there.

Files that it makes are its user's alone, it leaves no core dump, and no other process of the same
user may read its memory or trace it.

Source: prctl(2), PR_SET_DUMPABLE; setrlimit(2), RLIMIT_CORE.
"""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

PR_SET_DUMPABLE: Final = 4
UMASK: Final = 0o077


def keep_secrets() -> None:
    """Set umask, core limit and the dumpable flag of this process; children inherit the first two.

    Raises:
        OSError: the kernel refuses, which it never does for a process that asks for less.
    """
    os.umask(UMASK)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
