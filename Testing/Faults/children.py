"""Commands of the engine in forked children, which need not load torch again, under whatever limits a test sets."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple


class Finished(NamedTuple):
    """How a child ended."""

    code: int
    out: str
    err: str


def in_child(prepare: Callable[[], None], *commands: list[str]) -> Finished:
    """Run commands of the engine one after another in a forked child, as far as they succeed.

    Args:
        prepare: called in the child first, to set limits.
        commands: arguments of each command.
    """
    import monai.inferers
    import monai.networks.nets
    import monai.transforms  # noqa: F401

    # Pipes, because a limit on the size of files would be one on what can be said.
    pipes = [os.pipe(), os.pipe()]
    child = os.fork()
    if child == 0:
        try:
            os._exit(_run([end for _, end in pipes], prepare, commands))
        finally:
            os._exit(98)  # never back into the tests
    for _, end in pipes:
        os.close(end)
    with ThreadPoolExecutor() as threads:
        out, err = threads.map(_read, [end for end, _ in pipes])
    _, status = os.waitpid(child, 0)
    return Finished(os.waitstatus_to_exitcode(status), out, err)


def _read(end: int) -> str:
    with open(end, encoding="utf-8", errors="replace") as stream:
        return stream.read()


def _run(ends: list[int], prepare: Callable[[], None], commands: tuple[list[str], ...]) -> int:
    code = 99
    try:
        for number, end in zip((1, 2), ends, strict=True):
            os.dup2(end, number)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        prepare()
        from tcurlora.cli.commands import main

        for command in commands:
            sys.argv = ["tcurlora", *command]
            code = main()
            if code:
                break
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code
