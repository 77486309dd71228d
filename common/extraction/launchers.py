"""Who makes the parts: this process, one process for every GPU, or the actors of a Ray cluster.

Launchers that start the same command several times (torchrun, job arrays) need nothing here but `Share`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from common.encoder import Encoder, Output, resolve_device
from common.errors import UserError
from common.extraction.claims import Claims
from common.extraction.clip_list import ClipList
from common.extraction.runner import WAIT_S, Threads, make_parts, make_these
from common.extraction.settings import ExtractionSettings
from common.extraction.share import Share
from common.extraction.work import Work
from common.files import PROJECT_ROOT
from common.parts import Slice
from common.progress import progress_bar

# Loads the encoder on a device, with the outputs to extract.
Load = Callable[[torch.device], tuple[Encoder, Sequence[Output]]]
INSTALL_RAY = "pip install ray==2.60.0"
BATCHES = 8  # that an actor is handed, at least: the more, the better they end together


class LauncherError(UserError):
    """The parts cannot be made by what was asked for."""


@dataclass(frozen=True)
class ThisProcess:
    """Makes the parts in this process."""

    encoder: Encoder
    outputs: Sequence[Output]
    threads: Threads

    def settings(self, clips: ClipList) -> ExtractionSettings:
        """How the parts are made."""
        return ExtractionSettings.of(clips, self.encoder, self.outputs)

    def make(self, work: Work, share: Share, claims: Claims) -> int:
        """Make every part that is missing; returns how many clips were embedded, as far as known."""
        return make_parts(work, self.encoder, self.outputs, share, self.threads, claims)


@dataclass(frozen=True)
class OnDevices(ThisProcess):
    """Makes the parts in this process, and in one more for each of the `others`."""

    load: Load
    others: Sequence[torch.device]

    def make(self, work: Work, share: Share, claims: Claims) -> int:
        count, context = 1 + len(self.others), multiprocessing.get_context("spawn")
        shares = [Share(share.index * count + number, share.count * count) for number in range(count)]
        processes = [
            context.Process(target=_make_share, args=(self.load, device, work, share_of_device, self.threads))
            for device, share_of_device in zip(self.others, shares[1:], strict=True)
        ]
        for process in processes:
            process.start()
        try:
            return super().make(work, shares[0], claims)  # at whose end all parts are there
        finally:
            for process in processes:
                process.terminate()
                process.join()


def _make_share(load: Load, device: torch.device, work: Work, share: Share, threads: Threads) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, which ends this one
    encoder, outputs = load(device)
    with Claims(work.folder, work.identity) as claims:
        make_parts(work, encoder, outputs, share, threads, claims)


class OnRay:
    """Makes the parts by actors of Ray, one for every GPU, or one for every machine's CPUs. Each loads the encoder once and
    is handed numbers of parts; it writes them as files, which this process only counts."""

    def __init__(self, load: Load, address: str, device: str) -> None:
        """Connect, and load the encoder in every actor.

        Args:
            address: of a running cluster; ``"local"`` starts one here.
            device: one actor for every GPU, if the cluster has some and this is not ``"cpu"``; else one for every machine.

        Raises:
            LauncherError: Ray is not installed, does not answer, or has no GPU.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self.ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise LauncherError(f"--ray needs Ray, which is not installed: {INSTALL_RAY}") from error
        _refuse_silence(address)
        environment = {"PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")])}
        try:
            self.ray.init(
                address=address,
                runtime_env={"env_vars": environment},
                include_dashboard=False if address == "local" else None,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise LauncherError(
                f"--ray {address}: no Ray cluster answers there ({str(error).splitlines()[0]})"
            ) from error
        actor = self.ray.remote(_Actor)
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        needs = [{"num_gpus": 1}] * int(sum(node.get("GPU", 0) for node in nodes)) if device != "cpu" else []
        if not needs and not device.startswith("cuda"):
            needs = [{"num_cpus": int(node["CPU"])} for node in nodes if node.get("CPU", 0) >= 1]
        if not needs:
            raise LauncherError(f"--ray {address}: the cluster has nothing to compute on for --device {device}")
        self.actors = [actor.options(**need).remote(load, device, need.get("num_cpus", 1)) for need in needs]

    def settings(self, clips: ClipList) -> ExtractionSettings:
        settings: ExtractionSettings = self._ask("settings", clips)
        return settings

    def make(self, work: Work, share: Share, claims: Claims) -> int:
        del share
        ray, shared = self.ray, self.ray.put(work)
        size = max(1, len(work.slices) // (len(self.actors) * BATCHES))
        to_do = [list(work.slices[start : start + size]) for start in range(0, len(work.slices), size)][::-1]
        running: dict[Any, tuple[Any, list[Slice]]] = {}
        idle, n_embedded = list(self.actors), 0
        with progress_bar(total=len(work.clips), unit="clip", desc=f"{len(idle)} actors") as bar:
            while to_do or running:
                while idle and to_do:
                    actor, places = idle.pop(), to_do.pop()
                    running[actor.make.remote(shared, places)] = (actor, places)
                if not running:
                    raise LauncherError("every actor of Ray has ended; the same command continues where they stopped")
                done, _ = ray.wait(list(running), timeout=1.0)
                for reference in done:
                    actor, places = running.pop(reference)
                    try:
                        n_embedded += ray.get(reference)
                        idle.append(actor)
                        left = [place for place in places if not work.path(place).exists()]
                        bar.update(sum(map(len, places)) - sum(map(len, left)))
                        if left:  # an actor that was killed has claimed them
                            to_do.insert(0, left)
                            time.sleep(WAIT_S)
                    except ray.exceptions.RayActorError as error:
                        bar.write(f"an actor has ended, and its parts go to the others: {_last_line(error)}")
                        to_do.append(places)
                    except ray.exceptions.RayTaskError as error:
                        raise LauncherError(f"an actor failed: {error.cause}") from error
        return n_embedded

    def _ask(self, method: str, *arguments: object) -> Any:
        try:
            return self.ray.get(getattr(self.actors[0], method).remote(*arguments))
        except self.ray.exceptions.RayError as error:
            raise LauncherError(f"an actor of Ray: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    """The cause, after the lines of a remote traceback."""
    return str(error).strip().splitlines()[-1]


class _Actor:
    """Embeds parts somewhere in a cluster."""

    def __init__(self, load: Load, device: str, cores: int) -> None:
        encoder, outputs = load(resolve_device(device))
        self.process = ThisProcess(encoder, outputs, Threads(cores, cores))

    def settings(self, clips: ClipList) -> ExtractionSettings:
        return self.process.settings(clips)

    def make(self, work: Work, places: list[Slice]) -> int:
        return make_these(work, self.process.encoder, self.process.outputs, places, self.process.threads)


def _refuse_silence(address: str) -> None:
    """LauncherError if nothing listens at ``host:port``; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise LauncherError(
                f"--ray {address}: nothing answers there ({error.strerror or error}); start a cluster with ray start --head, or "
                "leave the address out"
            ) from error


@contextlib.contextmanager
def on_ray(load: Load, address: str, device: str) -> Iterator[OnRay]:
    """The actors of a Ray cluster for the block."""
    maker = OnRay(load, address, device)
    try:
        yield maker
    finally:
        maker.ray.shutdown()
