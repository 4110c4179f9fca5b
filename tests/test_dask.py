"""Runs on dask.distributed, the engine that README names for those who outgrow a machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="an optional extra")
HERE = Path(__file__).resolve().parent.parent

# On two worker processes: two runs, and a worker that is killed while it has the first of them.
SCRIPT = """
import json, os, signal, sys, threading, time
from pathlib import Path
from distributed import Client, LocalCluster
from lab.experiment import Experiment
from lab.recipes import Recipe
from lab.study import run_all

def main(out):
    recipe = Recipe(epochs=1, batch_size=64, net={"width": 0.25})
    runs = [Experiment("a", recipe, seed=seed, dataset="stand-in", limit=128) for seed in (0, 1)]
    quiet = {"dashboard_address": None, "local_directory": out / "dask"}
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, **quiet)
    client = Client(cluster)
    with client.get_executor(pure=False) as executor:
        before = set(client.run(os.getpid).values())
        def kill():
            while not (out / "a-limit-128-seed0.checkpoint.lock").exists():
                time.sleep(0.05)
            doing = [key for key, tasks in client.processing().items() if tasks]
            os.kill(client.run(os.getpid, workers=doing[:1])[doing[0]], signal.SIGKILL)
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        histories = run_all(runs, out, executor=executor, threads=1, device="cpu", progress=False)
        killer.join(60)
    after = set(client.run(os.getpid).values())
    print(json.dumps({"seeds": [h.seed for h in histories], "epochs": [h.epochs for h in histories],
                      "killed": len(before - after)}))
    client.close()
    cluster.close()

if __name__ == "__main__":
    main(Path(sys.argv[1]))
"""


def test_runs_go_to_a_cluster_and_outlive_a_worker_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"seeds": [0, 1], "epochs": [1, 1], "killed": 1}
