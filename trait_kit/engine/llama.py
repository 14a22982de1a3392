"""A language model on this machine's processor: llama.cpp behind the OpenAI protocol, as a program of its own.

`python -m trait_kit.engine.llama MODEL.gguf NAME --port PORT` answers on loopback until it is ended. A process of its own
because llama.cpp ends its process on some errors, and because its threads must wait without spinning beside torch's.
"""

import argparse
import os
import sys
import threading

from trait_kit.engine.files import TraitError

REQUESTS_AT_ONCE = 4  # twice the tokens a second of one alone, on two cores; eight bring no more
_CONTEXT = 4_096  # tokens of one request and its answer


def command(model: str, name: str) -> list[str]:
    """What starts the server, for `engine.child`."""
    try:
        import xllamacpp  # noqa: F401
    except ImportError:
        raise TraitError("A local teacher needs llama.cpp: pip install 'trait-kit[local]'.") from None
    return [sys.executable, "-P", "-m", "trait_kit.engine.llama", model, name]


def _serve() -> None:
    import xllamacpp

    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("name")
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.model_alias = given.model, {given.name}
    settings.hostnames, settings.port = ["127.0.0.1"], given.port
    settings.n_parallel, settings.n_ctx = REQUESTS_AT_ONCE, REQUESTS_AT_ONCE * _CONTEXT
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    _serve()
