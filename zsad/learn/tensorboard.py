"""Event files for TensorBoard: one an epoch, written whole, so that any storage can hold them and none is ever torn.

`tensorboard --logdir WORK/tensorboard` shows `train/<term>` of every step and `validation/<term>` of every epoch.
"""

import tempfile
from pathlib import Path
from typing import Any

from zsad.errors import StorageError
from zsad.learn.checkpoints import EpochRecord, State
from zsad.storage import Store


def put_events(store: Store, state: State) -> None:
    """Write the file of the state's last epoch.

    Raises:
        StorageError: if storage, or the folder for temporary files, fails.
    """
    record = state.history[-1]
    first_step = sum(len(before.steps) for before in state.history[:-1])
    store.put(f"events.out.tfevents.{record.epoch + 1:010d}.zsad", event_bytes(record, first_step))


def event_bytes(record: EpochRecord, first_step: int) -> bytes:
    """An event file of one epoch.

    Args:
        record: of the epoch.
        first_step: steps of all epochs before.

    Raises:
        StorageError: if this machine's folder for temporary files fails; TensorBoard writes to folders only.
    """
    from torch.utils.tensorboard import SummaryWriter

    try:
        with tempfile.TemporaryDirectory() as folder:
            with SummaryWriter(folder) as writer:
                for step, terms in enumerate(record.steps, start=first_step):
                    _add(writer, "train", terms, step)
                _add(writer, "validation", record.validation, first_step + len(record.steps))
            return next(Path(folder).glob("events.out.tfevents.*")).read_bytes()
    except OSError as error:
        raise StorageError(
            f"the curves of epoch {record.epoch + 1} can't be written to this machine's folder for temporary files "
            f"({error}); make room there, or let TMPDIR name another one"
        ) from error


def _add(writer: Any, kind: str, terms: dict[str, float], step: int) -> None:
    for name, value in {**terms, "total": sum(terms.values())}.items() if terms else ():
        writer.add_scalar(f"{kind}/{name}", value, step)
