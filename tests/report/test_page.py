from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from defectgen.bench.summary import summarise
from defectgen.dataset.manifest import Manifest, read_manifest
from defectgen.errors import RunError
from defectgen.report.answer import Answer, answer_of, rival_of
from defectgen.report.gallery import LARGE_BUDGET, SMALL_BUDGET, gallery
from defectgen.report.page import write_report
from defectgen.run import read_sources


def quiet(*_: Any) -> None:
    pass


class Seen(HTMLParser):
    """Ids, and every address that the page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "srcset", "action") and value and not value.startswith(("data:", "#")):
                self.fetched.append(value)


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def test_page_has_its_parts_and_fetches_nothing(page: Path) -> None:
    text = page.read_text("utf-8")
    seen = Seen(text)
    parts = {"answer", "detectors", "misses", "gallery", "beside", "refused", "statistics", "generator", "repeat"}
    assert parts <= set(seen.ids)
    assert seen.fetched == []
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    assert len(re.findall("<svg", text)) >= 6


def test_answer_is_the_verdict_of_the_trainings(page: Path, run_folder: Path) -> None:
    verdict = json.loads((run_folder / "yolo/results.json").read_text("utf-8"))["verdict"]
    text = page.read_text("utf-8")
    assert f'data-finding="{verdict["finding"]}"' in text
    assert verdict["sentence"].replace("+", "&#43;") in text or verdict["sentence"] in text


def test_gallery_holds_every_composite_with_its_labels(page: Path, run_folder: Path) -> None:
    manifest = read_manifest(run_folder / "dataset/manifest.jsonl")
    placed = {row["index"]: row["placed"] for row in manifest.rows if row["placed"]}
    data = data_of(page)
    assert data["recipe_sha256"] == manifest.header["recipe_sha256"]
    assert {item["index"] for item in data["items"]} == set(placed) and len(placed) == 8
    for item in data["items"]:
        boxes = [box for box in item["boxes"] if not box["kept"]]
        assert [box["xyxy"] for box in boxes] == [one["label_xyxy"] for one in placed[item["index"]]]
        assert [box["score"] for box in boxes] == [one["placement"]["probability"] for one in placed[item["index"]]]
        assert all(uri.startswith("data:image/webp;base64,") for uri in (item["small"], item["large"]))
        assert len(item["before"]) == len(boxes)


def test_page_of_the_same_run_is_not_made_again_and_of_another_it_is(
    page: Path, run_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run_folder, out)
    (out / "report.html").write_text(page.read_text("utf-8") + "<!-- kept -->", encoding="utf-8")
    assert write_report(out, progress=quiet).read_text("utf-8").endswith("<!-- kept -->")
    results = json.loads((out / "yolo/results.json").read_text("utf-8"))
    results["verdict"] = None
    (out / "yolo/results.json").write_text(json.dumps(results), encoding="utf-8")
    text = write_report(out, progress=quiet).read_text("utf-8")
    assert 'data-finding="not proven"' in text and "Not proven either way" in text


def test_set_without_detectors_says_that_nothing_is_measured(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run_folder, out, ignore=shutil.ignore_patterns("yolo", "report.html"))
    text = write_report(out, progress=quiet).read_text("utf-8")
    assert 'data-finding="not measured"' in text and "<code>defectgen train-yolo</code>" in text
    assert "misses" not in Seen(text).ids and "gallery" in Seen(text).ids


def test_set_reviewed_since_its_detectors_were_trained_is_not_measured(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run_folder, out, ignore=shutil.ignore_patterns("report.html"))
    manifest = out / "dataset/manifest.jsonl"
    header, *rows = manifest.read_text("utf-8").splitlines(keepends=True)
    marked = json.loads(header) | {"rejected": [99]}
    manifest.write_text(json.dumps(marked, sort_keys=True) + "\n" + "".join(rows), encoding="utf-8")
    text = write_report(out, progress=quiet).read_text("utf-8")
    assert 'data-finding="not measured"' in text and "before a review replaced some of its images" in text
    assert "--review review.json" in text


def test_what_was_measured_is_shown_without_the_generator(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run_folder, out, ignore=shutil.ignore_patterns("report.html", "generator"))
    text = write_report(out, progress=quiet).read_text("utf-8")
    assert {"answer", "detectors", "misses"} <= set(Seen(text).ids) and "gallery" not in Seen(text).ids
    assert "The data set itself cannot be shown: " in text and "fit.json" in text
    shutil.copytree(run_folder / "generator", out / "generator")
    assert "gallery" in Seen(write_report(out, progress=quiet).read_text("utf-8")).ids


def test_arms_stand_with_the_intervals_of_their_trainings(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def scored(results: dict[str, Any]) -> None:
        for run, score in zip(results["arms"]["real"]["seeds"], (0.40, 0.42), strict=True):
            run["metrics"]["map50_95"] = score

    changed_run(run_folder, out, scored)
    # Student's t with one degree of freedom: 12.706 standard errors of 1 point.
    assert "<td>41.0 (28.3 to 53.7)</td>" in write_report(out, progress=quiet).read_text("utf-8")


def changed_run(run_folder: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The run without its generator, its results.json changed."""
    shutil.copytree(run_folder, out, ignore=shutil.ignore_patterns("report.html", "generator"))
    results = json.loads((out / "yolo/results.json").read_text("utf-8"))
    change(results)
    (out / "yolo/results.json").write_text(json.dumps(results), encoding="utf-8")
    return out


def test_detectors_of_real_images_alone_measure_nothing_of_a_set(run_folder: Path, tmp_path: Path) -> None:
    def real_alone(results: dict[str, Any]) -> None:
        del results["arms"]["real+defectgen"]
        results["verdict"], results["best"]["arm"] = None, "real"

    text = write_report(changed_run(run_folder, tmp_path / "run", real_alone), progress=quiet).read_text("utf-8")
    assert 'data-finding="not measured"' in text and "detectors" in Seen(text).ids


def test_what_is_repeated_is_what_the_detectors_were_trained_by(run_folder: Path, tmp_path: Path) -> None:
    def trained_otherwise(results: dict[str, Any]) -> None:
        results["profile"] |= {"seeds": [4, 5, 6], "model": "/home/somebody/yolo11n.pt"}

    out = changed_run(run_folder, tmp_path / "run", trained_otherwise)
    text = write_report(out, progress=quiet).read_text("utf-8")
    assert f"<pre>defectgen train-yolo {out_name(out)}.yaml --trust-checkpoint</pre>" in text
    assert re.search(r"seeds:\n  - 4\n  - 5\n  - 6", text) and "model: yolo11n.pt" in text and "somebody" not in text
    assert "the same <code>generator/</code> folder" not in text  # Its gallery cannot be shown here.


def out_name(out: Path) -> str:
    return str(yaml.safe_load((out / "recipe.yaml").read_text("utf-8"))["name"])


@pytest.mark.parametrize("content", ["{}", '{"arms": []}', "[]", '{"arms": {"real": {"seeds": []}}}'])
def test_damaged_record_is_one_clear_error(run_folder: Path, tmp_path: Path, content: str) -> None:
    out = changed_run(run_folder, tmp_path / "run", lambda results: None)
    (out / "yolo/results.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=r"run: a record in it is damaged, or of another version \(.*; run the command"):
        write_report(out, progress=quiet)


def test_detectors_tested_on_other_files_show_no_misses(run_folder: Path, tmp_path: Path) -> None:
    out = changed_run(run_folder, tmp_path / "run", lambda results: None)
    path = out / "yolo/test/samples.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"digest": "other"}), encoding="utf-8")
    text = write_report(out, progress=quiet).read_text("utf-8")
    assert "is not what these detectors were tested on" in text and "misses" not in Seen(text).ids


@pytest.mark.parametrize("gone", ["yolo/test", "yolo/real/seed0/detections.json"])
def test_misses_that_cannot_be_shown_are_named(run_folder: Path, tmp_path: Path, gone: str) -> None:
    out = tmp_path / "run"
    shutil.copytree(run_folder, out, ignore=shutil.ignore_patterns("report.html", "generator"))
    if (out / gone).is_dir():
        shutil.rmtree(out / gone)
    else:
        (out / gone).write_text("{", encoding="utf-8")
    text = write_report(out, progress=quiet).read_text("utf-8")
    assert "What the detector misses cannot be shown: " in text and gone in text
    assert "detectors" in Seen(text).ids and "misses" not in Seen(text).ids


def test_names_of_the_users_data_are_text_and_no_markup(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "</script><b id=evil> $\\x$ `a`"
    out = tmp_path / "run"
    shutil.copytree(run_folder, out, ignore=shutil.ignore_patterns("report.html"))
    path, manifest = out / "yolo/results.json", out / "dataset/manifest.jsonl"
    results = json.loads(path.read_text("utf-8"))
    results["classes"][0] = evil
    for arm in results["arms"].values():
        arm["mean"]["per_class"][0]["class"] = evil
    path.write_text(json.dumps(results), encoding="utf-8")
    name = json.dumps(evil)[1:-1]
    manifest.write_text(manifest.read_text("utf-8").replace('"scratch"', f'"{name}"'), encoding="utf-8")

    def read(recipe: Any, folder: Path) -> Any:
        sources = read_sources(recipe, folder)
        return replace(sources, class_names=(evil, *sources.class_names[1:]))

    # The names are part of what a generator is fitted on.
    facts = json.loads((out / "generator/fit.json").read_text("utf-8"))
    monkeypatch.setattr("defectgen.report.page.read_sources", read)
    monkeypatch.setattr("defectgen.studio.fit_fingerprint", lambda *_: facts["fingerprint"])
    page = write_report(out, progress=quiet)
    text = page.read_text("utf-8")
    assert "evil" not in Seen(text).ids and "<b id=evil>" not in text
    assert "cannot be shown" not in text and data_of(page)["classes"][0] == evil
    # In the tables, captions and charts it stands as it is.
    assert text.count("&lt;b id=evil&gt; $\\x$") >= 4


def test_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run of defectgen; name the folder that synth, train-yolo or bench"):
        write_report(tmp_path, progress=quiet)


@pytest.mark.parametrize("num_images", [40, pytest.param(5000, marks=pytest.mark.long)])
def test_pictures_stay_within_their_budget_however_many(run_folder: Path, fitted: Any, num_images: int) -> None:
    manifest = read_manifest(run_folder / "dataset/manifest.jsonl")
    composites = [row for row in manifest.rows if row["placed"]]
    rows = tuple({**composites[number % len(composites)], "index": number} for number in range(num_images))
    lookup = {image.name: image.path for image in fitted.sources.train_clean}
    data = gallery(run_folder / "dataset", Manifest(manifest.header, rows), lookup, [], first=[7])  # type: ignore[arg-type]
    items = data["items"]
    small = sum(len(item["small"]) for item in items)
    large = sum(len(item["large"] or "") + sum(len(window[4]) for window in item["before"]) for item in items)
    assert len(items) == num_images and items[7]["large"]
    boxes = sum(len(json.dumps(item["boxes"])) for item in items)
    assert small + large + boxes < 1.1 * (SMALL_BUDGET + LARGE_BUDGET) < 24_000_000
    assert (sum(item["large"] is not None for item in items) == num_images) == (num_images == 40)


def test_page_of_a_bench_leads_with_its_verdict_and_shows_one_of_its_sets(run_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"recipe": "tiny", "k": 3, "seed": seed, "arm": arm, "map50": 0.5 + gain, "map5095": 0.3 + gain + seed / 1000}
        | {"recall_at_fp": 0.1, "ap5095": {"pit": 0.3 + gain, "dent": 0.2}, "profile": "small"}
        for seed in (0, 1, 2)
        for arm, gain in (("real", 0.0), ("real+defectgen", 0.05 + seed / 1000))
    ]
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    summary = summarise(rows, num_test_images=4) | {"diagnostics": []}
    (folder / "bench.json").write_text(json.dumps(summary), encoding="utf-8")
    results = json.loads((run_folder / "yolo/results.json").read_text("utf-8"))
    for arm in results["arms"].values():
        del arm["seeds"][1:]
    for seed in (0, 1, 2):
        shutil.copytree(run_folder, folder / f"k3/seed{seed}")
        (folder / f"k3/seed{seed}/yolo/results.json").write_text(json.dumps(results), encoding="utf-8")
    text = write_report(tmp_path, progress=quiet).read_text("utf-8")
    assert 'data-finding="helps"' in text and "Use it: it helps" in text
    assert "+5.1" in re.sub(r"&#43;", "+", text)
    # mAP50-95 over K, the gain per class, precision over recall, recall over false alarms; and those of the set.
    assert len(re.findall("<svg", text)) >= 8 and "mathdefault" not in text
    assert len(data_of(tmp_path / "report.html")["items"]) == 8
    # Settings of the detector that the profile would change.
    assert " --set train_yolo.imgsz=" not in text
    (folder / "bench.json").write_text(json.dumps(summary | {"profile": "full"}), encoding="utf-8")
    used = json.loads((run_folder / "yolo/results.json").read_text("utf-8"))["profile"]
    of_full = write_report(tmp_path, progress=quiet).read_text("utf-8")
    assert f" --set train_yolo.imgsz={used['imgsz']} --set train_yolo.iterations={used['iterations']}</pre>" in of_full
    (folder / "bench.json").write_text(json.dumps(summary), encoding="utf-8")
    # A review is of the set that is shown, not of the bench's recipe.
    cell = folder / "k3/seed0"
    assert f"<code>defectgen synth {cell / 'recipe.yaml'} --out {cell} --review review.json</code>" in text
    # And when it has been reviewed, the page is another.
    manifest = cell / "dataset/manifest.jsonl"
    header, *lines = manifest.read_text("utf-8").splitlines(keepends=True)
    manifest.write_text(json.dumps(json.loads(header)) + " \n" + "".join(lines), encoding="utf-8")
    text = write_report(tmp_path, progress=quiet).read_text("utf-8")
    assert "K = 3, seed 0: the detectors were trained on the set as it was before a review" in text


def test_bench_of_several_budgets_says_of_which_its_answer_is(tmp_path: Path) -> None:
    rows = [
        {"recipe": "tiny", "k": k, "seed": seed, "arm": arm, "map50": 0.5, "map5095": 0.3 + gain + seed / 1000}
        | {"recall_at_fp": 0.1, "ap5095": {"pit": 0.3 + gain}, "profile": "small"}
        for k in (3, 10)
        for seed in (0, 1, 2)
        for arm, gain in (("real", 0.0), ("real+copy-paste", 0.01), ("real+defectgen", 0.05 + seed / 1000))
    ]
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    summary = summarise(rows, num_test_images=4) | {"diagnostics": []}
    (folder / "bench.json").write_text(json.dumps(summary), encoding="utf-8")
    text = write_report(tmp_path, progress=quiet).read_text("utf-8")
    assert "Use it: it helps (with 10 real defects per class)" in text and "were not tried" not in text
    # Points added to the curve of the real images alone prove nothing else, and take nothing back.
    rows += [row | {"k": 20, "map5095": 0.4} for row in rows if row["k"] == 10 and row["arm"] == "real"]
    (folder / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    summary = summarise(rows, num_test_images=4) | {"diagnostics": []}
    (folder / "bench.json").write_text(json.dumps(summary), encoding="utf-8")
    text = write_report(tmp_path, progress=quiet).read_text("utf-8")
    assert "Use it: it helps (with 10 real defects per class)" in text
    assert "--k 3,10 --seeds 3 --arms real,real+copy-paste,real+defectgen</pre>" in re.sub(r"&#43;", "+", text)
    assert "--k 20 --seeds 3 --arms real</pre>" in text


def test_answer_says_where_a_set_is_one_of_copies() -> None:
    many, few = (answer_of(None, {"refused": {}, "copies": share}, None).sentences for share in (0.98, 0.1))
    assert (
        many[-1] == "98% of the synthetic defects are near copies of a real one: they add places, not kinds of defect."
    )
    assert len(few) == len(many) - 1


def test_answer_names_the_rival_that_does_better() -> None:
    assert Answer("hurts", (), rival="real+copy-paste").headline == "Do not use it: copy-paste does better"
    assert Answer("hurts", ()).headline == "Do not use it: it hurts"
    assert Answer("helps", (), rival="real+aug").headline == "Better than aug"
    unsure = {"finding": "no difference shown", "decided_by": {"against": "real+aug"}}
    over_real = {"against": "real", "mean": 1.0, "low": 0.1, "high": 1.9, "num_seeds": 3}
    said = Answer(unsure["finding"], (), rival=rival_of(unsure | {"over_real": over_real})).headline
    assert said == "Better than the real images alone, no gain shown over aug"
    # Not where the interval reaches 0, and not where two seeds have the same by chance.
    for none in ({"low": -0.1}, {"low": 1.0, "high": 1.0, "num_seeds": 2}):
        assert rival_of(unsure | {"over_real": over_real | none}) is None
    assert rival_of(unsure | {"over_real": None}) is None
