import csv
import io

import numpy as np
import pytest

from fvae_nnunet.files.csv_tables import csv_bytes, csv_line, plain_text
from fvae_nnunet.findings.predictions import read_predictions, write_predictions

FORMULAS = (
    '=HYPERLINK("http://x")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=", "-", "-case", "+_1", "-1_000",
    "--1", "-3.5mm",
)  # fmt: skip
PLAIN = ("case_001", "a=b", "3-1", "", " =1", "liver + tumour", "'quoted'", "'", "-3.5", "+2e-3", "-inf", "-.5", "1.")


def cells(content):
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula_and_our_readers_get_the_name_back(text):
    ((header,), (cell,)) = cells(csv_bytes([{text: text}]))
    assert header == cell == f"'{text}"
    assert plain_text(cell) == text


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_and_numbers_stay_as_they_are(text):
    assert cells(csv_bytes([{"a": text, "b": 1}]))[1][0] == text
    assert plain_text(text) == text


@pytest.mark.parametrize("text", ["'=1", "''@x", "'-3.5"])
def test_a_name_that_looks_escaped_comes_back_too(text):
    cell = cells(csv_bytes([{"a": text}]))[1][0]
    assert cell == f"'{text}" and plain_text(cell) == text


def test_numbers_are_written_as_csv_writes_them():
    rows = [{"case": "a", "psnr_db": -3.5, "n": -2, "nothing": None}, {"case": "b", "more": np.float64(-0.25)}]
    assert csv_bytes(rows) == b"case,psnr_db,n,nothing,more\r\na,-3.5,-2,,\r\nb,,,,-0.25\r\n"
    assert csv_bytes([], ["step", "loss"]) == b"step,loss\r\n"
    assert csv_line([1, "a,b"]) == '1,"a,b"\r\n'


def test_predictions_of_cases_and_findings_with_such_names_come_back(tmp_path):
    path = tmp_path / "predictions_test.csv"
    write_predictions(path, ("=nodule", "-effusion"), {"@case": np.array([0.25, 0.5]), "b": np.array([1.0, 0.0])})
    assert b"\n'@case," in path.read_bytes() and path.read_bytes().startswith(b"case,'=nodule,'-effusion")
    read = read_predictions(path)
    assert read.findings == ("=nodule", "-effusion") and set(read.cases) == {"@case", "b"}
    assert np.array_equal(read.scores[read.cases.index("@case")], [0.25, 0.5])
