"""Tables of numbers over tokens and hashed n-grams, and the one pass over texts that looks up any number of them.

A `LinearTable` holds what a linear model adds to its scores for a word (slots: open addressing by the word's hash
state, the word's numbers beside it, so that a word costs one cache line) and for an n-gram (buckets). `total` walks the
texts' token blocks once for all tables of a kind of normalisation and gives each text's sums and how many rows went
into them; a model makes probabilities or log weights of those. Tables are mapped from their file, so all processes of a
machine share one.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from safetensors.numpy import save

from trait_kit.engine import ngrams
from trait_kit.engine.files import TraitError, atomic_path
from trait_kit.engine.ngrams import Normalisation, Texts, buffers, inlined, kernel, text_array, token_blocks


class LinearTable(NamedTuple):
    """What the kernels read, for C numbers a row. Without cells the buckets hold single words too, but no </s>."""

    cells: np.ndarray  # float32 [slots, width >= C + 2]: hash state (8 bytes; 0 where a slot is empty), C numbers, ...
    buckets: np.ndarray  # float32 [buckets, C]
    longest: int  # n-gram of the buckets

    @property
    def states(self) -> np.ndarray:
        """uint64 [slots, width / 2]: the same memory; the first column holds the hash states."""
        return self.cells.view(np.uint64)

    def add(self, states: np.ndarray, starts: np.ndarray, sums: np.ndarray, rows: np.ndarray) -> None:
        """Write the sums and the number of rows of a block's texts. Two columns are looked up as one complex number."""
        words, buckets = self.cells[:, 2 : 2 + sums.shape[1]], self.buckets
        if sums.shape[1] == 2:
            words, buckets = self.cells.view(np.complex64)[:, 1:2], buckets.view(np.complex64)
            sums = sums.view(np.complex128)
        look_up = _look_up_kernel(len(self.cells) > 0, self.longest)
        for k in range(sums.shape[1]):
            look_up(states, starts, self.states, words[:, k], buckets[:, k], sums[:, k], rows)


def word_cells(words: Sequence[bytes], values: np.ndarray) -> np.ndarray:
    """Cells of words and their numbers (float32 [n, C]), at most half of them used, each within a cache line."""
    slots = 1 << max(2 * len(words) - 1, 1).bit_length()
    cells = np.zeros((slots, 1 << (values.shape[1] + 1).bit_length()), np.float32)
    states = ngrams.word_states(*buffers(pa.array(words, pa.large_binary())))
    cells[_take_slots(states, cells.view(np.uint64)), 2 : 2 + values.shape[1]] = values
    return cells


def linear_table(cells: np.ndarray, buckets: np.ndarray, longest: int) -> LinearTable:
    """A table that is no longer writable: one type for the kernels, whatever its arrays came from."""
    for array in (cells, buckets):
        array.flags.writeable = False
    return LinearTable(cells, buckets, longest)


def write(path: Path | str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Path:
    """A model file (safetensors): a header, whose `kind` names the format, and arrays of float32.

    Equal models give equal bytes, and a first array of cells lies within whole cache lines.
    """
    text = json.dumps(dict(header))  # one entry, because the library gives several in any order
    start = 8 + int.from_bytes(save(dict(arrays), {"model": text})[:8], "little")
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(dict(arrays), {"model": text + " " * (-start % 64)}))
    return Path(path)


def read(path: Path | str, kind: str, how: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(header, arrays) of a file of this kind, mapped and not read; `how` says in errors what makes one."""
    try:
        data = np.asarray(np.memmap(path, np.uint8, "r"))
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        layout = json.loads(data[8:start].tobytes())
        header = json.loads(layout.pop("__metadata__")["model"])
        arrays = {}
        for name, array in layout.items():
            first, last = array["data_offsets"]
            arrays[name] = data[start + first : start + last].view("<f4").reshape(array["shape"])
    except FileNotFoundError:
        raise TraitError(f"{path} does not exist. Make it with {how}.") from None
    except (KeyError, TypeError, ValueError) as error:
        raise TraitError(f"{path} is not a whole model file of the kit ({error}). Make it again with {how}.") from None
    if header["kind"] != kind:
        raise TraitError(f"{path} holds '{header['kind']}', not '{kind}'. Make it again with {how}.")
    return header, arrays


def total(
    texts: Texts, tables: Sequence[LinearTable], normalisation: Normalisation = "none"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each table the sums over each text's rows (float64 [n, C]) and how many rows they are (int64 [n])."""
    array = text_array(texts)
    results = [(np.zeros((len(array), table.buckets.shape[1])), np.zeros(len(array), np.int64)) for table in tables]
    for part, states, starts in token_blocks(*buffers(array), normalisation):
        for table, (sums, rows) in zip(tables, results, strict=True):
            table.add(states, starts, sums[part], rows[part])
    return results


def count(texts: Texts, buckets: int, longest: int, normalisation: Normalisation = "none") -> np.ndarray:
    """int64 [buckets]: how often the texts' n-grams of 1 to `longest` words fall into each bucket."""
    counts = np.zeros(buckets, np.int64)
    for _, states, _ in token_blocks(*buffers(text_array(texts)), normalisation):
        words = states != ngrams.EOS_STATE
        within = words
        for n in range(1, longest + 1):
            hashes = ngrams.ngram_hashes(states, n)[within]
            counts += np.bincount((hashes % np.uint64(buckets)).astype(np.int64), minlength=buckets)
            within = within[:-1] & words[n:]
    return counts


@inlined
def find_slot(state, slot_states):
    """The word's slot, or the empty one where it would be."""
    mask = np.uint64(len(slot_states) - 1)
    slot = state & mask
    while slot_states[slot, 0] != state and slot_states[slot, 0] != 0:
        slot = (slot + np.uint64(1)) & mask
    return slot


@functools.cache
def _look_up_kernel(with_words: bool, longest: int):
    """What adds up the rows of texts: words' slots, if there are any, and the n-grams that end at each token.

    Both are constants for the compiler, so that the loops over them cost nothing and sums stay in registers. Sums are
    of single precision within 1,024 tokens: double would be slower, and more tokens would drift, as fastText's own do.
    """
    shortest, one, summed = 1 + with_words, np.uint64(1), np.uint64(1_024)  # unsigned: see ngrams

    @kernel
    def _look_up(states, starts, slot_states, numbers, buckets, sums, rows):
        for d in range(len(starts) - 1):
            begin, stop = np.uint64(starts[d]), np.uint64(starts[d + 1])
            if not with_words:
                stop -= one
            found = 0
            for n in range(shortest, longest + 1):
                found += max(np.int64(stop - begin) - n + 1, 0)
            part = begin
            while part < stop:
                until = min(part + (summed if part > begin else one), stop)  # the first token ends no longer n-gram
                total = buckets.dtype.type(0)
                for t in range(part, until):
                    if with_words:
                        slot = find_slot(states[t], slot_states)
                        total += numbers[slot]
                        found += slot_states[slot, 0] != 0
                    ngram, factor = np.uint64(0), one
                    for n in range(longest):
                        if t < begin + np.uint64(n):
                            break
                        ngram += ngrams.sign_extend(states[t - np.uint64(n)]) * factor
                        factor *= ngrams.NGRAM_MULTIPLIER
                        if n + 1 >= shortest:
                            total += buckets[ngram % np.uint64(len(buckets))]
                sums[d] += total
                part = until
            rows[d] = found

    return _look_up


@kernel
def _take_slots(states, slot_states):
    """Give every word its slot; int64 [n]."""
    slots = np.empty(len(states), np.int64)
    for entry in range(len(states)):
        slots[entry] = find_slot(states[entry], slot_states)
        slot_states[slots[entry], 0] = states[entry]
    return slots
