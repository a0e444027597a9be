"""The bare routes: FastAPI and uvicorn as they come, on a free port. A process, until SIGTERM.

    python benchmarks/bare_http.py [INDEX PROJECT MEMORY]

`/constant` returns a constant. With INDEX, `/read` gives a page of 20 rollouts out of that file by one SQL statement,
without a check, a cursor or an error of its own: what a read costs at least on top of a route.
`benchmarks/lookup.py` starts it; its first line on stderr ends with its address.
"""

from __future__ import annotations

import socket
import sqlite3
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

PAGE = """SELECT rollout, kind, original, subject, runs, updated_at, moved_at FROM rollouts
          WHERE project = ? AND memory = ? ORDER BY place DESC, rollout LIMIT 20"""


def made(index: str = "", *name: str) -> FastAPI:
    app = FastAPI()

    @app.get("/constant")
    async def constant() -> dict[str, Any]:
        return {"constant": True}

    if index:
        connection = sqlite3.connect(index, check_same_thread=False)

        @app.get("/read")
        async def read() -> Response:
            return JSONResponse(connection.execute(PAGE, name).fetchall())

    return app


def main(*arguments: str) -> None:
    # With its protocol, as `uvicorn --port` would have it: without it asyncio sets no TCP_NODELAY.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    print(f"serves http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    config = uvicorn.Config(made(*arguments), lifespan="off", log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
