"""Are two LaTeX expressions equivalent? By math-verify, in a child process that the kernel ends when its time is up.

Why a process: the texts come from language models, math-verify hands them to sympy, and sympy would gladly compute
9**9**9**9 inside one long C call that no Python timer interrupts. math-verify's own alarm works on the main thread only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

SECONDS = 1  # of processor time for one comparison, so that a busy machine changes no verdict; five times that of the clock
BYTES = 4 << 30  # address space of the process that compares
_lock = threading.Lock()
_child: subprocess.Popen[str] | None = None


@functools.lru_cache(maxsize=4_096)
def equivalent(gold: str, answer: str) -> bool | None:
    """Whether a LaTeX answer means what the gold one does; None where the child had to be ended over it. From any thread."""
    global _child
    with _lock:
        if _child is None or _child.poll() is not None:
            _child = _started()
        try:
            _child.stdin.write(json.dumps([gold, answer]) + "\n")
            _child.stdin.flush()
            verdict = _child.stdout.readline()
        except BrokenPipeError:
            verdict = ""
        if not verdict:
            _child.kill()
            _child.wait()
    return verdict.strip() == "true" if verdict else None


def _started() -> subprocess.Popen[str]:
    """The child; it ends with us, at the end of its input."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": path},
    )


def serve() -> None:
    """The child's side: one JSON line [gold, answer] in, one line true or false out, until the input ends."""
    import math_verify

    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a parser prints is not an answer
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system can bound memory
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    latex = [math_verify.LatexExtractionConfig()]  # not its reader of plain expressions, which is sympy's eval
    for line in sys.stdin:
        _arm(SECONDS)
        try:
            sides = [math_verify.parse(f"${text}$", latex, parsing_timeout=None) for text in json.loads(line)]
            same = all(sides) and math_verify.verify(*sides, timeout_seconds=None)
        except Exception:  # whatever a hostile string does to a parser means: not shown to be equal
            same = False
        _arm(0)
        print("true" if same else "false", file=answers, flush=True)


def _arm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):  # not on every system; the signals' default action ends the process
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, 5 * seconds)
