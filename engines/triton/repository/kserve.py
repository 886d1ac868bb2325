"""A KServe InferenceService over a repository: what Kubernetes is asked to run.

KServe copies the whole of `storageUri` to /mnt/models and starts Triton there, so one service has every model. It
scales by the load that each generator reports: the busiest decides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.errors import EngineError
from engines.triton.contract import load_metric
from engines.triton.repository.config import parse_config
from engines.triton.repository.folders import bundle_folder
from engines.triton.repository.record import RECORD, Entry, Record, read_record
from mythos_export.bundle import Bundle

__all__ = ["check_service", "inference_service"]

Weigh = Callable[[Bundle], int]

# What KServe's storage initialiser takes.
_SCHEMES = (
    *("gs://", "s3://", "pvc://", "file://", "https://", "http://", "hdfs://", "webhdfs://"),
    *("oci://", "oci+native://", "oci+fetch://", "hf://"),
)
_MAX_NAME = 63 - len("-predictor")  # a label of the domain name system, as the service within has it
_GIB = 1 << 30
_LOADED = 1.15  # of what weights are counted to take, what they do at most
_SERVER = 2 * _GIB  # Triton itself, a Python process for each model
_SHARED = 1 * _GIB  # /dev/shm: through it the server and its Python processes hand each other tensors
_USUAL_THREADS = 2
_LOAD = 75  # percent: between this and 100 there is time to start another replica
_READ = ("cache_bytes", "threads")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}")
_COUNT = re.compile(r"[0-9]{1,19}")

_HEAD = """\
# The InferenceService over a repository of mythos-export. Upload the repository to storageUri, then: kubectl apply -f
# It scales by what the generators themselves report, which takes KEDA and its OpenTelemetry add-on in the cluster.
# The image must have what requirements.txt of each model lists; the repository's README.md says how to make one.
"""


def inference_service(repository: Path, *, storage_uri: str, image: str, weigh: Weigh) -> str:
    """The YAML of a service over a repository that `write_repository` has made.

    Memory is what the models' weights and caches take, so every generator must have its `cache_bytes`: by itself it
    would take a share of the whole machine's.

    Args:
        storage_uri: where the repository will lie.
        weigh: bytes of a bundle's weights in a process that has loaded it, which is not what its files take.
        image: of the container, with the server and what the models' `requirements.txt` list.

    Raises:
        EngineError: not a repository of ours, a URI that KServe does not take, no name of an image, a generator without
            `cache_bytes`, two that the metrics cannot tell apart.
        BundleError: a generator's bundle is damaged.
    """
    _check_storage_uri(storage_uri)
    _check_image(image)
    record = read_record(repository)
    settings = [_settings(repository, entry) for entry in record.entries]
    generators = [entry.generator for entry in record.entries]
    _check_metrics(generators)
    cache = sum(each["cache_bytes"] for each in settings)
    weights = math.ceil(_LOADED * sum(_weights(repository, entry, weigh) for entry in record.entries))
    name = _service_name(record.entries[0].generator)
    import yaml

    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                "serving.kserve.io/autoscalerClass": "keda",
                "sidecar.opentelemetry.io/inject": f"{name}-predictor",
                "prometheus.kserve.io/port": "8002",
            },
        },
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "maxReplicas": 4,
                "autoScaling": {"metrics": [_metric(load_metric(generator)) for generator in generators]},
                "model": _model(storage_uri, image, generators, _resources(record, settings, weights + cache)),
                "volumes": [
                    {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_SHARED // _GIB}Gi"}}
                ],
            }
        },
    }
    return _HEAD + yaml.safe_dump(service, sort_keys=False, width=120)


def _model(storage_uri: str, image: str, generators: list[str], resources: dict[str, str]) -> dict[str, Any]:
    # Triton calls a model ready whose process has died: the probes ask every generator for a token.
    command = ["python3", "-m", "engines.triton.probe", "--models", ",".join(generators)]
    probes = {
        name: {
            "exec": {"command": list(command)},
            "periodSeconds": period,
            "timeoutSeconds": 30,
            "failureThreshold": failures,
        }
        for name, period, failures in (("startup", 10, 90), ("readiness", 30, 2), ("liveness", 30, 3))
    }
    return {
        "modelFormat": {"name": "triton", "version": "2"},
        "protocolVersion": "v2",
        "image": image,
        "storageUri": storage_uri,
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        **{f"{name}Probe": probe for name, probe in probes.items()},
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],  # noqa: S108  # the pod's, not ours
    }


def _metric(metric: str) -> dict[str, Any]:
    return {
        "type": "PodMetric",
        "podmetric": {
            "metric": {"backend": "opentelemetry", "metricNames": [metric], "query": metric},
            "target": {"type": "Value", "value": str(_LOAD)},
        },
    }


def check_service(repository: Path, generator: str, *, storage_uri: str, image: str) -> None:
    """Whatever of `inference_service` can be refused before a generator is written.

    Raises:
        EngineError: as there, of the URI, the image, the name, or the generators that the repository has besides.
    """
    import yaml  # noqa: F401  # where it is not installed, that is said before anything is written

    _check_storage_uri(storage_uri)
    _check_image(image)
    _service_name(generator)
    if not (repository / RECORD).is_file():
        return
    entries = read_record(repository).entries
    _check_metrics([generator, *(entry.generator for entry in entries if entry.generator != generator)])
    for entry in entries:
        if entry.generator != generator:
            _service_name(entry.generator)
            _settings(repository, entry)


def _service_name(model: str) -> str:
    """A model's name as Kubernetes takes it."""
    name = re.sub(r"[^a-z0-9]+", "-", model.lower()).lstrip("-0123456789")[:_MAX_NAME].strip("-")
    if not name:
        raise EngineError(f"{model[:100]!r} makes no name for Kubernetes; pass --name with a letter in it")
    return name


def _check_storage_uri(uri: str) -> None:
    if not uri.startswith(_SCHEMES) or uri in _SCHEMES:
        raise EngineError(f"--storage-uri is {uri[:120]!r}; KServe takes {', '.join(_SCHEMES)}")
    if not uri.isascii() or not uri.isprintable() or any(letter in " \"'\\<>^`{|}" for letter in uri):
        raise EngineError(f"--storage-uri is {uri[:120]!r}; write other characters than a URI's as %XX")


def _check_image(image: str) -> None:
    if not _IMAGE.fullmatch(image):
        raise EngineError(f"--image is {image[:120]!r}; it must name an image, such as registry/tritonserver-mythos:1")


def _check_metrics(generators: list[str]) -> None:
    """KServe adds up metrics of one name."""
    seen: dict[str, str] = {}
    for name in generators:
        other = seen.setdefault(load_metric(name), name)
        if other != name:
            raise EngineError(f"{name} and {other} have one metric, {load_metric(name)}; pass another --name")


def _settings(repository: Path, entry: Entry) -> dict[str, int]:
    """Of a generator, those that decide what a pod needs."""
    path = repository / entry.generator / "config.pbtxt"
    try:
        config = parse_config(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{path}: cannot be read; write {entry.generator} again with --force") from error
    settings = {key: value.string_value for key, value in config.parameters.items()}
    if "cache_bytes" not in settings:
        raise EngineError(
            f"{path}: has no cache_bytes, and a pod's memory must hold the caches; write {entry.generator} with "
            "--cache-bytes, such as 4000000000"
        )
    wrong = [key for key in _READ if not _COUNT.fullmatch(settings.get(key, "1"))]
    if wrong:
        raise EngineError(f"{path}: {wrong[0]} is no number; write {entry.generator} again with --force")
    return {key: int(settings[key]) for key in _READ if key in settings}


def _weights(repository: Path, entry: Entry, weigh: Weigh) -> int:
    """For each model of a bundle; one on a GPU passes through the host's memory too."""
    bundle = Bundle.open(bundle_folder(repository / entry.generator), check_hashes=False)
    return weigh(bundle) * len(entry.names())


def _resources(record: Record, settings: list[dict[str, int]], held: int) -> dict[str, str]:
    memory = math.ceil((held + _SERVER + _SHARED) / _GIB)
    threads = sum(each.get("threads", _USUAL_THREADS) for each in settings)
    resources = {"cpu": str(threads), "memory": f"{memory}Gi"}
    if any(entry.device == "gpu" and entry.tensors is not None for entry in record.entries):
        resources["nvidia.com/gpu"] = "1"
    return resources
