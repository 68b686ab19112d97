"""The graph of Ray Serve: ingress (validation, limits) -> decoders (CPU, killable children) -> scorers (model).

`build_graph` binds it; everything but the wiring is `zsad.http`. Only the ingress waits for others, so that a request
that ends early (its client left, it took too long) cancels whatever it waits for. Queues are bounded in three places:
images that one ingress replica has accepted (429), requests that wait for a place in the ingress (503), and bodies that
are copied into calls of decoders, of which the ingress has only a few more under way than there are decoding children.
Decoders and scorers take whatever the ingress lets in.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ray import serve as ray_serve
from ray.serve._private import constants
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from zsad.distributed.serving_engine import ServeEngine
from zsad.distributed.serving_metrics import RequestMetrics
from zsad.distributed.serving_replicas import Decoder, Scorer, load_detectors
from zsad.errors import ConfigError
from zsad.http.app import make_app
from zsad.http.problems import RETRY_AFTER_S
from zsad.priority import give_way
from zsad.serve_config import ServeConfig

INGRESS = "Ingress"
INGRESS_CPUS = 0.1
DECODER_CPUS = 0.3
SCORER_CPUS = 0.5
CALLS_BESIDE_IMAGES = 16  # descriptions, readiness, calls whose client left a moment ago
CALL_OVERHEAD_BYTES = 2**20  # what a message holds beside one image, with room to spare
_QUIET = {"enable_access_log": False}  # a line per call costs more than the call; `zsad.requests` has one per request
_BUSY = BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S)


@ray_serve.ingress()
class Ingress:
    """Answers HTTP."""

    def __init__(
        self, config: ServeConfig, page: Mapping[str, bytes], tokens: Mapping[str, str], decoders: Any, scorers: Any
    ) -> None:
        check_message_limit(config)
        give_way()
        _log_requests()
        engine = ServeEngine(config, decoders, scorers)
        self._app = make_app(
            config, engine, tokens=tokens, observer=RequestMetrics(), page=page, echoes_request_id=False
        )

    def __serve_build_asgi_app__(self) -> Any:
        """The app of this replica."""
        return self._app

    def drain(self) -> None:
        """Answer on, but say "not ready" from now on."""
        self._app.state.service.is_draining = True


def build_graph(
    config: ServeConfig,
    page: Mapping[str, bytes],
    tokens: Mapping[str, str],
    *,
    make_detectors: Callable[[ServeConfig], Any] = load_detectors,
) -> Any:
    """The bound graph, for `serve run` and RayService.

    Args:
        config: of the endpoint.
        page: name -> content of the web page's files; they travel with the graph.
        tokens: name -> hex digest of those who may ask.
        make_detectors: called in each scorer; another one than the default replaces the model.

    Raises:
        ConfigError: Ray Serve would not carry bodies as large as `config` allows.
    """
    check_message_limit(config)
    # As many as all ingress replicas let in, because one replica may get them all: a router whose replicas are full
    # asks them again after ever longer pauses, and at 48 requests in flight that cost three quarters of the throughput.
    # Bodies are held back by `ServeEngine`; pixels, which are small, queue in the scorers.
    ongoing = {"max_ongoing_requests": config.max_waiting * config.num_ingress + CALLS_BESIDE_IMAGES}
    shared = {
        "max_queued_requests": 2 * config.max_waiting,
        "graceful_shutdown_timeout_s": config.drain_s,
        "max_surge_percent": config.surge_percent,
        "backpressure_config": _BUSY,
        "logging_config": _QUIET,
    }
    decoders = ray_serve.deployment(
        Decoder,
        num_replicas=config.num_decoders,
        ray_actor_options={"num_cpus": DECODER_CPUS},
        **ongoing,
        **shared,
    ).bind(config)
    scorers = ray_serve.deployment(
        Scorer,
        ray_actor_options={"num_cpus": SCORER_CPUS, "num_gpus": config.num_gpus_per_scorer},
        **_replicas(config),
        **ongoing,
        **shared,
    ).bind(config, make_detectors)
    ingress = ray_serve.deployment(
        Ingress,
        name=INGRESS,
        num_replicas=config.num_ingress,
        max_ongoing_requests=4 * config.max_waiting,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        **shared,
    )
    return ingress.bind(config, dict(page), dict(tokens), decoders, scorers)


def check_message_limit(config: ServeConfig) -> None:
    """Refuse settings under which a body that is let in could not reach a decoder.

    Raises:
        ConfigError: calls go through gRPC in this process, and its messages are too short.
    """
    limit = constants.RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH
    needed = max(config.max_body_bytes, config.max_batch_bytes) + CALL_OVERHEAD_BYTES
    if constants.RAY_SERVE_USE_GRPC_BY_DEFAULT and limit < needed:
        raise ConfigError(
            f"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH is {limit}; max_body_bytes ({config.max_body_bytes}) and "
            f"max_batch_bytes ({config.max_batch_bytes}) need {needed}: raise it where Ray starts, or lower them"
        )


def drain(app_name: str = "default") -> None:
    """Make every ingress replica of a running app say "not ready"; it goes on answering until it is stopped."""
    handle = ray_serve.get_deployment_handle(INGRESS, app_name)
    handle._init(_run_router_in_separate_loop=True)  # whatever serve/ray.env says to the replicas: no loop runs here
    handle.broadcast("drain").results()


def _replicas(config: ServeConfig) -> dict[str, Any]:
    """How many scorers there are: a fixed number, or as many as keep two batches for each."""
    if config.max_scorers == config.num_scorers:
        return {"num_replicas": config.num_scorers}
    scaling = AutoscalingConfig(
        min_replicas=config.num_scorers,
        max_replicas=config.max_scorers,
        target_ongoing_requests=2 * config.batch_size,
        upscale_delay_s=10,
        downscale_delay_s=300,
    )
    return {"autoscaling_config": scaling}


def _log_requests() -> None:
    """One JSON line per request on this process's stderr, which Ray keeps in its session's logs."""
    logger = logging.getLogger("zsad.requests")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
