"""The InferenceService, held against what KServe's own schema and webhook say of the fields that it uses."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from engines.errors import EngineError
from engines.triton.repository.kserve import check_service, inference_service
from engines.triton.repository.record import read_record
from engines.triton.repository.write import write_repository
from mythos_export.bundle import Bundle

MakeToy = Callable[..., Bundle]

URI, IMAGE = "s3://bucket/models", "registry.example/tritonserver-mythos:1.0"
SCHEMA = json.loads((Path(__file__).parent / "inference_service.schema.json").read_text())


def made(bundle: Bundle, destination: Path, **options: Any) -> Path:
    settings = {"cache_bytes": 3 << 30, **options.pop("settings", {})}
    return write_repository(bundle, destination, **{"backend": "python", "settings": settings, **options}).path


def weigh(bundle: Bundle) -> int:
    return bundle.total_bytes


def service(repository: Path, uri: str = URI) -> dict[str, Any]:
    return yaml.safe_load(inference_service(repository, storage_uri=uri, image=IMAGE, weigh=weigh))


def test_it_is_an_inference_service(toy: MakeToy, tmp_path: Path) -> None:
    found = service(made(toy(), tmp_path / "repo", name="Mythos_1b.fp32", settings={"max_batch": 8, "threads": 6}))
    jsonschema.validate(found, SCHEMA)
    assert found["metadata"]["name"] == "mythos-1b-fp32"
    predictor = found["spec"]["predictor"]
    assert (predictor["model"]["storageUri"], predictor["model"]["image"]) == (URI, IMAGE)
    assert predictor["model"]["resources"]["requests"] == {"cpu": "6", "memory": "7Gi"}
    assert targets(found) == {"mythos_load_Mythos_1b_fp32": "75"}
    inject = found["metadata"]["annotations"]["sidecar.opentelemetry.io/inject"]
    assert inject == "mythos-1b-fp32-predictor", "the deployment that KServe makes of the predictor"


def targets(found: dict[str, Any]) -> dict[str, str]:
    """By metric; what it collects is what it asks for."""
    metrics = [each["podmetric"] for each in found["spec"]["predictor"]["autoScaling"]["metrics"]]
    assert all(each["metric"]["metricNames"] == [each["metric"]["query"]] for each in metrics)
    return {each["metric"]["query"]: each["target"]["value"] for each in metrics}


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_ask_every_generator_for_a_token(
    toy: MakeToy, tmp_path: Path, probe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = made(toy(), tmp_path / "repo", name="a")
    made(toy(), repository, name="b")
    found = service(repository)["spec"]["predictor"]["model"][probe]
    (python, _, module, *arguments), asked = found["exec"]["command"], []
    assert (python, module) == ("python3", "engines.triton.probe")
    monkeypatch.setattr("engines.triton.probe._trouble", lambda *given: asked.append(given) or "")
    assert importlib.import_module(module).main(arguments) == 0
    # the ports are those of KServe's runtime for Triton
    at = ("http://127.0.0.1:8080", "http://127.0.0.1:8002/metrics", 10.0)
    assert sorted(asked) == [("a", *at), ("b", *at)]
    longest = 10 + 2 * 2  # it looks at the metrics before and after
    assert found["timeoutSeconds"] >= 2 * longest, "killed before it can answer, a busy one would count as dead"


def test_shared_memory_is_there_and_counted(toy: MakeToy, tmp_path: Path) -> None:
    predictor = service(made(toy(), tmp_path / "repo"))["spec"]["predictor"]
    (mount,), (volume,) = predictor["model"]["volumeMounts"], predictor["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/dev/shm"}
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}


@pytest.mark.parametrize("image", ["", " ", "a b", 'x"\n      args: [x', "-x", "ä", "x" * 256])
def test_images_that_are_none(toy: MakeToy, tmp_path: Path, image: str) -> None:
    repository = made(toy(), tmp_path / "repo")
    for check in (
        lambda: inference_service(repository, storage_uri=URI, image=image, weigh=weigh),
        lambda: check_service(repository, "other", storage_uri=URI, image=image),
    ):
        with pytest.raises(EngineError, match=r"^--image is .*; it must name an image"):
            check()


def test_generators_whose_metrics_would_be_added_up(toy: MakeToy, tmp_path: Path) -> None:
    repository = made(toy(), tmp_path / "repo", name="a-b")
    message = r"a.b and a.b have one metric, mythos_load_a_b; pass another --name"
    with pytest.raises(EngineError, match=message):
        check_service(repository, "a.b", storage_uri=URI, image=IMAGE)
    made(toy(), repository, name="a.b")
    with pytest.raises(EngineError, match=message):
        service(repository)


PLANTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another version": lambda d: d.update(apiVersion="serving.kserve.io/v1alpha1"),
    "a name in capitals": lambda d: d["metadata"].update(name="Mythos"),
    "a name that begins with a digit": lambda d: d["metadata"].update(name="1b"),
    "a misspelt field": lambda d: d["spec"]["predictor"]["model"].update(storageURI=URI),
    "no model format": lambda d: d["spec"]["predictor"]["model"].pop("modelFormat"),
    "an unknown metric source": lambda d: d["spec"]["predictor"]["autoScaling"]["metrics"][0].update(type="Pods"),
    "no query": lambda d: d["spec"]["predictor"]["autoScaling"]["metrics"][0]["podmetric"]["metric"].pop("query"),
    "no target value": lambda d: d["spec"]["predictor"]["autoScaling"]["metrics"][0]["podmetric"]["target"].pop(
        "value"
    ),
    "a probe without a command": lambda d: d["spec"]["predictor"]["model"]["livenessProbe"].update(exec={"cmd": ["x"]}),
    "a command that is no list": lambda d: d["spec"]["predictor"]["model"]["readinessProbe"]["exec"].update(
        command="x"
    ),
    "a period as text": lambda d: d["spec"]["predictor"]["model"]["startupProbe"].update(periodSeconds="10s"),
    "a volume of the container's": lambda d: d["spec"]["predictor"]["model"].update(volumes=[]),
    "a mount nowhere": lambda d: d["spec"]["predictor"]["model"]["volumeMounts"][0].pop("mountPath"),
    "a volume without a name": lambda d: d["spec"]["predictor"]["volumes"][0].pop("name"),
    "replicas as text": lambda d: d["spec"]["predictor"].update(minReplicas="1"),
    "memory that is no quantity": lambda d: d["spec"]["predictor"]["model"]["resources"]["limits"].update(
        memory="6 GB"
    ),
    "an autoscaler that does not take these metrics": lambda d: d["metadata"]["annotations"].update(
        {"serving.kserve.io/autoscalerClass": "hpa"}
    ),
    "an annotation that is no text": lambda d: d["metadata"]["annotations"].update({"prometheus.kserve.io/port": 8002}),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_the_schema_finds_mistakes(toy: MakeToy, tmp_path: Path, mistake: str) -> None:
    found = service(made(toy(), tmp_path / "repo"))
    jsonschema.validate(found, SCHEMA)
    wrong = deepcopy(found)
    PLANTED[mistake](wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_one_service_has_room_for_every_bundle(toy: MakeToy, tmp_path: Path) -> None:
    repository = made(toy(), tmp_path / "repo", name="a", settings={"max_batch": 10, "threads": 1})
    made(toy(), repository, name="b", settings={"max_batch": 2})
    found = service(repository)
    requests = found["spec"]["predictor"]["model"]["resources"]["requests"]
    assert requests == {"cpu": "3", "memory": "10Gi"}, "two caches of 3, 3 for the server, 1 for toy weights"
    assert targets(found) == {"mythos_load_a": "75", "mythos_load_b": "75"}
    jsonschema.validate(found, SCHEMA)


def test_a_gpu_is_asked_for(tiny_bundle: Path, tmp_path: Path) -> None:
    found = service(made(Bundle.open(tiny_bundle), tmp_path / "repo", backend="onnxruntime", device="gpu"))
    jsonschema.validate(found, SCHEMA)
    assert found["spec"]["predictor"]["model"]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("options", [{"backend": "onnxruntime"}, {"backend": "tensorrt"}], ids=str)
def test_no_gpu_is_asked_for_by_a_generator_alone(toy: MakeToy, tmp_path: Path, options: dict[str, str]) -> None:
    """It runs on the CPU; the device is that of the model that is left out."""
    found = service(made(toy(), tmp_path / "repo", **options, device="gpu", tensors=False))
    assert "nvidia.com/gpu" not in found["spec"]["predictor"]["model"]["resources"]["limits"]


@pytest.mark.parametrize(("tensors", "weights"), [(True, 2), (False, 1)])
def test_memory_is_what_weights_take_once_loaded(toy: MakeToy, tmp_path: Path, tensors: bool, weights: int) -> None:
    """In each model's process, and a bit more."""
    repository = made(toy(), tmp_path / "repo", tensors=tensors)
    text = inference_service(repository, storage_uri=URI, image=IMAGE, weigh=lambda _: 100 << 30)
    requests = yaml.safe_load(text)["spec"]["predictor"]["model"]["resources"]["requests"]
    assert requests["memory"] == f"{weights * 115 + 3 + 3}Gi"


@pytest.mark.parametrize("name", ["null", "true", "on", "y", "e1"])
def test_names_that_yaml_takes_for_something_else(toy: MakeToy, tmp_path: Path, name: str) -> None:
    found = service(made(toy(), tmp_path / "repo", name=name))
    jsonschema.validate(found, SCHEMA)
    assert found["metadata"]["name"] == name


def test_a_long_name_is_cut(toy: MakeToy, tmp_path: Path) -> None:
    found = service(made(toy(), tmp_path / "repo", name=f"1{'a' * 51}_b-c{'d' * 30}"))
    jsonschema.validate(found, SCHEMA)
    assert found["metadata"]["name"] == f"{'a' * 51}-b"


def test_a_name_with_no_letter(toy: MakeToy, tmp_path: Path) -> None:
    repository = made(toy(), tmp_path / "repo", name="1.2")
    for check in (
        lambda: service(repository),
        lambda: check_service(tmp_path / "new", "1.2", storage_uri=URI, image=IMAGE),
    ):
        with pytest.raises(EngineError, match=r"'1\.2' makes no name for Kubernetes"):
            check()


@pytest.mark.parametrize(
    "uri",
    ["gs://b/m", "pvc://claim/models", "hf://owner/model", "https://a.blob.core.windows.net/c/m?x=%20", "oci://r/i:t"],
)
def test_uris_that_kserve_takes(toy: MakeToy, tmp_path: Path, uri: str) -> None:
    assert service(made(toy(), tmp_path / "repo"), uri)["spec"]["predictor"]["model"]["storageUri"] == uri


@pytest.mark.parametrize("uri", ["", "/models", "ftp://a/b", "s3://", "s3://a b", 's3://a"\nimage: x', "s3://ä"])
def test_uris_that_kserve_does_not_take(toy: MakeToy, tmp_path: Path, uri: str) -> None:
    repository = made(toy(), tmp_path / "repo")
    for check in (
        lambda: inference_service(repository, storage_uri=uri, image=IMAGE, weigh=weigh),
        lambda: check_service(repository, "other", storage_uri=uri, image=IMAGE),
    ):
        with pytest.raises(EngineError, match=r"^--storage-uri is"):
            check()


def test_a_generator_whose_cache_has_no_bound(toy: MakeToy, tmp_path: Path) -> None:
    """By itself it takes a share of the whole machine's memory, and the pod is killed."""
    bundle = toy()
    repository = write_repository(bundle, tmp_path / "repo", backend="python", name="a").path
    with pytest.raises(EngineError, match=r"a/config\.pbtxt: has no cache_bytes.*--cache-bytes"):
        inference_service(repository, storage_uri=URI, image=IMAGE, weigh=weigh)
    with pytest.raises(EngineError, match=r"a/config\.pbtxt: has no cache_bytes"):
        check_service(repository, "b", storage_uri=URI, image=IMAGE)
    check_service(repository, "a", storage_uri=URI, image=IMAGE)  # which is to be replaced


def test_a_repository_that_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is not a repository that mythos-export wrote"):
        inference_service(tmp_path, storage_uri=URI, image=IMAGE, weigh=weigh)


@pytest.mark.parametrize("content", ["nonsense", 'parameters { key: "cache_bytes" value { string_value: "many" } }'])
def test_a_config_that_someone_has_changed(toy: MakeToy, tmp_path: Path, content: str) -> None:
    repository = made(toy(), tmp_path / "repo", name="a")
    assert read_record(repository).entries[0].generator == "a"
    (repository / "a" / "config.pbtxt").write_text(content)
    with pytest.raises(EngineError):
        inference_service(repository, storage_uri=URI, image=IMAGE, weigh=weigh)
