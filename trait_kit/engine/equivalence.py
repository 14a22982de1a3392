"""Are two LaTeX expressions equivalent? By math-verify, in a child process that the kernel ends when its time is up.

Why a process: the texts come from language models, math-verify hands them to sympy, and sympy would gladly compute
9**9**9**9 inside one long C call that no Python timer interrupts. math-verify's own alarm works on the main thread only.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

SECONDS = 1  # of processor time for one comparison, so that a busy machine changes no verdict; five times that of the clock
_lock = threading.Lock()
_child: subprocess.Popen[str] | None = None


@functools.lru_cache(maxsize=4_096)
def equivalent(gold: str, answer: str) -> bool | None:
    """Whether a LaTeX answer means what the gold one does; None where the child had to be ended over it. From any thread."""
    global _child
    with _lock:
        if _child is None or _child.poll() is not None:
            path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
            command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
            pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
            environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "PYTHONUTF8": "1"}
            _child = subprocess.Popen(command, **pipes, stderr=subprocess.DEVNULL, text=True, env=environment)
        try:
            print(json.dumps([gold, answer]), file=_child.stdin, flush=True)
            verdict = _child.stdout.readline()
        except BrokenPipeError:
            verdict = ""
        if not verdict:
            _child.kill()
            _child.wait()
    return verdict.strip() == "true" if verdict else None


def serve() -> None:
    """The child's side: one JSON line [gold, answer] in, one line true or false out, until the input ends."""
    import math_verify

    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a parser prints is not an answer
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
    signal.setitimer(signal.ITIMER_PROF, seconds)  # the signals' default action ends the process
    signal.setitimer(signal.ITIMER_REAL, 5 * seconds)
