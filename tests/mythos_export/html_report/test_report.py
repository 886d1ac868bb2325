"""What the page says of a bundle: any bundle, a hostile one too, in little room and nothing from elsewhere."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from mythos_export.bundle import Bundle, file_entry
from mythos_export.html_report.blocks import Table, by_depth, shade
from mythos_export.html_report.page import clean, render
from mythos_export.html_report.subject import Subject, read_subject
from mythos_export.html_report.verdict import verdict_of
from mythos_export.html_report.write import REPORT, remake_report
from mythos_export.records.measurements import Evaluation, Latency
from mythos_export.records.parity import ParityReport
from reference_model.open_mythos.config import MythosConfig

Copy = Callable[[Path], Path]
MINUS = "\N{MINUS SIGN}"


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(path: Path) -> Page:
    return Page(Bundle.open(path).file(REPORT).read_text(encoding="utf-8"))


def check_self_contained(page: Page) -> None:
    """Nothing runs, nothing is fetched."""
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "img", "form", "base", "use", "image"}
        assert not [name for name in attributes if name.startswith("on") or name in {"src", "style", "srcset"}]
        assert re.fullmatch(r"#[a-z]+|data:,", attributes.get("href") or "#a"), attributes


def check_headings(page: Page) -> None:
    """One h1, and no level left out."""
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))


class TestAnyBundle:
    def test_an_unproven_one_says_so(self, tiny_bundle: Path) -> None:
        page = page_of(tiny_bundle)
        assert "Not compared with PyTorch" in page.text
        assert page.text.endswith("Every chart's numbers are beneath it.")  # no other file has them
        assert "Not compared: export without --no-validate" in page.text
        assert "mythos-export evaluate BUNDLE --json > FILE" in page.text
        assert "What quantizing costs" not in page.text
        check_self_contained(page)
        check_headings(page)

    def test_it_says_which_files_hold_the_numbers_and_what_was_compared(
        self, proven_int8: Path, copy: Copy, accuracy: dict[str, Any], latency: dict[str, Any]
    ) -> None:
        assert "in parity.json and recipe.json as they were measured" in page_of(proven_int8).text
        assert re.search(r"Same top token [0-9.]+ % as PyTorch that rounds alike", page_of(proven_int8).text)
        path = copy(proven_int8)
        remake_report(Bundle.open(path), Evaluation.model_validate(accuracy), Latency.model_validate(latency))
        assert "in parity.json, recipe.json, accuracy.json and latency.json as" in page_of(path).text

    def test_a_proven_one_says_at_which_loops_and_what_it_costs(self, proven_int8: Path) -> None:
        page, bundle = page_of(proven_int8), Bundle.open(proven_int8)
        assert "Equal to PyTorch that rounds alike, at 1, 2, 4, 6, 8, 12 and 16 loops" in page.text
        parity = json.loads(bundle.file("parity.json").read_text())
        worst = max(parity["loss"], key=lambda loss: loss["relative_error"])
        assert f"{100 * worst['relative_error']:.2f}".rstrip("0").rstrip(".") + " % (at" in page.text
        assert "Activation ranges" in page.text and "What stays in float" in page.text
        check_self_contained(page)
        check_headings(page)

    def test_its_numbers_are_the_bundles(self, proven_int8: Path) -> None:
        page, manifest = page_of(proven_int8), Bundle.open(proven_int8).manifest
        for name, entry in manifest.files.items():
            assert (entry.sha256 in page.words) == (name != REPORT), "a file cannot hold its own hash"
        parity = json.loads((proven_int8 / "parity.json").read_text())
        for case in parity["graphs"][0]["cases"]:
            mantissa, exponent = f"{case['error_over_range']:.1e}".split("e")
            if int(exponent) < -3:
                assert f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", MINUS) in page.words
        stages = page.text.split("of all bytes ")[1].split(" Operators")[0]
        parameters = re.findall(r"\N{MULTIPLICATION SIGN} [\d,]+ ([\d,]+) [\d,]+ [\d.]+ %", stages)
        assert len(parameters) == 5
        assert sum(int(number.replace(",", "")) for number in parameters) == manifest.parameters

    def test_every_picture_has_a_name_and_its_numbers(self, proven_int8: Path) -> None:
        page = page_of(proven_int8)
        pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
        assert len(pictures) == 3
        assert all(each["role"] == "img" and len(each["aria-label"] or "") > 10 for each in pictures)
        assert len([tag for tag, _ in page.elements if tag == "details"]) >= len(pictures)

    @pytest.mark.parametrize(
        ("attn", "options", "said"),
        [
            ("mla", {"loops": "3"}, ["unrolled to 3 loops", "3 \N{MULTIPLICATION SIGN}"]),
            (
                "gqa",
                {"loops": "1,2", "precision": "bf16"},
                ["3 ONNX graphs, sharing their weights", "any number", "new.coda.key"],
            ),
            ("gqa", {"precision": "int4", "target": "onnxruntime"}, ["MatMulNBits", "quantizes weights only"]),
            ("gqa", {"precision": "int8", "target": "onnxruntime"}, ["QMoE", "quantizes weights only"]),
            ("mla", {"precision": "fp8", "target": "tensorrt"}, ["Drift with depth", "float, after dequantising"]),
            ("mla", {"precision": "fp16", "target": "tensorrt"}, ["float16", "tensorrt, opset 21"]),
        ],
    )
    def test_every_kind_of_export_has_one(
        self,
        make_bundle: Callable[..., Bundle],
        mla_config: MythosConfig,
        gqa_config: MythosConfig,
        attn: str,
        options: dict[str, Any],
        said: list[str],
    ) -> None:
        page = page_of(make_bundle({"mla": mla_config, "gqa": gqa_config}[attn], **options).path)
        for words in said:
            assert words in page.text
        check_self_contained(page)

    def test_measurements_are_shown(
        self, proven_int8: Path, copy: Copy, accuracy: dict[str, Any], latency: dict[str, Any]
    ) -> None:
        path = copy(proven_int8)
        remake_report(Bundle.open(path), Evaluation.model_validate(accuracy), Latency.model_validate(latency))
        page = page_of(path)
        assert {"95.0 [50.0, 100.0]", "90.0 [50.0, 100.0]"} <= set(page.words)
        assert f"{MINUS}7.50" in page.words, "(19 + 18) of 40 are 92.5 %, against PyTorch's 100 %"
        assert "onnxruntime 1.31.1, past 128, 1 thread" in page.words and "1.2 to 1.3" in page.words


class TestVerdict:
    def subject(self, path: Path) -> Subject:
        return read_subject(Bundle.open(path), None, None)

    def test_a_float_bundle_names_its_tolerance(self, proven_int8: Path) -> None:
        subject = self.subject(proven_int8)
        assert subject.manifest.parity is not None
        summary = subject.manifest.parity.model_copy(
            update={"loops": [1], "max_error_over_range": 2e-5, "tolerance": 1e-4}
        )
        manifest = subject.manifest.model_copy(update={"quantization": None, "precision": "fp32", "parity": summary})
        found = verdict_of(manifest, subject.parity)
        assert (found.kind, found.title) == ("equal", "Equal to PyTorch at 1 loop")
        assert f"2e{MINUS}5" in found.reason and f"1e{MINUS}4 is allowed" in found.reason

    @pytest.mark.parametrize("where", ["summary", "file"])
    def test_a_failure_anywhere_is_one(self, proven_int8: Path, where: str) -> None:
        subject = self.subject(proven_int8)
        assert subject.manifest.parity is not None and subject.parity is not None
        manifest, parity = subject.manifest, subject.parity
        if where == "summary":
            failed = subject.manifest.parity.model_copy(update={"passed": False})
            manifest = manifest.model_copy(update={"parity": failed})
        else:
            parity = parity.model_copy(update={"failures": ["logits differ by 0.5 of their range"]})
        assert verdict_of(manifest, parity).kind == "different"


EVIL = "</style></title><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)>\u202e"


class TestHostile:
    @pytest.fixture
    def evil(self, proven_int8: Path, copy: Copy) -> Path:
        """A bundle that opens, with markup wherever a text may stand."""
        path = copy(proven_int8)
        manifest = json.loads((path / "manifest.json").read_text())
        name = EVIL.replace("/", "|").replace("\u202e", "")
        (path / name).write_text("x")
        manifest |= {
            "name": EVIL,
            "created": EVIL,
            "command": [EVIL] * 3,
            "tool": {EVIL: EVIL},
            "session": {EVIL: EVIL},
        }
        manifest["source"] = {"kind": EVIL, "path": EVIL, "sha256": EVIL}
        manifest["inputs"][0] = {"name": EVIL, "dtype": EVIL, "shape": [EVIL]}
        manifest["quantization"]["kept"] = {EVIL: EVIL}
        manifest["quantization"]["kernels"] = {EVIL: 1}
        manifest["parameters"] = 10**3000
        parity = json.loads((path / "parity.json").read_text())
        parity["graph_check"] = EVIL
        case = parity["graphs"][0]["cases"][0]
        case |= {"kind": EVIL, "error_over_range": 1e308, "kl": -1e308}
        case["flips"] = [{"kind": EVIL, "sequence": 0, "position": 1, "depth": 1, "margin": 1e-320}]
        (path / "parity.json").write_text(json.dumps(parity))
        recipe = json.loads((path / "recipe.json").read_text())
        recipe["data"] = EVIL
        recipe["activations"] = {f"{key}{EVIL}": value for key, value in recipe["activations"].items()}
        (path / "recipe.json").write_text(json.dumps(recipe))
        for file in (name, "parity.json", "recipe.json"):
            manifest["files"][file] = file_entry(path / file).model_dump()
        (path / "manifest.json").write_text(json.dumps(manifest))
        remake_report(Bundle.open(path))
        return path

    def test_markup_in_it_is_text(self, evil: Path, proven_int8: Path) -> None:
        page = page_of(evil)
        check_self_contained(page)
        assert page.text.count("<script>alert(1)</script>") >= 15
        assert "\u202e" not in page.text
        known = {tag for tag, _ in page_of(proven_int8).elements}
        assert {tag for tag, _ in page.elements} <= known | {"br"}

    def test_hugeness_does_not_reach_the_page(self, proven_int8: Path) -> None:
        subject = read_subject(Bundle.open(proven_int8), None, None)
        manifest = subject.manifest
        spec = manifest.inputs[0].model_copy(update={"name": "x" * 10_000})
        huge = manifest.model_copy(
            update={
                "name": "n" * 10**6,
                "command": ["w" * 1000] * 10_000,
                "inputs": [spec] * 3000,
                "outputs": [spec] * 3000,
            }
        )
        page = render(Subject(huge, subject.inspection, subject.parity, subject.recipe, None, None))
        assert len(page.encode()) < 1_000_000
        assert "rows left out" in page


def test_a_large_model_of_several_graphs_takes_less_than_a_megabyte(proven_int8: Path) -> None:
    """Twice the 64 loops of the largest scale, in the Loop and three unrolled graphs, full of flips."""
    subject = read_subject(Bundle.open(proven_int8), None, None)
    assert subject.parity is not None and subject.recipe is not None
    loops = [1, 2, 4, 8, 16, 64, 128]
    graph = subject.parity.graphs[0]
    flip = {"kind": "router", "sequence": 0, "position": 0, "depth": 1, "margin": 0.01}

    def case(original: Any, count: int) -> dict[str, Any]:
        depth = original.trajectory[-1].model_dump()
        return original.model_dump() | {
            "loops": [count],
            "halting_depths": [1] * count,
            "trajectory": [depth | {"depth": each} for each in range(1, count + 1)],
            "flips": [flip | {"depth": 1 + each % count} for each in range(20)],
        }

    cases = [case(graph.cases[kind], count) for count in loops for kind in range(3)]
    loss = subject.parity.loss[0].model_dump()
    values = subject.parity.model_dump() | {
        "graphs": [graph.model_dump() | {"file": f"{each}.onnx", "cases": cases} for each in range(4)],
        "loss": [loss | {"loops": count, "depths": cases[-1]["trajectory"][:count]} for count in loops],
    }
    parity = ParityReport.model_validate(values)
    large = Subject(subject.manifest, subject.inspection, parity, subject.recipe, None, None)
    page = render(large)
    assert len(page.encode()) < 1_000_000
    check_headings(Page(page))
    assert "that differ from PyTorch&#39;s: 1,680 or more." in page, "20 of each of 84 cases are listed, at most"
    assert "0.onnx (a loop of any depth)" in page


def test_of_many_loop_counts_the_deepest_is_there_and_what_is_not_is_said(proven_int8: Path) -> None:
    """16 loop counts, the last of 64 loops; 6 graphs; a recipe of 64 depths."""
    subject = read_subject(Bundle.open(proven_int8), None, None)
    assert subject.parity is not None and subject.recipe is not None
    loops = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64]
    graph = subject.parity.graphs[0]
    (prefill,) = [case for case in graph.cases if case.kind == "prefill"][:1]
    depth = prefill.trajectory[-1].model_dump()

    def trajectory(count: int) -> list[dict[str, Any]]:
        return [depth | {"depth": each, "hidden_error": each * 1e-9} for each in range(1, count + 1)]

    cases = [
        prefill.model_dump() | {"loops": [each], "halting_depths": [each] * each, "trajectory": trajectory(each)}
        for each in loops
    ]
    loss = subject.parity.loss[0].model_dump()
    values = subject.parity.model_dump() | {
        "graphs": [graph.model_dump() | {"file": f"{each}.onnx", "cases": cases} for each in range(6)],
        "loss": [loss | {"loops": each, "depths": trajectory(each)} for each in loops],
    }
    recipe = subject.recipe.model_dump() | {"depths": 64}
    for name, activation in recipe["activations"].items():
        if name.startswith("recurrent."):
            limits = [1.0 + each / 7 for each in range(64)]
            activation |= {"limit": limits, "high": limits, "low": [-each for each in limits]}
    deep = subject.recipe.model_validate(recipe)
    parity = ParityReport.model_validate(values)
    page = Page(render(Subject(subject.manifest, subject.inspection, parity, deep, None, None)))
    assert "Shown are 4 of 6 graphs: 0.onnx, 2.onnx, 3.onnx and 5.onnx." in page.text
    assert page.text.count("64 loops") >= 4 * 3 + 2, "every table of loop counts ends with the deepest"
    assert {"6.4e\N{MINUS SIGN}8", "10"} <= set(page.words)
    assert "depth 1" not in page.words, "depths are rows"
    assert ("2 of 64 rows left out" in page.text) is False
    looped = [name for name in deep.activations if name.startswith("recurrent.")]
    assert f"Drawn are the 6 of {len(looped)} activations that drift most." in page.text


def test_of_many_columns_the_first_and_the_last_are_there_and_the_others_are_counted() -> None:
    rows = [[str(row), *(f"{row}/{column}" for column in range(1, 100))] for row in range(2)]
    head, cells, left_out = Table("wide", ["row", *(f"column {each}" for each in range(1, 100))], rows).shown
    assert (head[1], head[-1], len(head)) == ("column 1", "column 99", 40)
    assert cells[1][-1] == ("1/99", "")
    assert left_out == "60 of 100 columns left out"


def test_accuracy_at_many_loop_counts_ends_with_the_deepest(proven_int8: Path, accuracy: dict[str, Any]) -> None:
    loops = list(range(1, 17))
    scores = [{"hops": 1, "loops": each, "correct": each, "total": 40, "low": 0.0, "high": 1.0} for each in loops]
    result = Evaluation.model_validate(accuracy | {"loops": loops, "scores": scores, "reference": []})
    page = Page(render(read_subject(Bundle.open(proven_int8), result, None)))
    assert "40.0 [0.0, 100.0]" in page.words and "16 loops" in page.words, "16 of 40"
    assert "PyTorch, fp32" not in page.words, "it was not asked"


def test_a_shade_says_how_far_a_number_is_from_the_best() -> None:
    assert [shade(value, 1e-7, 1e-4, log=True) for value in (1e-9, 1e-7, 1e-4, 1e-2)] == ["h0", "h0", "h4", "h4"]
    assert [shade(share, 1.0, 0.5) for share in (1.0, 0.85, 0.75, 0.5, 0.0)] == ["h0", "h1", "h2", "h4", "h4"]
    assert shade(0.5, 0.0, 1.0, ramp="g") == "g2"
    assert [shade(value, 0.0, 1.0) for value in (None, float("nan"))] == ["", ""]


def test_a_depth_that_a_run_has_not_is_an_empty_cell() -> None:
    table = by_depth("x", "", [("1 loop", {1: 0.5}), ("2 loops", {1: 0.25, 2: 1.0})], str, lambda value: "h0")
    assert table.rows == [["1", "0.5", "0.25"], ["2", "", "1.0"]]
    assert table.shades == [["", "h0", "h0"], ["", "", "h0"]]


@given(st.text())
def test_any_text_can_be_written_and_is_one_line(text: str) -> None:
    assert clean(text).isprintable()
    clean(text).encode()


def test_what_reverses_or_breaks_a_line_is_gone_and_markup_of_ours_is_whole() -> None:
    assert clean("a\u202eb\nc\ud800d") == "a?b?c?d"
    assert len(clean("x" * 10**6)) < 700
    path = Markup("M" + "L".join(f"{x} {x}" for x in range(1000)))
    assert clean(path) is path


class TestLatency:
    def page(self, proven_int8: Path, settings: int) -> Page:
        interval = {"low_ms": 1.0, "high_ms": 4.0}
        measurements = [
            {"runtime": f"runtime {each}", "loops": loops, "past": 128, "ms_per_token": 2.0, **interval}
            for each in range(settings)
            for loops in (4, 8)
        ]
        values = {"precision": "int8", "machine": "a test", "measured": "2026-11-22", "measurements": measurements}
        return Page(render(read_subject(Bundle.open(proven_int8), None, Latency.model_validate(values))))

    def test_no_two_lines_of_a_figure_look_alike(self, proven_int8: Path) -> None:
        page = self.page(proven_int8, 14)
        titles = [word for word in page.words if re.fullmatch(r"Latency against loops, \d of 3", word)]
        assert len(set(titles)) == 3
        names = [each["aria-label"] or "" for tag, each in page.elements if tag == "svg"]
        assert len([name for name in names if name.startswith("Milliseconds")]) == 3
        lines = [each["class"] for tag, each in page.elements if tag == "path" and each.get("class") == "w s5"]
        assert len(lines) == 2 * 2, "a sixth line in two of them, with a whisker at each of two loop counts"
        assert "Whiskers are 95 % intervals." in page.text
        assert "runtime 13" in page.words and "left out here" not in page.text

    def test_what_is_not_drawn_is_said(self, proven_int8: Path) -> None:
        page = self.page(proven_int8, 30)
        assert "6 settings of 30 left out here, from the end; latency.json has all." in page.text
        assert "runtime 23" in page.words and "runtime 24" not in page.words


def test_colours_can_be_read() -> None:
    """Every shade under every text it carries, light and dark: a contrast of 4.5 at least (WCAG 2.2, 1.4.3)."""
    from mythos_export.html_report import page

    style = Path(page.__file__).with_name("style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+)", block))
        for block in re.findall(r":root \{([^}]*--ink[^}]*)\}", style)
    )
    for theme in (light, dark):
        shades = [theme[f"{ramp}{level}"] for ramp in "hg" for level in range(5)]
        grounds = [theme[name] for name in ("paper", "card", "wash", "good-wash", "open-wash", "bad-wash")]
        pairs = [(theme["ink"], ground) for ground in (*shades, *grounds)]
        pairs += [(theme[text], theme[ground]) for text in ("quiet", "accent") for ground in ("paper", "card")]
        pairs += [(theme["accent"], theme["wash"])]
        pairs += [(theme[name], theme[f"{name}-wash"]) for name in ("good", "open", "bad")]
        for text, ground in pairs:
            assert contrast(text, ground) >= 4.5, (text, ground)
        for series in range(6):
            assert contrast(theme[f"s{series}"], theme["card"]) >= 3, "graphics: 1.4.11"


def contrast(one: str, other: str) -> float:
    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
