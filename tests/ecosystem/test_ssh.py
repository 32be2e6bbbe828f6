"""SSH servers and clients in this process on hotloop, with connections within connections."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import hotloop
import pytest


@dataclass
class Hosts:
    """A host that forwards connections, and one behind it."""

    folder: Path
    """Of the keys and of the client's configuration."""
    config: Path
    jump: asyncssh.SSHAcceptor
    target: asyncssh.SSHAcceptor
    forwarded: list[tuple[str, int]] = field(default_factory=list)
    """The address of each connection that the first was asked to forward."""
    served: list[asyncssh.SSHServerConnection] = field(default_factory=list)
    """The connections to the first."""

    def options(self) -> dict[str, object]:
        return {
            "username": "tester",
            "client_keys": [str(self.folder / "client")],
            "known_hosts": str(self.folder / "known_hosts"),
        }


async def answer(process: "asyncssh.SSHServerProcess[bytes]") -> None:
    """What the target runs as a command: `echo` sends all that comes, `wait` ends when it is told to."""
    if process.command == "echo":
        while data := await process.stdin.read(100_000):
            process.stdout.write(data)
            await process.stdout.drain()
        process.stderr.write(b"done")
        process.exit(3)
    else:
        await process.stdin.read()
        process.exit(0)


@contextlib.asynccontextmanager
async def hosts(folder: Path) -> AsyncIterator[Hosts]:
    keys = {name: asyncssh.generate_private_key("ssh-ed25519") for name in ("client", "jump", "target")}
    keys["client"].write_private_key(folder / "client")
    keys["client"].write_public_key(folder / "authorized")
    options = {"authorized_client_keys": str(folder / "authorized")}
    forwarded: list[tuple[str, int]] = []
    served: list[asyncssh.SSHServerConnection] = []

    class JumpHost(asyncssh.SSHServer):
        def connection_made(self, connection: asyncssh.SSHServerConnection) -> None:
            served.append(connection)

        def connection_requested(self, host: str, port: int, *_: object) -> bool:
            forwarded.append((host, port))
            return True

    jump = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=JumpHost, server_host_keys=[keys["jump"]], **options
    )
    target = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[keys["target"]],
        process_factory=answer,
        encoding=None,
        sftp_factory=True,
        **options,
    )
    trusted = [
        f"[127.0.0.1]:{acceptor.get_port()} {keys[name].export_public_key().decode()}"
        for name, acceptor in (("jump", jump), ("target", target))
    ]
    (folder / "known_hosts").write_text("".join(trusted))
    config = folder / "config"
    config.write_text(
        f"Host jump\n  Hostname 127.0.0.1\n  Port {jump.get_port()}\n"
        f"Host target behind\n  Hostname 127.0.0.1\n  Port {target.get_port()}\n"
        "Host behind\n  ProxyJump jump\n"
        f"Host *\n  User tester\n  IdentityFile {folder / 'client'}\n"
        f"  UserKnownHostsFile {folder / 'known_hosts'}\n"
    )
    try:
        yield Hosts(folder, config, jump, target, forwarded, served)
    finally:
        for acceptor in (target, jump):
            acceptor.close()
            await acceptor.wait_closed()


async def use(connection: asyncssh.SSHClientConnection, folder: Path) -> None:
    """Commands, many at a time, with much data both ways, and files."""

    async def echo(size: int) -> None:
        data = os.urandom(size)
        done = await connection.run("echo", input=data, encoding=None)
        assert (done.stdout, done.stderr, done.exit_status) == (data, b"done", 3)

    await asyncio.gather(*(echo(size) for size in range(1, 1_000_000, 100_000)))
    data = os.urandom(3_000_000)
    (folder / "sent").write_bytes(data)
    async with connection.start_sftp_client() as sftp:
        await sftp.put(str(folder / "sent"), str(folder / "there"))
        await sftp.get(str(folder / "there"), str(folder / "back"))
    assert (folder / "back").read_bytes() == data


@pytest.mark.software("asyncssh")
def test_jump_host(tmp_path: Path) -> None:
    """Commands and files through a jump host: by `ProxyJump`, by `tunnel=` with a name or a connection."""

    async def main() -> None:
        async with hosts(tmp_path) as found:
            address = ("127.0.0.1", found.target.get_port())
            config = [str(found.config)]
            async with asyncssh.connect("behind", config=config) as connection:
                await use(connection, tmp_path)
            assert found.forwarded == [address]

            async with asyncssh.connect("target", tunnel="jump", config=config) as connection:
                await use(connection, tmp_path)
            assert found.forwarded == [address] * 2

            jump_address = ("127.0.0.1", found.jump.get_port())
            async with asyncssh.connect(*jump_address, **found.options()) as jump:
                connections = [asyncssh.connect(*address, tunnel=jump, **found.options()) for _ in range(8)]
                async with contextlib.AsyncExitStack() as stack:
                    for connection in await asyncio.gather(*map(stack.enter_async_context, connections)):
                        assert (await connection.run("echo", input="text", check=False)).stdout == "text"
                # A tunnel ends, and the connection that it was in stays.
                async with jump.connect_ssh(*address, **found.options()) as connection:
                    await use(connection, tmp_path)
            assert found.forwarded == [address] * 11

    hotloop.run(main())


@pytest.mark.software("asyncssh")
def test_lost_jump_host(tmp_path: Path) -> None:
    """A jump host that ends, one that refuses, a target that nobody is at, a command that is cancelled."""

    async def main() -> None:
        async with hosts(tmp_path) as found:
            address = ("127.0.0.1", found.target.get_port())
            jump_address = ("127.0.0.1", found.jump.get_port())
            options = found.options()
            async with asyncssh.connect(*jump_address, **options) as jump:
                async with asyncssh.connect(*address, tunnel=jump, **options) as connection:
                    with pytest.raises(asyncio.TimeoutError):
                        await asyncio.wait_for(connection.run("wait"), 0.1)
                    assert (await connection.run("echo", input="after")).stdout == "after"
                with pytest.raises(asyncssh.ChannelOpenError):
                    await asyncssh.connect("127.0.0.1", 1, tunnel=jump, **options)
                # The target forwards nothing.
                async with asyncssh.connect(*address, **options) as target:
                    with pytest.raises(asyncssh.ChannelOpenError):
                        await asyncssh.connect(*jump_address, tunnel=target, **options)
                connection = await asyncssh.connect(*address, tunnel=jump, **options)
                waiting = asyncio.create_task(connection.run("wait"))
                await connection.run("echo", input="text")
                found.served[0].abort()
                assert (await asyncio.wait_for(waiting, 10)).exit_status is None
                await asyncio.wait_for(connection.wait_closed(), 10)
                with pytest.raises(asyncssh.ChannelOpenError, match="connection closed"):
                    await connection.run("echo", input="too late")

    hotloop.run(main())
