import json

import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.report_texts import read_reports


def test_reports_of_json_and_csv(tmp_path):
    expected = {"case_1": "A mass, in the liver.", "case_2": "Größe 2 cm\nno mass"}
    (tmp_path / "reports.json").write_text(json.dumps(expected, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "reports.csv").write_text(
        '\ufefftext,age,case\n" A mass, in the liver.",70,case_1\n"Größe 2 cm\nno mass",71,case_2\n', encoding="utf-8"
    )
    assert read_reports(tmp_path / "reports.json") == expected
    assert read_reports(tmp_path / "reports.csv") == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"a": "x", "a": "y"}', "'a' twice"),
        ("a.json", '{"a": " "}', "'a' is empty"),
        ("a.json", '{"a": 3}', "'a' is empty or not a text"),
        ("a.json", "[1]", "must hold one object"),
        ("a.json", '"text"', "must hold one object"),
        ("a.json", "{", "cannot be read"),
        ("a.csv", "case,report\na,x\n", "needs the columns case and text"),
        ("a.csv", "", "needs the columns case and text"),
        ("a.csv", "case,text\na\n", "'a' is empty"),
        ("a.csv", "case,text\na,x\na,y\n", "'a' twice"),
        ("a.txt", "x", "must end in"),
    ],
)
def test_wrong_reports_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_reports(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        read_reports(tmp_path / "other.json")
