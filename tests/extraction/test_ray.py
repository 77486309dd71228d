"""Extraction by the actors of Ray: the file of one process, also when a node dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from common.datasets import Clip
from common.encoder import Output
from common.extraction import ClipList, ExtractOptions, extract
from common.extraction.launchers import on_ray
from common.parts import part_files
from tests.support.samples import extract_clips
from tests.support.stand_in import StandIn

pytestmark = pytest.mark.slow  # seconds for every node


def load_slowly(device: torch.device) -> tuple[StandIn, list[Output]]:
    """A stand-in that takes a while for a clip."""
    encoder = StandIn()
    encoder.before_call = lambda number: time.sleep(0.3)
    return encoder, [encoder.default_output]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Three nodes of one core each."""
    pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def test_a_node_that_dies_loses_nothing(clips: tuple[Path, list[Clip]], tmp_path: Path, cluster: Any) -> None:
    root, listed = clips
    extract_clips(listed, root, StandIn(), tmp_path / "whole.pt")
    folder = tmp_path / "features.pt.partial"

    def remove_a_node() -> None:
        while len(part_files(folder)) < 2:
            time.sleep(0.05)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    remover = Thread(target=remove_a_node)
    remover.start()
    with on_ray(load_slowly, cluster.address, "cpu") as actors:
        assert len(actors.actors) == 3
        assert extract(actors, ClipList(listed, root, "test"), tmp_path / "features.pt", ExtractOptions(part_size=1))
    remover.join()
    assert (tmp_path / "features.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
