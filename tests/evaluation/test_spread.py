"""One evaluation over a Ray cluster."""

from pathlib import Path


def test_a_cluster_gives_what_this_machine_gives(on_ray):
    on_ray(Path(__file__).with_name("on_ray.py"))
