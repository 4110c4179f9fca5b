"""Runs on dask.distributed, the engine that README names for those who outgrow a machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="an optional extra")
HERE = Path(__file__).resolve().parent.parent

# On two worker processes: a study, and a worker that is killed while it has the first of its runs. The folder
# is relative, and the workers have another current folder.
SCRIPT = """
import json, os, signal, sys, threading, time
from pathlib import Path
from distributed import Client, LocalCluster
from lab.experiment import Experiment
from lab.grid import Study, carry_out
from lab.recipes import Recipe

def main(out):
    recipe = Recipe(epochs=1, batch_size=64, lr=0.1, net={"width": 0.25})
    arms = [Experiment("a", recipe, dataset="stand-in", limit=128)]
    study = Study("mine", "?", arms, seeds=2, more_seeds=0, held_out=50, trial_seeds=1)
    quiet = {"dashboard_address": None, "local_directory": out / "dask"}
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, **quiet)
    client = Client(cluster)
    with client.get_executor(pure=False) as executor:
        client.run(os.chdir, "/")
        before = set(client.run(os.getpid).values())
        def kill():
            while not [*out.glob("a-lr-*.checkpoint.lock")]:
                time.sleep(0.05)
            doing = [key for key, tasks in client.processing().items() if tasks]
            os.kill(client.run(os.getpid, workers=doing[:1])[doing[0]], signal.SIGKILL)
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        options = {"threads": 1, "device": "cpu", "dtype": "float32", "progress": False}
        records = carry_out([study], "out", executor=executor, **options)
        killer.join(60)
    after = set(client.run(os.getpid).values())
    print(json.dumps({"seeds": [run.seed for run in study.results(records)["a"]],
                      "missing": len(study.missing(records)),
                      "killed": len(before - after)}))
    client.close()
    cluster.close()

if __name__ == "__main__":
    main(Path("out").absolute())
"""


def test_a_study_goes_to_a_cluster_and_outlive_a_worker_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"seeds": [0, 1], "missing": 0, "killed": 1}
