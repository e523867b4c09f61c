"""The `phonetrain` command: cuts `key=value` overrides out of the line, runs a command, and turns our own errors into
one line and an exit code. Anything that is not our error keeps its traceback."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Sequence

OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=.*", re.DOTALL)
FLAGS = frozenset({"--help", "-h", "--version", "--dry-run", "--json", "--quiet", "--find-lr",
                   "--onnx", "--no-onnx", "--replace", "--trust-code"})  # fmt: skip


def main(tokens: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 128 + n ended by signal n."""
    pressed = []

    def interrupt(number: int, frame: object) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        code = exit_code(sys.argv[1:] if tokens is None else tokens)
    except Exception:
        if not pressed:
            raise
        # A library that was interrupted while it was being imported raises something of its own.
        print("interrupted", file=sys.stderr)
        code = 128 + signal.SIGINT
    # The result is printed: a late Ctrl-C may no longer turn the interpreter's own clean-up into a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    let_go_of_closed_streams()
    sys.exit(code)


def let_go_of_closed_streams() -> None:
    """Discard output to a closed terminal or pipe: else the flush at exit would make the exit code 120.

    Where one is closed both are let go: somebody may still write to the other on the way out.
    """
    streams, closed = [stream for stream in (sys.stdout, sys.stderr) if stream is not None], False
    for stream in streams:
        try:
            stream.flush()
        except (OSError, ValueError):
            closed = True
    for stream in streams if closed else ():
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def exit_code(tokens: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    try:
        return _checked(tokens)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 1  # the reader of our results (head, less) went away


def _checked(tokens: Sequence[str]) -> int:
    from cyclopts import CycloptsError, UnknownCommandError, UnknownOptionError, UnusedCliTokensError

    from phonedata import PhonedataError, SpecError
    from phonedata.files import check_place, named_by_system, unreadable

    from ..errors import ConfigError, PhonetrainError
    from .commands import app

    rest, overrides = cut_overrides(tokens)
    try:
        check_place()
        if "" in tokens:
            raise ConfigError("one of the words is empty; is a variable of the shell not set?")
        if bare := next((token for token in overrides if token.endswith("=")), None):
            raise ConfigError(f"{bare} has nothing after it; a setting has no spaces around its =, as epochs=3")
        command, bound, unparsed = app.parse_args(rest, exit_on_error=False, print_error=False)
        if "overrides" in unparsed:
            bound.arguments["overrides"] = overrides
        elif overrides:
            where = " ".join(rest[:1]) or "phonetrain"
            raise ConfigError(
                f"{overrides[0]}: {where} takes no settings; `fit`, `sweep`, `resume`, `doctor` and `recipes show` do"
            )
        code = command(*bound.args, **bound.kwargs)
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        message = _one_line(error)
        hint = "settings are said as key=value; see" if isinstance(error, UnknownOptionError) else "see"
        if isinstance(error, UnusedCliTokensError):
            message = f"{' '.join(error.unused_tokens or ())}: not understood;"
            with_settings = rest[:1] in (["fit"], ["sweep"], ["resume"], ["doctor"])
            hint = "a setting is said as key=value, as epochs=5; see" if with_settings else "see"
        if "=" in rest:
            hint = "a setting has no spaces around its =, as epochs=3; see"
        command_name = [] if isinstance(error, UnknownCommandError) else rest[:1]
        return _refuse(f"{message} {hint} `{' '.join(['phonetrain', *command_name, '--help'])}`", 2)
    except (ConfigError, SpecError) as error:
        return _refuse(_one_line(error), 2)
    except (PhonetrainError, PhonedataError) as error:
        return _refuse(_one_line(error), 1)
    except BrokenPipeError:
        raise
    except OSError as error:
        if not named_by_system(error):
            raise
        return _refuse(unreadable(error), 1)


def cut_overrides(tokens: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The tokens without `key=value` settings, and those settings.

    cyclopts would take `optimizer.lr=1e-4` for a recipe's name. A token is a setting if what stands before its `=` is
    a dotted name and it is not the value of the option before it.
    """
    rest: list[str] = []
    overrides: list[str] = []
    for index, token in enumerate(tokens):
        before = tokens[index - 1] if index else ""
        is_value = before.startswith("--") and "=" not in before and before not in FLAGS
        (overrides if OVERRIDE.fullmatch(token) and not is_value else rest).append(token)
    return rest, tuple(overrides)


def _refuse(message: str, code: int) -> int:
    print(f"phonetrain: {message}", file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
