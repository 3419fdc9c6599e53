"""fvae-report: that it shows what the results say, of these files and no others, in both formats."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from report_for_tests import HOSTILE, SETTINGS, Page, make_dataset, markdown_tables
from segmentations_for_tests import write

from fvae_nnunet.cli import evaluate
from fvae_nnunet.cli.report import main
from fvae_nnunet.ct.files import read_upright, read_volume, write_volume
from fvae_nnunet.evaluation.reconstruction.summary import summarise
from fvae_nnunet.evaluation.segmentation.verdict import comparison_sentence
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.jobs.manifest import MANIFEST_FOLDER, Manifest, write_json
from fvae_nnunet.report import case_pictures
from fvae_nnunet.report.case_ends import headed_cases
from fvae_nnunet.report.case_images import load_views
from fvae_nnunet.report.case_pictures import Chosen, choose_cases
from fvae_nnunet.report.results import load_results


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The dataset with comparison.json, summary.json and reconstruction_quality.json. Not to be changed."""
    root = tmp_path_factory.mktemp("report")
    make_dataset(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        command = ["labelsTs", "first", "second", "--names", HOSTILE, "second", "--tolerance", "1"]
        assert evaluate.main([*command, "--resamples", "200", "-np", "0"]) == 0
        assert evaluate.main(["labelsTs", "second", "--tolerance", "1", "-np", "0", "-o", "summary.json"]) == 0
    write_json(root / "quality.json", quality_of(root))
    return root


FULL = (
    "comparison.json", "--images", "imagesTs", "--views", "second=view", "--quality", "second=quality.json",
    "--paper", "lung", "--cases", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def full_page(made) -> Page:
    """The page with everything, full.html of the dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        return page_of(*FULL, name="full.html")


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Path:
    """A copy that the test may change, as working directory."""
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def quality_of(root: Path) -> dict:
    """A reconstruction_quality.json with few figures."""
    cases = [
        {
            "case": f"case_{number:04d}", "raw_file": "", "view_file": "", "label_file": None,
            "shape": [12, 24, 26], "spacing_mm": [3.0, 0.9, 0.7],
            "volume": {"psnr_db": 30.0 + number, "ssim": 0.9, "bias_hu": -1.25, "mse_normalised": 2.5e-4},
            "tissues": {"fat": {"mae_hu": 4.0, "bias_hu": 0.5}}, "labels": {"2": {"mae_hu": 3.5, "bias_hu": -2.0}},
        }
        for number in range(5)
    ]  # fmt: skip
    return {
        "schema": 1, "kind": "reconstruction_quality", "version": "0", "raw_folder": "imagesTs", "view_folder": "view",
        "label_folder": "labelsTs", "settings": {"hu_window": [-1000, 1000], "tissues_hu": {"fat": [-190, -30]}},
        "view_settings": SETTINGS, "labels": [{"key": "2", "name": "tumour", "value": 2}], "cases": cases,
        "summary": summarise(cases),
    }  # fmt: skip


def _interval_of(summary: dict, key: str) -> list[float]:
    """Of the tumour."""
    (measure,) = [m for m in summary["fvae"]["measures"] if (m["label"], m["key"]) == ("2", key)]
    return measure["models"][0]["interval"]


def report(*options: str) -> int:
    return main([*options, "-np", "0"])


def page_of(*options: str, name: str = "report.html") -> Page:
    assert report(*options, "-o", name) == 0
    return Page(Path(name).read_text())


def captions(page: Page) -> list[str]:
    return page.texts["figcaption"]


# What the page says


@pytest.mark.slow
def test_tables_hold_what_the_comparison_holds(made, full_page):
    comparison = read_json(made / "comparison.json")
    means = full_page.table("model", "mean", "one empty")
    dice, _, hd95 = comparison["measures"][:3]
    for row, entry in zip(means[:2], dice["models"]):
        low, high = entry["interval"]
        interval = "n/a" if entry["interval_method"] == "none" else f"{low:.3f} to {high:.3f}"
        assert row == ["DSC", entry["model"], f"{entry['mean']:.3f}", interval, "5", "0", "0", ""]
    assert means[4][:3] == ["HD95 (mm)", HOSTILE, f"{hd95['models'][0]['mean']:.1f}"] and means[4][-1] == "0"

    differences = [rows for rows in full_page.tables if "p Holm" in rows[0]]
    assert len(differences) == 3, "of each label, and of the lesions"
    (nsd,) = [m for m in comparison["measures"] if (m["label"], m["key"]) == ("2", "NSD_1mm")]
    (pair,) = nsd["comparisons"]
    low, high = pair["interval"]
    signed = [f"{value:+.3f}".replace("-", "−") for value in (pair["mean_difference"], low, high)]
    assert differences[1][2] == [
        "NSD 1 mm", f"second − {HOSTILE}", signed[0], f"{signed[1]} to {signed[2]}", f"{pair['p']:.3f}",
        f"{pair['p_holm']:.3f}", "2", "2", "1", "5", "0", "0",
    ]  # fmt: skip

    _, of_tumour = (rows for rows in full_page.tables if rows[1][:3] == ["case", HOSTILE, "second"])
    assert of_tumour[0] == ["", "DSC", "NSD 1 mm", "HD95 (mm)"]
    shown = [f"{entry['values']['case_0002']:.3f}" for entry in nsd["models"]]
    assert of_tumour[2 + 2][0] == "case_0002" and of_tumour[2 + 2][3:5] == shown


def test_lesions_are_shown_by_size_and_case(made, full_page):
    comparison = read_json(made / "comparison.json")
    rate = {m["key"]: m for m in comparison["measures"] if m["key"].startswith("detection_rate")}
    (by_size,) = [rows for rows in full_page.tables if rows[1][:3] == ["size", "model", "lesions"]]
    assert [row[0] for row in by_size[2::2]] == ["all sizes"], "all lesions are of one size"
    entry = rate["detection_rate"]["models"][1]
    assert by_size[3][:3] == ["second", str(entry["items"]), f"{entry['mean']:.3f}"]
    (by_case,) = [rows for rows in full_page.tables if rows[1][:2] == ["case", "lesions"]]
    lesions = comparison["lesions"]["2"]["second"]["case_0003"]
    found = by_case[2 + 3]
    assert found[:2] == ["case_0003", "1"] and found[3] == str(sum(lesions["detected"]))
    assert found[5] == str(len(lesions["false_positive_diameters_mm"]))


def test_page_says_what_was_compared_and_how(made, full_page):
    comparison = read_json(made / "comparison.json")
    rows = full_page.table("folder", "sha256", "cases", "missing")
    assert rows[0] == ["references", "labelsTs", comparison["reference"]["sha256"][:12], "5", ""]
    assert rows[1] == [HOSTILE, "first", comparison["models"][0]["sha256"][:12], "5", "0"]
    text = " ".join(full_page.texts["dd"])
    for expected in ("200 resamples, seed 0", "Wilcoxon", "Holm", "at 1 mm", "scores 0 in DSC", "10 % of the voxels"):
        assert expected in text
    view = dict(next(rows for rows in full_page.tables if ["VAE", "tiny"] in rows)[1:])
    assert view["weights, sha256"] == "abcdef012345" and view["HU window"] == "−1000 to 1000"
    assert view["precision"] == "float32" and view["options"] == "--vae tiny" and view["window (slices)"] == "8"
    assert view["HU windows inside of it"] == "−200 to 300; −1000 to −300" and view["passes averaged"] == "2"


def test_best_and_worst_cases_are_those_that_change_most(full_page):
    pictures = [caption for caption in captions(full_page) if caption.startswith("case_")]
    # by construction, see report_for_tests.SHIFTS
    assert [caption.split(":")[0] for caption in pictures] == ["case_0002", "case_0003"]
    assert "NSD 1 mm of tumour" in pictures[0] and "change +" in pictures[0] and "change −" in pictures[1]
    order = f"5 cases, ordered by the change of the NSD 1 mm of tumour from {HOSTILE} to second: 1 from the best"
    assert any(order in paragraph for paragraph in full_page.texts["p"])
    assert sum(address.startswith("data:image/jpeg") for address in full_page.addresses) == 2


def test_the_result_comes_first_and_its_making_last(made, full_page):
    assert full_page.texts["h2"] == [
        "Result", "Label by label", "Quality of the views", "The paper's tables (Chen et al., ICML 2026)",
        "How to read this", "What was compared",
    ]  # fmt: skip
    verdicts = dict(zip(full_page.texts["dt"], full_page.texts["dd"], strict=True))
    (nsd,) = [m for m in read_json(made / "comparison.json")["measures"] if (m["label"], m["key"]) == ("2", "NSD_1mm")]
    assert verdicts["tumour"].lower() == comparison_sentence(nsd, nsd["comparisons"][0]).lower()
    assert list(verdicts)[:2] == ["organ", "tumour"]


def test_the_contents_lead_to_labels_and_cases(full_page):
    links = dict(zip([name for name in full_page.texts["a"]], [a for a in full_page.addresses if a[:1] == "#"]))
    assert {"Result", "organ", "tumour", "Cases", "case_0002", "case_0003"} <= set(links)
    assert {address[1:] for name, address in links.items() if name} <= set(full_page.ids)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([0.3, 0.1, -0.1, -0.37], [("Largest gains", [0, 1]), ("Largest losses", [3, 2])]),
        ([-0.1, -0.2, -0.3, -0.37], [("Smallest losses", [0, 1]), ("Largest losses", [3, 2])]),
        ([0.3, 0.2, 0.1, 0.0], [("Largest gains", [0, 1]), ("Smallest gains", [2]), ("No change", [3])]),
        ([0.0, -0.1, -0.2, -0.3], [("No change", [0]), ("Smallest losses", [1]), ("Largest losses", [3, 2])]),
    ],
)
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_cases_are_called_by_the_sign_of_their_change(made, changes, expected, higher_is_better):
    (results,) = load_results([made / "comparison.json"])
    measure = results.deciding_measure
    measure["higher_is_better"] = higher_is_better
    sign = 1 if higher_is_better else -1
    measure["comparisons"][0]["differences"] = {place: sign * change for place, change in enumerate(changes)}
    assert headed_cases(results, [0, 1], [3, 2]) == expected


def test_cases_of_one_model_are_called_by_their_value(made):
    (results,) = load_results([made / "summary.json"])
    assert headed_cases(results, ["a"], ["b"]) == [("Highest NSD 1 mm", ["a"]), ("Lowest NSD 1 mm", ["b"])]
    assert headed_cases(results, ["a"], []) == [("Highest NSD 1 mm", ["a"])]


def test_a_summary_among_its_predictions_finds_them_from_any_folder(made, tmp_path, monkeypatch):
    predictions = tmp_path / "second"
    shutil.copytree(made / "second", predictions)
    shutil.copy(made / "summary.json", predictions)
    monkeypatch.chdir(tmp_path.parent)
    (results,) = load_results([predictions / "summary.json"])
    assert list(results.prediction_folders) == [predictions]


@pytest.mark.slow
def test_long_names_have_a_key_and_are_short_everywhere_else(project):
    names = [f"nnUNetTrainerFVAE__nnUNetResEncUNetLPlans__3d_fullres__fold_0__{end}" for end in ("raw", "wan2.1")]
    command = ["labelsTs", "first", "second", "--names", *names, "--resamples", "50", "-np", "0", "-o", "long.json"]
    assert evaluate.main(command) == 0
    page = page_of("long.json")
    assert dict(zip(page.texts["dt"], page.texts["dd"]))["wan2.1"] == names[1]
    assert page.texts["h1"] == ["Comparison of 2 models"]
    cells = [cell for table in page.tables for row in table for cell in row]
    assert cells.count(names[1]) == 1, "among the folders"
    assert [row[1] for row in page.table("model", "mean", "one empty")[:2]] == ["raw", "wan2.1"]


def test_no_case_is_chosen_twice(made):
    (results,) = load_results([made / "comparison.json"])
    chosen = choose_cases(results, 4)
    assert chosen.best[:2] == ["case_0002", "case_0000"] and chosen.worst[0] == "case_0003"
    assert (len(chosen.best), len(chosen.worst)) == (3, 2) and len({*chosen.best, *chosen.worst}) == 5
    assert choose_cases(results, 0).best == choose_cases(results, 0).worst == []
    comparison = read_json(made / "comparison.json")
    for measure in comparison["measures"]:
        measure["comparisons"][0]["most_improved_first"] = []
    without = choose_cases(replace(results, content=comparison), 2)
    assert without.best == without.worst == [] and "none has a value" in without.explanation


def test_pictures_show_nothing_in_ignored_voxels(project, monkeypatch):
    results = load_results([Path("comparison.json")])[0]
    case = results.cases[0]
    images = [{case: next(Path("imagesTs").glob(f"{case}_0000.*"))}]
    reference = read_upright(results.reference_file(case))[0]
    ignored = int(reference.max())
    shown = []

    def picture(raw_hu, *, predictions, **others):
        shown.append(predictions)
        return Figure()

    monkeypatch.setattr(case_pictures, "comparison_picture", picture)
    for ignore_label in (None, ignored):
        results.content["settings"]["ignore_label"] = ignore_label
        case_pictures.draw_cases([results], [Chosen([case], [], "")], images, [])
    for before, after in zip(*(found.values() for found in shown), strict=True):
        assert before[reference == ignored].any() and not after[reference == ignored].any()
        np.testing.assert_array_equal(before[reference != ignored], after[reference != ignored])


def test_cases_with_only_false_positives_are_chosen_too(made):
    comparison = read_json(made / "comparison.json")
    of_label = next(iter(comparison["lesions"].values()))
    label = next(iter(comparison["lesions"]))
    for model, of_cases in of_label.items():
        false = {"case_0001": [4.0], "case_0004": [3.0, 5.0]} if model == "second" else {}
        for case, diameters_mm in false.items():
            of_cases[case] |= {"diameters_mm": [], "detected": [], "false_positive_diameters_mm": diameters_mm}
        of_cases["case_0000"]["false_positive_diameters_mm"] = [3.0] * 9  # beside a lesion of the reference
    for measure in comparison["measures"]:
        if measure["label"] == label and measure["comparisons"]:
            order = measure["comparisons"][0]["most_improved_first"]
            order[:] = [case for case in order if case not in ("case_0001", "case_0004")]
    (results,) = load_results([made / "comparison.json"])
    results = replace(results, content=comparison)
    assert choose_cases(results, 1).false_positives == ["case_0004"], "the one with most"
    assert choose_cases(results, 5).false_positives == ["case_0004", "case_0001"]
    assert choose_cases(results, 5).all[-2:] == ["case_0004", "case_0001"] and choose_cases(results, 0).all == []


@pytest.mark.slow
def test_missing_predictions_are_counted(project):
    (project / "second" / "case_0001.nii.gz").unlink()
    command = ["labelsTs", "first", "second", "--allow-missing", "--resamples", "200", "-np", "0"]
    assert evaluate.main(command) == 0
    page = page_of("comparison.json")
    assert any("There are no pictures of cases, because no raw images were given" in p for p in page.texts["p"])
    assert page.table("folder", "cases", "missing")[2][-2:] == ["4", "1"]
    assert [row[4:7] for row in page.table("model", "mean", "one empty")[:2]] == [["5", "0", "0"], ["4", "0", "1"]]
    assert any("second lacks predictions of case_0001" in p for p in page.texts["p"])
    assert any("missing" in row for table in page.tables for row in table if row[0] == "case_0001")
    (results,) = load_results([Path("comparison.json")])
    assert "case_0001" not in [*choose_cases(results, 5).best, *choose_cases(results, 5).worst]


@pytest.mark.slow
def test_a_single_model_has_values_with_intervals(project):
    page = page_of("summary.json", "--images", "imagesTs", "--cases", "1")
    summary = read_json(project / "summary.json")
    assert page.texts["h1"] == ["Segmentations of second"]
    means = page.table("model", "mean", "one empty")
    (dice, *_) = summary["fvae"]["measures"]
    interval = "{:.3f} to {:.3f}".format(*dice["models"][0]["interval"])
    assert means[0][:5] == ["DSC", "second", f"{summary['mean']['1']['Dice']:.3f}", interval, "5"]
    assert not any("p Holm" in row for table in page.tables for row in table[:1])
    (sizes,) = [rows for rows in page.tables if rows[1][:3] == ["size", "model", "lesions"]]
    of_all = summary["fvae"]["lesions"]["labels"][0]["sizes"]["all"]
    assert sizes[2][2::2] == [
        "5", "n/a", "{:.3f} to {:.3f}".format(*_interval_of(summary, "dice_of_detected")), "n/a"
    ]  # fmt: skip
    assert sizes[2][3::2] == [
        f"{of_all['detection_rate']:.3f}", f"{of_all['dice_of_detected']:.3f}",
        f"{of_all['false_positives_per_case']:.2f}",
    ]  # fmt: skip
    # by its own value: case 2 is without error, case 3 lies 4 voxels off
    pictures = [caption.split(":")[0] for caption in captions(page) if caption.startswith("case_")]
    assert pictures == ["case_0002", "case_0003"]
    assert "not recorded" in page.table("folder", "sha256")[0]


@pytest.mark.slow
def test_several_results_are_chapters_of_their_own(project):
    shutil.copytree(project, project.parent / "other")
    options = ["--images", "imagesTs", "--images", "../other/imagesTs", "--views", "v=view", "v=../other/view"]
    page = page_of("comparison.json", "../other/comparison.json", *options, "--cases", "1", "--paper", "lung")
    assert page.texts["h2"] == [
        "Result", "Label by label: project", "Label by label: other", "Quality of the views",
        "The paper's tables (Chen et al., ICML 2026)", "How to read this", "What was compared",
    ]  # fmt: skip
    assert sum(address.startswith("data:image/jpeg") for address in page.addresses) == 4
    assert [row for table in page.tables for row in table if row[:1] == ["folder"]] == [
        ["folder", "view", "../other/view"]
    ]


def test_the_page_needs_nothing_but_itself_and_escapes_what_files_say(made, full_page):
    text = (made / "full.html").read_text()
    assert "http:" not in text and "https:" not in text and "xmlns" not in text
    assert not full_page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert HOSTILE not in text and "&lt;script&gt;x()&lt;/script&gt;&amp;" in text
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    addresses = set(full_page.addresses)
    assert all(address.startswith(("#", "data:image/jpeg;base64,")) for address in addresses)
    assert len(full_page.ids) == len(set(full_page.ids)), "several drawings in one page do not share identifiers"
    targets = {address[1:] for address in addresses if address.startswith("#")} | full_page.references
    assert targets <= set(full_page.ids) and full_page.references and not full_page.open


def test_a_case_is_named_where_the_pointer_rests_on_its_dot(made, full_page):
    entries = read_json(made / "comparison.json")["measures"][0]["models"]
    values = ", ".join(f"{entry['model']} {entry['values']['case_0003']:.3f}" for entry in entries)
    tips = full_page.texts["title"]
    assert tips.count(f"case_0003: {values}") == 3, "the line, and a dot for each model"
    assert any(tip.startswith("case_0003: −") and ", mean " in tip for tip in tips)


# Quality of views


def test_quality_is_shown_over_all_cases_and_for_each(made, full_page):
    rows = full_page.table("figure", "mean", "95 % interval", "sd", "min", "max", "n")
    psnr = read_json(made / "quality.json")["summary"]["volume"]["psnr_db"]
    interval = f"{psnr['low']:.2f} to {psnr['high']:.2f}"
    assert rows[0] == ["whole volume", "PSNR (dB)", "32.00", interval, "1.58", "30.00", "34.00", "5"]
    assert ["whole volume", "bias (HU)", "−1.2", "n/a", "0.0", "−1.2", "−1.2", "5"] in rows
    assert ["whole volume", "MSE of [0, 1]", "2.50e−04", "n/a", "0.00e+00", "2.50e−04", "2.50e−04", "5"] in rows
    assert ["label tumour", "MAE (HU)", "3.5", "n/a", "0.0", "3.5", "3.5", "5"] in rows
    (cases,) = [rows for rows in full_page.tables if len(rows) > 2 and rows[1][:3] == ["case", "PSNR (dB)", "SSIM"]]
    assert cases[4][:3] == ["case_0002", "32.00", "0.900"] and len(cases) == 2 + 5


def test_a_view_of_preprocessed_data_shows_its_records_and_no_picture(project):
    manifest = Manifest(project / "nnUNetPlans_3d_fullres__fvae_tiny")
    settings = SETTINGS | {"ct_channels": [0], "preprocessing": {"spacing_mm": [3.0, 0.8, 0.8]}}
    manifest.begin("view", settings, {"weights": "embedded", "options": "--vae tiny --view tiny"})
    array = manifest.folder / "train_0001.b2nd"
    array.write_bytes(b"")
    manifest.write_case(
        "train_0001", inputs={}, outputs=[array], results={"psnr_db": 33.25, "mean_absolute_error_hu": 7.5}
    )
    views = f"train={manifest.folder}"
    page = page_of("--views", views)
    assert page.texts["h1"] == ["Quality of reconstructions"]
    assert page.table("case", "PSNR (dB)", "MAE (HU)") == [["train_0001", "33.25", "7.5"]]
    assert ["spacing of the data, z y x (mm)", "3, 0.8, 0.8"] in page.table("", "train")
    assert any("holds no HU, so there are no pictures" in p for p in page.texts["p"])
    results = load_results([Path("comparison.json")])
    (view,) = load_views([("train", manifest.folder)], results, [0])
    assert view.is_preprocessed and not view.of_results, "other cases are no error, and no picture is made of it"


# Files


@pytest.mark.slow
def test_both_formats_hold_the_same_tables(project, full_page):
    assert report(*FULL, "--format", "markdown") == 0
    text = Path("report.md").read_text()
    in_page = []
    for table in full_page.tables:
        head = 2 if table[0][0] == "" and any(cell for cell in table[0]) and len(table[0]) < len(table[1]) else 1
        in_page.append([row[-(len(row) - 1) :] if len(row) == len(table[head]) else row for row in table[head:]])
    in_markdown = [[row[1:] for row in table] for table in markdown_tables(text)]
    assert in_markdown == in_page and len(in_page) > 15
    images = sorted(path.name for path in Path("report_files").iterdir())
    assert [name for name in images if f"report_files/{name}" not in text] == []
    for path in Path("report_files").iterdir():
        assert path.read_bytes()[:3] == (b"\x89PN" if path.suffix == ".png" else b"\xff\xd8\xff")
    # two plots of each label, two cases, one plot of the quality
    assert len([name for name in images if name.endswith(".png")]) == 7 and len(images) == 9
    assert not list(project.glob(".report*"))


@pytest.mark.slow
def test_markdown_replaces_its_own_images_and_no_others(project, capsys):
    options = ["comparison.json", "--format", "markdown", "-o", "out/r.md"]
    Path("out/r_files").mkdir(parents=True)
    Path("out/r_files/figure_99.jpg").write_bytes(b"of an earlier report")
    assert report(*options) == 0
    assert sorted(path.name for path in Path("out/r_files").iterdir()) == [f"figure_0{n}.png" for n in range(1, 7)]
    Path("out/r_files/notes.txt").write_text("mine")
    before = Path("out/r.md").read_bytes()
    assert report(*options, "--title", "another") == 1
    assert "r_files holds notes.txt, which is not from a report" in capsys.readouterr().err
    assert Path("out/r.md").read_bytes() == before and Path("out/r_files/notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_equal_input_gives_equal_bytes(project, full_page):
    assert report(*FULL, "-o", "again.html") == 0
    assert Path("again.html").read_bytes() == Path("full.html").read_bytes()


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_nothing(project, capsys, monkeypatch):
    def full_disk(*_arguments):
        raise OSError(28, "No space left on device", "report")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert report("--paper") == 1
    assert report("comparison.json", "--format", "markdown") == 1
    assert capsys.readouterr().err.count("No space left on device") == 2
    assert not list(project.glob("report*")) and not list(project.glob(".report*"))


# What is refused


def test_changed_or_lost_files_are_named_with_what_to_do(project, capsys):
    image, geometry = read_volume(project / "second" / "case_0001.nii.gz")
    write_volume(project / "second" / "case_0001.nii.gz", np.zeros_like(image), geometry)
    assert report("comparison.json") == 1
    err = capsys.readouterr().err
    assert "the predictions of second in second have changed since comparison.json was written" in err
    assert "run fvae-evaluate again" in err and "references" not in err
    (project / "second" / "case_0002.nii.gz").unlink()
    shutil.rmtree(project / "labelsTs")
    assert report("comparison.json", "summary.json") == 1
    err = capsys.readouterr().err
    assert "labelsTs with the references of comparison.json no longer exists; run fvae-evaluate again" in err
    assert "second (the predictions of second of comparison.json) lacks case_0002.nii.gz" in err
    assert "labelsTs with the references of summary.json no longer exists" in err
    assert not list(project.glob("report*"))


def test_relative_folders_are_found_beside_the_results(project, monkeypatch):
    monkeypatch.chdir(project.parent)
    (results,) = load_results([Path("project/comparison.json")])
    assert results.reference_file("case_0000").is_file()
    assert [path.is_file() for path in results.prediction_files("case_0000").values()] == [True, True]


def test_images_and_views_of_other_cases_or_geometry_are_one_error(project, capsys):
    (project / "imagesTs" / "case_0004_0000.nii.gz").unlink()
    assert report("comparison.json", "--images", "imagesTs") == 1
    assert "imagesTs (--images) lacks 1 of the 5 cases of comparison.json: case_0004" in capsys.readouterr().err
    write(project / "imagesTs" / "case_0004_0000.nii.gz", np.zeros((12, 24, 25), np.int16), spacing_mm=(3.0, 0.9, 0.7))
    write(project / "view" / "case_0000_0000.nii.gz", np.zeros((12, 24, 26), np.int16), spacing_mm=(3.0, 0.9, 0.8))
    assert report("comparison.json", "--images", "imagesTs", "--views", "second=view") == 1
    err = capsys.readouterr().err
    assert "case_0004: reference and image (--images) differ in shape;" in err
    assert "case_0000: reference and view second differ in spacing;" in err
    assert (
        "view (--views second): according to its manifest, not complete or not made from the images in --images: "
        in err
    )
    assert "case_0000, case_0004" in err and not list(project.glob("report*"))


def test_a_view_made_from_another_image_is_refused(project, capsys):
    image, geometry = read_volume(project / "imagesTs" / "case_0001_0000.nii.gz")
    write_volume(project / "imagesTs" / "case_0001_0000.nii.gz", image + 1, geometry)
    assert report("comparison.json", "--images", "imagesTs", "--views", "second=view") == 1
    assert "not made from the images in --images: case_0001;" in capsys.readouterr().err
    shutil.rmtree(project / "view" / MANIFEST_FOLDER)
    page = page_of("--views", "second=view")
    assert any("second has no manifest, so its settings are not recorded" in p for p in page.texts["p"])


def test_a_quality_of_another_view_is_refused(project, capsys):
    quality = read_json(project / "quality.json")
    quality["view_settings"]["precision"] = "bfloat16"
    quality["cases"][1]["shape"] = [12, 24, 27]
    del quality["cases"][3]
    write_json(project / "other.json", quality)
    assert report("comparison.json", "--views", "second=view", "--quality", "second=other.json") == 1
    err = capsys.readouterr().err
    assert 'from a view with other settings than view: precision: "float32", now "bfloat16"' in err
    assert "lacks 1 of the 5 cases of comparison.json: case_0003" in err
    assert "case_0001 was measured with shape [12, 24, 27]" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "nothing to report on"),
        (["none.json"], "no such file: none.json"),
        (["dataset.json"], "dataset.json is not a comparison.json or summary.json of fvae-evaluate"),
        (["quality.json"], "of fvae-evaluate, but 'reconstruction_quality'"),
        (["comparison.json", "./comparison.json"], "is given twice"),
        (["comparison.json", "-o", "report.txt"], "ends in .html, got report.txt"),
        (["comparison.json", "-o", "report.md"], "add --format markdown"),
        (["comparison.json", "--cases", "-1"], "must not be negative"),
        (["comparison.json", "--views", "view"], "--views takes NAME=PATH, got view"),
        (["comparison.json", "--views", "a=nowhere"], "nowhere (--views a) is not a folder"),
        (["comparison.json", "--views", "a=view", "a=view"], "--views a is given 2 times"),
        (["comparison.json", "--images", "imagesTs", "--images", "imagesTs"], "one for each of the 1 in their order"),
        (["comparison.json", "--quality", "a=comparison.json"], "is not a reconstruction_quality.json"),
        (["--images", "imagesTs", "--paper"], "--images are for the pictures of RESULTS"),
    ],
)
def test_impossible_options_are_refused(project, capsys, arguments, message):
    assert report(*arguments) == 1
    assert message in capsys.readouterr().err
    assert not list(project.glob("report*"))


def test_results_of_another_tool_or_version_are_refused(project, capsys):
    summary = read_json(project / "summary.json")
    del summary["fvae"]
    write_json(project / "nnunet.json", summary)
    write_json(project / "future.json", read_json(project / "comparison.json") | {"schema": 99})
    assert report("nnunet.json", "future.json") == 1
    err = capsys.readouterr().err
    assert "nnunet.json is nnU-Net's own summary.json, without NSD; run fvae-evaluate" in err
    assert "future.json does not have schema 1" in err


@pytest.mark.slow
def test_the_number_of_processes_does_not_change_the_page(project):
    # this process may have loaded what changes a grey value here and there; the others are fresh
    for processes in ("1", "2"):
        assert main([*FULL, "-np", processes, "-o", f"by_{processes}.html"]) == 0
    assert Path("by_1.html").read_bytes() == Path("by_2.html").read_bytes()


@pytest.mark.parametrize(
    "way",
    [
        ("settings", "file_ending"), ("settings", "test"),
        ("reference", "cases"), ("models", 0, "missing"), ("labels", 0, "key"),
        ("measures", 0, "models", 0, "values"), ("measures", 0, "comparisons", 0, "bland_altman", "limits"),
        ("lesions", "2"), ("lesions", "2", "second"), ("lesions", "2", "second", "case_0000", "detected"),
    ],
)  # fmt: skip
def test_a_comparison_that_lacks_something_is_named(project, capsys, way):
    content = read_json(project / "comparison.json")
    inside = content
    for key in way[:-1]:
        inside = inside[key]
    del inside[way[-1]]
    write_json(project / "comparison.json", content)
    assert report("comparison.json") == 1
    err = capsys.readouterr().err
    assert f"comparison.json is damaged or incomplete: {'.'.join(map(str, way[:1]))}" in err
    assert f"lacks {way[-1]}. Run fvae-evaluate again" in err


def test_a_comparison_of_other_models_lacks_something_too(project, capsys):
    for of in ("models", "comparisons"):
        content = read_json(project / "comparison.json")
        del content["measures"][1][of][0]
        write_json(project / "damaged.json", content)
        assert report("damaged.json") == 1
        assert (
            "damaged.json is damaged or incomplete: measures[1] does not match the compared models"
            in capsys.readouterr().err
        )


def test_a_summary_that_lacks_something_is_named(project, capsys):
    content = read_json(project / "summary.json")
    del content["fvae"]["labels"][0]["key"]
    write_json(project / "summary.json", content)
    assert report("summary.json") == 1
    assert "summary.json is damaged or incomplete: it lacks 'key'. Run fvae-evaluate again" in capsys.readouterr().err
