#!/usr/bin/env python3
"""A model on loopback for the real Claude Code CLI: it speaks the streaming Messages API from a script.

    claude --ANTHROPIC_BASE_URL=http://127.0.0.1:PORT/<mode>--> POST /<mode>/v1/messages

The mode is the first part of the path, so that one server plays all of them at once:

    ok       answers the prompt with one Bash call (the `sh` block of the prompt), then with a text
    limit    429, as an account at its usage limit gets it: rate_limit_error, retry-after, the unified
             rate-limit headers with the time of the reset
    busy     429 without those headers: a rate limit that a retry may pass
    auth     401 authentication_error
    crash    closes the connection in the middle of the first answer
    slow     as `ok`, but the text comes only after `--slow-seconds`
    long-*   three answers, whoever asks for them: commits one file and leaves another (FIRST); when the server is told
             to (`go_on`), writes a third (SECOND); then a text. Requests are kept whole (`asked`)

Only the standard library. `--log FILE` keeps one JSON line a request. Prints `listening on 127.0.0.1:PORT`.
"""

import argparse
import json
import re
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What the script says that it used; the interop driver looks for exactly these on the attempt.
INPUT_TOKENS = 1200
OUTPUT_TOKENS = 34
CACHE_READ_TOKENS = 500
CACHE_WRITE_TOKENS = 70
FINAL_TEXT = "The file is written."
RESET_AFTER_S = 3600
FIRST = """printf 'committed\\n' > committed.txt && git add committed.txt &&
git -c user.name=Agent -c user.email=agent@localhost commit --quiet -m 'half of the work'
printf 'uncommitted\\n' > uncommitted.txt; git rev-parse HEAD"""
SECOND = "printf 'second\\n' > second.txt"


def text_of(content):
    """The text of a message's content, which is a string or a list of blocks."""
    if isinstance(content, str):
        return content
    return "\n".join(block.get("text", "") for block in content if block.get("type") == "text")


def tool_results(messages):
    """What tools have answered in the conversation."""
    return [
        block
        for message in messages
        if isinstance(message["content"], list)
        for block in message["content"]
        if block.get("type") == "tool_result"
    ]


def command_of(messages):
    """What the prompt wants to be run: its first `sh` block."""
    for message in messages:
        if message["role"] == "user":
            found = re.search(r"```sh\n(.*?)```", text_of(message["content"]), re.DOTALL)
            if found:
                return found.group(1).strip()
    return "printf 'by the model\\n' > model.txt"


class Model(BaseHTTPRequestHandler):
    """One connection of the CLI."""

    protocol_version = "HTTP/1.1"
    server_version = "scripted-model"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        """The CLI looks whether somebody is there."""
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self):
        self.problem(404, "not_found_error", f"no {self.path} here")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.split("?")[0]
        mode = path.strip("/").split("/")[0]
        try:
            request = json.loads(body)
        except ValueError:
            return self.problem(400, "invalid_request_error", "not JSON")
        self.server.note({
            "path": self.path,
            "model": request.get("model"),
            "stream": request.get("stream"),
            "tools": [tool.get("name") for tool in request.get("tools", [])],
            "messages": len(request.get("messages", [])),
        })
        if path.endswith("/v1/messages/count_tokens"):
            return self.answer(200, {"input_tokens": INPUT_TOKENS})
        if not path.endswith("/v1/messages"):
            return self.problem(404, "not_found_error", f"no {self.path} here")
        if mode == "limit":
            return self.limit()
        if mode == "busy":
            return self.problem(429, "rate_limit_error", "Number of requests has exceeded your rate limit")
        if mode == "auth":
            return self.problem(401, "authentication_error", "invalid x-api-key")
        is_long = mode.startswith("long-")
        if mode not in ("ok", "slow", "crash") and not is_long:
            return self.problem(404, "not_found_error", f"no mode {mode!r} here")
        messages = request["messages"]
        # The CLI also asks for titles and the like, without tools.
        command = None
        if any(tool.get("name") == "Bash" for tool in request.get("tools", [])):
            answered = len(tool_results(messages))
            if is_long:
                self.server.keep(mode, messages)
                if answered == 1:
                    self.server.wait(mode)
                command = [FIRST, SECOND, None][min(answered, 2)]
            elif not answered:
                command = command_of(messages)
        if command:
            block = {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": "Bash", "input": {}}
            given = json.dumps({"command": command, "description": "does what the plan says"})
            events = self.message(request, block, {"type": "input_json_delta", "partial_json": given}, "tool_use")
        else:
            if mode == "slow":
                time.sleep(self.server.slow_seconds)
            block = {"type": "text", "text": ""}
            events = self.message(request, block, {"type": "text_delta", "text": FINAL_TEXT}, "end_turn")
        self.events(events, cut=mode == "crash")

    def limit(self):
        """What an account at its limit gets."""
        reset = int(time.time()) + RESET_AFTER_S
        self.problem(
            429,
            "rate_limit_error",
            "This request would exceed your account's rate limit. Please try again later.",
            {
                "retry-after": str(RESET_AFTER_S),
                "anthropic-ratelimit-unified-status": "rejected",
                "anthropic-ratelimit-unified-reset": str(reset),
                "anthropic-ratelimit-unified-representative-claim": "five_hour",
                "anthropic-ratelimit-unified-5h-status": "rejected",
                "anthropic-ratelimit-unified-5h-reset": str(reset),
                "anthropic-ratelimit-unified-5h-utilization": "1.0",
                "anthropic-ratelimit-unified-overage-status": "rejected",
                "anthropic-ratelimit-unified-overage-disabled-reason": "org_level_disabled",
            },
        )

    def message(self, request, block, delta, stop_reason):
        """The events of one message with one block."""
        usage = {
            "input_tokens": INPUT_TOKENS,
            "output_tokens": 1,
            "cache_read_input_tokens": CACHE_READ_TOKENS,
            "cache_creation_input_tokens": CACHE_WRITE_TOKENS,
        }
        start = {
            "id": f"msg_{uuid.uuid4().hex[:24]}",
            "type": "message",
            "role": "assistant",
            "model": request.get("model"),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        yield "message_start", {"message": start}
        yield "content_block_start", {"index": 0, "content_block": block}
        yield "content_block_delta", {"index": 0, "delta": delta}
        yield "content_block_stop", {"index": 0}
        yield "message_delta", {
            "delta": {"stop_reason": stop_reason, "stop_sequence": None},
            "usage": {**usage, "output_tokens": OUTPUT_TOKENS},
        }
        yield "message_stop", {}

    def events(self, events, cut):
        """Sends server-sent events as chunks; `cut` ends the connection after the second."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("request-id", f"req_{uuid.uuid4().hex[:24]}")
        self.end_headers()
        for number, (name, data) in enumerate(events):
            if cut and number == 2:
                self.close_connection = True
                return
            piece = f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def problem(self, code, kind, message, headers=None):
        self.answer(code, {"type": "error", "error": {"type": kind, "message": message}}, headers)

    def answer(self, code, body, headers=None):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("request-id", f"req_{uuid.uuid4().hex[:24]}")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """The server with its log."""

    daemon_threads = True

    def __init__(self, port=0, log=None, slow_seconds=2.0):
        super().__init__(("127.0.0.1", port), Model)
        self.log = log
        self.slow_seconds = slow_seconds
        self.lock = threading.Condition()
        self.kept = {}
        self.told = set()

    def handle_error(self, request, client_address):
        """Agents are killed here while they wait for an answer; anything else is told."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def keep(self, mode, messages):
        with self.lock:
            self.kept.setdefault(mode, []).append(messages)

    def asked(self, mode):
        """The conversations of a mode's requests so far, oldest first."""
        with self.lock:
            return list(self.kept.get(mode, []))

    def wait(self, mode):
        """Holds an answer until it is wanted."""
        with self.lock:
            self.lock.wait_for(lambda: mode in self.told)

    def go_on(self, mode):
        """Lets the answers go that are held."""
        with self.lock:
            self.told.add(mode)
            self.lock.notify_all()

    def note(self, entry):
        if self.log:
            with self.lock, open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log")
    parser.add_argument("--slow-seconds", type=float, default=2.0)
    given = parser.parse_args()
    server = Server(given.port, given.log, given.slow_seconds)
    print(f"listening on 127.0.0.1:{server.server_address[1]}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
