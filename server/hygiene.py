"""Keep this process's memory out of core dumps and out of other processes' reach, as far as the platform has it.

Off are: core dumps (POSIX), and on Linux being traced or read by other processes of the same user (`PR_SET_DUMPABLE`,
prctl(2)). That is all: root, the kernel, swap and hibernation are not kept out.
"""

import sys

PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4


def keep_memory_private() -> None:
    """Do what can be done, for good; what this process starts begins anew. Never fails: `memory_is_private` tells."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(PR_SET_DUMPABLE, 0)


def memory_is_private() -> dict[str, bool]:
    """What is in force: `no core dumps`, and `not readable by other processes`. Nothing is, on Windows."""
    if sys.platform == "win32":
        return {"no core dumps": False, "not readable by other processes": False}
    import resource

    return {
        "no core dumps": resource.getrlimit(resource.RLIMIT_CORE) == (0, 0),
        "not readable by other processes": _prctl(PR_GET_DUMPABLE) == 0,
    }


def _prctl(option: int, argument: int = 0) -> int:
    """prctl(2) of Linux; -1 where there is none, or it refuses."""
    if sys.platform != "linux":
        return -1
    import ctypes

    try:
        return int(ctypes.CDLL(None).prctl(option, ctypes.c_ulong(argument), 0, 0, 0))
    except (OSError, AttributeError):
        return -1
