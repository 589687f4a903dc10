"""A study on a Ray cluster; test_run_study.py runs this file in a process of its own."""

import threading
import time

import ray
from ray.cluster_utils import Cluster

from dopr_robot.study import load_study, run_study


def test_a_cluster_that_loses_a_node_half_way_gives_the_same_records(make_study, records, tmp_path):
    """A head without work and two nodes, one of which is taken away while it trains."""
    path = make_study("""
training: {steps: 8, batch_size: 32, warmup_steps: 2, checkpoint_every: 2}
evaluation: {selection_episodes: 2, test_episodes: 4}
""")
    here = run_study(load_study(path), out=tmp_path / "here", workers=1).folder
    there = tmp_path / "ray"
    memory = 80 * 2**20
    soon = {"health_check_period_ms": 500, "health_check_failure_threshold": 2}  # that a node is lost, not after 15 s
    head = {"num_cpus": 0, "object_store_memory": memory, "_system_config": soon}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    lost = threading.Event()

    def lose_a_node() -> None:
        runs = there / "runs"
        while not (runs.exists() and len(list(runs.glob("*/metrics.jsonl"))) >= 2):  # both nodes are at work
            time.sleep(0.02)
        cluster.remove_node(nodes[0], allow_graceful=False)
        lost.set()

    threading.Thread(target=lose_a_node, daemon=True).start()
    try:
        run_study(load_study(path), out=there, ray=cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert lost.is_set()
    assert records(there) == records(here)
    for folder in (here / "test").iterdir():
        assert (there / "test" / folder.name / "episodes.jsonl").read_bytes() == (
            folder / "episodes.jsonl"
        ).read_bytes()
