"""A real server of OpenAI's completions protocol on the loopback: a model's greedy texts and log-probabilities."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class CompletionsServer(ThreadingHTTPServer):
    """`mode`: well, no log-probabilities, garbage, hang, or refuses (HTTP 500)."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.mode, self.asked, self.keys, self.lock = "well", 0, set(), threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that gave up waiting is part of the tests."""

    def __enter__(self) -> CompletionsServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_error) -> None:
        self.shutdown()
        self.server_close()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        prompts = request["prompt"] if isinstance(request["prompt"][0], list) else [request["prompt"]]
        return {"choices": [{"index": n, **self._choice(prompt, request)} for n, prompt in enumerate(prompts)]}

    def _choice(self, prompt: list[int], request: dict[str, Any]) -> dict[str, Any]:
        tokens, text = list(prompt), ""
        for _ in range(request["max_tokens"]):
            tokens.append(int(self.model(torch.tensor([tokens])).logits[0, -1].argmax()))
            text = self.tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True)
            stop = next((stop for stop in request.get("stop") or [] if stop in text), None)
            if stop is not None or tokens[-1] == self.tokenizer.eos_token_id:
                text = text.split(stop)[0] if stop else text
                break
        if not (request.get("echo") and request.get("logprobs")) or self.mode == "no log-probabilities":
            return {"text": text, "logprobs": None}
        scores = self.model(torch.tensor([tokens])).logits[0, :-1].double().log_softmax(-1)
        names = [str(token) for token in tokens]
        given = [None, *(float(row[token]) for row, token in zip(scores, tokens[1:], strict=True))]
        best = [None, *({str(int(row.argmax())): float(row.max())} for row in scores)]
        return {"text": text, "logprobs": {"tokens": names, "token_logprobs": given, "top_logprobs": best}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked += 1
            server.keys.add(self.headers["Authorization"])
            body = json.dumps(server.answer(request)).encode() if server.mode != "hang" else b""
        if server.mode == "hang":
            time.sleep(600)
        if server.mode == "garbage":
            body = b'{"choices": [{"index": 0, "text"' if server.asked % 2 else b"<html>\x00\xff</html>"
        self.send_response(500 if server.mode == "refuses" or self.path != "/v1/completions" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
