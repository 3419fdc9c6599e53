import pytest
from conversion_for_tests import label_row, metadata_row, report_row, write_csv

from fvae_nnunet.conversion.ct_rate import VolumeName
from fvae_nnunet.conversion.tables import FINDINGS, read_findings, read_metadata, read_reports
from fvae_nnunet.errors import UserError

ONE, TWO, THREE = (VolumeName("train", number, "a", 1) for number in (1, 2, 3))


def test_there_are_18_findings_in_the_order_of_the_published_table():
    assert len(set(FINDINGS)) == 18
    assert (FINDINGS[0], FINDINGS[9], FINDINGS[17]) == (
        "Medical material",
        "Lung nodule",
        "Interlobular septal thickening",
    )


def test_a_report_is_findings_and_impressions_as_one_line(tmp_path):
    rows = [
        report_row("train_1_a_1.nii.gz", "A nodule,\n 5 mm,\tis seen.", 'Nodule "left".'),
        report_row("train_2_a_1.nii.gz", "Not given.", "Normal."),
        report_row("train_3_a_1.nii.gz", "", "Not given."),
    ]
    table = read_reports([write_csv(tmp_path / "reports.csv", rows)])
    assert table.rows == {ONE: 'A nodule, 5 mm, is seen. Nodule "left".', TWO: "Normal."}
    assert not table.wrong and not table.unassigned_rows


def test_labels_are_read_by_the_names_of_their_columns(tmp_path):
    row = label_row("train_1_a_1.nii.gz", "Lung nodule", "Atelectasis")
    turned = {"VolumeName": row["VolumeName"]} | {name: row[name] for name in reversed(FINDINGS)}
    table = read_findings([write_csv(tmp_path / "labels.csv", [turned])])
    assert [name for name, value in table.rows[ONE].items() if value] == ["Atelectasis", "Lung nodule"]
    assert list(table.rows[ONE]) == list(FINDINGS)


def test_bad_rows_are_named_with_file_and_line_and_the_others_are_read(tmp_path):
    rows = [
        label_row("train_1_a_1.nii.gz"),
        label_row("train_2_a_1.nii.gz") | {"Emphysema": "2"},
        label_row("patient 3"),
        label_row("train_3_a_1.nii.gz") | {"Emphysema": ""},
    ]
    table = read_findings([write_csv(tmp_path / "labels.csv", rows)])
    assert set(table.rows) == {ONE}
    assert table.wrong == {
        TWO: "labels.csv, line 3: Emphysema must be 0 or 1, not '2'",
        THREE: "labels.csv, line 5: Emphysema must be 0 or 1, not ''",
    }
    assert table.unassigned_rows == ["labels.csv, line 4: 'patient 3' is not the name of a volume"]


def test_lines_are_counted_in_the_file_also_after_reports_of_several_lines(tmp_path):
    rows = [report_row("train_1_a_1.nii.gz", "One\ntwo\nthree"), report_row("nobody")]
    table = read_reports([write_csv(tmp_path / "reports.csv", rows)])
    assert table.unassigned_rows == ["reports.csv, line 5: 'nobody' is not the name of a volume"]


def test_a_volume_twice_must_say_the_same(tmp_path):
    rows = [
        report_row("train_1_a_1.nii.gz"),
        report_row("train_1_a_1.nii.gz"),
        report_row("train_2_a_1.nii.gz"),
        report_row("train_2_a_1.nii.gz", "Pneumothorax."),
    ]
    table = read_reports([write_csv(tmp_path / "reports.csv", rows)])
    assert ONE not in table.wrong
    assert table.wrong[TWO] == "reports.csv, line 5: train_2_a_1 is also in reports.csv, line 4, and the rows differ"


def test_a_row_with_too_few_cells_is_named(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("VolumeName,Findings_EN,Impressions_EN\ntrain_1_a_1.nii.gz,Clear.\n")
    assert "line 2" in read_reports([path]).wrong[ONE]


def test_another_table_is_refused(tmp_path):
    path = write_csv(tmp_path / "x.csv", [report_row("train_1_a_1.nii.gz")])
    with pytest.raises(UserError, match="lacks the columns Medical material, "):
        read_findings([path])
    with pytest.raises(UserError, match="is not a file"):
        read_reports([tmp_path / "none.csv"])


def _metadata(tmp_path, **changes):
    row = metadata_row("train_1_a_1.nii.gz", **changes)
    return read_metadata([write_csv(tmp_path / "m.csv", [row])]).rows[ONE]


def test_metadata_gives_rescale_spacing_and_placement(tmp_path):
    metadata = _metadata(tmp_path, RescaleSlope="2", RescaleIntercept="-8192")
    assert metadata.rescale == (2.0, -8192.0)
    assert metadata.spacing_mm == (0.7, 0.7, 1.5)
    assert metadata.in_plane_shape == (20, 24)
    origin, direction = metadata.placement
    assert origin == (-8.0, -7.5, -30.25)
    assert direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)


def test_columns_of_the_direction_are_the_cosines(tmp_path):
    # rows run to the patient's right, columns to the front: slices still run to the head
    _, direction = _metadata(tmp_path, ImageOrientationPatient="[-1, 0, 0, 0, -1, 0]").placement
    assert direction == (-1, 0, 0, 0, -1, 0, 0, 0, 1)
    # gantry tilt: rows along x, columns along (0, cos, -sin); slices along their cross product (0, sin, cos)
    _, direction = _metadata(tmp_path, ImageOrientationPatient="[1, 0, 0, 0, 0.8, -0.6]").placement
    assert direction == pytest.approx((1, 0, 0, 0, 0.8, 0.6, 0, -0.6, 0.8))


@pytest.mark.parametrize(
    ("changes", "part", "message"),
    [
        ({"RescaleSlope": "0"}, "rescale", "RescaleSlope must be above 0"),
        ({"RescaleSlope": "nan"}, "rescale", "RescaleSlope is not a finite number"),
        ({"RescaleIntercept": ""}, "rescale", "line 2: RescaleIntercept is empty"),
        ({"XYSpacing": "[0.7, 0.9]"}, "spacing_mm", "unequal"),
        ({"XYSpacing": "0.7"}, "spacing_mm", "XYSpacing must be 2 numbers"),
        ({"ZSpacing": "0"}, "spacing_mm", "must be above 0"),
        ({"ImageOrientationPatient": "[1, 0, 0, 1, 0, 0]"}, "placement", "not a pair of perpendicular"),
        ({"ImagePositionPatient": "import os"}, "placement", "ImagePositionPatient must be 3 numbers"),
    ],
)
def test_wrong_metadata_is_named_when_it_is_used(tmp_path, changes, part, message):
    metadata = _metadata(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        getattr(metadata, part)
