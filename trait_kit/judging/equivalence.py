"""Are two LaTeX expressions equivalent? By math-verify, in a child process that the kernel ends when its time is up.

math-verify hands texts of language models to sympy, which would gladly compute 9**9**9**9 inside one long C call that no
Python timer interrupts; math-verify's own alarm works on the main thread only.
"""

import functools
import logging
import multiprocessing
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

SECONDS = 1  # of processor time a comparison, so that a busy machine changes no verdict
_lock = threading.Lock()


@functools.lru_cache(maxsize=4_096)
def equivalent(gold: str, answer: str) -> bool | None:
    """Whether a LaTeX answer means what the gold one does, from any thread; None where the child had to be ended."""
    with _lock:
        try:
            return _child().submit(_same, gold, answer).result()
        except BrokenProcessPool:
            _child.cache_clear()
            return None


@functools.cache
def _child() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), logging.disable)  # it warns of timers


def _same(gold: str, answer: str) -> bool:
    """In the child. Its timer's signal ends the process, by default."""
    import math_verify

    latex = [math_verify.LatexExtractionConfig()]  # not its reader of plain expressions, which is sympy's eval
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        sides = [math_verify.parse(f"${text}$", latex, parsing_timeout=None) for text in (gold, answer)]
        return bool(all(sides) and math_verify.verify(*sides, timeout_seconds=None))
    except Exception:  # whatever a hostile string does to a parser means: not shown to be equal
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
