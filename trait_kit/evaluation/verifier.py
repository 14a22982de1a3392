"""Symbolic equivalence by math-verify, in a child process that the operating system kills when its time is up.

Why a process: the texts come from language models, math-verify hands them to sympy, and sympy would gladly compute
9**9**9**9 inside one long C call that no Python timer interrupts. Nothing of a text is ever evaluated as Python.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

VERIFY_SECONDS = 2  # of processor time for one comparison, so that a busy machine changes no verdict
VERIFY_BYTES = 4 << 30  # address space of the process that compares


class Verifier:
    """The child, started on first need and again after a comparison that had to be killed.

    It arms a timer of processor time, and one of the clock for five times as long, before each comparison and leaves
    their signals' default action alone, so that the kernel ends it wherever it is; its own address space is bounded; it
    ends when this process does, at the end of its input.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def equal(self, candidate: str, gold: str) -> bool | None:
        """Whether two LaTeX expressions are equivalent; None where the child had to be killed over it."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            self._process.stdin.write(json.dumps([candidate, gold, VERIFY_SECONDS]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.close()
            return None
        return answer.strip() == "true"

    def close(self) -> None:
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from trait_kit.evaluation.verifier import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path},
        )


@functools.cache
def verifier() -> Verifier:
    """The one child of this process."""
    child = Verifier()
    atexit.register(child.close)
    return child


def serve() -> None:
    """The child's side: one JSON line [candidate, gold, seconds] in, one line true or false out, until the input ends."""
    import math_verify

    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a parser prints is not an answer
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system can bound memory
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (VERIFY_BYTES, VERIFY_BYTES))
    latex = [math_verify.LatexExtractionConfig()]  # not its reader of plain expressions, which is sympy's eval
    for line in sys.stdin:
        candidate, gold, seconds = json.loads(line)
        _arm(seconds)
        try:
            parsed = [math_verify.parse(f"${text}$", latex, parsing_timeout=None) for text in (gold, candidate)]
            same = bool(parsed[0] and parsed[1]) and math_verify.verify(*parsed, timeout_seconds=None)
        except Exception:  # whatever a hostile string does to a parser means: not shown to be equal
            same = False
        _arm(0)
        print("true" if same else "false", file=answers, flush=True)


def _arm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):  # not on every system
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, 5 * seconds)
