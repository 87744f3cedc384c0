"""The real server and one daemon in a temporary directory, and nothing left of them at the end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The longest anything here may take; two busy cores need a part of it.
DEADLINE_S = 120


class Failed(Exception):
    """A check did not hold; the message says what was seen."""


def check(holds, *seen):
    """Fails with what was seen unless it holds."""
    if not holds:
        raise Failed(" ".join(text if isinstance(text, str) else repr(text) for text in seen))


def eventually(what, look, deadline_s=DEADLINE_S):
    """Looks until the answer is true, and answers it; fails with the last answer after the deadline."""
    end = time.monotonic() + deadline_s
    seen = None
    while time.monotonic() < end:
        try:
            seen = look()
            if seen:
                return seen
        except (Failed, OSError, subprocess.SubprocessError) as error:
            seen = error
        time.sleep(0.1)
    raise Failed(f"{what}: not within {deadline_s} s; last seen: {seen!r}")


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class World:
    """A temporary directory with a server, a daemon and repositories; a context manager."""

    def __init__(self, makima):
        self.makima = str(Path(makima).resolve())
        self.processes = []
        self.keep = False

    def __enter__(self):
        self.dir = Path(tempfile.mkdtemp(prefix="mk-interop-")).resolve()
        self.home = self.dir / "home"
        self.home.mkdir()
        self.address = f"127.0.0.1:{free_port()}"
        self.state = self.dir / "server"
        return self

    def __exit__(self, kind, value, trace):
        for _, process, _ in self.processes:
            process.kill()
            process.wait()
        self.sweep()
        if kind is None and not self.keep:
            shutil.rmtree(self.dir, ignore_errors=True)
        else:
            print(f"kept for a look: {self.dir}", file=sys.stderr)

    def env(self, **more):
        """The environment of everything here: a home of its own, no git identity, no proxy for loopback."""
        kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "NO_PROXY": "127.0.0.1",
            "RUST_BACKTRACE": "1",
            "MAKIMA_LOG": os.environ.get("MAKIMA_LOG", "info"),
            **more,
        }

    def start(self, name, *args, **more):
        """Starts `makima ARGS` with its output in a log."""
        log = self.dir / f"{name}.log"
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [self.makima, *map(str, args)],
                env=self.env(**more),
                cwd=self.dir,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.processes.append((name, process, log))
        return process

    def alive(self):
        """Fails if something that was started has ended."""
        for name, process, log in self.processes:
            check(process.poll() is None, f"{name} has ended with {process.returncode}:\n{tail(log)}")

    def print_logs(self):
        for name, _, log in self.processes:
            print(f"---- log of {name}\n{tail(log)}", file=sys.stderr)

    def key(self, kind):
        """A key that the server has written for this machine."""
        return (self.state / f"{kind}.key").read_text(encoding="utf-8").strip()

    def start_server(self, *more):
        """Starts the server, with more arguments, and waits until it listens."""
        self.start("server", "server", "--listen", self.address, "--state-dir", self.state, *more)
        host, port = self.address.split(":")

        def serving():
            self.alive()
            with socket.create_connection((host, int(port)), timeout=5):
                return all((self.state / f"{kind}.key").exists() for kind in ("admin", "owner", "daemon"))

        eventually("the server listens", serving)

    def machine(self, name):
        """Where a machine of its own has its home and its daemon's state; all that runs on it carries this path."""
        return self.dir / f"machine-{name}"

    def start_daemon(self, name, config, machine=False):
        """Starts a daemon, on a machine of its own if that is wanted, and waits until it is attached."""
        path = self.dir / f"{name}.toml"
        path.write_text(config, encoding="utf-8")
        state, more = self.dir / "daemon" / name, {}
        if machine:
            state, home = self.machine(name) / "state", self.machine(name) / "home"
            home.mkdir(parents=True, exist_ok=True)
            more = {"HOME": str(home)}
        self.start(
            name, "daemon", "run", "--name", name, "--server", f"http://{self.address}",
            "--state-dir", state, "--key-file", self.state / "daemon.key", "--config", path, **more,
        )

        def attached():
            self.alive()
            return [daemon for daemon in self.json("daemon", "list") if daemon["name"] == name and daemon["status"] == "ATTACHED"]

        return eventually(f"daemon {name} is attached", attached)[0]

    def stop_machine(self, name):
        """`kill -9` of everything that runs on a machine: daemon, shims, agents."""
        for _, process, _ in (found for found in self.processes if found[0] == name):
            process.kill()
            process.wait()
        self.processes = [found for found in self.processes if found[0] != name]
        self.sweep(self.machine(name))

    def lose_machine(self, name):
        """The machine is gone for ever, with its home and all that its daemon kept."""
        self.stop_machine(name)
        shutil.rmtree(self.machine(name))

    def cli(self, *args, timeout=DEADLINE_S):
        """Runs `makima ARGS` with the owner's key."""
        return subprocess.run(
            [self.makima, *map(str, args)],
            env=self.env(MAKIMA_SERVER=f"http://{self.address}", MAKIMA_KEY_FILE=str(self.state / "owner.key")),
            cwd=self.dir,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def json(self, *args):
        """The objects that `makima ARGS --json` writes, one a line; fails if the command fails."""
        done = self.cli(*args, "--json")
        check(done.returncode == 0, f"makima {' '.join(map(str, args))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def repository(self, name):
        """A git repository with one commit on `main`."""
        path = self.dir / name
        path.mkdir()
        self.git(path, "init", "--quiet", "--initial-branch=main")
        (path / "README.md").write_text("# A repository for a test\n", encoding="utf-8")
        self.git(path, "add", "README.md")
        self.git(path, "-c", "user.name=Test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "first")
        return path

    def bare(self, name):
        """The same as a bare repository, for a URL."""
        self.git(self.dir, "clone", "--quiet", "--bare", self.repository(f"{name}-made"), self.dir / f"{name}.git")
        return self.dir / f"{name}.git"

    def git(self, path, *args):
        """Runs git; answers its standard output."""
        done = subprocess.run(
            ["git", *map(str, args)], cwd=path, env=self.env(GIT_CONFIG_NOSYSTEM="1"), capture_output=True, text=True, check=False
        )
        check(done.returncode == 0, f"git {' '.join(map(str, args))}: {done.stderr}")
        return done.stdout

    def sweep(self, mark=None):
        """Kills every process that carries this directory (or that one) in its environment, arguments or working directory."""
        mark = str(mark or self.dir).encode()
        end = time.monotonic() + 10
        while time.monotonic() < end:
            found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if carries(pid, mark)]
            if not found:
                return
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.02)


def carries(pid, mark):
    """The process is alive and not this one, and holds the mark."""
    if pid == os.getpid():
        return False
    proc = Path(f"/proc/{pid}")
    try:
        if proc.joinpath("stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2][:1] in ("Z", "X", ""):
            return False
        return any(mark in proc.joinpath(name).read_bytes() for name in ("cmdline", "environ")) or os.readlink(
            proc / "cwd"
        ).encode().startswith(mark)
    except OSError:
        return False


def tail(path, lines=100):
    """The end of a log."""
    try:
        return "\n".join(Path(path).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError as error:
        return str(error)
