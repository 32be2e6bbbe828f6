"""Serve the example application through uvicorn on hotloop."""

import argparse
import contextlib
import socket
import sys
from types import FrameType

import uvicorn
from app import Application


class Server(uvicorn.Server):
    """Prints the address once it serves, and ends the application's open streams when it stops."""

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self.application = application

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or []:
            host, port = listening.getsockname()[:2]
            print(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.application.stopping = True
        super().handle_exit(sig, frame)


def main() -> int:
    options = parse_arguments()
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listening = socket.create_server((options.host, options.port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror.partition(" (")[0]
        print(f"Cannot listen on {options.host} port {options.port}: {reason}", file=sys.stderr)
        return 1

    application = Application()
    config = uvicorn.Config(
        application,
        loop="hotloop:new_event_loop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
    )
    # After its shutdown, uvicorn raises the signal that stopped it again.
    with contextlib.suppress(KeyboardInterrupt):
        Server(config, application).run(sockets=[listening])
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port, default=8000, help="port to listen on (default: %(default)s)")
    return parser.parse_args()


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise ValueError
    return number


if __name__ == "__main__":
    sys.exit(main())
