"""A small training over the tiny towers, without Ray: rows in shards on a local folder."""

import numpy as np
import tiny_model

from zsad.learn.checkpoints import State
from zsad.learn.epochs import Worker, train, usable_rows
from zsad.learn.examples import Shards, shard_key, write_shard
from zsad.learn.order import Schedule
from zsad.learn.recipes import new_recipe
from zsad.storage import open_store

SIZE = 32
SCHEDULE = Schedule(epochs=3, batch_size=4, seed=0, validation=0.2)


def raw_rows(count=10):
    """Random images, every second one with a defect in its upper half."""
    rows = []
    for number, pixels in enumerate(tiny_model.pixels(count, SIZE, SIZE).numpy()):
        label = number % 2
        mask = np.zeros((SIZE, SIZE), np.bool_)
        mask[: SIZE // 2] = bool(label)
        facts = {"key": f"{number}.png", "uri": f"/data/{number}.png", "label": label, "error_code": None}
        facts["defect_type"] = "scratch" if label else "good"
        rows.append({**facts, "error_message": None, "mask_SS": mask, "pixels_SSC": pixels})
    return rows


def recipe_for(backbone, method="faprompt", learning_rate=1e-3):
    return new_recipe(method, backbone, words=("scratch",), seed=0, learning_rate=learning_rate)


def stored(folder, recipe, kept, rows=None):
    """Rows in two shards under `folder`; returns what reads them and all facts."""
    form, store = recipe.form(SIZE, kept), open_store(str(folder))
    rows = raw_rows() if rows is None else rows
    for row in rows:
        if form.kept != "pixels" and not row["error_code"]:
            image_BD, patches_BPD = recipe.features(row["pixels_SSC"][None])
            row["image_D"], row["patches_PD"] = image_BD[0].numpy(), patches_BPD[0].numpy()
    half = len(rows) // 2
    for shard, some in enumerate((rows[:half], rows[half:])):
        store.put(shard_key(shard), write_shard(form, some))
    shards = Shards(store, form)
    return shards, [*shards.facts(0), *shards.facts(1)]


def trained(folder, recipe, shards, facts, *, schedule=SCHEDULE, state=None, worker=None, on_epoch=None):
    """Run a training whose checkpoints lie under `folder`; returns its state."""
    return train(
        recipe,
        usable_rows(facts, schedule, 0.0),
        shards,
        open_store(str(folder)),
        schedule,
        state=state or State(),
        worker=worker or Worker(),
        on_step=lambda *told: None,
        on_epoch=on_epoch or (lambda state: None),
    )
