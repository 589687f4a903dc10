"""The main job, small, in the working directory: what an installed package is tried by (`make build`, `make test-lowest`)."""

import dopr_robot as dopr

store = dopr.collect("CartPoleSwingUp", 2, "s.zarr")
small = {"policy.network.dim": 16, "policy.network.layers": 1, "policy.network.heads": 2}
run = dopr.train(store="s.zarr", name="a", steps=2, batch_size=16, **small)
results = dopr.evaluate(run, episodes=2, horizons=[10], video=2)
print(results)
assert (results.folder / "report.html").is_file() and (results.folder / "rollouts.mp4").is_file()
dopr.info(run).write_page("run.html")
dopr.info("s.zarr").write_page("store.html")
