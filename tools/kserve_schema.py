r"""The part of KServe's own schema that a service uses, as the tests hold services against it.

    python -m tools.kserve_schema CRD SERVICE --source "kserve/kserve COMMIT PATH" > \
        tests/engines/triton/repository/inference_service.schema.json

CRD is config/crd/full/serving.kserve.io_inferenceservices.yaml of kserve/kserve, SERVICE what `--kserve` wrote. Names,
types and bounds are KServe's; every field that SERVICE does not have is refused, and descriptions are left out. What
KServe's webhook asks beyond its schema is in `_WEBHOOK`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

__all__ = ["pruned"]

_KEPT = ("type", "enum", "pattern", "anyOf", "format", "minimum", "maximum", "minItems", "maxItems")

_LABEL = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63 - len("-predictor")}
_ANNOTATIONS = {
    "serving.kserve.io/deploymentMode": {"const": "Standard"},
    "serving.kserve.io/autoscalerClass": {"const": "keda"},
}
# Where in the schema -> what is laid over it.
_WEBHOOK: dict[tuple[str, ...], dict[str, Any]] = {
    (): {"required": ["apiVersion", "kind", "metadata", "spec"]},
    ("apiVersion",): {"const": "serving.kserve.io/v1beta1"},
    ("kind",): {"const": "InferenceService"},
    ("metadata",): {
        "required": ["name", "annotations"],
        "additionalProperties": False,
        "properties": {
            "name": _LABEL,
            "annotations": {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "required": list(_ANNOTATIONS),
                "properties": _ANNOTATIONS,
            },
        },
    },
    ("spec",): {"required": ["predictor"]},
    ("spec", "predictor"): {"required": ["model"]},
    ("spec", "predictor", "model"): {"required": ["modelFormat", "storageUri"]},
    ("spec", "predictor", "autoScaling", "metrics", "podmetric", "metric"): {"required": ["backend", "query"]},
    ("spec", "predictor", "autoScaling", "metrics", "podmetric", "target"): {"required": ["type", "value"]},
}


def pruned(schema: dict[str, Any], value: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """What of a schema is about `value`; a list's items stand for each other."""
    kept: dict[str, Any] = {key: schema[key] for key in _KEPT if key in schema}
    if isinstance(value, dict) and "properties" in schema:
        known = schema["properties"]
        kept["properties"] = {name: pruned(known[name], each, (*path, name)) for name, each in sorted(value.items())}
        kept["required"] = [name for name in schema.get("required", []) if name in value]
        kept["additionalProperties"] = False
    elif isinstance(value, dict) and "additionalProperties" in schema:
        kept["additionalProperties"] = pruned(schema["additionalProperties"], None)
    elif isinstance(value, list):
        kept["items"] = pruned(schema["items"], _merged(value), path)
    required = kept.get("required", [])
    kept |= _WEBHOOK.get(path, {})
    if required:
        kept["required"] = sorted({*required, *kept["required"]})
    return {key: each for key, each in kept.items() if each != []}


def _merged(items: list[Any]) -> Any:
    """One value with the fields of all."""
    return {key: each for item in items for key, each in item.items()} if isinstance(items[0], dict) else items[0]


def main() -> None:
    """Print the schema."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crd", type=Path)
    parser.add_argument("service", type=Path)
    parser.add_argument("--source", required=True, help="repository, commit and path, for the comment")
    given = parser.parse_args()
    versions = yaml.load(given.crd.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == "v1beta1")
    service = yaml.safe_load(given.service.read_text())
    comment = f"Made by tools/kserve_schema.py from {given.source}; do not edit."
    print(json.dumps({"$comment": comment, **pruned(schema, service)}, indent=2))


if __name__ == "__main__":
    main()
