"""The child process that trains: `python -m trait_kit.training.worker job.json`.

A process of its own, so that the notebook keeps neither the memory nor the libraries of a training run, and so that the
same command serves one CPU or many GPUs (`accelerate launch`). One process trains all the stages of its job one after
another: imports cost seconds, a stage of the demo costs a minute. Each stage reads its start from disk and sets its own
seeds, so its result does not depend on the process it happens to run in; and each result is renamed into place whole.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from trait_kit.errors import TraitError
from trait_kit.files import atomic_path, read_json, write_json

USER_ERROR = 3  # exit status; the message is in <work>/error.json


def main(arguments: list[str]) -> int:
    if "--watch" in arguments:
        _exit_with_parent()
    job = read_json(arguments[0])
    try:
        run(job)
    except TraitError as error:
        write_json(Path(job["work"]) / "error.json", {"message": str(error)})
        return USER_ERROR
    return 0


def run(job: dict[str, Any]) -> None:
    """Prepare every stage of `job` first (so that bad input stops it before any training), then train them in order."""
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    job["started"] = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    if job["prepare"]:
        config = AutoConfig.from_pretrained(job["base"])
        _check_context(job, getattr(config.get_text_config(), "max_position_embeddings", None))
        _prepare(job, tokenizer)
    missing = [stage for stage in job["stages"] if stage["name"] in job["train"]]
    for stage in missing:
        stage |= read_json(Path(job["work"]) / stage["name"] / "prepared.json")
    job["tokens_left"] = sum(stage["tokens"] for stage in missing)
    for stage in missing:
        train_stage(job, stage, tokenizer)


def _check_context(job: dict[str, Any], longest: int | None) -> None:
    context_length = job["params"]["context_length"]
    if longest and context_length > longest:
        raise TraitError(
            f"training: context_length ({context_length:,}) is longer than {job['params']['base_model']} can read "
            f"({longest:,} tokens). Lower context_length, or choose another base_model."
        )


def _prepare(job: dict[str, Any], tokenizer: Any) -> None:
    """Tokenise each text once; write every stage's packed rows and its accounting under <work>/<stage>/."""
    import pyarrow.parquet as pq

    from trait_kit.training import fine_tuning
    from trait_kit.training.held_out import encode
    from trait_kit.training.packing import pack
    from trait_kit.training.sampling import Share, check_size, draw, tokenise

    params = job["params"]
    for pairs in read_json(job["held_out"]).values():
        encode(pairs, tokenizer, params["context_length"])
    tokens: dict[str, list[np.ndarray]] = {}
    planned = []
    for stage in job["stages"]:
        for item in stage["shares"]:
            key = stage["texts"][item["source"]]
            if key not in tokens:
                texts = pq.read_table(job["texts"][key])["text"].to_pylist()
                tokens[key] = tokenise(texts, tokenizer)
            available = check_size(Share(**item), tokens[key], stage["tokens"], params["tokens_per_batch"])
            planned.append((stage, Share(**item), key, available))
    for stage in job["stages"]:
        folder = Path(job["work"]) / stage["name"]
        if (folder / "prepared.json").exists():
            continue
        if stage.get("epochs"):
            fine_tuning.prepare(read_json(job["problems"]), tokenizer, params, folder)
            continue
        pieces, accounting = [], []
        for share, key, available in ((item[1], item[2], item[3]) for item in planned if item[0] is stage):
            pieces += draw(tokens[key], share.start, share.tokens, params["seed"])
            accounting.append(
                {"source": share.source, "tokens": share.tokens, "epochs": share.tokens / available, "available": available}
            )
        rows = pack(pieces, params["context_length"], tokenizer.eos_token_id, seed=params["seed"])
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "input_ids.npy", rows.input_ids)
        np.save(folder / "position_ids.npy", rows.position_ids)
        report = {"accounting": accounting, "efficiency": rows.efficiency, "documents": len(pieces), "cut": rows.n_cut}
        write_json(folder / "prepared.json", report)


def train_stage(job: dict[str, Any], stage: dict[str, Any], tokenizer: Any) -> None:
    """Train one stage from its parent's weights and put model, log and report into place in one rename."""
    from trait_kit.training.trainer import build_trainer, last_checkpoint, log_rows

    began = time.monotonic()
    work = Path(job["work"]) / stage["name"]
    checkpoint = last_checkpoint(work)
    trainer = build_trainer(job, stage, tokenizer, work)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.accelerator.is_main_process:
        with atomic_path(Path(job["stages_dir"]) / stage["name"]) as folder:
            trainer.save_model(str(folder / "model"))
            (folder / "model" / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
            tokenizer.save_pretrained(folder / "model")
            write_json(folder / "log.json", log_rows(trainer.state.log_history, stage))
            seconds = {"seconds": time.monotonic() - began, "resumed": checkpoint is not None}
            write_json(folder / "stage.json", {**stage, **trainer.report(), **seconds})
    else:
        trainer.save_model(str(work / "model"))  # sharded weights are gathered by all processes; rank 0 writes them
    trainer.accelerator.wait_for_everyone()
    job["tokens_left"] -= stage["tokens"]
    if trainer.accelerator.is_main_process:
        shutil.rmtree(work, ignore_errors=True)
    trainer.release()


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
