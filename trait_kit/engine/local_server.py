"""A server of the teacher's model that the kit starts for one step and ends with it (`teacher_serve`).

It runs in a session of its own under a small watcher (this module as a program), whose standard input the step holds: when
the step ends, is interrupted or is killed, the input closes, and the watcher ends the whole session.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import urllib3

from trait_kit.engine.files import TraitError
from trait_kit.params import TeacherParams

_NEEDS = {"vllm": "vllm", "transformers": "transformers[serving]"}
_GRACE_SECONDS = 10  # for the server to end by itself
_LONGEST_START = 3600  # seconds: large weights come from a network disk
Params = TypeVar("Params", bound=TeacherParams)


@contextlib.contextmanager
def serving(params: Params, folder: Path) -> Iterator[Params]:
    """`params` as they are, or where `teacher_serve` names a server, with the address of one that runs in this block.

    Its log is teacher_server.log in `folder`. A model that is a local folder is served, and asked for, by the folder's name.
    """
    if not params.teacher_serve:
        yield params
        return
    from trait_kit.models import resolve_model

    model = Path(resolve_model(params.teacher_model))
    is_folder = model.is_dir()
    name = model.name if is_folder else params.teacher_model
    port = _free_port()
    command = [_program(params.teacher_serve), "serve", name, "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "teacher_server.log"
    print(f"Starting {params.teacher_serve} serve {name}; its log is {log}", flush=True)
    watcher = _start(command, log, model.parent if is_folder else None)
    try:
        _wait(watcher, f"http://127.0.0.1:{port}/health", log)
        address = {"teacher_serve": "", "teacher_base_url": f"http://127.0.0.1:{port}/v1", "teacher_model": name}
        yield params.model_copy(update=address)
    finally:
        watcher.stdin.close()
        watcher.wait()


def _program(name: str) -> str:
    """From the environment of this Python first: its folder need not be on the PATH."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    program = shutil.which(name, path=path)
    if program is None:
        raise TraitError(f"teacher_serve is {name}, which is not installed. Run `python -m pip install '{_NEEDS[name]}'`.")
    return program


def _start(command: list[str], log: Path, models: Path | None) -> subprocess.Popen[bytes]:
    """Where `models` holds the model, its name there is enough, and nothing is looked up on the hub."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    if models:
        environment["HF_HUB_OFFLINE"] = "1"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "trait_kit.engine.local_server", *command],
            stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT,
            cwd=models, env=environment, start_new_session=True,
        )  # fmt: skip


def _wait(watcher: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _LONGEST_START
    with urllib3.PoolManager(retries=False, timeout=2.0) as http:
        while time.monotonic() < deadline and watcher.poll() is None:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if http.request("GET", url).status == 200:
                    return
            time.sleep(0.2)
    ended = "did not answer within an hour" if watcher.poll() is None else "ended before it answered"
    end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
    raise TraitError(f"The teacher's server {ended}. See to what its log says ({log}):\n{end}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _watch(command: list[str]) -> None:
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it will send that to its own session
    threading.Thread(target=_end_with_step, daemon=True).start()
    server.wait()
    os.killpg(0, signal.SIGKILL)  # what the server may have left, and this


def _end_with_step() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _watch(sys.argv[1:])
