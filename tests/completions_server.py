"""The other face of the fake server, under the name that tests of backends know."""

from llm_server import CompletionsServer

__all__ = ["CompletionsServer"]
