"""The course of a training as one HTML file beside its bundle: what was learned from, and the curves of all losses.

Like the gallery it holds all it shows, has no script and asks no host for anything; every printed value is escaped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from zsad import __version__
from zsad.learn.checkpoints import EpochRecord, State
from zsad.learn.curves import HEIGHT, WIDTH, charts
from zsad.report.gallery import environment
from zsad.storage import Store
from zsad.train_config import TrainConfig

PAGE = "training.html"


def put_page(store: Store, config: TrainConfig, state: State) -> None:
    """Write the page of a training from masks.

    Raises:
        StorageError: if storage fails.
    """
    kept = state.best if config.keep == "best" else state.epochs - 1
    validation = [sum(record.validation.values()) for record in state.history]
    facts = {
        "Epochs": f"{state.epochs:,}",
        "Shipped epoch": f"{kept + 1:,}",
        "Steps": f"{sum(len(record.steps) for record in state.history):,}",
        "Time": f"{sum(record.seconds for record in state.history):,.0f} s",
        "Validation loss": " -> ".join(f"{value:.4g}" for value in (validation[0], validation[kept]))
        if state.history[0].validation
        else "none held out",
    }
    under = f"{config.dataset} over {config.backbone}; loss terms with their weights, over the global batch"
    store.put(PAGE, render_page(config, facts, {"Losses": state.history}, under=under, x_label="epoch").encode())


def render_page(
    config: TrainConfig,
    facts: Mapping[str, str],
    histories: Mapping[str, Sequence[EpochRecord]],
    *,
    under: str,
    x_label: str,
) -> str:
    """The page.

    Args:
        config: of the training; what changes what is learned is listed.
        facts: for the head.
        histories: title -> records, one group of charts each.
        under: a line below the title.
        x_label: of all charts.
    """
    settings: dict[str, Any] = {"zsad": __version__, **config.identity()}
    return (
        environment()
        .get_template("training.html")
        .render(
            title=f"{config.method} from {config.dataset}",
            method=config.method,
            under=under,
            facts=[{"name": name, "value": value} for name, value in facts.items()],
            groups=[{"title": title, "charts": charts(history)} for title, history in histories.items()],
            chart_size=(WIDTH, HEIGHT),
            x_label=x_label,
            settings={name: str(value) for name, value in settings.items()},
        )
    )
