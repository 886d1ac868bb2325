"""Quantisation from the command line: what is asked for is done, and what cannot be meant is one clear line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from calibration.choose import QuantizeOptions
from calibration.recipe import Recipe
from mythos_export.bundle import Bundle
from mythos_export.records.parity import ParityReport
from reference_model.checkpoint import SeededWeights, WeightSource, open_checkpoint
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture

Run = Callable[..., Any]  # of an outcome
Refused = Callable[..., str]
MakeBundle = Callable[..., Bundle]

WORST = "coda.1.ffn.down"  # of the model below


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, gqa_config: MythosConfig) -> Path:
    """A model one of whose layers bears no int8: in each of its rows one weight, which meets only zeros, is huge."""
    source = SeededWeights(gqa_config, 0)
    tensors = {name: source.read(name) for name in source.names()}
    tensors["coda.1.ffn.up.weight"][0] = 0
    tensors[f"{WORST}.weight"][:, 0] = 100
    folder = tmp_path_factory.mktemp("fragile")
    save_file(tensors, folder / "fragile.safetensors")
    (folder / "config.json").write_text(gqa_config.to_json())
    return folder / "fragile.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, gqa_config: MythosConfig) -> Path:
    """Two short sequences."""
    path = tmp_path_factory.mktemp("data") / "tokens.npy"
    np.save(path, np.random.default_rng(2).integers(0, gqa_config.vocab_size, (2, 24)))
    return path


@pytest.fixture(scope="module")
def fragile(checkpoint: Path, data: Path, make_bundle: MakeBundle, gqa_config: MythosConfig) -> Callable[[str], Path]:
    """That model in a precision; made once, not proven."""
    made: dict[str, Path] = {}

    def bundle(precision: str) -> Path:
        if precision not in made:
            options = QuantizeOptions(data=data, depths=2)
            source: WeightSource = open_checkpoint(checkpoint)
            made[precision] = make_bundle(gqa_config, source=source, precision=precision, quantize=options).path
            shutil.copyfile(checkpoint, made[precision].parent / checkpoint.name)  # where `sensitivity` looks for it
        return made[precision]

    return bundle


@pytest.fixture
def gqa(tmp_path: Path, gqa_config: MythosConfig) -> Path:
    (tmp_path / "gqa.json").write_text(gqa_config.to_json())
    return tmp_path / "gqa.json"


@pytest.fixture
def recipe(quantized_bundle: Callable[..., Path], tmp_path: Path) -> Path:
    """A usable one, of the model with grouped-query attention."""
    content = Bundle.open(quantized_bundle("gqa", "int8")).file("recipe.json").read_text()
    (tmp_path / "recipe.json").write_text(content)
    return tmp_path / "recipe.json"


OPTIONS = {
    "--calibration-data": "x.npy",
    "--calibration-method": "minmax",
    "--calibration-loops": "4",
    "--ranges": "shared",
    "--recipe": "x.json",
    "--keep": "head",
}


class TestOptionsThatDoNothing:
    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
    @pytest.mark.parametrize("option", OPTIONS)
    def test_where_nothing_is_quantised(self, refused: Refused, gqa: Path, precision: str, option: str) -> None:
        line = refused("--config", gqa, "--precision", precision, option, OPTIONS[option])
        assert line == f"error: {option} does nothing for --precision {precision}; use int8, fp8, int4"

    @pytest.mark.parametrize("option", ["--calibration-method", "--calibration-loops", "--ranges", "--recipe"])
    def test_where_weights_alone_are_quantised(self, refused: Refused, gqa: Path, option: str) -> None:
        line = refused("--config", gqa, "--precision", "int4", option, OPTIONS[option])
        assert line == f"error: {option} does nothing here (int4 quantises weights only); leave it out"
        of_target = ("--target", "onnxruntime", "--precision", "int8")
        line = refused("--config", gqa, *of_target, option, OPTIONS[option])
        reason = "int8 of target onnxruntime quantises weights only"
        assert line == f"error: {option} does nothing here ({reason}); leave it out"

    @pytest.mark.parametrize("precision", ["int8", "fp8"])
    @pytest.mark.parametrize("option", ["--calibration-method", "--calibration-loops"])
    def test_where_a_recipe_is_given(
        self, refused: Refused, gqa: Path, recipe: Path, precision: str, option: str
    ) -> None:
        line = refused("--config", gqa, "--precision", precision, "--recipe", recipe, option, OPTIONS[option])
        assert line == f"error: {option} does nothing here (--recipe is a calibration already); leave it out"

    @pytest.mark.parametrize("precision", ["int8", "fp8"])
    def test_data_beside_a_recipe(self, refused: Refused, gqa: Path, recipe: Path, data: Path, precision: str) -> None:
        line = refused("--config", gqa, "--precision", precision, "--recipe", recipe, "--calibration-data", data)
        assert line == "error: --calibration-data does nothing here (--recipe is a calibration already); leave it out"

    @pytest.mark.parametrize(("target", "precision"), [("portable", "int4"), ("onnxruntime", "int8")])
    def test_data_for_weights_alone_is_read_and_said_to_be_of_no_use(
        self, run: Run, gqa: Path, data: Path, target: str, precision: str
    ) -> None:
        form = ("--target", target, "--precision", precision)
        outcome = run("--config", gqa, *form, "--calibration-data", data, "--no-validate")
        assert outcome.code == 0
        assert (
            f"{precision} quantises weights only: the calibration data is of use for --keep auto alone" in outcome.err
        )


class TestValuesThatMeanNothing:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--precision", "int3"], "has no precision 'int3'; it has: fp32, fp16, bf16, int8, fp8, int4"),
            (["--calibration-method", "kl"], "--calibration-method is 'kl'; it must be one of minmax, percentile"),
            (["--calibration-method", ""], "--calibration-method is ''"),
            (["--calibration-method", "\x1b[2J"], "--calibration-method is "),
            (["--ranges", "both"], "--ranges is 'both'; it must be one of auto, shared, per-depth"),
            (["--calibration-loops", "0"], "Invalid value for '--calibration-loops'"),
            (["--calibration-loops", "-2"], "Invalid value for '--calibration-loops'"),
            (["--calibration-loops", "257"], "Invalid value for '--calibration-loops'"),
            (["--calibration-loops", "x"], "Invalid value for '--calibration-loops'"),
            (["--keep", ""], "--keep names nothing; give layers such as coda.*, or auto"),
            (["--keep", " , ,"], "--keep names nothing"),
            *(
                ([f"--keep={keep}"], f"--keep is {keep!r}; after auto: comes one share of the weights between 0 and 1")
                for keep in (
                    "auto:0",
                    "auto:1",
                    "auto:1.5",
                    "auto:-0.1",
                    "auto:nan",
                    "auto:inf",
                    "auto:x",
                    "auto:0,5",
                    "auto,auto:0.1",
                    "head,auto:2",
                )
            ),
        ],
    )
    def test_are_refused(self, refused: Refused, gqa: Path, arguments: list[str], complaint: str) -> None:
        precision = [] if "--precision" in arguments else ["--precision", "int8"]
        assert complaint in refused("--config", gqa, *precision, *arguments)

    @pytest.mark.parametrize(
        ("precision", "keep"),
        [
            ("int8", "coda.9.*"),
            ("int4", "head,nothing"),
            ("int4", "recurrent.block.ffn.router"),
            ("int4", "embed.weight"),
        ],
    )
    @pytest.mark.parametrize("form", [["--dry-run"], ["--no-validate"]], ids=["dry run", "export"])
    def test_layers_to_keep_that_there_are_not(
        self, refused: Refused, gqa: Path, data: Path, precision: str, keep: str, form: list[str]
    ) -> None:
        calibration = ["--calibration-data", data] if precision == "int8" else []
        line = refused("--config", gqa, "--precision", precision, "--keep", keep, *calibration, *form)
        assert line.startswith(f"error: --keep {keep.split(',')[-1]!r} names no layer; layers are: head, prelude.0.")

    @pytest.mark.parametrize("form", [["--dry-run"], ["--no-validate"]], ids=["dry run", "export"])
    def test_all_layers_to_keep(self, refused: Refused, gqa: Path, form: list[str]) -> None:
        assert "--keep" in refused("--config", gqa, "--precision", "int4", "--keep", "*", *form)

    def test_every_layer_of_the_loop_to_keep_fails(self, run: Run, gqa: Path, tmp_path: Path) -> None:
        """It can be done, but what would run most often is not quantised."""
        outcome = run("--config", gqa, "--precision", "int4", "--keep", "recurrent.*", "--no-validate")
        assert outcome.code == 1
        assert outcome.err.splitlines()[-1] == (
            "failed: model.onnx: nothing inside the loop is quantised; no bundle was kept"
        )
        assert list((tmp_path / "work").iterdir()) == []


class TestData:
    @pytest.mark.parametrize(
        ("name", "rows", "complaint"),
        [
            ("x.npy", np.zeros((0, 8), np.int64), "x.npy: holds no tokens; give at least one sequence"),
            ("x.npy", np.full((2, 32), 97), "x.npy: row 0: token id 97 at position 0 is not in 0..96 (the vocabulary)"),
            ("x.npy", np.full((2, 32), -1), "x.npy: it is all padding; give sequences with real tokens"),
            ("x.npy", np.full((2, 32), 0), "x.npy: every token is id 0: that is padding, not data"),
            ("x.npy", np.zeros((2, 32), np.float32), "x.npy: holds float32, not integers"),
            (
                "x.csv",
                np.zeros((2, 32), np.int64),
                "x.csv: cannot tell what is in it; give token ids as .npy or .jsonl",
            ),
            ("x.npy", None, "x.npy: no such file"),
        ],
        ids=["empty", "another vocabulary", "padding", "one token", "floats", "another suffix", "missing"],
    )
    @pytest.mark.parametrize("precision", ["int8", "fp8"])
    def test_of_no_use(
        self, refused: Refused, gqa: Path, tmp_path: Path, precision: str, name: str, rows: Any, complaint: str
    ) -> None:
        if rows is not None:
            with (tmp_path / name).open("wb") as file:
                np.save(file, rows)
        line = refused("--config", gqa, "--precision", precision, "--calibration-data", tmp_path / name)
        assert complaint in line

    @pytest.mark.parametrize(("method", "needed"), [("minmax", 32), ("mse", 512)])
    def test_too_little(self, refused: Refused, gqa: Path, tmp_path: Path, method: str, needed: int) -> None:
        np.save(tmp_path / "x.npy", np.arange(31))
        given = ("--calibration-data", tmp_path / "x.npy", "--calibration-method", method)
        line = refused("--config", gqa, "--precision", "int8", *given)
        assert "x.npy (sha256 " in line
        assert f"31 tokens are too few for method {method}, which needs {needed}" in line

    def test_text_without_a_tokenizer(self, refused: Refused, gqa: Path, tmp_path: Path) -> None:
        (tmp_path / "x.txt").write_text("the loop runs again")
        line = refused("--config", gqa, "--precision", "int8", "--calibration-data", tmp_path / "x.txt")
        assert "text needs a tokenizer, and there is none; give token ids instead" in line

    def test_a_model_that_diverges(
        self, refused: Refused, tmp_path: Path, checkpoint: Path, gqa_config: MythosConfig, data: Path
    ) -> None:
        source = SeededWeights(gqa_config, 0)
        tensors = {name: source.read(name) for name in source.names()}
        for name in ("gate", "up"):
            tensors[f"prelude.0.ffn.{name}.weight"] *= 1e25
        save_file(tensors, tmp_path / "x.safetensors")
        (tmp_path / "gqa.json").write_text(gqa_config.to_json())
        given = ("--config", tmp_path / "gqa.json", "--checkpoint", tmp_path / "x.safetensors")
        line = refused(*given, "--precision", "int8", "--calibration-data", data)
        assert "activation prelude.0.ffn.down.input is not finite (NaN or infinite) at depth 1" in line


class TestRecipes:
    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (None, "recipe.json: cannot be read (No such file or directory)"),
            ("", "recipe.json: Invalid JSON"),
            ('{"format_version": 2}', "recipe.json: format_version: "),
        ],
    )
    def test_that_are_none(
        self, refused: Refused, gqa: Path, tmp_path: Path, content: str | None, complaint: str
    ) -> None:
        if content is not None:
            (tmp_path / "recipe.json").write_text(content)
        assert complaint in refused("--config", gqa, "--precision", "int8", "--recipe", tmp_path / "recipe.json")

    def test_of_another_model(self, refused: Refused, config_file: Path, recipe: Path) -> None:
        line = refused("--config", config_file, "--precision", "int8", "--recipe", recipe)
        assert line == "error: --recipe was made for a model of another config; calibrate this one"

    def test_whose_limits_suit_other_numbers(self, refused: Refused, gqa: Path, recipe: Path) -> None:
        edit(recipe, method="mse")
        line = refused("--config", gqa, "--precision", "fp8", "--recipe", recipe)
        assert "--recipe holds limits that mse chose for int8, not fp8; calibrate again" in line

    def test_that_lack_an_activation(self, refused: Refused, gqa: Path, recipe: Path) -> None:
        activations = json.loads(recipe.read_text())["activations"]
        del activations["head.input"]
        edit(recipe, activations=activations)
        line = refused("--config", gqa, "--precision", "int8", "--recipe", recipe)
        assert line == "error: the recipe has no range for head.input; it was made for another model"


def edit(recipe: Path, **changes: Any) -> None:
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | changes))


class TestDryRun:
    def plan(self, run: Run, tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
        outcome = run(*arguments, "--dry-run", "--json")
        assert (outcome.code, outcome.err) == (0, "")
        assert list((tmp_path / "work").iterdir()) == []
        return json.loads(outcome.out)

    def test_says_what_weights_would_take(self, run: Run, gqa: Path, tmp_path: Path) -> None:
        plans = {
            name: self.plan(run, tmp_path, "--config", gqa, "--precision", name)
            for name in ("fp32", "int8", "fp8", "int4")
        }
        parameters = plans["fp32"]["parameters"]
        assert {plan["parameters"] for plan in plans.values()} == {parameters}
        share = {name: plan["weight_bytes"] / plans["fp32"]["weight_bytes"] for name, plan in plans.items()}
        assert 0.25 < share["int8"] < 0.35
        assert 0.25 < share["fp8"] < 0.35
        assert 0.125 < share["int4"] < min(share["int8"], share["fp8"])
        assert plans["int8"]["graphs"]["model.onnx"]["QuantizeLinear"] == 44
        assert "QuantizeLinear" not in plans["int4"]["graphs"]["model.onnx"]

    def test_is_what_an_export_takes(
        self, run: Run, gqa: Path, tmp_path: Path, quantized_bundle: Callable[..., Path]
    ) -> None:
        for precision in ("int8", "int4"):
            plan = self.plan(run, tmp_path, "--config", gqa, "--precision", precision)
            bundle = Bundle.open(quantized_bundle("gqa", precision))
            size = bundle.manifest.files["model.onnx.data"].size
            assert plan["weight_bytes"] <= size < plan["weight_bytes"] + 4096 * 400, "but for whole pages"
            assert plan["parameters"] == bundle.manifest.parameters

    def test_counts_layers_to_keep(self, run: Run, gqa: Path, tmp_path: Path) -> None:
        everything = self.plan(run, tmp_path, "--config", gqa, "--precision", "int8")
        kept = self.plan(run, tmp_path, "--config", gqa, "--precision", "int8", "--keep", "prelude.*,head")
        assert kept["weight_bytes"] > everything["weight_bytes"]
        ops = kept["graphs"]["model.onnx"]
        assert ops["QuantizeLinear"] == everything["graphs"]["model.onnx"]["QuantizeLinear"] - 8

    def test_shows_ranges_by_depth(self, run: Run, gqa: Path, tmp_path: Path) -> None:
        by_depth = self.plan(run, tmp_path, "--config", gqa, "--precision", "fp8", "--ranges", "per-depth")
        shared = self.plan(run, tmp_path, "--config", gqa, "--precision", "fp8", "--ranges", "shared")
        assert by_depth["graphs"]["model.onnx"]["Mul"] > shared["graphs"]["model.onnx"]["Mul"] + 20

    def test_is_readable(self, run: Run, gqa: Path) -> None:
        outcome = run("--config", gqa, "--precision", "int8", "--dry-run")
        assert outcome.code == 0
        first, _, graph = outcome.out.splitlines()
        assert first.startswith("mythos-gqa-int8: ") and first.endswith("kB of weights (int8)")
        assert graph.endswith(" 1 Loop")


class TestExport:
    def test_json_has_what_was_quantised_and_how(
        self, run: Run, gqa: Path, data: Path, tmp_path: Path, gqa_config: MythosConfig
    ) -> None:
        given = ("--calibration-data", data, "--calibration-loops", "2", "--ranges", "per-depth", "--keep", "head")
        outcome = run("--config", gqa, "--precision", "int8", *given, "--no-validate", "--json")
        assert (outcome.code, outcome.err) == (0, "")
        record = json.loads(outcome.out)["quantization"]
        assert record["ranges"] == "per-depth"
        assert record["kept"]["head"] == "--keep"
        assert record["kept"]["*norm"] == "norms"
        assert {"recurrent.act.*", "recurrent.lora.*", "recurrent.injection.*"} < record["kept"].keys()
        assert set(record["quantized"]) == set(architecture(gqa_config).layers) - record["kept"].keys()
        assert record["kernels"] == {"MatMulIntegerToFloat": 43}
        (folder,) = (tmp_path / "work").iterdir()
        assert folder.name == "mythos-gqa-int8"
        recipe = Recipe.from_file(folder / "recipe.json")
        assert (recipe.depths, recipe.samples, recipe.tokens, recipe.method) == (2, 2, 48, "minmax")

    def test_a_recipe_is_taken_as_it_is(self, run: Run, gqa: Path, recipe: Path, tmp_path: Path) -> None:
        outcome = run("--config", gqa, "--precision", "fp8", "--recipe", recipe, "--no-validate", "-o", "out")
        assert outcome.code == 0, outcome.err
        assert "calibrat" not in outcome.err
        assert (tmp_path / "work" / "out" / "recipe.json").read_bytes() == recipe.read_bytes()

    def test_layers_that_cost_most_are_kept_and_it_costs_less(
        self, run: Run, checkpoint: Path, data: Path, tmp_path: Path, gqa_config: MythosConfig
    ) -> None:
        def bundle(*keep: str) -> Bundle:
            given = ("--checkpoint", checkpoint, "--precision", "int8", "--calibration-data", data, "--loops", "2")
            folder = tmp_path / "work" / f"bundle{len(keep)}"
            outcome = run(*given, *keep, "-o", folder)
            assert outcome.code == 0, outcome.err
            return Bundle.open(folder)

        plain, better = bundle(), bundle("--keep", "auto:0.2")
        losses = [
            ParityReport.model_validate_json(each.file("parity.json").read_text()).loss[-1].relative_error
            for each in (plain, better)
        ]
        assert losses[1] < 0.6 * losses[0]
        sizes = [each.manifest.files["model.onnx.data"].size for each in (plain, better)]
        in_float = (sizes[1] - sizes[0]) / 3 / plain.manifest.parameters  # four bytes instead of one
        record = better.manifest.quantization
        assert record is not None
        kept = record.kept
        chosen = {layer: why for layer, why in kept.items() if why.startswith("sensitive")}
        assert WORST in chosen
        costs = {layer: float(why.split("costs ")[1].split("%")[0]) for layer, why in chosen.items()}
        assert max(costs, key=costs.__getitem__) == WORST
        assert all(
            why == f"sensitive: alone it costs {costs[layer]:.2f}% of the logits" for layer, why in chosen.items()
        )
        assert 0 < in_float < 0.2


class TestSensitivity:
    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_a_row_per_layer_the_worst_first(
        self, run: Run, fragile: Callable[[str], Path], data: Path, gqa_config: MythosConfig, precision: str
    ) -> None:
        outcome = run("sensitivity", fragile(precision), "--calibration-data", data)
        assert outcome.code == 0, outcome.err
        title, how, head, *rows, together = outcome.out.splitlines()
        assert title == "int8: what each layer costs when it alone is quantised"
        assert how == "(|error| / |fp32| of the logits, 48 tokens at 1, 3, 6 loops)"
        assert head.split() == ["cost", "weights", "layer"]
        layers = [row.split()[-1] for row in rows]
        assert set(layers) <= set(architecture(gqa_config).layers) and len(set(layers)) == len(layers)
        assert len(layers) >= len(architecture(gqa_config).layers) - 3  # those that int8 leaves in float need no row
        assert layers[0] == WORST
        costs = [float(row.split("%")[0]) for row in rows]
        assert costs == sorted(costs, reverse=True)
        assert costs[0] > 3 * costs[1] > 0
        assert sum(float(row.split("%")[1]) for row in rows) == pytest.approx(100, abs=0.5)
        assert together.endswith("all of them together")
        assert float(together.split("%")[0]) > 0.8 * costs[0]

    def test_json_is_one_object_and_nothing_else(
        self, run: Run, fragile: Callable[[str], Path], data: Path, gqa_config: MythosConfig
    ) -> None:
        outcome = run("sensitivity", fragile("int4"), "--calibration-data", data, "--json")
        assert (outcome.code, outcome.err) == (0, "")
        found = json.loads(outcome.out)
        assert (found["precision"], found["loops"], found["tokens"]) == ("int4", [1, 3, 6], 48)
        assert {cost["layer"] for cost in found["layers"]} == set(architecture(gqa_config).layers)
        errors = [cost["relative_error"] for cost in found["layers"]]
        assert errors == sorted(errors, reverse=True) and errors[-1] > 0
        sizes = {cost["layer"]: cost["weights"] for cost in found["layers"]}
        assert sizes["embed"] == sizes["head"] == gqa_config.vocab_size * gqa_config.dim
        experts = gqa_config.n_experts * gqa_config.dim * gqa_config.expert_dim
        assert sizes["recurrent.block.ffn.routed_experts.*.up"] == experts

    def test_it_rounds_as_the_targets_kernels_do(
        self, run: Run, refused: Refused, make_bundle: Callable[..., Bundle], mla_config: MythosConfig, data: Path
    ) -> None:
        """No ranges are needed, and what no kernel takes has no row."""
        made = make_bundle(mla_config, target="onnxruntime")
        outcome = run("sensitivity", made.path, "--precision", "int8", "--calibration-data", data, "--json")
        assert (outcome.code, outcome.err) == (0, "")
        found = json.loads(outcome.out)
        absorbed = {name for name in architecture(mla_config).layers if ".kv_up." in name}
        assert (
            absorbed and {cost["layer"] for cost in found["layers"]} == set(architecture(mla_config).layers) - absorbed
        )
        assert all(cost["relative_error"] > 0 for cost in found["layers"])
        line = refused("sensitivity", made.path, "--precision", "fp8")
        assert line == "error: --precision is 'fp8'; for target onnxruntime it must be one of int8, int4"

    @pytest.mark.parametrize(
        ("precision", "arguments", "complaint"),
        [
            ("fp32", ["--precision", "fp16"], "--precision is 'fp16'; for target portable it must be one of int8,"),
            ("int4", ["--precision", "int8"], "has no ranges for int8; give a bundle quantised to it, or one in fp32"),
            ("fp32", ["--calibration-data", "none.npy"], "none.npy: no such file"),
            ("fp32", ["--checkpoint", "none.safetensors"], "none.safetensors: no such file"),
        ],
    )
    def test_bad_requests(
        self, refused: Refused, fragile: Callable[[str], Path], precision: str, arguments: list[str], complaint: str
    ) -> None:
        assert complaint in refused("sensitivity", fragile(precision), *arguments)

    def test_no_bundle(self, refused: Refused) -> None:
        assert "no such folder" in refused("sensitivity", "none")

    def test_too_little_data(self, refused: Refused, fragile: Callable[[str], Path], tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.arange(31))
        line = refused("sensitivity", fragile("fp32"), "--calibration-data", tmp_path / "x.npy")
        assert "31 tokens are too few for method minmax, which needs 32" in line
