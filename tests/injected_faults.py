"""As a program, under LD_PRELOAD of the shim: runs commands in processes forked from here, each with one failing call.

Reads a JSON object a line, {words, kind, nth, error, below}, and answers with {code, out, err, calls, path}. Without
`kind` all calls work.
"""

import contextlib
import ctypes
import errno
import io
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Faults:
    """The program at work. `run` runs one command line."""

    def __init__(self, shim: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.injected_faults"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"},
        )

    def run(self, words, kind: str = "", nth: int = 0, error: str = "EIO", below: Path = ROOT) -> dict:
        case = {"words": list(map(str, words)), "kind": kind, "nth": nth, "error": error, "below": f"{below}/"}
        print(json.dumps(case), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def serve() -> None:
    import tests.warm  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries in C print on standard output too, as libsndfile does where close fails
    shim = ctypes.CDLL(None)
    shim.fault_path.restype, shim.fault_count.restype = ctypes.c_char_p, ctypes.c_long
    for line in sys.stdin:
        reader, writer = os.pipe()
        if not os.fork():
            os.close(reader)
            answer = json.dumps(tried(shim, json.loads(line)))
            with os.fdopen(writer, "w") as file:
                file.write(answer)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as file:
            answer = file.read()
        status = os.wait()[1]
        answer = answer or json.dumps({"code": status, "out": "", "err": "the process died", "calls": 0, "path": ""})
        print(answer, file=answers, flush=True)


def tried(shim: ctypes.CDLL, case: dict) -> dict:
    from phonedata.cli import main as phonedata
    from phonetrain.cli.main import exit_code

    out, err = io.StringIO(), io.StringIO()
    program, *words = case["words"]
    code = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        number = getattr(errno, case["error"])
        shim.fault_arm(case["kind"].encode(), ctypes.c_long(case["nth"]), number, case["below"].encode())
        try:
            code = exit_code(words) if program == "phonetrain" else phonedata(words) or 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        calls, path = shim.fault_count(), shim.fault_path().decode()
        shim.fault_arm(b"", ctypes.c_long(0), 0, b"")
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "calls": calls, "path": path}


if __name__ == "__main__":
    serve()
