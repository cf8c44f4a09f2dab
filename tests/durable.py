"""An upstream in a process of its own, which has written each request to disk before it answers.

`python -m tests.durable FILE` prints its port. A line of the file is a JSON object: `key` (the idempotency key) and
`target`. Ends with its standard input.
"""

import asyncio
import json
import os
import random
import sys
from typing import Any

SLOWEST_S = 0.03


async def serve(file: str) -> None:
    log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    pace = random.Random(7)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length") or 0))
                line: dict[str, Any] = {"key": headers.get("idempotency-key", ""), "body": body.decode()}
                line["target"] = first.split(" ")[1]
                os.write(log, json.dumps(line).encode() + b"\n")
                os.fsync(log)
                await asyncio.sleep(pace.uniform(0, SLOWEST_S))
                answer = json.dumps({"id": f"re_{line['key']}", "status": "succeeded", "said": line["body"]}).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    + f"Content-Length: {len(answer)}\r\n\r\n".encode()
                    + answer
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)  # what its connections still do is of no interest


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
