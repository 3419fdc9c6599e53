"""fvae-report --synthetic: the gallery shows before, after and mask; tables say what the records do; names are text."""

import base64
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from datasets_for_tests import Dataset, new_dataset
from report_for_tests import HOSTILE, Page, markdown_tables
from scipy import ndimage
from synthetic_for_tests import LESION_HU, MODEL, RADIUS_MM, ball_in, plain_quality, write_synthetic_folder

from fvae_nnunet.cli.report import main
from fvae_nnunet.files.checked_json import read_json
from fvae_nnunet.jobs.manifest import write_json
from fvae_nnunet.nnunet.synthetic_folder import read_synthetic_cases
from fvae_nnunet.report import synthetic_pictures
from fvae_nnunet.report.synthetic_pictures import choose_for_gallery
from fvae_nnunet.report.synthetic_section import kind_of_reason

SPACING_MM = (3.0, 2.0, 2.0)
REASONS = [
    ["the lesion has a mean of 401 HU; real ones have 10 to 350", "71% of the lesion lies in the organ; at least 80%"],
    ["the lesion has a mean of 405 HU; real ones have 10 to 350"],
]


def quality(number):
    return plain_quality(number) | {"core_sd_hu": float("nan") if number == 1 else 10.0 + number}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Two raw phantoms in nnUNet_raw. Not to be changed."""
    from phantoms import write_phantom_dataset

    found = new_dataset("Report")
    write_phantom_dataset(found.raw, "pancreas", n_train=2, n_test=0, seed=0, shape=(16, 40, 40), spacing_mm=SPACING_MM)
    return found


@pytest.fixture(scope="module")
def made(dataset, tmp_path_factory) -> Path:
    """Three accepted and two rejected cases. Not to be changed."""
    folder = tmp_path_factory.mktemp("report") / "synthetic"
    sources = ["phantom_000", "phantom_001", "phantom_000"]
    model = MODEL | {"folder": HOSTILE, "training_cases": ["phantom_000"]}
    write_synthetic_folder(folder, dataset, sources, model=model, quality=quality, borrowed_from=HOSTILE)
    for number, reasons in enumerate(REASONS, start=3):
        write_synthetic_folder(
            folder, dataset, ["phantom_001"], first=number, accepted=False, reasons=reasons, model=model
        )
    return folder


@pytest.fixture(scope="module")
def page(made, tmp_path_factory) -> Page:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["--synthetic", str(made), "-o", str(path), "-np", "0"]) == 0
    return Page(path.read_text())


@pytest.mark.slow
def test_the_chapter_says_how_they_were_made(page, dataset):
    assert page.texts["h1"] == ["Synthetic lesions"]
    assert page.texts["p"][0] == "3 accepted synthetic cases."
    assert page.texts["h3"] == ["Gallery", "Quality", "Rejected"]
    facts = dict(zip(page.texts["dt"], page.texts["dd"]))
    assert facts["cases"] == "3 cases accepted, from 2 source cases; 2 rejected"
    assert facts["source"] == dataset.name and facts["mode"] == "inpaint" and facts["seed"] == "0"
    assert facts["diffusion model"].startswith(f"{HOSTILE}, sha256 cccccccccccc, trained on 1 case; VAE tiny")
    assert page.table("setting", "value") == [["steps", "20"]]


def test_quality_is_summed_up_for_accepted_and_rejected_lesions_beside_the_limits(page):
    rows = {row[0]: row[1:] for row in page.table("of each lesion", "limits")}
    # diameters are 14 mm and the case's number; 0 to 2 are accepted, 3 and 4 rejected
    assert rows["diameter (mm)"] == ["3", "14.0", "15.0", "16.0", "2", "17.0", "17.5", "18.0", ""]
    assert rows["mean (HU)"] == ["3", "400.0", "401.0", "402.0", "2", "403.0", "403.5", "404.0", ""]
    assert rows["core's SD (HU)"] == ["2", "10.0", "11.0", "12.0", "2", "10.0", "10.0", "10.0", "(4.0 … 8.0) to 20.0"]
    assert rows["contrast (HU)"][-1] == "−80.0 to 350.0"
    assert rows["fraction in the organ"][-1] == "at least 0.80"
    assert "fraction found by the segmenter" not in rows, "no segmenter was asked"
    cases = page.table("case", "source case", "shape")
    assert [row[:3] for row in cases] == [
        ["synthetic_0000", "phantom_000", f"borrowed from {HOSTILE}"],
        ["synthetic_0001", "phantom_001", f"borrowed from {HOSTILE}"],
        ["synthetic_0002", "phantom_000", f"borrowed from {HOSTILE}"],
    ]
    assert cases[1][4:] == ["15.0", "401.0", "n/a", "300.0", "0.90"]


def test_reasons_are_counted_without_their_figures_and_shown_in_full(page):
    assert page.table("reason", "cases") == [
        ["the lesion has a mean of … HU; real ones have … to …", "2"],
        ["…% of the lesion lies in the organ; at least …%", "1"],
    ]
    assert [row[-1] for row in page.table("case", "source case", "reason")] == [*REASONS[0], *REASONS[1]]
    assert kind_of_reason("lesion 12 has a contrast of −3.5 HU") == "the lesion has a contrast of … HU"


def test_names_are_text_and_the_page_holds_its_pictures(page):
    assert "script" not in page.tags and not page.open
    pictures = [address for address in page.addresses if address.startswith("data:image/jpeg")]
    assert len(pictures) == 1
    assert page.texts["figcaption"][0] == (
        "synthetic_0000 (from phantom_000), synthetic_0001 (from phantom_001), synthetic_0002 (from phantom_000)"
    )


def grey(jpeg):
    from PIL import Image

    return np.asarray(Image.open(BytesIO(jpeg)).convert("RGB")).astype(int)


def test_a_lesion_is_white_after_and_not_before_and_its_outline_is_round_it(made, dataset, monkeypatch):
    drawn = []
    monkeypatch.setattr(synthetic_pictures, "_draw_entry", lambda panels, cut, heading: drawn.append((cut, heading)))
    figures = synthetic_pictures.draw_gallery(synthetic_pictures_sets(made), 2)
    assert [heading for _, heading in drawn] == ["synthetic_0000, 14.0 mm", "synthetic_0002, 16.0 mm"]
    assert len(figures[0]) == 1
    cut = drawn[0][0]
    source, label = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(dataset.raw / file)))
        for file in ("imagesTr/phantom_000_0000.nii.gz", "labelsTr/phantom_000.nii.gz")
    )
    new = ball_in(source.shape, SPACING_MM)[0] & (label != 2)
    largest = int(new.sum(axis=(1, 2)).argmax())
    assert cut.name == f"slice {largest + 1}/16"
    assert np.array_equal(cut.lesion, new[largest])
    assert np.array_equal(cut.before, source[largest])
    assert np.array_equal(cut.after, np.where(new[largest], LESION_HU, source[largest]))
    # the ball of 7 mm around voxel 20 of 2 mm, its box and 20 mm of margin around; the phantom's own tumour is cut out
    left, right, bottom, top = cut.frame_mm
    middle_mm = (20.5 * 2, 20.5 * 2)
    assert left < middle_mm[0] - RADIUS_MM < middle_mm[0] + RADIUS_MM < right and top < middle_mm[1] < bottom
    assert right - left == pytest.approx(bottom - top) and right - left <= 2 * (RADIUS_MM + 20) + 2


def rewrite_record(path, **entries):
    write_json(path, read_json(path) | entries)


def cuts_of(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(synthetic_pictures, "_draw_entry", lambda panels, cut, heading: drawn.append((cut, heading)))
    synthetic_pictures.draw_gallery(synthetic_pictures_sets(folder), 9)
    return drawn


def test_a_grown_or_shrunk_lesion_is_shown_whole(dataset, tmp_path, monkeypatch):
    """The phantom's own tumour is shrunk to its core in one case, and grown by a voxel in the other."""
    write_synthetic_folder(tmp_path / "grown", dataset, ["phantom_000", "phantom_000"])
    before = sitk.ReadImage(str(dataset.raw / "labelsTr" / "phantom_000.nii.gz"))
    tumour = sitk.GetArrayFromImage(before) == 2
    masks = {"synthetic_0000": ndimage.binary_erosion(tumour), "synthetic_0001": ndimage.binary_dilation(tumour)}
    for name, mask in masks.items():
        label = sitk.GetImageFromArray((2 * mask).astype(np.uint8))
        label.CopyInformation(before)
        sitk.WriteImage(label, str(tmp_path / "grown" / "labelsTr" / f"{name}.nii.gz"))
        path = tmp_path / "grown" / "records" / f"{name}.json"
        lesion = read_json(path)["lesions"][0] | {"replaces": {"diameter_mm": 12.0, "voxels": int(tumour.sum())}}
        rewrite_record(path, lesions=[lesion])
    drawn = cuts_of(tmp_path / "grown", monkeypatch)
    for (cut, _), mask in zip(drawn, masks.values(), strict=True):
        largest = int(mask.sum(axis=(1, 2)).argmax())
        assert cut.name == f"slice {largest + 1}/16" and np.array_equal(cut.lesion, mask[largest]) and mask.any()


@pytest.mark.slow
def test_volumes_without_lesions_and_without_source_case_have_a_report(dataset, tmp_path, monkeypatch):
    """As from a list with a model of structures: the first has a source, the second was made from a file."""
    folder = tmp_path / "volumes"
    write_synthetic_folder(folder, dataset, ["phantom_000", "phantom_001"])
    empty = {"lesions": [], "label": {"name": None, "value": None}, "quality": {"lesions": [], "limits": {}}}
    rewrite_record(folder / "records" / "synthetic_0000.json", **empty)
    rewrite_record(folder / "records" / "synthetic_0001.json", source_case=None)
    assert main(["--synthetic", str(folder), "-o", str(tmp_path / "report.html"), "-np", "0"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "2 accepted synthetic cases" in page and "2 cases accepted, from 1 source case" in page
    assert "synthetic_0001" in page and "None" not in page
    ((cut, heading),) = cuts_of(folder, monkeypatch)
    assert heading == "synthetic_0000" and cut.name == "slice 9/16" and not cut.lesion.any()


def synthetic_pictures_sets(*folders):
    from fvae_nnunet.report.synthetic_cases import load_synthetic

    return load_synthetic(folders)


def test_the_picture_has_the_lesion_white_in_two_panels_and_its_outline_in_the_last(made):
    (figure,) = synthetic_pictures.draw_gallery(synthetic_pictures_sets(made), 1)[0]
    image = grey(figure.image.jpeg)
    height, width, _ = image.shape
    assert width == pytest.approx(4 * height, rel=0.2)
    panels = [image[height // 2 - 15 : height // 2 + 25, (4 * n + 2) * width // 16 - 10 :][:, :20] for n in range(4)]
    white = [(panel.min(axis=2) > 230).mean() for panel in panels]
    assert white[2] > 0.5 and white[3] > 0.3 and max(white[:2]) < 0.2
    orange = [
        ((part[..., 0] > 180) & (part[..., 1] > 100) & (part[..., 2] < 100)).sum()
        for part in np.array_split(image, 4, axis=1)
    ]
    assert orange[3] > 50 and max(orange[:3]) == 0


def test_the_gallery_is_even_over_sizes(made):
    cases = read_synthetic_cases(made)
    assert [case.name for case in choose_for_gallery(cases, 2)] == ["synthetic_0000", "synthetic_0002"]
    assert [case.name for case in choose_for_gallery(cases[::-1], 9)] == [case.name for case in cases]
    assert choose_for_gallery(cases, 0) == []


@pytest.mark.slow
def test_markdown_has_the_same_tables_and_its_pictures_beside(made, page, tmp_path):
    path = tmp_path / "report.md"
    assert main(["--synthetic", str(made), "--format", "markdown", "-o", str(path), "-np", "0"]) == 0
    text = path.read_text()
    assert "<script" not in text and HOSTILE not in text
    summed_up = markdown_tables(text)[1]
    assert summed_up == page.table("of each lesion", "limits")
    images = sorted(image.name for image in (tmp_path / "report_files").iterdir())
    assert images == ["figure_01.jpg", "figure_02.png"]
    assert (tmp_path / "report_files" / images[0]).read_bytes().startswith(b"\xff\xd8")


@pytest.mark.slow
def test_several_folders_are_told_apart_and_one_without_rejected_cases_has_no_such_part(made, dataset, tmp_path):
    write_synthetic_folder(tmp_path / "<b>", dataset, ["phantom_000"])
    path = tmp_path / "report.html"
    arguments = ["--synthetic", str(made), str(tmp_path / "<b>"), "-o", str(path), "-np", "0", "--gallery", "0"]
    assert main(arguments) == 0
    found = Page(path.read_text())
    assert found.texts["h3"] == [str(made), str(tmp_path / "<b>")]
    assert found.texts["h4"] == ["Quality", "Rejected", "Quality"]
    assert base64.b64encode(b"\xff\xd8\xff").decode() not in path.read_text(), "no gallery, no JPEG"


@pytest.mark.slow
@pytest.mark.parametrize(("format_name", "name"), [("html", "report.html"), ("markdown", "report.md")])
def test_where_none_was_accepted_the_rejected_ones_are_shown(dataset, tmp_path, format_name, name):
    for number, reasons in enumerate(REASONS):
        write_synthetic_folder(
            tmp_path / "none", dataset, ["phantom_001"], first=number, accepted=False, reasons=reasons, quality=quality
        )
    (found,) = synthetic_pictures_sets(tmp_path / "none")
    ((figure,),) = synthetic_pictures.draw_gallery([found], 2)
    assert figure.caption == "synthetic_0000 (from phantom_001), synthetic_0001 (from phantom_001)"
    path = tmp_path / name
    assert (
        main(
            [
                "--synthetic",
                str(tmp_path / "none"),
                "--format",
                format_name,
                "-o",
                str(path),
                "-np",
                "0",
            ]
        )
        == 0
    )
    text = path.read_text()
    assert "No case was accepted; these are rejected ones, evenly spaced by size" in text
    assert "Every rejected case, 2" in text
    assert "Every accepted case" not in text


@pytest.mark.slow
def test_mistakes_are_one_message(made, dataset, tmp_path, capsys):
    def message(*arguments):
        assert main([*map(str, arguments), "-np", "0", "-o", str(tmp_path / "report.html")]) == 1
        assert not (tmp_path / "report.html").exists()
        return capsys.readouterr().err

    assert "is not a folder of synthetic cases" in message("--synthetic", tmp_path)
    assert "must not be negative" in message("--synthetic", made, "--gallery", "-1")
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    record = folder / "records" / "synthetic_0001.json"
    content = read_json(record)
    write_json(record, content | {"source_case": "phantom_009"})
    assert f"made from phantom_009, which is not a training case of {dataset.name}" in message("--synthetic", folder)
    write_json(record, content | {"dataset": f"../{dataset.name}"})
    assert "is neither a dataset id" in message("--synthetic", folder)
    write_json(record, content)
    label = folder / "labelsTr" / "synthetic_0001.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(label))[:, :, :-1], str(label))
    assert "must have the geometry of its source: run fvae-synthesize again" in message("--synthetic", folder)
