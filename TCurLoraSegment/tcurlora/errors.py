"""Errors that speak to the person: what is wrong with which file, and what to do about it."""

from __future__ import annotations

import errno

from tcurlora_contract import exit_codes


class TCurLoraError(Exception):
    """Base of all errors that the engine raises on purpose.

    Args:
        message: one sentence that names the file, case or option and what is wrong with it.
        remedy: one sentence that says what to do; options of the command line in parentheses, which a program with
            buttons in their place leaves out.
        code: a short, stable, machine-readable name of the problem, such as `geometry_mismatch`.
    """

    exit_code = exit_codes.FAILED

    def __init__(self, message: str, remedy: str = "", code: str = "error") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class InputError(TCurLoraError):
    """Something that the user gave cannot be used; nothing has been written."""

    exit_code = exit_codes.BAD_INPUT

    def __init__(self, message: str, remedy: str = "", code: str = "bad_input") -> None:
        super().__init__(message, remedy, code)


class MemoryExhausted(TCurLoraError):
    """The device ran out of memory, also after a retry with less."""

    exit_code = exit_codes.OUT_OF_MEMORY

    def __init__(self, message: str, remedy: str = "", code: str = "out_of_memory") -> None:
        super().__init__(message, remedy, code)


class Diverged(TCurLoraError):
    """A training came to numbers that are not finite."""

    def __init__(self, message: str, remedy: str = "", code: str = "diverged") -> None:
        super().__init__(message, remedy, code)


class Cancelled(TCurLoraError):
    """The user asked the work to end."""

    exit_code = exit_codes.CANCELLED

    def __init__(self, message: str = "Cancelled.", remedy: str = "", code: str = "cancelled") -> None:
        super().__init__(message, remedy, code)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error of torch, numpy or SimpleITK means that there is no memory left."""
    # The processor's allocators in torch and SimpleITK have no exception class of their own. The last words are all
    # that the library behind torch's convolutions says.
    words = (
        "not enough memory",
        "allocate memory",
        "bad_alloc",
        "out of memory",
        "could not create a primitive",
        "could not execute a primitive",
    )
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
    )


def as_user_error(error: Exception) -> TCurLoraError:
    """Turn any other error into one for people: a file, the memory, or a fault of this program."""
    if is_out_of_memory(error):
        return MemoryExhausted(
            "The computer ran out of memory.", "Close other programs, or use a smaller scan or model."
        )
    if isinstance(error, OSError):
        named = f"'{error.filename}'" if error.filename else "A file"
        problem = f"{named} cannot be read or written ({error.strerror or error})."
        return TCurLoraError(problem, "Check the path, the permissions and the free space.", "os_error")
    first = (str(error).strip() or "no details").splitlines()[0]
    return TCurLoraError(
        f"Something unexpected went wrong ({type(error).__name__}: {first}).",
        "Please report it, with what is shown when TCURLORA_TRACEBACK=1 is set.",
        "internal",
    )
