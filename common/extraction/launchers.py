"""Several processes that make the parts together: one for every GPU, or the actors of a Ray cluster. Launchers that start the
same command several times (torchrun, job arrays) need only `Share`."""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from common.encoder import Encoder, Output, resolve_device
from common.errors import first_problem
from common.extraction.clip_list import ClipList
from common.extraction.runner import WAIT_S, ThisProcess, Threads
from common.extraction.work import ExtractionError, ExtractionSettings, Work
from common.files import PROJECT_ROOT
from common.flags import Share
from common.progress import progress_bar

# Loads the encoder on a device, with the outputs to extract.
Load = Callable[[torch.device], tuple[Encoder, Sequence[Output]]]


@dataclass(frozen=True)
class OnDevices(ThisProcess):
    """Makes the parts in this process, and in one more for each of the `others`."""

    load: Load
    others: Sequence[torch.device]

    def make(self, work: Work, share: Share) -> int:
        shares, context = share.divided(1 + len(self.others)), multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=_make_share, args=(self.load, device, work, share_of_device, self.threads))
            for device, share_of_device in zip(self.others, shares[1:], strict=True)
        ]
        for process in processes:
            process.start()
        try:
            made = super().make(work, shares[0])
            for process in processes:  # which may still look for audio that has changed
                process.join()
            return made
        finally:
            for process in processes:
                process.terminate()
                process.join()


def _make_share(load: Load, device: torch.device, work: Work, share: Share, threads: Threads) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, which ends this one
    ThisProcess(*load(device), threads).make(work, share)


@dataclass(frozen=True)
class OnRay:
    """Makes the parts by actors of Ray. Each does a share, and writes parts as files, which this process only counts."""

    ray: Any
    actors: Sequence[Any]

    def settings(self, clips: ClipList) -> ExtractionSettings:
        try:
            return cast(ExtractionSettings, self.ray.get(self.actors[0].settings.remote(clips)))
        except self.ray.exceptions.RayError as error:  # also what stopped it from loading the encoder
            raise ExtractionError(f"an actor of Ray: {_last_line(error)}") from error

    def make(self, work: Work, share: Share) -> int:
        shared, idle, shares, n_embedded = self.ray.put(work), list(self.actors), share.divided(len(self.actors)), 0
        running: dict[Any, tuple[Any, Share]] = {}
        with progress_bar(total=len(work.clips), unit="clip", desc=f"{len(idle)} actors") as bar:
            while shares or running:
                while idle and shares:
                    actor, part = idle.pop(), shares.pop()
                    running[actor.make.remote(shared, part)] = (actor, part)
                if not running:
                    raise ExtractionError("every actor of Ray has ended; the same command continues where they stopped")
                ended, _ = self.ray.wait(list(running), timeout=WAIT_S)
                bar.update(work.n_done() - bar.n)
                for reference in ended:
                    actor, part = running.pop(reference)
                    try:
                        n_embedded += self.ray.get(reference)
                        idle.append(actor)
                    except self.ray.exceptions.RayActorError as error:
                        bar.write(f"an actor has ended, and its parts go to the others: {_last_line(error)}")
                        shares.append(part)  # others make its parts anyway, but look for changed audio only in theirs
                    except self.ray.exceptions.RayTaskError as error:
                        raise ExtractionError(f"an actor failed: {error.cause}") from error
        return n_embedded


class _Actor(ThisProcess):
    def __init__(self, load: Load, device: str, cores: int) -> None:
        super().__init__(*load(resolve_device(device)), Threads(cores, cores))


@contextlib.contextmanager
def on_ray(load: Load, address: str, device: str) -> Iterator[OnRay]:
    """Actors for the block, each with an encoder: one for every GPU of a Ray cluster, or one for every machine's CPUs if it
    has none or `device` is ``"cpu"``. The address ``"local"`` starts a cluster here. ExtractionError: Ray is not installed, does
    not answer, or has no GPU."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ExtractionError("--ray needs Ray, which is not installed: pip install ray==2.60.0") from error
    _refuse_silence(address)
    path = os.pathsep.join([str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")])
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": {"PYTHONPATH": path, "TQDM_DISABLE": "1"}},  # this process has the bar
            include_dashboard=False if address == "local" else None,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ExtractionError(f"--ray {address}: no Ray cluster answers there ({first_problem(error)})") from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needs = [{"num_gpus": 1}] * int(sum(node.get("GPU", 0) for node in nodes)) if device != "cpu" else []
        if not needs and not device.startswith("cuda"):
            needs = [{"num_cpus": int(node["CPU"])} for node in nodes if node.get("CPU", 0) >= 1]
        if not needs:
            raise ExtractionError(f"--ray {address}: the cluster has nothing to compute on for --device {device}")
        actor = ray.remote(_Actor)
        yield OnRay(ray, [actor.options(**need).remote(load, device, need.get("num_cpus", 1)) for need in needs])
    finally:
        ray.shutdown()


def _refuse_silence(address: str) -> None:
    """ExtractionError if nothing listens at ``host:port``; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            cause = f"nothing answers there ({error.strerror or error})"
            raise ExtractionError(f"--ray {address}: {cause}; start one with ray start --head") from error


def _last_line(error: Exception) -> str:
    """The cause, after the lines of a remote traceback."""
    return str(error).strip().splitlines()[-1]
