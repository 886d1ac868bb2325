"""Opening a bundle: whatever is wrong with it is one line, before anything is loaded."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mythos_export.bundle import FORMAT_VERSION, Bundle, BundleError, Manifest, file_entry, is_bundle

Change = Callable[[dict[str, Any]], None]


def write_graph(file: Path, location: str) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    file.write_bytes(helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString())


def write_manifest(folder: Path, values: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(values))


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())  # type: ignore[no-any-return]


def rehash(folder: Path) -> None:
    """Let the manifest vouch for what its files hold now."""
    values = read_manifest(folder)
    values["files"] = {name: file_entry(folder / name).model_dump() for name in values["files"]}
    write_manifest(folder, values)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a graph without nodes; nothing here runs it."""
    folder = tmp_path_factory.mktemp("original") / "bundle"
    folder.mkdir()
    write_graph(folder / "model.onnx", "model.onnx.data")
    (folder / "model.onnx.data").write_bytes(bytes(range(16)))
    (folder / "config.json").write_text("{}")
    manifest = Manifest(
        format_version=1,
        name="tiny",
        tool={"mythos-export": "0"},
        created="2026-01-01T00:00:00+00:00",
        command=["mythos-export"],
        source={"kind": "seed", "seed": 0},
        target="portable",
        precision="fp32",
        opset=21,
        loops="dynamic",
        graphs=[{"file": "model.onnx", "loops": "dynamic"}],  # type: ignore[list-item]
        inputs=[{"name": "input_ids", "dtype": "int64", "shape": ["batch", "seq"]}],  # type: ignore[list-item]
        outputs=[],
        cache=[{"name": "recurrent.latent", "depth": "loops", "row": [4], "dtype": "float32"}],  # type: ignore[list-item]
        limits={"vocab_size": 97, "max_seq_len": 256, "max_loop_iters": 6},  # type: ignore[arg-type]
        parameters=4,
        spectral_radius=0.5,
        files={path.name: file_entry(path) for path in folder.iterdir()},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(BundleError) as raised:
        Bundle.open(path, **options)
    assert str(raised.value).isprintable()
    return str(raised.value)


def test_an_undamaged_copy_opens(bundle: Path) -> None:
    assert Bundle.open(bundle).total_bytes > 16


def test_files_that_nobody_lists_are_left_alone(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    assert "notes.txt" not in Bundle.open(bundle).manifest.files


def test_a_linked_folder_opens(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(bundle)
    assert Bundle.open(tmp_path / "latest").manifest.name == "tiny"


@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx", "config.json"])
def test_a_flipped_byte(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    assert f"{name}: altered since it was exported" in refusal(bundle)


@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx", "config.json"])
def test_a_truncated_file_shows_without_hashing(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes((bundle / name).read_bytes()[:-1])
    assert "bytes where the manifest says" in refusal(bundle, check_hashes=False)


@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx", "config.json"])
def test_a_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert f"{name}: missing" in refusal(bundle, check_hashes=False)


class TestFolder:
    def test_that_is_not_there(self, tmp_path: Path) -> None:
        assert "no such folder" in refusal(tmp_path / "none")

    def test_that_is_a_file(self, bundle: Path) -> None:
        assert "not a folder" in refusal(bundle / "model.onnx")

    def test_below_a_file(self, bundle: Path) -> None:
        assert "Not a directory" in refusal(bundle / "model.onnx" / "x")

    def test_without_a_manifest(self, tmp_path: Path) -> None:
        assert "no manifest.json" in refusal(tmp_path)

    def test_of_an_impossible_name(self, tmp_path: Path) -> None:
        assert "name too long" in refusal(tmp_path / ("x" * 300))

    def test_of_an_ugly_name_is_named_without_its_escapes(self, tmp_path: Path) -> None:
        assert "a?[31mb?c" in refusal(tmp_path / "a\x1b[31mb\nc")


class TestManifest:
    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{}x", b"[" * 200_000, b"1" * 5000, b'{"a": NaN}'])
    def test_that_is_not_json(self, bundle: Path, content: bytes) -> None:
        (bundle / "manifest.json").write_bytes(content)
        assert "manifest.json: not valid" in refusal(bundle)

    @pytest.mark.parametrize("content", ["[]", "null", '"x"', "7", "{}", "[{}]"])
    def test_of_something_else(self, bundle: Path, content: str) -> None:
        (bundle / "manifest.json").write_text(content)
        assert "no format_version, so not a mythos-export manifest" in refusal(bundle)

    @pytest.mark.parametrize("version", ["1", True, -1, 0, None, 1.0, [1]])
    def test_of_no_version(self, bundle: Path, version: object) -> None:
        write_manifest(bundle, read_manifest(bundle) | {"format_version": version})
        assert "no format_version" in refusal(bundle)

    @pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 10**9, 10**300])
    def test_of_a_later_format_says_to_upgrade(self, bundle: Path, version: int) -> None:
        write_manifest(bundle, {"format_version": version, "unknown": "fields"})
        assert "upgrade mythos-export" in refusal(bundle)

    def test_with_one_name_twice(self, bundle: Path) -> None:
        text = (bundle / "manifest.json").read_text()
        (bundle / "manifest.json").write_text(text[:-1] + ', "format_version": 1}')
        assert "not valid JSON" in refusal(bundle)

    def test_of_megabytes(self, bundle: Path) -> None:
        write_manifest(bundle, read_manifest(bundle) | {"source": {"junk": "x" * (5 << 20)}})
        assert "too large" in refusal(bundle)

    def test_of_gigabytes_is_not_read(self, bundle: Path) -> None:
        os.truncate(bundle / "manifest.json", 10 << 30)
        assert "too large" in refusal(bundle)

    def test_that_is_a_pipe_is_not_waited_for(self, bundle: Path) -> None:
        (bundle / "manifest.json").unlink()
        os.mkfifo(bundle / "manifest.json")
        assert "not a regular file" in refusal(bundle)

    def test_that_is_a_device_is_not_read(self, bundle: Path) -> None:
        (bundle / "manifest.json").unlink()
        (bundle / "manifest.json").symlink_to("/dev/zero")
        assert "not a regular file" in refusal(bundle)

    @pytest.mark.parametrize(
        ("change", "where"),
        [
            (lambda values: values.pop("graphs"), "graphs"),
            (lambda values: values.update(graphs=[]), "graphs"),
            (lambda values: values.update(graphs="model.onnx"), "graphs"),
            (lambda values: values["graphs"][0].update(loops=0), "graphs.0.loops"),
            (lambda values: values["graphs"][0].update(loops="8"), "graphs.0.loops"),
            (lambda values: values["cache"][0].update(depth=-1), "cache.0.depth"),
            (lambda values: values["cache"][0].update(row=[-4]), "cache.0.row.0"),
            (lambda values: values["cache"][0].update(row=[10**30]), "cache.0.row.0"),
            (lambda values: values["limits"].update(vocab_size=0), "limits.vocab_size"),
            (lambda values: values["limits"].update(max_seq_len=10**40), "limits.max_seq_len"),
            (lambda values: values["limits"].update(max_loop_iters="6"), "limits.max_loop_iters"),
            (lambda values: values.update(spectral_radius=1e999), "not valid JSON"),
            (lambda values: values["files"]["config.json"].update(sha256="0" * 63), "files.config.json.sha256"),
            (lambda values: values["files"]["config.json"].update(size=-1), "files.config.json.size"),
            (lambda values: values["files"]["config.json"].update(size="2"), "files.config.json.size"),
            (lambda values: values.update(extra=1), "extra"),
            (lambda values: values.update({"x" * 1_000_000: 1}), "xxx"),
            (lambda values: values.update({"\x1b[2J\n": 1}), "?[2J?"),
        ],
    )
    def test_of_a_wrong_value_says_where(self, bundle: Path, change: Change, where: str) -> None:
        values = read_manifest(bundle)
        change(values)
        write_manifest(bundle, values)
        message = refusal(bundle)
        assert where in message
        assert len(message) < 1000

    def test_that_overflows_a_float(self, bundle: Path) -> None:
        text = (bundle / "manifest.json").read_text().replace('"spectral_radius":0.5', '"spectral_radius":1e999')
        (bundle / "manifest.json").write_text(text)
        assert "spectral_radius" in refusal(bundle)


class TestFileNames:
    @pytest.mark.parametrize(
        "name",
        ["../x", "a/../../x", "/etc/hostname", ".", "..", "", "a//b", "./config.json", "..\\x", "manifest.json"],
    )
    def test_that_no_bundle_holds(self, bundle: Path, name: str) -> None:
        assert "refused" in refusal(self.listing(bundle, name))

    @pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\0b", "a\udcff"])
    def test_that_cannot_be_printed(self, bundle: Path, name: str) -> None:
        assert "which no bundle holds; refused" in refusal(self.listing(bundle, name))

    def test_that_are_too_long(self, bundle: Path) -> None:
        assert "name too long" in refusal(self.listing(bundle, "x" * 300))

    def test_a_file_outside_is_not_even_measured(self, bundle: Path) -> None:
        (bundle.parent / "secret").write_bytes(bytes(16))
        entry = file_entry(bundle.parent / "secret")
        values = read_manifest(bundle)
        values["files"]["../secret"] = entry.model_dump()
        write_manifest(bundle, values)
        assert "leads out of the bundle" in refusal(bundle)

    def test_a_linked_file(self, bundle: Path) -> None:
        (bundle / "model.onnx.data").rename(bundle.parent / "elsewhere")
        (bundle / "model.onnx.data").symlink_to(bundle.parent / "elsewhere")
        assert "leads out of the bundle" in refusal(bundle)

    def test_a_linked_folder_within(self, bundle: Path) -> None:
        (bundle.parent / "outside").mkdir()
        (bundle.parent / "outside" / "x").write_bytes(b"")
        (bundle / "engines").symlink_to(bundle.parent / "outside")
        assert "leads out of the bundle" in refusal(self.listing(bundle, "engines/x"))

    def test_a_circle_of_links(self, bundle: Path) -> None:
        (bundle / "engines").symlink_to("engines")
        assert "engines/x" in refusal(self.listing(bundle, "engines/x"))

    def test_a_pipe(self, bundle: Path) -> None:
        os.mkfifo(bundle / "x")
        assert "not a regular file" in refusal(self.listing(bundle, "x"))

    def test_a_folder(self, bundle: Path) -> None:
        (bundle / "x").mkdir()
        assert "not a regular file" in refusal(self.listing(bundle, "x"))

    @staticmethod
    def listing(bundle: Path, name: str) -> Path:
        """The same bundle, its manifest listing one file more."""
        values = read_manifest(bundle)
        values["files"][name] = {"sha256": "0" * 64, "size": 0}
        write_manifest(bundle, values)
        return bundle


class TestGraph:
    @pytest.mark.parametrize(
        "location", ["../../etc/hostname", "/etc/hostname", "../model.onnx.data", "x\n\x1b[2J", ""]
    )
    def test_that_reads_outside_the_bundle(self, bundle: Path, location: str) -> None:
        write_graph(bundle / "model.onnx", location)
        rehash(bundle)
        assert "which is not a file of this bundle; refused" in refusal(bundle)

    def test_that_reads_a_file_nobody_hashed(self, bundle: Path) -> None:
        shutil.copy(bundle / "model.onnx.data", bundle / "other.data")
        write_graph(bundle / "model.onnx", "other.data")
        rehash(bundle)
        assert "reads 'other.data', which is not a file of this bundle" in refusal(bundle)

    def test_that_is_none(self, bundle: Path) -> None:
        (bundle / "model.onnx").write_bytes(b"not a graph")
        rehash(bundle)
        assert "not an ONNX graph" in refusal(bundle)

    def test_that_has_no_hash(self, bundle: Path) -> None:
        values = read_manifest(bundle)
        del values["files"]["model.onnx"]
        write_manifest(bundle, values)
        assert "names the graph 'model.onnx' but not its hash" in refusal(bundle)

    def test_in_a_folder_reads_beside_itself(self, bundle: Path) -> None:
        (bundle / "deep").mkdir()
        for name in ("model.onnx", "model.onnx.data"):
            (bundle / name).rename(bundle / "deep" / name)
        values = read_manifest(bundle)
        values["graphs"][0]["file"] = "deep/model.onnx"
        values["files"] = {f"deep/{name}": values["files"][name] for name in ("model.onnx", "model.onnx.data")}
        write_manifest(bundle, values)
        assert Bundle.open(bundle).file("deep/model.onnx").is_file()


def test_the_test_graph_is_a_model(original: Path) -> None:
    """Guards the tests above: the location is where onnx itself looks for it."""
    graph = onnx.load(original / "model.onnx", load_external_data=False).graph
    assert graph.initializer[0].external_data[0].value == "model.onnx.data"


def test_a_file_that_the_manifest_does_not_list(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no tokenizer\.json in this bundle"):
        Bundle.open(bundle).file("tokenizer.json")


@pytest.mark.parametrize(
    "content", ['{"manifest_version": 3, "files": {}}', '{"name": "my app", "icons": []}', "[]", "{"]
)
def test_another_programs_manifest_makes_no_bundle(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    assert not is_bundle(tmp_path)


def test_a_damaged_bundle_and_one_of_a_later_format_are_bundles(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    write_manifest(bundle, read_manifest(bundle) | {"format_version": 7})
    assert is_bundle(bundle)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["../x", "/etc/passwd", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_change_to_a_manifest_is_harmless_or_one_kind_of_error(original: Path, data: st.DataObject) -> None:
    """The original is opened through a manifest of its own folder, beside its files."""
    values = copy.deepcopy(read_manifest(original))
    holder: Any = values
    while True:
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not (isinstance(holder[key], (dict, list)) and holder[key] and data.draw(st.booleans())):
            break
        holder = holder[key]
    change = data.draw(st.sampled_from(["replace", "rename", "remove"]))
    if change == "replace":
        holder[key] = data.draw(JSON_VALUES)
    elif isinstance(holder, dict):
        value = holder.pop(key)
        if change == "rename":
            holder[data.draw(st.text())] = value
    attempt(original, json.dumps(values).encode())


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_flipped_bytes_in_a_manifest_are_harmless_or_one_kind_of_error(original: Path, data: st.DataObject) -> None:
    content = bytearray((original / "manifest.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    attempt(original, bytes(content))


def attempt(original: Path, manifest: bytes) -> None:
    folder = original.parent / "mutated"
    if not folder.exists():
        shutil.copytree(original, folder)
    (folder / "manifest.json").write_bytes(manifest)
    try:
        opened = Bundle.open(folder)
    except BundleError as error:
        assert str(error).isprintable()
    else:
        assert all((folder / name).is_file() for name in opened.manifest.files)
