"""Tables of numbers over tokens and hashed n-grams, and the one pass over texts that looks up any number of them.

A `LinearTable` holds what a linear model adds to its scores for a word (slots: open addressing by the word's hash state, the
word's numbers beside it, so that a word costs one cache line) and for an n-gram (buckets). `total` walks the texts' token
blocks once for all tables of a kind of normalisation and gives each text's sums and how many rows went into them; a model
makes probabilities or log weights of those. Tables are mapped from their file, so all processes of a machine share one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import save

from trait_kit.engine import ngrams
from trait_kit.engine.files import TraitError, atomic_path
from trait_kit.engine.ngrams import Normalisation, Texts, buffers, inlined, kernel, sign_extend, text_array, token_blocks

_LABEL_BYTES = np.frombuffer(b"__label__", np.uint8)


class LinearTable(NamedTuple):
    """What the kernels read, for C numbers a row."""

    cells: (
        np.ndarray
    )  # float32 [slots, width >= C + 3]: hash state (8 bytes), C numbers, ..., rows they stand for (-1: label)
    buckets: np.ndarray  # float32 [buckets, C]
    sizes: np.ndarray  # int64: see below

    # sizes: shortest and longest n-gram looked up in buckets, whether </s> is a token, minn, maxn, whether some label of the
    # model does not start with __label__

    @property
    def columns(self) -> int:
        return self.buckets.shape[1]

    @property
    def states(self) -> np.ndarray:
        """uint64 [slots, width / 2]: the same memory; the first column holds the hash states, 0 where a slot is empty."""
        return self.cells.view(np.uint64)

    @property
    def reads_bytes(self) -> bool:
        """Whether tokens' hashes do not suffice: for character n-grams, or to know labels by their own prefix."""
        return bool(self.sizes[4] or self.sizes[5])

    @property
    def kernel(self) -> Callable:
        """What looks this table up where no token needs its bytes looked at."""
        shortest, longest = self.sizes[:2].tolist()
        words = len(self.cells) > 2
        usual = self.columns <= 2 and longest == 2 and len(self.buckets) and shortest == (2 if words else 1)
        return _LOOK_UP_PAIRS[self.columns, words] if usual else _look_up


def empty_cells(entries: int, columns: int) -> np.ndarray:
    """Cells for so many dictionary entries, at most half of them used, each within one cache line where it can be."""
    slots = 1 << max(2 * entries - 1, 1).bit_length()
    width = 1 << (columns + 2).bit_length()
    return np.zeros((slots, width), np.float32)


def to_bytes(header: Mapping[str, Any], table: Mapping[str, np.ndarray]) -> bytes:
    """A model file (safetensors): equal models give equal bytes, and each array of cells lies within whole cache lines."""
    arrays = {name: np.ascontiguousarray(array) for name, array in table.items()}
    text = json.dumps(dict(header))  # one entry, because the library gives several in any order
    start = 8 + int.from_bytes(save(arrays, {"model": text})[:8], "little")
    return save(arrays, {"model": text + " " * (-start % 64)})


def write(path: Path | str, header: Mapping[str, Any], table: Mapping[str, np.ndarray]) -> Path:
    """Write a header (its `kind` names the format) and arrays of float32, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(to_bytes(header, table))
    return Path(path)


def read(path: Path | str, kind: str, how: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(header, arrays) of a file of this kind, mapped and not read; `how` says in errors what makes one."""
    path = Path(path)
    if path.suffix == ".npz":
        raise TraitError(f"{path} is a model file of an earlier version of the kit. Make it again with {how}.")
    try:
        with safetensors.safe_open(path, "np") as file, path.open("rb") as stream:  # which checks the whole layout
            header = json.loads((file.metadata() or {}).get("model", "{}"))
            layout = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            start = stream.tell()
    except FileNotFoundError:
        raise TraitError(f"{path} does not exist. Make it with {how}.") from None
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise TraitError(f"{path} is not a model file of the kit ({error}). Make it again with {how}.") from None
    if header.get("kind") != kind:
        raise TraitError(f"{path} holds '{header.get('kind')}', not '{kind}'. Make it again with {how}.")
    del layout["__metadata__"]
    arrays = {}
    for name, array in layout.items():
        shape, place = tuple(array["shape"]), start + array["data_offsets"][0]
        arrays[name] = np.memmap(path, "<f4", "r", place, shape) if np.prod(shape) else np.zeros(shape, np.float32)
    return header, {name: np.asarray(array) for name, array in arrays.items()}


def linear_table(cells: np.ndarray, buckets: np.ndarray, sizes: Sequence[int]) -> LinearTable:
    """A table that is no longer writable: one type for the kernels, whatever its arrays came from."""
    table = LinearTable(cells, buckets, np.array(sizes, np.int64))
    for array in table:
        array.flags.writeable = False
    return table


def total(
    texts: Texts, tables: Sequence[LinearTable], normalisation: Normalisation = "none", workers: int = 1
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each table the sums over each text's rows (float64 [n, C]) and how many rows they are (int64 [n])."""
    array = text_array(texts)
    if normalisation != "none" and any(table.reads_bytes for table in tables):
        array, normalisation = ngrams.normalise(array), "none"  # the normalised bytes are needed
    values, offsets = buffers(array)
    n_texts = len(offsets) - 1
    results = [(np.zeros((n_texts, table.columns)), np.zeros(n_texts, np.int64)) for table in tables]

    def work(first: int, last: int) -> None:
        scratch = np.empty((2, ngrams.BLOCK_TOKENS), np.uint64)
        for block in token_blocks(values, offsets, normalisation, first, last, any(table.reads_bytes for table in tables)):
            for table, (sums, rows) in zip(tables, results, strict=True):
                careful = table.reads_bytes or (len(block.odd) > 0 and block.texts == 1 and len(block.ends) > 0)
                _apply(_look_up if careful else table.kernel, values, offsets, block, table, scratch, sums, rows, careful)
                for text in () if careful else block.odd:  # so a text's kernel, and its last digits, depend on it alone
                    number = block.first + text
                    sums[number] = rows[number] = 0
                    for odd in token_blocks(values, offsets, normalisation, number, number + 1, with_ends=True):
                        _apply(_look_up, values, offsets, odd, table, scratch, sums, rows, True)

    if workers > 1 and n_texts > 1:
        # pieces of equal bytes, several a worker, because documents differ in length
        cuts = np.searchsorted(offsets, np.linspace(offsets[0], offsets[-1], 4 * workers + 1))
        cuts = [0, *np.clip(cuts[1:-1], 0, n_texts).tolist(), n_texts]
        with ThreadPoolExecutor(min(workers, os.cpu_count() or 1)) as pool:
            list(pool.map(work, cuts[:-1], cuts[1:]))
    else:
        work(0, n_texts)
    return results


def _apply(
    kernel, values, offsets, block: ngrams.TokenBlock, table: LinearTable, scratch, sums, rows, careful: bool
) -> None:
    part = slice(block.first, block.first + block.texts)
    kernel(
        *(block.states, block.starts, table.states, *table, *scratch, sums[part], rows[part]),
        *(careful, values, offsets[part], block.ends),
    )


def count(texts: Texts, buckets: int, ngrams: int, normalisation: Normalisation = "none") -> np.ndarray:
    """int64 [buckets]: how often the texts' n-grams of 1 to `ngrams` words fall into each bucket."""
    counts = np.zeros(buckets, np.int64)
    values, offsets = buffers(text_array(texts))
    for block in token_blocks(values, offsets, normalisation):
        _count(block.states, block.starts, ngrams, counts)
    return counts


@kernel
def _count(states, starts, longest, counts):
    buckets = np.uint64(len(counts))
    for d in range(len(starts) - 1):
        first = 0 if d == 0 else starts[d]
        for t in range(starts[d], starts[d + 1]):
            if states[t] == ngrams.EOS_STATE:
                break
            for length in range(1, min(longest, t - first + 1) + 1):
                ngram = np.uint64(0)
                for k in range(t - length + 1, t + 1):
                    ngram = ngram * ngrams.NGRAM_MULTIPLIER + sign_extend(states[k])
                counts[ngram % buckets] += 1


@inlined
def find_slot(state, slot_states):
    """The word's slot, or the empty one where it would be."""
    mask = np.uint64(len(slot_states) - 1)
    slot = state & mask
    while slot_states[slot, 0] != state and slot_states[slot, 0] != 0:
        slot = (slot + np.uint64(1)) & mask
    return slot


@kernel
def _look_up(states, starts, slot_states, cells, buckets, sizes, slots, tokens, sums, rows, careful, values, offsets, ends):
    """Add the rows of a block's texts to `sums` and `rows`, in loops that a processor can run ahead in."""
    columns = buckets.shape[1]
    last_cell = cells.shape[1] - 1
    shortest, longest, with_eos, minn, maxn = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    n_buckets = np.uint64(len(buckets))
    extra = np.zeros(columns)
    for d in range(len(starts) - 1):
        begin, stop = starts[d], starts[d + 1]
        context = begin if d == 0 else 0  # tokens of the same text that came with the block before
        if not with_eos and stop > begin and states[stop - 1] == ngrams.EOS_STATE:
            stop -= 1
        if stop == begin:
            continue  # a piece of a text that holds only spaces
        count = 0  # tokens that take part in n-grams: all but labels
        new = 0  # of them, how many came before
        found = 0
        for t in range(begin - context, stop):
            if t == begin:
                new = count
                found = 0
                extra[:] = 0
            state = states[t]
            tokens[count] = sign_extend(state)
            count += 1
            slot = find_slot(state, slot_states)
            slots[t - begin + context] = slot
            held = np.int64(cells[slot, last_cell])
            found += held
            if careful and held <= 0 and state != ngrams.EOS_STATE:
                start = ends[t]
                while start > offsets[d] and not ngrams.is_space(values[start - 1]):
                    start -= 1
                if held < 0:
                    found += 1
                    count -= 1
                elif _unknown_label(values, start, ends[t]):
                    count -= 1
                elif maxn > 0 and n_buckets > 0:
                    found += add_subwords(values, start, ends[t], buckets, minn, maxn, extra)
        for c in range(columns):
            added = extra[c]
            for k in range(context, stop - begin + context):
                added += cells[slots[k], 2 + c]
            sums[d, c] += added
        hashes = slots
        for order in range(1, longest + 1 if n_buckets > 0 else 0):
            if order == 1:
                hashes[:count] = tokens[:count]
            else:
                for k in range(count - 1, order - 2, -1):
                    hashes[k] = hashes[k - 1] * ngrams.NGRAM_MULTIPLIER + tokens[k]
            first = max(new, order - 1)
            if order >= shortest and first < count:
                found += count - first
                for c in range(columns):
                    added = 0.0
                    for k in range(first, count):
                        added += buckets[hashes[k] % n_buckets, c]
                    sums[d, c] += added
        rows[d] += found


def _pairs_kernel(columns: int, words: bool):
    """The same for the usual tables: one or two columns, words or hashed single words, and pairs. Twice as fast, because
    sums stay in registers and no branch depends on a token. `columns` and `words` are constants for the compiler."""
    two = columns == 2
    rows_cell = (1 << (columns + 2).bit_length()) - 1

    @inlined
    def add_single(state, token, n_buckets, slot_states, cells, buckets, first, second, held):
        if words:
            slot = find_slot(state, slot_states)
            first += cells[slot, 2]
            if two:
                second += cells[slot, 3]
            held += cells[slot, rows_cell]
        else:
            row = token % n_buckets
            first += buckets[row, 0]
            if two:
                second += buckets[row, 1]
        return first, second, held

    @kernel
    def _look_up_pairs(
        states, starts, slot_states, cells, buckets, sizes, slots, tokens, sums, rows, careful, values, offsets, ends
    ):
        n_buckets = np.uint64(len(buckets))
        for d in range(len(starts) - 1):
            begin, stop = starts[d], starts[d + 1]
            if not sizes[2] and stop > begin and states[stop - 1] == ngrams.EOS_STATE:
                stop -= 1
            if stop == begin:
                continue
            start = begin
            if d == 0 and begin > 0:
                before = sign_extend(states[begin - 1])
            else:  # nothing stands before the first token
                before = sign_extend(states[begin])
                first, second, held = add_single(
                    states[begin], before, n_buckets, slot_states, cells, buckets, _ZERO, _ZERO, _ZERO
                )
                sums[d, 0] += first
                if two:
                    sums[d, 1] += second
                rows[d] += np.int64(held)
                start += 1
            for part in range(start, stop, _SUMMED):  # single precision within a part, double over parts
                first = second = held = _ZERO
                for t in range(np.uint64(part), np.uint64(min(part + _SUMMED, stop))):  # unsigned: see ngrams._scan_words
                    state = states[t]
                    token = sign_extend(state)
                    first, second, held = add_single(
                        state, token, n_buckets, slot_states, cells, buckets, first, second, held
                    )
                    row = (before * ngrams.NGRAM_MULTIPLIER + token) % n_buckets
                    first += buckets[row, 0]
                    if two:
                        second += buckets[row, 1]
                    before = token
                sums[d, 0] += first
                if two:
                    sums[d, 1] += second
                rows[d] += np.int64(held)
            rows[d] += (stop - start) + (0 if words else stop - begin)

    return _look_up_pairs


_ZERO, _SUMMED = np.float32(0), 1_024
_LOOK_UP_PAIRS = {(columns, words): _pairs_kernel(columns, words) for columns in (1, 2) for words in (False, True)}


@inlined
def _unknown_label(values, start, stop):
    if stop - start < len(_LABEL_BYTES):
        return False
    for k in range(len(_LABEL_BYTES)):  # noqa: SIM110 (a generator does not compile)
        if values[start + k] != _LABEL_BYTES[k]:
            return False
    return True


@kernel
def add_subwords(values, start, stop, buckets, minn, maxn, total):
    """Add the rows of the character n-grams of <word> to `total`; return how many. Characters, not bytes, are counted."""
    n_buckets = np.uint64(len(buckets))
    length = stop - start + 2  # with < and >
    rows = 0
    for i in range(length):
        if 0 < i < length - 1 and (values[start + i - 1] & 0xC0) == 0x80:
            continue
        state = ngrams.HASH_START
        j = i
        n = 1
        while j < length and n <= maxn:
            byte = 60 if j == 0 else (62 if j == length - 1 else np.int64(values[start + j - 1]))
            state = ngrams.hash_byte(state, byte)
            j += 1
            while j < length - 1 and (values[start + j - 1] & 0xC0) == 0x80:
                state = ngrams.hash_byte(state, values[start + j - 1])
                j += 1
            if n >= minn and not (n == 1 and (i == 0 or j == length)):
                row = (state & ngrams.LOW_32) % n_buckets
                for c in range(len(total)):
                    total[c] += buckets[row, c]
                rows += 1
            n += 1
    return rows
