from __future__ import annotations

import random
from typing import Any

import pytest

from pegasus_batch.pipeline.cluster import choose_workers, ray_session
from pegasus_batch.pipeline.config import ConfigError, JobConfig
from pegasus_batch.pipeline.stages import Workers

MANY = 10**6


def nodes(*resources: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"Alive": True, "Resources": {"CPU": cpu, "GPU": gpu}} for cpu, gpu in resources]


def choose(cluster: list[dict[str, Any]], rows: int = MANY, local_cpus: int | None = None, **options: Any) -> Workers:
    return choose_workers(JobConfig(output="o", **options), rows, cluster, local_cpus)


def test_one_worker_per_gpu() -> None:
    workers = choose(nodes((32, 4), (32, 4), (8, 0)))
    assert (workers.count, workers.gpus, workers.threads) == (8, 1.0, 1)
    assert choose(nodes((32, 4)), num_gpus_per_worker=0.5).count == 8
    assert choose(nodes((32, 3), (32, 3)), num_gpus_per_worker=2).count == 2


def test_cpus_are_shared_out() -> None:
    workers = choose(nodes((3, 0)), local_cpus=2)  # a local cluster of two cores counts one CPU more
    assert (workers.count, workers.gpus, workers.threads, workers.cpus) == (1, 0, 2, 1.5)
    workers = choose(nodes((16, 0)))
    assert (workers.count, workers.threads) == (4, 4)
    assert choose(nodes((16, 2)), device="cpu").gpus == 0


def test_pretended_gpus_for_the_cpu_share_its_threads() -> None:
    workers = choose(nodes((8, 2)), device="cpu", num_gpus_per_worker=1)
    assert (workers.count, workers.gpus, workers.threads) == (2, 1, 4)


def test_no_more_workers_than_rows() -> None:
    assert choose(nodes((32, 8)), rows=3).count == 3


def test_dead_nodes_and_heads_without_cpus_do_not_count() -> None:
    cluster = [*nodes((4, 0), (0, 0)), {"Alive": False, "Resources": {"CPU": 64, "GPU": 8}}]
    workers = choose(cluster)
    assert (workers.count, workers.gpus, workers.threads) == (1, 0, 4)


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"num_gpus_per_worker": 1}, {"num_gpus_per_worker": 0.5}])
def test_no_gpu_to_give(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no node of the cluster has more than 0.*--num-workers N if the cluster"):
        choose(nodes((4, 0)), **options)


def test_a_local_cluster_does_not_grow() -> None:
    assert choose(nodes((4, 0)), num_workers=2, num_gpus_per_worker=1).count == 2
    with pytest.raises(ConfigError, match="--num-gpus-per-worker 0 to run on CPUs"):
        choose(nodes((5, 0)), local_cpus=4, num_workers=2, num_gpus_per_worker=1)


def test_gpus_above_one_are_whole() -> None:
    with pytest.raises(ConfigError, match=r"--num-gpus-per-worker 1\.5"):
        choose(nodes((4, 4)), num_gpus_per_worker=1.5)


def test_cpus_stay_free_wherever_ray_places_the_workers() -> None:
    """Reading claims one, writing a half; with an actor of two CPUs on two cores they waited for ever."""
    rng = random.Random(0)
    for _ in range(500):
        cpus = [rng.choice([1, 2, 3, 4, 8, 64]) for _ in range(rng.randint(1, 5))]
        count = rng.randint(1, 12)
        gpus = rng.choice([0, 8])
        workers = choose(nodes(*((cpu, gpus) for cpu in cpus)), num_workers=count)
        free = list(cpus)
        for _ in range(workers.count):
            places = [node for node, left in enumerate(free) if left >= workers.cpus]
            assert places, (cpus, workers)
            node = rng.choice(places)
            free[node] = round(free[node] - workers.cpus, 4)  # Ray's own precision
        assert max(free) >= min(1.5, max(cpus)), (cpus, workers)


def test_a_dashboard_address_is_no_cluster_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match="only ray job submit takes"), ray_session():
        pass
