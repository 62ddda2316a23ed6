"""The parent of the children: imports what they need once, then forks one whenever the server asks for it.

A fork shares the imported pages and takes milliseconds, so a child that was killed is back at once. The nursery itself
runs nothing: no thread is ever alive in it, which is what makes forking safe.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from loom4d.serve.settings import Settings, from_json

Role = Callable[[Settings, "Channel"], None]
LONGEST = 1 << 16  # bytes of a message


class Channel:
    """JSON messages, one a line, over a socket. It ends when the process at the other end does."""

    def __init__(self, link: socket.socket):
        self.link = link

    def say(self, message: dict[str, Any]) -> None:
        """Sends a message; that nobody listens any more is found out by reading."""
        try:
            self.link.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def heard(self) -> Iterator[dict[str, Any]]:
        """The other's messages until it has gone."""
        try:
            with self.link.makefile("rb") as lines:
                for line in lines:
                    yield json.loads(line)
        except OSError:
            return


def main(arguments: list[str]) -> None:
    """Runs until the server at the other end of the descriptor in `arguments` has gone."""
    link = socket.socket(fileno=int(arguments[0]))
    settings = from_json(arguments[1])
    os.dup2(2, 1)  # what libraries print belongs into the log
    channel = Channel(link)
    try:
        from loom4d.serve import look, worker

        for name in settings.extensions:
            importlib.import_module(name)
    except Exception as error:
        traceback.print_exc()
        channel.say({"failed": f"{type(error).__name__}: {error}"})
        return
    channel.say({"ready": True})
    tend(channel, settings, {"worker": worker.main, "looker": look.main})


def tend(channel: Channel, settings: Settings, roles: dict[str, Role]) -> None:
    """Forks a child for every name that comes with a socket for it; tells of births and deaths."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    chooser = selectors.DefaultSelector()
    chooser.register(channel.link, selectors.EVENT_READ)
    chooser.register(read, selectors.EVENT_READ)
    while True:
        for key, _ in chooser.select():
            if key.fileobj == read:
                os.read(read, 1024)
                for message in deaths():
                    channel.say(message)
                continue
            name, given, *_ = socket.recv_fds(channel.link, 64, 1)
            if not name:
                return
            role = name.decode().strip()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for inherited in (read, write, channel.link.detach()):
                    os.close(inherited)
                live(roles[role], settings, Channel(socket.socket(fileno=given[0])))
            os.close(given[0])
            channel.say({"born": role, "pid": pid})


def live(role: Role, settings: Settings, channel: Channel) -> None:
    """A child's whole life; it never returns into the nursery's loop."""
    status = 1
    try:
        role(settings, channel)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def deaths() -> Iterator[dict[str, Any]]:
    """The children that have ended since the last call, and how."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        yield {"died": pid, "how": signal.Signals(-code).name if code < 0 else f"exit code {code}"}


if __name__ == "__main__":
    main(sys.argv[1:])
