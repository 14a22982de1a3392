"""Model files whose arrays are mapped, not read: all processes of a machine share one copy of a table.

The files are .npz (any numpy reads them), stored without compression, each array at a multiple of 64 bytes. Same content,
same bytes. No pickles; a damaged file is refused by its checksums.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trait_kit.engine.files import TraitError, atomic_path

_ALIGNMENT = 64
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member; lengths of its name and of its extra field follow 26 bytes


def save(path: Path | str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Path:
    """Write a header (JSON; its `kind` names the format) and arrays, whole or not at all."""
    members = {"header": np.frombuffer(json.dumps(dict(header)).encode(), np.uint8), **arrays}
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy")
            used = archive.fp.tell() + _LOCAL_HEADER.size + len(member.filename) + 4
            padding = -used % _ALIGNMENT
            member.extra = struct.pack("<HH", 0, padding) + bytes(padding)
            archive.writestr(member, content.getbuffer())
    return Path(path)


def load(path: Path | str, kind: str, how: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(header, read-only arrays) of a file written by `save` as this kind; `how` says in errors what makes one."""
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            damaged = archive.testzip()
            if damaged:
                raise ValueError(f"{damaged} is damaged")
            arrays = {}
            for member in archive.infolist():
                stream.seek(member.header_offset)
                start = member.header_offset + _LOCAL_HEADER.size
                start += sum(_LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size)))
                stream.seek(start)
                np.lib.format.read_magic(stream)
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
                name = member.filename.removesuffix(".npy")
                mapped = np.memmap(path, dtype, "r", stream.tell(), shape) if np.prod(shape) else np.empty(shape, dtype)
                arrays[name] = np.asarray(mapped)
            header = json.loads(arrays.pop("header").tobytes())
    except FileNotFoundError:
        raise TraitError(f"{path} does not exist. Make it with {how}.") from None
    except (KeyError, ValueError, EOFError, OSError, struct.error, zipfile.BadZipFile) as error:
        raise TraitError(f"{path} is not a model file of the kit ({error}). Make it again with {how}.") from None
    if header.get("kind") != kind:
        raise TraitError(f"{path} holds '{header.get('kind')}', not '{kind}'. Make it again with {how}.")
    return header, arrays


def read_only(table: Any) -> Any:
    """The same named tuple of arrays, no longer writable: one type for the kernels, whatever the arrays came from."""
    for array in table:
        array.flags.writeable = False
    return table
