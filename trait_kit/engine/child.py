"""Child processes: one supervisor for workers that train and servers that answer.

A child starts through a guard that leads a session of its own and holds the other end of a pipe to us. However we
go, `kill -9` included, the pipe closes, and the guard ends the session: by SIGTERM, on which a trainer saves itself,
and by SIGKILL 10 s later.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from trait_kit.engine.files import TraitError

_SHOWN, _ERROR = "> ", "!TraitError "
_GRACE_SECONDS = 10.0


def run(
    command: Sequence[str],
    what: str,
    log: Path,
    environment: dict[str, str] | None = None,
    on_line: Callable[[str], None] = print,
    hint: str = "",
) -> None:
    """Run `command` to its end; what it tells goes to `on_line`, all that it prints into `log`.

    TraitError with the child's own message, or with how it ended and its last lines. SIGTERM is handed to it.
    """
    message = ""
    with _started(command, log, environment, piped=True) as (process, stream), _handing_on(process):
        for line in process.stdout:
            with contextlib.suppress(OSError):  # a full disk must not keep the reason from the user
                stream.write(line)
            text = line.decode(errors="replace")
            if text.startswith(_ERROR):
                message = json.loads(text.removeprefix(_ERROR))
            elif text.startswith(_SHOWN):
                on_line(text.removeprefix(_SHOWN).rstrip("\n"))
        code = process.wait()
    if message:
        raise TraitError(message)
    if code:
        raise _failed(what, code, log, hint)


@contextlib.contextmanager
def serving(command: Sequence[str], what: str, log: Path) -> Iterator[str]:
    """The address of a server, called with --port, that answers /health and ends with the block; TraitError if before."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with _started([*command, "--port", str(port)], log) as (process, _):
        while process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
                break
            time.sleep(0.2)
        else:
            raise _failed(what, process.returncode, log)
        yield address


@contextlib.contextmanager
def _started(
    command: Sequence[str], log: Path, environment: dict[str, str] | None = None, piped: bool = False
) -> Iterator[tuple[subprocess.Popen, IO[bytes]]]:
    """The guarded child and its log, to which it writes itself unless `piped`; ended with all that it started."""
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    shared = {"OMP_WAIT_POLICY": "passive", **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    guarded = [sys.executable, "-P", "-m", "trait_kit.engine.child", *command]
    options = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    with log.open("ab", 0) as stream:
        output = subprocess.PIPE if piped else stream
        process = subprocess.Popen(guarded, stdout=output, env=shared | (environment or {}), **options)
        try:
            yield process, stream
        finally:
            process.stdin.close()
            try:
                process.wait(2 * _GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def tell(text: str) -> None:
    print(f"{_SHOWN}{text}", flush=True)


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """In a child: a TraitError ends it and is raised again by `run`."""
    try:
        yield
    except TraitError as error:
        print(f"{_ERROR}{json.dumps(str(error))}", flush=True)
        sys.exit(1)


def _failed(what: str, code: int, log: Path, hint: str = "") -> TraitError:
    number = code - 128 if code > 128 else -code
    ended = f"was ended by signal {number}." if number > 0 else f"ended with exit status {code}."
    ended += " Most likely memory ran out." if number == signal.SIGKILL else ""
    last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
    return TraitError(f"{what} {ended}{hint} Its last lines (all in {log}):\n{last}")


@contextlib.contextmanager
def _handing_on(process: subprocess.Popen) -> Iterator[None]:
    """SIGTERM for us goes to the child, whose end is ours; only the main thread can ask for this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _guard(command: list[str]) -> None:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = child.wait()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what the child has left behind goes with it
    os.killpg(0, signal.SIGTERM)
    os._exit(128 - code if code < 0 else code)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _guard(sys.argv[1:])
