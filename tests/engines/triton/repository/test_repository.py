"""A model repository: complete, ours or untouched, and never half of one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from engines.errors import EngineError
from engines.triton.repository import files, folders
from engines.triton.repository.config import parse_config
from engines.triton.repository.record import RECORD, read_record
from engines.triton.repository.write import Repository, check_repository, write_repository
from mythos_export import __version__
from mythos_export.bundle import Bundle, GraphFile, file_entry

MakeToy = Callable[..., Bundle]


def written(bundle: Bundle, destination: Path, **options: Any) -> Repository:
    return write_repository(bundle, destination, **{"backend": "python", "name": "m", **options})


def config(repository: Path, model: str) -> Any:
    return parse_config((repository / model / "config.pbtxt").read_text())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, and every empty folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


def test_the_layout_and_every_file_of_the_bundle(toy: MakeToy, tmp_path: Path) -> None:
    bundle = toy(files={"tokenizer.json": "{}"})
    (bundle.path / "engines").mkdir()
    (bundle.path / "engines" / "sm89.json").write_text("not the manifest's")
    assert written(bundle, tmp_path / "new" / "repo") == (tmp_path / "new" / "repo", "m", "m-tensors")
    repository = tmp_path / "new" / "repo"
    assert sorted(path.name for path in repository.iterdir()) == ["README.md", "m", "m-tensors", RECORD]
    for model, module in (("m", "generator"), ("m-tensors", "tensors")):
        assert Bundle.open(repository / model / "1" / "bundle").manifest == bundle.manifest
        listed = {*bundle.manifest.files, "manifest.json"}
        assert {path.name for path in (repository / model / "1" / "bundle").iterdir()} == listed
        assert (
            f"from engines.triton.backend.{module} import TritonPythonModel"
            in (repository / model / "1" / "model.py").read_text()
        )
        assert f"mythos-export[cpu]=={__version__}" in (repository / model / "requirements.txt").read_text()
        assert config(repository, model).name == model
        assert config(repository, model).backend == "python"
    assert config(repository, "m-tensors").max_batch_size == 0
    readme = (repository / "README.md").read_text()
    assert "models/m/generate" in readme and "COPY m/requirements.txt" in readme and "mythos-export serve" in readme
    assert list((tmp_path / "new").iterdir()) == [repository], "nothing is left beside it"


@pytest.mark.parametrize("fixture", ["tiny_bundle", "tiny_gqa_bundle"])
def test_the_graph_that_the_onnxruntime_backend_loads_computes_the_same(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = Bundle.open(request.getfixturevalue(fixture))
    repository = write_repository(bundle, tmp_path / "repo", device="gpu").path
    folder = repository / "tiny-tensors"
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["model.onnx", "model.onnx.data"]
    assert config(repository, "tiny-tensors").instance_group[0].kind == 1, "KIND_GPU"
    assert config(repository, "tiny").instance_group[0].kind == 2, "the generator's is the CPU"
    inputs = {
        spec.name: np.zeros(
            [{"past": 0, "past_plus_seq": 3, "seq": 3, "loops": 2, "batch": 1}.get(size, size) for size in spec.shape],  # type: ignore[arg-type, call-overload]
            spec.dtype,
        )
        for spec in bundle.manifest.inputs
    }
    inputs |= {"attention_mask": np.ones((1, 3), np.int64), "n_loops": np.array([2])}
    alone, served = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)
        for path in (bundle.path / "model.onnx", folder / "1" / "model.onnx")
    )
    assert alone[0].shape == (1, 3, 97)
    for one, other in zip(alone, served):
        np.testing.assert_array_equal(one, other)


def test_of_several_graphs_the_loop_is_served(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    shutil.copy(folder / "model.onnx", folder / "loop.onnx")
    (folder / "model.onnx").write_bytes(b"unrolled, say")
    manifest = Bundle.open(tiny_bundle).manifest
    bundle = Bundle(
        folder,
        manifest.model_copy(
            update={
                "graphs": [GraphFile(file="model.onnx", loops=4), GraphFile(file="loop.onnx", loops="dynamic")],
                "files": {path.name: file_entry(path) for path in folder.iterdir() if path.name != "manifest.json"},
            }
        ),
    )
    version = write_repository(bundle, tmp_path / "repo", name="m").path / "m-tensors" / "1"
    assert (version / "model.onnx").read_bytes() == (folder / "loop.onnx").read_bytes()
    assert sorted(path.name for path in version.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_what_the_server_must_know_of_a_quantised_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    session = {"session.disable_quant_qdq": "1"}
    bundle = Bundle(opened.path, opened.manifest.model_copy(update={"session": session, "minimum_runtime": "1.31"}))
    repository = write_repository(bundle, tmp_path / "repo", name="m").path
    assert config(repository, "m-tensors").optimization.graph.level == -1, "the basic optimisers only"
    assert "ONNX Runtime 1.31 or later" in (repository / "README.md").read_text()
    assert "onnxruntime>=1.31" in (repository / "m" / "requirements.txt").read_text()
    unknown = Bundle(opened.path, opened.manifest.model_copy(update={"session": {"session.new": "1"}}))
    with pytest.raises(EngineError, match=r"'session\.new'.*use --backend python"):
        write_repository(unknown, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("link", [False, True])
def test_files_are_copied_once_or_linked(toy: MakeToy, tmp_path: Path, link: bool) -> None:
    """Unless asked for, the bundle gets no second name: the onnx package refuses files that have one."""
    bundle = toy()
    copied: list[int] = []
    repository = written(bundle, tmp_path / "repo", link=link, progress=copied.append).path
    for name in (*bundle.manifest.files, "manifest.json"):
        first, second = (repository / model / "1" / "bundle" / name for model in ("m", "m-tensors"))
        assert first.samefile(second)
        assert first.read_bytes() == (bundle.path / name).read_bytes()
        assert first.samefile(bundle.path / name) == link
    size = bundle.total_bytes + (bundle.path / "manifest.json").stat().st_size
    assert sum(copied) == (0 if link else size)


@pytest.mark.parametrize("reason", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_files_are_copied_where_links_are_not_possible(
    toy: MakeToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(files.os, "link", fail)
    bundle = toy()
    copy = written(bundle, tmp_path / "repo", link=True).path / "m" / "1" / "bundle"
    assert Bundle.open(copy).manifest == bundle.manifest
    assert not (copy / "manifest.json").samefile(bundle.path / "manifest.json")


def test_settings_are_the_generators_parameters(toy: MakeToy, tmp_path: Path) -> None:
    repository = written(toy(), tmp_path / "repo", settings={"max_batch": 3}).path
    assert {k: v.string_value for k, v in config(repository, "m").parameters.items()} == {"max_batch": "3"}
    assert not config(repository, "m-tensors").parameters


def test_a_second_bundle_is_added_and_the_first_stays(toy: MakeToy, tmp_path: Path) -> None:
    destination = tmp_path / "repo"
    written(toy(), destination)
    (destination / "mine").mkdir()
    (destination / "notes.txt").write_text("mine too")
    first = tree(destination / "m") | tree(destination / "m-tensors")
    written(toy(), destination, name="n", settings={"threads": 1})
    assert tree(destination / "m") | tree(destination / "m-tensors") == first
    assert [entry.generator for entry in read_record(destination).entries] == ["m", "n"]
    assert {path.name for path in destination.iterdir()} == {
        *("m", "m-tensors", "n", "n-tensors"),
        *("README.md", RECORD, "mine", "notes.txt"),
    }
    readme = (destination / "README.md").read_text()
    assert "COPY m/requirements.txt" in readme and "COPY n/requirements.txt" in readme


def test_a_model_of_the_same_name_is_replaced_with_force_only(toy: MakeToy, tmp_path: Path) -> None:
    destination = tmp_path / "repo"
    written(toy(), destination, settings={"max_batch": 3})
    before = tree(destination)
    for check in (check_repository, write_repository):
        with pytest.raises(EngineError, match=r"repo/m: exists already; pass --force"):
            check(toy(), destination, backend="python", name="m")
    assert tree(destination) == before
    written(toy(), destination, settings={"max_batch": 5}, force=True)
    assert config(destination, "m").parameters["max_batch"].string_value == "5"
    assert len(read_record(destination).entries) == 1
    assert list(tmp_path.glob(".*")) == []


def test_the_repositorys_own_bundle_can_replace_itself(toy: MakeToy, tmp_path: Path) -> None:
    repository = written(toy(), tmp_path / "repo").path
    again = Bundle.open(repository / "m" / "1" / "bundle")
    written(again, repository, force=True)
    assert Bundle.open(repository / "m" / "1" / "bundle").manifest == again.manifest


def test_an_empty_folder_is_taken(toy: MakeToy, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    assert read_record(written(toy(), tmp_path / "repo").path).names() == {"m", "m-tensors"}


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder with something": (lambda path: (path / "x").mkdir(parents=True), f"no {RECORD}"),
    "a file": (lambda path: path.write_text("x"), "exists and is no folder"),
    "a damaged record": (lambda path: (path.mkdir(), (path / RECORD).write_text("{")), "not a usable record"),
    "a record of paths": (
        lambda path: (
            path.mkdir(),
            (path / RECORD).write_text(
                '{"format_version":1,"tool":"","entries":[{"generator":"../x","tensors":"t","backend":"python",'
                '"device":"cpu","bundle":"","precision":"","text":true,"notes":[]}]}'
            ),
        ),
        r"entries\.0\.generator",
    ),
    "a record that is a link": (
        lambda path: (path.mkdir(), (path / RECORD).symlink_to("/etc/hostname")),
        "not a record of mythos-export's",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_ours_stays(toy: MakeToy, tmp_path: Path, kind: str, force: bool) -> None:
    make, message = FOREIGN[kind]
    destination = tmp_path / "theirs"
    make(destination)
    before = tree(tmp_path)
    bundle = toy()
    with pytest.raises(EngineError, match=message):
        written(bundle, destination, force=force)
    assert {name: held for name, held in tree(tmp_path).items() if not name.startswith("toy")} == before


def test_a_model_of_someone_elses_in_our_repository_stays(toy: MakeToy, tmp_path: Path) -> None:
    destination = written(toy(), tmp_path / "repo").path
    (destination / "n-tensors").mkdir()
    with pytest.raises(EngineError, match="n-tensors: exists and is not mythos-export's"):
        written(toy(), destination, name="n", force=True)
    assert not (destination / "n").exists()


def test_a_model_that_someone_has_replaced_by_a_link_stays(toy: MakeToy, tmp_path: Path) -> None:
    destination = written(toy(), tmp_path / "repo").path
    (destination / "m").rename(tmp_path / "elsewhere")
    (destination / "m").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match="is no longer what mythos-export wrote"):
        written(toy(), destination, force=True)
    assert (tmp_path / "elsewhere" / "1" / "model.py").is_file()


def test_a_link_that_is_no_longer_wanted_is_not_removed(toy: MakeToy, tmp_path: Path) -> None:
    destination = written(toy(), tmp_path / "repo").path
    (destination / "m-tensors").rename(tmp_path / "elsewhere")
    (destination / "m-tensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match="m-tensors: is no longer what mythos-export wrote"):
        written(toy(), destination, tensors=False, force=True)
    assert (destination / "m-tensors").is_symlink() and (tmp_path / "elsewhere" / "config.pbtxt").is_file()


@pytest.mark.parametrize(("first", "second"), [("m", "m-tensors"), ("m-tensors", "m")])
def test_one_bundles_generator_is_not_anothers_tensors(toy: MakeToy, tmp_path: Path, first: str, second: str) -> None:
    destination = written(toy(), tmp_path / "repo", name=first).path
    with pytest.raises(EngineError, match=f"{second} and {second}-tensors must be free"):
        written(toy(), destination, name=second, force=True)


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".a", "-a", "a b", "ä", "a\n", "a" * 93])
def test_names_that_are_no_models(toy: MakeToy, tmp_path: Path, name: str) -> None:
    bundle = toy()
    with pytest.raises(EngineError, match="cannot be a model's name in Triton; pass --name"):
        written(bundle, tmp_path / "repo", name=name)
    hostile = Bundle(bundle.path, bundle.manifest.model_copy(update={"name": name}))
    with pytest.raises(EngineError, match="cannot be a model's name in Triton; pass --name"):
        written(hostile, tmp_path / "repo", name=None)
    assert not (tmp_path / "repo").exists()


def test_a_hostile_bundle_name_does_not_break_the_readme(toy: MakeToy, tmp_path: Path) -> None:
    bundle = toy()
    hostile = Bundle(bundle.path, bundle.manifest.model_copy(update={"name": "`|\n# <b>[x](y)"}))
    readme = (written(hostile, tmp_path / "repo").path / "README.md").read_text()
    assert "| `m` | generates from `???# ?b??x?(y)` (fp32) |" in readme


@pytest.mark.parametrize("inside", [".", "repo", "deep/er"])
def test_a_repository_inside_the_bundle(toy: MakeToy, tmp_path: Path, inside: str) -> None:
    bundle = toy()
    before = tree(bundle.path)
    (tmp_path / "link").symlink_to(bundle.path)
    for path in (bundle.path / inside, tmp_path / "link" / inside):
        with pytest.raises(EngineError, match="lies inside the bundle"):
            written(bundle, path, force=True)
    assert tree(bundle.path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "pytorch"}, "backend is 'pytorch'; it must be onnxruntime, tensorrt, python"),
        ({"device": "tpu"}, "device is 'tpu'; it must be cpu or gpu"),
        ({"backend": "python", "device": "gpu"}, "use --backend onnxruntime for a GPU"),
        ({"backend": "tensorrt"}, "pass --device gpu"),
        ({"settings": {"max_batch": 0}}, "max_batch is 0"),
    ],
)
def test_what_cannot_be_asked_for(toy: MakeToy, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    bundle = toy()
    for write in (check_repository, written):
        with pytest.raises(EngineError, match=message):
            write(bundle, tmp_path / "repo", **options)
    assert not (tmp_path / "repo").exists()


def test_the_generator_alone(toy: MakeToy, tmp_path: Path) -> None:
    bundle, where = toy(dtype="bfloat16"), tmp_path / "repo"
    made = write_repository(bundle, where, tensors=False, name="m")  # bf16 matters to the other model only
    assert (made.generator, made.tensors) == ("m", None)
    assert {path.name for path in where.iterdir()} == {"README.md", "mythos-repository.json", "m"}
    readme = (where / "README.md").read_text()
    assert "m-tensors" not in readme and "mythos-export serve" in readme
    write_repository(bundle, where, backend="python", name="m-tensors", tensors=False)
    with pytest.raises(EngineError, match="m and m-tensors must be free, and m-tensors is there"):
        write_repository(bundle, where, backend="python", name="m", force=True)


def test_a_model_that_is_no_longer_wanted_goes(toy: MakeToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, where = toy(), tmp_path / "repo"
    for name in ("a", "b"):
        write_repository(bundle, where, backend="python", name=name)
    before = tree(where)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "a-tensors":
            raise OSError(5, "no")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(EngineError, match="nothing was kept"):
            write_repository(bundle, where, backend="python", name="a", tensors=False, force=True)
    assert tree(where) == before
    write_repository(bundle, where, backend="python", name="a", tensors=False, force=True)
    assert {path.name for path in where.iterdir() if path.is_dir()} == {"a", "b", "b-tensors"}
    assert read_record(where).names() == {"a", "b", "b-tensors"}
    write_repository(bundle, where, backend="python", name="a", force=True)
    assert (where / "a-tensors" / "config.pbtxt").is_file()


def test_bf16_is_for_the_python_backend(toy: MakeToy, tmp_path: Path) -> None:
    bundle = toy(dtype="bfloat16")
    for write in (check_repository, write_repository):
        with pytest.raises(EngineError, match=r"^Triton's ONNX Runtime backend takes no bf16 .* --backend python$"):
            write(bundle, tmp_path / "repo", backend="onnxruntime")
    assert not (tmp_path / "repo").exists()
    repository = write_repository(bundle, tmp_path / "repo", backend="python", name="m").path
    assert "TYPE_BF16" in (repository / "m-tensors" / "config.pbtxt").read_text()


def test_weights_under_the_graphs_name_do_not_overwrite_it(tiny_bundle: Path, tmp_path: Path) -> None:
    """A hostile graph may call its weights what it likes; what is linked here is the bundle itself."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "model.onnx"
    (folder / "model.onnx.data").rename(folder / "weights")
    (folder / "graph.onnx").write_bytes(model.SerializeToString())
    (folder / "weights").rename(folder / "model.onnx")
    manifest = Bundle.open(tiny_bundle).manifest
    entries = {path.name: file_entry(path) for path in folder.iterdir() if path.name != "manifest.json"}
    graphs = [GraphFile(file="graph.onnx", loops="dynamic")]
    bundle = Bundle(folder, manifest.model_copy(update={"graphs": graphs, "files": entries}))
    before = tree(folder)
    with pytest.raises(EngineError, match=r"keeps its weights in model\.onnx"):
        write_repository(bundle, tmp_path / "repo")
    assert tree(folder) == before and not (tmp_path / "repo").exists()


class Crash(BaseException):
    """As Ctrl-C comes: not an Exception."""


@pytest.mark.parametrize("step", range(1, 9))
@pytest.mark.parametrize("adding", [False, True])
def test_wherever_it_is_interrupted_nothing_is_half_there(
    toy: MakeToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, adding: bool
) -> None:
    """The exchange of names, one rename at a time: eight for four entries that all replace something."""
    bundle, destination = toy(), tmp_path / "repo"
    written(bundle, destination)
    if adding:
        written(bundle, destination, name="n")
    before = tree(destination)
    done, rename = 0, Path.rename

    def crash(self: Path, target: Path) -> Path:
        nonlocal done
        done += 1
        if done == step:
            raise Crash
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(Crash):
        written(bundle, destination, settings={"max_batch": 7}, force=True)
    assert tree(destination) == before
    assert list(tmp_path.glob(".*")) == []
    monkeypatch.undo()
    written(bundle, destination, settings={"max_batch": 7}, force=True)
    assert tree(destination) != before


@pytest.mark.parametrize("function", ["write_generator", "write_tensors"])
def test_a_failure_while_writing_leaves_nothing(
    toy: MakeToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folders, "_write_config", full)
    bundle = toy()
    if function == "write_tensors":
        monkeypatch.setattr("engines.triton.repository.write.write_generator", lambda *_: None)
    with pytest.raises(EngineError, match=r"cannot be written.*No space left on device.*nothing was kept"):
        written(bundle, tmp_path / "new" / "parents" / "repo")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(toy: MakeToy, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(EngineError, match="Permission denied"):
        written(toy(), tmp_path / "locked" / "repo")


def test_a_folder_that_cannot_be_made(toy: MakeToy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for destination in (tmp_path / "file" / "repo", tmp_path / "file" / "deep" / "repo"):
        with pytest.raises(EngineError, match=r"cannot be written.*nothing was kept"):
            written(toy(), destination)
    assert (tmp_path / "file").read_text() == "x"


def test_another_writer_in_between(toy: MakeToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, destination = toy(), tmp_path / "repo"
    written(bundle, destination)
    from engines.triton.repository import write as writer

    write = writer.write_tensors

    def slow(*arguments: Any) -> list[str]:
        monkeypatch.undo()
        written(bundle, destination, name="quick")
        return write(*arguments)

    monkeypatch.setattr(writer, "write_tensors", slow)
    with pytest.raises(EngineError, match="changed while this was written"):
        written(bundle, destination, name="late")
    assert read_record(destination).names() == {"m", "m-tensors", "quick", "quick-tensors"}


def test_a_destination_that_is_a_link_is_followed(toy: MakeToy, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "repo").symlink_to(tmp_path / "disk")
    assert written(toy(), tmp_path / "repo").path == tmp_path / "disk"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(EngineError, match="circle"):
        written(toy(), tmp_path / "circle")


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mythos_export":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("model", ["m", "m-tensors"])
@pytest.mark.parametrize("case", ["absent", "another"])
def test_a_server_without_the_right_release_is_told_where_to_look(
    toy: MakeToy, tmp_path: Path, model: str, case: str
) -> None:
    folder = written(toy(), tmp_path / "repo").path / model
    code = (folder / "1" / "model.py").read_text()
    if case == "another":
        code = code.replace(f'NEEDED = "{__version__}"', 'NEEDED = "9.8.7"')
        (folder / "1" / "model.py").write_text(code)
    program = (WITHOUT if case == "absent" else "") + "import runpy, sys; runpy.run_path(sys.argv[1])"
    ran = subprocess.run(
        [sys.executable, "-c", program, str(folder / "1" / "model.py")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    said = (
        f"needs mythos-export {__version__}"
        if case == "absent"
        else f"needs mythos-export 9.8.7, and this is {__version__}"
    )
    assert ran.stderr.splitlines()[-1] == f"ImportError: {said}; run: pip install -r {folder / 'requirements.txt'}"


def test_a_server_started_among_files_of_our_names_says_so(toy: MakeToy, tmp_path: Path) -> None:
    model = written(toy(), tmp_path / "repo").path / "m" / "1" / "model.py"
    (tmp_path / "engines.py").write_text("print('the wrong code ran')")
    ran = subprocess.run(
        [sys.executable, "-c", "import runpy, sys; runpy.run_path(sys.argv[1])", str(model)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])},
    )
    assert ran.stdout == ""
    assert f"{tmp_path / 'engines.py'} hides mythos-export's own package engines" in ran.stderr.splitlines()[-1]


def test_the_record_reads_as_json(toy: MakeToy, tmp_path: Path) -> None:
    repository = written(toy(), tmp_path / "repo").path
    (entry,) = json.loads((repository / RECORD).read_text())["entries"]
    assert (entry["generator"], entry["tensors"], entry["backend"], entry["text"]) == (
        "m",
        "m-tensors",
        "python",
        False,
    )
