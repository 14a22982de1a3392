"""The process that trains: `python -m trait_kit.training.worker job.json`, one of them or many.

One process trains all the stages of its job one after another: imports cost seconds, a stage of the demo costs a minute.
Each stage reads its start from disk and sets its own seeds, so its result does not depend on the process it happens to run
in; and each result is renamed into place whole. Lines that begin with "> " are for the user.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from trait_kit.engine.files import TraitError, atomic_path, digest, read_json, write_json

USER_ERROR = 3  # exit status
USER_MESSAGE = (
    "! "  # a line that begins so holds, as JSON, what to tell the user; a file could not be written on a full disk
)
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def main(arguments: list[str]) -> int:
    if "--watch" in arguments:
        _exit_with_parent()
    job = read_json(arguments[0])
    try:
        run(job)
    except Exception as error:
        if message := _for_the_user(error, job):
            print(f"\n{USER_MESSAGE}{json.dumps(message)}", flush=True)
            return USER_ERROR
        raise
    return 0


def run(job: dict[str, Any]) -> None:
    """Prepare every stage of `job` first (so that bad input stops it before any training), then train them in order."""
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    if job["prepare"]:
        _check_model(job, AutoConfig.from_pretrained(job["base"]).get_text_config(), tokenizer)
        _prepare(job, tokenizer)
    missing = [stage for stage in job["stages"] if stage["name"] in job["train"]]
    for stage in missing:
        stage |= read_json(Path(job["work"]) / stage["name"] / "prepared.json")
    if not missing:
        return
    from trait_kit.training.checkpoints import STOP
    from trait_kit.training.fit import check_room

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    check_room(job, missing)
    job["tokens_left"] = sum(stage["tokens"] for stage in missing)
    for stage in missing:
        train_stage(job, stage, tokenizer)


def _check_model(job: dict[str, Any], config: Any, tokenizer: Any) -> None:
    context_length, longest = job["params"]["context_length"], getattr(config, "max_position_embeddings", None)
    if longest and context_length > longest:
        raise TraitError(
            f"training: context_length ({context_length:,}) is longer than {job['params']['base_model']} can read "
            f"({longest:,} tokens). Lower context_length, or choose another base_model."
        )
    if len(tokenizer) > config.vocab_size:
        raise TraitError(
            f"training: the tokenizer of {job['params']['base_model']} knows {len(tokenizer):,} tokens and its model only "
            f"{config.vocab_size:,}: they are not of one model. Put the tokenizer's files beside the weights they belong to."
        )


def _prepare(job: dict[str, Any], tokenizer: Any) -> None:
    """Tokenise each source once; write every stage's plan of rows and its accounting under <work>/<stage>/."""
    from trait_kit.training import fine_tuning
    from trait_kit.training.held_out import encode

    params, work = job["params"], Path(job["work"])
    for pairs in read_json(job["held_out"]).values():
        encode([pair[:2] for pair in pairs], tokenizer, params["context_length"])  # an error is raised before any training
    for stage in job["stages"]:
        folder = work / stage["name"]
        if (folder / "prepared.json").exists():
            continue
        if stage.get("epochs"):
            fine_tuning.prepare(read_json(job["problems"]), tokenizer, stage, params, folder)
            continue
        _prepare_stage(job, stage, tokenizer, folder)


def _prepare_stage(job: dict[str, Any], stage: dict[str, Any], tokenizer: Any, folder: Path) -> None:
    from trait_kit.engine.packing import plan_rows
    from trait_kit.training.rows import PIECE, mean_attended, piece_records, save_rows
    from trait_kit.training.sampling import draw, shares

    params = job["params"]
    sources = list(stage["texts"])
    stores = [_store(job, source, stage["texts"][source], tokenizer) for source in sources]
    available = {source: store.tokens for source, store in zip(sources, stores, strict=True)}
    consumed = Counter(_after_parent(job, stage))
    accounting, parts = [], []
    for number, part in enumerate(stage["parts"]):
        chosen = shares(
            part["mixture"], part["tokens"], consumed,
            replay=part["replay"], available=available, max_epochs=params["max_epochs"],
        )  # fmt: skip
        drawn = []
        for share in chosen:
            index = sources.index(share.source)
            _check_size(share, stores[index], part["tokens"], stage["tokens_per_batch"])
            drawn.append((index, *draw(stores[index].lengths, share.start, share.tokens, params["seed"])))
            consumed[share.source] += share.tokens
            place = stage["place"] + (0 if stage["together"] else number)
            epochs = share.tokens / available[share.source]
            row = {"source": share.source, "tokens": share.tokens, "epochs": epochs, "available": available[share.source]}
            accounting.append({"stage": place, **row})
        store = np.concatenate([np.full(len(pieces[0]), index, np.uint8) for index, *pieces in drawn])
        parts.append([store, *(np.concatenate(columns) for columns in list(zip(*drawn, strict=True))[1:])])
    if stage["together"]:
        parts = [[np.concatenate(columns) for columns in zip(*parts, strict=True)]]
        accounting = _summed(accounting)
    pieces, row_ends, cut, documents = np.zeros(0, PIECE), np.zeros(0, np.int64), 0, 0
    for store, document, start, length in parts:
        plan = plan_rows(length, params["context_length"], seed=params["seed"])
        chosen = plan.document
        packed = piece_records(stores, store[chosen], document[chosen], start[chosen] + plan.start)
        packed["length"] = plan.length
        row_ends = np.concatenate([row_ends, len(pieces) + plan.row_ends])
        pieces, cut, documents = np.concatenate([pieces, packed]), cut + plan.n_cut, documents + len(length)
    save_rows(folder, pieces, row_ends)
    report = {
        "accounting": accounting,
        "consumed": dict(consumed),
        "efficiency": float(pieces["length"].sum()) / (len(row_ends) * params["context_length"]),
        "documents": documents,
        "cut": cut,
        "mean_attended": mean_attended(pieces),
        "stores": [os.path.relpath(store.folder, folder) for store in stores],
    }
    write_json(folder / "prepared.json", report)
    _say(
        f"Packed {stage['mixture']}: {documents:,} documents, {cut:,} of them cut, into {len(row_ends):,} rows of "
        f"{params['context_length']:,} tokens, {report['efficiency']:.2%} full."
    )


def _store(job: dict[str, Any], source: str, texts: str, tokenizer: Any) -> Any:
    """The tokens of a source, made on first use; known by the tokenizer and the texts."""
    from trait_kit.training.tokens import tokenise

    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else job["base_digest"]
    key = digest([rules, tokenizer.eos_token_id, tokenizer.bos_token_id, texts])
    folder = Path(job["tokens_dir"]) / f"{source}-{key[:12]}"
    new, began = not (folder / "store.json").exists(), time.monotonic()
    store = tokenise(Path(job["texts"][texts]), tokenizer, folder)
    if not store.tokens:
        raise TraitError(f"training: the source '{source}' has no text. Look at the step that writes it, or leave it out.")
    if new:
        seconds = time.monotonic() - began
        empty = f", {store.empty:,} empty texts left out" if store.empty else ""
        _say(
            f"Tokenised {source}: {store.tokens:,} tokens in {len(store.lengths):,} documents{empty}, "
            f"{store.tokens / seconds:,.0f} tokens/s; {store.rule}."
        )
    return store


def _after_parent(job: dict[str, Any], stage: dict[str, Any]) -> dict[str, int]:
    """How much of each stream the stages before have used up."""
    if not stage["parent"]:
        return {}
    prepared = Path(job["work"]) / stage["parent"] / "prepared.json"
    done = Path(job["stages_dir"]) / stage["parent"] / "stage.json"
    return read_json(done if done.exists() else prepared)["consumed"]


def _check_size(share: Any, store: Any, stage_tokens: int, tokens_per_batch: int) -> None:
    needed = tokens_per_batch * share.tokens // stage_tokens
    if store.tokens < needed:
        raise TraitError(
            f"training: the source '{share.source}' has {store.tokens:,} tokens in {len(store.lengths):,} documents, less "
            f"than its part of one batch ({needed:,} tokens). Give it more text, or lower tokens_per_batch."
        )


def _summed(accounting: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a source, where several parts are read as one stage."""
    rows: dict[str, dict[str, Any]] = {}
    for row in accounting:
        known = rows.setdefault(row["source"], {**row, "tokens": 0, "epochs": 0.0})
        known["tokens"] += row["tokens"]
        known["epochs"] += row["epochs"]
    return list(rows.values())


def train_stage(job: dict[str, Any], stage: dict[str, Any], tokenizer: Any) -> None:
    """Train one stage from its parent's weights and put model, log and report into place in one rename.

    Where memory runs out, it goes on from the last checkpoint with smaller micro-batches; the batch stays what it is.
    """
    from trait_kit.training.checkpoints import last_checkpoint
    from trait_kit.training.trainer import build_trainer, halve_micro_batch, log_rows, out_of_memory

    began = time.monotonic()
    work = Path(job["work"]) / stage["name"]
    while True:
        checkpoint = last_checkpoint(work, stage)
        trainer = build_trainer(job, stage, tokenizer, work)
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
            break
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        _say(halve_micro_batch(trainer, work))  # outside the handler: the error holds the tensors that must go
        trainer.release()
        del trainer
        gc.collect()
    trainer.raise_if_stopped()
    target = Path(job["stages_dir"]) / stage["name"]
    if trainer.accelerator.is_main_process:
        with atomic_path(target) as folder:
            trainer.save_whole(folder / "model")
            tokenizer.save_pretrained(folder / "model")
            write_json(folder / "log.json", log_rows(trainer.state.log_history, stage))
            seconds = {"seconds": time.monotonic() - began, "resumed": checkpoint is not None}
            write_json(folder / "stage.json", {**stage, **trainer.report(seconds["seconds"]), **seconds})
    else:
        trainer.save_whole(work / "model")  # sharded weights are gathered by all processes; the first one writes them
    trainer.accelerator.wait_for_everyone()
    job["tokens_left"] -= stage["tokens"]
    if trainer.accelerator.is_main_process:
        shutil.rmtree(work, ignore_errors=True)
    trainer.release()


def _for_the_user(error: Exception, job: dict[str, Any]) -> str:
    """What to tell the user; nothing where it is a bug."""
    if isinstance(error, TraitError):
        return str(error)
    if isinstance(error, MemoryError):
        return (
            "training: memory ran out while texts were read or packed. Free some, and run again: finished shards are kept."
        )
    if "No space left" in str(error) or shutil.disk_usage(job["work"]).free < 2**20:
        return (
            f"training: no room on the disk of {job['work']}. Free some space and run again: finished stages and whole "
            f"checkpoints are kept. ({type(error).__name__}: {error})"
        )
    return ""


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"> {line}", flush=True)


def _exit_with_parent() -> None:
    """End this process at once when the driver is gone, however it went.

    The driver holds the other end of our standard input and writes nothing to it, so end-of-file means that it has died.
    Unlike a parent-death signal this also works through `accelerate launch`, outside Linux, and where the driver's
    *thread* that started us ends before the driver does.
    """

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
