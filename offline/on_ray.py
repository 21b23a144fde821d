"""The parts of a run on Ray Data: tasks read the files, actors that keep the model predict, on any number of machines.

Ray is optional (requirements/offline.txt). On a cluster: `ray job submit --working-dir . -- python -m offline.predict
...`; elsewhere Ray starts on this machine. Folders and buckets must be the same for all machines.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from maskx_engine import usable_cores
from offline.plan import Image, Plan, part_name
from offline.predictor import Model, Predictor, Wanted
from offline.reader import Reader
from offline.store import Store


def has_ray() -> bool:
    """Whether Ray Data is installed."""
    return find_spec("ray") is not None and find_spec("pyarrow") is not None


class Worker:
    """An actor: the model of an archive, which predicts one part after the other and keeps its results in `out`."""

    def __init__(self, model: Any, wanted: Wanted, out: str) -> None:
        import ray

        self._predictor = Predictor(ray.get(model[0]), wanted)
        self._out = Store(out)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Predict a row of `Reader`; the part's number is what goes on from here."""
        images = [Image(id=id_, name=name) for id_, name in json.loads(row["images"])]
        errors = json.loads(row["errors"])
        contents = [
            OSError(error) if error is not None else data
            for data, error in zip(row["data"], errors, strict=True)
        ]
        self._out.write_json(part_name(row["number"]), self._predictor.predict(images, contents))
        return {"number": row["number"]}


def predict_on_ray(
    plan: Plan, todo: Sequence[int], *, images: str, out: str, model: Model, wanted: Wanted, workers: int
) -> Iterator[int]:
    """Predict the parts `todo` of the plan by `workers` actors; the number of each as it is done and kept.

    Raises RuntimeError: an actor failed for another reason than its machine's death, from which Ray recovers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.exceptions import RayError

    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        on_gpu = wanted.device != "cpu"
        threads = 0 if on_gpu else max(usable_cores() // workers, 1)
        rows = [
            {"number": number, "images": json.dumps([[one.id, one.name] for one in plan.parts[number]])}
            for number in todo
        ]
        # A row a block, so that no actor waits for more than the part it predicts.
        read = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            Reader(images).__call__, num_cpus=0.1
        )
        predicted = read.map(
            Worker,
            fn_constructor_args=([ray.put(model)], replace(wanted, threads=threads), out),
            concurrency=workers,
            num_cpus=0.5,
            num_gpus=1 if on_gpu else 0,
        )
        for row in predicted.iter_rows():
            yield int(row["number"])
    except RayError as error:
        raise RuntimeError(f"Ray could not finish: {error}. Start the same command again to go on") from error
    finally:
        if started:
            ray.shutdown()
