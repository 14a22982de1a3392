"""Tokens, their hashes, and tables of numbers over them: the one pass over text that every linear selection model shares.

The fastText models and DSIR (arXiv 2302.03169) are sums of table values over hashed word n-grams. `token_blocks` reads
Arrow buffers and yields the 64-bit hash states of the tokens, a cache-sized block at a time, normalised if the model was
trained so (`normalise` gives the same tokens as text). No branch at a word's end can be guessed wrong, which else
limits a loop over words. A state's low half is fastText's hash; all of it tells millions of tokens apart.

A `LinearTable` holds what a model adds to its scores for a word (slots: open addressing by the word's state, its numbers
beside it, so that a word costs one cache line) and for an n-gram (buckets). It is mapped from a file, and so shared.
"""

import functools
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import save

from trait_kit.engine.files import TraitError, atomic_path

Texts = Sequence[str] | pa.Array | pa.ChunkedArray
TextArray = pa.LargeStringArray | pa.LargeBinaryArray
Block = tuple[slice, np.ndarray, np.ndarray]
# What a model sees of a text: as fastText reads it, or `normalise`d. Model files name the rules.
Normalisation = Literal["none", "words-2"]
NGRAM_MULTIPLIER = np.uint64(116049371)  # fastText: hash of w1..wn = hash of w1..wn-1 times this, plus hash of wn
HASH_START, FNV_PRIME = np.uint64(2166136261), np.uint64(16777619)
EOS_STATE = np.uint64(1318743920575550297)  # hash state of </s>, which ends each text in fastText
LOW_32, _ONE = np.uint64(0xFFFFFFFF), np.uint64(1)
_CODE_POINTS = 0x1F000  # beyond the last character that has a lower case, or is no part of a word
# Scripts without blanks: Thai, Lao, Burmese, Khmer, kana, East Asian characters.
UNSPACED = [(0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x9FFF)]
_MARKS = [
    (c, c) for first, last in UNSPACED for c in range(first, last + 1) if unicodedata.category(chr(c))[0] == "M"
]
_SPACE, _ALONE, _WORD, _MARK = map(np.uint8, range(4))
_KINDS = {  # ranges of characters; all others are of words; those alone are words with marks
    _SPACE: [(0, 0x20), (0x7F, 0x7F), (0x85, 0x85), (0xA0, 0xA0), (0x2000, 0x206F), (0x3000, 0x303F)],
    _ALONE: [(0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E), *UNSPACED],
    _MARK: _MARKS,  # a vowel sign or tone above a letter, else alone
}
_BYTE_KINDS = np.array([_SPACE if c in b"\0\t\n\v\f\r " else _WORD for c in range(256)])  # fastText's
# fastText hashes *signed* bytes
_SIGNED = np.array([c if c < 128 else c | 0xFFFFFF00 for c in range(256)], np.uint64)
BLOCK_TOKENS = 262_144  # bytes of text in a block: its tokens stay in a core's own cache

kernel = numba.njit(cache=True, nogil=True, error_model="numpy")
# pasted in: a call would count references to its arrays, which costs more
inlined = numba.njit(inline="always", error_model="numpy")


def text_array(texts: Texts) -> pa.LargeStringArray:
    """The texts as one Arrow array (one chunk is not copied); TraitError for nulls and what is no string."""
    if not isinstance(texts, pa.Array | pa.ChunkedArray):
        try:
            texts = pa.array(list(texts), pa.large_string())
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
            raise TraitError(f"Texts must be strings of valid Unicode: {error}.") from None
    if texts.type not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
        raise TraitError(f"Texts must be strings, but this column is {texts.type}. Name the text column.")
    texts = pc.cast(texts, pa.large_string())
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    if texts.null_count:
        row = pc.index(pc.is_null(texts), True).as_py()
        raise TraitError(
            f"Text {row} is null. Drop rows without text first (load_documents puts them in quarantine)."
        )
    return texts


def normalise(texts: Texts) -> pa.LargeStringArray:
    """Lower case, one space between tokens; punctuation, and letters of scripts without blanks, as tokens of their own.

    Why: a hundred in-domain documents are too few to learn `Theorem,` apart from `theorem`, and languages without spaces
    would be one token a sentence. It also disarms `</s>` and `__label__x`, which fastText obeys. Twice is as once.
    """
    array = pc.utf8_lower(text_array(texts))
    classes = {kind: "".join(rf"\x{{{a:x}}}-\x{{{b:x}}}" for a, b in ranges) for kind, ranges in _KINDS.items()}
    alone = f"[{classes[_ALONE]}][{classes[_MARK]}]*"
    for pattern, replacement in ((alone, r" \0 "), (f"[{classes[_SPACE]}]+", " ")):
        array = pc.replace_substring_regex(array, pattern, replacement)
    return pc.utf8_trim(array, " ")


def ngram_hashes(states: np.ndarray, n: int) -> np.ndarray:
    """uint64 [len - n + 1]: fastText's hash of each `n` tokens in a row."""
    tokens = states.astype(np.uint32).view(np.int32).astype(np.int64).view(np.uint64)  # as `sign_extend`
    hashes = np.zeros(max(len(states) - n + 1, 0), np.uint64)
    for k in range(n):
        hashes = hashes * NGRAM_MULTIPLIER + tokens[k : k + len(hashes)]
    return hashes


@inlined
def sign_extend(state):
    """A token's hash as fastText's n-grams take it: a signed 32-bit number widened to 64 bits."""
    return np.uint64(np.int64(np.int32(np.uint32(state & LOW_32))))


def token_blocks(array: TextArray, normalisation: Normalisation = "none") -> Iterator[Block]:
    """The hashed tokens of some texts after others: (which texts, states, where each text's begin).

    States: uint64 [n], EOS_STATE after each text; beginnings: int64 [texts + 1]. The next block overwrites both.
    """
    _, offsets, values = array.buffers()
    values = np.frombuffer(values or bytes(1), np.uint8)
    offsets = np.frombuffer(offsets or bytes(8), np.int64)[array.offset : array.offset + len(array) + 1]
    values.flags.writeable = offsets.flags.writeable = False  # one type, so that kernels compile once
    needs = offsets + np.arange(len(offsets))  # a byte is at most a token, and a text has one more: </s>
    room = max(BLOCK_TOKENS, int(np.diff(needs).max(initial=0))) + 1  # untouched memory costs nothing
    states, starts = np.empty(room, np.uint64), np.zeros(BLOCK_TOKENS + 1, np.int64)
    kinds, lower = (_BYTE_KINDS, _SIGNED) if normalisation == "none" else _characters()
    first = 0
    while first < len(offsets) - 1:
        stop = max(int(np.searchsorted(needs, needs[first] + BLOCK_TOKENS, "right")) - 1, first + 1)
        n = _scan(values, offsets[first : stop + 1], states, starts, kinds, lower)
        yield slice(first, stop), states[:n], starts[: stop - first + 1]
        first = stop


def word_states(array: TextArray) -> np.ndarray:
    """uint64 [n]: the hash state of the first word of each text."""
    found = [states[starts[:-1]] for _, states, starts in token_blocks(array)]
    return np.concatenate([np.empty(0, np.uint64), *found])


@functools.cache
def _characters() -> tuple[np.ndarray, np.ndarray]:
    """The kind (uint8) of each character, and Arrow's UTF-8 of its lower case (uint32, first byte lowest)."""
    kinds, lower = np.full(_CODE_POINTS, _WORD), np.zeros(_CODE_POINTS, np.uint32)
    for kind, ranges in _KINDS.items():
        for first, last in ranges:
            kinds[first : last + 1] = kind
    points = np.delete(np.arange(_CODE_POINTS), slice(0xD800, 0xE000))  # without surrogates
    lowered = pc.utf8_lower(pa.array(map(chr, points))).to_pylist()
    lower[points] = [int.from_bytes(character.encode(), "little") for character in lowered]
    return kinds, lower


@kernel
def _scan(values, offsets, states, starts, kinds, lower):
    """Fill a block with tokens; return how many. With the `kinds` of bytes no character is decoded.

    Positions are unsigned: signed ones are checked for being negative at each use, a fifth of the time.
    """
    n, raw = np.uint64(0), len(kinds) == 256
    for d in range(len(offsets) - 1):
        state, before = HASH_START, _SPACE
        position, end = np.uint64(offsets[d]), np.uint64(offsets[d + 1])
        while position < end:
            byte = values[position]
            states[n] = state
            if raw or byte < 128:
                kind = kinds[byte]
                joined = (kind == _WORD) & (before == _WORD)
                state = ((state if joined else HASH_START) ^ np.uint64(lower[byte])) * FNV_PRIME
                position += _ONE
            else:
                point, utf8, position = _decode(values, position, end)
                kind = _WORD
                if point < len(kinds):
                    kind, utf8 = kinds[point], lower[point]
                marked = (kind == _MARK) & (before % 2 == 1)  # alone, or a mark
                joined = (kind == _WORD) & (before == _WORD) | marked
                state = state if joined else HASH_START
                while utf8:
                    state = (state ^ _SIGNED[utf8 & 0xFF]) * FNV_PRIME
                    utf8 >>= 8
            n += np.uint64((before != _SPACE) & (not joined))
            before = kind
        states[n] = state
        n += np.uint64(before != _SPACE)
        states[n] = EOS_STATE
        n += _ONE
        starts[d + 1] = n
    return n


@inlined
def _decode(values, position, end):
    """(code point of the character of several bytes that starts here, its bytes, next position)."""
    byte = values[position]
    length = np.uint64(1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0))
    if length == 1 or position + length > end:  # not UTF-8: a character of its own
        return np.uint32(byte), np.uint32(0), position + _ONE
    point, utf8 = np.uint32(byte) & np.uint32(0x7F >> length), np.uint32(byte)
    for k in range(_ONE, length):
        point = (point << np.uint32(6)) | np.uint32(values[position + k] & 0x3F)
        utf8 |= np.uint32(values[position + k]) << np.uint32(8 * k)
    return point, utf8, position + length


class LinearTable(NamedTuple):
    """What the kernels read, C numbers a row. Without cells the buckets hold single words too, but no </s>."""

    # float32 [slots, width >= C + 2]: hash state (8 bytes; 0 where a slot is empty), C numbers, ...
    cells: np.ndarray
    buckets: np.ndarray  # float32 [buckets, C]
    longest: int  # n-gram of the buckets

    def add(self, states: np.ndarray, starts: np.ndarray, sums: np.ndarray, rows: np.ndarray) -> None:
        """Write the sums and numbers of rows of a block's texts. Two columns are looked up as one complex number."""
        cells, buckets = self.cells.view(), self.buckets.view()
        cells.flags.writeable = buckets.flags.writeable = False  # kernels compile once a type
        words = cells[:, 2 : 2 + sums.shape[1]]
        if sums.shape[1] == 2:
            words, buckets = cells.view(np.complex64)[:, 1:2], buckets.view(np.complex64)
            sums = sums.view(np.complex128)
        look_up = _look_up_kernel(len(self.cells) > 0, self.longest)
        for k in range(sums.shape[1]):
            look_up(states, starts, cells.view(np.uint64), words[:, k], buckets[:, k], sums[:, k], rows)


def word_cells(words: Sequence[bytes], values: np.ndarray) -> np.ndarray:
    """Cells of words and their numbers (float32 [n, C]), at most half used, each within a cache line."""
    slots = 1 << max(2 * len(words) - 1, 1).bit_length()
    cells = np.zeros((slots, 1 << (values.shape[1] + 1).bit_length()), np.float32)
    states = word_states(pa.array(words, pa.large_binary()))
    cells[_take_slots(states, cells.view(np.uint64)), 2 : 2 + values.shape[1]] = values
    return cells


def write(path: Path | str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Path:
    """A model file (safetensors): a header, whose `kind` names the format, and arrays of float32.

    Equal models give equal bytes; the first array begins a cache line.
    """
    text = json.dumps(dict(header))  # one entry, because the library gives several in any order
    start = 8 + int.from_bytes(save(dict(arrays), {"model": text})[:8], "little")
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(dict(arrays), {"model": text + " " * (-start % 64)}))
    return Path(path)


def read(path: Path | str, kind: str, how: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(header, arrays) of a file of this kind, mapped; `how` says in errors what makes one."""
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
        raise TraitError(
            f"{path} is not a whole model file of the kit ({error}). Make it again with {how}."
        ) from None
    if header["kind"] != kind:
        raise TraitError(f"{path} holds '{header['kind']}', not '{kind}'. Make it again with {how}.")
    return header, arrays


def total(
    texts: Texts, tables: Sequence[LinearTable], normalisation: Normalisation = "none"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each table the sums of each text's rows (float64 [n, C]) and how many they are (int64 [n])."""
    array = text_array(texts)
    results = [
        (np.zeros((len(array), table.buckets.shape[1])), np.zeros(len(array), np.int64)) for table in tables
    ]
    for part, states, starts in token_blocks(array, normalisation):
        for table, (sums, rows) in zip(tables, results, strict=True):
            table.add(states, starts, sums[part], rows[part])
    return results


def count(texts: Texts, buckets: int, longest: int, normalisation: Normalisation = "none") -> np.ndarray:
    """int64 [buckets]: how often the texts' n-grams of 1 to `longest` words fall into each bucket."""
    counts = np.zeros(buckets, np.int64)
    for _, states, _ in token_blocks(text_array(texts), normalisation):
        words = states != EOS_STATE
        within = words
        for n in range(1, longest + 1):
            hashes = ngram_hashes(states, n)[within]
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

    Both are constants for the compiler: loops over them cost nothing, sums stay in registers. Sums are of single precision
    within 1,024 tokens: double would be slower, and more tokens would drift, as fastText's own do.
    """
    shortest, one, summed = 1 + with_words, np.uint64(1), np.uint64(1_024)  # unsigned: see `_scan`

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
                # the first token ends no longer n-gram
                until = min(part + (summed if part > begin else one), stop)
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
                        ngram += sign_extend(states[t - np.uint64(n)]) * factor
                        factor *= NGRAM_MULTIPLIER
                        if n + 1 >= shortest:
                            total += buckets[ngram % np.uint64(len(buckets))]
                sums[d] += total
                part = until
            rows[d] = found

    return _look_up


@kernel
def _take_slots(states, slot_states):
    slots = np.empty(len(states), np.int64)
    for entry in range(len(states)):
        slots[entry] = find_slot(states[entry], slot_states)
        slot_states[slots[entry], 0] = states[entry]
    return slots
