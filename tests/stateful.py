"""A small MCP server of our own that keeps a state, as a program over stdio: plain Python, so that it starts at once.

It speaks the newer era, or with `handshake` the older one, and knows nothing of the project around it. With `stubborn`
it does not end when its input does.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}}
TOOLS: dict[str, dict[str, Any]] = {
    "remember": TEXT,  # and what is remembered is told
    "recall": NOTHING,
    "fail": NOTHING,  # as a tool fails
    "refuse": NOTHING,  # by an error of the protocol
    "babble": NOTHING,  # an answer that is none
    "die": NOTHING,
    "hang": NOTHING,
    "shift": NOTHING,  # from now on `recall` is described otherwise, and no notice is given
    "ask": TEXT,  # the person, in mid-call
    "ask_late": NOTHING,  # the same, once the call is over
    "chatter": TEXT,  # so many notifications, once the call is over
    "grow": TEXT,  # the same, each of a megabyte
    "leave": NOTHING,  # by itself, once the call is over
    "hush": NOTHING,  # from the next list on it says nothing more, and goes on hearing
    "write_and_die": TEXT,  # a line into this file, and gone without an answer
}
FORM = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}


def definition(name: str) -> dict[str, Any]:
    return {"name": name, "description": f"It does {name}.", "inputSchema": TOOLS[name]}


class Server:
    """What it remembers, and who waits for an answer."""

    def __init__(self, *, modern: bool) -> None:
        self.modern = modern
        self.kept: list[str] = []
        self.answers: list[Any] = []
        self.shifted = False
        self.hushed = False
        self.waiting: dict[str, Any] = {}
        self.lock = threading.Lock()

    def say(self, message: dict[str, Any]) -> None:
        with self.lock:
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            sys.stdout.flush()

    def hear(self, message: dict[str, Any]) -> None:
        method, number = message.get("method"), message.get("id")
        if method is None:
            self.answered(message)
        elif number is None:
            pass
        elif method == "server/discover" and self.modern:
            about = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
            self.result(number, {**about, "ttlMs": 0, "cacheScope": "private"})
        elif method == "initialize" and not self.modern:
            info = {"name": "stateful", "version": "1"}
            about = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
            self.result(number, about)
        elif method == "tools/list":
            tools = [definition(name) for name in TOOLS]
            if self.shifted:
                tools[1]["description"] = "It does something else."
            self.result(number, {"tools": tools, **({"ttlMs": 0, "cacheScope": "private"} if self.modern else {})})
            if self.hushed:
                os.close(sys.stdout.fileno())
        elif method == "tools/call":
            self.call(number, message["params"]["name"], message["params"].get("arguments") or {}, message["params"])
        else:
            self.say({"id": number, "error": {"code": -32601, "message": "Method not found"}})

    def result(self, number: Any, result: dict[str, Any]) -> None:
        stamp = {"io.modelcontextprotocol/serverInfo": {"name": "stateful", "version": "1"}}
        more = {"resultType": "complete", "_meta": stamp} if self.modern else {}
        self.say({"id": number, "result": {**more, **result}})

    def told(self, number: Any, *, error: bool = False) -> None:
        said = {"kept": self.kept, "pid": os.getpid(), "answers": self.answers, "key": os.environ.get("STATE_KEY", "")}
        text = {"type": "text", "text": json.dumps(said)}
        self.result(number, {"content": [text], "structuredContent": said, "isError": error})

    def call(self, number: Any, name: str, arguments: dict[str, Any], params: dict[str, Any]) -> None:
        if name == "refuse":
            self.say({"id": number, "error": {"code": -32602, "message": "not now"}})
        elif name == "babble":
            self.result(number, {"content": "nothing of the kind"})
        elif name == "die":
            os._exit(3)
        elif name == "hang":
            pass
        elif name == "ask":
            self.ask(number, params)
        else:
            self.then(number, name, str(arguments.get("text", "")))

    def then(self, number: Any, name: str, text: str) -> None:
        """Answer, and do what comes after it."""
        if name == "remember":
            self.kept.append(text)
        if name == "write_and_die":
            with Path(text).open("a", encoding="utf-8") as file:
                file.write("written\n")
            os._exit(3)
        self.shifted = self.shifted or name == "shift"
        self.hushed = self.hushed or name == "hush"
        self.told(number, error=name == "fail")
        if name == "ask_late":
            self.elicit("late", None)
        if name in ("chatter", "grow"):
            data = "x" * (1_000_000 if name == "grow" else 10)
            for _ in range(int(text)):
                self.say({"method": "notifications/message", "params": {"level": "info", "data": data}})
        if name == "leave":
            os._exit(0)

    def ask(self, number: Any, params: dict[str, Any]) -> None:
        question = {"message": "Which colour?", "requestedSchema": FORM, "mode": "form"}
        if not self.modern:
            self.elicit("mid", number)
        elif params.get("inputResponses"):
            self.answers.append(params["inputResponses"]["q"])
            self.told(number)
        else:
            wanted = {"method": "elicitation/create", "params": question}
            self.result(number, {"resultType": "input_required", "inputRequests": {"q": wanted}, "requestState": "1"})

    def elicit(self, key: str, number: Any) -> None:
        self.waiting[key] = number
        question = {"message": "Which colour?", "requestedSchema": FORM}
        self.say({"id": key, "method": "elicitation/create", "params": question})

    def answered(self, message: dict[str, Any]) -> None:
        self.answers.append(message.get("result") or message.get("error"))
        number = self.waiting.pop(message["id"])
        if number is not None:
            self.told(number)


def main(*words: str) -> None:
    server = Server(modern="handshake" not in words)
    if "stubborn" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for line in sys.stdin:
        server.hear(json.loads(line))
    if "stubborn" in words:
        time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
