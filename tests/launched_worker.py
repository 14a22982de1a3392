"""What `accelerate launch` starts in tests: the training worker, also on a machine without GPUs.

accelerate enables FSDP for accelerators only. On such a machine its processes are given the kind MULTI_GPU, on the CPU and
with gloo, so that the code that shards, gathers and saves is the one that runs on GPUs.
"""

import os
import sys

import torch
from accelerate.state import DistributedType, PartialState

if not torch.cuda.is_available():
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)

from trait_kit.training import worker

if __name__ == "__main__":
    worker.main(sys.argv[1])
